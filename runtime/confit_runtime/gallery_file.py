"""A gallery's open SQLite file: one connection, held by one thread at a time."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Literal, NoReturn
from weakref import WeakSet

from confit_runtime.errors import GalleryError, UsageError
from confit_runtime.files import PRIVATE_MODE
from confit_runtime.migrations import (
    Binding,
    create_schema,
    is_write_failure,
    migrate,
    prepare,
    sqlite_errors_reported,
    write_index_digest,
)
from confit_runtime.search import erase_index, index_path

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 5.0  # how long to wait for another program's change
PRAGMAS = (
    *("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "temp_store = MEMORY"),
    *("trusted_schema = OFF", "cell_size_check = ON"),  # the file may come from an untrusted source
)

_OPEN: WeakSet[GalleryFile] = WeakSet()  # opened by this process, or before it was forked

FileStamp = tuple[int, int]  # when, in ns, and how many bytes
FileVersion = tuple[int, FileStamp | None]
# what to do with a file of an older schema; either: migrate it, or a copy if it cannot be written
OlderSchema = Literal["migrate", "copy", "either"]


class GalleryFile:
    """A gallery's file, safe to use from any thread: each waits until no other is reading or changing it."""

    def __init__(self, path: Path, binding: Binding | None = None) -> None:
        """Open a file; with a `binding`, a blank or missing one becomes a gallery with it. Raises GalleryError."""
        self.path, self.lock = path, RLock()
        self._closed = self._forked = False
        self._readers = 0  # nested readers in the thread that holds the lock
        self.needs_vacuum = False  # whether the file shrinks after the current change
        with sqlite_errors_reported(path):
            self._adopt(_open(path, binding, BUSY_TIMEOUT_S))
        _OPEN.add(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self.path}: a Gallery cannot be passed to another process: pass its path and the model, and open it"
            " there"
        )

    def mark_forked(self) -> None:
        """Leave the file to the process that this one was forked from.

        SQLite connections may not be used or closed in two processes, and the thread that held the lock does not exist
        here to release it.
        """
        self.lock, self._forked = RLock(), True

    def _adopt(self, opened: _Opened) -> None:
        self._db, self._copied = opened.db, opened.copied
        self._identity, self._stamp = opened.identity, opened.written

    def close(self) -> None:
        with self.lock:
            if not self._forked:
                self._db.close()
            self._closed = True

    def check_open(self) -> None:
        """Raise GalleryError if the file is closed, or if this process was forked after it was opened."""
        if self._forked:
            raise GalleryError(
                f"{self.path}: was opened before this process was forked: open the gallery again in this process"
            )
        if self._closed:
            raise GalleryError(f"{self.path}: was closed: open the gallery again")

    @contextmanager
    def reading(self, timeout_s: float = BUSY_TIMEOUT_S) -> Iterator[sqlite3.Connection]:
        """The connection, which no other thread uses meanwhile. Raises GalleryError."""
        with self.lock:
            self.check_open()
            with sqlite_errors_reported(self.path):
                if not (self._readers or self._db.in_transaction):
                    self._drop_stale_pages(timeout_s)  # may replace the connection
                self._readers += 1
                try:
                    yield self._db
                finally:
                    self._readers -= 1

    def _drop_stale_pages(self, timeout_s: float) -> None:
        """Make SQLite read the file again after it was written.

        SQLite keeps pages for as long as a counter in the file stays the same. A backup restored in place may have the
        same counter, and half of those pages would then be written back into it. If the gallery is used as a migrated
        copy in memory, because the file could not be migrated, it is copied again; if the file is gone, the copy stays
        as it is.
        """
        written = _file_stamp(self.path)
        if written == self._stamp:
            return
        if not self._copied:
            self._db.execute("PRAGMA shrink_memory")
            self._stamp = written
        elif written is not None:
            self._replace(_open(self.path, None, timeout_s, older="copy"))

    def _replace(self, opened: _Opened) -> None:
        """Continue with another connection."""
        self._db.close()
        self._adopt(opened)
        self._db.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_TIMEOUT_S)}")

    @contextmanager
    def reading_with_timeout(self, seconds: float) -> Iterator[sqlite3.Connection]:
        """Like `reading`, but wait only `seconds` for another program's change.

        Raises GalleryBusyError if that is too short.
        """
        with self.reading(seconds) as db:
            db.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")
            try:
                yield db
            finally:
                db.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_TIMEOUT_S)}")

    @contextmanager
    def moment(self) -> Iterator[sqlite3.Connection]:
        """Like `reading`, with everything read from one moment. Raises GalleryError."""
        with self.reading() as db:
            if db.in_transaction:
                yield db
                return
            with db:
                db.execute("BEGIN")
                yield db

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: afterwards all of it is on the disk, or nothing. Inside another one it is part of that.

        Raises GalleryError.
        """
        with self.reading() as db:
            if db.in_transaction:
                yield db
                return
            self.check_current()
            self.needs_vacuum = False
            if self._copied:  # there may be space by now, and write permission; if not, this reports it
                self._replace(_open(self.path, None, BUSY_TIMEOUT_S, older="migrate"))
                db = self._db
            with db:
                db.execute("BEGIN IMMEDIATE")
                yield db
            if self.needs_vacuum:
                self._vacuum(db)

    @property
    def changing(self) -> bool:
        """Whether this thread, which holds the lock, is inside a `change` or a `moment`."""
        return self._db.in_transaction

    def _vacuum(self, db: sqlite3.Connection) -> None:
        """Give back the disk space of removed prints, which are overwritten already."""
        try:
            with sqlite_errors_reported(self.path):
                db.execute("VACUUM")
        except GalleryError as error:
            log.warning(
                "%s: the removed name is forgotten, but the file could not be made smaller (is the disk full?)",
                self.path,
            )
            log.debug("%s", error)
            # also remove the beginnings of prints from what SQLite moved; this needs little space
            with suppress(GalleryError), sqlite_errors_reported(self.path):
                db.execute("REINDEX prints_by_beginning")

    @property
    def index_path(self) -> Path:
        """The path of its index, if there is one."""
        return index_path(self.path)

    def erase_orphaned_index(self, db: sqlite3.Connection) -> None:
        """Erase the index if the gallery has no prints: it belongs to a file that is gone. Raises GalleryError."""
        if db.execute("SELECT 1 FROM prints WHERE negative = 0 LIMIT 1").fetchone() is None:
            self.erase_index(db)

    def erase_index(self, db: sqlite3.Connection) -> None:
        """Erase the index, inside a `change`. Raises GalleryError."""
        erase_index(self.index_path)
        write_index_digest(db, None)

    @property
    def is_current(self) -> bool:
        """Whether the open file is the one at its path."""
        return _identity(self.path) == self._identity

    def check_current(self) -> None:
        """Raise GalleryError unless the open file is the one at its path."""
        if not self.is_current:
            raise GalleryError(
                f"{self.path}: was replaced or removed while it was open, so nothing was changed; open it again"
            )

    def version(self, db: sqlite3.Connection) -> FileVersion:
        """A value that every change by another program alters, even one that does not use SQLite; inside a `moment`."""
        return int(db.execute("PRAGMA data_version").fetchone()[0]), self._stamp

    def reopen(self, seconds: float) -> None:
        """Continue with the file that is now at the path. Waits `seconds` for another program's change.

        Raises GalleryError.
        """
        with self.lock, sqlite_errors_reported(self.path):
            self._replace(_open(self.path, None, seconds))


def _after_fork() -> None:
    for file in list(_OPEN):
        file.mark_forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def path_exists(path: Path) -> bool:
    """Whether something exists at a path. Raises GalleryError if access is denied."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise GalleryError(
            f"{path}: cannot be looked up ({error.strerror}): check its name, and the permissions of its folders"
        ) from error
    return True


