"""Streams composed from clips: words at random sample offsets over background, with the truth beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from confit_edge.data.augment import Pcm, crop, rms

PART_S = 20


@dataclass(frozen=True)
class Spoken:
    """One clip in a stream: its label and where it stands, in samples."""

    label: str
    start: int
    end: int


def compose(
    clips: list[Pcm],
    labels: list[str],
    background: list[Pcm],
    *,
    samples: int,
    rate: int,
    snr: tuple[float, float],
    rng: np.random.Generator,
    gap_s: tuple[float, float] = (0.6, 2.2),
) -> tuple[Pcm, list[Spoken]]:
    """A stream `[samples]` of the clips in a shuffled order (as many as fit) over the background.

    The background recordings follow one another, 20 s each from a random place, until the stream is full. Each clip's
    RMS is above the RMS of those 20 s by what is drawn from `snr` dB: a voice does not fall silent where the music
    pauses. Gaps between clips are drawn from `gap_s` seconds, so clips stand at arbitrary sample offsets and never
    overlap.
    """
    length = min(PART_S * rate, samples)
    stream = np.empty(samples, np.float32)  # filled and changed in place: that of a training is large
    levels: list[float] = []
    spoken: list[Spoken] = []
    for start in range(0, samples, length):
        part = crop(background[len(levels) % len(background)], length, rng)
        levels.append(max(rms(part), 1e-4))
        stream[start : start + length] = part[: samples - start]
    at = int(rng.uniform(*gap_s) * rate)
    for index in rng.permutation(len(clips)):
        clip = clips[index]
        if at + len(clip) > samples:
            break
        gain = levels[at // length] / rms(clip) * 10 ** (rng.uniform(*snr) / 20)
        stream[at : at + len(clip)] += clip * np.float32(gain)
        spoken.append(Spoken(labels[index], at, at + len(clip)))
        at += len(clip) + int(rng.uniform(*gap_s) * rate)
    stream /= np.float32(max(1.0, stream.max(), -stream.min()))
    return stream, spoken


def fragments(stream: Pcm, spoken: list[Spoken], *, window: int, off: int) -> list[Pcm]:
    """Windows of a stream in which no clip is in the middle (each clip's own is further than `off` samples away).

    What a device hears most of the time: the end of one word and the beginning of the next, or nothing. Half a window
    lies between the starts of two.
    """
    centres = np.array([(word.start + word.end) / 2 for word in spoken])
    starts = range(0, len(stream) - window + 1, window // 2)
    return [
        stream[start : start + window]
        for start in starts
        if not len(centres) or np.abs(centres - (start + window / 2)).min() >= off
    ]
