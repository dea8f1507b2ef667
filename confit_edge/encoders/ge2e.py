"""A speaker encoder: GE2E (Wan et al. 2018, arXiv 1710.10467) as Resemblyzer published it, 1.4 M parameters.

Three LSTM layers over 1.6 s of a mel power spectrogram; the last state represents the voice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.encoders.base import Encoder
from confit_edge.encoders.front_end import Spectrum, mel_filters, needed_bins, power
from confit_runtime.shipped import MODELS

WEIGHTS = MODELS / "ge2e" / "ge2e.safetensors"

TAPS, MEL_HOP, BANDS, FRAMES = 400, 160, 40, 160  # at 16 kHz: 25 ms windows every 10 ms, 160 of them
SIZE = 256
LEVEL = 10 ** (-30 / 20)  # quieter speech is raised to this root mean square


class MelPower(nn.Module):
    """Mel power (no logarithm) `[batch, frames, 40]` of `pcm [batch, samples]`, where quiet sound is made louder first."""

    mel: Tensor

    def __init__(self) -> None:
        super().__init__()
        bins = TAPS // 2 + 1
        filters = mel_filters(bins, BANDS, 0.0, norm="slaney", mel_scale="slaney")
        first, last = needed_bins(filters)
        self.spectrum = Spectrum(fft=TAPS, taps=TAPS, hop=MEL_HOP, first=first, last=last)
        self.register_buffer("mel", filters[first : last + 1], persistent=False)

    def forward(self, pcm: Tensor) -> Tensor:
        with torch.autocast(pcm.device.type, enabled=False):
            level = pcm.square().mean(dim=1, keepdim=True).sqrt()
            louder = pcm * (LEVEL / level.clamp(min=1e-7)).clamp(min=1.0)
            # frames are centred on their sample, as published; the one past the window's end is left out
            padded = functional.pad(louder[:, None], (TAPS // 2, TAPS // 2 - MEL_HOP))
            return power(self.spectrum(padded)).transpose(1, 2) @ self.mel


class GE2E(Encoder):
    """GE2E's voice embedding. Its window is always 1.6 s, because its last state was trained at that length."""

    family = "ge2e"
    sample_rate = 16_000
    window = FRAMES * MEL_HOP
    hop = window // 8
    dim = SIZE
    streaming = False
    learning_rate = 5e-4

    def __init__(self) -> None:
        super().__init__()
        self.front_end = MelPower()
        self.layers = nn.ModuleList(nn.LSTM(inside, SIZE, batch_first=True) for inside in (BANDS, SIZE, SIZE))
        self.linear = nn.Linear(SIZE, SIZE)

    def frames(self, pcm: Tensor) -> Tensor:
        """One frame `[batch, 1, 256]` per window: the projected last state, with no value below 0."""
        states = self.front_end(pcm)
        for layer in self.layers:
            states, _ = layer(states)
        return functional.relu(self.linear(states[:, -1:]))

    def blocks(self) -> list[list[nn.Module]]:
        return [*([layer] for layer in self.layers), [self.linear]]

    def spec(self) -> dict[str, Any]:
        return {"family": self.family}

    @classmethod
    def pretrained(cls, weights: Path = WEIGHTS) -> GE2E:
        """The encoder with Resemblyzer's weights, which ship with confit-edge."""
        from safetensors.torch import load_file

        encoder = cls()
        encoder.load_state_dict(load_file(weights), strict=True)
        return encoder
