"""Attention encoders through transformers: wav2vec2, HuBERT, WavLM, Whisper. They take whole windows.

A window is used at one length in training, validation and on the device: these encoders normalise and attend over
time, so the same sound in a longer window is another embedding.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.encoders.base import Encoder
from confit_edge.encoders.front_end import Spectrum, power
from confit_edge.torchaudio_pure import skip_native_library
from confit_runtime.errors import ConfitError, UsageError

skip_native_library()  # transformers imports torchaudio where it is installed

SAMPLE_RATE = 16_000
RAW = ("wav2vec2", "hubert", "wavlm")  # these take the waveform, at zero mean and unit variance where trained so
WHISPER_FFT, WHISPER_HOP = 400, 160
GRID = 8 * 2 * WHISPER_HOP  # a window is whole hops, eight of them, and whole Whisper frames
# may be absent from a checkpoint: SpecAugment's mask, which is not used here
_MAY_MISS = ("masked_spec_embed",)


class WhisperLogMel(nn.Module):
    """Whisper's log-mel `[batch, bands, frames]` of `pcm [batch, samples]`, 100 frames a second."""

    mel: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        bins = WHISPER_FFT // 2 + 1
        self.spectrum = Spectrum(fft=WHISPER_FFT, taps=WHISPER_FFT, hop=WHISPER_HOP, first=0, last=bins - 1)
        filters = mel_filter_bank(bins, bands, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("mel", torch.tensor(filters, dtype=torch.float32), persistent=False)

    def forward(self, pcm: Tensor) -> Tensor:
        padded = functional.pad(pcm[:, None], (WHISPER_FFT // 2, WHISPER_FFT // 2), mode="reflect")
        with torch.autocast(pcm.device.type, enabled=False):
            bands = self.mel.T @ power(self.spectrum(padded))[:, :, :-1]
            level = torch.log10(bands.clamp(min=1e-10))
        level = torch.maximum(level, level.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (level + 4.0) / 4.0


class TransformersEncoder(Encoder):
    """The encoder of a transformers checkpoint, on windows of `window` samples every `hop`."""

    family = "transformers"
    sample_rate = SAMPLE_RATE
    streaming = False

    def __init__(self, config: dict[str, Any], window: int, hop: int, normalise_input: bool = False) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.config_data, self.window, self.hop, self.normalise_input = config, window, hop, normalise_input
        # without its dtype: weights saved in half precision are trained in fp32
        plain = {key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")}
        settings = AutoConfig.for_model(config["model_type"], **plain)
        settings.layerdrop = settings.encoder_layerdrop = 0.0
        settings.apply_spec_augment = False
        self.dim = int(settings.hidden_size)
        if config["model_type"] == "whisper":
            from transformers.models.whisper.modeling_whisper import WhisperEncoder

            # the position table is cut to the window: else every call would compute 30 s
            settings.max_source_positions = window // (2 * WHISPER_HOP)
            self.front_end: nn.Module = WhisperLogMel(settings.num_mel_bins)
            self.model: nn.Module = WhisperEncoder(settings)
        else:
            self.front_end = nn.Identity()
            self.model = AutoModel.from_config(settings)

    def frames(self, pcm: Tensor) -> Tensor:
        if self.normalise_input:
            pcm = (pcm - pcm.mean(dim=1, keepdim=True)) / torch.sqrt(
                pcm.var(dim=1, keepdim=True, unbiased=False) + 1e-7
            )
        return self.model(self.front_end(pcm)).last_hidden_state

    def spec(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "config": self.config_data,
            "window": self.window,
            "hop": self.hop,
            "normalise_input": self.normalise_input,
        }

    @classmethod
    def pretrained(cls, name: str, window_s: float) -> TransformersEncoder:
        """From a hub name or a local directory in the Hugging Face format.

        Raises UsageError when there is no such checkpoint or its architecture is not supported, and ConfitError when
        the checkpoint lacks encoder weights (transformers would leave them random).
        """
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

        try:
            settings = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--encoder {name}: neither 'speech-embedding', nor a checkpoint directory, nor a model on the hub"
                f" ({str(error).splitlines()[0]})"
            ) from error
        kind = settings.model_type
        if kind not in (*RAW, "whisper"):
            raise UsageError(f"--encoder {name}: a {kind!r} checkpoint; supported are {', '.join((*RAW, 'whisper'))}")
        try:
            model, loading = AutoModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ConfitError(
                f"--encoder {name}: its weights cannot be loaded ({str(error).splitlines()[0]})"
            ) from error
        refuse_missing(name, loading)

        samples = round(window_s * SAMPLE_RATE)
        samples -= samples % GRID
        if samples == 0:
            raise UsageError(f"--window {window_s}: at least {GRID / SAMPLE_RATE} s is needed")
        normalise_input = False
        if kind != "whisper" and (not Path(name).is_dir() or (Path(name) / "preprocessor_config.json").is_file()):
            normalise_input = bool(getattr(AutoFeatureExtractor.from_pretrained(name), "do_normalize", False))
        config = copy.deepcopy(settings.to_diff_dict())
        config["model_type"] = kind
        encoder = cls(config, samples, hop=samples // 8, normalise_input=normalise_input)
        weights = (model.encoder if kind == "whisper" else model).state_dict()
        if kind == "whisper":
            positions = samples // (2 * WHISPER_HOP)
            table = weights["embed_positions.weight"]
            if positions > len(table):
                raise UsageError(f"--window {window_s}: this checkpoint takes at most {len(table) / 50:g} s")
            weights["embed_positions.weight"] = table[:positions]
        encoder.model.load_state_dict(weights, strict=True)
        return encoder


def refuse_missing(name: str, loading: dict[str, Any]) -> None:
    """Raise ConfitError when loading left an encoder weight random (decoder weights do not matter)."""
    absent = [key for key in loading["missing_keys"] if "decoder" not in key and not key.endswith(_MAY_MISS)]
    wrong = [str(entry[0]) for entry in loading["mismatched_keys"]]
    if absent or wrong:
        listed = ", ".join(sorted(absent + wrong)[:3])
        raise ConfitError(
            f"--encoder {name}: the checkpoint lacks {len(absent) + len(wrong)} encoder weights ({listed}, ...),"
            " which would stay random: is it a checkpoint of this architecture?"
        )
