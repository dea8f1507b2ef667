"""How transformers' architectures differ: front end, position table, place of the layers, meaning of the output."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from confit_edge.encoders.log_mel import (
    AST_DEVIATION,
    AST_MEAN,
    AST_TAPS,
    HOP,
    KaldiLogMel,
    WhisperLogMel,
    ZeroMeanUnitVariance,
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj", "o_proj", "query", "key", "value", "attention.output.dense")


class Architecture(ABC):
    """One architecture. `settings` is its transformers configuration, `model` the encoder made from it.

    `layers_key`: the configuration's key for the number of encoder layers.
    `low_rank`: the linear layers that LoRA adapts.
    `preprocessor`: the keys to read from `preprocessor_config.json`, with the defaults that apply without one.
    """

    layers_key = "num_hidden_layers"
    low_rank: tuple[str, ...] = ATTENTION
    preprocessor: dict[str, Any] = {}  # noqa: RUF012 - read only

    @abstractmethod
    def model(self, settings: Any) -> nn.Module:
        """The encoder alone, with random weights."""

    @abstractmethod
    def front_end(self, settings: Any, preprocessor: dict[str, Any]) -> nn.Module:
        """The module that turns windows `[batch, samples]` into the model's input."""

    @abstractmethod
    def first_and_last(self, model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
        """The modules with weights before the first layer, and those after the last."""

    @abstractmethod
    def stride(self, settings: Any) -> int:
        """The samples between two frames."""

    def layers(self, model: Any) -> list[nn.Module]:
        """The layers, from input to output."""
        return list(model.layers)

    def encoder_of(self, checkpoint: Any) -> nn.Module:
        """The encoder inside what `AutoModel` loads."""
        return checkpoint

    def longest(self, settings: Any) -> int | None:
        """The longest window that the position table allows, in samples; None where there is no table."""
        return None

    def shortest(self, settings: Any) -> int:
        """The fewest samples that give a frame."""
        return 400

    def fit(self, settings: Any, window: int) -> None:  # noqa: B027 - nothing to do where there is no table
        """Shorten the configuration's position table to a window of this many samples."""

    def cut(self, weights: dict[str, Tensor], published: Any, fitted: Any) -> None:  # noqa: B027
        """Shorten the position table in `weights` from the published configuration to the fitted one."""

    def in_time(self, hidden: Tensor, settings: Any) -> Tensor:
        """Frames `[batch, time, dim]` of the model's hidden state."""
        return hidden


class Waveform(Architecture):
    """wav2vec2, HuBERT, data2vec-audio: take the waveform, at zero mean and unit variance if they were trained that way."""

    preprocessor = {"do_normalize": False}  # noqa: RUF012 - read only

    def model(self, settings: Any) -> nn.Module:
        from transformers import AutoModel

        settings.layerdrop, settings.add_adapter = 0.0, False
        settings.mask_time_prob = settings.mask_feature_prob = 0.0  # SpecAugment's mask would be an unused weight
        return AutoModel.from_config(settings)

    def front_end(self, settings: Any, preprocessor: dict[str, Any]) -> nn.Module:
        return ZeroMeanUnitVariance() if preprocessor["do_normalize"] else nn.Identity()

    def stride(self, settings: Any) -> int:
        return math.prod(settings.conv_stride)

    def layers(self, model: Any) -> list[nn.Module]:
        return list(model.encoder.layers)

    def first_and_last(self, model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
        norm = [model.encoder.layer_norm]
        first = [model.feature_extractor, model.feature_projection, model.encoder.pos_conv_embed]
        after = getattr(model.config, "do_stable_layer_norm", False)
        return (first, norm) if after else (first + norm, [])


class WavLM(Waveform):
    """WavLM. LoRA adapts its feed-forward layers: WavLM passes the weights of its attention layers to torch's fused
    attention and never calls those layers, so an adapter on them would have no effect."""

    low_rank = ("intermediate_dense", "output_dense")


class Moonshine(Architecture):
    """Moonshine: takes the waveform, uses rotary positions."""

    layers_key = "encoder_num_hidden_layers"
    preprocessor = Waveform.preprocessor

    def model(self, settings: Any) -> nn.Module:
        from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

        settings._attn_implementation = "eager"  # torch's fused attention with shared heads has no ONNX form
        return MoonshineEncoder(settings)

    def front_end(self, settings: Any, preprocessor: dict[str, Any]) -> nn.Module:
        return ZeroMeanUnitVariance() if preprocessor["do_normalize"] else nn.Identity()

    def encoder_of(self, checkpoint: Any) -> nn.Module:
        return checkpoint.encoder

    def stride(self, settings: Any) -> int:
        return 64 * 3 * 2

    def shortest(self, settings: Any) -> int:
        return 127 + 64 * (6 + 3 * 2)

    def first_and_last(self, model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
        return [model.conv1, model.conv2, model.conv3, model.groupnorm], [model.layer_norm]


class Whisper(Architecture):
    """Whisper: takes its own log-mel, one position per frame. With the full position table, each call computes 30 s."""

    layers_key = "encoder_layers"

    def model(self, settings: Any) -> nn.Module:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        settings.encoder_layerdrop = 0.0
        return WhisperEncoder(settings)

    def front_end(self, settings: Any, preprocessor: dict[str, Any]) -> nn.Module:
        return WhisperLogMel(settings.num_mel_bins)

    def encoder_of(self, checkpoint: Any) -> nn.Module:
        return checkpoint.encoder

    def first_and_last(self, model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
        return [model.conv1, model.conv2, model.embed_positions], [model.layer_norm]

    def stride(self, settings: Any) -> int:
        return 2 * HOP

    def longest(self, settings: Any) -> int | None:
        return settings.max_source_positions * self.stride(settings)

    def fit(self, settings: Any, window: int) -> None:
        settings.max_source_positions = window // self.stride(settings)

    def cut(self, weights: dict[str, Tensor], published: Any, fitted: Any) -> None:
        name = "embed_positions.weight"
        weights[name] = weights[name][: fitted.max_source_positions]


class AST(Architecture):
    """Audio Spectrogram Transformer: takes Kaldi's log-mel, with a position for each patch of time and frequency.

    A frame is the mean of the patches at one time. The class and distillation tokens take part in the attention but are
    not frames. A shorter window uses the middle of the position table in time, as the authors do.
    """

    preprocessor = {"do_normalize": True, "mean": AST_MEAN, "std": AST_DEVIATION}  # noqa: RUF012 - read only

    def model(self, settings: Any) -> nn.Module:
        from transformers import ASTModel

        return ASTModel(settings)

    def front_end(self, settings: Any, preprocessor: dict[str, Any]) -> nn.Module:
        mean, deviation = (preprocessor["mean"], preprocessor["std"]) if preprocessor["do_normalize"] else (0.0, 0.5)
        return KaldiLogMel(settings.num_mel_bins, mean, deviation)

    def layers(self, model: Any) -> list[nn.Module]:
        return list(model.layers if hasattr(model, "layers") else model.encoder.layer)  # transformers 5, and 4

    def first_and_last(self, model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
        return [model.embeddings], [model.layernorm]

    def stride(self, settings: Any) -> int:
        return settings.time_stride * HOP

    def longest(self, settings: Any) -> int | None:
        return (settings.max_length - 1) * HOP + AST_TAPS

    def shortest(self, settings: Any) -> int:
        return (settings.patch_size - 1) * HOP + AST_TAPS

    def fit(self, settings: Any, window: int) -> None:
        settings.max_length = (window - AST_TAPS) // HOP + 1

    def cut(self, weights: dict[str, Tensor], published: Any, fitted: Any) -> None:
        name, (bands, times), kept = "embeddings.position_embeddings", patches(published), patches(fitted)[1]
        tokens, table = weights[name][:, :2], weights[name][:, 2:].unflatten(1, (bands, times))
        start = (times - kept) // 2
        weights[name] = torch.cat([tokens, table[:, :, start : start + kept].flatten(1, 2)], dim=1)

    def in_time(self, hidden: Tensor, settings: Any) -> Tensor:
        return hidden[:, 2:].unflatten(1, patches(settings)).mean(dim=1)


def patches(settings: Any) -> tuple[int, int]:
    """The number of AST's patches along frequency and along time."""
    bands = (settings.num_mel_bins - settings.patch_size) // settings.frequency_stride + 1
    return bands, (settings.max_length - settings.patch_size) // settings.time_stride + 1


ARCHITECTURES: dict[str, Architecture] = {
    "wav2vec2": Waveform(),
    "hubert": Waveform(),
    "data2vec-audio": Waveform(),
    "wavlm": WavLM(),
    "whisper": Whisper(),
    "moonshine": Moonshine(),
    "audio-spectrogram-transformer": AST(),
}
