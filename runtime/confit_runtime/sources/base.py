"""What every source yields: chunks of sound, what was lost between them, and what happened to the source itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from confit_runtime.audio import Pcm, as_channels, is_valid_audio, mean_of_channels
from confit_runtime.errors import UsageError

# the reasons of gaps that a user can do something about
OVERRUN = "this machine could not keep up"
MICROPHONE_AWAY = "the microphone was away"
STREAM_AWAY = "the stream was away"

SETTLE_S = 10.0  # sound ahead of the clock for this long arrived late at first, rather than being early now
PAUSE_S = 2.0  # without sound after the last chunk has played: usually longer than network delays

Chunk = tuple[Pcm, int]  # mono [samples] in -1..1, and its rate in Hz


class DownmixedChunk(tuple[Pcm, int]):
    """A chunk that is the mean of several channels, along with the `channels [samples, channels]` themselves.

    What is wrong with a single channel, or between two, cannot be measured in their mean.
    """

    channels: Pcm

    def __new__(cls, mean: Pcm, rate: int, channels: Pcm) -> DownmixedChunk:
        mixed = super().__new__(cls, (mean, rate))
        mixed.channels = channels
        return mixed


@dataclass(frozen=True)
class Gap:
    """The source lost `samples` (per channel, at its own rate) between the previous chunk and the next."""

    samples: int
    reason: str


@dataclass(frozen=True)
class Notice:
    """Something that happened to the source, apart from its sound.

    - "away": it went away and is being waited for; "back": it is back. Meanwhile its clock continues, and gaps say
      how far. The clock of a pipe stands still, because the writer may have nothing to write.
    - "rate": its samples come at another rate than it is said to have.
    - "narrow": it lacks frequencies that `models` hear; "behind": the models are too slow
      (`confit_runtime.listener`).
    - "silent", "clipped" or "cancelled" (its channels cancel each other): it has been so for a while; "fine": no longer
      (`confit_runtime.level_monitor`).
    """

    state: Literal["away", "back", "rate", "narrow", "behind", "silent", "clipped", "cancelled", "fine"]
    text: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pause:
    """Nothing has arrived for a while, or not yet, and nothing was lost: the sender may send only while somebody speaks.

    What was heard before is over, and what comes next is a new beginning. The source's clock stands still.
    """


class PlaybackClock:
    """Until when the sound received so far lasts, by a clock in seconds that the caller passes.

    Live sound is late only after that time: after five seconds sent at once, nothing is due for five seconds. A lead
    that persisted recently (from a stream that began with a block of sound, or a sound card that runs fast) is
    subtracted.
    """

    def __init__(self) -> None:
        self._played_until = -math.inf
        self._smallest_lead = self._period_end = math.inf  # the smallest recent lead, and when the current period ends

    def received(self, seconds: float, now: float) -> None:
        """Record `seconds` of sound received at `now`."""
        self._played_until = max(self._played_until, now)
        self._smallest_lead = min(self._smallest_lead, self._played_until - now)
        if now >= self._period_end:
            self._played_until -= self._smallest_lead
        if now >= self._period_end or self._period_end == math.inf:
            self._smallest_lead, self._period_end = math.inf, now + SETTLE_S
        self._played_until += seconds

    def pause_due(self, pause_s: float) -> float:
        """When nothing has come for `pause_s` although it was due; infinity before anything came."""
        return self._played_until + pause_s if self._played_until > -math.inf else math.inf


class Source(Protocol):
    """A context manager to iterate over once. All its chunks have the rate `rate`, whatever the device does.

    `live` is True for sound that arrives in real time, False for recordings, which are read as fast as possible.
    """

    name: str
    rate: int
    live: bool

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[Chunk | Gap | Notice | Pause]: ...

    def stop(self) -> None:
        """End the iteration within a second. May be called from any thread."""


InputChunk = tuple[npt.ArrayLike, int]  # a program's own chunk: whatever PCM `Stream.accept` takes, and its rate in Hz
Item = InputChunk | Gap | Notice | Pause


def downmix(given: InputChunk | DownmixedChunk) -> Chunk:
    """The chunk made from whatever PCM `as_channels` takes. Raises AudioError."""
    if isinstance(given, DownmixedChunk):
        return given
    pcm, rate = given
    channels = as_channels(pcm)
    mean = mean_of_channels(channels)
    return (mean, rate) if channels.ndim == 1 or channels.shape[1] == 1 else DownmixedChunk(mean, rate, channels)


class InputSource(Protocol):
    """A program's own source: like `Source`, but its chunks may contain whatever PCM `Stream.accept` takes."""

    @property
    def name(self) -> str: ...

    @property
    def rate(self) -> int: ...

    @property
    def live(self) -> bool: ...

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...

    def __iter__(self) -> Iterator[Item]: ...

    def stop(self) -> None: ...


def check_not_open(name: str, *, open_already: bool) -> None:
    """Raise UsageError if a source is to be opened a second time: the first opening would never be closed."""
    if open_already:
        raise UsageError(
            f"{name}: is already open: listen, listen_async and follow_async open a source themselves, so pass it"
            " to them outside its `with` block"
        )


def chunk_or_gap(given: InputChunk, what: str) -> Chunk | Gap:
    """Return the chunk, or a gap of its length if it is not sound: a live source continues after a faulty block.

    Raises AudioError for what is not PCM.
    """
    chunk = downmix(given)
    if is_valid_audio(chunk[0]):
        return chunk
    if np.isfinite(chunk[0]).all():
        return Gap(
            len(chunk[0]),
            f"{what} delivered samples far outside -1..1, like floats that were not divided by their full scale",
        )
    return Gap(len(chunk[0]), f"{what} delivered values that are not sound")
