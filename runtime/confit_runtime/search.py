"""Find the prints nearest to an embedding: exactly, in numpy, or with an index if there are very many."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from io import BufferedReader
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Any, Protocol

import numpy as np

from confit_runtime.arrays import Floats, Indices
from confit_runtime.errors import GalleryError, UsageError
from confit_runtime.files import PRIVATE_MODE, partial_folder, partial_folders, remove_leftovers

CONNECTIVITY, BUILD_EFFORT, SEARCH_EFFORT = 24, 160, 768  # of the index's graph: trades recall against time
OVERSAMPLING = (
    2  # candidates of an index per print requested, then compared in full: the index stores 8 bits per number
)
PROGRESS_INTERVAL = 5_000  # prints between two progress reports of an index in the making
MAX_PENDING_CHANGES = 1_000  # prints added or removed since a search was made, before a new one is made
SAMPLE_CHECKS = 16  # vectors of an index compared with the gallery's
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none

log = logging.getLogger(__name__)


class Search(Protocol):
    """Finds rows of `prints [n, dim]`."""

    def nearest(self, unit: Floats, count: int) -> Indices:
        """The rows nearest to `unit [dim]`, in no order: `count` of them, or all there are."""


class ExactSearch:
    """Compares with every print.

    It keeps a second copy of the prints, one dimension after another. Reading a hundred thousand prints in this order
    takes half the time of reading them row by row, because memory access dominates a product with one vector.
    """

    def __init__(self, prints: Floats) -> None:
        self._prints = np.asfortranarray(prints)

    def nearest(self, unit: Floats, count: int) -> Indices:
        return _nearest(self._prints, unit, count)


class IncrementalSearch:
    """Uses a search of earlier prints, and compares with each print that was added since.

    For a hundred thousand prints, making a new search takes longer than live sound can wait.
    """

    def __init__(self, before: Search, rows: Indices, prints: Floats) -> None:
        """`rows` are the rows of the prints of `before` in `prints [n, dim]`, -1 for a removed one."""
        self._before, self._rows, self._prints = before, rows, prints
        present = np.zeros(len(prints), bool)
        present[rows[rows >= 0]] = True
        self._added, self._removed = np.flatnonzero(~present), int(np.count_nonzero(rows < 0))

    @staticmethod
    def updated(before: Search, rows: Indices, prints: Floats) -> Search:
        """The search to use: a new one, if many prints were added or removed."""
        if isinstance(before, IncrementalSearch):
            rows = np.append(rows, -1)[before._rows]
            before = before._before
        search = IncrementalSearch(before, rows, prints)
        return (
            search
            if len(search._added) + search._removed <= max(MAX_PENDING_CHANGES, len(prints) // 10)
            else ExactSearch(prints)
        )

    def nearest(self, unit: Floats, count: int) -> Indices:
        found = self._rows[self._before.nearest(unit, count + self._removed)]
        rows = np.concatenate([found[found >= 0], self._added])
        return rows[_nearest(self._prints[rows], unit, count)]


class IndexSearch:
    """Uses an index made by `build_index`, and compares with every print that was enrolled afterwards.

    It finds the nearest prints nearly always, not always (`benchmarks/results/gallery.json` says how often). The index
    is read from the disk. Once its file is written to, when it is erased or replaced, all prints are compared.
    """

    def __init__(self, path: Path, ids: Indices, prints: Floats, digest: object, effort: int = SEARCH_EFFORT) -> None:
        """`ids [n]` are those of `prints [n, dim]` in the gallery; `effort` is how many candidates a search keeps.

        `digest` is what `build_index` returned. Raises GalleryError for another file, and for an index of other
        prints.
        """
        self._file = _open(path)
        weakref.finalize(self, os.close, self._file)
        self._stamp_when_opened = self._stamp()
        self._index = _load_index(path, self._file, digest)
        self._index.expansion_search = effort
        self._order = np.argsort(ids)
        self._ids = ids[self._order]
        inside = self._index.contains(ids.astype(np.uint64)) if len(ids) else np.zeros(0, bool)
        self._added = np.flatnonzero(~inside)
        self._prints = prints
        sample = np.flatnonzero(inside)[:: max(1, int(inside.sum()) // SAMPLE_CHECKS)][:SAMPLE_CHECKS]
        if len(self._index) != inside.sum() or not all(self._same(ids[row], prints[row]) for row in sample):
            raise _stale_error(path)

    def nearest(self, unit: Floats, count: int) -> Indices:
        if self._stamp() == self._stamp_when_opened:  # reading a truncated file would crash the process
            found = self._index.search(unit, count * OVERSAMPLING).keys.astype(np.int64)
            if self._stamp() == self._stamp_when_opened:  # still unchanged: the result comes from a complete index
                rows = np.concatenate([self._order[np.searchsorted(self._ids, found)], self._added])
                return rows[_nearest(self._prints[rows], unit, count)]
        return _nearest(self._prints, unit, count)

    def _stamp(self) -> tuple[int, int]:
        """When the file was last written, in ns, and its size in bytes."""
        stat = os.fstat(self._file)
        return stat.st_mtime_ns, stat.st_size

    def _same(self, key: int, print_: Floats) -> bool:
        stored = np.asarray(self._index.get(int(key)), np.float32).reshape(-1)
        return stored.shape == print_.shape and float(stored @ print_) > 0.98 * float(np.linalg.norm(stored))


def _nearest(prints: Floats, unit: Floats, count: int) -> Indices:
    """The rows of `prints [n, dim]` nearest to `unit [dim]`, in no order: `count` of them, or all there are."""
    if count >= len(prints):
        return np.arange(len(prints))
    return np.argpartition(prints @ unit, -count)[-count:]


def index_path(gallery: Path) -> Path:
    """The path of a gallery's index, if there is one."""
    return gallery.with_name(gallery.name + ".index")


