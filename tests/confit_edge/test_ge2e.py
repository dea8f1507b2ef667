"""GE2E: the weights that ship are Resemblyzer's, the front end is its own, and it runs as the other encoders do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from confit_edge.data.corpus import Corpus
from confit_edge.encoders import build, pretrained
from confit_edge.encoders.ge2e import GE2E
from confit_edge.pairtune.trainer import fit
from confit_edge.recipe import Recipe
from confit_runtime.errors import UsageError

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "ge2e_reference.npz")


@pytest.fixture(scope="module")
def encoder() -> GE2E:
    return pretrained("ge2e", 1.28).eval()


@pytest.fixture(scope="module")
def pcm() -> torch.Tensor:
    return torch.from_numpy(REFERENCE["pcm"].astype(np.float32) / 32768)


def test_mel_and_embedding_equal_resemblyzers_own(encoder: GE2E, pcm: torch.Tensor) -> None:
    with torch.no_grad():
        mel, frames = encoder.front_end(pcm).numpy(), encoder.frames(pcm)
    for ours, published in zip(mel, REFERENCE["mel"], strict=True):
        np.testing.assert_allclose(ours, published, atol=1e-5 * published.max())
    assert frames.shape == (3, 1, 256)
    voice = torch.nn.functional.normalize(frames[:, 0], dim=1).numpy()
    assert (voice * REFERENCE["embeddings"]).sum(axis=1).min() > 0.99999  # weights are stored in half precision


def test_soft_speech_is_made_louder_and_loud_speech_left(encoder: GE2E, pcm: torch.Tensor) -> None:
    loud = pcm[:1] / pcm[0].abs().max()
    with torch.no_grad():
        np.testing.assert_allclose(encoder(1e-3 * loud), encoder(1e-2 * loud), atol=1e-4)
        assert (encoder.front_end(loud) / encoder.front_end(loud / 2)).median() > 3.9
        silence = encoder(torch.zeros(1, encoder.window))
    assert torch.isfinite(silence).all()


def test_neighbours_in_a_batch_do_not_matter(encoder: GE2E, pcm: torch.Tensor) -> None:
    with torch.no_grad():
        np.testing.assert_allclose(encoder(pcm)[2], encoder(pcm[2:])[0], atol=1e-5)


@pytest.mark.parametrize("window_s", [0.5, 1.6, 4.0])
def test_its_window_is_the_one_it_was_trained_on(window_s: float) -> None:
    encoder = pretrained("ge2e", window_s)
    assert encoder.window == 25_600
    assert encoder.window % encoder.hop == 0


def test_blocks_hold_each_parameter_once(encoder: GE2E) -> None:
    owned = [id(p) for block in encoder.blocks() for module in block for p in module.parameters()]
    assert sorted(owned) == sorted(id(p) for p in encoder.parameters())
    assert len(encoder.blocks()) == 4


def test_it_trains_a_step_and_comes_back_from_its_spec(corpus: Corpus) -> None:
    encoder = pretrained("ge2e", 1.6)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    fitted = fit(encoder, corpus, Recipe(epochs=1, clips_per_class=2), lr=1e-4, epochs=1)
    assert np.isfinite(fitted.history[0]["loss"])
    assert not [key for key, value in encoder.state_dict().items() if torch.equal(value, before[key])]
    again = build(json.loads(json.dumps(encoder.spec())))
    again.load_state_dict(encoder.state_dict(), strict=True)
    window = torch.randn(2, encoder.window) / 10
    with torch.no_grad():
        assert torch.equal(again.eval()(window), encoder.eval()(window))


def test_the_random_control_is_drawn_from_the_seed() -> None:
    one, same, other = (pretrained("ge2e", 1.6, initialise="random", seed=seed).state_dict() for seed in (0, 0, 1))
    real = pretrained("ge2e", 1.6).state_dict()
    assert one.keys() == real.keys()
    for key, value in one.items():
        assert torch.equal(value, same[key])
        assert not torch.equal(value, other[key])
        assert not torch.equal(value, real[key])


@pytest.mark.parametrize(
    "options", [{"pooling": "masked"}, {"pooling": "attentive"}, {"layers": 2}, {"layer_weights": True}]
)
def test_what_attention_encoders_alone_can_do_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        pretrained("ge2e", 1.6, **options)
