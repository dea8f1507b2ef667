"""The files of a run, written whole or not at all: a killed process leaves the old file or the new one.

A run has one writer at a time (see `lock_folder`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import lock, make_folder, remove_leftovers, replacing, write_atomic


def check_folder(out: Path, what: str) -> None:
    """Raise UsageError where `out` cannot become a folder for `what`, because it or a parent is a file."""
    if out.is_file():
        raise UsageError(f"{out}: is a file; give a folder for the {what} with -o")
    if in_the_way := [parent for parent in out.parents if parent.is_file()]:
        raise UsageError(f"{out}: cannot create this folder, because {in_the_way[0]} is a file")


@contextmanager
def lock_folder(out: Path, what: str) -> Iterator[None]:
    """Lock the folder `out` for this process, which writes the `what` there. Raises UsageError if another has the lock.

    Creates the folder if needed, and removes it again if nothing was written into it. The lock is on the folder itself,
    so no lock file remains and a killed process holds no lock. Windows cannot open a folder: there nothing is locked.
    """
    check_folder(out, what)
    if os.name == "nt":
        yield
        return
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    descriptor = _open_locked(out)
    if descriptor is None:
        raise UsageError(f"{out}: another process is writing this {what}; wait for it, or choose another -o")
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()
        os.close(descriptor)


def _open_locked(folder: Path) -> int | None:
    """The descriptor of the folder, created if needed, opened and locked; None where another process has the lock."""
    while True:
        if not folder.exists():
            make_folder(folder)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # the process that created it has just removed it
            continue
        if lock(descriptor, wait=False) is False:
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`."""
    write_atomic(path, text.encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors`, from any device, to a safetensors file. Raises ConfitError where that fails.

    safetensors creates a temporary file next to its target: what a killed process leaves of it goes with the hidden folder.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # cloned, since safetensors refuses tensors that share memory
    own = {
        name: torch.clone(tensor.detach().cpu(), memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with replacing(path) as temporary:
        try:
            save_file(own, temporary, metadata)
        except SafetensorError as error:  # a full disk, for example: safetensors raises no OSError for it
            raise ConfitError(f"{path}: cannot be written ({error})") from error
        temporary.chmod(
            temporary.parent.stat().st_mode & 0o666
        )  # as for any new file; safetensors makes its files private


def remove(path: Path) -> None:
    """Remove a tensor file, if it exists, and the partial one that a killed writer may have left."""
    path.unlink(missing_ok=True)
    remove_leftovers(path)
