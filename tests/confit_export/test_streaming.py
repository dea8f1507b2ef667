"""A streamed stack equals the whole signal at once, for any stack that can stream; any other is refused by name."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from math import prod

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from confit_edge.encoders.front_end import Spectrum
from confit_export.graph import OPSET
from confit_export.streaming import StreamingStack
from confit_runtime.errors import ConfitError

CHANNELS, HEIGHT = 3, 5


class Doubled(nn.Module):
    """A layer of our own that looks at one frame at a time."""

    pointwise_in_time = True

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


@st.composite
def layers_1d(draw: st.DrawFn) -> tuple[nn.Module, int, int]:
    """A layer, its span and its stride in frames."""
    stride = draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2))
    kernel = draw(st.integers(1, 4).filter(lambda kernel: (kernel - 1) * dilation + 1 >= stride))
    span = (kernel - 1) * dilation + 1
    return draw(
        st.sampled_from(
            [
                (nn.Conv1d(CHANNELS, CHANNELS, kernel, stride=stride, dilation=dilation), span, stride),
                (nn.Conv1d(CHANNELS, CHANNELS, kernel, stride=stride, dilation=dilation, groups=3), span, stride),
                (nn.MaxPool1d(kernel, stride=stride, dilation=dilation), span, stride),
                (nn.AvgPool1d(kernel, stride=min(stride, kernel)), kernel, min(stride, kernel)),
                (nn.AvgPool1d(kernel), kernel, kernel),
                (nn.LeakyReLU(), 1, 1),
                (Doubled(), 1, 1),
            ]
        )
    )


@st.composite
def layers_2d(draw: st.DrawFn) -> tuple[nn.Module, int, int]:
    """The same over `[batch, channels, time, height]`; height may be padded."""
    stride = draw(st.integers(1, 2))
    kernel = draw(st.integers(stride, 3))
    return draw(
        st.sampled_from(
            [
                (nn.Conv2d(CHANNELS, CHANNELS, (kernel, 3), stride=(stride, 1), padding=(0, 1)), kernel, stride),
                (nn.MaxPool2d((kernel, 1), stride=(stride, 1)), kernel, stride),
                (nn.MaxPool2d((kernel, 3), stride=(stride, 1), padding=(0, 1)), kernel, stride),
                (nn.AvgPool2d((kernel, 1), stride=(stride, 1)), kernel, stride),
                (nn.GELU(), 1, 1),
            ]
        )
    )


def window_by_window(layers: list[nn.Module], x: Tensor, receptive: int, hop: int) -> list[Tensor]:
    """The oracle: for each hop, the whole stack anew on the frames it looks at."""
    ends = [end for end in range(hop, x.shape[2] + 1, hop) if end >= receptive]
    return [nn.Sequential(*layers)(x[:, :, end - receptive : end]) for end in ends]


def check_streaming(described: list[tuple[nn.Module, int, int]], hops: list[int], shape: tuple[int, ...]) -> None:
    layers, spans, strides = zip(*described, strict=True)
    hop = prod(strides)
    receptive = 1 + sum((span - 1) * prod(strides[:at]) for at, span in enumerate(spans))
    torch.manual_seed(0)
    x = torch.randn(2, CHANNELS, hop * (sum(hops) + -(-receptive // hop)), *shape)
    stack = StreamingStack(list(layers)).eval()
    shapes = stack.state_shapes(x[:1, :, :hop])
    states = [torch.zeros(2, *size) for size in shapes]
    parts, at = [], 0
    with torch.no_grad():
        for count in [*hops, -(-receptive // hop)]:
            y, states = stack(x[:, :, at : at + count * hop], states)
            assert y.shape[2] == count  # one row a hop
            assert [list(state.shape[1:]) for state in states] == shapes
            parts.append(y)
            at += count * hop
        expected = window_by_window(list(layers), x, receptive, hop)
        found = torch.cat(parts, dim=2)
    assert expected
    assert all(frame.shape[2] == 1 for frame in expected)
    np.testing.assert_allclose(found[:, :, -len(expected) :], torch.cat(expected, dim=2), atol=1e-5)


@settings(max_examples=60)
@given(
    described=st.lists(layers_1d(), min_size=1, max_size=4), hops=st.lists(st.integers(1, 4), min_size=1, max_size=5)
)
def test_any_stack_of_valid_layers_streams_exactly(
    described: list[tuple[nn.Module, int, int]], hops: list[int]
) -> None:
    check_streaming(described, hops, ())


@settings(max_examples=30)
@given(
    described=st.lists(layers_2d(), min_size=1, max_size=4), hops=st.lists(st.integers(1, 4), min_size=1, max_size=5)
)
def test_a_second_axis_may_be_padded_for_it_is_not_time(
    described: list[tuple[nn.Module, int, int]], hops: list[int]
) -> None:
    check_streaming(described, hops, (HEIGHT,))


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv1d(3, 3, 3, padding=1), "pads time by 1"),
        (lambda: nn.Conv2d(3, 3, 3, padding=(2, 0)), "pads time by 2"),
        (lambda: nn.Conv1d(3, 3, 3, padding="same"), "'same'"),
        (lambda: nn.MaxPool1d(3, padding=1), "pads time by 1"),
        (lambda: nn.AvgPool1d(3, padding=1), "pads time by 1"),
        (lambda: nn.MaxPool1d(3, ceil_mode=True), "ceil_mode"),
        (lambda: nn.Conv1d(3, 3, 2, stride=3), "skips frames"),
        (lambda: nn.AdaptiveAvgPool1d(1), "pools over all of time"),
        (lambda: nn.AdaptiveMaxPool2d(1), "pools over all of time"),
        (lambda: nn.MultiheadAttention(8, 2), "attends over all of time"),
        (lambda: nn.TransformerEncoderLayer(8, 2), "attends over all of time"),
        (lambda: nn.GroupNorm(1, 3), "statistics over all of time"),
        (lambda: nn.InstanceNorm1d(3), "statistics over all of time"),
        (lambda: nn.BatchNorm1d(3, track_running_stats=False), "no running statistics"),
        (lambda: nn.LayerNorm([3, 8]), "over 2 axes"),
        (lambda: nn.LSTM(3, 3, batch_first=True, bidirectional=True), "bidirectional"),
        (lambda: nn.GRU(3, 3), "batch_first=True"),
        (lambda: nn.LSTM(3, 3, batch_first=True, proj_size=2), "proj_size"),
        (lambda: nn.ConstantPad1d((2, 0), 0.0), "pads time"),
        (lambda: nn.ConvTranspose1d(3, 3, 2), "neither"),
        (Attention, "neither"),
    ],
)
def test_a_layer_that_cannot_stream_is_refused_by_name(make: Callable[[], nn.Module], reason: str) -> None:
    layer = make()
    with pytest.raises(ConfitError, match=rf"layer 1 \({type(layer).__name__}\)") as caught:
        StreamingStack([nn.ReLU(), layer])
    assert reason in str(caught.value)


def test_a_layer_inside_containers_is_named_by_where_it_stands() -> None:
    inside = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.GroupNorm(1, 3)))
    with pytest.raises(ConfitError, match=r"layer 0\.1\.1 \(GroupNorm\) cannot stream"):
        StreamingStack([inside])


def test_a_recurrent_layer_over_two_axes_is_refused() -> None:
    with pytest.raises(ConfitError, match=r"layer 0 \(GRU\) cannot stream: it takes \[streams, channels, time\]"):
        StreamingStack([nn.GRU(3, 3, batch_first=True)]).state_shapes(torch.zeros(1, 3, 2, 5))


def test_no_padding_may_be_written_as_valid() -> None:
    assert StreamingStack([nn.Conv1d(3, 3, 4, padding="valid")]).kept_frames == [3]
    assert StreamingStack([nn.Conv2d(3, 3, (1, 3), padding="same")]).kept_frames == [0]


# subclasses


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class PointwiseResidual(Residual):
    pointwise_in_time = True


class Causal(nn.Conv1d):
    """Pads with zeros before the first frame."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (self.kernel_size[0] - 1, 0)))


