"""Files written whole or not at all, folders to write in, and where what can be made again is kept."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from confit_runtime.errors import UsageError

OURS = 0o600  # the mode of what is about people, such as their voices: nobody else may read it
PUBLIC = 0o666  # less what the umask forbids


def write_whole(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Write a file whole or not at all, though another process writes it, too: the last one's stays. Raises OSError.

    What killed processes left of it goes: that takes a millisecond among a thousand files, and writing through takes ten.
    """
    with suppress(PermissionError):  # of a folder that may be written but not read
        remove_left(path)
    with naming(path), partial_folder(path) as folder:
        _write_through(folder / path.name, data, mode)
        os.replace(folder / path.name, path)


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


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, in which to write what is to be there: nobody else's, and gone at the end.

    It is locked meanwhile, by which `remove_left` knows it from what a killed process left: the number of a process tells that
    in no other container. Raises OSError.
    """
    while True:
        folder = path.with_name(f".{path.name}.{os.urandom(4).hex()}.partial")
        try:
            folder.mkdir()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # nobody asked for the longer one
                error.filename = str(path)
            raise
        with _locked(folder, wait=True):
            if not folder.is_dir():  # it was taken for one that is left, in the moment before it was locked
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def partial_folders(path: Path) -> list[Path]:
    """Those in which any process is writing, or was as it was killed, what is to be at `path`."""
    if not path.parent.is_dir():
        return []
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    found = [path.with_name(name) for name in os.listdir(path.parent) if ours.fullmatch(name)]
    return [folder for folder in found if not folder.is_symlink()]  # nobody writes in what a link leads to


def remove_left(path: Path) -> None:
    """Remove what processes left that were killed as they wrote what was to be at `path`, as far as we may.

    Not where no lock tells it from what one is writing: on Windows, and on some network disks.
    """
    for folder in partial_folders(path):
        with _locked(folder, wait=False) as ours:
            if ours:
                shutil.rmtree(folder, ignore_errors=True)


def is_partial(path: Path) -> bool:
    """Whether it is what a killed writer left."""
    return path.name.startswith(".") and path.name.endswith(".partial")


@contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Lock a folder; gives whether it is locked, which it is not where another holds it, or where there are no such locks."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # it is gone; and Windows opens no folder
        yield False
        return
    try:
        yield bool(lock(handle, wait=wait))
    finally:
        os.close(handle)


def lock(descriptor: int, *, wait: bool) -> bool | None:
    """Hold an open file or folder until it is closed, or this process ends, however it does; False where another has it.

    With `wait` that is waited for. None, and nothing is held, where the system has no such locks, as Windows, or the file system.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some of networks have none
        return None
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
    """$CONFIT_EDGE_CACHE, or a folder in the user's home; a user id may have none.

    What is in it was decoded from voices, so it is made for its user alone; who may read one that was chosen and is there
    already, its mode says. Raises UsageError where somebody else laid what is no folder of ours into the one for all.
    """
    chosen, home = os.environ.get("CONFIT_EDGE_CACHE"), os.path.expanduser("~")
    if chosen:
        return _made_private(Path(chosen))
    if home != "~":
        return _made_private(Path(home, ".cache", "confit-edge"), anew=True)
    folder = _made_private(Path(tempfile.gettempdir(), f"confit-edge-{_user()}"), anew=True)
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != _user()):
        raise UsageError(f"{folder}: is the cache of a user without a home, and not yours; set CONFIT_EDGE_CACHE")
    return folder


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0  # Windows, where a folder's owner is 0


def _made_private(folder: Path, anew: bool = False) -> Path:
    """The folder, made for its user alone; with `anew` that is made of one that is there, too. Who writes tells of errors."""
    with suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(0o700, exist_ok=anew)
        if folder.stat().st_mode & 0o077 and not folder.is_symlink():
            folder.chmod(0o700)
    return folder
