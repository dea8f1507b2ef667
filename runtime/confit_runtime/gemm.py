"""How fast this machine multiplies: matrix products of onnxruntime in fp32 and int8, with one thread.

The products are ONNX models of one node, built here, so the measured library is the one that runs the models.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_runtime.protobuf import bytes_field, number_field, text_field
from confit_runtime.session import open_session

SIZE = 512  # large enough to reach peak speed, small enough for the second-level cache
FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6  # onnx.TensorProto.DataType
_PRODUCTS = {"float32": ("MatMul", FLOAT, FLOAT, FLOAT), "int8": ("MatMulInteger", UINT8, INT8, INT32)}


@dataclass(frozen=True)
class Rates:
    """Multiply-adds per second of one thread: fp32, and int8 with unsigned activations and signed weights."""

    fp32: float
    int8: float


def measure_rates(seconds: float = 0.5) -> Rates:
    """The rates of this machine, each from the fastest product within `seconds` of processor time."""
    rng = np.random.default_rng(0)
    fp32 = rng.standard_normal((2, SIZE, SIZE)).astype(np.float32)
    activations = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    weights = rng.integers(-127, 128, (SIZE, SIZE), dtype=np.int8)
    return Rates(_rate(fp32[0], fp32[1], seconds), _rate(activations, weights, seconds))


def processor() -> str:
    """The processor's own name, if the system provides it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def saturates() -> bool:
    """Whether this processor adds products of uint8 and int8 in 16 bits (x86 without VNNI), which overflows for large ones.

    Tests one such product. Models with 7-bit weights (`--target portable`) are correct even so.
    """
    largest = np.full((1, 4), 255, np.uint8)
    weight = np.full((4, 1), 127, np.int8)
    (out,) = open_session(product(1, weight), threads=1).run(None, {"a": largest})
    return int(out[0, 0]) != 4 * 255 * 127


def product(rows: int, weight: npt.NDArray[Any]) -> bytes:
    """A serialised ONNX model `out = a @ weight` for `a [rows, depth]` and `weight [depth, columns]`.

    A float32 weight takes and returns float32; an int8 weight takes uint8 and returns int32.
    """
    operator, given, kept, made = _PRODUCTS[weight.dtype.name]
    depth, columns = weight.shape
    node = text_field(1, "a") + text_field(1, "weight") + text_field(2, "out") + text_field(4, operator)
    tensor = number_field(1, depth) + number_field(1, columns) + number_field(2, kept)
    tensor += text_field(8, "weight") + bytes_field(9, weight.tobytes())
    graph = bytes_field(1, node) + text_field(2, "product") + bytes_field(5, tensor)
    graph += bytes_field(11, _value("a", given, rows, depth)) + bytes_field(12, _value("out", made, rows, columns))
    opset = text_field(1, "") + number_field(2, 17)
    return number_field(1, 8) + bytes_field(7, graph) + bytes_field(8, opset)


def _value(name: str, kind: int, *shape: int) -> bytes:
    sizes = b"".join(bytes_field(1, number_field(1, size)) for size in shape)
    return text_field(1, name) + bytes_field(2, bytes_field(1, number_field(1, kind) + bytes_field(2, sizes)))


def _rate(a: npt.NDArray[Any], weight: npt.NDArray[Any], seconds: float) -> float:
    """Multiply-adds per second of the fastest call, by the processor time of this thread, which does all the work."""
    session = open_session(product(len(a), weight), threads=1)
    best, end = float("inf"), time.thread_time() + seconds
    while (start := time.thread_time()) < end:
        session.run(None, {"a": a})
        best = min(best, time.thread_time() - start)
    return len(a) * weight.size / best
