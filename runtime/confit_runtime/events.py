"""What a stream gives: a detection, and, where that is asked for, its end."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

Which = tuple[bool, str]  # `enrolled` and `label` of a detection: a name may be called like a label


@dataclass(frozen=True)
class Detection:
    """A sound that was heard, placed where it was (not where it was noticed).

    Samples count from the start of the stream, in the source's own rate; `score` is what it was at the moment
    it fired: of a label of the model the smoothed score, 0..1; where `label` is a name that is `enrolled`, the similarity,
    -1..1. `speaker` is set where a speaker model and a gallery named one.
    """

    model: str
    label: str
    score: float
    start_s: float
    end_s: float
    start_sample: int
    end_sample: int
    enrolled: bool = False
    speaker: str | None = None


@dataclass(frozen=True)
class Ended:
    """A detection's sound is over: its score fell below the label's low threshold, or no more of it could be heard.

    `start_s`, `start_sample` and `enrolled` are the detection's; `end_s` is where the sound was that the last row at or above the
    threshold speaks of, or where it broke off: at a gap, a mute, a pause, the end, or where the gate had closed. What pauses
    then within its hold ended as its pause began.
    """

    model: str
    label: str
    start_s: float
    end_s: float
    start_sample: int
    end_sample: int
    enrolled: bool


class Events:
    """Detections and their ends, in the order in which they were known, until somebody takes them."""

    def __init__(self) -> None:
        self._sounding: dict[Which, Detection] = {}
        self._kept: list[Detection | Ended] = []

    def add(self, detection: Detection) -> None:
        self._sounding[detection.enrolled, detection.label] = detection
        self._kept.append(detection)

    def end(self, which: Which, end: int, rate: int | None) -> None:
        """What fired before has ended at sample `end` of the source."""
        one = self._sounding.pop(which)
        assert rate is not None  # of what was heard
        self._kept.append(Ended(one.model, one.label, one.start_s, end / rate, one.start_sample, end, one.enrolled))

    def end_all(self, end: int, rate: int | None) -> None:
        """Of what is sounding no more can be heard."""
        for which in list(self._sounding):
            self.end(which, end, rate)

    def end_names_but(self, names: Collection[str], end: int, rate: int | None) -> None:
        """Of the enrolled names that are sounding only `names` can still be heard."""
        for which in [which for which in self._sounding if which[0] and which[1] not in names]:
            self.end(which, end, rate)

    def forget(self) -> None:
        """Nobody is told any more what was detected, nor when it ends."""
        self._sounding.clear()
        self._kept.clear()

    def take(self) -> list[Detection | Ended]:
        kept, self._kept = self._kept, []
        return kept
