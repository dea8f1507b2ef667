"""What a kind of processor wants of int8, from optimum's presets where they serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Target = Literal["portable", "avx2", "avx512-vnni", "arm64"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Preset:
    """Types of int8: uint8 activations per tensor always, weights as said here.

    `reduce_range` gives weights 7 bits: before VNNI, x86 adds two products of uint8 and int8 in 16 bits, which 8-bit
    weights overflow (2 x 255 x 127 > 32767 >= 2 x 255 x 64), silently.
    """

    activations: Any  # onnxruntime.quantization.QuantType
    weights: Any
    per_channel: bool
    reduce_range: bool

    @property
    def weight_bits(self) -> int:
        return 7 if self.reduce_range else 8


def preset(target: Target) -> Preset:
    """The types for a target.

    optimum's own avx2 preset takes uint8 weights, whose kernels run at less than half the rate of int8 ones; its
    avx512 preset with a reduced range is what such a processor wants, and what is safe on every other.
    """
    from optimum.onnxruntime.configuration import AutoQuantizationConfig as Presets

    chosen = {
        "portable": lambda: Presets.avx512(is_static=True, reduce_range=True),
        "avx2": lambda: Presets.avx512(is_static=True, reduce_range=True),
        "avx512-vnni": lambda: Presets.avx512_vnni(is_static=True),
        "arm64": lambda: Presets.arm64(is_static=True),
    }[target]()
    return Preset(chosen.activations_dtype, chosen.weights_dtype, chosen.per_channel, chosen.reduce_range)
