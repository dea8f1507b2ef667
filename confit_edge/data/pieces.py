"""Which stretches of a labelled recording become training clips, by which labels, and what lies between its sounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from confit_edge.data.clips import MIN_S
from confit_edge.data.manifest import labels_of
from confit_runtime.labels import Labelled
from confit_runtime.scoring import Heard

APART_S = 0.5  # between a labelled sound and the rest: what rings on is no background
SHORTEST_REST_S = 1.0


class Piece(NamedTuple):
    """A stretch of a recording and what is heard in it: no labels where that is `unknown`."""

    start_s: float
    end_s: float
    labels: tuple[str, ...]


@dataclass
class Pieces:
    """The pieces of a recording that are to be clips, and the sounds that become none."""

    kept: list[Piece] = field(default_factory=list)
    pointless: list[Heard] = field(default_factory=list)  # without a length, and no margin gives one
    crossed: int = 0  # of one label, where only such are wanted, and another is heard in it
    none_of_them: int = 0  # of `unknown`, in which a labelled sound is heard


def pieces_of(recording: Labelled, margin_s: float = 0.0, *, alone: bool = False) -> Pieces:
    """A piece for each place of a sound, with up to `margin_s` before and after it, but nothing of another sound.

    Where sounds overlap by 0.05 s or more a piece holds several: it has the labels of all, or with `alone` becomes none.
    Raises ManifestError on a label that no manifest can hold.
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
            found.pointless.append(sounds[here[0]])
        elif heard and not any(labels[at] for at in here):
            found.none_of_them += 1
        elif alone and len(heard) > 1:
            found.crossed += 1
        else:
            found.kept.append(Piece(float(first), float(last), tuple(sorted(heard))))
    found.kept = list(dict.fromkeys(found.kept))  # two that overlap may come to be one, between others
    return found


def rest_of(recording: Labelled, margin_s: float = 0.0) -> list[tuple[float, float]]:
    """The stretches of a second and more in which nothing is labelled, half a second or the margin from what is."""
    apart_s, found, at = max(APART_S, margin_s), list[tuple[float, float]](), 0.0
    spans = sorted((sound.start_s - apart_s, sound.end_s + apart_s) for sound in recording.sounds)
    for start, end in [*spans, (recording.seconds, recording.seconds)]:
        if start - at >= SHORTEST_REST_S:
            found.append((at, start))
        at = max(at, end)
    return found
