"""Compose streams from clips: words at random sample offsets over background, along with their true positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confit_edge.data.augment import crop, rms
from confit_runtime.arrays import Indices
from confit_runtime.audio import Pcm

PART_S = 20  # seconds of one background recording at a time
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Spoken:
    """One clip in a stream: its label, and its start and end in samples."""

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
    """A stream `[samples]` of the clips (as many as fit) in shuffled order over the background, and where each clip is.

    The background recordings follow one another, 20 s each from a random place, until the stream is full. Each clip's
    RMS exceeds the RMS of those 20 s by a number of dB drawn from `snr`; the level is not taken from the moment itself,
    because a voice does not fall silent when the music pauses. Gaps between clips are drawn from `gap_s` seconds, so
    clips start at arbitrary sample offsets and never overlap.
    """
    length = min(PART_S * rate, samples)
    stream = np.empty(samples, np.float32)  # changed in place, because the stream of a training is large
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


def nearest_clip(middles: Floats, spoken: list[Spoken], window: int) -> tuple[Indices, Floats]:
    """The nearest clip to each window, `[windows]`, and the distance in samples from where the window represents that clip.

    `middles [windows]` are the middles of the windows, in samples; `spoken` is in order of time. The distance is 0 where
    the window is centred on a clip shorter than itself, or lies within a longer clip.
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
    """Windows of a stream that represent no clip: each is at least `off` samples away from one (see `nearest_clip`).

    This is what a device hears most of the time: the end of one word and the beginning of the next, or nothing. The
    windows start half a window apart.
    """
    starts = np.arange(0, len(stream) - window + 1, window // 2)
    if spoken:
        _, away = nearest_clip(starts + window / 2, spoken, window)
        starts = starts[away >= off]
    return [stream[start : start + window] for start in starts]