def build_index(
    path: Path,
    ids: Indices,
    prints: Floats,
    progress: Callable[[int, int], None] | None = None,
    mode: int = PRIVATE_MODE,
    commit_context: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> str:
    """Write an index of `prints [n, dim]`, complete or not at all. Returns the SHA-256 of the file.

    Uses all cores; `progress` gets the number of prints that are in the index and the number of all prints. The file
    is put in place inside `commit_context(digest)`, which raises if the prints are no longer those of the gallery. Raises
    UsageError if usearch is not installed, GalleryError if the file cannot be written.
    """
    usearch = _usearch()
    index = usearch.Index(
        ndim=prints.shape[1],
        metric="cos",
        dtype="i8",
        connectivity=CONNECTIVITY,
        expansion_add=BUILD_EFFORT,
        expansion_search=SEARCH_EFFORT,
    )
    for start in range(0, len(ids), PROGRESS_INTERVAL):
        block = slice(start, start + PROGRESS_INTERVAL)
        index.add(ids[block].astype(np.uint64), prints[block])
        if progress is not None:
            progress(min(start + PROGRESS_INTERVAL, len(ids)), len(ids))
    try:
        remove_leftovers(path)
        with partial_folder(path) as folder:
            temporary = folder / path.name
            temporary.touch(PRIVATE_MODE)
            index.save(str(temporary))
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                digest = _digest(file)
            with commit_context(digest):
                temporary.replace(path)
            return digest
    except (OSError, RuntimeError) as error:  # usearch raises RuntimeError
        cause = error.strerror if isinstance(error, OSError) else error
        raise GalleryError(f"{path}: the index cannot be written ({cause}): check its folder and the disk") from error


def erase_index(path: Path) -> None:
    """Remove an index, overwriting it first, because it contains prints of somebody who is to be forgotten.

    Also removes what killed processes left of it. Raises GalleryError.
    """
    for held in (path, *(folder / path.name for folder in partial_folders(path))):
        try:
            _erase(held)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise GalleryError(
                f"{held}: the index cannot be erased ({error.strerror}), so nothing was changed: remove it by hand"
            ) from error
    remove_leftovers(path)


def _erase(path: Path) -> None:
    """Overwrite a file and remove it; of a link only the link is removed, because its target may be anything. Raises OSError.

    Logs a warning about what remains, because it may be an index.
    """
    stat = path.lstat()
    stays = ""
    if S_ISLNK(stat.st_mode) and path.exists():
        stays = f"was a link, so its target {path.resolve()} remains"
    elif S_ISREG(stat.st_mode) and stat.st_nlink > 1:
        stays = f"has another hard link, so it remains there (`find / -xdev -inum {stat.st_ino}` finds it)"
    elif S_ISREG(stat.st_mode):
        with open(path, "r+b", opener=lambda name, flags: os.open(name, flags | _NOFOLLOW)) as file:
            if os.path.samestat(stat, os.fstat(file.fileno())):
                for _ in range(0, stat.st_size, 1 << 20):
                    file.write(bytes(1 << 20))
    path.unlink()
    if stays:
        log.warning("%s: %s and may contain prints of the removed name: remove it by hand", path, stays)


def _open(path: Path) -> int:
    """Open an index file. Raises GalleryError."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:  # it was erased just now
        raise GalleryError(f"{path}: the index cannot be read ({error.strerror})") from error


def _load_index(path: Path, descriptor: int, digest: object) -> Any:
    """The index in an open file.

    Raises GalleryError if it is not the recorded one: a damaged one would crash the process.
    """
    with suppress(OSError, ValueError, RuntimeError):  # usearch raises RuntimeError
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            same = _digest(file) == digest
        if same and (index := _usearch().Index.restore(str(path), view=True)) is not None:
            return index
    raise _stale_error(path)


def _digest(file: BufferedReader) -> str:
    """The SHA-256 of an open file: 0.1 s for about 100 MB with OpenSSL, which is worth loading for an index only."""
    from hashlib import file_digest

    return file_digest(file, "sha256").hexdigest()


def _stale_error(path: Path) -> GalleryError:
    return GalleryError(f"{path}: is not this gallery's current index: make it again with `confit-edge gallery index`")


def _usearch() -> Any:
    try:
        import onnxruntime  # noqa: F401  # after usearch it takes the process down
        import usearch.index
    except ImportError as error:
        raise UsageError("an index needs usearch: pip install 'confit-edge[index]'") from error
    return usearch.index
