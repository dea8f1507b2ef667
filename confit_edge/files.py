"""The files of a run, written whole or not at all: a killed process leaves the former file or the new one.

A run has one writer at a time, so what a killed one leaves has a name by which the next one clears it away; files that
several processes may write at once are written by `confit_runtime.files`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import naming


def check_folder(out: Path, what: str) -> None:
    """Raise UsageError where `out` cannot be a folder for `what`, since a file is there or above it."""
    if out.is_file():
        raise UsageError(f"{out}: is a file; -o names a folder for the {what}")
    if in_the_way := [parent for parent in out.parents if parent.is_file()]:
        raise UsageError(f"{out}: cannot be made a folder, for {in_the_way[0]} is a file")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`."""
    temporary = _partial(path)
    with naming(path), temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
