"""A DFT basis made at load is the basis that was stored, to a rounding, and one it cannot make is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from confit_edge.encoders.front_end import Spectrum
from confit_export.basis import compute_basis_at_load
from confit_runtime.session import open_session


def graph_of(layer: Spectrum) -> onnx.ModelProto:
    """The basis itself, as a graph's only output."""
    tensor = numpy_helper.from_array(layer.weight.numpy(), "basis")
    entry = helper.make_tensor_value_info("pcm", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, None, None])
    node = helper.make_node("Add", ["basis", "pcm"], ["out"])
    graph = helper.make_graph([node], "basis", [entry], [out], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "options",
    [
        {"fft": 512, "taps": 400, "hop": 160, "first": 2, "last": 121, "scale": 32768.0},
        {"fft": 400, "taps": 400, "hop": 160, "first": 1, "last": 199},
        {"fft": 512, "taps": 401, "hop": 160, "first": 0, "last": 256, "periodic": False},
    ],
)
def test_the_basis_is_the_same_to_a_rounding_and_the_file_far_smaller(options: dict[str, int]) -> None:
    layer = Spectrum(**options)
    stored = graph_of(layer)
    copied = onnx.ModelProto()
    copied.CopyFrom(stored)
    compute_basis_at_load(copied.graph, torch.nn.Sequential(layer))
    onnx.checker.check_model(copied)
    assert copied.ByteSize() < stored.ByteSize() / 20
    (found,) = open_session(copied.SerializeToString(), 1).run(None, {"pcm": np.zeros(1, np.float32)})
    np.testing.assert_allclose(found, layer.weight.numpy(), rtol=0, atol=2e-7 * float(layer.weight.max()))


def test_what_is_more_than_a_window_and_a_dft_is_left_alone() -> None:
    layer = Spectrum(fft=64, taps=64, hop=16, first=0, last=32, before=torch.eye(64, dtype=torch.float64) * 0.5)
    stored = graph_of(layer)
    copied = onnx.ModelProto()
    copied.CopyFrom(stored)
    compute_basis_at_load(copied.graph, layer)
    assert copied.SerializeToString() == stored.SerializeToString()
