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

from confit_runtime.audio import Pcm
from confit_runtime.contract import Contract
from confit_runtime.errors import GalleryError, ModelError, UsageError
from confit_runtime.model import Model

Floats = npt.NDArray[np.float32]

SCHEMA = 1
APPLICATION_ID = int.from_bytes(b"cfeg", "big")
NEAREST = 3  # prints of a name, and sounds of the cohort, that a score is made of
DEFAULT_THRESHOLD, DEFAULT_MARGIN = 0.6, 0.03
LONGEST_NAME = 100

_TABLES = (
    "CREATE TABLE binding (embedding_id TEXT NOT NULL, dim INTEGER NOT NULL)",
    "CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, voiced_s REAL NOT NULL)",
    "CREATE TABLE prints (id INTEGER PRIMARY KEY, name_id INTEGER NOT NULL REFERENCES names ON DELETE CASCADE,"
    " embedding BLOB NOT NULL, source TEXT NOT NULL)",
    "CREATE INDEX prints_of_name ON prints (name_id)",
)


@dataclass(frozen=True)
class Match:
    """The answer to "who is this?". `name` is None when nobody enrolled is near enough, or two are equally near.

    `score` is the similarity of the nearest name, -1..1 (0 in an empty gallery), and `runner_up` the next one; both are
    given even when the answer is unknown. `margin` is what lies between the two scores, None without a runner-up.
    """

    name: str | None
    score: float
    runner_up: str | None
    runner_up_score: float | None
    margin: float | None


@dataclass(frozen=True)
class Print:
    """One enrolled sound: its embedding `[dim]` of length 1, and where it came from."""

    embedding: Floats
    source: str


class Matcher:
    """The prints of a gallery at one moment: immutable, exact, safe to share between threads.

    A name's score is the mean cosine of its three nearest prints, weighted by similarity (sum c^2 / sum c over c > 0).
    The answer is unknown when the best score is below `threshold`, or within `margin` of the next name's, or no better
    than the mean cosine of the three nearest sounds of the `cohort`.
    """

    def __init__(
        self,
        names: Sequence[str],
        owners: npt.ArrayLike,
        prints: Floats,
        cohort: Floats,
        *,
        threshold: float,
        margin: float,
    ) -> None:
        """`prints [n, dim]` belong to `names[owners[n]]`, `owners` ascending; `cohort [m, dim]` may be empty."""
        self.names, self.threshold, self.margin = tuple(names), threshold, margin
        self._prints, self._cohort = np.ascontiguousarray(prints), _unit(cohort)
        owners = np.asarray(owners, np.int64)
        rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
        self._near = rank < NEAREST  # of the prints in order of owner, then nearness
        self._owners = owners
        self._near_owners = owners[self._near]

    def match(self, embedding: Floats) -> Match:
        """Who an embedding `[dim]` is nearest to. Raises UsageError on another shape."""
        if embedding.shape != self._prints.shape[1:]:
            raise UsageError(f"an embedding here is [{self._prints.shape[1]}], got {list(embedding.shape)}")
        if not self.names:
            return Match(None, 0.0, None, None, None)
        unit = _unit(embedding)
        scores = self._scores(self._prints @ unit)
        best = int(scores.argmax())
        score, known = float(scores[best]), bool(scores[best] >= self.threshold)
        runner_up = runner_up_score = margin = None
        if len(scores) > 1:
            scores[best] = -np.inf
            second = int(scores.argmax())
            runner_up, runner_up_score = self.names[second], float(scores[second])
            margin = score - runner_up_score
            known = known and margin >= self.margin
        if len(self._cohort):
            strangers = np.sort(self._cohort @ unit)[-NEAREST:]
            known = known and float(strangers.mean()) < score
        return Match(self.names[best] if known else None, score, runner_up, runner_up_score, margin)

    def _scores(self, cosines: Floats) -> npt.NDArray[np.float64]:
        near = cosines[np.lexsort((-cosines, self._owners))][self._near].astype(np.float64).clip(-1.0, 1.0)
        weights = np.maximum(near, 0.0)
        total, weighted, plain, count = (
            np.bincount(self._near_owners, values, len(self.names))
            for values in (weights, weights * near, near, np.ones_like(near))
        )
        return np.where(total > 0.0, weighted / np.where(total > 0.0, total, 1.0), plain / count)


