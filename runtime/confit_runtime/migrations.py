"""The tables of a gallery file: created once, checked at each opening, and migrated from older schemas."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from confit_runtime.errors import GalleryBusyError, GalleryError
from confit_runtime.search import erase_index, index_path

SCHEMA = 5
APPLICATION_ID = int.from_bytes(b"cfeg", "big")

_AUDIO = "CREATE TABLE audio (print_id INTEGER PRIMARY KEY REFERENCES prints ON DELETE CASCADE, flac BLOB NOT NULL)"
# the SHA-256 of the file next to it that is its index; no row if there is none
_INDEX_FILE = "CREATE TABLE index_file (digest TEXT NOT NULL)"
# who has a print is looked up at each enrollment; its first two numbers distinguish it from nearly all others
_PREFIX_INDEX = "CREATE INDEX prints_by_beginning ON prints (substr(embedding, 1, 8))"
# what `calibrate` found: the similarity that a name needs in a stream, for which rate of false accepts, on which day
_CALIBRATED = (
    "CREATE TABLE calibrated (name_id INTEGER PRIMARY KEY REFERENCES names ON DELETE CASCADE,"
    " threshold REAL NOT NULL, target_fa_per_hour REAL NOT NULL, made TEXT NOT NULL)"
)
_TABLES = (
    # kind: what the names are, speaker or sound; empty in files of older schemas, which did not record it
    "CREATE TABLE binding (embedding_id TEXT NOT NULL, dim INTEGER NOT NULL, model TEXT NOT NULL, kind TEXT NOT NULL)",
    "CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, voiced_s REAL NOT NULL)",
    # negative prints are of sounds that were mistaken for the name
    "CREATE TABLE prints (id INTEGER PRIMARY KEY, name_id INTEGER NOT NULL REFERENCES names ON DELETE CASCADE,"
    " embedding BLOB NOT NULL, source TEXT NOT NULL, negative INTEGER NOT NULL DEFAULT 0)",
    "CREATE INDEX prints_of_name ON prints (name_id)",
    _AUDIO,
    _INDEX_FILE,
    _PREFIX_INDEX,
    _CALIBRATED,
)

# as found in files of older schemas, and after their migration
_OLDER_TABLES = (
    "CREATE TABLE binding (embedding_id TEXT NOT NULL, dim INTEGER NOT NULL)",
    "CREATE TABLE binding (embedding_id TEXT NOT NULL, dim INTEGER NOT NULL, model TEXT NOT NULL)",
    "CREATE TABLE binding (embedding_id TEXT NOT NULL, dim INTEGER NOT NULL, model TEXT NOT NULL DEFAULT '')",
    "CREATE TABLE binding (embedding_id TEXT NOT NULL, dim INTEGER NOT NULL, model TEXT NOT NULL,"
    " kind TEXT NOT NULL DEFAULT '')",
    "CREATE TABLE binding (embedding_id TEXT NOT NULL, dim INTEGER NOT NULL, model TEXT NOT NULL DEFAULT '',"
    " kind TEXT NOT NULL DEFAULT '')",
    "CREATE TABLE prints (id INTEGER PRIMARY KEY, name_id INTEGER NOT NULL REFERENCES names ON DELETE CASCADE,"
    " embedding BLOB NOT NULL, source TEXT NOT NULL)",
)
_IMPLICIT_INDEX = None  # what SQLite reports for the index that it makes for a UNIQUE column
# the row counts of ANALYZE; sqlite_stat4, which some builds add, keeps names and prints that were removed, and is
# refused
_STATISTICS = "CREATE TABLE sqlite_stat1(tbl,idx,stat)"
_ALLOWED = {*_TABLES, *_OLDER_TABLES, _IMPLICIT_INDEX, _STATISTICS}


def _to_2(db: sqlite3.Connection) -> None:
    """Schema 1 had no negative prints, kept no audio and did not name its model."""
    db.execute("ALTER TABLE binding ADD COLUMN model TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE prints ADD COLUMN negative INTEGER NOT NULL DEFAULT 0")
    db.execute(_AUDIO)


def _to_3(db: sqlite3.Connection) -> None:
    """Schema 2 did not record whether names are voices or sounds."""
    db.execute("ALTER TABLE binding ADD COLUMN kind TEXT NOT NULL DEFAULT ''")


def _to_4(db: sqlite3.Connection) -> None:
    """Schema 3 did not identify its index file, and read all prints to find one."""
    db.execute(_INDEX_FILE)
    db.execute(_PREFIX_INDEX)


def _to_5(db: sqlite3.Connection) -> None:
    """Schema 4 had no calibrated names."""
    db.execute(_CALIBRATED)


# by the schema they lead to
_MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {2: _to_2, 3: _to_3, 4: _to_4, 5: _to_5}


@dataclass(frozen=True)
class Binding:
    """What a gallery's prints are of: a model's embedding, and names that are a speaker or a sound ("": not recorded)."""

    embedding_id: str
    dim: int
    model: str
    kind: str

    def is_comparable_to(self, other: Binding) -> bool:
        """Whether prints of both can be compared: they are of one embedding."""
        return (self.embedding_id, self.dim) == (other.embedding_id, other.dim)


def prepare(path: Path, db: sqlite3.Connection, create_for: Binding | None) -> bool:
    """Check an open gallery; if it is blank and `create_for` is given, create its tables.

    Returns whether the schema is current.

    Raises GalleryError if it is not a gallery, is damaged, or is newer than this version.
    """
    if create_for is not None and is_blank(path, db):
        create_schema(path, db, create_for)
    return _check(path, db) == SCHEMA


def is_blank(path: Path, db: sqlite3.Connection) -> bool:
    """Whether nothing was ever written; the read first rolls back what a crash left half done."""
    return db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0 and path.stat().st_size == 0


def create_schema(path: Path, db: sqlite3.Connection, binding: Binding) -> None:
    """Turn a blank file into a gallery of a model's prints; a file that is not blank stays as it is.

    An index next to a blank file belongs to a file that is gone, and is erased. Raises GalleryError.
    """
    with db:
        db.execute("BEGIN IMMEDIATE")
        if not is_blank(path, db):
            return  # another program was faster
        erase_index(index_path(path))
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
    _schema(path, db)
    row = db.execute("SELECT embedding_id, dim, model, kind FROM binding").fetchone()
    if row is None or [type(value) for value in row] != [str, int, str, str] or row[3] not in ("speaker", "sound", ""):
        raise damaged_error(path)
    return Binding(*row)


def write_index_digest(db: sqlite3.Connection, digest: str | None) -> None:
    """Record the digest of the index file; None: there is no index."""
    db.execute("DELETE FROM index_file")
    if digest is not None:
        db.execute("INSERT INTO index_file (digest) VALUES (?)", (digest,))


def read_index_digest(db: sqlite3.Connection) -> object:
    """The recorded digest of the index file; None if there is no index."""
    row = db.execute("SELECT digest FROM index_file").fetchone()
    return row and row[0]


def _check(path: Path, db: sqlite3.Connection) -> int:
    """The schema of an undamaged gallery. Raises GalleryError."""
    if is_blank(path, db):
        raise GalleryError(f"{path}: is empty: enroll a name into it first")
    if _header(db, "application_id") != APPLICATION_ID:
        raise GalleryError(f"{path}: is an SQLite file, but not a confit-edge gallery: choose another --gallery")
    version = _schema(path, db)
    if version < 1 or _is_truncated(path, db) or db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise damaged_error(path)
    return version


def _schema(path: Path, db: sqlite3.Connection) -> int:
    """The schema of a gallery.

    Raises GalleryError if it is newer than this version, or has tables, views or triggers of its own, which SQLite
    would run.
    """
    if (version := _header(db, "user_version")) > SCHEMA:
        raise GalleryError(
            f"{path}: is from a newer confit-edge (schema {version}; this version reads up to {SCHEMA}): update"
            " confit-edge, or restart this program if confit-edge was updated meanwhile"
        )
    for name, sql in db.execute("SELECT name, sql FROM sqlite_master"):
        if sql not in _ALLOWED:
            raise GalleryError(
                f"{path}: has {name!r:.60}, which does not belong in a gallery: the file was changed; restore a"
                " copy, or enroll again into another --gallery"
            )
    return version


def _is_truncated(path: Path, db: sqlite3.Connection) -> bool:
    """Whether the file ends within a page, which SQLite tolerates if only zeros are lost."""
    if db.in_transaction:
        return False  # during a migration, of a file that was complete when it was opened
    with db:
        db.execute("BEGIN")
        size = _header(db, "page_size")
        db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()  # from here on nobody writes
        return path.stat().st_size % size != 0


def migrate(path: Path, db: sqlite3.Connection) -> None:
    """Bring an older gallery to the current schema in one transaction: after a crash the file is as it was, or complete."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        # another program may have migrated it since it was checked
        for version in range(_check(path, db) + 1, SCHEMA + 1):
            _MIGRATIONS[version](db)
        db.execute(f"PRAGMA user_version = {SCHEMA}")


def _header(db: sqlite3.Connection, field: str) -> int:
    return int(db.execute(f"PRAGMA {field}").fetchone()[0])


def is_write_failure(error: sqlite3.Error) -> bool:
    """Whether SQLite can still read the file: it or its folder is read-only, or there is no space."""
    code = getattr(error, "sqlite_errorname", "")
    return code.startswith(("SQLITE_READONLY", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN"))


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
