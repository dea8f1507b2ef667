"""From rows of scores to events: smoothing, hysteresis, minimum duration and a refractory time for each class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats
from confit_runtime.contract import Contract

if TYPE_CHECKING:
    from confit_runtime.matcher import Matcher


@dataclass(frozen=True)
class Hit:
    """A class that fired: `start_row` is the first row above its low threshold, `row` the one at which it fired."""

    label: int
    score: float
    start_row: int
    row: int


class Detector:
    """Turns score rows into hits.

    A class fires when its smoothed score (mean of the last `smoothing_hops` rows) has been at or above `on` for
    `min_hops` rows and, in a single-label model, leads all others. It is armed again only once its smoothed score has
    fallen below `off`, and stays silent for its refractory time (`refractory_hops`: of all classes, or of each) after a
    hit. `released` is which had fired and fell below `off` in the rows of the last `push`: (row, class) in time order.
    """

    def __init__(
        self,
        on: npt.ArrayLike,
        off: npt.ArrayLike,
        *,
        smoothing_hops: int,
        min_hops: int,
        refractory_hops: npt.ArrayLike,
        never: npt.ArrayLike = (),
        exclusive: bool = True,
    ) -> None:
        self.on, self.off = np.asarray(on, np.float32), np.asarray(off, np.float32)
        self.min_hops, self.exclusive = min_hops, exclusive
        self.refractory_hops = np.broadcast_to(np.asarray(refractory_hops, np.int64), self.on.shape)
        self._may_fire = np.ones(len(self.on), bool)
        self._may_fire[np.asarray(never, np.int64)] = False
        self._least = np.where(self._may_fire, np.minimum(self.on, self.off), np.inf).astype(np.float32)
        self._recent = np.zeros((smoothing_hops, len(self.on)), np.float32)
        self.released: list[tuple[int, int]] = []
        self.reset()

    @classmethod
    def from_contract(cls, contract: Contract) -> Detector:
        levels = [contract.thresholds[label] for label in contract.labels]
        never = [contract.labels.index(contract.unknown_label)] if contract.unknown_label is not None else []
        return cls(
            [level["on"] for level in levels],
            [level["off"] for level in levels],
            smoothing_hops=contract.smoothing_hops,
            min_hops=contract.min_hops,
            refractory_hops=[
                refractory_hops(contract, level.get("refractory_s", contract.refractory_s)) for level in levels
            ],
            never=never,
            exclusive=not contract.multi_label,
        )

    @property
    def memory(self) -> int:
        """On how many rows before its own a hit depends, leaving aside what disarmed its class."""
        return len(self._recent) + self.min_hops - 2

    def reset(self) -> None:
        """Forget everything, as if the stream began now."""
        self.rows = self._first = 0
        self.silent_until = np.zeros(len(self.on))
        self._arm()

    def begin_after(self, hops: float) -> None:
        """Begin anew `hops` after what is row 0 now would have begun. Only the refractory times outlast that.

        Both begin as many hops before their first row, so a time is a row of one and `hops` less a row of the other.
        """
        silent = self.silent_until - hops
        self.reset()
        self.silent_until = silent

    def skip_to(self, row: int) -> None:
        """Let rows pass that nobody scored: `row` is the next. Only the refractory times outlast them."""
        self.rows = self._first = row
        self._arm()

    def go_on_from(self, former: Detector, places: npt.ArrayLike) -> None:
        """Go on with the next row of another of unsmoothed scores: each class as that of the place in it, of -1 as new."""
        self.skip_to(former.rows)
        places = np.asarray(places, np.int64)
        kept, of = places >= 0, places[places >= 0]
        self._calm = False
        self.silent_until[kept] = former.silent_until[of]
        self._above[kept], self._since[kept], self._armed[kept] = (
            former._above[of],
            former._since[of],
            former._armed[of],
        )

    def _arm(self) -> None:
        self._recent[:] = 0.0
        self._calm_down()

    def _calm_down(self) -> None:
        """As it is where no class that may fire is heard: all are armed, and none has begun."""
        self._calm = True
        self._above = np.zeros(len(self.on), np.int64)  # rows in succession at or above `on`
        self._since = np.full(len(self.on), -1, np.int64)  # first row at or above `off`, -1 when below
        self._armed = np.ones(len(self.on), bool)

    def push(self, scores: Floats) -> list[Hit]:
        """Take `[rows, classes]` scores; give the hits they complete, in time order."""
        self.released = []
        return [hit for row in scores for hit in self._push_row(row)]

    def _push_row(self, row: Floats) -> list[Hit]:
        self._recent[self.rows % len(self._recent)] = row
        recent = self._recent
        if self.rows - self._first + 1 < len(recent):  # the others have not been filled yet
            recent = recent[np.arange(self._first, self.rows + 1) % len(recent)]
        smooth = np.add.reduce(recent, axis=0) / np.float32(len(recent))
        if not (smooth >= self._least).any():  # as nearly always: a quarter of the time that the rest takes
            if not self._calm:
                self._release(~self._armed)
                self._calm_down()
            self.rows += 1
            return []
        self._calm = False
        low = smooth < self.off
        self._release(low & ~self._armed)
        self._armed |= low
        self._since = np.where(low, -1, np.where(self._since < 0, self.rows, self._since))
        self._above = np.where(smooth >= self.on, self._above + 1, 0)
        ready = self._may_fire & self._armed & (self._above >= self.min_hops) & (self.rows >= self.silent_until)
        if self.exclusive:
            ready &= smooth >= smooth.max()
        hits = [
            Hit(int(label), float(smooth[label]), int(self._since[label]), self.rows) for label in np.flatnonzero(ready)
        ]
        for hit in hits:
            self._armed[hit.label] = False
            self.silent_until[hit.label] = self.rows + self.refractory_hops[hit.label]
        self.rows += 1
        return hits

    def _release(self, labels: npt.NDArray[np.bool_]) -> None:
        self.released += [(self.rows, int(label)) for label in np.flatnonzero(labels)]


class NameDetector:
    """Turns embedding rows into hits of enrolled names: one fires when it is matched on enough rows in succession."""

    def __init__(self, contract: Contract, matcher: Matcher) -> None:
        self.labels, self.matcher = matcher.names, matcher
        level = np.full(len(self.labels), -1.0, np.float32)  # the matcher judged: what is no match is -infinity
        self._detector = Detector(
            level,
            level,
            smoothing_hops=1,
            min_hops=max(2, contract.min_hops),
            refractory_hops=refractory_hops(contract, contract.refractory_s),
            exclusive=False,
        )

    @property
    def memory(self) -> int:
        """On how many rows before its own a hit depends."""
        return self._detector.memory

    @property
    def released(self) -> list[tuple[int, int]]:
        """Which names had fired and are not matched any more, as in `Detector`."""
        return self._detector.released

    def going_on(self, contract: Contract, matcher: Matcher) -> NameDetector:
        """One for the names of another matcher, from the next row on; to those that are in both nothing has happened."""
        other = NameDetector(contract, matcher)
        places = {label: place for place, label in enumerate(self.labels)}
        other._detector.go_on_from(self._detector, [places.get(label, -1) for label in other.labels])
        return other

    def reset(self) -> None:
        """Forget everything, as if the stream began now."""
        self._detector.reset()

    def begin_after(self, hops: float) -> None:
        """Begin anew `hops` after what is row 0 now would have begun. Only the refractory times outlast that."""
        self._detector.begin_after(hops)

    def skip_to(self, row: int) -> None:
        """Let rows pass that nobody scored: `row` is the next."""
        self._detector.skip_to(row)

    def push(self, embeddings: Floats) -> list[Hit]:
        """Take `[rows, dim]` embeddings; give the hits they complete, `Hit.label` being a place in `labels`."""
        scores = np.full((len(embeddings), len(self.labels)), -np.inf, np.float32)
        for row, embedding in zip(scores, embeddings, strict=True):
            if not np.isfinite(embedding).all():
                continue  # of a model that fails at some sound: it is nobody, and the stream goes on
            match = self.matcher.match(embedding)
            if match.name is not None:
                row[self.labels.index(match.name)] = match.score
        return self._detector.push(scores)


def refractory_hops(contract: Contract, seconds: float) -> int:
    """For how many rows a class that fired stays silent."""
    return math.ceil(seconds * contract.sample_rate / contract.hop)