def make_file(path: Path, binding: Binding) -> None:
    """Make an empty gallery.

    Raises UsageError and GalleryError, which name the folder, because the file may be moved later.
    """
    check_folder(path.parent)
    with (
        sqlite_errors_reported(path.parent),
        closing(_connect(path, create=True, writable=True, timeout_s=BUSY_TIMEOUT_S)) as db,
    ):
        create_schema(path, db, binding)


def check_folder(folder: Path) -> None:
    """Raise UsageError or GalleryError unless a gallery can be made in a folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder: the gallery needs one that exists")
    if not os.access(folder, os.W_OK):
        raise GalleryError(f"{folder}: the folder is not writable: choose another one for the gallery")


def _identity(path: Path) -> tuple[int, int] | None:
    """The identity of the file at a path, or None."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _file_stamp(path: Path) -> FileStamp | None:
    """When the file at a path was last written, and its size, or None."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


@dataclass(frozen=True)
class _Opened:
    """A connection to a gallery of the current schema, and what was known of the file before it was read."""

    db: sqlite3.Connection
    identity: tuple[int, int] | None
    written: FileStamp | None
    copied: bool = False  # whether it is a migrated copy in memory


def _open(path: Path, binding: Binding | None, timeout_s: float, *, older: OlderSchema = "either") -> _Opened:
    """Open a gallery; with a `binding`, a blank or missing one becomes a gallery with it.

    A gallery of an older schema is migrated; if it cannot be written, a copy in memory is. Raises GalleryError, and
    SQLite's errors.
    """
    identity, written = _identity(path), _file_stamp(path)
    writable = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
    db = _connect(path, create=binding is not None, writable=writable, timeout_s=timeout_s)
    try:
        _set_pragmas(db)
        if prepare(path, db, binding) or _try_migrate(path, db, older, writable):
            return _Opened(db, identity or _identity(path), written)
        written = _file_stamp(path)  # a failed migration may have written something and rolled it back
        with closing(db):
            return _Opened(_migrated_copy(path, db), identity, written, copied=True)
    except BaseException:
        db.close()
        raise


def _try_migrate(path: Path, db: sqlite3.Connection, older: OlderSchema, writable: bool) -> bool:
    """Migrate a gallery in its file, if this is requested and possible. Raises GalleryError, and SQLite's errors."""
    if older == "copy":
        return False
    try:
        migrate(path, db)
    except sqlite3.OperationalError as error:
        if older == "migrate" or not is_write_failure(error):
            raise
        if writable:
            log.warning(
                "%s: is from an older version and could not be migrated to this one (%s): is the disk full? Until"
                " it can be written, a copy in memory is used",
                path,
                error,
            )
        return False
    return True


def _migrated_copy(path: Path, db: sqlite3.Connection) -> sqlite3.Connection:
    """A copy in memory, of the current schema, that cannot be changed. Raises GalleryError, and SQLite's errors."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        _set_pragmas(copy)
        with db:
            db.execute("BEGIN")
            # waits for a writer no longer than the time limit
            db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            db.backup(copy)
        migrate(path, copy)
        copy.execute("PRAGMA query_only = ON")
    except BaseException:
        copy.close()
        raise
    return copy


def _set_pragmas(db: sqlite3.Connection) -> None:
    for pragma in PRAGMAS:
        db.execute(f"PRAGMA {pragma}")


def _connect(path: Path, *, create: bool, writable: bool, timeout_s: float) -> sqlite3.Connection:
    if create and writable:
        # SQLite refuses, and reports, what this call refuses; an existing file is not changed
        with suppress(OSError):
            os.close(os.open(path.resolve(), os.O_CREAT | os.O_EXCL, PRIVATE_MODE))  # SQLite's journal takes its mode
    mode = "rw" if writable else "ro"
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=timeout_s,
        check_same_thread=False,
    )
