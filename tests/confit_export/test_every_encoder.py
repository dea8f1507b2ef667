"""Each encoder there is becomes a model file that answers as torch does, with its pooling and its adapters inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from confit_edge.encoders import pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.lora import adapted
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.typicality import Typicality
from confit_export.graph import assemble, to_onnx
from confit_export.quantize import quantisable
from confit_export.streaming import StreamingStack
from confit_runtime.errors import ConfitError

Floats = npt.NDArray[np.float32]
KINDS = ["wav2vec2", "hubert", "wavlm", "data2vec-audio", "ast", "whisper", "moonshine"]
CLASSES = 3


def probe_for(encoder: Encoder) -> LinearProbe:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((CLASSES, encoder.dim)).astype(np.float32)
    return LinearProbe(weight, rng.standard_normal(CLASSES).astype(np.float32), multi_label=False)


def typicality_for(encoder: Encoder) -> Typicality:
    """Of clips that are noise but for one direction a class, with one in which all of them differ."""
    rng = np.random.default_rng(2)
    targets = np.eye(CLASSES, dtype=np.int8)[np.arange(90) % CLASSES]
    clips = rng.standard_normal((90, encoder.dim)) + 9 * np.pad(targets, ((0, 0), (1, encoder.dim - CLASSES - 1)))
    clips[:, 0] += 9 * rng.standard_normal(90)
    unit = (clips / np.linalg.norm(clips, axis=1, keepdims=True)).astype(np.float32)
    return Typicality.fit(unit[:60], targets[:60], unit[60:], targets[60:])


def sounds(encoder: Encoder) -> Floats:
    """Two windows of noise, the second of them silent for its first third, as a short clip is."""
    pcm = 0.1 * np.random.default_rng(1).standard_normal((2, encoder.window)).astype(np.float32)
    pcm[1, : encoder.window // 3] = 0.0
    return pcm


def check_windowed(encoder: Encoder) -> onnx.ModelProto:
    probe, typicality = probe_for(encoder.eval()), typicality_for(encoder)
    model = assemble(encoder, probe, typicality)
    graph = to_onnx(model, encoder, np.zeros((1, encoder.dim), np.float32))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pcm = sounds(encoder)
    scores, embedding = session.run(["scores", "embedding"], {"pcm": pcm})
    with torch.no_grad():
        expected = encoder(torch.from_numpy(pcm)).numpy()
    assert embedding.shape == (2, 1, encoder.dim)
    np.testing.assert_allclose(embedding[:, 0], expected, atol=1e-4)
    np.testing.assert_allclose(scores[:, 0], probe.scores(expected) * typicality.factors(expected), atol=1e-3)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # it hears them as two sounds
    layers = quantisable(graph, "weight-only", model.fp32_scopes)
    assert layers
    assert not [name for name in layers if "front_end" in name or "head" in name]
    return graph


@pytest.mark.parametrize("kind", KINDS)
def test_an_attention_encoder_answers_as_in_torch(kind: str, checkpoints: dict[str, Path]) -> None:
    check_windowed(pretrained(str(checkpoints[kind]), 0.96))


@pytest.mark.parametrize("options", [{"pooling": "masked"}, {"pooling": "attentive", "layer_weights": True}])
@pytest.mark.parametrize("kind", ["wav2vec2", "moonshine"])
def test_pooling_is_inside_the_graph(kind: str, options: dict[str, Any], checkpoints: dict[str, Path]) -> None:
    encoder = pretrained(str(checkpoints[kind]), 0.96, **options)
    torch.manual_seed(0)
    with torch.no_grad():  # what is learnt begins as the plain mean, which would hide its absence
        for name, parameter in encoder.named_parameters():
            if name.startswith(("pool.", "layer_weights.")):
                parameter.normal_()
    check_windowed(encoder)


@pytest.mark.parametrize("kind", ["wavlm", "whisper"])
def test_adapters_are_merged_into_the_weights(kind: str, checkpoints: dict[str, Path]) -> None:
    encoder = pretrained(str(checkpoints[kind]), 0.96).eval()
    pcm = torch.from_numpy(sounds(encoder))
    with torch.no_grad():
        before = encoder(pcm)
        with adapted(encoder, 2):
            torch.manual_seed(0)
            for name, parameter in encoder.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.2)
        assert (encoder(pcm) - before).abs().max() > 1e-3
    graph = check_windowed(encoder)
    assert not [tensor.name for tensor in graph.graph.initializer if "lora" in tensor.name]


def test_ge2e_is_a_windowed_model_of_the_length_it_was_trained_at() -> None:
    encoder = pretrained("ge2e", 1.0)
    assert encoder.window == 25_600
    check_windowed(encoder)


@pytest.mark.parametrize("window", [0.975, 1.3])
def test_yamnet_answers_as_in_torch(window: float) -> None:
    check_windowed(pretrained("yamnet", window, initialise="random"))


def test_an_encoder_that_repeats_along_another_axis_than_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = pretrained("yamnet", 0.975, initialise="random").eval()
    pooled = encoder.pooled
    monkeypatch.setattr(encoder, "pooled", lambda pcm: pooled(pcm)[:, None].repeat_interleave(2, 1).mean(dim=1))
    with pytest.raises(ConfitError, match=r"torch\.repeat_interleave along axis 1 of 3"):
        check_windowed(encoder)


def test_an_encoder_of_whole_windows_refuses_to_stream() -> None:
    with pytest.raises(ConfitError, match="ge2e cannot stream"):
        pretrained("ge2e", 1.6).streaming_layers()


def test_the_streaming_layers_end_in_the_pooled_frames() -> None:
    encoder = pretrained("speech-embedding", 1.28).eval()
    front_end, layers = encoder.streaming_layers()
    stack = StreamingStack([*front_end, *layers])
    pcm = torch.from_numpy(sounds(encoder))
    states = [torch.zeros(2, *shape) for shape in stack.state_shapes(torch.zeros(1, 1, encoder.hop))]
    with torch.no_grad():
        streamed, _ = stack(pcm[:, None], states)
        np.testing.assert_allclose(streamed[:, :, -1], encoder.pooled(pcm), rtol=1e-5, atol=1e-5)
