"""Turns a run's torch modules into one ONNX graph: PCM (and state) in; scores, embedding (and state) out."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx import symbolic_helper

from confit_edge.encoders.base import Encoder
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.typicality import Typicality
from confit_export.basis import compute_basis_at_load
from confit_export.rewrite import pool_before_activation
from confit_export.rooms import ROOMS
from confit_export.streaming import StreamingStack
from confit_runtime.errors import ConfitError
from confit_runtime.session import open_session

OPSET = 17
RECURRENT = ("LSTM", "GRU", "RNN")


class Head(nn.Module):
    """Maps pooled frames `[streams, hops, dim]` to scores `[streams, hops, classes]` and embeddings `[streams, hops, dim]`.

    A score is the linear probe's probability, multiplied by the typicality if there is one (a model for speakers has none).
    """

    quadratic: Tensor
    scale: Tensor

    def __init__(self, probe: LinearProbe, typicality: Typicality | None) -> None:
        super().__init__()
        self.multi_label, self.typicality = probe.multi_label, typicality
        weight, bias = [probe.weight], [probe.bias]
        if typicality:
            # one product for everything linear: a node costs more than its arithmetic
            weight += [-typicality.slope, typicality.axes]
            bias += [-typicality.offset, np.zeros(len(typicality.axes), np.float32)]
            self.register_buffer(
                "quadratic", torch.from_numpy(np.tile(typicality.quadratic, (len(typicality.axes), 1)))
            )
        self.sizes = [len(part) for part in weight]
        self.linear = nn.Linear(probe.weight.shape[1], sum(self.sizes))
        self.register_buffer("scale", torch.full((probe.weight.shape[1],), probe.weight.shape[1] ** -0.5))
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(np.concatenate(weight)))
            self.linear.bias.copy_(torch.from_numpy(np.concatenate(bias)))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        # `confit_edge.encoders.base.normalise`, in one node
        embedding = functional.layer_norm(pooled, self.scale.shape, weight=self.scale, eps=1e-24)
        if self.typicality is None:
            return self._probabilities(self.linear(embedding)), embedding
        logits, exponent, projections = self.linear(embedding).split(self.sizes, dim=-1)
        if self.sizes[2]:
            exponent = exponent + (projections * projections) @ self.quadratic
        return self._probabilities(logits) * exponent.exp(), embedding

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)


class StreamingModel(nn.Module):
    """The whole model with carried state; it takes any multiple of `hop` samples."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        front_end, layers = encoder.streaming_layers()
        self.stack = StreamingStack([*front_end, *layers])
        self.head = head
        shapes = self.stack.state_shapes(torch.zeros(1, 1, encoder.hop))
        self.state = {f"state_{index:02d}": shape for index, shape in enumerate(shapes)}
        # the spectrum and the mel bands are measurements, not features: they and the head stay in fp32
        self.fp32_scopes = (*(f"/stack/layers.{at}/" for at in range(len(front_end))), "/head/")

    def forward(self, pcm: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        pooled, following = self.stack(pcm[:, None], list(states))
        scores, embedding = self.head(pooled.transpose(1, 2))
        return scores, embedding, *following


class WindowedModel(nn.Module):
    """The whole model on exactly one window; it gives one row."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.state: dict[str, list[int]] = {}
        self.fp32_scopes = ("/front_end/", "/encoder/front_end/", "/head/")

    def forward(self, pcm: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.head(self.encoder.pooled(pcm)[:, None]))


def assemble(encoder: Encoder, probe: LinearProbe, typicality: Typicality | None) -> StreamingModel | WindowedModel:
    """Assemble a frozen encoder, its linear probe and, if given, the typicality into the module to export."""
    return (StreamingModel if encoder.streaming else WindowedModel)(encoder, Head(probe, typicality)).eval()


def to_onnx(model: StreamingModel | WindowedModel, encoder: Encoder, cohort: np.ndarray) -> onnx.ModelProto:
    """Return the fp32 graph, with the output `cohort [n, dim]`, and the output `quiet` (rooms) filled with zeros for now."""
    streaming = bool(model.state)
    samples = 2 * encoder.hop if streaming else encoder.window
    states = [torch.zeros(2, *shape) for shape in model.state.values()]
    names = ["pcm", *model.state]
    outputs = ["scores", "embedding", *(f"{name}_out" for name in model.state)]
    axes: dict[str, dict[int, str]] = {name: {0: "streams"} for name in names + outputs}
    if streaming:
        axes["pcm"][1] = "samples"
        axes["scores"][1] = axes["embedding"][1] = "hops"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces its own retirement on every call
        torch.onnx.utils.register_custom_op_symbolic("aten::repeat_interleave", _repeat_interleave, OPSET)
        torch.onnx.export(
            model,
            (torch.zeros(2, samples), *states),
            str(Path(folder) / "model.onnx"),
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        model_proto = onnx.load(Path(folder) / "model.onnx")
    _constants_to_initializers(model_proto.graph)
    compute_basis_at_load(model_proto.graph, model)
    pool_before_activation(model_proto.graph)
    _add_embeddings(model_proto, "cohort", cohort)
    _add_embeddings(model_proto, "quiet", np.zeros((ROOMS, encoder.dim)))
    model_proto.producer_name, model_proto.producer_version = "confit-edge", ""
    onnx.checker.check_model(model_proto)
    return model_proto


@symbolic_helper.parse_args("v", "i", "i", "none")
def _repeat_interleave(graph: Any, values: Any, repeats: int, axis: int, size: None = None) -> Any:
    """Repeat each entry of the last axis `repeats` times in place, as rotary positions do.

    torch's own export of this needs the rank of every tensor, and fails on Moonshine.
    """
    rank = values.type().dim()
    if rank is None or axis % rank != rank - 1:
        raise ConfitError(
            f"this encoder calls torch.repeat_interleave along axis {axis} of {rank or 'unknown'}, which can only be exported"
            " along the last axis; change the encoder, or use another"
        )
    last_axis = graph.op("Constant", value_t=torch.tensor([rank]))
    times = graph.op("Constant", value_t=torch.tensor([1] * rank + [repeats]))
    tiled = graph.op("Tile", graph.op("Unsqueeze", values, last_axis), times)
    return graph.op("Reshape", tiled, graph.op("Constant", value_t=torch.tensor([0] * (rank - 1) + [-1])))


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Put all weights in one place: the exporter writes fixed buffers as Constant nodes, which quantisers ignore."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _add_embeddings(model: onnx.ModelProto, name: str, rows: np.ndarray) -> None:
    """Add embeddings `[n, dim]` as an initializer and as an output called `name`."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(rows.astype(np.float32), f"{name}_prints"))
    graph.node.append(helper.make_node("Identity", [f"{name}_prints"], [name], name=name))
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(rows.shape)))


