"""Files written whole or not at all, folders to write in, and where what can be made again is kept."""

from __future__ import annotations

import errno
import glob
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confit_runtime.errors import UsageError

OURS = 0o600  # the mode of what is about people, such as their voices: nobody else may read it
PUBLIC = 0o666  # less what the umask forbids


def write_whole(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Write a file whole or not at all, though another process writes it, too: the last one's stays. Raises OSError."""
    temporary = partial_path(path)
    try:
        with naming(path):
            _write_through(temporary, data, mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Write a file whole or not at all where there is none, nor another thread or process that is writing one.

    Only who made the hidden file beside it may give that its name, so nothing is replaced, and no links are needed, which some
    file systems lack. Raises FileExistsError where the name is taken, and OSError.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.touch(mode, exist_ok=False)
    try:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        with naming(path):
            _write_through(temporary, data, mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # not once it has its name: the next one may be writing where it was
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of writing, as on a full disk, names no file: let it name the one that was asked for."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _write_through(path: Path, data: bytes, mode: int) -> None:
    """Write a file, of `mode` where there was none, through to the disk."""
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def partial_path(path: Path) -> Path:
    """Where this process writes what is to be the file at `path`: hidden beside it, and no other process's."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def partial_paths(path: Path) -> list[Path]:
    """What any process is writing, or was as it was killed, that is to be the file at `path`."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*.partial"))


def remove_left(path: Path) -> None:
    """Remove what processes left that were killed as they wrote what was to be the file at `path`, a database's journal too.

    Not on Windows, where a number does not tell whether its process is gone. Raises OSError.
    """
    if os.name == "nt" or not path.parent.is_dir():
        return
    for name in os.listdir(path.parent):
        partial = re.fullmatch(rf"\.{re.escape(path.name)}\.(\d+)\.partial(-\w+)?", name)
        if partial and not _runs(int(partial[1])):
            path.with_name(name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # of somebody else
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises UsageError where that cannot be, or where nothing can be written in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be made a folder ({error.strerror}); write somewhere else, with -o"
        ) from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path}: is a folder that may not be written; write somewhere else, with -o")


def check_suffix(path: Path, suffix: str, what: str, option: str = "") -> None:
    """Raise UsageError where a file to write has another ending: "`option` `path`: `what` ends with `suffix`"."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"{option} {path}: {what} ends with {suffix}".lstrip())


def default_cache() -> Path:
    """$CONFIT_EDGE_CACHE, or a folder in the user's home; a user id may have none."""
    chosen = os.environ.get("CONFIT_EDGE_CACHE")
    if chosen:
        return Path(chosen)
    home = os.path.expanduser("~")
    return Path(home if home != "~" else tempfile.gettempdir(), ".cache", "confit-edge")
