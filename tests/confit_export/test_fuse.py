"""Exchanged activations: fitted as least squares say, streaming as exactly, fewer nodes, and the gate before all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from confit_edge.data.corpus import Corpus
from confit_edge.encoders import pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.runs import Run
from confit_export import fuse, job
from confit_export.export import Exported, export_run
from confit_export.fuse import Floor, can_fuse, fuse_activations
from confit_export.job import stream_difference
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.model import load


@pytest.fixture(scope="module", autouse=True)
def few_windows() -> Iterator[None]:
    """Enough for the few clips of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuse, "WINDOWS", 128)
        yield


@pytest.fixture(scope="module")
def fused_encoder(run: Run, run_corpus: Corpus) -> Encoder:
    """The encoder with its activations exchanged. Not to be changed."""
    return fuse_activations(run.encoder, run_corpus, run)


@pytest.fixture(scope="module")
def fused(
    run: Run, run_corpus: Corpus, fused_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("fused")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "fuse_activations", lambda *_: copy.deepcopy(fused_encoder))
        return {
            precision: export_run(
                run,
                run_corpus,
                folder / precision / "words.onnx",
                quantize=precision == "int8",
                fuse=True,
                say=lambda line: None,
            )
            for precision in ("fp32", "int8")
        }


@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "bias"),
    [((1, 3), (0, 1), 1, True), ((3, 1), 0, (2, 1), False), ((3, 3), 1, 1, True)],
)
def test_a_refitted_convolution_gives_what_was_wanted_where_it_can(
    kernel: tuple[int, int], padding: int | tuple[int, int], stride: int | tuple[int, int], bias: bool
) -> None:
    """What another convolution of the same shape makes of the input is found again, from any start, padding included."""
    torch.manual_seed(0)
    reference, layer = (nn.Conv2d(4, 5, kernel, stride, padding, bias=bias) for _ in range(2))
    x = torch.randn(40, 4, 9, 8)
    with torch.no_grad():
        before = (layer(x) - reference(x)).square().mean()
        fuse._refit(layer, x, reference(x))
        after = (layer(x) - reference(x)).square().mean()
    assert after < 1e-5 * before  # but for the ridge, exactly


def test_refitting_lowers_the_error_that_a_stand_in_makes_and_no_weights_do_better() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 4, (1, 3), padding=(0, 1)), torch.randn(60, 6, 5, 8)
    with torch.no_grad():
        reference, inputs = layer(nn.functional.leaky_relu(x, 0.2)), Floor(-0.3)(x)
        start = (layer(inputs) - reference).square().mean()
        fuse._refit(layer, inputs, reference)
        found = (layer(inputs) - reference).square().mean()
        assert found < 0.9 * start
        for _ in range(5):
            layer.weight.add_(step := 0.01 * torch.randn_like(layer.weight))
            assert (layer(inputs) - reference).square().mean() > found
            layer.weight.sub_(step)


def test_a_fused_encoder_embeds_nearly_as_before_and_leaves_the_run_as_it_was(
    run: Run, run_corpus: Corpus, fused_encoder: Encoder
) -> None:
    before = {name: value.clone() for name, value in run.encoder.state_dict().items()}
    encoders = [fused_encoder, fuse_activations(run.encoder, run_corpus, run)]
    for name, value in run.encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    for one, other in zip(*(encoder.state_dict().values() for encoder in encoders), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)  # repeatable
    assert not can_fuse(encoders[0])
    pcm = torch.stack([torch.from_numpy(np.resize(clip, run.encoder.window)) for clip in run_corpus.val.pcm])
    encoders[1].load_state_dict(run.encoder.state_dict())  # the stand-ins alone, with the weights there were, do worse
    with torch.no_grad():
        expected = run.encoder(pcm)
        away = [float((1 - (encoder(pcm) * expected).sum(dim=1)).mean()) for encoder in encoders]
    assert away[0] < 0.01
    assert away[0] < 0.5 * away[1]


def test_the_graph_is_shorter_and_streams_as_exactly(
    fused: dict[str, Exported], exports: dict[str, Exported], run: Run, run_corpus: Corpus
) -> None:
    for precision, exported in fused.items():
        operators = [node.op_type for node in onnx.load(exported.path).graph.node]
        assert "LeakyRelu" not in operators
        assert len(operators) < len(onnx.load(exports[precision].path).graph.node) - 15
        assert exported.contract.parity["fused_activations"]["cosine"] > 0.99
        assert exported.contract.metrics["gate"]["passed"]
        assert (
            exported.contract.embedding_id != exports[precision].contract.embedding_id
        )  # a gallery of one is not the other's
        assert exported.shipped["val"]["accuracy"] >= exported.fp32["val"]["accuracy"] - 0.005
    assert fused["fp32"].stream_max_abs_diff < 1e-4
    # against the run's own encoder the file differs, by what was exchanged and no more
    assert 1e-4 < stream_difference(load(fused["fp32"].path), run.encoder, run_corpus) < 0.2


def test_a_chopped_stream_equals_one_call(fused: dict[str, Exported]) -> None:
    model = load(fused["int8"].path)
    hop = model.contract.hop
    pcm = np.float32(0.1) * np.random.default_rng(0).standard_normal((1, 40 * hop), dtype=np.float32)
    whole, _, _ = model.run(pcm, model.initial_state(1))
    parts, state = [], model.initial_state(1)
    for start in range(0, pcm.shape[1], 3 * hop):
        scores, _, state = model.run(pcm[:, start : start + 3 * hop], state)
        parts.append(scores)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-6)


def test_an_encoder_without_such_activations_is_refused_by_name(run: Run, run_corpus: Corpus, tmp_path: Path) -> None:
    speakers = replace(run, encoder=pretrained("ge2e", 1.6))
    with pytest.raises(UsageError, match="--fuse-activations: ge2e has no activation"):
        export_run(speakers, run_corpus, tmp_path / "speakers.onnx", fuse=True, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_pass_the_gate_leaves_no_file(
    run: Run, run_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse, "_refit", lambda layer, x, wanted: layer.weight.mul_(-1.0))
    with pytest.raises(ConfitError, match=r"with activations replaced, .*without --fuse-activations"):
        export_run(run, run_corpus, tmp_path / "words.onnx", fuse=True, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []
