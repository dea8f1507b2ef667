"""The front ends that Whisper and AST were trained with, as torch modules, so that they export with the encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.encoders.front_end import MelSpectrum, mel_filters, power

HOP = 160  # samples at 16 kHz: both use 100 frames per second
WHISPER_FFT = 400
AST_TAPS, AST_FFT = 400, 512
AST_MEAN, AST_DEVIATION = -4.2677393, 4.5689974  # of AudioSet; the default where a checkpoint gives none
AST_FLOOR = torch.finfo(torch.float32).eps  # Kaldi's


class ZeroMeanUnitVariance(nn.Module):
    """Scales each waveform `[batch, samples]` to zero mean and unit variance, as wav2vec2's feature extractor does."""

    def forward(self, pcm: Tensor) -> Tensor:
        mean, variance = pcm.mean(dim=1, keepdim=True), pcm.var(dim=1, keepdim=True, unbiased=False)
        return (pcm - mean) / torch.sqrt(variance + 1e-7)


class WhisperLogMel(MelSpectrum):
    """Whisper's log-mel `[batch, bands, frames]` of `pcm [batch, samples]`."""

    def __init__(self, bands: int) -> None:
        filters = mel_filters(WHISPER_FFT, bands, 0.0, norm="slaney", mel_scale="slaney")
        super().__init__(filters, fft=WHISPER_FFT, taps=WHISPER_FFT, hop=HOP)

    def forward(self, pcm: Tensor) -> Tensor:
        padded = functional.pad(pcm[:, None], (WHISPER_FFT // 2, WHISPER_FFT // 2), mode="reflect")
        with torch.autocast(pcm.device.type, enabled=False):
            bands = self.mel.T @ power(self.spectrum(padded))[:, :, :-1]
            level = torch.log10(bands.clamp(min=1e-10))
        level = torch.maximum(level, level.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (level + 4.0) / 4.0


class KaldiLogMel(MelSpectrum):
    """AST's input `[batch, frames, bands]` of `pcm [batch, samples]`: Kaldi's log filter banks, normalised.

    Kaldi subtracts each frame's mean, applies pre-emphasis of 0.97 and a window. All of that is linear, so it is folded
    into the spectrum's basis. `mean` and `deviation` are those of the data that the checkpoint was trained on.
    """

    def __init__(self, bands: int, mean: float, deviation: float) -> None:
        centred = torch.eye(AST_TAPS, dtype=torch.float64) - 1 / AST_TAPS
        earlier = torch.arange(AST_TAPS).sub(1).clamp(min=0)  # the first sample is its own predecessor
        filters = mel_filters(AST_FFT, bands, 20.0, mel_scale="kaldi", triangularize_in_mel_space=True)
        before = centred - 0.97 * centred[earlier]
        super().__init__(filters, fft=AST_FFT, taps=AST_TAPS, hop=HOP, periodic=False, before=before)
        self.mean, self.deviation = mean, deviation

    def forward(self, pcm: Tensor) -> Tensor:
        with torch.autocast(pcm.device.type, enabled=False):
            bands = power(self.spectrum(pcm[:, None])).transpose(1, 2) @ self.mel
            return (torch.log(bands.clamp(min=AST_FLOOR)) - self.mean) / (2 * self.deviation)
