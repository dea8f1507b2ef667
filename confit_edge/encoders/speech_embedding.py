"""Google's speech_embedding (Lin et al. 2020, arXiv 2002.01322): 0.33 M parameters, made to listen all day.

All time kernels are valid (unpadded), so a longer input gives one 96-d frame every 8 mel frames (80 ms) and the whole
stack streams exactly. The front end is ours: a log-mel with an absolute floor, which computes only the taps and bins that
the mel bands need.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.encoders.base import Encoder, normalise, whole_hops
from confit_edge.encoders.front_end import Spectrum
from confit_runtime.shipped import MODELS

WEIGHTS = MODELS / "speech-embedding" / "speech_embedding.safetensors"

MEL_HOP, MEL_TAPS, FFT = 160, 400, 512  # samples at 16 kHz: 10 ms steps, a 25 ms Hann window inside a 512-point DFT
MEL_BANDS, FIRST_BIN, LAST_BIN = 32, 2, 121  # the bins that carry weight: 62.5..3781.25 Hz
FLOOR = 1e2  # mel power (PCM in the int16 range) below which sound counts as silence: 90 dB under full-scale speech
SILENCE = math.log10(FLOOR) + 2  # the log-mel of silence
FRAMES_PER_HOP, RECEPTIVE_FRAMES = 8, 76
HOP = FRAMES_PER_HOP * MEL_HOP
RECEPTIVE = RECEPTIVE_FRAMES * MEL_HOP + MEL_TAPS - MEL_HOP
PART_HOPS = 256  # hops of a long clip that are computed together


class LogMel(nn.Module):
    """Log-mel frames `[batch, 1, frames, 32]` of a spectrum `[batch, 2 * bins, frames]`, with mel power at least `FLOOR`."""

    pointwise_in_time = True
    mel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mel", torch.zeros(LAST_BIN - FIRST_BIN + 1, MEL_BANDS))

    def forward(self, spectrum: Tensor) -> Tensor:
        with torch.autocast(spectrum.device.type, enabled=False):
            squares = spectrum.square().transpose(1, 2)  # the filters add those of the real and the imaginary part
            bands = (squares @ torch.cat([self.mel, self.mel])).clamp(min=FLOOR)
            return (torch.log10(bands) + 2)[:, None]  # as published: dB / 10 + 2


class _InPlace(torch.autograd.Function):
    """`ClippedLeakyReLU` in place, for training: with fewer passes over memory, a step takes a quarter less time.

    leaky_relu is monotone and leaky_relu(-2) = -0.4, so clipping can come first, and the output alone gives the slope.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        y = functional.leaky_relu_(x.clamp_(min=-2.0), 0.2)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradients[0], y, -0.4)
        return torch.ops.aten.leaky_relu_backward.grad_input(gradient, y, 0.2, True, grad_input=gradient)


class ClippedLeakyReLU(nn.Module):
    """max(leaky_relu(x, 0.2), -0.4): the activation speech_embedding was trained with."""

    pointwise_in_time = True

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return _InPlace.apply(x)
        # clip first, as in training: in int8, clipping then costs nothing, as it is the end of the range
        return functional.leaky_relu(x.clamp(min=-2.0), 0.2)


class DropMelAxis(nn.Module):
    """`[batch, channels, time, 1]` to `[batch, channels, time]`."""

    pointwise_in_time = True

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(3)


