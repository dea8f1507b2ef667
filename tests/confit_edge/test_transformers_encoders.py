"""Attention encoders through transformers: tiny random checkpoints always, the real Whisper where it is at hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    WhisperModel,
)

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.data.manifest import Manifest
from confit_edge.encoders import Encoder, build, pretrained
from confit_edge.encoders.transformers import WhisperLogMel
from confit_edge.pairtune.config import Recipe
from confit_edge.pairtune.trainer import fit
from confit_runtime.errors import ConfitError, UsageError

WHISPER = Path(__file__).parents[3] / "shared" / "assets" / "whisper-tiny.en-encoder"
WINDOW_S = 0.5
needs_whisper = pytest.mark.skipif(not WHISPER.is_dir(), reason=f"{WHISPER} is not here")

MODELS = ("wav2vec2", "hubert", "wavlm", "whisper")


def noise(samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def two_classes(clips: int = 8) -> Corpus:
    """Noise that is high or low, from two voices a class in each split."""
    pcm = [np.diff(noise(6_000, seed)) if seed % 2 else np.cumsum(noise(6_000, seed)) / 20 for seed in range(clips)]
    targets = np.eye(2, dtype=np.int8)[np.arange(clips) % 2]
    part = Clips([np.float32(clip) for clip in pcm], targets, [str(row) for row in range(clips)], [Path()] * clips)
    return Corpus(Manifest((), Path(), False), ["low", "high"], None, False, part, part, part, [], [], [])


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_trains_a_step_and_comes_back_from_its_spec(checkpoints: dict[str, Path], name: str) -> None:
    encoder = pretrained(str(checkpoints[name]), WINDOW_S)
    assert encoder.window % encoder.hop == 0
    assert 0 < encoder.window <= WINDOW_S * encoder.sample_rate
    before = copy.deepcopy(encoder.state_dict())
    recipe = Recipe(encoder=name, epochs=1, lr=(1e-3,), clips_per_class=2, shift=0.05)
    fitted = fit(encoder, two_classes(), recipe, lr=1e-3, epochs=1)
    assert np.isfinite(fitted.history[0]["loss"])
    # everything learns but SpecAugment's mask and fixed position tables
    still = {key for key, value in encoder.state_dict().items() if torch.equal(value, before[key])}
    assert still <= {"model.masked_spec_embed", "model.embed_positions.weight"}

    again = build(json.loads(json.dumps(encoder.spec())))
    again.load_state_dict(encoder.state_dict(), strict=True)
    pcm = torch.from_numpy(noise(2 * encoder.window)).reshape(2, -1)
    with torch.no_grad():
        assert torch.equal(again.eval()(pcm), encoder.eval()(pcm))
        assert encoder(pcm).shape == (2, encoder.dim)


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm"])
def test_frames_are_those_of_the_model_itself(checkpoints: dict[str, Path], name: str) -> None:
    encoder = pretrained(str(checkpoints[name]), WINDOW_S).eval()
    reference = AutoModel.from_pretrained(checkpoints[name]).eval()
    pcm = torch.from_numpy(noise(encoder.window))[None]
    with torch.no_grad():
        np.testing.assert_allclose(encoder.frames(pcm), reference(pcm).last_hidden_state, atol=1e-6)


def test_input_is_normalised_where_the_checkpoint_was_trained_so(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    AutoModel.from_pretrained(checkpoints["wav2vec2"]).save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    plain, encoder = pretrained(str(checkpoints["wav2vec2"]), WINDOW_S).eval(), pretrained(str(tmp_path), WINDOW_S)
    pcm = 0.05 + noise(encoder.window)
    normalised = torch.from_numpy(extractor(pcm, sampling_rate=16_000, return_tensors="np").input_values)
    with torch.no_grad():
        ours = encoder.eval().frames(torch.from_numpy(pcm)[None])
        np.testing.assert_allclose(ours, plain.frames(normalised), atol=1e-4)
    assert build(encoder.spec()).spec() == encoder.spec()


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_a_checkpoint_in_half_precision_is_trained_in_fp32(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    AutoModel.from_pretrained(checkpoints[name]).half().save_pretrained(tmp_path)
    encoder = pretrained(str(tmp_path), WINDOW_S)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert torch.isfinite(encoder(torch.from_numpy(noise(encoder.window))[None])).all()


# Whisper


@pytest.mark.parametrize("bands", [80, 128])
def test_whisper_front_end_equals_the_feature_extractor(bands: int) -> None:
    pcm = np.concatenate([noise(12_000), np.zeros(4_000, np.float32), noise(16_000, 1) * 5])
    extractor = WhisperFeatureExtractor(feature_size=bands)
    reference = extractor(pcm, sampling_rate=16_000, padding=False, return_tensors="np").input_features
    ours = WhisperLogMel(bands)(torch.from_numpy(pcm)[None])
    assert ours.shape == reference.shape == (1, bands, 200)
    np.testing.assert_allclose(ours, reference, atol=1e-4)


def test_whisper_clips_do_not_depend_on_their_neighbours(checkpoints: dict[str, Path]) -> None:
    encoder = pretrained(str(checkpoints["whisper"]), WINDOW_S).eval()
    quiet, loud = torch.from_numpy(noise(encoder.window) / 3000), torch.from_numpy(noise(encoder.window, 1) * 9)
    with torch.no_grad():
        np.testing.assert_allclose(encoder(torch.stack([loud, quiet]))[1], encoder(quiet[None])[0], atol=1e-5)


def test_whisper_takes_no_longer_window_than_its_positions(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="at most 2 s"):
        pretrained(str(checkpoints["whisper"]), 3.0)


def same_as_whisper(path: Path, encoder: Encoder, pcm: npt.NDArray[np.float32]) -> None:
    """On one window, ours equals Whisper's own encoder with its position table cut to the window."""
    reference = WhisperModel.from_pretrained(path).encoder.eval()
    positions = encoder.window // 320
    reference.config.max_source_positions = positions
    table = reference.embed_positions.weight[:positions]
    reference.embed_positions = torch.nn.Embedding.from_pretrained(table)
    extractor = WhisperFeatureExtractor(feature_size=reference.config.num_mel_bins)
    features = extractor(pcm, sampling_rate=16_000, padding=False, return_tensors="pt")
    with torch.no_grad():
        expected = reference(features.input_features).last_hidden_state
        ours = encoder.eval().frames(torch.from_numpy(pcm)[None])
    np.testing.assert_allclose(ours, expected, atol=1e-4 * float(expected.abs().max()))


