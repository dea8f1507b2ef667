"""The spectrum computes only the taps and bins that its mel bands hear, and the bands are as if it computed all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from confit_edge.encoders import pretrained
from confit_edge.encoders.front_end import MelSpectrum, Spectrum, mel_filters, power
from confit_edge.encoders.ge2e import MelPower
from confit_edge.encoders.log_mel import KaldiLogMel, WhisperLogMel
from confit_edge.encoders.speech_embedding import FIRST_BIN, FLOOR, LAST_BIN, SpeechEmbedding
from confit_edge.encoders.yamnet import LogMel


def by_fft(pcm: npt.NDArray[np.float32], fft: int, taps: int, hop: int) -> npt.NDArray[np.float64]:
    """The oracle: power `[frames, fft // 2 + 1]`, the Hann window of `taps` in the middle of `fft` samples."""
    window = np.zeros(fft)
    left = (fft - taps) // 2
    window[left : left + taps] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(taps) / taps)
    padded = np.pad(pcm.astype(np.float64), (left, fft - taps - left))
    starts = range(0, len(padded) - fft + 1, hop)
    return np.stack([np.abs(np.fft.rfft(window * padded[start : start + fft])) ** 2 for start in starts])


def test_the_mel_of_the_needed_bins_is_that_of_the_whole_spectrum() -> None:
    encoder = pretrained("speech-embedding", 1.28)
    assert isinstance(encoder, SpeechEmbedding)
    pcm = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    every = np.zeros((257, 32))
    every[FIRST_BIN : LAST_BIN + 1] = encoder.front_end.mel.numpy()
    whole = np.log10(np.maximum(by_fft(32768 * pcm, 512, 400, 160) @ every, FLOOR)) + 2
    with torch.no_grad():
        ours = encoder.front_end(encoder.spectrum(torch.from_numpy(pcm)[None, None]))[0, 0].numpy()
    assert whole.std() > 0.1
    np.testing.assert_allclose(ours, whole, rtol=1e-6)
    assert encoder.spectrum.weight.shape == (2 * 120, 1, 400)


@pytest.mark.parametrize(
    ("front_end", "bins"),
    [(WhisperLogMel(80), 199), (KaldiLogMel(128, 0.0, 0.5), 255), (MelPower(), 199), (LogMel(), 235)],
)
def test_no_bin_is_computed_that_no_band_hears(front_end: nn.Module, bins: int) -> None:
    assert front_end.mel.shape[0] == bins == front_end.spectrum.weight.shape[0] // 2
    assert front_end.mel[0].any()
    assert front_end.mel[-1].any()


@pytest.mark.parametrize(("low", "high"), [(0.0, 8000.0), (125.0, 7500.0), (60.0, 3800.0)])
def test_the_bins_left_out_weigh_nothing(low: float, high: float) -> None:
    filters: Tensor = mel_filters(512, 32, low, high, mel_scale="htk")
    ours = MelSpectrum(filters, fft=512, taps=400, hop=160)
    first, last = ours.spectrum.first, ours.spectrum.last
    assert filters[:first].sum() == filters[last + 1 :].sum() == 0.0
    pcm = torch.randn(1, 1, 4000)
    every = Spectrum(fft=512, taps=400, hop=160, first=0, last=256)
    few, whole = (
        power(ours.spectrum(pcm)).transpose(1, 2) @ ours.mel,
        power(every(pcm)).transpose(1, 2) @ filters,
    )
    torch.testing.assert_close(few, whole, rtol=1e-5, atol=1e-5)
