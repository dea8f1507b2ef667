"""Computes convolutions over time in int8 with a scale per frame, so that quiet frames keep their precision next to loud ones.

A fixed scale spans the loudest frame of the calibration. A frame 40 dB below it is left with two levels of 8 bits, and the
layer norm that follows in attention encoders amplifies the rounding error. So a convolution over time is written as the
matrix product it is: the frames under its kernel are laid side by side, and each is divided by its own peak. A frame's scale
depends on the frame alone, neither on its neighbours in a batch nor on the rest of the sound.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MAX_COPIES = 4  # of a frame: it is copied for every step of the kernel that covers it
LEVELS = 127  # of an activation, on either side of zero
ZERO_POINT = 128  # the uint8 value that stands for zero
MIN_PEAK = 1e-12  # the peak of a silent frame


def temporal_convolutions(model: onnx.ModelProto) -> set[str]:
    """The convolutions that `quantize_per_frame` accepts: over one axis and several channels, neither grouped nor dilated."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return {node.name for node in model.graph.node if node.op_type == "Conv" and _is_supported(node, weights)}


def _is_supported(node: onnx.NodeProto, weights: dict[str, Collection[int]]) -> bool:
    shape, attributes = tuple(weights.get(node.input[1], ())), _attributes(node)
    plain = attributes.get("group", 1) == 1 and attributes.get("dilations", [1]) == [1]
    padded = attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    return len(shape) == 3 and shape[1] > 1 and plain and padded and shape[2] <= MAX_COPIES * _stride(node)


def quantize_per_frame(model: onnx.ModelProto, layers: Collection[str], weight_bits: int) -> onnx.ModelProto:
    """Return a copy of `model` whose `layers` (from `temporal_convolutions`) are int8 products with weights per channel."""
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in quantised.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in quantised.graph.node:
        if node.name in layers:
            nodes += _PerFrameConvolution(quantised.graph, node).nodes(
                numpy_helper.to_array(weights[node.input[1]]), weight_bits
            )
        else:
            nodes.append(node)
    del quantised.graph.node[:]
    quantised.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name, tensor in weights.items():
        if name not in used:
            quantised.graph.initializer.remove(tensor)
    del quantised.graph.value_info[:]
    return quantised


def quantize_weight(values: np.ndarray, axis: int, limit: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """Round `values` to int8 of at most `limit`; also return each channel's scale along `axis`, shaped for multiplication."""
    other_axes = tuple(index for index in range(values.ndim) if index != axis)
    scale = np.maximum(np.abs(values).max(axis=other_axes, keepdims=True), MIN_PEAK).astype(np.float32) / np.float32(
        limit
    )
    return np.rint(values / scale).astype(np.int8), scale


class _PerFrameConvolution:
    """The nodes that replace one convolution."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        self.graph, self.node, self.new_nodes = graph, node, list[onnx.NodeProto]()

    def nodes(self, weight: np.ndarray, weight_bits: int) -> list[onnx.NodeProto]:
        """Make the nodes for `weight [out, in, kernel]`; input and output are `[batch, channels, time]` as before."""
        kernel = weight.shape[2]
        frames = self._add("Transpose", self.node.input[0], perm=[0, 2, 1])
        if any(pads := _attributes(self.node).get("pads", [])):
            frames = self._add("Pad", frames, self._constant("pads", np.array([0, pads[0], 0, 0, pads[1], 0])))
        frame_peaks = self._add("ReduceMax", self._add("Abs", frames), axes=[2], keepdims=1)
        peaks = [self._frames_under(frame_peaks, at, kernel) for at in range(kernel)]
        peak = self._add("Max", *peaks, self._constant("tiny", np.float32(MIN_PEAK)))
        step = self._add("Mul", peak, self._constant("step", np.float32(1 / LEVELS)))
        unfolded = self._add("Concat", *(self._frames_under(frames, at, kernel) for at in range(kernel)), axis=2)
        scaled = self._add("Div", unfolded, step)
        zero = self._constant("zero", np.uint8(ZERO_POINT))
        rounded = self._add("QuantizeLinear", scaled, self._constant("one", np.float32(1)), zero)

        matrix = weight.transpose(2, 1, 0).reshape(-1, weight.shape[0])
        quantised, scale = quantize_weight(matrix, 1, 2 ** (weight_bits - 1) - 1)
        weight_name = self._constant("weight", quantised)
        accumulated = self._add("Cast", self._add("MatMulInteger", rounded, weight_name, zero), to=TensorProto.FLOAT)
        result = self._add("Mul", self._add("Mul", accumulated, self._constant("scale", scale[0])), step)
        if len(self.node.input) > 2:
            result = self._add("Add", result, self.node.input[2])
        self._add("Transpose", result, perm=[0, 2, 1], output=self.node.output[0])
        return self.new_nodes

    def _frames_under(self, frames: str, offset: int, kernel: int) -> str:
        """Slice out the frames that step `offset` of the kernel meets: every `stride`-th one."""
        remaining = kernel - 1 - offset
        end = -remaining if remaining else np.iinfo(np.int64).max
        bounds = [
            self._constant(f"{name}_{value}", np.array([value])) for name, value in (("from", offset), ("to", end))
        ]
        axis, stride = self._constant("axis", np.array([1])), self._constant("stride", np.array([_stride(self.node)]))
        return self._add("Slice", frames, *bounds, axis, stride)

    def _add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = f"{self.node.name}/{len(self.new_nodes)}_{kind}"
        self.new_nodes.append(helper.make_node(kind, inputs, [output or name], name, **attributes))
        return output or name

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        full_name = f"{self.node.name}/{name}"
        if all(tensor.name != full_name for tensor in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), full_name))
        return full_name


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _stride(node: onnx.NodeProto) -> int:
    return _attributes(node).get("strides", [1])[0]
