"""Augmentation: vary a clip as a device may hear it, at another place in the window, louder or softer, over noise.

All randomness comes from the generator passed in, so a batch can be reproduced from its seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from confit_edge.data.effects import Effects
from confit_runtime.audio import Pcm

MOST_NOTES = 6  # the most notes in a chord
PLENTY_S = 1800  # seconds of background that are varied enough without additions


@dataclass(frozen=True)
class Augmenter:
    """Places clips in windows, with augmentation.

    `window` and `shift` are in samples, and `gain` is in dB (up or down). Noise is mixed into a share
    `noise_probability` of the clips, at a signal-to-noise ratio drawn from the range `snr` in dB. The noise is background
    recordings (where given), coloured noise, and, with `babble`, other clips (leave `babble` off where a clip may have
    several labels: the mix would have the other clips' labels too).
    `speed` is how much a clip is slowed down or sped up at most, pitch included (0.1: by up to a tenth). `effects` are
    the room, applied before the noise, and the microphone and codec, applied after it. With `window` alone, clips are
    placed in the window and not changed.
    """

    window: int
    shift: int = 0
    gain: float = 0.0
    noise_probability: float = 0.0
    snr: tuple[float, float] = (0.0, 0.0)
    background: tuple[Pcm, ...] = ()
    babble: bool = True
    speed: float = 0.0
    effects: Effects | None = None

    def __call__(self, clips: list[Pcm], rng: np.random.Generator) -> Pcm:
        """The augmented clips as windows `[clips, window]`."""
        return np.stack([self._one(clip, clips, rng) for clip in clips])

    def _one(self, clip: Pcm, others: list[Pcm], rng: np.random.Generator) -> Pcm:
        if len(clip) > 2 * self.window:  # read no more of a long clip than can be used
            clip = crop(clip, 2 * self.window, rng)
        if self.speed:
            clip = change_speed(clip, 1 + float(rng.uniform(-self.speed, self.speed)))
        out = place(clip, self.window, int(rng.integers(-self.shift, self.shift + 1)), rng)
        if self.effects:
            out = self.effects.room(out, rng)
        if rng.random() < self.noise_probability:
            noise = self._noise(others, rng)
            out = out + noise * noise_gain(clip, noise, float(rng.uniform(*self.snr)))
        if self.effects:
            out = self.effects.channel(out, rng)
        return (out * 10 ** (rng.uniform(-self.gain, self.gain) / 20)).astype(np.float32)

    def _noise(self, others: list[Pcm], rng: np.random.Generator) -> Pcm:
        kind = rng.random()
        if kind < 0.2 or not (self.babble or self.background):
            return coloured_noise(self.window, float(rng.uniform(0, 2)), rng)
        if self.babble and (kind < 0.5 or not self.background):
            babble = np.zeros(self.window, np.float32)
            for index in rng.integers(len(others), size=int(rng.integers(1, 4))):
                babble += place(others[index], self.window, int(rng.integers(-self.window // 2, self.window // 2)), rng)
            return babble
        return crop(self.background[int(rng.integers(len(self.background)))], self.window, rng)


def varied(recordings: list[Pcm], *, speeds: tuple[float, ...], rate: int, rng: np.random.Generator) -> list[Pcm]:
    """More varied background than was recorded: the recordings, copies of them at other speeds, and music-like sound.

    A model trained on two pieces of music knows only those two pieces; the added variety lets it generalise. Half an hour
    of background or more is returned unchanged.
    """
    if sum(map(len, recordings)) >= PLENTY_S * rate:
        return list(recordings)
    loudness = np.float32(np.mean([rms(recording) for recording in recordings]))
    music = [loudness * np.concatenate([chords(2 * rate, rng) for _ in range(10)]) for _ in recordings]
    return [*recordings, *(change_speed(recording, speed) for speed in speeds for recording in recordings), *music]


def place(clip: Pcm, window: int, shift: int, rng: np.random.Generator) -> Pcm:
    """The clip centred in a window of `window` samples and moved by `shift`; a longer clip is cropped at random."""
    if len(clip) > window:
        return crop(clip, window, rng)
    out = np.zeros(window, np.float32)
    start = (window - len(clip)) // 2 + shift
    first, last = max(start, 0), min(start + len(clip), window)
    if first < last:
        out[first:last] = clip[first - start : last - start]
    return out


def change_speed(clip: Pcm, factor: float) -> Pcm:
    """The clip played `factor` times as fast, with its pitch changed accordingly."""
    return soxr.resample(clip, factor, 1.0, quality="MQ").astype(np.float32, copy=False)


def crop(recording: Pcm, window: int, rng: np.random.Generator) -> Pcm:
    """`window` samples from a random place in a recording (a shorter recording is repeated)."""
    if len(recording) < window:
        recording = np.tile(recording, -(-window // len(recording)))
    start = int(rng.integers(len(recording) - window + 1))
    return recording[start : start + window]


def coloured_noise(samples: int, slope: float, rng: np.random.Generator) -> Pcm:
    """Noise whose power falls as 1/f^slope (0 white, 1 pink, 2 brown), at RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (slope / 2)
    spectrum[0] = 0.0
    noise = np.fft.irfft(spectrum, samples)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def chords(samples: int, rng: np.random.Generator) -> Pcm:
    """Music-like sound at RMS 1: notes with harmonics that start at random and decay, and clicks between them.

    The fundamentals of the notes are 60 to 960 Hz at a rate of 16 kHz.
    """
    time = np.arange(samples, dtype=np.float32)
    out = 1e-4 * rng.standard_normal(samples, np.float32)
    for _ in range(int(rng.integers(2, MOST_NOTES + 1))):
        pitch = np.float32(2 * np.pi * 60 / 16_000 * 2 ** rng.uniform(0, 4))
        start, decay = int(rng.integers(-samples // 2, samples)), rng.uniform(0.05, 1.0) * samples
        envelope = np.where(time >= start, np.exp(-(time - start) / decay), 0.0)
        harmonics = np.arange(1, int(rng.integers(2, 10)), dtype=np.float32)
        weights = (harmonics ** -rng.uniform(0.3, 2.0)).astype(np.float32)
        phases = rng.uniform(0, 2 * np.pi, len(harmonics)).astype(np.float32)
        wave = weights @ np.sin(np.outer(harmonics, pitch * time) + phases[:, None])
        out += (rng.uniform(0.2, 1.0) * envelope * wave).astype(np.float32)
        if rng.random() < 0.3:
            hit = int(rng.integers(samples))
            length = min(samples - hit, int(rng.uniform(0.01, 0.1) * samples))
            click = rng.standard_normal(length) * np.exp(-np.arange(length) / (0.3 * length + 1))
            out[hit : hit + length] += click.astype(np.float32)
    return (out / np.sqrt(np.mean(out**2))).astype(np.float32)


def rms(pcm: Pcm) -> float:
    """Root mean square without the DC offset, which no model hears, 0..1."""
    return float(np.std(pcm, dtype=np.float64)) if pcm.size else 0.0


def noise_gain(clip: Pcm, noise: Pcm, snr_db: float) -> np.float32:
    """The factor that brings `noise` to `snr_db` below the clip (0 where either is silent)."""
    level = rms(noise)
    return np.float32(rms(clip) / level * 10 ** (-snr_db / 20) if level > 0 else 0.0)