def _layers() -> nn.Sequential:
    """The 20 convolutions, over `[batch, channels, time, mel]`; time is never padded."""
    layers: list[nn.Module] = []

    def convolve(inside: int, outside: int, kernel: tuple[int, int]) -> None:
        layers.append(nn.Conv2d(inside, outside, kernel, padding=(0, kernel[1] // 2)))
        layers.append(ClippedLeakyReLU())

    convolve(1, 24, (3, 3))
    convolve(24, 24, (1, 3))
    convolve(24, 24, (3, 1))
    layers.append(nn.MaxPool2d((2, 2)))
    for inside, outside, pool in ((24, 48, (1, 2)), (48, 72, (2, 2)), (72, 96, (1, 2)), (96, 96, (2, 2))):
        convolve(inside, outside, (1, 3))
        convolve(outside, outside, (3, 1))
        convolve(outside, outside, (1, 3))
        convolve(outside, outside, (3, 1))
        layers.append(nn.MaxPool2d(pool))
    layers.append(nn.Conv2d(96, 96, (3, 1), bias=False))
    return nn.Sequential(*layers)


class SpeechEmbedding(Encoder):
    """speech_embedding, averaging `pool_hops` frames (7: a window of 1.28 s)."""

    family = "speech_embedding"
    sample_rate = 16_000
    hop = HOP
    dim = 96
    streaming = True
    learning_rate = 1e-3  # chosen on validation (docs/results.md)
    highest_hz = 3800.0

    def __init__(self, pool_hops: int = 7) -> None:
        super().__init__()
        self.pool_hops = pool_hops
        self.warmup_hops = math.ceil((RECEPTIVE + (pool_hops - 1) * HOP) / HOP) - 1
        self.window = (self.warmup_hops + 1) * HOP
        self.spectrum = Spectrum(fft=FFT, taps=MEL_TAPS, hop=MEL_HOP, first=FIRST_BIN, last=LAST_BIN, scale=32768.0)
        self.front_end = LogMel()
        self.mask: nn.Module = nn.Identity()  # or SpecAugment, for a training
        # channels last: a third faster to train on a CPU
        self.layers = _layers().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def frames(self, pcm: Tensor) -> Tensor:
        """One frame `[batch, time, 96]` every 1280 samples; the last frame ends with the last sample."""
        spare = (pcm.shape[1] - RECEPTIVE) % HOP
        mel = self.mask(self.front_end(self.spectrum(pcm[:, None, spare:]))).contiguous(
            memory_format=torch.channels_last
        )
        return self.layers(mel).squeeze(3).transpose(1, 2)

    @torch.no_grad()
    def rows(self, clip: Tensor) -> Tensor:
        """As `Encoder.rows`, but computes each frame once: in parts that each start with the window's lead-in."""
        clip = whole_hops(clip, self.window, self.hop)
        lead, step = self.window - self.hop, PART_HOPS * self.hop
        parts = [clip[start : start + lead + step] for start in range(0, len(clip) - lead, step)]
        # a moving mean over the last `pool_hops` frames of each part
        return torch.cat(
            [normalise(self.frames(part[None])[0].unfold(0, self.pool_hops, 1).mean(dim=2)) for part in parts]
        )

    def streaming_layers(self) -> tuple[list[nn.Module], list[nn.Module]]:
        pooling = nn.AvgPool1d(self.pool_hops, stride=1)
        return [self.spectrum, self.front_end], [*self.layers, DropMelAxis(), pooling]

    def blocks(self) -> list[list[nn.Module]]:
        """The convolutions between two poolings form a block; the last projection is a block of its own."""
        blocks: list[list[nn.Module]] = [[]]
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                blocks.append([])
            elif isinstance(layer, nn.Conv2d):
                blocks[-1].append(layer)
        return blocks

    def spec(self) -> dict[str, Any]:
        return {"family": self.family, "pool_hops": self.pool_hops}

    @classmethod
    def pretrained(cls, pool_hops: int = 7) -> SpeechEmbedding:
        """The encoder with Google's weights, which ship with confit-edge."""
        from safetensors.torch import load_file

        encoder = cls(pool_hops)
        encoder.load_state_dict(load_file(WEIGHTS), strict=True)
        return encoder

    @classmethod
    def pool_hops_for(cls, window_s: float) -> int:
        """The number of frames to average so that a window lasts at most `window_s` seconds (at least one)."""
        return max(1, int(window_s * cls.sample_rate) // HOP - math.ceil(RECEPTIVE / HOP) + 1)
