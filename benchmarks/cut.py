"""Cuts a streaming model into parts, to match the published graph, from log-mel frames to embedding frames."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

_REST_OF_LOG = ("Add", "Clip", "Div", "Max", "Mul", "Reshape", "Sub", "Transpose", "Unsqueeze")


def without_front_end(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Return the model from its log-mel frames to all outputs that depend on them, and the name of that new input.

    The rest takes the frames instead of `pcm`, and the states of the layers after them.
    """
    graph = model.graph
    frames = mel_frames(graph)
    depends = _dependents(graph, frames)
    outputs = [output for output in graph.output if output.name in depends]
    nodes, required = _required_nodes(graph, {output.name for output in outputs}, {frames})
    if "pcm" in required:
        raise ValueError("the model uses its samples again after the log-mel frames, so it cannot be cut there")
    frames_info = onnx.helper.make_tensor_value_info(frames, onnx.TensorProto.FLOAT, ["streams", 1, "frames", "bands"])
    inputs = [frames_info, *(entry for entry in graph.input if entry.name in required)]
    return _part(model, nodes, inputs, outputs), frames


def network(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str, str]:
    """Return the model from its log-mel frames to the encoder's embedding frames, before mean, normalisation and head.

    Also return the names of its input and output. Its states are those of the layers in between.
    """
    rest, frames = without_front_end(model)
    (last,) = [node.output[0] for node in rest.graph.node if node.op_type == "Squeeze"]
    behind = _dependents(rest.graph, last)
    states = [entry for entry in rest.graph.output if entry.name not in behind]
    nodes, required = _required_nodes(rest.graph, {last, *(entry.name for entry in states)}, set())
    output_info = onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)
    inputs = [entry for entry in rest.graph.input if entry.name in required]
    return _part(rest, nodes, inputs, [output_info, *states]), frames, last


def front_end(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the other part, from samples to log-mel frames, with its states."""
    graph = model.graph
    frames = mel_frames(graph)
    _, required = _required_nodes(graph, {frames}, set())
    inputs = [entry for entry in graph.input if entry.name in required]
    states = {f"{entry.name}_out" for entry in inputs if entry.name != "pcm"}
    nodes, _ = _required_nodes(graph, {frames, *states}, set())
    output_info = onnx.helper.make_tensor_value_info(frames, onnx.TensorProto.FLOAT, None)
    return _part(model, nodes, inputs, [output_info, *(entry for entry in graph.output if entry.name in states)])


def mel_frames(graph: onnx.GraphProto) -> str:
    """Return the name of the log-mel frames: the logarithm's output as the first layer takes it."""
    (log,) = [node for node in graph.node if node.op_type == "Log"]
    name = log.output[0]
    while True:
        users = [node for node in graph.node if name in node.input]
        if len(users) != 1 or users[0].op_type not in _REST_OF_LOG:
            return name
        name = users[0].output[0]


def _dependents(graph: onnx.GraphProto, name: str) -> set[str]:
    """Return `name` and everything computed from it. A quantiser leaves nodes in any order."""
    dependents, before = {name}, 0
    while len(dependents) > before:
        before = len(dependents)
        dependents.update(
            output for node in graph.node if dependents.intersection(node.input) for output in node.output
        )
    return dependents


def _required_nodes(
    graph: onnx.GraphProto, outputs: set[str], available: set[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes that `outputs` need beyond `available`, and the names they take."""
    makers = {output: node for node in graph.node for output in node.output}
    required, pending = set(), list(outputs)
    while pending:
        name = pending.pop()
        if name not in required:
            required.add(name)
            if name in makers and name not in available:
                pending += makers[name].input
    return [node for node in graph.node if required.intersection(node.output) - available], required


def _part(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = onnx.helper.make_graph(nodes, "part", list(inputs), list(outputs), weights)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
