"""What must be measured before channels are averaged: whether one of them is clipped, and whether they cancel each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Indices
from confit_runtime.audio import Pcm
from confit_runtime.frames import runs
from confit_runtime.sources.base import Chunk, DownmixedChunk

FULL_SCALE = 0.99  # a sample at or above this counts as clipped if its neighbours are as loud
MIN_RUN = 3  # samples at full scale, or in a flat top

# flat tops below full scale: relative to the loudest sample
_FLAT = 0.002  # within this, samples are equally loud
_STEEP = 0.016  # how much softer the samples on both sides of a flat top are; a sine's are less than four times _FLAT
_MIN_PEAK = 0.05  # in softer sound, 16 bits are too coarse
_MIN_TOPS = 5
_MIN_ROUND_SHARE = 0.25  # round peaks per flat top: a square wave, as in an alarm's beep, has none

ONE_CHANNEL = (
    "use one of them: #1 after a microphone's name (mic#1), or for a file or a pipe the first channel alone (`ffmpeg -i IN"
    " -af 'pan=mono|c0=c0' OUT`)"
)

LOUD_DB = -50.0  # channels that are softer may hold nothing but noise
_LOUD_S = 0.2  # how much louder sound shows whether channels cancel


def channels_of(chunk: Chunk) -> Pcm:
    """The channels `[samples, channels]` that a chunk was averaged from, or the one it has."""
    return chunk.channels if isinstance(chunk, DownmixedChunk) else chunk[0][:, None]


class ChannelCheck:
    """Measures sound chunk by chunk, each with the channels it was averaged from."""

    def __init__(self) -> None:
        self._clipping, self._mixing = Clipping(), Mixing()

    def hear(self, chunk: Chunk) -> None:
        channels = channels_of(chunk)
        if not len(channels):  # of no samples, the number of channels says nothing
            return
        self._clipping.hear(channels)
        self._mixing.hear(channels, chunk[1])

    @property
    def clipped(self) -> float:
        """The share of clipped samples in the channel that has the most."""
        return self._clipping.share

    @property
    def cancelled(self) -> bool:
        """Whether the channels cancel each other, judged by at least a fifth of a second of loud sound."""
        return self._mixing.loud_s >= _LOUD_S and self._mixing.cancels


class Mixing:
    """Compares the power of the mean of several channels with the power of the channels, over all loud sound."""

    def __init__(self) -> None:
        self.loud_s = self._mean = self._each = 0.0
        self._channels = 1

    def hear(self, channels: Pcm, rate: int) -> None:
        """Take `[samples, channels]`."""
        self._channels = channels.shape[1]
        if self._channels == 1 or not len(channels):
            return
        sums = np.ones(len(channels), np.float32) @ channels
        # the energies of the channels, and of each pair, without their offsets
        products = channels.T @ channels - np.outer(sums, sums) / len(channels)
        each, seconds = float(np.trace(products)) / self._channels, len(channels) / rate
        if each >= 10 ** (LOUD_DB / 10) * len(channels):
            self.loud_s += seconds
            self._each += each / rate
            self._mean += float(products.sum()) / self._channels**2 / rate

    @property
    def cancels(self) -> bool:
        """Whether the mean has less than half the power that unrelated channels would leave it (of two channels: a quarter)."""
        return 2 * self._channels * self._mean < self._each


class Clipping:
    """Counts clipped samples, channel by channel.

    Clipped are runs of at least three samples at full scale. Where the sound was made softer after it had been clipped, so
    are flat tops: runs at the loudest level of the whole sound, positive or negative, that begin and end steeply. They
    count if there are several, and if the sound also has round peaks.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._channels: list[_Channel] = []

    def hear(self, channels: Pcm) -> None:
        """Take `[samples, channels]`."""
        if len(self._channels) != channels.shape[1]:
            self._samples, self._channels = 0, [_Channel() for _ in range(channels.shape[1])]
        if len(channels):
            self._samples += len(channels)
            for channel, pcm in zip(self._channels, np.ascontiguousarray(channels.T), strict=True):
                channel.hear(pcm)

    @property
    def share(self) -> float:
        """The share of clipped samples in the channel that has the most."""
        return max((channel.clipped for channel in self._channels), default=0) / max(1, self._samples)

    @property
    def spread(self) -> int:
        """The number of samples in chunks that contain clipped ones, in the channel that has the most."""
        return max((channel.spread for channel in self._channels), default=0)


class _Channel:
    def __init__(self) -> None:
        self._full = self._full_spread = 0
        self._sides = _Side(), _Side()

    def hear(self, pcm: Pcm) -> None:
        high, low = float(pcm.max()), float(pcm.min())
        if max(high, -low) >= FULL_SCALE:
            starts, ends = _runs(np.abs(pcm) >= FULL_SCALE)
            self._full += int((ends - starts).sum())
            self._full_spread += len(pcm) if len(starts) else 0
        positive, negative = self._sides
        if positive.is_reached(high):
            positive.hear(pcm)
        if negative.is_reached(-low):
            negative.hear(-pcm)

    @property
    def clipped(self) -> int:
        return max(self._full, sum(side.samples for side in self._sides if side.clipped))

    @property
    def spread(self) -> int:
        return max(self._full_spread, *(side.spread for side in self._sides if side.clipped), 0)


class _Side:
    """The positive or the negative half of a channel: flat tops at its loudest level."""

    def __init__(self) -> None:
        self._peak = 0.0
        self._restart()

    def _restart(self) -> None:
        self._tops = self._round = 0
        self.samples = self.spread = 0  # in flat tops; in chunks that have any

    def is_reached(self, peak: float) -> bool:
        """Whether a chunk with this peak may have flat tops: it reaches the loudest level so far, or raises it."""
        if peak > (1 + _FLAT) * self._peak:
            self._peak = peak
            self._restart()  # what is below the loudest level was not cut off there
        return self._peak >= _MIN_PEAK and peak >= (1 - _FLAT) * self._peak

    def hear(self, pcm: Pcm) -> None:
        starts, ends = _runs(pcm >= (1 - _FLAT) * self._peak)
        inside = (starts > 0) & (ends < len(pcm))
        starts, ends = starts[inside], ends[inside]
        steep = np.maximum(pcm[starts - 1], pcm[ends]) <= (1 - _STEEP) * self._peak
        if steep.any():
            self._tops += int(steep.sum())
            self.samples += int((ends - starts)[steep].sum())
            self.spread += len(pcm)
            middle = pcm[1:-1]
            peaks = middle[(middle > pcm[:-2]) & (middle > pcm[2:])] / self._peak
            self._round += int(((peaks > 0.25) & (peaks < 0.9)).sum())

    @property
    def clipped(self) -> bool:
        return self._tops >= _MIN_TOPS and self._round >= _MIN_ROUND_SHARE * self._tops


def _runs(mask: npt.NDArray[np.bool_]) -> tuple[Indices, Indices]:
    """The starts and ends of the runs of True that are at least `MIN_RUN` long."""
    starts, ends = runs(mask).T
    long = ends - starts >= MIN_RUN
    return starts[long], ends[long]
