"""A gallery: who and what was enrolled on this device, in one SQLite file bound to one model's embedding."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from confit_runtime.enrollment import Kind, kind_of
from confit_runtime.errors import GalleryBusyError, GalleryError, UsageError
from confit_runtime.matcher import Levels, Match, Matcher, unit
from confit_runtime.migrations import Binding, bind, bound, damaged, lay_out, prepare, reported
from confit_runtime.model import Model
from confit_runtime.names import clean_name, new_name
from confit_runtime.search import IndexSearch, build_index, erase_index
from confit_runtime.shipped import as_asked_for

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 20_000
PATIENCE_S, LISTENING_PATIENCE_S = 5.0, 0.1  # for another program's change; sound does not wait


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
    """Names and their prints, kept in one SQLite file. Use as a context manager; from any thread, one at a time.

    Each change is one transaction, on the disk when the call returns: a crash loses nothing that was enrolled. What
    another program changes meanwhile is seen by the next call.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, model: Model | None, levels: Levels | None) -> None:
        """Use `Gallery.open`."""
        self.path, self._db, self._model, self._levels = path, db, model, levels
        self._file = _identity(path)
        self.binding = bound(path, db)
        self._seen = self._version()
        self._matcher: Matcher | None = self._load() if model is not None else None

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: Model | None = None,
        *,
        create: bool = False,
        kind: Kind | None = None,
        threshold: float | None = None,
        margin: float | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> Gallery:
        """Open a gallery, or make an empty one for `model` with `create`, for names of `kind` (if not given, the model's).

        Without a model it can be listed and changed, but not matched against. `threshold` is a similarity that stands
        instead of those the model and the prints themselves give, `thresholds` one for some names, `margin` one instead of
        the model's. In a folder that cannot be written the file is opened as it is, for reading only. Raises UsageError when
        there is no such file, and GalleryError when it is damaged, of a newer version, of another model, or not a gallery.
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
        levels = binding = None
        if model is not None:  # what is wrong with it is said before a file is made
            levels = Levels.of(model.contract, threshold, margin, thresholds)
            binding = _binding(model, kind) if create else None
        if not path.exists():
            _check_folder(path.parent)
        with reported(path):
            db = _ready(path, binding, create=create)
            try:
                return cls(path, db, model, levels)
            except BaseException:
                db.close()
                raise

    def copy_layout(self, path: Path) -> Gallery:
        """An empty gallery in a new file, bound to the same model. Raises UsageError and GalleryError."""
        _check_folder(path.parent)
        with reported(path.parent):  # the file may have a name for the time being
            db = _connect(path, create=True, writable=True)
            lay_out(path, db, self.binding)
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

    @property
    def embedding_id(self) -> str:
        return self.binding.embedding_id

    @property
    def dim(self) -> int:
        return self.binding.dim

    @property
    def kind(self) -> Kind:
        """What the names are; where a file of an older version does not tell, what its model says.

        Raises UsageError where neither tells.
        """
        if self.binding.kind:
            return "speaker" if self.binding.kind == "speaker" else "sound"
        if self._model is None:
            raise UsageError(
                f"{self.path}: is of a version that did not tell voices from sounds: say with --kind which it holds"
            )
        return kind_of(self._model.contract)

    def check(self, model: Model) -> None:
        """Raise GalleryError unless this gallery was enrolled with `model`'s embedding."""
        contract = model.contract
        if (self.embedding_id, self.dim) != (contract.embedding_id, contract.embedding_dim):
            with reported(self.path):
                prints, kept = self._db.execute(
                    "SELECT (SELECT COUNT(*) FROM prints), (SELECT COUNT(*) FROM audio)"
                ).fetchone()
            named = f"{self.binding.model}, " if self.binding.model else ""
            advice = "use that model, or another --gallery"
            if kept and kept == prints and self.binding.kind in ("", kind_of(contract)):
                again = f"`confit-edge gallery re-enroll {as_asked_for(model.path)} --gallery {self.path}`"
                advice += f"; or make its prints anew, from the audio that was kept: {again}"
            raise GalleryError(
                f"{self.path}: was enrolled with another model ({named}embedding {self.embedding_id[:12]} of {self.dim};"
                f" {model.name} has {contract.embedding_id[:12]} of {contract.embedding_dim}): {advice}"
            )

    @property
    def matcher(self) -> Matcher:
        """The prints as they are now, to match against; the same object for as long as nothing was changed.

        While another program is changing them, those from before are given, and the log says so. Where the file was
        replaced (a copy was restored), it is that file's, and nobody is enrolled while there is none. Raises UsageError on a
        gallery opened without a model, GalleryError where another program bound it to another model.
        """
        if self._model is None:
            raise UsageError(f"{self.path}: was opened without its model, so there is nothing to match with")
        if (file := _identity(self.path)) != self._file:
            self._matcher = self._replaced(file)
        if self._matcher is None:
            with reported(self.path):
                self._seen, self._matcher = self._version(), self._load()
            return self._matcher
        if file is None:
            return self._matcher
        try:
            with reported(self.path), self._patience(LISTENING_PATIENCE_S):
                if (version := self._version()) != self._seen:
                    self._matcher = self._load()
                    self._seen = version
        except GalleryBusyError as error:
            log.warning("%s; until then its names are as they were", error)
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
        name and are not it. Those that the name has already are left out, with their share of the `voiced_s` seconds.
        Returns how many prints of that kind the name has now. Raises UsageError and GalleryError.
        """
        name = new_name(name)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim or len(embeddings) == 0:
            raise UsageError(f"embeddings to enroll are [n, {self.dim}], got {list(embeddings.shape)}")
        if len(sources) != len(embeddings) or len(audio or sources) != len(embeddings):
            raise UsageError(f"{len(embeddings)} embeddings to enroll, but {len(sources)} sources")
        lengths = np.linalg.norm(embeddings, axis=1)
        if not (np.isfinite(lengths).all() and (lengths > 0.0).all()):
            raise UsageError(f"an embedding of {name!r} is zero, NaN or infinite")
        with self.change() as db:
            db.execute("INSERT INTO names (name, voiced_s) VALUES (?, 0) ON CONFLICT DO NOTHING", (name,))
            name_id, blobs = self._id_of(name), to_blobs(embeddings)
            places = unheard(blobs, self.blobs(name, negative=negative))
            if not negative:
                heard_s = voiced_s * len(places) / len(blobs)
                db.execute("UPDATE names SET voiced_s = voiced_s + ? WHERE id = ?", (heard_s, name_id))
            for at in places:
                place = db.execute(
                    "INSERT INTO prints (name_id, embedding, source, negative) VALUES (?, ?, ?, ?)",
                    (name_id, blobs[at], sources[at].encode(errors="replace").decode(), int(negative)),
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

    def blobs(self, name: str, *, negative: bool) -> set[bytes]:
        """A name's prints of a kind, as they stand in the file; none of a name that is not enrolled."""
        with reported(self.path):
            rows = self._db.execute(
                "SELECT embedding FROM prints JOIN names ON name_id = names.id WHERE name = ? AND negative = ?",
                (name, int(negative)),
            ).fetchall()
        return {blob for (blob,) in rows}

    def owners(self, blobs: Iterable[bytes]) -> set[str]:
        """The names that have one of these prints."""
        return set().union(*self.holders(blobs).values())

    def holders(self, blobs: Iterable[bytes]) -> dict[bytes, set[str]]:
        """Of each of these prints the names that have it."""
        found: dict[bytes, set[str]] = {blob: set() for blob in blobs}
        with reported(self.path):
            rows = self._db.execute(
                "SELECT name, embedding FROM prints JOIN names ON name_id = names.id WHERE negative = 0"
            )
            for name, blob in rows:
                if blob in found:
                    found[blob].add(name)
        return found

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

    def build_index(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Write an index of the prints beside the file, for galleries of more than 100 000. Returns how many it holds.

        Prints enrolled later are found without it; removing a name erases it. `progress` is told how many prints of how
        many are in it. Raises UsageError without usearch.
        """
        with reported(self.path):
            names = self._db.execute("SELECT id FROM names ORDER BY id").fetchall()
            ids, _, prints = self._rows({name_id: at for at, (name_id,) in enumerate(names)}, 0)
        build_index(self.index_path, ids, prints, progress)
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
        try:
            with reported(self.path):
                self._db.execute("VACUUM")
        except GalleryError as error:  # it is forgotten all the same: what is deleted is overwritten
            log.warning(
                "%s: %r is forgotten, but the file could not be made smaller (is the disk full?)", self.path, name
            )
            log.debug("%s", error)
        return int(removed)

    def rename(self, old: str, new: str) -> None:
        """Give a name's prints another name. Raises UsageError when `old` is unknown, or `new` is taken or no name."""
        old, new = clean_name(old), new_name(new)
        with self.change() as db:
            name_id = self._id_of(old)
            if old != new and new in {**self.names(), **self.negatives()}:
                raise UsageError(f"{self.path}: {new!r} is enrolled already: remove it first, or choose another name")
            db.execute("UPDATE names SET name = ? WHERE id = ?", (new, name_id))

    def replace_prints(self, model: Model, kind: Kind, names: dict[str, Floats]) -> None:
        """Bind the gallery to another model: `names` gives the new embeddings `[n, dim]` of each name's prints, in order."""
        binding = _binding(model, kind)
        with self.change() as db:
            erase_index(self.index_path)
            for name, embeddings in names.items():
                places = db.execute("SELECT id FROM prints WHERE name_id = ? ORDER BY id", (self._id_of(name),))
                rows = zip(to_blobs(embeddings), (place for (place,) in places.fetchall()), strict=True)
                db.executemany("UPDATE prints SET embedding = ? WHERE id = ?", list(rows))
            bind(db, binding)
        self._model, self._levels, self.binding = model, Levels.of(model.contract, None, None), binding

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, with all changes made within: all of it is on the disk afterwards, or nothing. Raises GalleryError."""
        if self._db.in_transaction:
            yield self._db
            return
        if _identity(self.path) != self._file:
            raise GalleryError(
                f"{self.path}: was replaced or removed while it was open, so nothing was changed; open it again"
            )
        with reported(self.path):
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
            self._matcher = None

    def _replaced(self, file: tuple[int, int] | None) -> Matcher | None:
        """Go on with the file that stands at the path now; without one, a matcher of nobody."""
        if file is None:
            assert self._levels is not None
            log.warning("%s: is not there any more, so nobody is enrolled", self.path)
            nobody, self._file = np.zeros((0, self.dim), np.float32), None
            return Matcher([], [], nobody, nobody, levels=self._levels)
        try:
            with reported(self.path):
                opened = _ready(self.path, None)
        except GalleryError as error:  # it may not be written to its end yet
            log.warning("%s; until it can be read its names are as they were", error)
            return self._matcher
        log.warning("%s: was replaced; its names are those of the new file", self.path)
        self._db.close()
        self._db, self._file = opened, file
        return None

    def _id_of(self, name: str) -> int:
        row = self._db.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
        if row is None:
            enrolled = ", ".join({**self.names(), **self.negatives()}) or "nobody"
            raise UsageError(f"{self.path}: nobody is enrolled as {name!r} (enrolled: {enrolled})")
        if type(row[0]) is not int:
            raise damaged(self.path)
        return row[0]

    @contextmanager
    def _patience(self, seconds: float) -> Iterator[None]:
        """Wait so long for another program's change."""
        self._db.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")
        try:
            yield
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {round(1000 * PATIENCE_S)}")

    def _version(self) -> int:
        """A number that another program's changes change."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def _load(self) -> Matcher:
        """All prints at one moment. Raises GalleryError where they are of another model by now."""
        assert self._model is not None
        assert self._levels is not None
        with self._db:
            self._db.execute("BEGIN")
            self.binding = bound(self.path, self._db)
            self.check(self._model)
            names = dict(self._db.execute("SELECT id, name FROM names ORDER BY id").fetchall())
            place = {name_id: at for at, name_id in enumerate(names)}
            (ids, owners, prints), (_, vetoed, vetoes) = (self._rows(place, negative) for negative in (0, 1))
        return Matcher(
            [self._name(name) for name in names.values()],
            owners,
            prints,
            self._cohort(),
            levels=self._levels,
            search=IndexSearch(self.index_path, ids, prints) if self.index_path.exists() else None,
            vetoed=vetoed,
            vetoes=vetoes,
        )

    def _cohort(self) -> Floats:
        """What is not enrolled: the model's own sounds, and for sounds the quiet around them."""
        assert self._model is not None
        cohort = self._model.cohort
        return cohort if self.kind == "speaker" else np.concatenate([cohort, self._model.quiet])

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


def to_blobs(embeddings: Floats) -> list[bytes]:
    """Embeddings `[n, dim]` as they stand in the file: of length 1, little-endian float32."""
    return [row.tobytes() for row in unit(embeddings).astype("<f4")]


def unheard(blobs: Sequence[bytes], known: Collection[bytes]) -> list[int]:
    """The places of the prints that are neither among `known` nor a copy of one before them."""
    seen, places = set(known), []
    for at, blob in enumerate(blobs):
        if blob not in seen:
            seen.add(blob)
            places.append(at)
    return places


def _binding(model: Model, kind: Kind | None) -> Binding:
    contract = model.contract
    return Binding(contract.embedding_id, contract.embedding_dim, contract.name, kind or kind_of(contract))


def _check_folder(folder: Path) -> None:
    """Raise UsageError or GalleryError unless a gallery can be made in a folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder for a gallery")
    if not os.access(folder, os.W_OK):
        raise GalleryError(f"{folder}: the folder cannot be written: choose another one for the gallery")


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file stands at a path, if one does."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def _ready(path: Path, binding: Binding | None, *, create: bool = False) -> sqlite3.Connection:
    """An open connection to a gallery of today's layout. Raises GalleryError, and SQLite's errors."""
    writable = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
    db = _connect(path, create, writable)
    try:
        for pragma in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "temp_store = MEMORY"):
            db.execute(f"PRAGMA {pragma}")
        return prepare(path, db, binding, writable=writable)
    except BaseException:
        db.close()
        raise


def _connect(path: Path, create: bool, writable: bool) -> sqlite3.Connection:
    mode = "ro" if not writable else "rwc" if create else "rw"
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=PATIENCE_S,
        check_same_thread=False,
    )