class Gallery:
    """Names and their prints, kept in one SQLite file. Use as a context manager; one thread at a time.

    Each change is one transaction, on the disk when the call returns: a crash loses nothing that was enrolled.
    """

    def __init__(
        self, path: Path, db: sqlite3.Connection, model: Model | None, threshold: float, margin: float
    ) -> None:
        """Use `Gallery.open`."""
        self.path, self._db, self._model = path, db, model
        self._threshold, self._margin = threshold, margin
        row = db.execute("SELECT embedding_id, dim FROM binding").fetchone()
        if row is None or not isinstance(row[0], str) or not isinstance(row[1], int):
            raise _damaged(path)
        self.embedding_id, self.dim = row
        if model is not None:
            self.check(model)
        self._matcher = self._load()

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

        Without a model it can be listed and changed, but not matched against. `threshold` and `margin` override the
        model's own calibration. In a folder that cannot be written the file is opened as it is, for reading only.
        Raises UsageError when there is no such file, and GalleryError when it is damaged, of a newer version, of
        another model, or not a gallery.
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
        levels = open_set_levels(model.contract) if model is not None else (DEFAULT_THRESHOLD, DEFAULT_MARGIN)
        with _reported(path):
            db = _connect(path, create)
            try:
                for pragma in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "temp_store = MEMORY"):
                    db.execute(f"PRAGMA {pragma}")
                if create and model is not None and _is_blank(path, db):
                    _lay_out(path, db, model.contract)
                _check_file(path, db)
                return cls(
                    path,
                    db,
                    model,
                    levels[0] if threshold is None else threshold,
                    levels[1] if margin is None else margin,
                )
            except BaseException:
                db.close()
                raise

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. What was loaded can still be matched against."""
        self._db.close()

    def check(self, model: Model) -> None:
        """Raise GalleryError unless this gallery was enrolled with `model`'s embedding."""
        contract = model.contract
        if (self.embedding_id, self.dim) != (contract.embedding_id, contract.embedding_dim):
            raise GalleryError(
                f"{self.path}: was enrolled with another model (embedding {self.embedding_id[:12]} of {self.dim};"
                f" {model.name} has {contract.embedding_id[:12]} of {contract.embedding_dim}):"
                " use that model, or enroll again into another --gallery"
            )

    @property
    def matcher(self) -> Matcher:
        """The prints as they are now, to match against. Raises UsageError on a gallery opened without a model."""
        if self._model is None:
            raise UsageError(f"{self.path}: was opened without its model, so there is nothing to match with")
        return self._matcher

    def match(self, embedding: Floats) -> Match:
        """Who an embedding `[dim]` of the model is nearest to; see `Matcher`. Raises UsageError."""
        return self.matcher.match(embedding)

    def enroll(self, name: str, embeddings: Floats, *, sources: Sequence[str], voiced_s: float) -> int:
        """Add `embeddings [n, dim]` (n >= 1), one source each, to a name; all of them or, after a crash, none.

        Returns how many prints the name has now. Raises UsageError and GalleryError.
        """
        name = clean_name(name)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim or len(embeddings) == 0:
            raise UsageError(f"embeddings to enroll are [n, {self.dim}], got {list(embeddings.shape)}")
        if len(sources) != len(embeddings):
            raise UsageError(f"{len(embeddings)} embeddings to enroll, but {len(sources)} sources")
        lengths = np.linalg.norm(embeddings, axis=1)
        if not (np.isfinite(lengths).all() and (lengths > 0.0).all()):
            raise UsageError(f"an embedding of {name!r} is zero, NaN or infinite")
        with self._change():
            self._db.execute("INSERT INTO names (name, voiced_s) VALUES (?, 0) ON CONFLICT DO NOTHING", (name,))
            self._db.execute("UPDATE names SET voiced_s = voiced_s + ? WHERE name = ?", (voiced_s, name))
            name_id = self._id_of(name)
            self._db.executemany(
                "INSERT INTO prints (name_id, embedding, source) VALUES (?, ?, ?)",
                [
                    (name_id, row.astype("<f4").tobytes(), source.encode(errors="replace").decode())
                    for row, source in zip(_unit(embeddings), sources, strict=True)
                ],
            )
        return self.names()[name]

    def names(self) -> dict[str, int]:
        """How many prints each name has, in order of name."""
        with _reported(self.path):
            rows = self._db.execute(
                "SELECT name, COUNT(*) FROM prints JOIN names ON name_id = names.id GROUP BY name ORDER BY name"
            ).fetchall()
        return dict(rows)

    def voiced_s(self, name: str) -> float:
        """How many seconds of sound a name was enrolled from. Raises UsageError on an unknown name."""
        with _reported(self.path):
            row = self._db.execute(
                "SELECT CAST(voiced_s AS REAL) FROM names WHERE id = ?", (self._id_of(clean_name(name)),)
            ).fetchone()
        return float(row[0])

    def prints(self, name: str) -> list[Print]:
        """A name's prints in the order they were enrolled. Raises UsageError on an unknown name."""
        with _reported(self.path):
            rows = self._db.execute(
                "SELECT embedding, CAST(source AS TEXT) FROM prints WHERE name_id = ? ORDER BY id",
                (self._id_of(clean_name(name)),),
            ).fetchall()
        return [Print(self._embedding(blob), source) for blob, source in rows]

    def remove(self, name: str) -> int:
        """Forget a name; nothing of it stays in the file. Returns how many prints it had. Raises UsageError."""
        name = clean_name(name)
        with self._change():
            name_id = self._id_of(name)
            removed = self._db.execute("DELETE FROM prints WHERE name_id = ?", (name_id,)).rowcount
            self._db.execute("DELETE FROM names WHERE id = ?", (name_id,))
        with _reported(self.path):
            self._db.execute("VACUUM")
        return int(removed)

    def rename(self, old: str, new: str) -> None:
        """Give a name's prints another name. Raises UsageError when `old` is unknown or `new` is taken."""
        old, new = clean_name(old), clean_name(new)
        with self._change():
            name_id = self._id_of(old)
            if old != new and new in self.names():
                raise UsageError(f"{self.path}: {new!r} is enrolled already: remove it first, or choose another name")
            self._db.execute("UPDATE names SET name = ? WHERE id = ?", (new, name_id))

    @contextmanager
    def _change(self) -> Iterator[None]:
        with _reported(self.path):
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
            self._matcher = self._load()

    def _id_of(self, name: str) -> int:
        row = self._db.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise UsageError(
                f"{self.path}: nobody is enrolled as {name!r} (enrolled: {', '.join(self.names()) or 'nobody'})"
            )
        return int(row[0])

    def _load(self) -> Matcher:
        rows = self._db.execute(
            "SELECT name, embedding FROM prints JOIN names ON name_id = names.id ORDER BY name, prints.id"
        ).fetchall()
        names = list(dict.fromkeys(self._name(name) for name, _ in rows))
        place = {name: at for at, name in enumerate(names)}
        prints = np.array([self._embedding(blob) for _, blob in rows], np.float32).reshape(len(rows), self.dim)
        cohort = self._model.cohort if self._model is not None else np.zeros((0, self.dim), np.float32)
        owners = [place[name] for name, _ in rows]
        return Matcher(names, owners, prints, cohort, threshold=self._threshold, margin=self._margin)

    def _name(self, value: object) -> str:
        with suppress(UsageError):
            if isinstance(value, str) and clean_name(value) == value:
                return value
        raise _damaged(self.path)

    def _embedding(self, blob: object) -> Floats:
        if not isinstance(blob, bytes) or len(blob) != 4 * self.dim:
            raise _damaged(self.path)
        embedding = np.frombuffer(blob, "<f4").astype(np.float32)
        if not np.isfinite(embedding).all():
            raise _damaged(self.path)
        return embedding


