"""The device, precision and memory of a training."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch

from confit_edge.recipe import Precision
from confit_runtime.errors import ConfitError, UsageError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
TRIM_THRESHOLD_BYTES = 2**31 - 1  # the largest C int
# glibc raises its thresholds up to these values as large blocks are freed; once one is set, that stops
DEFAULT_LIMITS = {M_MMAP_MAX: 65_536, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26}
_malloc_lock, _keep_count = threading.Lock(), 0


def named_device(name: str) -> torch.device:
    """The torch device of a name, untried; `auto` is CUDA where available, else the CPU. Raises UsageError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise _unusable(name, error) from error


def pick_device(name: str) -> torch.device:
    """As `named_device`, after a trial computation on it. Raises UsageError for a device that is not usable here."""
    device = named_device(name)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _unusable(name, error) from error
    return device


def _unusable(name: str, error: Exception) -> UsageError:
    return UsageError(f"--device {name}: not usable here ({str(error).splitlines()[0]})")


def pick_precision(name: Precision, device: torch.device) -> Precision:
    """The precision to use: `auto` becomes bf16 where the device supports it natively, else fp32."""
    if name != "auto":
        return name
    return "bf16" if _computes_in_bf16(device) else "fp32"


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def remarks_on_machine(precision: Precision, device: torch.device) -> Iterator[str]:
    """Notes for the user about the precision of a training."""
    if precision == "bf16" and not _computes_in_bf16(device):
        yield f"--precision bf16: this {device.type} only emulates it, which saves memory but is slower than fp32"
    if (launchers := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("no", precision):
        yield f"accelerate's mixed_precision ({launchers}) is ignored: --precision is {precision}"


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let glibc keep the memory of freed tensors for the next ones; a training step on a CPU takes a sixth less time.

    Otherwise the memory of every large tensor goes back to the system, which must zero new pages for the next one. The
    outermost of nested uses gives the memory back at its end and restores the usual settings. With another C library this
    does nothing.
    """
    global _keep_count
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    with _malloc_lock:
        _keep_count += 1
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    try:
        yield
    finally:
        with _malloc_lock:
            _keep_count -= 1
            if not _keep_count:
                for option, default_limit in DEFAULT_LIMITS.items():
                    libc.mallopt(option, default_limit)
                libc.malloc_trim(0)


def random_state_restored(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Restore torch's random generators, of the CPU and of the device, after the code inside has used or seeded them."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextlib.contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Raise ConfitError with advice where the memory of the machine or the GPU runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ConfitError(
            "not enough memory for this training: try --chunk-size 8 (the same batches and gradients, a few clips at a"
            " time), then fewer classes or clips per batch, a shorter --window, or --precision bf16"
        ) from error


def mixed_precision(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 if that is the precision, else a context that does nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
