"""Convolutions over time with a scale for each frame, against naive loops, and what they are for: quiet frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from confit_export.frames import quantize_per_frame, temporal_convolutions
from confit_export.quantize import Quantizer
from confit_runtime.session import open_session

Floats = npt.NDArray[np.float32]


def convolution(weight: Floats, bias: Floats | None = None, **attributes: object) -> onnx.ModelProto:
    """`pcm [batch, channels, time]` through one convolution."""
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    node = helper.make_node("Conv", ["pcm", *tensors], ["embedding"], "layer", **attributes)
    axes = ["batch", *(weight.shape[1] * int(attributes.get("group", 1)), "time", "more")[: weight.ndim - 1]]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, sound: Floats) -> Floats:
    return open_session(model.SerializeToString(), 1).run(["embedding"], {"pcm": sound})[0]


def naive(sound: Floats, weight: Floats, bias: Floats, stride: int, pad: tuple[int, int], bits: int) -> Floats:
    """Place by place: the frames under the kernel rounded to 127 steps of their own peak, times the rounded weights."""
    out, _, kernel = weight.shape
    top = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=(1, 2)) / top
    rounded = np.rint(weight / scale[:, None, None])
    padded = np.pad(sound, ((0, 0), (0, 0), pad))
    places = (padded.shape[2] - kernel) // stride + 1
    result = np.zeros((len(sound), out, places), np.float32)
    for one in range(len(sound)):
        for place in range(places):
            under = padded[one, :, place * stride : place * stride + kernel]
            step = max(float(np.abs(under).max()), 1e-12) / 127
            for channel in range(out):
                summed = (np.rint(under / step) * rounded[channel]).sum()
                result[one, channel, place] = summed * step * scale[channel] + bias[channel]
    return result


@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 3), pad=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    bits=st.sampled_from([7, 8]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_it_is_what_naive_loops_give(kernel: int, stride: int, pad: tuple[int, int], bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((5, 3, kernel)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    sound = rng.standard_normal((2, 3, 11)).astype(np.float32) * rng.choice([1e-3, 1.0], (2, 1, 11)).astype(np.float32)
    model = convolution(weight, bias, strides=[stride], pads=list(pad))
    quantised = quantize_per_frame(model, {"layer"}, bits)
    found, expected = run(quantised, sound), naive(sound, weight, bias, stride, pad, bits)
    assert found.shape == run(model, sound).shape
    off = ~np.isclose(found, expected, rtol=1e-3, atol=1e-4)
    assert off.mean() < 0.05  # a quotient on the edge between two steps may fall to either side


def test_a_silent_sound_gives_the_bias() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)
    quantised = quantize_per_frame(convolution(weight, bias), {"layer"}, 7)
    np.testing.assert_array_equal(run(quantised, np.zeros((1, 3, 6), np.float32)), np.tile(bias[:, None], (1, 1, 4)))


def test_a_quiet_frame_keeps_its_direction_where_a_fixed_scale_loses_it() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 16, 3)).astype(np.float32)
    sound = rng.standard_normal((1, 16, 60)).astype(np.float32)
    sound[:, :, 30:] *= 1e-3  # 60 dB below
    model = convolution(weight)
    exact = run(model, sound)[0, :, 32:]

    def cosine(other: onnx.ModelProto) -> float:
        quiet = run(other, sound)[0, :, 32:]
        return float((quiet * exact).sum() / (np.linalg.norm(quiet) * np.linalg.norm(exact) + 1e-12))

    quantizer = Quantizer.calibrate(
        model, "weight-only", "portable", (), [], "minmax"
    )  # its error is of the weights alone
    assert cosine(quantize_per_frame(model, {"layer"}, 7)) > 0.999
    assert cosine(quantizer(quantizer.layers)) > 0.999
    step = np.abs(sound).max() / 127
    fixed = run(model, (np.rint(sound / step) * step).astype(np.float32))[0, :, 32:]
    assert np.abs(fixed).max() == 0


def test_neighbours_in_a_batch_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    quantised = quantize_per_frame(convolution(rng.standard_normal((4, 3, 2)).astype(np.float32)), {"layer"}, 7)
    quiet, loud = (level * rng.standard_normal((1, 3, 9)).astype(np.float32) for level in (0.01, 10.0))
    np.testing.assert_array_equal(run(quantised, np.concatenate([loud, quiet]))[1:], run(quantised, quiet))


@pytest.mark.parametrize(
    ("shape", "attributes", "supported"),
    [
        ((4, 3, 3), {}, True),
        ((4, 3, 7), {"strides": [2]}, True),
        ((4, 3, 7), {}, False),  # each frame would be laid out seven times
        ((4, 1, 3), {"group": 3}, False),
        ((4, 3, 3), {"dilations": [2]}, False),
        ((4, 1, 3), {}, False),  # of sound itself
        ((4, 3, 3, 3), {}, False),
    ],
)
def test_what_it_takes(shape: tuple[int, ...], attributes: dict[str, object], supported: bool) -> None:
    model = convolution(np.ones(shape, np.float32), **attributes)
    assert temporal_convolutions(model) == ({"layer"} if supported else set())


def test_no_weight_is_left_in_fp32() -> None:
    model = convolution(np.ones((64, 64, 3), np.float32))
    quantised = quantize_per_frame(model, {"layer"}, 7)
    assert quantised.ByteSize() < 0.35 * model.ByteSize()
    assert {node.op_type for node in quantised.graph.node} >= {"MatMulInteger", "QuantizeLinear"}