def clean_name(name: str) -> str:
    """A name as it is kept: NFC-normalised and stripped. Raises UsageError unless it is 1..100 printable characters."""
    clean = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(clean) <= LONGEST_NAME:
        raise UsageError(f"a name has 1 to {LONGEST_NAME} characters, got {len(clean)}")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in clean):
        raise UsageError(f"a name holds no control characters or line breaks, got {clean!r}")
    return clean


def open_set_levels(contract: Contract) -> tuple[float, float]:
    """The model's `(threshold, margin)` for matching, from its calibration. Raises ModelError on what is no number."""
    levels = contract.calibration.get("enroll", {})
    if not isinstance(levels, dict):
        raise ModelError(f"contract key 'calibration' of {contract.name} must hold an object under 'enroll'")
    threshold, margin = levels.get("threshold", DEFAULT_THRESHOLD), levels.get("margin", DEFAULT_MARGIN)
    if not all(type(level) in (int, float) for level in (threshold, margin)):
        raise ModelError(f"contract key 'calibration' of {contract.name} must hold numbers under 'enroll'")
    return float(threshold), float(margin)


def voiced_seconds(pcm: Pcm, sample_rate: int) -> float:
    """Seconds of a clip `[samples]` that hold sound: 20 ms frames within 40 dB of the loudest and above -70 dBFS."""
    frame = max(1, sample_rate // 50)
    frames = np.pad(pcm, (0, -len(pcm) % frame)).reshape(-1, frame).astype(np.float64)
    power = np.square(frames).mean(axis=1)
    return float((power > max(power.max(initial=0.0) * 1e-4, 1e-7)).sum() * frame / sample_rate)


def _unit(rows: Floats) -> Floats:
    return (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def _connect(path: Path, create: bool) -> sqlite3.Connection:
    options = f"mode={'rwc' if create else 'rw'}"
    if not os.access(path.parent, os.W_OK):
        journal = path.with_name(path.name + "-journal")
        if journal.exists():
            raise GalleryError(
                f"{path}: a change to it was cut short ({journal.name}); open it once where it can be written"
            )
        options = "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None)


def _is_blank(path: Path, db: sqlite3.Connection) -> bool:
    """Whether nothing was ever written: reading first rolls back what a crash left half done."""
    return db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0 and path.stat().st_size == 0


def _lay_out(path: Path, db: sqlite3.Connection, contract: Contract) -> None:
    with db:
        db.execute("BEGIN IMMEDIATE")
        if not _is_blank(path, db):
            return  # another program was faster
        for statement in _TABLES:
            db.execute(statement)
        db.execute("INSERT INTO binding VALUES (?, ?)", (contract.embedding_id, contract.embedding_dim))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA}")


def _check_file(path: Path, db: sqlite3.Connection) -> None:
    if _is_blank(path, db):
        raise GalleryError(f"{path}: is empty: enroll somebody into it first")
    if _header(db, "application_id") != APPLICATION_ID:
        raise GalleryError(f"{path}: is an SQLite file, but not a confit-edge gallery: choose another --gallery")
    if (version := _header(db, "user_version")) > SCHEMA:
        raise GalleryError(
            f"{path}: is of a newer confit-edge (schema {version}, this version reads {SCHEMA}): update confit-edge"
        )
    if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise _damaged(path)


def _header(db: sqlite3.Connection, field: str) -> int:
    return int(db.execute(f"PRAGMA {field}").fetchone()[0])


def _damaged(path: Path) -> GalleryError:
    return GalleryError(f"{path}: the gallery is damaged: restore a copy, or enroll again into another --gallery")


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """SQLite's errors as GalleryError, each naming the file."""
    try:
        yield
    except UnicodeDecodeError as error:  # of a text in the file, or in SQLite's own message about it
        raise _damaged(path) from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith("SQLITE_NOTADB"):
            raise GalleryError(f"{path}: is not a gallery (not an SQLite file): choose another --gallery") from error
        if code.startswith("SQLITE_CORRUPT"):
            raise _damaged(path) from error
        if code.startswith("SQLITE_READONLY"):
            raise GalleryError(f"{path}: cannot be changed: the file or its folder is read-only") from error
        if code.startswith("SQLITE_BUSY"):
            raise GalleryError(f"{path}: is in use by another program: try again when it is done") from error
        raise GalleryError(f"{path}: the gallery cannot be used ({error})") from error