def test_random_whisper_equals_its_own_encoder(checkpoints: dict[str, Path]) -> None:
    encoder = pretrained(str(checkpoints["whisper"]), 2.0)
    same_as_whisper(checkpoints["whisper"], encoder, noise(encoder.window))


@needs_whisper
def test_real_whisper_equals_its_own_encoder_on_speech() -> None:
    import soundfile

    encoder = pretrained(str(WHISPER), 2.0)
    speech = Path(__file__).parents[2] / "confit_edge" / "demo" / "data" / "background" / "test" / "speech-it-2.ogg"
    pcm, _ = soundfile.read(speech, stop=encoder.window, dtype="float32")
    assert len(pcm) == encoder.window >= 1.9 * 16_000
    same_as_whisper(WHISPER, encoder, pcm)


# refusals


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_that_lacks_an_encoder_weight_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    weights = load_file(checkpoints[name] / "model.safetensors")
    lost = next(key for key in sorted(weights) if "encoder.layers.1." in key and "decoder" not in key)
    del weights[lost]
    (tmp_path / "config.json").write_text((checkpoints[name] / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfitError, match="lacks 1 encoder weight") as caught:
        pretrained(str(tmp_path), WINDOW_S)
    assert lost in str(caught.value)


def test_a_whisper_without_decoder_weights_is_taken(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(checkpoints["whisper"] / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "decoder" not in key}
    assert 0 < len(kept) < len(weights)
    (tmp_path / "config.json").write_text((checkpoints["whisper"] / "config.json").read_text())
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert pretrained(str(tmp_path), WINDOW_S).dim == 32


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    BertModel(bert).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="'bert'"):
        pretrained(str(tmp_path), WINDOW_S)


def test_a_folder_without_a_checkpoint_and_damaged_weights_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--encoder"):
        pretrained(str(tmp_path), WINDOW_S)
    (tmp_path / "config.json").write_text((checkpoints["hubert"] / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((checkpoints["hubert"] / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfitError, match="--encoder") as caught:
        pretrained(str(tmp_path), WINDOW_S)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_window_too_short_for_one_frame_is_refused(checkpoints: dict[str, Path], name: str) -> None:
    with pytest.raises(UsageError, match="--window"):
        pretrained(str(checkpoints[name]), 0.01)
