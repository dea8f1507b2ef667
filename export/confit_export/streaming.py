"""Turns a stack of valid convolutions and poolings into its streaming form, exactly.

A layer that looks at `span` frames and moves by `stride` needs the last `span - stride` frames of its input again at
the next call: that is its whole state. A layer that looks at one frame at a time needs none. Anything else is refused
by name, for a layer that pads or attends over time has no exact streaming form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from confit_runtime.errors import ConfitError

_WINDOWED = (nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
_POINTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardswish,
    nn.ReLU6,
    nn.Dropout,
)


class StreamingStack(nn.Module):
    """Runs `layers` on any number of whole hops: `forward(x, states) -> (y, new states)`; time is dimension 2.

    A module of another class counts as pointwise in time when it says so with `pointwise_in_time = True`.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.keeps = [_kept_frames(index, layer) for index, layer in enumerate(layers)]

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        carried, following = list(states), []
        for layer, keep in zip(self.layers, self.keeps, strict=True):
            if keep:
                x = torch.cat([carried.pop(0), x], dim=2)
                following.append(x[:, :, -keep:])
            x = layer(x)
        return x, following

    @torch.no_grad()
    def state_shapes(self, example: Tensor) -> list[list[int]]:
        """The shape of each state without the streams axis; `example` is one hop of input `[1, ...]`."""
        shapes: list[list[int]] = []
        for layer, keep in zip(self.layers, self.keeps, strict=True):
            if keep:
                shape = [*example.shape[1:2], keep, *example.shape[3:]]
                shapes.append(shape)
                example = torch.cat([torch.zeros(1, *shape), example], dim=2)
            example = layer(example)
        return shapes


def _kept_frames(index: int, layer: nn.Module) -> int:
    """How many frames of its input a layer carries to the next call. Raises ConfitError for one that cannot stream."""
    name = f"layer {index} ({type(layer).__name__})"
    if isinstance(layer, _POINTWISE) or getattr(layer, "pointwise_in_time", False):
        return 0
    if not isinstance(layer, _WINDOWED):
        raise ConfitError(
            f"{name} cannot stream: it is neither pointwise in time nor a convolution or pooling over time"
        )
    kernel, stride, padding, dilation = (
        _first(getattr(layer, key, default))
        for key, default in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    )
    if padding not in (0, "valid"):
        raise ConfitError(
            f"{name} cannot stream: it pads time by {padding!r}; only unpadded (valid) layers give the same result in parts"
        )
    if getattr(layer, "ceil_mode", False):
        raise ConfitError(f"{name} cannot stream: ceil_mode pads the end of time")
    keep = (kernel - 1) * dilation + 1 - stride
    if keep < 0:
        raise ConfitError(
            f"{name} cannot stream: it skips frames (span {(kernel - 1) * dilation + 1} < stride {stride})"
        )
    return keep


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
