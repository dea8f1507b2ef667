"""A scripted source of live sound, a scene to play from it, what a stream hears, and taps that record or are slow."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np

from confit_runtime import (
    Detection,
    Model,
    Stream,
    Tap,
)
from confit_runtime.sources import Chunk, Gap, Notice, Pause
from tests.tiny_model import RATE, Floats, silence, tone


def scene(rate: int = RATE) -> Floats:
    """low at 0.4 s, mid at 1.1 s."""
    return np.concatenate(
        [silence(0.4, rate), tone(500, 0.3, rate), silence(0.4, rate), tone(1200, 0.3, rate), silence(0.5, rate)]
    )


def heard(stream: Stream, parts: list[Floats], rate: int) -> list[Detection]:
    """What a stream reports of a sound that comes in parts and then ends."""
    return [event for part in parts for event in stream.accept(part, rate)] + stream.finish()


def chunks(pcm: Floats, rate: int = RATE, size: int = 700) -> list[Chunk]:
    return [(pcm[start : start + size], rate) for start in range(0, len(pcm), size)]


class Scripted:
    """A live source that gives what it is told to, and then waits until it is stopped (or is at its end)."""

    name, rate, live = "scripted", RATE, True

    def __init__(self, items: Sequence[Chunk | Gap | Notice | Pause], *, endless: bool = False) -> None:
        self._items, self.endless = items, endless
        self.stopped, self.left = threading.Event(), threading.Event()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *details: object) -> None:
        self.left.set()

    def __iter__(self) -> Iterator[Chunk | Gap | Notice | Pause]:
        for item in self._items:
            if self.stopped.is_set():
                return
            yield item
        if self.endless:
            self.stopped.wait(30)

    def stop(self) -> None:
        self.stopped.set()


def places(events: Sequence[Detection]) -> list[tuple[str, int, int]]:
    return [(event.label, event.start_sample, event.end_sample) for event in events]


def direct(model: Model) -> list[tuple[str, int, int]]:
    stream = model.stream()
    return places([*stream.accept(scene(), RATE), *stream.finish()])


class Recorder(Tap):
    """Keeps all it hears, renames what is low, and drops what is mid."""

    def begin(self, name: str, rate: int) -> None:
        self.heard: list[Floats] = []

    def hear(self, pcm: Floats, rate: int) -> None:
        self.heard.append(pcm)

    def skip(self, samples: int) -> None:
        self.heard.append(np.full(samples, np.nan, np.float32))

    def judge(self, detection: Detection) -> Detection | None:
        # all of what was detected has been heard already
        assert sum(map(len, self.heard)) >= detection.end_sample
        return None if detection.label == "mid" else dataclasses.replace(detection, speaker="ada")


# keeping up


class Slow(Tap):
    """Takes so many times as long to hear a part as it lasts; the factors are for one part each, and the last for the rest."""

    def __init__(self, *times: float) -> None:
        self._times = list(times)

    def hear(self, pcm: Floats, rate: int) -> None:
        times = self._times.pop(0) if len(self._times) > 1 else self._times[0]
        time.sleep(times * len(pcm) / rate)
