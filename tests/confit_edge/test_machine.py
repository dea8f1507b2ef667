"""The machine that trains: its device, its precision and its memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from confit_edge.pairtune.machine import (
    out_of_memory_explained,
    pick_device,
    pick_precision,
    remarks_on_machine,
)
from confit_runtime.errors import ConfitError, UsageError


def test_auto_precision_is_one_of_the_two() -> None:
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) in ("fp32", "bf16")
    assert pick_precision("fp32", cpu) == "fp32"
    assert pick_precision("bf16", cpu) == "bf16"


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_a_gpu_that_only_emulates_bf16_trains_in_fp32(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of a GPU that is not here: torch's own question is answered, by what its cards would say
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or capability >= (8, 0)
    )
    gpu = torch.device("cuda")
    assert pick_precision("auto", gpu) == precision
    assert list(remarks_on_machine("fp32", gpu)) == []
    notes = list(remarks_on_machine("bf16", gpu))
    assert notes == ([] if precision == "bf16" else [notes[0]])
    assert all("this cuda only emulates it" in one for one in notes)


def test_a_note_says_that_the_precision_of_the_launcher_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for launchers, warned in (("no", False), ("fp32", False), ("fp16", True)):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launchers)
        notes = list(remarks_on_machine("fp32", torch.device("cpu")))
        assert notes == (["accelerate's mixed_precision (fp16) is ignored: --precision is fp32"] if warned else [])


def test_out_of_memory_errors_say_what_needs_less() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory: 8 GB"),
    ):
        with pytest.raises(ConfitError, match=r"not enough memory .*--chunk-size"), out_of_memory_explained():
            raise error
    with pytest.raises(RuntimeError, match="sizes differ"), out_of_memory_explained():
        raise RuntimeError("sizes differ")


@pytest.mark.parametrize("name", ["cuda:99", "abacus"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}"):
        pick_device(name)


FREED = """
import os
from pathlib import Path

import torch

from confit_edge.pairtune.machine import keep_freed_memory


def held_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def use_and_free():  # by how much the process has grown of it
    before = held_mb()
    tensor = torch.ones(100_000_000)
    assert held_mb() > before + 350
    del tensor
    return held_mb() - before


before = held_mb()
with keep_freed_memory():
    with keep_freed_memory():
        assert use_and_free() > 350
    assert held_mb() > before + 350  # the inner one was of the outer
assert held_mb() < before + 50
assert use_and_free() < 50
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_given_back_when_the_training_is_over() -> None:
    # in a process of its own: what other tests freed would be used first
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
