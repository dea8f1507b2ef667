"""The spectrum as a strided convolution with the DFT basis: it exports to any runtime, and streams."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Spectrum(nn.Conv1d):
    """Real and imaginary parts `[batch, 2 * bins, frames]` of `pcm [batch, 1, samples]` under a periodic Hann window.

    The window of `taps` samples stands in the middle of a DFT of `fft` points; only bins `first..last` are computed.
    The basis is fixed: it is neither trained nor stored.
    """

    def __init__(self, *, fft: int, taps: int, hop: int, first: int, last: int, scale: float = 1.0) -> None:
        super().__init__(1, 2 * (last - first + 1), taps, stride=hop, bias=False)
        at = torch.arange(taps, dtype=torch.float64) + (fft - taps) // 2
        angle = 2 * math.pi / fft * torch.arange(first, last + 1, dtype=torch.float64)[:, None] * at
        window = scale * torch.hann_window(taps, periodic=True, dtype=torch.float64)
        basis = torch.cat([window * angle.cos(), -window * angle.sin()])
        del self.weight
        self.register_buffer("weight", basis.float()[:, None], persistent=False)

    def forward(self, pcm: Tensor) -> Tensor:
        with torch.autocast(pcm.device.type, enabled=False):
            return super().forward(pcm.float())


def power(spectrum: Tensor) -> Tensor:
    """Power `[batch, bins, frames]` of a `Spectrum`'s output."""
    real, imaginary = spectrum.chunk(2, dim=1)
    return real.square() + imaginary.square()
