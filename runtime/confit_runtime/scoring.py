"""How many sounds were found, and what was heard that was not there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LATE_S = 1.0  # a true detection ends within this of the sound's end
EARLY_S = 0.25  # and not more than this before its start
DEBOUNCE_S = 1.0  # false accepts of one label closer than this are one


@dataclass(frozen=True)
class Heard:
    """A label and its span in seconds: a sound that is there, or a detection of one."""

    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Score:
    """`found[i]` tells whether sound i was detected with its own label; the rest are false accepts, debounced by label."""

    found: list[bool]
    false_accepts: list[Heard]

    @property
    def recall(self) -> float:
        return sum(self.found) / len(self.found) if self.found else float("nan")


def score_detections(truth: list[Heard], detections: Iterable[Heard]) -> Score:
    """Match detections with the sounds that are there.

    A detection is true when a sound of its label ends at most 1 s before the detection does, and has begun by then
    (0.25 s of slack). A second detection of the same sound is neither found twice nor a false accept. Everything else
    is a false accept: a detection on audio without the class, a wrong label included.
    """
    found = [False] * len(truth)
    false_accepts: list[Heard] = []
    for detection in sorted(detections, key=lambda heard: heard.end_s):
        matching = [
            index
            for index, sound in enumerate(truth)
            if sound.label == detection.label and sound.start_s - EARLY_S <= detection.end_s <= sound.end_s + LATE_S
        ]
        if matching:
            unfound = [index for index in matching if not found[index]]
            found[(unfound or matching)[0]] = True
            continue
        earlier = [heard for heard in false_accepts if heard.label == detection.label]
        if not earlier or detection.end_s - earlier[-1].end_s >= DEBOUNCE_S:
            false_accepts.append(detection)
    return Score(found, false_accepts)
