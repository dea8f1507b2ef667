"""Which prints are nearest to an embedding: exactly, in numpy, or by an index where there are very many."""

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

from confit_runtime.arrays import Floats, Places
from confit_runtime.errors import GalleryError, UsageError
from confit_runtime.files import OURS, partial_folder, partial_folders, remove_left

CONNECTIVITY, BUILD_EFFORT, SEARCH_EFFORT = 24, 160, 768  # of the index's graph: recall against time
OVERSAMPLED = 2  # candidates of an index for each print asked for, then compared in full: it holds 8 bits of a number
TOLD_EVERY = 5_000  # prints of an index that is being made
LATER = 1_000  # prints that came or went since a search was made, for which no other one is
CHECKED = 16  # vectors of an index held against the gallery's
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none

log = logging.getLogger(__name__)


class Search(Protocol):
    """Finds rows of `prints [n, dim]`."""

    def nearest(self, unit: Floats, count: int) -> Places:
        """The rows nearest to `unit [dim]`, in no order: `count`, or all there are."""


class ExactSearch:
    """Compares with every print.

    It keeps them once more, a dimension after another: read so, a hundred thousand take half the time they take row by
    row, for what a product with one vector costs is memory.
    """

    def __init__(self, prints: Floats) -> None:
        self._prints = np.asfortranarray(prints)

    def nearest(self, unit: Floats, count: int) -> Places:
        return _nearest(self._prints, unit, count)


