"""The tables of a gallery file: created once, and checked at each opening."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confit_runtime.errors import GalleryBusyError, GalleryError

if TYPE_CHECKING:
    from confit_runtime.enrollment import Kind

SCHEMA = 6
APPLICATION_ID = int.from_bytes(b"cfeg", "big")

_AUDIO = "CREATE TABLE audio (print_id INTEGER PRIMARY KEY REFERENCES prints ON DELETE CASCADE, flac BLOB NOT NULL)"
# who has a print is looked up at each enrollment; its first two numbers distinguish it from nearly all others
_PREFIX_INDEX = "CREATE INDEX prints_by_beginning ON prints (substr(embedding, 1, 8))"
# what `calibrate` found: the similarity that a name needs in a stream, for which rate of false accepts, on which day
_CALIBRATED = (
    "CREATE TABLE calibrated (name_id INTEGER PRIMARY KEY REFERENCES names ON DELETE CASCADE,"
    " threshold REAL NOT NULL, target_fa_per_hour REAL NOT NULL, made TEXT NOT NULL)"
)
_TABLES = (
    # kind: what the names are, speaker or sound
    "CREATE TABLE binding (embedding_id TEXT NOT NULL, dim INTEGER NOT NULL, model TEXT NOT NULL, kind TEXT NOT NULL)",
    "CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, voiced_s REAL NOT NULL)",
    # negative prints are of sounds that were mistaken for the name
    "CREATE TABLE prints (id INTEGER PRIMARY KEY, name_id INTEGER NOT NULL REFERENCES names ON DELETE CASCADE,"
    " embedding BLOB NOT NULL, source TEXT NOT NULL, negative INTEGER NOT NULL DEFAULT 0)",
    "CREATE INDEX prints_of_name ON prints (name_id)",
    _AUDIO,
    _PREFIX_INDEX,
    _CALIBRATED,
)

_IMPLICIT_INDEX = None  # what SQLite reports for the index that it makes for a UNIQUE column
# the row counts of ANALYZE; sqlite_stat4, which some builds add, keeps names and prints that were removed, and is
# refused
_STATISTICS = "CREATE TABLE sqlite_stat1(tbl,idx,stat)"
_ALLOWED = {*_TABLES, _IMPLICIT_INDEX, _STATISTICS}


@dataclass(frozen=True)
class Binding:
    """What a gallery's prints are of: a model's embedding, and what its names are."""

    embedding_id: str
    dim: int
    model: str
    kind: Kind

    def is_comparable_to(self, other: Binding) -> bool:
        """Whether prints of both can be compared: they are of one embedding."""
        return (self.embedding_id, self.dim) == (other.embedding_id, other.dim)


def prepare(path: Path, db: sqlite3.Connection, create_for: Binding | None) -> None:
    """Check an open gallery; if it is blank and `create_for` is given, create its tables first.

    Raises GalleryError if it is not a gallery, is damaged, or is of another schema.
    """
    if create_for is not None and is_blank(path, db):
        create_schema(path, db, create_for)
    if is_blank(path, db):
        raise GalleryError(f"{path}: is empty: enroll a name into it first")
    if _header(db, "application_id") != APPLICATION_ID:
        raise GalleryError(f"{path}: is an SQLite file, but not a confit-edge gallery: choose another --gallery")
    _check_schema(path, db)
    if _is_truncated(path, db) or db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise damaged_error(path)


def is_blank(path: Path, db: sqlite3.Connection) -> bool:
    """Whether nothing was ever written; the read first rolls back what a crash left half done."""
    return db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0 and path.stat().st_size == 0


def create_schema(path: Path, db: sqlite3.Connection, binding: Binding) -> None:
    """Turn a blank file into a gallery of a model's prints; a file that is not blank stays as it is."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        if not is_blank(path, db):
            return  # another program was faster
        for statement in _TABLES:
            db.execute(statement)
        write_binding(db, binding)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA}")


def write_binding(db: sqlite3.Connection, binding: Binding) -> None:
    """Record what the prints are of."""
    db.execute("DELETE FROM binding")
    db.execute("INSERT INTO binding (embedding_id, dim, model, kind) VALUES (?, ?, ?, ?)", astuple(binding))


def read_binding(path: Path, db: sqlite3.Connection) -> Binding:
    """Return what the prints are of.

    Raises GalleryError if the file's contents are invalid, not confit-edge's, or by now of a newer version.
    """
    _check_schema(path, db)
    row = db.execute("SELECT embedding_id, dim, model, kind FROM binding").fetchone()
    if row is None or [type(value) for value in row] != [str, int, str, str] or row[3] not in ("speaker", "sound"):
        raise damaged_error(path)
    return Binding(*row)


def _check_schema(path: Path, db: sqlite3.Connection) -> None:
    """Raise GalleryError if a gallery is of another schema, or has tables, views or triggers of its own.

    SQLite would run those.
    """
    if (version := _header(db, "user_version")) > SCHEMA:
        raise GalleryError(
            f"{path}: is from a newer confit-edge (schema {version}; this version reads {SCHEMA}): update confit-edge,"
            " or restart this program if confit-edge was updated meanwhile"
        )
    if version < SCHEMA:
        raise GalleryError(
            f"{path}: is from an older confit-edge (schema {version}; this version reads {SCHEMA}): enroll again into"
            " another --gallery"
        )
    for name, sql in db.execute("SELECT name, sql FROM sqlite_master"):
        if sql not in _ALLOWED:
            raise GalleryError(
                f"{path}: has {name!r:.60}, which does not belong in a gallery: the file was changed; restore a"
                " copy, or enroll again into another --gallery"
            )


def _is_truncated(path: Path, db: sqlite3.Connection) -> bool:
    """Whether the file ends within a page, which SQLite tolerates if only zeros are lost."""
    with db:
        db.execute("BEGIN")
        size = _header(db, "page_size")
        db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()  # from here on nobody writes
        return path.stat().st_size % size != 0


def _header(db: sqlite3.Connection, field: str) -> int:
    return int(db.execute(f"PRAGMA {field}").fetchone()[0])


def damaged_error(path: Path) -> GalleryError:
    return GalleryError(f"{path}: the gallery is damaged: restore a copy, or enroll again into another --gallery")


@contextmanager
def sqlite_errors_reported(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into GalleryError, each naming the file."""
    try:
        yield
    except UnicodeDecodeError as error:  # in a text in the file, or in SQLite's own message about it
        raise damaged_error(path) from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith("SQLITE_NOTADB"):
            raise GalleryError(f"{path}: is not a gallery (not an SQLite file): choose another --gallery") from error
        if code.startswith("SQLITE_CORRUPT"):
            raise damaged_error(path) from error
        if code == "SQLITE_READONLY_ROLLBACK":
            raise GalleryError(f"{path}: a change to it was interrupted; open it once with write permission") from error
        if code.startswith("SQLITE_READONLY"):
            raise GalleryError(f"{path}: cannot be changed: the file or its folder is read-only") from error
        if code.startswith("SQLITE_BUSY"):
            raise GalleryBusyError(f"{path}: is in use by another program: try again later") from error
        if code.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            raise GalleryError(
                f"{path}: could not be written ({error}): is the disk full? Nothing was changed"
            ) from error
        if code.startswith("SQLITE_CANTOPEN"):
            raise GalleryError(
                f"{path}: cannot be opened or written: check its permissions and those of its folder"
            ) from error
        raise GalleryError(f"{path}: the gallery cannot be used ({error})") from error
