"""Streams composed from clips: words at random sample offsets over background, with the truth beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from confit_edge.data.augment import Pcm, crop, rms


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
    """A stream `[samples]` of the clips in a shuffled order (as many as fit), each as far above the sound under it as
    drawn from `snr` dB.

    The background recordings follow one another from random places until the stream is full. Gaps between clips are
    drawn from `gap_s` seconds, so clips stand at arbitrary sample offsets and never overlap.
    """
    parts: list[Pcm] = []
    while sum(map(len, parts)) < samples:
        parts.append(crop(background[len(parts) % len(background)], min(20 * rate, samples), rng))
    under = np.concatenate(parts)[:samples]
    stream, spoken = under.copy(), []
    at = int(rng.uniform(*gap_s) * rate)
    for index in rng.permutation(len(clips)):
        clip = clips[index]
        if at + len(clip) > samples:
            break
        level = max(rms(under[at : at + len(clip)]), 1e-4)
        stream[at : at + len(clip)] += clip * np.float32(level / rms(clip) * 10 ** (rng.uniform(*snr) / 20))
        spoken.append(Spoken(labels[index], at, at + len(clip)))
        at += len(clip) + int(rng.uniform(*gap_s) * rate)
    return (stream / max(1.0, float(np.abs(stream).max()))).astype(np.float32), spoken


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
