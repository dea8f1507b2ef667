"""A gallery: who and what was enrolled on this device, in one SQLite file bound to one model's embedding."""

from __future__ import annotations

import os
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from confit_runtime.errors import GalleryError, UsageError
from confit_runtime.matcher import Levels, Match, Matcher, unit
from confit_runtime.migrations import bind, damaged, lay_out, prepare, reported
from confit_runtime.model import Model
from confit_runtime.search import IndexSearch, build_index, erase_index

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

LONGEST_NAME = 100
ROWS_AT_ONCE = 20_000


@dataclass(frozen=True)
class Print:
    """One enrolled sound: its embedding `[dim]` of length 1, and where it came from.

    `negative` prints are of a sound that was taken for the name and is not it. `audio` is the sound itself as FLAC,
    where it was kept.
    """

    embedding: Floats
    source: str
    negative: bool = False
    audio: bytes | None = None


class Gallery:
    """Names and their prints, kept in one SQLite file. Use as a context manager; one thread at a time.

    Each change is one transaction, on the disk when the call returns: a crash loses nothing that was enrolled. What
    another program changes meanwhile is seen by the next call.
    """

    def __init__(
        self, path: Path, db: sqlite3.Connection, model: Model | None, threshold: float | None, margin: float | None
    ) -> None:
        """Use `Gallery.open`."""
        self.path, self._db, self._model = path, db, model
        self._levels = Levels.of(model.contract, threshold, margin) if model is not None else None
        row = db.execute("SELECT embedding_id, dim, model FROM binding").fetchone()
        if row is None or [type(value) for value in row] != [str, int, str]:
            raise damaged(path)
        self.embedding_id, self.dim, self.model_name = row
        if model is not None:
            self.check(model)
        self._seen = self._version()
        self._matcher: Matcher | None = self._load() if model is not None else None

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: Model | None = None,
        *,
        create: bool = False,
        threshold: float | None = None,
        margin: float | None = None,
    ) -> Gallery:
        """Open a gallery, or make an empty one for `model` with `create`.

        Without a model it can be listed and changed, but not matched against. `threshold` is a similarity that stands
        instead of those the model and the prints themselves give, `margin` one instead of the model's. In a folder that
        cannot be written the file is opened as it is, for reading only. Raises UsageError when there is no such file, and
        GalleryError when it is damaged, of a newer version, of another model, or not a gallery.
        """
        path = Path(path)
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is not a file, expected a gallery")
        if create and model is None:
            raise UsageError(f"{path}: a new gallery needs the model it is for")
        if not create and not path.exists():
            raise UsageError(
                f"{path}: no such gallery: `confit-edge enroll MODEL NAME CLIP... --gallery {path}` makes it"
            )
        if not path.parent.is_dir():
            raise UsageError(f"{path.parent}: no such folder for a gallery")
        if model is not None:
            Levels.of(model.contract, threshold, margin)  # what is wrong with the model is said before a file is made
        writable = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
        with reported(path):
            db = _connect(path, create, writable)
            try:
                for pragma in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "temp_store = MEMORY"):
                    db.execute(f"PRAGMA {pragma}")
                contract = model.contract if create and model is not None else None
                db = prepare(path, db, contract, writable=writable)
                return cls(path, db, model, threshold, margin)
            except BaseException:
                db.close()
                raise

    def copy_layout(self, path: Path) -> Gallery:
        """An empty gallery in a new file, bound to the same model."""
        with reported(path):
            db = _connect(path, create=True, writable=True)
            lay_out(path, db, self.embedding_id, self.dim, self.model_name)
            db.close()
        return Gallery.open(path)

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A matcher that was taken from it can still be used."""
        self._db.close()

    def check(self, model: Model) -> None:
        """Raise GalleryError unless this gallery was enrolled with `model`'s embedding."""
        contract = model.contract
        if (self.embedding_id, self.dim) != (contract.embedding_id, contract.embedding_dim):
            with reported(self.path):
                prints, kept = self._db.execute(
                    "SELECT (SELECT COUNT(*) FROM prints), (SELECT COUNT(*) FROM audio)"
                ).fetchone()
            named = f"{self.model_name}, " if self.model_name else ""
            advice = "use that model, or enroll again into another --gallery"
            if kept and kept == prints:
                advice = f"its audio was kept: `confit-edge gallery re-enroll {model.path} --gallery {self.path}`"
            raise GalleryError(
                f"{self.path}: was enrolled with another model ({named}embedding {self.embedding_id[:12]} of {self.dim};"
                f" {model.name} has {contract.embedding_id[:12]} of {contract.embedding_dim}): {advice}"
            )

    @property
    def matcher(self) -> Matcher:
        """The prints as they are now, to match against. Raises UsageError on a gallery opened without a model."""
        if self._model is None:
            raise UsageError(f"{self.path}: was opened without its model, so there is nothing to match with")
        with reported(self.path):
            version = self._version()
            if self._matcher is None or version != self._seen:
                self._seen, self._matcher = version, self._load()
        return self._matcher

    def match(self, embedding: Floats) -> Match:
        """Who an embedding `[dim]` of the model is nearest to; see `Matcher`. Raises UsageError."""
        return self.matcher.match(embedding)

    def enroll(
        self,
        name: str,
        embeddings: Floats,
        *,
        sources: Sequence[str],
        voiced_s: float,
        negative: bool = False,
        audio: Sequence[bytes] | None = None,
    ) -> int:
        """Add `embeddings [n, dim]` (n >= 1), one source each, to a name; all of them or, after a crash, none.

        `audio` is the sound of each as FLAC, if it is to be kept. `negative` ones are of sounds that were taken for the
        name and are not it. Returns how many prints of that kind the name has now. Raises UsageError and GalleryError.
        """
        name = clean_name(name)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim or len(embeddings) == 0:
            raise UsageError(f"embeddings to enroll are [n, {self.dim}], got {list(embeddings.shape)}")
        if len(sources) != len(embeddings) or len(audio or sources) != len(embeddings):
            raise UsageError(f"{len(embeddings)} embeddings to enroll, but {len(sources)} sources")
        lengths = np.linalg.norm(embeddings, axis=1)
        if not (np.isfinite(lengths).all() and (lengths > 0.0).all()):
            raise UsageError(f"an embedding of {name!r} is zero, NaN or infinite")
        with self.change() as db:
            db.execute("INSERT INTO names (name, voiced_s) VALUES (?, 0) ON CONFLICT DO NOTHING", (name,))
            if not negative:
                db.execute("UPDATE names SET voiced_s = voiced_s + ? WHERE name = ?", (voiced_s, name))
            name_id = self._id_of(name)
            for at, (row, source) in enumerate(zip(unit(embeddings), sources, strict=True)):
                place = db.execute(
                    "INSERT INTO prints (name_id, embedding, source, negative) VALUES (?, ?, ?, ?)",
                    (name_id, to_blob(row), source.encode(errors="replace").decode(), int(negative)),
                ).lastrowid
                if audio is not None:
                    db.execute("INSERT INTO audio (print_id, flac) VALUES (?, ?)", (place, audio[at]))
        return (self.negatives() if negative else self.names()).get(name, 0)

    def names(self) -> dict[str, int]:
        """How many prints each name has, in order of name."""
        return self._counts(negative=False)

    def negatives(self) -> dict[str, int]:
        """How many negative prints each name (or label of the model) has, in order of name."""
        return self._counts(negative=True)

    def _counts(self, *, negative: bool) -> dict[str, int]:
        with reported(self.path):
            rows = self._db.execute(
                "SELECT name, COUNT(*) FROM prints JOIN names ON name_id = names.id WHERE negative = ?"
                " GROUP BY name ORDER BY name",
                (int(negative),),
            ).fetchall()
        if any(not isinstance(name, str) for name, _ in rows):
            raise damaged(self.path)
        return dict(rows)

    def voiced_s(self, name: str) -> float:
        """How many seconds of sound a name was enrolled from. Raises UsageError on an unknown name."""
        with reported(self.path):
            row = self._db.execute(
                "SELECT CAST(voiced_s AS REAL) FROM names WHERE id = ?", (self._id_of(clean_name(name)),)
            ).fetchone()
        if row is None or row[0] is None:
            raise damaged(self.path)
        return float(row[0])

    def prints(self, name: str) -> list[Print]:
        """A name's prints, negative ones too, in the order they were enrolled. Raises UsageError on an unknown name."""
        with reported(self.path):
            rows = self._db.execute(
                "SELECT embedding, CAST(source AS TEXT), negative, flac FROM prints"
                " LEFT JOIN audio ON print_id = prints.id WHERE name_id = ? ORDER BY prints.id",
                (self._id_of(clean_name(name)),),
            ).fetchall()
        if any(not isinstance(flac, bytes | None) or not isinstance(source, str) for _, source, _, flac in rows):
            raise damaged(self.path)
        return [
            Print(self._embeddings([blob])[0], source, bool(negative), flac) for blob, source, negative, flac in rows
        ]

    @property
    def index_path(self) -> Path:
        """Where the index of this gallery is, if `build_index` made one."""
        return self.path.with_name(self.path.name + ".index")

    def build_index(self) -> int:
        """Write an index of the prints beside the file, for galleries of more than 100 000. Returns how many it holds.

        Prints enrolled later are found without it; removing a name erases it. Raises UsageError without usearch.
        """
        with reported(self.path):
            names = self._db.execute("SELECT id FROM names ORDER BY id").fetchall()
            ids, _, prints = self._rows({name_id: at for at, (name_id,) in enumerate(names)}, 0)
        build_index(self.index_path, ids, prints)
        self._matcher = None
        return len(ids)

    def remove(self, name: str) -> int:
        """Forget a name; nothing of it stays in the file, nor in an index. Returns how many prints it had. Raises UsageError."""
        name = clean_name(name)
        with self.change() as db:
            name_id = self._id_of(name)
            db.execute("DELETE FROM audio WHERE print_id IN (SELECT id FROM prints WHERE name_id = ?)", (name_id,))
            removed = db.execute("DELETE FROM prints WHERE name_id = ?", (name_id,)).rowcount
            erase_index(self.index_path)
            db.execute("DELETE FROM names WHERE id = ?", (name_id,))
        with reported(self.path):
            self._db.execute("VACUUM")
        return int(removed)

    def rename(self, old: str, new: str) -> None:
        """Give a name's prints another name. Raises UsageError when `old` is unknown or `new` is taken."""
        old, new = clean_name(old), clean_name(new)
        with self.change() as db:
            name_id = self._id_of(old)
            if old != new and new in {**self.names(), **self.negatives()}:
                raise UsageError(f"{self.path}: {new!r} is enrolled already: remove it first, or choose another name")
            db.execute("UPDATE names SET name = ? WHERE id = ?", (new, name_id))

    def replace_prints(self, model: Model, names: dict[str, Floats]) -> None:
        """Bind the gallery to another model: `names` gives the new embeddings `[n, dim]` of each name's prints, in order."""
        with self.change() as db:
            erase_index(self.index_path)
            for name, embeddings in names.items():
                places = db.execute("SELECT id FROM prints WHERE name_id = ? ORDER BY id", (self._id_of(name),))
                rows = zip(map(to_blob, unit(embeddings)), (place for (place,) in places.fetchall()), strict=True)
                db.executemany("UPDATE prints SET embedding = ? WHERE id = ?", list(rows))
            bind(db, model.contract.embedding_id, model.contract.embedding_dim, model.name)
        self._model, self._levels = model, Levels.of(model.contract, None, None)
        self.embedding_id, self.dim = model.contract.embedding_id, model.contract.embedding_dim
        self.model_name = model.name

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on the disk afterwards, or nothing. Raises GalleryError."""
        with reported(self.path):
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
            self._matcher = None

    def _id_of(self, name: str) -> int:
        row = self._db.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
        if row is None:
            enrolled = ", ".join({**self.names(), **self.negatives()}) or "nobody"
            raise UsageError(f"{self.path}: nobody is enrolled as {name!r} (enrolled: {enrolled})")
        if type(row[0]) is not int:
            raise damaged(self.path)
        return row[0]

    def _version(self) -> int:
        """A number that another program's changes change."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def _load(self) -> Matcher:
        assert self._model is not None
        assert self._levels is not None
        names = dict(self._db.execute("SELECT id, name FROM names ORDER BY id").fetchall())
        place = {name_id: at for at, name_id in enumerate(names)}
        (ids, owners, prints), (_, vetoed, vetoes) = (self._rows(place, negative) for negative in (0, 1))
        return Matcher(
            [self._name(name) for name in names.values()],
            owners,
            prints,
            self._model.cohort,
            levels=self._levels,
            search=IndexSearch(self.index_path, ids, prints) if self.index_path.exists() else None,
            vetoed=vetoed,
            vetoes=vetoes,
        )

    def _rows(self, place: dict[int, int], negative: int) -> tuple[Places, Places, Floats]:
        """Of all prints of a kind, in order of name: ids `[n]`, the places of their names `[n]`, embeddings `[n, dim]`."""
        found = self._db.execute(
            "SELECT id, name_id, embedding FROM prints WHERE negative = ? ORDER BY name_id, id", (negative,)
        )
        ids, owners, parts = [], [], [np.zeros((0, self.dim), np.float32)]
        while some := found.fetchmany(ROWS_AT_ONCE):
            ids += [number for number, _, _ in some]
            owners += [place.get(name_id, -1) for _, name_id, _ in some]
            parts.append(self._embeddings([blob for _, _, blob in some]))
        if -1 in owners or any(type(number) is not int for number in ids):
            raise damaged(self.path)
        return np.array(ids, np.int64), np.array(owners, np.int64), np.concatenate(parts)

    def _name(self, name: object) -> str:
        with suppress(UsageError):
            if isinstance(name, str) and clean_name(name) == name:
                return name
        raise damaged(self.path)

    def _embeddings(self, blobs: list[object]) -> Floats:
        """`[n, dim]` from the bytes of a file that may hold anything."""
        if any(not isinstance(blob, bytes) or len(blob) != 4 * self.dim for blob in blobs):
            raise damaged(self.path)
        embeddings = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), self.dim)  # type: ignore[arg-type]
        # far from length 1 is no embedding of ours, and large numbers would overflow when they are compared
        if not (np.abs(embeddings) <= 1.01).all():
            raise damaged(self.path)
        return embeddings.astype(np.float32, copy=False)


def clean_name(name: str) -> str:
    """A name as it is kept: NFC-normalised and stripped. Raises UsageError unless it is 1..100 printable characters."""
    clean = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(clean) <= LONGEST_NAME:
        raise UsageError(f"a name has 1 to {LONGEST_NAME} characters, got {len(clean)}")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in clean):
        raise UsageError(f"a name holds no control characters or line breaks, got {clean!r}")
    return clean


def to_blob(embedding: Floats) -> bytes:
    """An embedding as it stands in the file: little-endian float32."""
    return embedding.astype("<f4").tobytes()


def _connect(path: Path, create: bool, writable: bool) -> sqlite3.Connection:
    options = f"mode={'rwc' if create else 'rw'}"
    if not writable:
        journal = path.with_name(path.name + "-journal")
        if journal.exists():
            raise GalleryError(
                f"{path}: a change to it was cut short ({journal.name}); open it once where it can be written"
            )
        options = "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None)
