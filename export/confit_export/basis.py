"""Writes the DFT basis of a front end as the few numbers it is made of; whole, it is a third of a small model's file.

onnxruntime computes the basis once, when it loads the model, so it costs nothing per call. onnxruntime also keeps the
intermediate results, so these are as small as possible: 32 bits per number, and both waves in one tensor.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import nn

from confit_edge.encoders.front_end import Spectrum


def compute_basis_at_load(graph: onnx.GraphProto, model: nn.Module) -> None:
    """Replace each initializer that holds the basis of one of the model's `Spectrum` layers with nodes that compute it.

    The basis is window * cos and -window * sin of 2 pi / fft * bin * tap. Both repeat every `fft`, so one period of each and
    the window are enough. A front end that does more to its frames before the window stays as it is.
    """
    for layer in [module for module in model.modules() if isinstance(module, Spectrum) and module.plain]:
        basis = layer.weight.numpy()
        for tensor in [tensor for tensor in graph.initializer if list(tensor.dims) == list(basis.shape)]:
            if np.array_equal(numpy_helper.to_array(tensor), basis):
                _replace_basis(graph, tensor, layer)


def _replace_basis(graph: onnx.GraphProto, tensor: onnx.TensorProto, layer: Spectrum) -> None:
    name = tensor.name
    period = 2 * math.pi / layer.fft * np.arange(layer.fft, dtype=np.float64)
    parts = {
        "bins": np.arange(layer.first, layer.last + 1, dtype=np.int32)[:, None],
        "taps": np.arange(layer.taps, dtype=np.int32) + (layer.fft - layer.taps) // 2,
        "fft": np.array(layer.fft, np.int32),
        "period": np.stack([np.cos(period), -np.sin(period)]).astype(np.float32),
        "window": layer.window.float().numpy(),
        "shape": np.array([-1, 1, layer.taps], np.int64),
    }
    graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(value, f"{name}_{part}") for part, value in parts.items())
    steps = [
        ("Mul", ["bins", "taps"], "product", {}),
        ("Mod", ["product", "fft"], "phase", {}),
        ("Gather", ["period", "phase"], "waves", {"axis": 1}),
        ("Mul", ["waves", "window"], "windowed", {}),
        ("Reshape", ["windowed", "shape"], "", {}),
    ]
    nodes = [
        helper.make_node(
            kind,
            [f"{name}_{part}" for part in inputs],
            [f"{name}_{out}" if out else name],
            f"{name}_{out}_{kind}",
            **attributes,
        )
        for kind, inputs, out, attributes in steps
    ]
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])
