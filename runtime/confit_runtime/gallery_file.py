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
from typing import NoReturn
from weakref import WeakSet

from confit_runtime.errors import GalleryError, UsageError
from confit_runtime.files import PRIVATE_MODE
from confit_runtime.gallery_tables import (
    Binding,
    create_schema,
    prepare,
    sqlite_errors_reported,
)

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 5.0  # how long to wait for another program's change
PRAGMAS = (
    *("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "temp_store = MEMORY"),
    *("trusted_schema = OFF", "cell_size_check = ON"),  # the file may come from an untrusted source
)

_OPEN: WeakSet[GalleryFile] = WeakSet()  # opened by this process, or before it was forked

FileStamp = tuple[int, int]  # when, in ns, and how many bytes
FileVersion = tuple[int, FileStamp | None]


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
        self._db = opened.db
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
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, which no other thread uses meanwhile. Raises GalleryError."""
        with self.lock:
            self.check_open()
            with sqlite_errors_reported(self.path):
                if not (self._readers or self._db.in_transaction):
                    self._drop_stale_pages()
                self._readers += 1
                try:
                    yield self._db
                finally:
                    self._readers -= 1

    def _drop_stale_pages(self) -> None:
        """Make SQLite read the file again after it was written.

        SQLite keeps pages for as long as a counter in the file stays the same. A backup restored in place may have the
        same counter, and half of those pages would then be written back into it.
        """
        written = _file_stamp(self.path)
        if written == self._stamp:
            return
        self._db.execute("PRAGMA shrink_memory")
        self._stamp = written

    @contextmanager
    def reading_with_timeout(self, seconds: float) -> Iterator[sqlite3.Connection]:
        """Like `reading`, but wait only `seconds` for another program's change.

        Raises GalleryBusyError if that is too short.
        """
        with self.reading() as db:
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
            opened = _open(self.path, None, seconds)
            self._db.close()
            self._adopt(opened)
            self._db.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_TIMEOUT_S)}")


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
        closing(_connect(path, create=True, timeout_s=BUSY_TIMEOUT_S)) as db,
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


def _open(path: Path, binding: Binding | None, timeout_s: float) -> _Opened:
    """Open a gallery; with a `binding`, a blank or missing one becomes a gallery with it.

    Raises GalleryError, and SQLite's errors.
    """
    identity, written = _identity(path), _file_stamp(path)
    db = _connect(path, create=binding is not None, timeout_s=timeout_s)
    try:
        for pragma in PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        prepare(path, db, binding)
        return _Opened(db, identity or _identity(path), written)
    except BaseException:
        db.close()
        raise


def _connect(path: Path, *, create: bool, timeout_s: float) -> sqlite3.Connection:
    if create:
        # SQLite refuses, and reports, what this call refuses; an existing file is not changed
        with suppress(OSError):
            os.close(os.open(path.resolve(), os.O_CREAT | os.O_EXCL, PRIVATE_MODE))  # SQLite's journal takes its mode
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",  # SQLite reads what it may not write
        uri=True,
        isolation_level=None,
        timeout=timeout_s,
        check_same_thread=False,
    )