def state_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The shape of each state that a graph takes, without the streams axis; empty for a windowed model."""
    return {
        entry.name: [size.dim_value for size in entry.type.tensor_type.shape.dim[1:]]
        for entry in model.graph.input
        if entry.name != "pcm"
    }


def ancestors(graph: onnx.GraphProto, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and initializers that an output depends on, in graph order."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    required, found, pending = {output}, set(), [output]
    while pending:  # the nodes of a quantised graph are in no particular order
        index = producers.get(pending.pop())
        if index is not None and index not in found:
            found.add(index)
            names = set(graph.node[index].input) - required
            required |= names
            pending += names
    return [graph.node[index] for index in sorted(found)], [
        tensor for tensor in graph.initializer if tensor.name in required
    ]


def count_macs(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, int]:
    """Count the multiply-adds of one call with inputs shaped like `feed`, by node: Conv, MatMul, Gemm, LSTM, GRU and RNN.

    Shapes come from onnxruntime itself: the output of every such node is fetched once.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.metadata_props[:]
    counted_nodes = [node for node in probe.graph.node if node.op_type in ("Conv", "MatMul", "Gemm", *RECURRENT)]
    weights = {tensor.name: list(tensor.dims) for tensor in probe.graph.initializer}
    existing_outputs = {output.name for output in probe.graph.output}
    tensors = [node.output[0] for node in counted_nodes]
    tensors += [node.input[0] for node in counted_nodes if node.op_type in ("MatMul", *RECURRENT)]
    # a weight may be computed: dequantised, or a DFT basis made at load
    tensors += [
        name
        for node in counted_nodes
        if node.op_type != "MatMul"
        for name in node.input[1 : 3 if node.op_type in RECURRENT else 2]
        if name not in weights
    ]
    inputs = {entry.name for entry in probe.graph.input}
    for name in dict.fromkeys(tensors):
        if name not in existing_outputs and name not in inputs:
            probe.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = open_session(probe.SerializeToString(), threads=1, unoptimised=True)
    fetched = [output.name for output in session.get_outputs()]
    shapes: dict[str, Any] = {
        name: value.shape for name, value in zip(fetched, session.run(fetched, feed), strict=True)
    }
    shapes |= {name: value.shape for name, value in feed.items()}
    shapes |= weights
    macs: dict[str, int] = {}
    for node in counted_nodes:
        out = int(np.prod(shapes[node.output[0]]))
        if node.op_type in RECURRENT:  # every frame meets the weights of the input and those of the state
            frames = int(np.prod(shapes[node.input[0]][:2]))
            macs[node.name] = frames * sum(int(np.prod(shapes[name])) for name in node.input[1:3])
        elif node.op_type == "Conv":
            macs[node.name] = out * int(np.prod(shapes[node.input[1]][1:]))
        else:
            macs[node.name] = out * int(shapes[node.input[0 if node.op_type == "MatMul" else 1]][-1])
    return macs
