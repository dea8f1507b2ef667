"""Cutting a streaming model behind its front end: the two parts give what the whole gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.cut import front_end, mel_frames, network, without_front_end
from benchmarks.step_time import check_cut
from confit_export.export import Exported
from confit_runtime.model import load
from confit_runtime.session import open_session


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_parts_make_the_whole(exports: dict[str, Exported], precision: str) -> None:
    path: Path = exports[precision].path
    graph = onnx.load(path)
    check_cut(graph, path)
    rest, frames = without_front_end(graph)
    input_names = {entry.name for entry in rest.graph.input}
    assert frames in input_names
    assert "pcm" not in input_names
    assert len(rest.graph.node) < len(graph.graph.node)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_network_gives_the_frames_whose_mean_is_the_embedding(exports: dict[str, Exported], precision: str) -> None:
    model = load(exports[precision].path)
    graph = onnx.load(exports[precision].path)
    first, (alone, mel, frames) = front_end(graph), network(graph)
    sessions = [open_session(part.SerializeToString(), 1) for part in (first, alone)]
    hops, hop, pool = 30, model.contract.hop, 7
    pcm = np.float32(0.1) * np.random.default_rng(0).standard_normal((1, hops * hop), dtype=np.float32)
    state = model.initial_state(1)
    inputs = {"pcm": pcm}
    for session, output_name in zip(sessions, (mel, frames), strict=True):
        own = {entry.name: state[entry.name] for entry in session.get_inputs() if entry.name in state}
        inputs = {output_name: session.run([output_name], {**inputs, **own})[0]}
    pooled = np.stack([inputs[frames][0, :, at : at + pool].mean(axis=1) for at in range(hops - pool + 1)])
    pooled -= pooled.mean(axis=1, keepdims=True)
    expected = model.run(pcm, state)[1][0, pool - 1 :]
    np.testing.assert_allclose(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), expected, atol=1e-4)


def test_a_model_that_looks_at_its_samples_again_is_refused(exports: dict[str, Exported]) -> None:
    graph = onnx.load(exports["fp32"].path)
    frames = mel_frames(graph.graph)
    user = next(node for node in graph.graph.node if frames in node.input)
    size = onnx.numpy_helper.from_array(np.array([0.0], np.float32), "nothing")
    graph.graph.initializer.append(size)
    graph.graph.node.append(onnx.helper.make_node("ReduceMean", ["pcm"], ["level"], keepdims=0))
    graph.graph.node.append(onnx.helper.make_node("Mul", ["level", "nothing"], ["offset"]))
    graph.graph.node.append(onnx.helper.make_node("Add", [user.output[0], "offset"], ["moved"]))
    for node in graph.graph.node:
        if node is not user and node.output[0] != "moved":
            for at, name in enumerate(node.input):
                if name == user.output[0]:
                    node.input[at] = "moved"
    with pytest.raises(ValueError, match="samples"):
        without_front_end(graph)
