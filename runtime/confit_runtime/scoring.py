"""How many sounds were found, and what was heard that was not there."""

from __future__ import annotations

from collections import defaultdict, deque
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
    last: dict[str, float] = {}  # when the last false accept of each label ended
    coming: dict[str, deque[int]] = defaultdict(deque)  # by label, in order of time: sounds that have not begun
    near: dict[str, list[int]] = defaultdict(list)  # and those that may still be detected
    for index in sorted(range(len(truth)), key=lambda index: truth[index].start_s):
        coming[truth[index].label].append(index)
    for detection in sorted(detections, key=lambda heard: heard.end_s):
        ahead, now = coming[detection.label], detection.end_s
        while ahead and truth[ahead[0]].start_s - EARLY_S <= now:
            near[detection.label].append(ahead.popleft())
        near[detection.label] = [index for index in near[detection.label] if now <= truth[index].end_s + LATE_S]
        if matching := near[detection.label]:
            found[min([index for index in matching if not found[index]] or matching)] = True
        elif detection.label not in last or now - last[detection.label] >= DEBOUNCE_S:
            false_accepts.append(detection)
            last[detection.label] = now
    return Score(found, false_accepts)
