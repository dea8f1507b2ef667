"""Where a training runs, and in what precision."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any

import torch

from confit_edge.pairtune.config import Precision
from confit_runtime.errors import UsageError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
KEPT_BYTES = 2**31 - 1  # the largest an int holds


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one, else the CPU) or a torch device by name. Raises UsageError for one not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from error
    return device


def pick_precision(name: Precision, device: torch.device) -> Precision:
    """`auto` becomes bf16 where the device computes in it natively, else fp32; other names stay."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if device.type == "cpu" and (able.get("avx512_bf16") or able.get("amx_bf16")) else "fp32"


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones: a sixth off a training step on a CPU.

    Else a large tensor is given back to the system each time and its pages are made anew, zeroed, for the next. Where
    the C library is another nothing happens.
    """
    if sys.platform != "linux" or (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is None:
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def mixed_precision(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 where the recipe asks for it."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
