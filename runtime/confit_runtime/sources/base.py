"""What every source gives: chunks of sound, what was lost between them, and what happened to the source itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from confit_runtime.audio import Pcm, is_sound
from confit_runtime.errors import UsageError

# what gaps are for, where something can be done about it
OVERRUN = "this machine could not keep up"
MICROPHONE_AWAY = "the microphone was away"
STREAM_AWAY = "the stream was away"

SETTLED_S = 10.0  # sound that is ahead of the clock for as long is not about to sound: it came late at first
PAUSE_S = 2.0  # without sound, after what came has sounded: longer than networks keep it waiting, as a rule

Chunk = tuple[Pcm, int]  # mono [samples] in -1..1, and its rate in Hz


@dataclass(frozen=True)
class Gap:
    """The source lost `samples` (per channel, at its own rate) between the chunk before and the chunk after."""

    samples: int
    reason: str


@dataclass(frozen=True)
class Notice:
    """What happened to the source, besides its sound.

    It went "away" and is waited for, or is "back": meanwhile its clock runs on, and gaps say how far; but that of a pipe
    stands still, for whoever writes may have nothing to write. Or it is too "narrow"
    for `models` of those that listen to it, or these fall "behind" (`confit_runtime.listener`). Or it is "silent" or
    "clipped" for long, or "fine" again (`confit_runtime.loudness`).
    """

    state: Literal["away", "back", "narrow", "behind", "silent", "clipped", "fine"]
    text: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pause:
    """Nothing has come for a while, or yet, and nothing was lost: who sends may do so only while somebody speaks.

    So what was heard before is over, and what comes next is a beginning. The source's clock stands still.
    """


class Lasting:
    """Until when the sound that came lasts, by a clock in seconds that its user names at each call.

    Sound that comes as it happens is late from then on only: who sends five seconds at once sends nothing for five seconds.
    How far all that came lately was ahead is what a stream began with, or a sound card that runs fast, and is left out.
    """

    def __init__(self) -> None:
        self._until = -math.inf
        self._ahead = self._settled = math.inf  # the least it was ahead by lately, and the time where lately ends

    def came(self, seconds: float, now: float) -> None:
        """So much sound came."""
        self._until = max(self._until, now)
        self._ahead = min(self._ahead, self._until - now)
        if now >= self._settled:
            self._until -= self._ahead
        if now >= self._settled or self._settled == math.inf:
            self._ahead, self._settled = math.inf, now + SETTLED_S
        self._until += seconds

    def paused(self, pause_s: float) -> float:
        """From when on nothing has come for `pause_s` that might have; infinity before anything came."""
        return self._until + pause_s if self._until > -math.inf else math.inf


class Source(Protocol):
    """A context manager to iterate over once. Its chunks all have the rate `rate`, whatever the device does.

    `live` is true of sound that comes as it happens, and false of recordings, which are read as fast as can be.
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
        """End the iteration, within a second at most. May be called from any thread."""


Given = tuple[npt.ArrayLike, int]  # a chunk of a program's own: whatever PCM `Stream.accept` takes, and its rate in Hz
Item = Given | Gap | Notice | Pause


class GivenSource(Protocol):
    """A source of a program's own: what `Source` is, but its chunks may hold whatever PCM `Stream.accept` takes."""

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


def check_closed(name: str, *, open_already: bool) -> None:
    """Raise UsageError where a source that is open would be opened again, and the first opening never closed."""
    if open_already:
        raise UsageError(
            f"{name}: is open already: listen, listen_async and follow_async open a source themselves, so give it to them"
            " outside its `with` block"
        )


def sound_or_gap(pcm: Pcm, rate: int, what: str) -> Chunk | Gap:
    """A chunk; where it holds what is no sound, a gap of its length, for a live source goes on after a faulty block."""
    if is_sound(pcm):
        return pcm, rate
    if np.isfinite(pcm).all():
        return Gap(
            len(pcm), f"{what} delivered samples far outside -1..1, as of floats that were not divided by their scale"
        )
    return Gap(len(pcm), f"{what} delivered values that are no sound")
