"""Choose the stretches of a labelled recording that become training clips, their labels, and the stretches in between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from confit_edge.data.clips import MIN_S
from confit_edge.data.manifest import labels_of
from confit_runtime.labels import LabelledRecording
from confit_runtime.scoring import SoundEvent

APART_S = 0.5  # between a labelled sound and the rest, so that its ringing does not count as background
SHORTEST_REST_S = 1.0


class Piece(NamedTuple):
    """A stretch of a recording and its labels; no labels if it is `unknown`."""

    start_s: float
    end_s: float
    labels: tuple[str, ...]


@dataclass
class Pieces:
    """The pieces of a recording that become clips, and the sounds that do not."""

    kept: list[Piece] = field(default_factory=list)
    zero_length: list[SoundEvent] = field(default_factory=list)  # sounds without a duration, where no margin adds one
    overlapping: int = 0  # dropped with `alone`: another label is heard in them
    dropped_unknown: int = 0  # `unknown` sounds dropped because a labelled sound is heard in them


def pieces_of(recording: LabelledRecording, margin_s: float = 0.0, *, alone: bool = False) -> Pieces:
    """A piece for each span of a sound, with up to `margin_s` before and after it, but without any of another sound.

    Where sounds overlap by 0.05 s or more, a piece contains several sounds: it gets the labels of all of them, or with
    `alone` is dropped. Raises ManifestError for a label that a manifest cannot hold.
    """
    sounds, found = recording.sounds, Pieces()
    starts, ends = (np.array([getattr(sound, name) for sound in sounds]) for name in ("start_s", "end_s"))
    labels = [set(labels_of(sound.label, "labels", str(recording.path))) for sound in sounds]
    for start, end in dict.fromkeys((sound.start_s, sound.end_s) for sound in sounds):
        least = np.minimum(min(MIN_S, end - start), ends - starts)
        within = np.minimum(ends, end) - np.maximum(starts, start) >= least
        before = ends[~within & (starts < start)].max(initial=0.0)
        after = starts[~within & (starts >= start)].min(initial=recording.seconds)
        first, last = max(start - margin_s, min(before, start)), min(end + margin_s, max(after, end), recording.seconds)
        here = [at for at in np.flatnonzero(within) if (sounds[at].start_s, sounds[at].end_s) == (start, end)]
        heard: set[str] = set().union(*(labels[at] for at in np.flatnonzero(within)))
        if last <= first:
            found.zero_length.append(sounds[here[0]])
        elif heard and not any(labels[at] for at in here):
            found.dropped_unknown += 1
        elif alone and len(heard) > 1:
            found.overlapping += 1
        else:
            found.kept.append(Piece(float(first), float(last), tuple(sorted(heard))))
    found.kept = list(dict.fromkeys(found.kept))  # overlapping sounds, hemmed in by others, may give equal pieces
    return found


def rest_of(recording: LabelledRecording, margin_s: float = 0.0) -> list[tuple[float, float]]:
    """The unlabelled stretches of at least a second, half a second (or `margin_s`, if longer) away from labelled sounds."""
    apart_s, found, at = max(APART_S, margin_s), list[tuple[float, float]](), 0.0
    spans = sorted((sound.start_s - apart_s, sound.end_s + apart_s) for sound in recording.sounds)
    for start, end in [*spans, (recording.seconds, recording.seconds)]:
        if start - at >= SHORTEST_REST_S:
            found.append((at, start))
        at = max(at, end)
    return found
