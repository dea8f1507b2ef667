"""speech_embedding: equal to what was published, and one clip's embedding is its own."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.encoders import base, build, pretrained
from confit_edge.encoders.base import Encoder, centred, normalise, whole_hops
from confit_edge.encoders.embedding import embed_clips
from confit_edge.encoders.lora import adapted
from confit_edge.encoders.spec_augment import SpecAugment
from confit_edge.encoders.speech_embedding import HOP, PART_HOPS, RECEPTIVE, SILENCE, SpeechEmbedding
from confit_runtime.errors import ConfitError, UsageError
from tests.confit_edge.sounds import noise

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "speech_embedding_reference.npz")
CPU = torch.device("cpu")
LEAD = (512 - 400) // 2  # the published spectrum looks at 512 samples, of which the window leaves the middle 400


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return pretrained("speech-embedding", 1.28).eval()


# parity


def test_mel_and_embeddings_equal_the_published_graphs(encoder: SpeechEmbedding) -> None:
    pcm = torch.from_numpy(REFERENCE["pcm"].astype(np.float32) / 32768)[None, LEAD:]
    mel, embeddings = REFERENCE["mel"], REFERENCE["embeddings"]
    with torch.no_grad():
        ours = encoder.front_end(encoder.spectrum(pcm[:, None]))[0, 0].numpy()
        frames = encoder.frames(pcm[:, : RECEPTIVE + (len(embeddings) - 1) * HOP])[0].numpy()
    common = min(len(mel), len(ours))
    assert common >= 150
    np.testing.assert_allclose(ours[:common], mel[:common], atol=1e-4 * np.abs(mel).max())
    assert frames.shape == embeddings.shape
    np.testing.assert_allclose(frames, embeddings, atol=1e-4 * np.abs(embeddings).max())


def test_every_weight_is_the_published_one_and_none_is_missing(encoder: SpeechEmbedding) -> None:
    assert sum(parameter.numel() for parameter in encoder.parameters()) > 300_000
    for name, tensor in encoder.state_dict().items():
        assert tensor.abs().sum() > 0, name


# windows and hops


@pytest.mark.parametrize(("window_s", "least"), [(0.1, 0.78), (0.9, 0.78), (1.28, 1.2), (2.0, 1.9)])
def test_a_window_is_no_longer_than_requested(window_s: float, least: float) -> None:
    encoder = SpeechEmbedding(SpeechEmbedding.pool_hops_for(window_s))
    seconds = encoder.window / encoder.sample_rate
    assert encoder.window % encoder.hop == 0
    assert least <= seconds <= max(window_s, (RECEPTIVE + HOP) / encoder.sample_rate)
    assert encoder.frames(torch.zeros(1, encoder.window)).shape == (1, encoder.pool_hops, encoder.dim)


@settings(max_examples=8)
@given(samples=st.integers(1, 60_000))
def test_rows_of_a_clip_are_those_of_its_windows(encoder: SpeechEmbedding, samples: int) -> None:
    clip = torch.from_numpy(noise(samples))
    fast, plain = encoder.rows(clip), Encoder.rows(encoder, clip)
    assert fast.shape == plain.shape
    np.testing.assert_allclose(fast, plain, atol=1e-5)


def test_a_long_clip_in_parts_equals_the_whole(encoder: SpeechEmbedding) -> None:
    clip = torch.from_numpy(noise(700_003))
    whole = Encoder.rows(encoder, clip)
    assert len(whole) > 2 * PART_HOPS
    np.testing.assert_allclose(encoder.rows(clip), whole, atol=1e-5)


def test_of_long_windows_fewer_are_embedded_together(encoder: SpeechEmbedding) -> None:
    """Embedding has a bound on memory: where nothing is learnt --chunk-size says nothing."""
    together: list[int] = []
    longer = SpeechEmbedding(pool_hops=53).eval()  # windows of five seconds
    longer.register_forward_pre_hook(lambda module, given: together.append(len(given[0])))
    clips = [noise(40_000, seed) for seed in range(40)]
    embed_clips(longer, clips, CPU)
    Encoder.rows(longer, torch.from_numpy(noise(16_000 * 10)))
    assert together[:3] == [16, 16, 8]
    assert max(together) == longer.at_once == 16
    assert encoder.at_once == 64


def test_a_short_clip_is_centred_and_a_long_one_padded_at_its_end() -> None:
    clip = torch.arange(1.0, 4.0)
    assert centred(clip, 6).tolist() == [0, 1, 2, 3, 0, 0]
    assert centred(clip, 2).tolist() == clip.tolist()
    assert whole_hops(clip, 6, 4).tolist() == [0, 1, 2, 3, 0, 0]
    assert whole_hops(torch.arange(1.0, 10.0), 6, 4).tolist() == [*range(1, 10), 0]
    assert whole_hops(torch.arange(1.0, 11.0), 6, 4).tolist() == [*range(1, 11)]


def test_neighbours_in_a_batch_do_not_matter(encoder: Encoder) -> None:
    quiet = torch.from_numpy(noise(encoder.window, level=0.003))
    loud = torch.from_numpy(noise(encoder.window, 1, level=0.9))
    with torch.no_grad():
        alone, batched = encoder(quiet[None])[0], encoder(torch.stack([loud, quiet, loud]))[1]
    np.testing.assert_allclose(alone, batched, atol=1e-5)


def test_the_floor_is_absolute_a_loud_sound_elsewhere_changes_nothing(encoder: SpeechEmbedding) -> None:
    quiet = noise(2 * encoder.window, level=0.001)
    loud = quiet.copy()
    loud[: RECEPTIVE // 2] = noise(RECEPTIVE // 2, 1, level=0.9)
    with torch.no_grad():
        one, other = (encoder.frames(torch.from_numpy(pcm)[None])[0, -8:] for pcm in (quiet, loud))
    np.testing.assert_allclose(one, other, atol=1e-5 * float(one.abs().max()))
    below = noise(encoder.window, level=1e-6)
    with torch.no_grad():
        silence, whisper = (encoder(torch.from_numpy(pcm)[None]) for pcm in (np.zeros_like(below), below))
    np.testing.assert_allclose(silence, whisper, atol=1e-6)
    assert torch.isfinite(silence).all()


def test_embeddings_are_centred_and_of_length_one() -> None:
    x = torch.randn(4, 3, 96) * 30 + 100
    unit = normalise(x)
    np.testing.assert_allclose(unit.norm(dim=-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(unit, torch.nn.functional.layer_norm(x, (96,), eps=0) / 96**0.5, atol=1e-5)
    assert torch.isfinite(normalise(torch.zeros(2, 96))).all()


def test_clips_of_any_length_are_embedded_in_their_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "AT_ONCE", 2)
    clips = [noise(samples, seed) for seed, samples in enumerate((9_000, 50_000, encoder.window, 16_000, 21_000))]
    found = embed_clips(encoder, clips, CPU)
    for clip, row in zip(clips, found, strict=True):
        mean = encoder.rows(torch.from_numpy(clip)).mean(dim=0)
        np.testing.assert_allclose(row, mean / mean.norm(), atol=1e-5)


def test_masks_silence_a_stretch_of_time_and_of_bands_in_training_only() -> None:
    mask = SpecAugment(floor=SILENCE)
    mel = torch.full((200, 1, 100, 32), 9.0)
    assert torch.equal(mask.eval()(mel), mel)
    torch.manual_seed(0)
    masked = mask.train()(mel)
    torch.manual_seed(0)
    assert torch.equal(mask(mel), masked)
    assert not torch.equal(mask(mel), masked)
    assert mel.min() == 9.0
    assert set(masked.unique().tolist()) == {9.0, SILENCE}
    silent = masked[:, 0] == SILENCE
    for frames, bands in zip(silent.all(dim=2), silent.all(dim=1), strict=True):
        assert (silent[0].shape[0] - frames.sum()) >= 85
        assert bands.sum() <= 0.2 * 32
        for stretch in (frames, bands):
            at = torch.nonzero(stretch)[:, 0]
            assert len(at) == 0 or at[-1] - at[0] + 1 == len(at)  # in one piece
    assert len({int(frames.sum()) for frames in silent.all(dim=2)}) > 5  # each clip its own
    copy.deepcopy(mask)


def test_silence_is_what_the_front_end_makes_of_it(encoder: SpeechEmbedding) -> None:
    mel = encoder.front_end(encoder.spectrum(torch.zeros(1, 1, RECEPTIVE)))
    assert mel.unique().tolist() == pytest.approx([SILENCE])


# as plain data


def test_the_same_architecture_comes_back_from_its_spec(encoder: Encoder) -> None:
    again = build(encoder.spec())
    again.load_state_dict(encoder.state_dict(), strict=True)
    pcm = torch.from_numpy(noise(2 * encoder.window)).reshape(2, -1)
    with torch.no_grad():
        assert torch.equal(again.eval()(pcm), encoder(pcm))


def test_blocks_hold_each_parameter_once_from_input_to_output(encoder: SpeechEmbedding) -> None:
    owned = [id(p) for block in encoder.blocks() for module in block for p in module.parameters()]
    assert owned == [id(p) for p in encoder.parameters()]
    assert [len(block) for block in encoder.blocks()] == [3, 4, 4, 4, 4, 1]


def test_the_random_control_keeps_the_front_end_and_draws_the_layers_from_the_seed(encoder: SpeechEmbedding) -> None:
    one, same, other = (pretrained("speech-embedding", 1.28, initialise="random", seed=seed) for seed in (0, 0, 1))
    state = torch.random.get_rng_state()
    pretrained("speech-embedding", 1.28, initialise="random", seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left alone
    assert torch.equal(one.front_end.mel, encoder.front_end.mel)
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key])
        if key.endswith("weight"):
            assert not torch.equal(value, other.state_dict()[key])
            assert not torch.equal(value, encoder.state_dict()[key])
    with torch.no_grad():
        frames = one.eval().frames(torch.from_numpy(noise(2 * one.window)).reshape(2, -1))
    assert 1e-2 < float(frames.std()) < 1e2  # not died away in twenty layers


@pytest.mark.parametrize("options", [{"pooling": "masked"}, {"layers": 3}, {"layer_weights": True}])
def test_what_attention_encoders_alone_can_do_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"'{next(iter(options))}'.*speech-embedding"):
        pretrained("speech-embedding", 1.28, **options)


def test_adapters_are_for_attention_encoders(encoder: SpeechEmbedding) -> None:
    with pytest.raises(UsageError, match="'lora_rank'"), adapted(encoder, rank=4):
        pass


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfitError, match="'hearsay'"):
        build({"family": "hearsay"})
