"""Turns a stack of causal layers into its streaming form, exactly.

A convolution or pooling that looks at `span` frames and moves by `stride` needs the last `span - stride` frames of its
input again at the next call; a recurrent layer needs its own memory. That is the whole state. A layer that looks at one
frame at a time needs none. Any other layer is refused by name, because a layer that pads, attends or takes statistics over
time has no exact streaming form. So is a subclass that computes its output itself: what it computes is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from confit_edge.encoders.front_end import Spectrum
from confit_runtime.errors import ConfitError

_CONVOLUTIONS = (Spectrum, nn.Conv1d, nn.Conv2d)
_POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
_POINTWISE = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
)
_FRAME_BY_FRAME = (nn.Linear, nn.LayerNorm)  # layers over the last axis, so they are given the channels there
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_KNOWN = (nn.Sequential, *_CONVOLUTIONS, *_POOLINGS, *_RECURRENT, *_POINTWISE, *_FRAME_BY_FRAME, *_NORMS)
_METHODS = ("forward", "_conv_forward")  # that compute a layer's output
_REASONS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder), "it attends over all of time"),
    ((nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d), "it takes its statistics over all of time"),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), "it pools over all of time"),
    ((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), "it pools over all of time"),
    ((nn.ConstantPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d), "it pads time"),
)


class StreamingStack(nn.Module):
    """Runs `layers` on any number of whole hops: `forward(x, states) -> (y, new states)`; in evaluation mode.

    `x` is `[streams, channels, time]`, or `[streams, channels, time, height]` where height may be padded. Containers
    (`nn.Sequential`) are taken apart. Recurrent layers, `nn.Linear` and `nn.LayerNorm` expect channels last, so they get a
    three-dimensional `x` as frames `[streams, time, channels]`. A module of any other class, or of a subclass with a `forward`
    of its own, is pointwise in time if it declares `pointwise_in_time = True`. Raises ConfitError that names the layer that
    cannot stream and the reason.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        named = [entry for index, layer in enumerate(layers) for entry in _leaves(f"{index}", layer)]
        self.layers = nn.ModuleList(layer for _, layer in named)
        self.names = [f"layer {name} ({type(layer).__name__})" for name, layer in named]
        self.kept_frames = [_kept_frames(name, layer) for name, layer in zip(self.names, self.layers, strict=True)]
        self.eval()

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        unused_states, new_states = list(states), []
        for name, layer, kept in zip(self.names, self.layers, self.kept_frames, strict=True):
            if isinstance(layer, _RECURRENT):
                layer_states = [unused_states.pop(0) for _ in range(_state_count(layer))]
                x, updated = _run_recurrent(layer, _check_3d(name, x), layer_states)
                new_states += updated
            elif isinstance(layer, _FRAME_BY_FRAME) and x.dim() == 3:
                x = layer(x.transpose(1, 2)).transpose(1, 2)
            else:
                if kept:
                    x = torch.cat([unused_states.pop(0), x], dim=2)
                    new_states.append(x[:, :, -kept:])
                x = layer(x)
        return x, new_states

    @torch.no_grad()
    def state_shapes(self, example: Tensor) -> list[list[int]]:
        """The shape of each state without the streams axis; `example` is one hop of input `[1, ...]`."""
        shapes: list[list[int]] = []
        for name, layer, kept in zip(self.names, self.layers, self.kept_frames, strict=True):
            layer_shapes: list[list[int]] = []
            if isinstance(layer, _RECURRENT):
                layer_shapes = [[layer.num_layers, layer.hidden_size]] * _state_count(layer)
            elif kept:
                layer_shapes = [[example.shape[1], kept, *example.shape[3:]]]
            single = StreamingStack([layer])
            single.names = [name]
            example, _ = single(example, [torch.zeros(1, *shape) for shape in layer_shapes])
            shapes += layer_shapes
        return shapes


