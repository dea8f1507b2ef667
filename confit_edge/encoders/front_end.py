"""The spectrum as a strided convolution with the DFT basis, which exports to any runtime and streams."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn


class Spectrum(nn.Conv1d):
    """Real and imaginary parts `[batch, 2 * bins, frames]` of `pcm [batch, 1, samples]` under a Hann window.

    The window of `taps` samples, periodic or symmetric, is centred in a DFT of `fft` points; only bins `first..last` are
    computed. `before [taps, taps]` is a linear map that is applied to each frame before the window. The basis is fixed: it
    is neither trained nor stored.
    """

    def __init__(
        self,
        *,
        fft: int,
        taps: int,
        hop: int,
        first: int,
        last: int,
        scale: float = 1.0,
        periodic: bool = True,
        before: Tensor | None = None,
    ) -> None:
        super().__init__(1, 2 * (last - first + 1), taps, stride=hop, bias=False)
        at = torch.arange(taps, dtype=torch.float64) + (fft - taps) // 2
        angle = 2 * math.pi / fft * torch.arange(first, last + 1, dtype=torch.float64)[:, None] * at
        window = scale * torch.hann_window(taps, periodic=periodic, dtype=torch.float64)
        basis = torch.cat([window * angle.cos(), -window * angle.sin()])
        self.fft, self.taps, self.first, self.last, self.window = fft, taps, first, last, window
        self.plain = before is None  # a window and a DFT, nothing else
        if before is not None:
            basis = basis @ before
        del self.weight
        self.register_buffer("weight", basis.float()[:, None], persistent=False)

    def forward(self, pcm: Tensor) -> Tensor:
        with torch.autocast(pcm.device.type, enabled=False):
            return super().forward(pcm.float())


def power(spectrum: Tensor) -> Tensor:
    """Power `[batch, bins, frames]` of a `Spectrum`'s output."""
    real, imaginary = spectrum.chunk(2, dim=1)
    return real.square() + imaginary.square()


class MelSpectrum(nn.Module):
    """A `spectrum` of the bins that the mel `filters [fft // 2 + 1, bands]` use, and their part for these bins, `mel`.

    Neither is trained or stored. `options` are those of `Spectrum`.
    """

    mel: Tensor

    def __init__(self, filters: Tensor, *, fft: int, taps: int, hop: int, **options: Any) -> None:
        super().__init__()
        heard = filters.any(dim=1).nonzero()
        first, last = int(heard.min()), int(heard.max())
        self.spectrum = Spectrum(fft=fft, taps=taps, hop=hop, first=first, last=last, **options)
        self.register_buffer("mel", filters[first : last + 1], persistent=False)


def mel_filters(fft: int, bands: int, low: float, high: float = 8000.0, **options: Any) -> Tensor:
    """Triangular mel filters `[fft // 2 + 1, bands]` from `low` to `high` Hz on a spectrum up to 8 kHz.

    `options` are those of transformers' `mel_filter_bank`: `mel_scale`, `norm`, `triangularize_in_mel_space`.
    """
    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # narrow bands may fall between two bins, as they do in the published filters
        return torch.tensor(mel_filter_bank(fft // 2 + 1, bands, low, high, 16_000, **options), dtype=torch.float32)
