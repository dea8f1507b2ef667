"""Quantisation schemes: make an fp32 graph smaller, and leave its front end and head as they are."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from confit_export.calibration import Calibration, Feed, silence_quantizer, tensor_ranges
from confit_export.frames import quantize_per_frame, quantize_weight, temporal_convolutions
from confit_export.targets import Target, preset
from confit_runtime.errors import UsageError

Scheme = Literal["static", "dynamic", "weight-only", "fp16"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
INT8_SCHEMES = ("static", "dynamic")  # the others only store weights small, and compute in fp32

PRECISION = {"static": "int8", "dynamic": "int8", "weight-only": "int8 weights", "fp16": "fp16 weights"}
LAYER_OPS = ("Conv", "MatMul", "Gemm")
PASS_THROUGH_OPS = ("Clip", "Concat", "LeakyRelu", "MaxPool", "Relu", "Slice", "Squeeze", "Transpose", "Unsqueeze")
WEIGHT_INPUTS = {"Conv": (1,), "MatMul": (1,), "Gemm": (1,), "LSTM": (1, 2), "GRU": (1, 2)}
DYNAMIC_OPS = ("MatMul", "Gemm", "LSTM")  # onnxruntime can compute these in int8 with scales taken from each input
QUANTISABLE_OPS: dict[Scheme, tuple[str, ...]] = {
    "static": LAYER_OPS,
    "dynamic": ("Conv", *DYNAMIC_OPS),
    "weight-only": tuple(WEIGHT_INPUTS),
    "fp16": tuple(WEIGHT_INPUTS),
}


@dataclass(frozen=True)
class Quantizer:
    """Quantises one fp32 graph as often as the search for layers needs; its ranges are measured once."""

    fp32: onnx.ModelProto
    scheme: Scheme
    target: Target
    calibration: Calibration
    feeds: list[Feed]
    layers: tuple[str, ...]  # names of all nodes that the scheme can quantise, in graph order
    ranges: Any  # onnxruntime's TensorsData; None if no layer has a fixed range

    @classmethod
    def calibrate(
        cls,
        fp32: onnx.ModelProto,
        scheme: Scheme,
        target: Target,
        fp32_scopes: tuple[str, ...],
        feeds: list[Feed],
        calibration: Calibration,
    ) -> Quantizer:
        """Measure ranges on `feeds`, inputs of the graph. Nodes whose name begins with one of `fp32_scopes` stay in fp32."""
        layers = quantisable(fp32, scheme, fp32_scopes)
        kinds = {node.name: node.op_type for node in fp32.graph.node}
        if scheme == "dynamic" and {kinds[layer] for layer in layers} <= {"Conv"}:
            raise UsageError(
                "--scheme dynamic: this encoder has convolutions only, and their scales are fixed; use static"
            )
        quantizer = cls(fp32, scheme, target, calibration, feeds, layers, None)
        if quantizer.with_fixed_range(layers):
            ranges = tensor_ranges(fp32, feeds, calibration, [*LAYER_OPS, *PASS_THROUGH_OPS])
            return replace(quantizer, ranges=ranges)
        if scheme == "dynamic" and calibration != "minmax":
            raise UsageError(
                f"--calibration {calibration}: with --scheme dynamic, no layer of this encoder has a fixed range, so it"
                " would have no effect; remove it"
            )
        return quantizer

    def __call__(self, layers: Collection[str]) -> onnx.ModelProto:
        """Return the graph with `layers` quantised and everything else in fp32."""
        if not layers:
            return _copy(self.fp32)
        if self.scheme in INT8_SCHEMES:
            quantised = self._compute_int8(layers)
        else:
            quantised = _store_weights(self.fp32, layers, half=self.scheme == "fp16")
        quantised.producer_name, quantised.producer_version = self.fp32.producer_name, self.fp32.producer_version
        del quantised.metadata_props[:]
        return quantised

    def with_fixed_range(self, layers: Collection[str]) -> list[str]:
        """Those of `layers` whose input has a range that the calibration fixed; others take theirs from each frame or call."""
        if self.scheme not in INT8_SCHEMES:
            return []
        per_frame, kinds = self._per_frame(layers), {node.name: node.op_type for node in self.fp32.graph.node}
        fixed = ("Conv",) if self.scheme == "dynamic" else LAYER_OPS
        return [layer for layer in layers if layer not in per_frame and kinds[layer] in fixed]

    def _per_frame(self, layers: Collection[str]) -> set[str]:
        """Those of `layers` that take a scale from each frame: in a windowed model, convolutions over time."""
        windowed = [entry.name for entry in self.fp32.graph.input] == ["pcm"]
        return temporal_convolutions(self.fp32).intersection(layers) if windowed else set()

    def _compute_int8(self, layers: Collection[str]) -> onnx.ModelProto:
        """Compute `layers` in int8.

        In a windowed model, convolutions over time get a scale per frame. A stream's state holds one scale, so a stream has one.
        """
        per_frame = self._per_frame(layers)
        others = [name for name in layers if name not in per_frame]
        quantise = _dynamic if self.scheme == "dynamic" else _static
        result = quantise(self.fp32, self.ranges, others, self.target) if others else self.fp32
        return quantize_per_frame(result, per_frame, preset(self.target).weight_bits) if per_frame else result


def quantisable(model: onnx.ModelProto, scheme: Scheme, fp32_scopes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the nodes that have weights of their own and that the scheme can quantise.

    Products of two activations (attention) have no weights to shrink. Recurrent layers have no static int8 kernel, and a GRU
    has no int8 kernel at all; the other schemes take them. A layer whose input is the sound itself stays in fp32: 8 bits
    scaled to the loudest sample leave nothing of a quiet one.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    audio = _audio_tensors(model) if scheme in INT8_SCHEMES else set()
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in QUANTISABLE_OPS[scheme]
        and node.input[1] in weights
        and not node.name.startswith(fp32_scopes)
        and node.input[0] not in audio
    )


def _audio_tensors(model: onnx.ModelProto) -> set[str]:
    """The tensors that hold sound: the input PCM, and anything computed from it before the first layer."""
    audio = {"pcm"}
    for node in model.graph.node:
        if node.op_type not in WEIGHT_INPUTS and audio.intersection(node.input):
            audio.update(node.output)
    return audio


def pass_through_nodes(model: onnx.ModelProto, layers: Collection[str]) -> list[str]:
    """Return the nodes between quantised layers that only move, clip or compare values, and so can stay in int8 too.

    Such a node takes the output of a layer or of another such node (a Concat may also take a stream's state), and leads to a
    layer; otherwise a value would be quantised for nothing.
    """
    nodes = {node.name: node for node in model.graph.node}
    produced = {output for name in layers for output in nodes[name].output}
    states = {entry.name for entry in model.graph.input if entry.name != "pcm"}
    candidates: list[str] = []
    for node in model.graph.node:
        data = list(node.input) if node.op_type == "Concat" else list(node.input[:1])
        if node.op_type in PASS_THROUGH_OPS and produced.intersection(data) and not set(data) - produced - states:
            candidates.append(node.name)
            produced.update(node.output)
    consumed = {nodes[name].input[0] for name in layers}
    kept: list[str] = []
    for name in reversed(candidates):
        node = nodes[name]
        feeds_layer = consumed.intersection(node.output)
        if feeds_layer or (node.op_type == "Slice" and consumed.intersection(node.input[:1])):
            kept.append(name)
            consumed.update(node.input if feeds_layer else ())
    return kept[::-1]


def shared_ranges(model: onnx.ModelProto, ranges: Any, pass_through: list[str]) -> Any:
    """Return `ranges` adapted to the pass-through nodes: one range on both sides of a move, and the clipped range before a clip.

    A value that waits in a stream's state must round like one that never was in it; otherwise a result would depend on how
    the stream was split into calls. And where a clip follows a layer, perhaps after a pooling, the end of the int8 range
    clips for free, and no step of the range is spent on values that would be cut off.
    """
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    nodes, shared = {node.name: node for node in model.graph.node}, dict(ranges.items())
    uses = Counter(tensor for node in model.graph.node for tensor in node.input)
    for name in reversed(pass_through):
        node = nodes[name]
        inputs = list(node.input) if node.op_type == "Concat" else [node.input[0]]
        if node.op_type in ("LeakyRelu", "Slice"):
            continue  # LeakyRelu changes values; the range of a Slice lies within that of its input
        if node.op_type != "Concat" and uses[inputs[0]] == 1:
            shared[inputs[0]] = shared[node.output[0]]
            continue
        low, high = zip(*(shared[tensor].range_value for tensor in [*inputs, node.output[0]]), strict=True)
        joint = TensorData(lowest=np.float32(min(low)), highest=np.float32(max(high)))
        shared |= dict.fromkeys([*inputs, node.output[0]], joint)
    return TensorsData(ranges.calibration_method, shared)


def _static(model: onnx.ModelProto, ranges: Any, layers: Collection[str], target: Target) -> onnx.ModelProto:
    """Quantise activations to uint8 per tensor and weights to int8 per channel, in QDQ form.

    Scales are fixed, so a result depends neither on its neighbours in a batch nor on how a stream is split into calls.
    """
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    types, pass_through = preset(target), pass_through_nodes(model, layers)
    with silence_quantizer():
        quantizer = QDQQuantizer(
            _copy(model),
            types.per_channel,
            types.reduce_range,
            types.weights,
            types.activations,
            shared_ranges(model, ranges, pass_through),
            [*layers, *pass_through],
            [],
            [*LAYER_OPS, *PASS_THROUGH_OPS],
            {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


def _dynamic(model: onnx.ModelProto, ranges: Any, layers: Collection[str], target: Target) -> onnx.ModelProto:
    """Quantise convolutions statically, and matrix products and LSTMs with scales taken from each input.

    There is no dynamic convolution, because it is slower than fp32 (ConvInteger). A graph that takes scales from its input
    accepts one window per call.
    """
    from onnxruntime.quantization import quantize_dynamic

    kinds = {node.name: node.op_type for node in model.graph.node}
    convolutions = [name for name in layers if kinds[name] == "Conv"]
    others = [name for name in layers if kinds[name] != "Conv"]
    partly = _static(model, ranges, convolutions, target) if convolutions else _copy(model)
    if not others:
        return partly
    types = preset(target)
    del partly.graph.value_info[:]
    with tempfile.TemporaryDirectory() as folder, silence_quantizer():
        source, out = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(partly, source)
        quantize_dynamic(
            source,
            out,
            op_types_to_quantize=list(DYNAMIC_OPS),
            nodes_to_quantize=others,
            per_channel=types.per_channel,
            reduce_range=types.reduce_range,
            weight_type=types.weights,
            extra_options={"MatMulConstBOnly": True},
        )
        quantised = onnx.load(out)
    # a scale is taken from everything in the call: with several windows, each would depend on its neighbours
    quantised.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return quantised


def _store_weights(model: onnx.ModelProto, layers: Collection[str], *, half: bool) -> onnx.ModelProto:
    """Store weights in int8 per channel, or in fp16, and compute in fp32.

    A Cast (and a Mul by the scale) restores them. onnxruntime folds both when it loads the model, so they cost no time per
    call, but they save no memory either.
    """
    stored = _copy(model)
    graph = stored.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    channel_axes: dict[str, int] = {}  # a weight, and the axis of its channels
    for node in graph.node:
        if node.name in layers:
            for index in WEIGHT_INPUTS[node.op_type]:
                channel_axes.setdefault(node.input[index], _channel_axis(node, tensors[node.input[index]]))
    restore_nodes: list[onnx.NodeProto] = []
    for name, axis in channel_axes.items():
        values = numpy_helper.to_array(tensors[name])
        graph.initializer.remove(tensors[name])
        quantised, scale = (values.astype(np.float16), None) if half else quantize_weight(values, axis)
        graph.initializer.append(numpy_helper.from_array(quantised, f"{name}_stored"))
        cast = name if scale is None else f"{name}_cast"
        restore_nodes.append(helper.make_node("Cast", [f"{name}_stored"], [cast], f"{name}_Cast", to=TensorProto.FLOAT))
        if scale is not None:
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
            restore_nodes.append(helper.make_node("Mul", [cast, f"{name}_scale"], [name], f"{name}_Mul"))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*restore_nodes, *nodes])
    return stored


def _channel_axis(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """The axis of a weight along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type in ("LSTM", "GRU"):
        return 1
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else len(weight.dims) - 1


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
