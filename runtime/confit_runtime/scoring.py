"""Count how many sounds were found, and how many detections were false."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

LATE_S = 1.0  # a true detection ends no later than this after the sound's end
EARLY_S = 0.25  # and no earlier than this before its start
DEBOUNCE_S = 1.0  # false accepts of one label closer than this count as one


@dataclass(frozen=True)
class SoundEvent:
    """A label and its span in seconds: a sound that is present, or a detection with its score."""

    label: str
    start_s: float
    end_s: float
    score: float | None = None


@dataclass(frozen=True)
class Score:
    """`found_by[i]` is the index of the detection that found sound i, or None; `false_accepts` are debounced."""

    found_by: list[int | None]
    false_accepts: list[SoundEvent]

    @property
    def found(self) -> list[bool]:
        """For each sound, whether it was detected with its own label."""
        return [index is not None for index in self.found_by]


def detection_window(sound: SoundEvent) -> tuple[float, float]:
    """The interval, in seconds, in which a detection of this sound must end."""
    return sound.start_s - EARLY_S, sound.end_s + LATE_S


def score_detections(truth: list[SoundEvent], detections: Iterable[SoundEvent]) -> Score:
    """Match detections with the sounds that are present.

    A detection is true if a sound of its label ends at most 1 s before the detection does, and has begun by then (with
    0.25 s of slack). In time order, each detection finds, among the sounds it may belong to that are not found yet,
    the one that ends first; this finds as many as possible. If all of those are already found, the detection counts
    neither as another hit nor as a false accept. Everything else is a false accept, including a wrong label.
    """
    found_by: list[int | None] = [None] * len(truth)
    false_accepts: list[SoundEvent] = []
    reaches = [detection_window(sound) for sound in truth]
    last: dict[str, float] = {}  # when the last false accept of each label ended
    coming: dict[str, deque[int]] = defaultdict(deque)  # by label, in time order: sounds that have not begun
    near: dict[str, list[int]] = defaultdict(list)  # and those that may still be detected
    for index in sorted(range(len(truth)), key=lambda index: truth[index].start_s):
        coming[truth[index].label].append(index)
    for place, detection in sorted(enumerate(detections), key=lambda numbered: numbered[1].end_s):
        ahead, now = coming[detection.label], detection.end_s
        while ahead and reaches[ahead[0]][0] <= now:
            near[detection.label].append(ahead.popleft())
        near[detection.label] = [index for index in near[detection.label] if now <= reaches[index][1]]
        if matching := near[detection.label]:
            if missing := [index for index in matching if found_by[index] is None]:
                found_by[min(missing, key=lambda index: truth[index].end_s)] = place
        elif detection.label not in last or now - last[detection.label] >= DEBOUNCE_S:
            false_accepts.append(detection)
            last[detection.label] = now
    return Score(found_by, false_accepts)
