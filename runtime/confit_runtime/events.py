"""What a stream reports: detections and, on request, their ends."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

EventKey = tuple[bool, str]  # a detection's `enrolled` and `label`: a name may equal a label


@dataclass(frozen=True)
class Detection:
    """A sound that was heard, placed where it occurred (not where it was noticed).

    Samples count from the start of the stream, at the source's own rate. `score` is the score when it fired: for a
    label of the model the smoothed score, 0..1; for an `enrolled` name the similarity, -1..1. `speaker` is set if a
    speaker model and a gallery named a speaker.
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
    """A detected sound is over: its score fell below the label's `off` level, or no more of it could be heard.

    All but the end is as in the detection, also where a tap changed that. `end_s` is the position described by the last
    row at or above the `off` level, or the point where the sound broke off: at a gap longer than a second, a mute, a
    pause, the end, or where the gate had closed; it is never before the start. A sound that is then pausing within its
    hold ended when its pause began.
    """

    model: str
    label: str
    start_s: float
    end_s: float
    start_sample: int
    end_sample: int
    enrolled: bool


class Events:
    """Detections and their ends, kept in the order in which they became known until somebody takes them."""

    def __init__(self) -> None:
        self._sounding: dict[EventKey, Detection] = {}
        self._pending: list[Detection | Ended] = []

    def add(self, detection: Detection) -> None:
        self._sounding[detection.enrolled, detection.label] = detection
        self._pending.append(detection)

    def end(self, which: EventKey, end: int, rate: int | None) -> None:
        """Record that a detected sound ended at sample `end` of the source."""
        one = self._sounding.pop(which)
        assert rate is not None  # of what was heard
        self._pending.append(Ended(one.model, one.label, one.start_s, end / rate, one.start_sample, end, one.enrolled))

    def end_all(self, end: int, rate: int | None) -> None:
        """End everything that is sounding, because no more of it can be heard."""
        for which in list(self._sounding):
            # what fires on silence may have begun in that of the gap after `end`
            self.end(which, max(end, self._sounding[which].start_sample), rate)

    def end_names_except(self, names: Collection[str], end: int, rate: int | None) -> None:
        """End the enrolled names that are sounding, except `names`."""
        for which in [which for which in self._sounding if which[0] and which[1] not in names]:
            self.end(which, end, rate)

    def clear(self) -> None:
        """Discard all detections and ends that were not taken."""
        self._sounding.clear()
        self._pending.clear()

    def take(self) -> list[Detection | Ended]:
        pending, self._pending = self._pending, []
        return pending
