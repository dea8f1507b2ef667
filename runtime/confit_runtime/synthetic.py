"""Synthetic sounds, the same on every device: beeps, hums and knocks. They affect warnings about clips, never an answer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from confit_runtime.audio import Pcm

PEAK = 0.3
ONSET = 0.25  # where a struck sound begins, as a share of the whole


def common_sounds(samples: int, rate: int) -> Iterator[Pcm]:
    """Sounds common in any house, `[samples]` each: struck tones, beeps, hums, a clatter, a hiss and a thump."""
    time = np.arange(samples) / rate
    for pitch in (150, 300, 600, 1000, 1600, 2500):
        yield _scale_to_peak(np.sin(2 * np.pi * pitch * time) * _decay_envelope(time, 0.15))
    for pitch in (300, 1000, 2500):
        yield _scale_to_peak(np.sin(2 * np.pi * pitch * time) * (time % 0.25 < 0.125))
    for pitch in (100, 200):
        yield _scale_to_peak(pitch * time % 1 - 0.5)
    noise = white_noise(samples)
    yield _scale_to_peak(np.where(np.arange(samples) % (rate // 10) < 2, np.sign(noise), 0.0))
    yield _scale_to_peak(noise * _decay_envelope(time, 0.05))
    yield _scale_to_peak(np.cumsum(noise - noise.mean()) * _decay_envelope(time, 0.05))


def white_noise(samples: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """White noise `[samples]` in -1..1."""
    # the high bits of a primitive multiplier's powers are practically random; importing numpy.random takes 3 MB
    powers = np.cumprod(np.full(samples, 0x2C9277B5, np.uint32), dtype=np.uint32)
    return (powers >> 8) / 2.0**23 - 1.0


def _decay_envelope(time: np.ndarray, decay_s: float) -> np.ndarray:
    return np.where(time < ONSET * time[-1], 0.0, np.exp(-(time - ONSET * time[-1]) / decay_s))


def _scale_to_peak(sound: np.ndarray) -> Pcm:
    return (PEAK * sound / np.abs(sound).max()).astype(np.float32)
