"""A speaker encoder: GE2E (Wan et al. 2018, arXiv 1710.10467) as Resemblyzer published it, 1.4 M parameters.

Three LSTM layers over 1.6 s of a mel power spectrogram; the last state represents the voice. The published front end
keeps an offset and hum, raises windows below -30 dBFS to that level and leaves louder ones: a microphone with an offset,
or farther away than at enrolment, made a voice unknown. Ours removes them, and brings every window to one level.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.encoders.base import Encoder
from confit_edge.encoders.front_end import MelSpectrum, mel_filters, power
from confit_runtime.shipped import MODELS

WEIGHTS = MODELS / "ge2e" / "ge2e.safetensors"

TAPS, MEL_HOP, BANDS, FRAMES = 400, 160, 40, 160  # at 16 kHz: 25 ms windows every 10 ms, 160 of them
SIZE = 256
LEVEL = 10 ** (-24 / 20)  # the root mean square that every window is brought to
# a room's noise is brought to LEVEL too, where the network hears that it is noise: near silence it hears a voice
SOFTEST = 10 ** (-100 / 20)  # of 16-bit PCM, softer sound is rounding
CUTOFF_HZ, CUTOFF_TAPS, CUTOFF_HOP = 78.0, 1600, 80  # removes up to 62 Hz and leaves what is above 95 Hz


class WithoutHum(nn.Module):
    """Removes a DC offset and mains hum from `pcm [batch, samples]`: what is below the lowest voice.

    A low-pass filter finds them at 200 samples per second, and interpolates what it found back to all samples, so it
    costs next to nothing. The window's edges are reflected, or an offset would begin and end there.
    """

    low_pass: Tensor

    def __init__(self) -> None:
        super().__init__()
        at = torch.arange(CUTOFF_TAPS, dtype=torch.float64) - (CUTOFF_TAPS - 1) / 2
        taps = torch.special.sinc(2 * CUTOFF_HZ / 16_000 * at) * torch.hann_window(
            CUTOFF_TAPS, periodic=False, dtype=torch.float64
        )
        self.register_buffer("low_pass", (taps / taps.sum()).float()[None, None], persistent=False)

    def forward(self, pcm: Tensor) -> Tensor:
        reflected = functional.pad(pcm[:, None], (CUTOFF_TAPS, CUTOFF_TAPS), mode="reflect")
        low = functional.conv1d(reflected, self.low_pass, stride=CUTOFF_HOP)
        spread = functional.conv_transpose1d(CUTOFF_HOP * low, self.low_pass, stride=CUTOFF_HOP, padding=CUTOFF_TAPS)
        return pcm - spread[:, 0]


class MelPower(MelSpectrum):
    """Mel power (no logarithm) `[batch, frames, 40]` of `pcm [batch, samples]`, whatever its level, DC offset and hum."""

    def __init__(self) -> None:
        filters = mel_filters(TAPS, BANDS, 0.0, norm="slaney", mel_scale="slaney")
        super().__init__(filters, fft=TAPS, taps=TAPS, hop=MEL_HOP)
        self.without_hum = WithoutHum()

    def forward(self, pcm: Tensor) -> Tensor:
        with torch.autocast(pcm.device.type, enabled=False):
            voice = self.without_hum(pcm)
            level = voice.square().mean(dim=1, keepdim=True).sqrt()
            voice = voice * (LEVEL / level.clamp(min=SOFTEST))
            # frames are centred on their sample, as published; the one past the window's end is left out
            padded = functional.pad(voice[:, None], (TAPS // 2, TAPS // 2 - MEL_HOP))
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
    def pretrained(cls) -> GE2E:
        """The encoder with Resemblyzer's weights, which ship with confit-edge."""
        from safetensors.torch import load_file

        encoder = cls()
        encoder.load_state_dict(load_file(WEIGHTS), strict=True)
        return encoder
