"""A graph written another way gives the same numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from confit_edge.data.corpus import Corpus
from confit_edge.runs import Run
from confit_export.export import Exported
from confit_export.graph import ancestors, state_shapes
from confit_export.rewrite import keep_states_int8, pool_before_activation
from confit_runtime import load

Floats = npt.NDArray[np.float32]


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, Floats]) -> onnx.ModelProto:
    """A graph from `x [1, 2, 6, 4]` to `y`."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, "time", "height"])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )


def answers(model: onnx.ModelProto, **feed: npt.NDArray) -> list[npt.NDArray]:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)


def pooled_network(*activations: onnx.NodeProto) -> onnx.ModelProto:
    """convolution -> activations -> 2 x 2 max-pooling, the tensors between called t0, t1, ..."""
    weight = np.random.default_rng(0).standard_normal((2, 2, 1, 1)).astype(np.float32)
    convolution = helper.make_node("Conv", ["x", "w"], ["t0"], "conv")
    pool = helper.make_node("MaxPool", [f"t{len(activations)}"], ["y"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    return graph_of([convolution, *activations, pool], {"w": weight, "low": np.array(-0.5, np.float32)})


CLIP = helper.make_node("Clip", ["t0", "low"], ["t1"], "clip")


@pytest.mark.parametrize(
    ("activations", "order"),
    [
        ([CLIP, helper.make_node("LeakyRelu", ["t1"], ["t2"], "leaky", alpha=0.2)], ["conv", "clip", "pool", "leaky"]),
        ([CLIP, helper.make_node("Tanh", ["t1"], ["t2"], "tanh")], ["conv", "clip", "pool", "tanh"]),
        ([CLIP], ["conv", "clip", "pool"]),  # right after a convolution: fused into it
        ([CLIP, helper.make_node("LeakyRelu", ["t1"], ["t2"], "falls", alpha=-0.2)], ["conv", "clip", "falls", "pool"]),
        ([CLIP, helper.make_node("Neg", ["t1"], ["t2"], "falls")], ["conv", "clip", "falls", "pool"]),
    ],
)
def test_an_activation_that_never_falls_moves_behind_the_pooling(
    activations: list[onnx.NodeProto], order: list[str]
) -> None:
    model = pooled_network(*activations)
    x = np.random.default_rng(1).standard_normal((1, 2, 6, 4)).astype(np.float32)
    before = answers(model, x=x)[0]
    pool_before_activation(model.graph)
    assert [node.name for node in model.graph.node] == order
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(answers(model, x=x)[0], before)


def test_a_value_that_others_use_too_is_left_alone() -> None:
    model = pooled_network(CLIP, helper.make_node("LeakyRelu", ["t1"], ["t2"], "leaky", alpha=0.2))
    model.graph.output.append(helper.make_tensor_value_info("t2", TensorProto.FLOAT, None))
    model.graph.node.append(helper.make_node("Neg", ["t2"], ["z"], "user"))
    names = [node.name for node in model.graph.node]
    pool_before_activation(model.graph)
    assert [node.name for node in model.graph.node] == names


def stateful(scale_out: float) -> onnx.ModelProto:
    """A state of floats joined in time, as the quantiser writes it: rounded when read, float again when given."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
        helper.make_node("QuantizeLinear", ["state", "scale", "zero"], ["state_q"]),
        helper.make_node("Concat", ["state_q", "x_q"], ["both"], axis=2),
        helper.make_node("Slice", ["both", "from", "to", "axis"], ["after_q"]),
        helper.make_node("DequantizeLinear", ["after_q", "scale_out", "zero"], ["state_out"]),
        helper.make_node("DequantizeLinear", ["both", "scale", "zero"], ["y"]),
    ]
    constants = {
        "scale": np.array(0.1, np.float32), "scale_out": np.array(scale_out, np.float32), "zero": np.array(9, np.uint8),
        "from": np.array([-2]), "to": np.array([2**40]), "axis": np.array([2]),
    }  # fmt: skip
    model = graph_of(nodes, constants)
    model.graph.input.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 2, 2, 4]))
    model.graph.output.append(helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [1, 2, 2, 4]))
    return model


def test_a_rounded_state_waits_in_int8_and_gives_the_same() -> None:
    before, after = stateful(0.1), stateful(0.1)
    keep_states_int8(after)
    onnx.checker.check_model(after, full_check=True)
    assert state_shapes(after) == {"x": [2, 6, 4], "state": [2, 4, 2]}
    rng = np.random.default_rng(2)
    floats = np.full((1, 2, 2, 4), -0.9, np.float32)  # what the rounded state below stands for
    rounded = np.zeros((1, 2, 4, 2), np.uint8)
    for _ in range(3):
        x = rng.uniform(0, 1, (1, 2, 6, 4)).astype(np.float32)
        expected, floats = answers(before, x=x, state=floats)
        found, rounded = answers(after, x=x, state=rounded)
        assert rounded.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def test_a_state_that_would_come_back_as_another_number_stays_float() -> None:
    model = stateful(0.2)
    before = model.SerializeToString()
    keep_states_int8(model)
    assert model.SerializeToString() == before


def test_the_ancestors_of_an_output_are_found_in_any_order_of_nodes() -> None:
    model = stateful(0.1)
    whole = [list(node.output) for node in ancestors(model.graph, "y")[0]]
    assert whole == [["x_q"], ["state_q"], ["both"], ["y"]]
    reversed_nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(reversed_nodes)
    nodes, tensors = ancestors(model.graph, "y")
    assert [list(node.output) for node in nodes] == whole[::-1]
    assert {tensor.name for tensor in tensors} == {"scale", "zero"}


def test_an_int8_stream_carries_int8_and_equals_its_lone_run_in_chunks_of_any_size(
    exports: dict[str, Exported], run_corpus: Corpus, run: Run
) -> None:
    model = load(exports["int8"].path)
    kinds = {name: state.dtype for name, state in model.initial_state(1).items()}
    assert sum(kind == np.uint8 for kind in kinds.values()) >= 8
    hop = model.contract.hop
    pcm = np.concatenate(run_corpus.val.pcm)[None, : 40 * hop]
    _, whole, _ = model.run(pcm, model.initial_state(1))
    state, parts = model.initial_state(1), []
    for start, end in ((0, 1), (1, 4), (4, 5), (5, 27), (27, 40)):
        _, part, state = model.run(pcm[:, start * hop : end * hop], state)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
    offline = run.encoder.rows(torch.from_numpy(pcm[0])).numpy()
    cosine = (whole[0, model.contract.warmup_hops :] * offline).sum(axis=1)
    assert cosine.mean() > 0.98