class LaterSearch:
    """Asks a search of the prints as they were, and compares with those that came since.

    Of a hundred thousand prints what a search keeps takes longer to make than sound waits.
    """

    def __init__(self, before: Search, rows: Places, prints: Floats) -> None:
        """`rows` are those of the prints of `before` among `prints [n, dim]`, -1 of one that is gone."""
        self._before, self._rows, self._prints = before, rows, prints
        there = np.zeros(len(prints), bool)
        there[rows[rows >= 0]] = True
        self._later, self._gone = np.flatnonzero(~there), int(np.count_nonzero(rows < 0))

    @staticmethod
    def of(before: Search, rows: Places, prints: Floats) -> Search:
        """The search to use: a new one, where many prints came or went."""
        if isinstance(before, LaterSearch):
            rows = np.append(rows, -1)[before._rows]
            before = before._before
        search = LaterSearch(before, rows, prints)
        return search if len(search._later) + search._gone <= max(LATER, len(prints) // 10) else ExactSearch(prints)

    def nearest(self, unit: Floats, count: int) -> Places:
        found = self._rows[self._before.nearest(unit, count + self._gone)]
        rows = np.concatenate([found[found >= 0], self._later])
        return rows[_nearest(self._prints[rows], unit, count)]


class IndexSearch:
    """Asks an index made by `build_index`, and compares with every print that was enrolled after it was made.

    What is found are nearly always the nearest prints, not always (`benchmarks/results/gallery.json` says how often). The
    index is read where it lies on the disk. Once that was written, by who erased it or restored a copy, all prints are compared.
    """

    def __init__(self, path: Path, ids: Places, prints: Floats, digest: object, effort: int = SEARCH_EFFORT) -> None:
        """`ids [n]` are those of `prints [n, dim]` in the gallery; `effort` is how many candidates a search keeps.

        `digest` is what `build_index` gave. Raises GalleryError on another file, and on an index of other prints.
        """
        self._file = _open(path)
        weakref.finalize(self, os.close, self._file)
        self._opened = self._written()
        self._index = _restored(path, self._file, digest)
        self._index.expansion_search = effort
        self._order = np.argsort(ids)
        self._ids = ids[self._order]
        inside = self._index.contains(ids.astype(np.uint64)) if len(ids) else np.zeros(0, bool)
        self._later = np.flatnonzero(~inside)
        self._prints = prints
        some = np.flatnonzero(inside)[:: max(1, int(inside.sum()) // CHECKED)][:CHECKED]
        if len(self._index) != inside.sum() or not all(self._same(ids[row], prints[row]) for row in some):
            raise _stale(path)

    def nearest(self, unit: Floats, count: int) -> Places:
        if self._written() == self._opened:  # to read what was cut short takes the process down
            found = self._index.search(unit, count * OVERSAMPLED).keys.astype(np.int64)
            if self._written() == self._opened:  # still: what was found is of a whole index
                rows = np.concatenate([self._order[np.searchsorted(self._ids, found)], self._later])
                return rows[_nearest(self._prints[rows], unit, count)]
        return _nearest(self._prints, unit, count)

    def _written(self) -> tuple[int, int]:
        """When the file was written last, in ns, and how many bytes it has."""
        stat = os.fstat(self._file)
        return stat.st_mtime_ns, stat.st_size

    def _same(self, key: int, print_: Floats) -> bool:
        kept = np.asarray(self._index.get(int(key)), np.float32).reshape(-1)
        return kept.shape == print_.shape and float(kept @ print_) > 0.98 * float(np.linalg.norm(kept))


def _nearest(prints: Floats, unit: Floats, count: int) -> Places:
    """The rows of `prints [n, dim]` nearest to `unit [dim]`, in no order: `count`, or all there are."""
    if count >= len(prints):
        return np.arange(len(prints))
    return np.argpartition(prints @ unit, -count)[-count:]


def index_path(gallery: Path) -> Path:
    """Where the index of a gallery is, if there is one."""
    return gallery.with_name(gallery.name + ".index")


def build_index(
    path: Path,
    ids: Places,
    prints: Floats,
    progress: Callable[[int, int], None] | None = None,
    mode: int = OURS,
    placing: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> str:
    """Write an index of `prints [n, dim]`, whole or not at all. Returns the SHA-256 of the file.

    All cores work at it; `progress` is told how many prints of how many are in it. Within `placing`, which is given the digest,
    the file gets its place; it raises where the prints are no longer those of the gallery. Raises UsageError where usearch is
    not installed, GalleryError where the file cannot be written.
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
    for start in range(0, len(ids), TOLD_EVERY):
        block = slice(start, start + TOLD_EVERY)
        index.add(ids[block].astype(np.uint64), prints[block])
        if progress is not None:
            progress(min(start + TOLD_EVERY, len(ids)), len(ids))
    try:
        remove_left(path)
        with partial_folder(path) as folder:
            temporary = folder / path.name
            temporary.touch(OURS)
            index.save(str(temporary))
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                digest = _digest(file)
            with placing(digest):
                temporary.replace(path)
            return digest
    except (OSError, RuntimeError) as error:  # usearch's own is a RuntimeError
        cause = error.strerror if isinstance(error, OSError) else error
        raise GalleryError(
            f"{path}: the index cannot be written ({cause}): look at its folder, and the disk"
        ) from error


def erase_index(path: Path) -> None:
    """Remove an index, overwritten first: it holds prints, and somebody asked to be forgotten.

    And what processes left of it that were killed as they wrote it. Raises GalleryError.
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
    remove_left(path)


def _erase(path: Path) -> None:
    """Overwrite a file and remove it; of a link only the link goes, for what it leads to may be anything. Raises OSError.

    What stays then is told of: it may be an index.
    """
    there = path.lstat()
    stays = ""
    if S_ISLNK(there.st_mode) and path.exists():
        stays = f"was a link, so what it led to stays, {path.resolve()}"
    elif S_ISREG(there.st_mode) and there.st_nlink > 1:
        stays = f"has another name, so it stays there (`find / -xdev -inum {there.st_ino}` finds it)"
    elif S_ISREG(there.st_mode):
        with open(path, "r+b", opener=lambda name, flags: os.open(name, flags | _NO_LINK)) as file:
            if os.path.samestat(there, os.fstat(file.fileno())):
                for _ in range(0, there.st_size, 1 << 20):
                    file.write(bytes(1 << 20))
    path.unlink()
    if stays:
        log.warning("%s: %s, and may hold prints of who was removed: remove it yourself", path, stays)


def _open(path: Path) -> int:
    """The file of an index, open. Raises GalleryError."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:  # it was erased this moment
        raise GalleryError(f"{path}: the index cannot be read ({error.strerror})") from error


def _restored(path: Path, descriptor: int, digest: object) -> Any:
    """The index in an open file. Raises GalleryError on another one than was made: what is damaged takes the process down."""
    with suppress(OSError, ValueError, RuntimeError):  # usearch's own is a RuntimeError
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            same = _digest(file) == digest
        if same and (index := _usearch().Index.restore(str(path), view=True)) is not None:
            return index
    raise _stale(path)


def _digest(file: BufferedReader) -> str:
    """The SHA-256 of an open file: some 100 MB take a tenth of a second, with OpenSSL, which only an index is worth."""
    from hashlib import file_digest

    return file_digest(file, "sha256").hexdigest()


def _stale(path: Path) -> GalleryError:
    return GalleryError(
        f"{path}: is not the index that was made of this gallery: make it again with `confit-edge gallery index`"
    )


def _usearch() -> Any:
    try:
        import onnxruntime  # noqa: F401  # after usearch it takes the process down
        import usearch.index
    except ImportError as error:
        raise UsageError("an index needs usearch: pip install 'confit-edge[index]'") from error
    return usearch.index
