"""Many arrays in few files: the store of decoded clips, which lets training use a corpus larger than memory."""

from __future__ import annotations

import hashlib
import mmap
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from confit_runtime.audio import Pcm

Result = TypeVar("Result")

SHARD = 1 << 28  # samples (1 GiB); a file is sparse until it is written to
MAPPED = 100  # shards mapped at once: each map keeps a file descriptor open, and some systems allow only 256

_TABLES = """
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, size INTEGER NOT NULL, used INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS arrays
    (key TEXT PRIMARY KEY, shard TEXT NOT NULL, start INTEGER NOT NULL, samples INTEGER NOT NULL, sha256 BLOB NOT NULL);
"""


class Pack:
    """float32 arrays by key, in memory-mapped files in `folder` with an SQLite index.

    The index allocates space, so any number of processes may add arrays at once. A damaged array counts as absent. Arrays
    are read-only and take no process memory: the system caches as much of them as it has room for. Methods raise OSError
    and sqlite3.Error if the folder cannot be used. Safe to use from several threads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None  # inode of the open index
        self._shards: dict[str, Pcm] = {}
        self._checked: dict[str, Pcm] = {}

    def get(self, key: str) -> Pcm | None:
        """The array, checked against its digest the first time; None if there is none, or it is damaged."""
        return self._mended(lambda: self._get(key))

    def put(self, key: str, array: Pcm) -> Pcm:
        """Store an array (replacing a damaged one with that key), and return the stored array."""
        return self._mended(lambda: self._put(key, np.ascontiguousarray(array)))

    def _mended(self, work: Callable[[], Result]) -> Result:
        """The result of `work`. A damaged index is replaced by a new one: everything in it can be decoded again."""
        try:
            return work()
        except sqlite3.DatabaseError as error:
            foreign = "no such" in str(error) or "has no column" in str(error)
            if isinstance(error, sqlite3.OperationalError) and not foreign:  # busy, disk full, or not writable
                raise
            with self._lock:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                self._shards.clear()
                self._set_aside()
            return work()

    def _get(self, key: str) -> Pcm | None:
        with self._lock:
            if key in self._checked:
                return self._checked[key]
            found = self._index().execute("SELECT shard, start, samples, sha256 FROM arrays WHERE key = ?", (key,))
            row = found.fetchone()
            array = self._view(*row[:3]) if row else None
        if array is None or hashlib.sha256(array.data).digest() != row[3]:
            return None
        with self._lock:
            return self._checked.setdefault(key, array)

    def _put(self, key: str, array: Pcm) -> Pcm:
        digest = hashlib.sha256(array.data).digest()
        with self._lock:
            name, start = self._reserve(len(array))
            # Written to the file, not through the map: a full disk then raises an error instead of killing the process.
            with (self.folder / name).open("r+b", buffering=0) as file:
                file.seek(4 * start)
                if array.size and file.write(array.data) != array.nbytes:
                    raise OSError(f"{self.folder / name}: the disk is full")
            self._index().execute(
                "INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?, ?)", (key, name, start, len(array), digest)
            )
            view = self._view(name, start, len(array))
            return self._checked.setdefault(key, array if view is None else view)

    def _reserve(self, samples: int) -> tuple[str, int]:
        """Allocate space that no other process gets: returns the shard, and the first sample in it."""
        index = self._index()
        with index:
            index.execute("BEGIN IMMEDIATE")
            rows = index.execute("SELECT name, size, used FROM shards WHERE size - used >= ?", (samples,)).fetchall()
            for name, size, used in rows:
                path = self.folder / name
                if path.is_file() and path.stat().st_size == 4 * size:
                    index.execute("UPDATE shards SET used = used + ? WHERE name = ?", (samples, name))
                    return name, used
                index.execute("DELETE FROM shards WHERE name = ?", (name,))  # somebody removed or truncated it
            name, size = f"{uuid.uuid4().hex}.f32", max(SHARD, samples)
            with (self.folder / name).open("xb") as file:
                file.truncate(4 * size)
            index.execute("INSERT INTO shards VALUES (?, ?, ?)", (name, size, samples))
            return name, 0

    def _view(self, shard: str, start: int, samples: int) -> Pcm | None:
        path = self.folder / shard
        if shard not in self._shards and len(self._shards) >= MAPPED:
            array = np.fromfile(path, np.float32, samples, offset=4 * start) if path.is_file() else None
            if array is not None:
                array.setflags(write=False)
            return array
        if shard not in self._shards:
            try:
                with path.open("rb") as file:
                    self._shards[shard] = np.frombuffer(
                        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.float32
                    )
            except (FileNotFoundError, ValueError):  # ValueError: empty, or not whole floats
                return None
        return self._shards[shard][start : start + samples]

    def _index(self) -> sqlite3.Connection:
        if self._connection is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            index = self.folder / "index.db"
            self._inode = (
                index.stat().st_ino if index.exists() else None
            )  # remembered in case connecting shows it to be damaged
            self._connection = self._connect()
            self._inode = index.stat().st_ino
        return self._connection

    def _set_aside(self) -> None:
        """Remove the damaged index and its shards; does nothing if another process has already started a new index."""
        index, shards = self.folder / "index.db", list(self.folder.glob("*.f32"))
        with suppress(FileNotFoundError):
            if self._inode is not None and index.stat().st_ino != self._inode:
                return
            index.rename(damaged := self.folder / f"{uuid.uuid4().hex}.damaged")  # only one process can succeed
            for path in (damaged, *shards):
                path.unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.folder / "index.db", timeout=60, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous = OFF")  # anything lost in a power cut is decoded again
            connection.executescript(_TABLES)
        except sqlite3.Error:
            connection.close()
            raise
        weakref.finalize(self, connection.close)
        return connection
