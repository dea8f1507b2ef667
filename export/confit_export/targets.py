"""The int8 types that suit each kind of processor, taken from optimum's presets where those fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Target = Literal["portable", "avx2", "avx512-vnni", "arm64"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Preset:
    """The int8 types of a target: uint8 activations, always per tensor, and the weights that the fields describe.

    `reduce_range` gives weights 7 bits. Before VNNI, x86 adds two products of uint8 and int8 in 16 bits, and 8-bit weights
    overflow that silently (2 x 255 x 127 > 32767 >= 2 x 255 x 64).
    """

    activations: Any  # onnxruntime.quantization.QuantType
    weights: Any
    per_channel: bool
    reduce_range: bool

    @property
    def weight_bits(self) -> int:
        return 7 if self.reduce_range else 8


def preset(target: Target) -> Preset:
    """Return the types for a target.

    optimum's own avx2 preset uses uint8 weights, whose kernels run at less than half the rate of int8 ones. Its avx512
    preset with a reduced range suits such a processor, and is safe on every other.
    """
    from optimum.onnxruntime.configuration import AutoQuantizationConfig as Presets

    chosen = {
        "portable": lambda: Presets.avx512(is_static=True, reduce_range=True),
        "avx2": lambda: Presets.avx512(is_static=True, reduce_range=True),
        "avx512-vnni": lambda: Presets.avx512_vnni(is_static=True),
        "arm64": lambda: Presets.arm64(is_static=True),
    }[target]()
    return Preset(chosen.activations_dtype, chosen.weights_dtype, chosen.per_channel, chosen.reduce_range)
