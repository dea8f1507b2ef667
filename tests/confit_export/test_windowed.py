"""Attention encoders become windowed models: one window in, one row out, the same numbers as in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import numpy_helper

from confit_edge.pairtune.session import train
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run, run_corpus
from confit_export.export import export_run
from confit_export.quantisation import Quantisation
from confit_runtime import load

RATE = 16_000
TONES = {"low": 300.0, "mid": 1000.0, "high": 3000.0}


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy tones of three kinds, which even a random network tells apart."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for label, hertz in TONES.items():
        for take in range(12):
            wave = 0.3 * np.sin(2 * np.pi * hertz * rng.uniform(0.9, 1.1) * np.arange(6_000) / RATE)
            path = folder / label / f"{take}" / "tone.wav"
            path.parent.mkdir(parents=True)
            soundfile.write(path, wave + 0.02 * rng.standard_normal(6_000), RATE)
    return folder


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "whisper"])
def test_an_attention_encoder_is_exported_as_a_windowed_model(
    kind: str, tones: Path, checkpoints: dict[str, Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    recipe = Recipe(
        encoder=str(checkpoints[kind]),
        epochs=1,
        lr=(2e-3,),
        window=0.5,
        shift=0.02,
        noise_probability=0.2,
        snr_low=15.0,
        soup=1,
        probe_views=1,
        frozen_baseline=False,
    )
    train(tones, tmp_path / "run", recipe)
    run = read_run(tmp_path / "run")
    corpus = run_corpus(run)
    clip = np.concatenate(corpus.test.pcm)[: 3 * run.encoder.window + 123]
    offline = run.encoder.rows(torch.from_numpy(clip)).numpy()
    recwarn.clear()
    accuracy = {}
    for precision in ("fp32", "int8", "dynamic"):
        out = tmp_path / f"{precision}.onnx"
        how = Quantisation("dynamic" if precision == "dynamic" else "static")
        exported = export_run(run, corpus, out, quantize=precision != "fp32", quantisation=how, say=lambda line: None)
        accuracy[precision] = exported.shipped["val"]["accuracy"]
        model = load(out)
        contract = model.contract
        assert not contract.streaming
        # the convolutions of Whisper take a scale from each frame; the others also have one with a fixed range
        fixed_ranges = precision == "int8" or (precision == "dynamic" and kind != "whisper")
        assert ("calibration" in contract.parity) == fixed_ranges
        assert contract.window % contract.hop == 0
        scores, embeddings = model.rows(clip, RATE)
        assert scores.shape == (len(offline), 3)
        if precision == "fp32":
            np.testing.assert_allclose(embeddings, offline, atol=1e-4)
            np.testing.assert_allclose(scores, run.linear.scores(offline) * run.typicality.factors(offline), atol=1e-3)
            assert exported.stream_max_abs_diff < 1e-4
        # no neighbour in a batch matters
        windows = np.stack([clip[: contract.window], 0.1 * clip[-contract.window :]])
        together, _, _ = model.run(windows, {})
        alone, _, _ = model.run(windows[1:], {})
        np.testing.assert_allclose(together[1], alone[0], atol=1e-3)
        if precision == "dynamic":
            np.testing.assert_array_equal(together[1], alone[0])
            loud, quiet = (np.resize(window, contract.window) for window in windows)
            pair, single = model.batch(2), model.batch(1)
            for at in range(0, contract.window, contract.hop):
                both = pair.push(np.stack([loud, quiet])[:, at : at + contract.hop])
                own = single.push(quiet[None, at : at + contract.hop])
            np.testing.assert_array_equal(both[0][1], own[0][0])
        # a stream of hops gives the row of each window
        batch = model.batch(1)
        hops = [clip[at : at + contract.hop] for at in range(0, contract.window + contract.hop, contract.hop)]
        rows = [batch.push(hop[None])[1] for hop in hops]
        assert [row.shape[1] for row in rows] == [0] * (len(hops) - 2) + [1, 1]
        np.testing.assert_allclose(rows[-1][0, 0], embeddings[1], atol=1e-4)
    assert accuracy["fp32"] == 1.0
    assert min(accuracy.values()) >= accuracy["fp32"] - 0.01
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
    graph = onnx.load(tmp_path / "int8.onnx").graph
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantised = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(quantised) > 10
    assert all(np.isfinite(scales[node.input[1]]).all() for node in quantised)
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "fp32.onnx").stat().st_size * 1.01
