"""The files of a run, written whole or not at all: a killed process leaves the former file or the new one.

A run has one writer at a time, see `alone`, so what a killed one leaves of its tensors has a name by which the next one
clears it away; all else is written by `confit_runtime.files`, as several processes may at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import lock, make_folder, write_whole


def check_folder(out: Path, what: str) -> None:
    """Raise UsageError where `out` cannot be a folder for `what`, since a file is there or above it."""
    if out.is_file():
        raise UsageError(f"{out}: is a file; -o names a folder for the {what}")
    if in_the_way := [parent for parent in out.parents if parent.is_file()]:
        raise UsageError(f"{out}: cannot be made a folder, for {in_the_way[0]} is a file")


@contextmanager
def alone(out: Path, what: str) -> Iterator[None]:
    """Be the only process that makes the `what` in the folder `out`. Raises UsageError where another does.

    The folder is made where there is none, and goes away again where nothing was written into it. What is locked is the
    folder itself, so that no file is left, nor a lock by a process that was killed; Windows cannot open a folder.
    """
    check_folder(out, what)
    if os.name == "nt":
        yield
        return
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    descriptor = _locked(out)
    if descriptor is None:
        raise UsageError(f"{out}: this {what} is being made by another process; wait for it, or choose another -o")
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # something is in it
                folder.rmdir()
        os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """The folder, made, opened and locked; None where another process has it."""
    while True:
        if not folder.exists():
            make_folder(folder)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # who had made it took it away meanwhile
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
    write_whole(path, text.encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors`, wherever they lie, to a safetensors file. Raises ConfitError where it cannot be written.

    They are written inside a hidden folder, since safetensors lays a file of its own beside the one it is told to write
    and a killed process leaves it there: the next to write or remove this file removes the folder with all that is in it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # cloned, since safetensors refuses tensors that share memory
    own = {
        name: torch.clone(tensor.detach().cpu(), memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    folder = _partial(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    temporary = folder / path.name
    try:
        save_file(own, temporary, metadata)
    except SafetensorError as error:  # a full disk, which it does not tell as an OSError
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfitError(f"{path}: cannot be written ({error})") from error
    temporary.chmod(folder.stat().st_mode & 0o666)  # as of any new file; safetensors lets nobody else read its own
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    folder.rmdir()


def remove(path: Path) -> None:
    """Remove a file of these, if it is there, and what a killed writer left of it."""
    path.unlink(missing_ok=True)
    shutil.rmtree(_partial(path), ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
