"""Streams composed from clips: words at random sample offsets over background, with the truth beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confit_edge.data.augment import crop, rms
from confit_runtime.arrays import Places
from confit_runtime.audio import Pcm

PART_S = 20
Floats = npt.NDArray[np.floating]


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


def nearest_clip(middles: Floats, spoken: list[Spoken], window: int) -> tuple[Places, Floats]:
    """Which clip each window speaks of, `[windows]`, and how many samples it is away from speaking of that clip as it should.

    `middles [windows]` are the windows' own, in samples; `spoken` is in order of time. It is no sample away where its
    middle is that of a clip shorter than a window, or where it lies within a longer one.
    """
    centres = np.array([(word.start + word.end) / 2 for word in spoken])
    first = np.minimum(centres, [word.start + window / 2 for word in spoken])
    last = np.maximum(centres, [word.end - window / 2 for word in spoken])
    after = np.searchsorted(first, middles)
    before, after = np.maximum(after - 1, 0), np.minimum(after, len(spoken) - 1)
    to_before, to_after = (
        np.maximum(0.0, np.maximum(first[at] - middles, middles - last[at])) for at in (before, after)
    )
    return np.where(to_before <= to_after, before, after), np.minimum(to_before, to_after)


def fragments(stream: Pcm, spoken: list[Spoken], *, window: int, off: int) -> list[Pcm]:
    """Windows of a stream that speak of no clip (each is `off` samples or more away from it, see `nearest_clip`).

    What a device hears most of the time: the end of one word and the beginning of the next, or nothing. Half a window
    lies between the starts of two.
    """
    starts = np.arange(0, len(stream) - window + 1, window // 2)
    if spoken:
        _, away = nearest_clip(starts + window / 2, spoken, window)
        starts = starts[away >= off]
    return [stream[start : start + window] for start in starts]
