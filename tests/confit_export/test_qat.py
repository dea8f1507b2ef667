"""Quantisation-aware fine-tuning: it rounds as the target will, leaves the run alone, and repeats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from confit_edge.data.corpus import Corpus
from confit_edge.encoders import pretrained
from confit_edge.runs import Run
from confit_export import qat
from confit_export.export import Exported, export_run
from confit_export.qat import FakeQuantInput, FakeQuantWeight, fine_tune
from confit_export.quantisation import Quantisation
from confit_export.targets import preset


def test_a_rounded_weight_lies_on_the_grid_of_its_channel_and_passes_gradients() -> None:
    weight = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for reduced, most in ((True, 64), (False, 127)):
        rounded = FakeQuantWeight(reduced)(weight)
        for channel, values in zip(weight.detach(), rounded.detach(), strict=True):
            scale = channel.abs().max() / most
            torch.testing.assert_close(values, (channel / scale).round() * scale)
    weight.grad = None
    rounded.sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones_like(weight))


def test_a_rounded_input_has_256_levels_and_holds_zero_exactly() -> None:
    rounding, x = FakeQuantInput(), torch.linspace(-0.7, 2.1, 5000)
    found = rounding(x)
    assert len(found.unique()) <= 256
    assert float((found - x).abs().max()) <= 2.8 / 255
    assert rounding(torch.zeros(1)).item() == 0.0
    rounding.eval()
    assert rounding(torch.tensor([99.0])).item() < 2.2  # what lies beyond the range is clipped to it


def test_fine_tuning_leaves_the_run_as_it_was_and_is_repeatable(run: Run, run_corpus: Corpus) -> None:
    before = {name: value.clone() for name, value in run.encoder.state_dict().items()}
    messages: list[str] = []
    tuned = [fine_tune(run.encoder, run_corpus, run, preset("portable"), 2, messages.append) for _ in range(2)]
    for name, value in run.encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert tuned[0].state_dict().keys() == before.keys()
    for one, other in zip(*(encoder.state_dict().values() for encoder in tuned), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert [line.split(":")[0] for line in messages[:2]] == [f"quantisation-aware epoch {epoch}/2" for epoch in (1, 2)]
    # what it makes is rounded: quantising it again changes no weight
    layer = next(module for module in tuned[0].layers if isinstance(module, torch.nn.Conv2d))
    torch.testing.assert_close(FakeQuantWeight(True)(layer.weight), layer.weight)
    pcm = torch.from_numpy(np.pad(run_corpus.val.pcm[0], (0, run.encoder.window))[: run.encoder.window])[None]
    with torch.no_grad():
        assert float((tuned[0](pcm) * run.encoder(pcm)).sum()) > 0.98


def test_fine_tuning_an_attention_encoder_is_repeatable_though_it_has_dropout(
    checkpoints: dict[str, Path], run: Run, run_corpus: Corpus
) -> None:
    encoder = pretrained(str(checkpoints["wav2vec2"]), 1.28).eval()
    few = replace(run_corpus, train=run_corpus.val)
    of_encoder = replace(run, encoder=encoder)
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        tuned = fine_tune(encoder, few, of_encoder, preset("portable"), 1, lambda line: None)
        weights.append(torch.cat([weight.flatten() for weight in tuned.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize("spoilt", [False, True])
def test_what_fine_tuning_makes_worse_is_not_taken(
    run: Run,
    run_corpus: Corpus,
    exports: dict[str, Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoilt: bool,
) -> None:
    """Few clips and few steps may carry the encoder further away than rounding does."""
    if spoilt:
        monkeypatch.setattr(qat, "LR", 1e-2)
    messages: list[str] = []
    exported = export_run(
        run, run_corpus, tmp_path / "m.onnx", quantisation=Quantisation(qat_epochs=1), say=messages.append
    )
    plain = exports["int8"]
    used = exported.contract.parity["qat_epochs"] == 1
    assert any("fine-tuning brought it closer" in line for line in messages) == used
    assert any("not used" in line for line in messages) == (not used)
    assert exported.contract.parity["cosine"] >= plain.contract.parity["cosine"]
    if spoilt:
        assert not used
        assert exported.contract.embedding_id == plain.contract.embedding_id
