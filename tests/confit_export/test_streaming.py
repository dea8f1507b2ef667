"""A streamed stack equals computing each window anew, for any stack that can stream; any other is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

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


@settings(max_examples=60, deadline=None)
@given(
    described=st.lists(layers_1d(), min_size=1, max_size=4), hops=st.lists(st.integers(1, 4), min_size=1, max_size=5)
)
def test_any_stack_of_valid_layers_streams_exactly(
    described: list[tuple[nn.Module, int, int]], hops: list[int]
) -> None:
    check_streaming(described, hops, ())


@settings(max_examples=30, deadline=None)
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
        (lambda: nn.AdaptiveAvgPool1d(1), "neither"),
        (lambda: nn.AdaptiveMaxPool2d(1), "neither"),
        (lambda: nn.MultiheadAttention(8, 2), "neither"),
        (lambda: nn.TransformerEncoderLayer(8, 2), "neither"),
        (lambda: nn.GRU(3, 3), "neither"),
        (lambda: nn.BatchNorm1d(3), "neither"),
        (lambda: nn.ConvTranspose1d(3, 3, 2), "neither"),
        (Attention, "neither"),
    ],
)
def test_a_layer_that_cannot_stream_is_refused_by_name(make: Callable[[], nn.Module], reason: str) -> None:
    layer = make()
    with pytest.raises(ConfitError, match=rf"layer 1 \({type(layer).__name__}\)") as caught:
        StreamingStack([nn.ReLU(), layer])
    assert reason in str(caught.value)


def test_no_padding_may_be_written_as_valid() -> None:
    assert StreamingStack([nn.Conv1d(3, 3, 4, padding="valid")]).keeps == [3]