class CausalInside(nn.Conv1d):
    """The same, one method further in."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(nn.functional.pad(x, (self.kernel_size[0] - 1, 0)), weight, bias)


class RunningSum(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(dim=2)


class OverTime(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=2, keepdim=True)


class Backwards(nn.MaxPool1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(2))


class Residuals(nn.LSTM):
    def forward(self, x: Tensor, states: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, after = super().forward(x, states)
        return x + y, after


class Block(nn.Sequential):
    """A subclass that is only made in its own way."""

    def __init__(self) -> None:
        super().__init__(nn.Conv1d(CHANNELS, CHANNELS, 3), nn.ReLU())


def patched() -> nn.Module:
    layer = nn.ReLU()
    layer.forward = lambda x: x.cumsum(dim=2)  # type: ignore[method-assign]
    return layer


def hooked(container: bool) -> nn.Module:
    layer = nn.Sequential(nn.ReLU()) if container else nn.Conv1d(CHANNELS, CHANNELS, 2)
    layer.register_forward_hook(lambda _, given, y: y - y.mean(dim=2, keepdim=True))
    return layer


FAITHFUL: list[tuple[Callable[[], nn.Module], int]] = [  # a layer and its span
    (Block, 3),
    (lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(CHANNELS, CHANNELS, 2)), 2),
    (lambda: nn.utils.weight_norm(nn.Conv1d(CHANNELS, CHANNELS, 2)), 2),
    (lambda: PointwiseResidual(nn.Conv1d(CHANNELS, CHANNELS, 1), nn.ReLU()), 1),
]
UNKNOWN: list[Callable[[], nn.Module]] = [
    lambda: Residual(nn.Conv1d(CHANNELS, CHANNELS, 1), nn.ReLU()),
    lambda: nn.Sequential(nn.ReLU(), Residual(nn.Tanh())),
    lambda: Causal(CHANNELS, CHANNELS, 3),
    lambda: CausalInside(CHANNELS, CHANNELS, 3),
    RunningSum,
    lambda: OverTime(CHANNELS),
    lambda: Backwards(2),
    lambda: Residuals(CHANNELS, CHANNELS, batch_first=True),
    patched,
    lambda: hooked(container=False),
    lambda: hooked(container=True),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # the old one is still met in published code
@settings(max_examples=60)
@given(
    faithful=st.lists(st.sampled_from(FAITHFUL), min_size=1, max_size=3),
    unknown=st.none() | st.sampled_from(UNKNOWN),
    at=st.integers(0, 3),
    hops=st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_a_subclass_streams_exactly_or_is_refused_by_name(
    faithful: list[tuple[Callable[[], nn.Module], int]],
    unknown: Callable[[], nn.Module] | None,
    at: int,
    hops: list[int],
) -> None:
    torch.manual_seed(0)
    described = [(make().eval(), span, 1) for make, span in faithful]
    if unknown is None:
        check_streaming(described, hops, ())
        return
    layers = [layer for layer, _, _ in described]
    at = min(at, len(layers))
    with pytest.raises(ConfitError, match=rf"layer {at}[.1]* \(\w+\) cannot stream: it has its own (_conv_)?forward"):
        StreamingStack([*layers[:at], unknown(), *layers[at:]])


def test_a_spectrum_is_the_convolution_that_it_extends() -> None:
    spectrum = Spectrum(fft=16, taps=12, hop=4, first=0, last=8)
    assert StreamingStack([spectrum]).kept_frames == [8]


# stacks with memory, in torch and as ONNX


def convolution(stride: int, kernel: int) -> nn.Module:
    return nn.Conv1d(CHANNELS, CHANNELS, kernel, stride=stride)


def normalised() -> nn.Module:
    """Batch normalisation with statistics that are not those it is made with."""
    layer = nn.BatchNorm1d(CHANNELS)
    layer.running_mean, layer.running_var = torch.randn(CHANNELS), torch.rand(CHANNELS) + 0.5
    return layer


PARTS: list[tuple[Callable[[], nn.Module], int]] = [  # a layer and its stride
    (lambda: nn.LSTM(CHANNELS, CHANNELS, batch_first=True), 1),
    (lambda: nn.LSTM(CHANNELS, CHANNELS, num_layers=2, batch_first=True), 1),
    (lambda: nn.GRU(CHANNELS, CHANNELS, batch_first=True), 1),
    (lambda: nn.GRU(CHANNELS, CHANNELS, num_layers=2, batch_first=True, bias=False), 1),
    (lambda: nn.RNN(CHANNELS, CHANNELS, batch_first=True), 1),
    (lambda: nn.LayerNorm(CHANNELS), 1),
    (lambda: nn.Linear(CHANNELS, CHANNELS), 1),
    (normalised, 1),
    (lambda: convolution(1, 3), 1),
    (lambda: convolution(2, 3), 2),
    (lambda: nn.Sequential(convolution(2, 2), nn.Sequential(nn.GELU(), normalised())), 2),
    (lambda: nn.Sequential(nn.LSTM(CHANNELS, CHANNELS, batch_first=True), nn.MaxPool1d(2)), 2),
    (lambda: nn.AvgPool1d(3, stride=1), 1),
    (lambda: nn.LeakyReLU(), 1),
]


def at_once(layer: nn.Module, x: Tensor) -> Tensor:
    """The oracle: a layer over the whole of `[streams, channels, time]`; what it looks back at before the start is 0."""
    if isinstance(layer, nn.Sequential):
        for inner in layer:
            x = at_once(inner, x)
        return x
    if isinstance(layer, nn.LSTM | nn.GRU | nn.RNN):
        return layer(x.transpose(1, 2))[0].transpose(1, 2)
    if isinstance(layer, nn.LayerNorm | nn.Linear):
        return torch.stack([layer(frame) for frame in x.unbind(dim=2)], dim=2)
    span = getattr(layer, "kernel_size", 1)
    stride = getattr(layer, "stride", 1)
    span, stride = (value[0] if isinstance(value, tuple) else value for value in (span, stride))
    return layer(nn.functional.pad(x, (span - stride, 0)))


class Exported(nn.Module):
    """A streaming stack as the exporter takes one: states as separate inputs and outputs."""

    def __init__(self, stack: StreamingStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        y, after = self.stack(x, list(states))
        return y, *after


def session_of(stack: StreamingStack, shapes: list[list[int]], hop: int) -> onnxruntime.InferenceSession:
    names = [f"state_{index}" for index in range(len(shapes))]
    states = [torch.zeros(2, *shape) for shape in shapes]
    axes = {name: {0: "streams"} for name in ["x", *names]}
    axes["x"][2] = "time"
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Exported(stack).eval(),
            (torch.zeros(2, CHANNELS, 2 * hop), *states),
            file,
            input_names=["x", *names],
            output_names=["y", *(f"{name}_out" for name in names)],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])


@settings(max_examples=15)
@given(
    chosen=st.lists(st.integers(0, len(PARTS) - 1), min_size=1, max_size=4),
    hops=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    streams=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_stacks_with_memory_stream_exactly_in_torch_and_as_onnx(
    chosen: list[int], hops: list[int], streams: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layers = [PARTS[index][0]() for index in chosen]
    hop = prod(PARTS[index][1] for index in chosen)
    stack = StreamingStack(layers)
    shapes = stack.state_shapes(torch.zeros(1, CHANNELS, hop))
    session = session_of(stack, shapes, hop)
    x = torch.randn(streams, CHANNELS, hop * sum(hops))
    states = [torch.zeros(streams, *shape) for shape in shapes]
    memory = {f"state_{index}": state.numpy() for index, state in enumerate(states)}
    in_torch, in_onnx, at = [], [], 0
    with torch.no_grad():
        for count in hops:
            part = x[:, :, at : at + count * hop]
            y, states = stack(part, states)
            in_torch.append(y)
            found, *after = session.run(None, {"x": part.numpy(), **memory})
            memory = dict(zip(memory, after, strict=True))
            in_onnx.append(found)
            at += count * hop
        whole = at_once(nn.Sequential(*layers), x).numpy()
    assert whole.shape[2] == sum(hops)
    for streamed in (torch.cat(in_torch, dim=2).numpy(), np.concatenate(in_onnx, axis=2)):
        np.testing.assert_allclose(streamed, whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())
