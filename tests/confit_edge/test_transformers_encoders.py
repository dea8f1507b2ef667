"""Attention encoders through transformers: tiny random checkpoints always, the real Whisper where it is at hand."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    ASTFeatureExtractor,
    ASTModel,
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperFeatureExtractor,
    WhisperModel,
)

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.data.manifest import Manifest
from confit_edge.encoders import Encoder, build, pretrained
from confit_edge.encoders.log_mel import KaldiLogMel, WhisperLogMel
from confit_edge.encoders.lora import adapted
from confit_edge.encoders.pooling import AttentivePool, MaskedPool, heard
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.optimiser import frozen, make_optimiser
from confit_edge.pairtune.trainer import fit
from confit_edge.recipe import Recipe
from confit_runtime.errors import ConfitError, UsageError
from tests.confit_edge.sounds import noise

WHISPER = Path(__file__).parents[3] / "shared" / "assets" / "whisper-tiny.en-encoder"
WINDOW_S = 0.5
needs_whisper = pytest.mark.skipif(not WHISPER.is_dir(), reason=f"{WHISPER} is not here")

WAVEFORM = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
MODELS = (*WAVEFORM, "whisper", "moonshine", "ast")


def windows(encoder: Encoder, count: int = 3) -> Tensor:
    return torch.from_numpy(noise(count * encoder.window)).reshape(count, -1)


def weigh(embeddings: Tensor) -> Tensor:
    """A scalar that depends on every number of the embeddings."""
    return (embeddings * torch.linspace(-1, 1, embeddings.numel()).reshape(embeddings.shape).sin()).sum()


def two_classes(clips: int = 8) -> Corpus:
    """Noise that is high or low, from two voices a class in each split."""
    pcm = [np.diff(noise(6_000, seed)) if seed % 2 else np.cumsum(noise(6_000, seed)) / 20 for seed in range(clips)]
    targets = np.eye(2, dtype=np.int8)[np.arange(clips) % 2]
    part = Clips([np.float32(clip) for clip in pcm], targets, [str(row) for row in range(clips)], [Path()] * clips)
    return Corpus(Manifest((), Path(), False), ["low", "high"], None, False, part, part, part, [], [], [], 16_000)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_trains_a_step_and_comes_back_from_its_spec(checkpoints: dict[str, Path], name: str) -> None:
    encoder = pretrained(str(checkpoints[name]), WINDOW_S)
    assert encoder.window % encoder.hop == 0
    assert 0 < encoder.window <= WINDOW_S * encoder.sample_rate
    before = copy.deepcopy(encoder.state_dict())
    recipe = Recipe(encoder=name, epochs=1, lr=(1e-3,), clips_per_class=2, shift=0.05)
    fitted = fit(encoder, two_classes(), recipe, lr=1e-3, epochs=1)
    assert np.isfinite(fitted.history[0]["loss"])
    # everything learns but fixed position tables
    still = {key for key, value in encoder.state_dict().items() if torch.equal(value, before[key])}
    assert still <= {"model.embed_positions.weight"}

    again = build(json.loads(json.dumps(encoder.spec())))
    again.load_state_dict(encoder.state_dict(), strict=True)
    pcm = torch.from_numpy(noise(2 * encoder.window)).reshape(2, -1)
    with torch.no_grad():
        assert torch.equal(again.eval()(pcm), encoder.eval()(pcm))
        assert encoder(pcm).shape == (2, encoder.dim)


@pytest.mark.parametrize("name", WAVEFORM)
def test_frames_are_those_of_the_model_itself(checkpoints: dict[str, Path], name: str) -> None:
    encoder = pretrained(str(checkpoints[name]), WINDOW_S).eval()
    reference = AutoModel.from_pretrained(checkpoints[name]).eval()
    pcm = torch.from_numpy(noise(encoder.window))[None]
    with torch.no_grad():
        np.testing.assert_allclose(encoder.frames(pcm), reference(pcm).last_hidden_state, atol=1e-6)


def test_moonshine_frames_are_those_of_its_encoder(checkpoints: dict[str, Path]) -> None:
    encoder = pretrained(str(checkpoints["moonshine"]), WINDOW_S).eval()
    reference = AutoModel.from_pretrained(checkpoints["moonshine"]).encoder.eval()
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


def test_input_normalisation_is_read_from_the_configuration_or_else_from_the_architecture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers 5 tells it in processor_config.json alone; a model saved without an extractor does not tell."""
    for norm, normalised in (("layer", True), ("group", False)):
        folder = tmp_path / norm
        config = Wav2Vec2Config(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, feat_extract_norm=norm,
        )  # fmt: skip
        Wav2Vec2Model(config).save_pretrained(folder)
        assert pretrained(str(folder), 1.0).preprocessor == {"do_normalize": normalised}  # type: ignore[attr-defined]
        assert "has no preprocessor_config.json" in caplog.text
        preprocessor = {"do_normalize": not normalised, "feature_extractor_type": "Wav2Vec2FeatureExtractor"}
        (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": preprocessor}))
        assert pretrained(str(folder), 1.0).preprocessor == {"do_normalize": not normalised}  # type: ignore[attr-defined]


def test_a_do_normalize_of_null_is_false_as_transformers_takes_it(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["ast"], tmp_path / "null")
    extractor = ASTFeatureExtractor(max_length=126, do_normalize=None)
    extractor.save_pretrained(folder)
    assert json.loads((folder / "preprocessor_config.json").read_text())["do_normalize"] is None
    encoder = pretrained(str(folder), WINDOW_S).eval()
    pcm = noise(20_480)
    reference = extractor(pcm, sampling_rate=16_000, return_tensors="np").input_values
    np.testing.assert_allclose(encoder.front_end(torch.from_numpy(pcm)[None]), reference, atol=1e-3)
    assert encoder.preprocessor["do_normalize"] is False  # type: ignore[attr-defined]


def test_the_architecture_decides_for_a_hub_name_without_an_extractor(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Without a connection: as the hub's answer that there is none is kept, and where nothing was ever asked."""
    kept = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(checkpoints["wav2vec2"], kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    program = f"""
from pathlib import Path
from confit_edge.encoders import pretrained
from confit_runtime.errors import UsageError
try:
    pretrained('owner/tiny', 0.5)
except UsageError as error:
    print(error)
folder = Path({str(kept / ".no_exist" / "abc")!r})
folder.mkdir(parents=True)
for file in ("preprocessor_config.json", "processor_config.json"):
    (folder / file).touch()
print(pretrained('owner/tiny', 0.5).preprocessor)
"""
    offline = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True, timeout=120)
    refused, found = done.stdout.splitlines()
    assert refused.startswith(
        "--encoder owner/tiny: without a connection to the hub, it is not known whether it has a preproc"
    )
    assert found == "{'do_normalize': False}", done.stderr
    assert "owner/tiny: has no preprocessor_config.json" in done.stderr


def test_a_checkpoint_that_hears_another_rate_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["wav2vec2"], tmp_path / "telephone")
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    with pytest.raises(UsageError, match="expects sound at 8000 Hz"):
        pretrained(str(folder), 1.0)


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


# AST


@pytest.mark.parametrize("normalised", [True, False])
def test_ast_front_end_equals_the_feature_extractor(normalised: bool) -> None:
    pcm = np.concatenate([noise(9_000), np.zeros(3_000, np.float32), 5 * noise(8_480, 1)]) + 0.01
    extractor = ASTFeatureExtractor(max_length=126, do_normalize=normalised)
    reference = extractor(pcm, sampling_rate=16_000, return_tensors="np").input_values
    mean, deviation = (extractor.mean, extractor.std) if normalised else (0.0, 0.5)
    ours = KaldiLogMel(128, mean, deviation)(torch.from_numpy(pcm)[None])
    assert ours.shape == reference.shape == (1, 126, 128)
    np.testing.assert_allclose(ours, reference, atol=1e-3)


def test_ast_frames_are_the_means_of_its_patches_over_frequency(checkpoints: dict[str, Path]) -> None:
    encoder = pretrained(str(checkpoints["ast"]), WINDOW_S).eval()
    mel = 1 + (encoder.window - 400) // 160
    times, bands, of_all = (mel - 16) // 10 + 1, (128 - 16) // 10 + 1, (256 - 16) // 10 + 1
    reference = ASTModel.from_pretrained(checkpoints["ast"])
    table = reference.embeddings.position_embeddings[0]
    columns = range((of_all - times) // 2, (of_all - times) // 2 + times)
    rows = [0, 1, *(2 + band * of_all + column for band in range(bands) for column in columns)]
    cut = ASTModel(AutoConfig.from_pretrained(checkpoints["ast"], max_length=mel)).eval()
    weights = {**reference.state_dict(), "embeddings.position_embeddings": table[rows][None]}
    cut.load_state_dict(weights, strict=True)
    pcm = torch.from_numpy(noise(encoder.window))[None]
    with torch.no_grad():
        hidden = cut(encoder.front_end(pcm)).last_hidden_state[0, 2:]
        frames = encoder.frames(pcm)[0]
    assert frames.shape == (times, 32)
    for time in range(times):
        patches = torch.stack([hidden[band * times + time] for band in range(bands)])
        np.testing.assert_allclose(frames[time], patches.mean(dim=0), atol=1e-5)


def test_ast_takes_the_mean_and_deviation_of_its_checkpoint(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    AutoModel.from_pretrained(checkpoints["ast"]).save_pretrained(tmp_path)
    ASTFeatureExtractor(mean=-6.5, std=3.0).save_pretrained(tmp_path)
    encoder = pretrained(str(tmp_path), WINDOW_S)
    assert (encoder.front_end.mean, encoder.front_end.deviation) == (-6.5, 3.0)
    again = build(json.loads(json.dumps(encoder.spec())))
    assert (again.front_end.mean, again.front_end.deviation) == (-6.5, 3.0)


def test_ast_takes_no_longer_window_than_its_positions(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"at most 2\.5"):
        pretrained(str(checkpoints["ast"]), 3.0)


@pytest.mark.parametrize("freeze", ["none", "1", "2", "all"])
def test_learned_pooling_is_no_layer_and_learns_like_a_head(checkpoints: dict[str, Path], freeze: str) -> None:
    """It begins as a plain mean: at the rate of a pre-trained layer it would stay one."""
    encoder = pretrained(str(checkpoints["hubert"]), WINDOW_S, pooling="attentive", layer_weights=True)
    pooling = {id(p) for module in encoder.learned_pooling() for p in module.parameters()}
    assert pooling
    recipe = Recipe(freeze=freeze, lr_decay=0.5)
    with frozen(encoder, freeze):
        learns = {id(p) for p in encoder.parameters() if p.requires_grad}
        assert pooling <= learns
        assert (learns == pooling) == (freeze == "all" or freeze == "2")
        optimiser = make_optimiser(encoder, FineTune(encoder.dim, 4, multi_label=False), recipe, 1e-4)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert {rates[one] for one in pooling} == {recipe.head_lr}
    if freeze == "none":  # the topmost layer learns at the encoder's own rate
        assert {rates[id(p)] for p in encoder.blocks()[-1][0].parameters()} == {1e-4}
    with pytest.raises(UsageError, match="but this encoder has only 2 layers"), frozen(encoder, "3"):
        pass


# blocks


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_that_trains_is_in_exactly_one_block(checkpoints: dict[str, Path], name: str) -> None:
    encoder = pretrained(str(checkpoints[name]), WINDOW_S, pooling="attentive", layer_weights=True)
    blocks = encoder.blocks()
    assert len(blocks) == 1 + 2  # what comes before the layers, two layers
    parts = [module for block in [*blocks, encoder.learned_pooling()] for module in block]
    owners = [id(p) for module in parts for p in module.parameters() if p.requires_grad]
    assert sorted(owners) == sorted(id(p) for p in encoder.parameters() if p.requires_grad)
    names = {id(p): key for key, p in encoder.named_parameters()}
    for number, block in enumerate(blocks[1:3]):
        layer = {names[id(p)] for p in block[0].parameters()}
        assert layer
        assert all(re.search(rf"layers?\.{number}\.", key) for key in layer)
    assert {names[id(p)] for module in encoder.learned_pooling() for p in module.parameters()} == {
        "pool.score.weight",
        "layer_weights.logits",
    }


# pooling


def test_masked_pooling_is_the_mean_over_frames_that_hear_sound() -> None:
    pcm = torch.zeros(3, 50)
    pcm[0, 13] = 0.1  # the second frame of ten samples
    pcm[1, 25:45] = -0.2  # the third, fourth and fifth
    found = heard(pcm, frames=5, stride=10)
    assert found.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert heard(pcm, frames=4, stride=10).tolist() == [row[:4] for row in found.tolist()]
    frames = torch.randn(3, 5, 8)
    pooled = MaskedPool()(frames, found)
    np.testing.assert_allclose(pooled[0], frames[0, 1])
    np.testing.assert_allclose(pooled[1], frames[1, 2:5].mean(dim=0), atol=1e-6)
    np.testing.assert_allclose(pooled[2], frames[2].mean(dim=0), atol=1e-6)  # silence: all of them


def test_a_wider_encoder_is_fine_tuned_at_a_lower_rate(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    narrow = pretrained(str(checkpoints["hubert"]), WINDOW_S)
    settings = json.loads((checkpoints["hubert"] / "config.json").read_text())
    settings["hidden_size"] *= 2
    (tmp_path / "config.json").write_text(json.dumps(settings))
    wide = pretrained(str(tmp_path), WINDOW_S, initialise="random")
    assert wide.learning_rate == narrow.learning_rate / 2 == pytest.approx(1e-4 * 384 / wide.dim)


@pytest.mark.parametrize("name", ["hubert", "whisper", "moonshine", "ast"])
def test_masked_pooling_ignores_the_padding_around_a_clip(checkpoints: dict[str, Path], name: str) -> None:
    masked = pretrained(str(checkpoints[name]), WINDOW_S, pooling="masked").eval()
    mean = pretrained(str(checkpoints[name]), WINDOW_S).eval()
    clip = torch.zeros(2, masked.window)
    clip[:, 3200:6400] = torch.from_numpy(noise(3200))
    clip[1] = torch.from_numpy(noise(masked.window, 1))  # fills its window
    with torch.no_grad():
        frames = mean.frames(clip)
        stride = masked.architecture.stride(masked.settings)
        own = [time for time in range(len(frames[0])) if time * stride < 6400 and (time + 1) * stride > 3200]
        pooled = masked.pooled(clip)
        np.testing.assert_allclose(pooled[0], frames[0, own].mean(dim=0), atol=1e-5)
        np.testing.assert_allclose(pooled[1], mean.pooled(clip)[1], atol=1e-6)


def test_attentive_pooling_begins_as_the_mean_and_learns_to_look(checkpoints: dict[str, Path]) -> None:
    torch.manual_seed(0)
    pool, frames = AttentivePool(4), torch.randn(2, 6, 4)
    np.testing.assert_allclose(pool(frames, torch.ones(2, 6)).detach(), frames.mean(dim=1), atol=1e-6)
    with torch.no_grad():
        pool.score.weight.copy_(torch.tensor([[20.0, 0, 0, 0]]))
    best = frames[torch.arange(2), frames[:, :, 0].argmax(dim=1)]
    assert (pool(frames, torch.ones(2, 6)) - best).norm() < (frames.mean(dim=1) - best).norm() / 2
    encoder = pretrained(str(checkpoints["hubert"]), WINDOW_S, pooling="attentive")
    weigh(encoder(windows(encoder))).backward()
    assert encoder.pool.score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_layer_weights_sum_the_hidden_states(checkpoints: dict[str, Path], name: str) -> None:
    encoder = pretrained(str(checkpoints[name]), WINDOW_S, layer_weights=True).eval()
    pcm = windows(encoder)
    last = pretrained(str(checkpoints[name]), WINDOW_S).eval()
    with torch.no_grad():
        out = encoder.model(encoder.front_end(pcm), output_hidden_states=True)
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        assert len(states) == 3
        encoder.layer_weights.logits.copy_(torch.tensor([0.3, -1.0, 2.0]))
        share = torch.tensor([0.3, -1.0, 2.0]).exp() / torch.tensor([0.3, -1.0, 2.0]).exp().sum()
        expected = sum(weight * state for weight, state in zip(share, states, strict=True))
        ours = encoder.frames(pcm)
        np.testing.assert_allclose(ours, encoder.architecture.in_time(expected, encoder.settings), atol=1e-5)
        encoder.layer_weights.logits.copy_(torch.tensor([-50.0, -50.0, 50.0]))
        np.testing.assert_allclose(encoder.frames(pcm), last.frames(pcm), atol=1e-5)


# smaller, and random


@pytest.mark.parametrize("name", MODELS)
def test_the_last_layers_are_dropped(checkpoints: dict[str, Path], name: str) -> None:
    whole = pretrained(str(checkpoints[name]), WINDOW_S).eval()
    first = pretrained(str(checkpoints[name]), WINDOW_S, layers=1).eval()
    assert len(first.blocks()) == len(whole.blocks()) - 1
    kept = first.state_dict()
    assert kept.keys() < whole.state_dict().keys()
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in kept.items())
    again = build(json.loads(json.dumps(first.spec())))
    again.load_state_dict(kept, strict=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(windows(first)), first(windows(first)))
        if name == "wav2vec2":  # it normalises within its layers, so that a hidden state is the shorter model's last
            state = whole.model(windows(whole), output_hidden_states=True).hidden_states[1]
            np.testing.assert_allclose(first.frames(windows(first)), state, atol=1e-6)
    with pytest.raises(UsageError, match="has only 2"):
        pretrained(str(checkpoints[name]), WINDOW_S, layers=3)


@pytest.mark.parametrize("name", MODELS)
def test_the_random_control_has_the_same_architecture_and_needs_no_weights(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    (tmp_path / "config.json").write_text((checkpoints[name] / "config.json").read_text())
    one, same, other = (pretrained(str(tmp_path), WINDOW_S, initialise="random", seed=seed) for seed in (0, 0, 1))
    real = pretrained(str(checkpoints[name]), WINDOW_S)
    assert one.spec() == real.spec()
    shapes = {key: value.shape for key, value in real.state_dict().items()}
    assert {key: value.shape for key, value in one.state_dict().items()} == shapes
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in one.state_dict().items())
    matrices = [key for key, shape in shapes.items() if len(shape) > 1 and not re.search("position|token|const$", key)]
    assert len(matrices) > 10
    for key in matrices:
        assert not torch.equal(one.state_dict()[key], other.state_dict()[key]), key
        assert not torch.equal(one.state_dict()[key], real.state_dict()[key]), key
    assert torch.isfinite(one.eval()(windows(one))).all()


# LoRA


@pytest.mark.parametrize("name", MODELS)
def test_adapters_alone_train_and_are_merged_into_a_plain_encoder(checkpoints: dict[str, Path], name: str) -> None:
    encoder = pretrained(str(checkpoints[name]), WINDOW_S, pooling="attentive").eval()
    before = copy.deepcopy(encoder.state_dict())
    learnt = {key for key, parameter in encoder.named_parameters() if parameter.requires_grad}
    pcm = windows(encoder)
    with torch.no_grad():
        plain = encoder(pcm)
    torch.manual_seed(0)
    with adapted(encoder, rank=2):
        trained = {key: p for key, p in encoder.named_parameters() if p.requires_grad}
        assert {key for key in trained if "lora_" not in key} == {"pool.score.weight"}
        parts = [module for block in [*encoder.blocks(), encoder.learned_pooling()] for module in block]
        assert {id(p) for p in trained.values()} <= {id(p) for module in parts for p in module.parameters()}
        with torch.no_grad():
            np.testing.assert_allclose(encoder(pcm), plain, atol=1e-6)
        optimiser = torch.optim.SGD(trained.values(), lr=3.0)
        for _ in range(2):  # the second of two factors begins at 0: the first learns from the second step on
            optimiser.zero_grad()
            weigh(encoder(pcm)).backward()
            optimiser.step()
        dead = [key for key, p in trained.items() if p.grad is None or float(p.grad.abs().max()) == 0.0]
        assert not dead, "adapters that are not heard"
        with torch.no_grad():
            moved = encoder(pcm)
    assert float((moved - plain).abs().max()) > 1e-4
    with torch.no_grad():
        np.testing.assert_allclose(encoder(pcm), moved, atol=1e-5)
    assert encoder.state_dict().keys() == before.keys()
    changed = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert 4 <= len(changed) < len(before) - 4
    assert {key for key, parameter in encoder.named_parameters() if parameter.requires_grad} == learnt
    build(encoder.spec()).load_state_dict(encoder.state_dict(), strict=True)


def test_no_adapters_where_the_rank_is_0(checkpoints: dict[str, Path]) -> None:
    encoder = pretrained(str(checkpoints["hubert"]), WINDOW_S)
    before = dict(encoder.named_parameters())
    with adapted(encoder, rank=0):
        assert dict(encoder.named_parameters()).keys() == before.keys()


# refusals


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_that_lacks_an_encoder_weight_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    weights = load_file(checkpoints[name] / "model.safetensors")
    lost = next(key for key in sorted(weights) if re.search(r"layers?\.1\.", key) and "decoder" not in key)
    del weights[lost]
    (tmp_path / "config.json").write_text((checkpoints[name] / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfitError, match="lacks 1 encoder weight") as caught:
        pretrained(str(tmp_path), WINDOW_S)
    assert re.search(r"layers?\.1\.", str(caught.value))  # transformers 5 calls some by another name than the file


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


@pytest.mark.parametrize(
    ("file", "damaged", "message"),
    [
        ("preprocessor_config.json", {"feature_extractor_type": "Nope"}, "Unrecognized feature extractor"),
        ("preprocessor_config.json", [], "cannot be read"),
        ("config.json", {"hidden_size": 33}, "describes no model that can be built"),
        ("config.json", {"num_attention_heads": 0}, "describes no model that can be built"),
        ("config.json", {"conv_stride": [0] * 7}, "describes no model that can be built"),
        ("config.json", {"layer_norm_eps": float("nan")}, "embeddings are not finite"),
        ("config.json", [], "not a built-in encoder"),
    ],
)
def test_a_checkpoint_whose_files_describe_no_model_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, file: str, damaged: dict[str, object] | list[object], message: str
) -> None:
    folder = shutil.copytree(checkpoints["wav2vec2"], tmp_path / "damaged")
    if file == "config.json" and isinstance(damaged, dict):
        damaged = {**json.loads((folder / file).read_text()), **damaged}
    (folder / file).write_text(json.dumps(damaged))
    with pytest.raises(UsageError, match=f"--encoder .*{message}") as caught:
        pretrained(str(folder), WINDOW_S)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 100 + 3 * len(str(folder))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("std", None, "sets std to None; it must be a number above 0"),
        ("std", [1, 2] * 50, r"sets std to \[1, 2, .*; it must be a number above 0"),
        ("std", 0, "sets std to 0; it must be a number above 0"),
        ("std", 1e-45, "embeddings are not finite numbers"),
        ("std", True, "sets std to True; it must be a number above 0"),
        ("mean", "a", "sets mean to 'a'; it must be a finite number"),
        ("mean", float("nan"), "sets mean to nan; it must be a finite number"),
        ("mean", 10**400, "sets mean to 10+; it must be a finite number"),
        ("do_normalize", "no", "sets do_normalize to 'no'; it must be true or false"),
        ("sampling_rate", "16000", "sets sampling_rate to '16000'; it must be a finite number"),
    ],
)
def test_a_feature_extractor_with_a_value_of_the_wrong_kind_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, key: str, value: object, message: str
) -> None:
    folder = shutil.copytree(checkpoints["ast"], tmp_path / "damaged")
    ASTFeatureExtractor().save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(UsageError, match=f"--encoder .*preprocessor_config.json,? {message}$") as caught:
        pretrained(str(folder), WINDOW_S)
    assert len(str(caught.value)) < 200 + len(str(folder))


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_are_not_finite_are_refused(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(checkpoints[name], tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in weights if key.endswith("weight") and "norm" in key and "decoder" not in key)
    weights[key][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfitError, match=r"its weights are damaged \(\S*norm\S* holds numbers that are not finite"):
        pretrained(str(folder), WINDOW_S)


@pytest.mark.parametrize("name", MODELS)
def test_a_window_too_short_for_one_frame_is_refused(checkpoints: dict[str, Path], name: str) -> None:
    with pytest.raises(UsageError, match="--window"):
        pretrained(str(checkpoints[name]), 0.01)
