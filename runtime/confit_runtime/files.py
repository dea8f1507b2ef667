"""Files written completely or not at all, folders to write in, and the cache of what can be computed again."""

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

PRIVATE_MODE = 0o600  # for data about people, such as their voices: nobody else may read it


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file completely or not at all; if several processes write it, the last one wins. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden path to write a file to, which replaces `path` at the end, unless an error is raised. Raises OSError.

    A file that is replaced passes its permissions on. Also removes what killed processes left of it: this takes one
    millisecond among a thousand files; flushing to disk takes ten.
    """
    with suppress(PermissionError):  # for a folder that may be written but not read
        remove_leftovers(path)
    with name_file_in_errors(path), partial_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)


def write_new_private(path: Path, data: bytes) -> None:
    """Write a new file for its user only, completely or not at all, while no other thread or process writes it.

    Only whoever created the hidden file next to it may give it that name. So nothing is replaced, and no links are
    needed, which some file systems lack. Raises FileExistsError if the name is taken, and OSError.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.touch(PRIVATE_MODE, exist_ok=False)
    try:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        with name_file_in_errors(path), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # not after the rename: the next writer may be using the same name
        raise


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Make an OSError name the file that was asked for: errors of writing, such as a full disk, name none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """A hidden folder next to `path` in which to write it: exclusive, and removed at the end.

    It is locked meanwhile; this is how `remove_leftovers` distinguishes it from the remains of a killed process. A process
    number would not do across containers. Raises OSError.
    """
    while True:
        folder = path.with_name(f".{path.name}.{os.urandom(4).hex()}.partial")
        try:
            folder.mkdir()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # the user did not choose the longer name
                error.filename = str(path)
            raise
        with locked(folder, wait=True):
            if not folder.is_dir():  # it was taken for a leftover just before it was locked
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def partial_folders(path: Path) -> list[Path]:
    """The hidden folders in which any process is writing `path`, or was when it was killed."""
    if not path.parent.is_dir():
        return []
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    found = [path.with_name(name) for name in os.listdir(path.parent) if ours.fullmatch(name)]
    return [folder for folder in found if not folder.is_symlink()]  # nobody writes into the target of a link


def remove_leftovers(path: Path) -> None:
    """Remove what processes left that were killed while writing `path`, as far as permissions allow.

    Does nothing if no lock can distinguish leftovers from work in progress: on Windows, and on some network disks.
    """
    for folder in partial_folders(path):
        with locked(folder, wait=False) as ours:
            if ours:
                shutil.rmtree(folder, ignore_errors=True)


def is_partial(path: Path) -> bool:
    """Whether `path` is what a killed writer left."""
    return path.name.startswith(".") and path.name.endswith(".partial")


@contextmanager
def locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Lock a folder; yields whether it is locked: not if another process holds it, or if there are no such locks."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # it is gone; and Windows cannot open folders
        yield False
        return
    try:
        yield bool(lock(handle, wait=wait))
    finally:
        os.close(handle)


def lock(descriptor: int, *, wait: bool) -> bool | None:
    """Lock an open file or folder until it is closed or this process ends; False if another process holds the lock.

    With `wait`, waits for it. None, without a lock, if the system (such as Windows) or the file system does not
    support it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have none
        return None
    return True


def make_folder(path: Path) -> None:
    """Make a folder and its parents. Raises UsageError if that fails, or if the folder is not writable."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot create this folder ({error.strerror}); write somewhere else with -o"
        ) from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path}: this folder is not writable; write somewhere else with -o")


def check_suffix(path: Path, suffix: str, what: str, option: str = "") -> None:
    """Raise UsageError if a file to write has the wrong suffix: "`option` `path`: `what` must end with `suffix`"."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"{option} {path}: {what} must end with {suffix}".lstrip())


def default_cache() -> Path:
    """$CONFIT_EDGE_CACHE, or a folder in $XDG_CACHE_HOME or in the user's home; a user id may have none.

    Its contents are derived from voices, so it is created for its user only; an existing folder in $CONFIT_EDGE_CACHE
    keeps its mode. Raises UsageError if somebody else owns the fallback folder in the shared temporary folder.
    """
    chosen, shared, home = *map(os.environ.get, ("CONFIT_EDGE_CACHE", "XDG_CACHE_HOME")), os.path.expanduser("~")
    if chosen:
        return _make_private(Path(chosen))
    if shared and os.path.isabs(shared):  # the XDG specification has a relative one ignored
        return _make_private(Path(shared, "confit-edge"), exist_ok=True)
    if home != "~":
        return _make_private(Path(home, ".cache", "confit-edge"), exist_ok=True)
    folder = _make_private(Path(tempfile.gettempdir(), f"confit-edge-{_user_id()}"), exist_ok=True)
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != _user_id()):
        raise UsageError(
            f"{folder}: is the cache for users without a home folder, but not yours; set CONFIT_EDGE_CACHE"
        )
    return folder


def _user_id() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0  # Windows, where a folder's owner is 0


def _make_private(folder: Path, exist_ok: bool = False) -> Path:
    """The folder, private to its user; with `exist_ok` an existing one is made private too. Errors are left to the writer."""
    with suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(0o700, exist_ok=exist_ok)
        if folder.stat().st_mode & 0o077 and not folder.is_symlink():
            folder.chmod(0o700)
    return folder
