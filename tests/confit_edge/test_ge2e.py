"""GE2E: the weights that ship are Resemblyzer's, the front end is its own, and it runs as the other encoders do."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from confit_edge.data.corpus import Corpus
from confit_edge.encoders import build, pretrained
from confit_edge.encoders.ge2e import GE2E, LEVEL
from confit_edge.pairtune.trainer import fit
from confit_edge.recipe import Recipe
from confit_runtime.errors import UsageError

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "ge2e_reference.npz")
RATE = 16_000


@pytest.fixture(scope="module")
def encoder() -> GE2E:
    return pretrained("ge2e", 1.28).eval()


@pytest.fixture(scope="module")
def pcm() -> torch.Tensor:
    return torch.from_numpy(REFERENCE["pcm"].astype(np.float32) / 32768)


def test_mel_and_embedding_equal_resemblyzers_own(encoder: GE2E, pcm: torch.Tensor) -> None:
    """But for the level, to which Resemblyzer only raises, and for what is below the voice, which it keeps."""
    published = copy.deepcopy(encoder)
    published.front_end.without_hum = torch.nn.Identity()
    with torch.no_grad():
        mel = published.front_end(pcm).numpy()
        published.front_end = torch.nn.Identity()
        frames = published.frames(torch.from_numpy(REFERENCE["mel"]))
    level = np.maximum(pcm.square().mean(dim=1).sqrt().numpy(), 10 ** (-30 / 20))
    for ours, theirs, factor in zip(mel, REFERENCE["mel"], (LEVEL / level) ** 2, strict=True):
        np.testing.assert_allclose(ours, factor * theirs, atol=1e-5 * factor * theirs.max())
    assert frames.shape == (3, 1, 256)
    voice = torch.nn.functional.normalize(frames[:, 0], dim=1).numpy()
    assert (voice * REFERENCE["embeddings"]).sum(axis=1).min() > 0.99999  # weights are stored in half precision


def test_a_voice_without_low_frequencies_is_as_published(encoder: GE2E, pcm: torch.Tensor) -> None:
    spectrum = torch.fft.rfft(pcm)
    spectrum[:, : round(120 * pcm.shape[1] / RATE)] = 0
    voice = torch.fft.irfft(spectrum, n=pcm.shape[1])
    published = copy.deepcopy(encoder)
    published.front_end.without_hum = torch.nn.Identity()
    with torch.no_grad():
        inside = (encoder.front_end.without_hum(voice) - voice)[:, 800:-800]
        assert (inside.abs().amax(dim=1) < 2e-3 * voice.abs().amax(dim=1)).all()
        assert (encoder(voice) * published(voice)).sum(dim=1).min() > 0.999


@pytest.mark.parametrize("hertz", [0, 20, 49.9, 50, 60])
def test_what_is_below_the_voice_is_removed(encoder: GE2E, hertz: float) -> None:
    low = torch.cos(2 * np.pi * hertz * torch.arange(encoder.window, dtype=torch.float64) / RATE + 0.7).float()[None]
    with torch.no_grad():
        left = encoder.front_end.without_hum(low)
    assert left[:, 800:-800].abs().max() < 0.015
    assert left.square().mean() < 2e-3 * low.square().mean()  # at the edges, hum is reflected with another phase


@pytest.mark.parametrize("gain_db", [-20, 0, 10])
@pytest.mark.parametrize(("offset", "hum"), [(0.0, 0), (0.02, 0), (-0.05, 0), (0.0, 50), (0.0, 60)])
def test_neither_level_nor_offset_nor_hum_matter(
    encoder: GE2E, pcm: torch.Tensor, gain_db: int, offset: float, hum: int
) -> None:
    voice = pcm / pcm.square().mean(dim=1, keepdim=True).sqrt() * 10 ** (-30 / 20)
    wave = 0.01 * 2**0.5 * torch.sin(2 * np.pi * hum * torch.arange(encoder.window) / RATE)
    with torch.no_grad():
        embedding = encoder(10 ** (gain_db / 20) * (voice + wave) + offset)
        assert (embedding * encoder(voice)).sum(dim=1).min() > (0.97 if hum else 0.9999)


def test_a_quiet_room_is_heard_as_noise_and_silence_stays_silent(encoder: GE2E, pcm: torch.Tensor) -> None:
    noise = torch.randn(1, encoder.window, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        quiet, loud = encoder(10 ** (-90 / 20) * noise), encoder(0.1 * noise)
        assert (quiet * loud).sum() > 0.9999
        assert (encoder(pcm) @ quiet.T).max() < 0.5
        assert not encoder.front_end(torch.zeros(1, encoder.window)).any()
        assert torch.isfinite(encoder(torch.zeros(1, encoder.window))).all()
        softest, offset = (10 ** (-110 / 20) * noise, torch.full((1, encoder.window), 0.05))
        assert 0 < encoder.front_end(softest).mean() < 0.11 * encoder.front_end(noise).mean()
        assert encoder.front_end(offset).mean() < 0.1 * encoder.front_end(noise).mean()


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