def _leaves(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of nested containers in order, each with its position."""
    if isinstance(layer, nn.Sequential) and _overridden_method(layer) is None:
        for inner, child in layer.named_children():
            yield from _leaves(f"{name}.{inner}", child)
    else:
        yield name, layer


def _overridden_method(layer: nn.Module) -> str | None:
    """The method of a known torch class that this subclass or instance replaces, so that it may compute anything.

    A hook replaces what `forward` returns or is given; that of `weight_norm` only computes the weights.
    """
    hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]
    if not all(isinstance(hook, WeightNorm) for hook in hooks):
        return "forward hook"
    known = next((kind for kind in _KNOWN if isinstance(layer, kind)), None)
    for method in _METHODS:
        if hasattr(known, method) and getattr(getattr(layer, method), "__func__", None) is not getattr(known, method):
            return method
    return None


def _kept_frames(name: str, layer: nn.Module) -> int:
    """How many frames of its input a layer carries to the next call. Raises ConfitError for one that cannot stream."""

    def cannot_stream(reason: str) -> ConfitError:
        return ConfitError(f"{name} cannot stream: {reason}")

    if getattr(layer, "pointwise_in_time", False):
        return 0
    if method := _overridden_method(layer):
        raise cannot_stream(
            f"it has its own {method}, which may look at any frame; if it looks at one at a time, declare"
            " pointwise_in_time = True"
        )
    if isinstance(layer, (*_POINTWISE, nn.Linear)):
        return 0
    if isinstance(layer, _NORMS):
        if layer.running_mean is None:
            raise cannot_stream("it keeps no running statistics, and takes them over the time of each call instead")
        return 0
    if isinstance(layer, nn.LayerNorm):
        if len(layer.normalized_shape) > 1:
            raise cannot_stream(
                f"it normalises over {len(layer.normalized_shape)} axes, and one of them is time; use one axis"
            )
        return 0
    if isinstance(layer, _RECURRENT):
        if layer.bidirectional:
            raise cannot_stream("it is bidirectional, so it also reads from the end of the sound")
        if not layer.batch_first:
            raise cannot_stream("its batch axis comes second; make it with batch_first=True")
        if layer.proj_size:
            raise cannot_stream("a projected state (proj_size) has no ONNX form")
        return 0
    if not isinstance(layer, _CONVOLUTIONS + _POOLINGS):
        reasons = (reason for kinds, reason in _REASONS if isinstance(layer, kinds))
        raise cannot_stream(
            next(reasons, "it is neither pointwise in time nor a recurrent layer, convolution or pooling over time")
        )
    kernel, stride, padding, dilation = (
        _first(getattr(layer, key, default))
        for key, default in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    )
    if padding not in (0, "valid") and (padding, kernel) != ("same", 1):
        raise cannot_stream(
            f"it pads time by {padding!r}; only layers without padding (valid) give the same result in parts"
        )
    if getattr(layer, "ceil_mode", False):
        raise cannot_stream("ceil_mode pads the end of time")
    span = (kernel - 1) * dilation + 1
    if span < stride:
        raise cannot_stream(f"it skips frames (span {span} < stride {stride})")
    return span - stride


def _state_count(layer: nn.Module) -> int:
    """How many states a recurrent layer has: two for an LSTM (hidden state and cell), one for any other."""
    return 2 if isinstance(layer, nn.LSTM) else 1


def _run_recurrent(layer: Any, x: Tensor, initial_states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Run a recurrent layer on `x [streams, channels, time]` from states `[streams, layers, size]`; return both."""
    layers_first = [state.transpose(0, 1).contiguous() for state in initial_states]  # torch has layers before streams
    y, final = layer(x.transpose(1, 2), tuple(layers_first) if len(layers_first) > 1 else layers_first[0])
    final_states = final if isinstance(final, tuple) else (final,)
    return y.transpose(1, 2), [state.transpose(0, 1) for state in final_states]


def _check_3d(name: str, x: Tensor) -> Tensor:
    if x.dim() != 3:
        raise ConfitError(f"{name} cannot stream: it takes [streams, channels, time], but gets {x.dim()} axes")
    return x


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
