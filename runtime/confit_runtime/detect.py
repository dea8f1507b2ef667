"""From rows of scores to events: smoothing, hysteresis, minimum duration and a refractory time for each class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from confit_runtime.contract import Contract

if TYPE_CHECKING:
    from confit_runtime.gallery import Matcher

Rows = npt.NDArray[np.float32]


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
    fallen below `off`, and stays silent for the refractory time after each hit.
    """

    def __init__(
        self,
        on: npt.ArrayLike,
        off: npt.ArrayLike,
        *,
        smoothing_hops: int,
        min_hops: int,
        refractory_hops: int,
        never: npt.ArrayLike = (),
        exclusive: bool = True,
    ) -> None:
        self.on, self.off = np.asarray(on, np.float32), np.asarray(off, np.float32)
        self.min_hops, self.refractory_hops, self.exclusive = min_hops, refractory_hops, exclusive
        self._may_fire = np.ones(len(self.on), bool)
        self._may_fire[np.asarray(never, np.int64)] = False
        self._recent = np.zeros((smoothing_hops, len(self.on)), np.float32)
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
            refractory_hops=_refractory_hops(contract),
            never=never,
            exclusive=not contract.multi_label,
        )

    def reset(self) -> None:
        """Forget everything, as if the stream began now."""
        self.rows = 0
        self._recent[:] = 0.0
        self._above = np.zeros(len(self.on), np.int64)  # rows in succession at or above `on`
        self._since = np.full(len(self.on), -1, np.int64)  # first row at or above `off`, -1 when below
        self._armed = np.ones(len(self.on), bool)
        self._silent_until = np.zeros(len(self.on), np.int64)

    def push(self, scores: Rows) -> list[Hit]:
        """Take `[rows, classes]` scores; give the hits they complete, in time order."""
        return [hit for row in scores for hit in self._push_row(row)]

    def _push_row(self, row: Rows) -> list[Hit]:
        self._recent[self.rows % len(self._recent)] = row
        smooth = self._recent[: self.rows + 1].mean(axis=0)
        low = smooth < self.off
        self._armed |= low
        self._since = np.where(low, -1, np.where(self._since < 0, self.rows, self._since))
        self._above = np.where(smooth >= self.on, self._above + 1, 0)
        ready = self._may_fire & self._armed & (self._above >= self.min_hops) & (self.rows >= self._silent_until)
        if self.exclusive:
            ready &= smooth >= smooth.max()
        hits = [
            Hit(int(label), float(smooth[label]), int(self._since[label]), self.rows) for label in np.flatnonzero(ready)
        ]
        for hit in hits:
            self._armed[hit.label] = False
            self._silent_until[hit.label] = self.rows + self.refractory_hops
        self.rows += 1
        return hits


class NameDetector:
    """Turns embedding rows into hits of enrolled names: one fires when it is matched on enough rows in succession."""

    def __init__(self, contract: Contract, matcher: Matcher) -> None:
        self.labels, self._matcher = matcher.names, matcher
        level = np.full(len(self.labels), matcher.threshold, np.float32)
        self._detector = Detector(
            level,
            level,
            smoothing_hops=1,
            min_hops=max(2, contract.min_hops),
            refractory_hops=_refractory_hops(contract),
            exclusive=False,
        )

    def reset(self) -> None:
        """Forget everything, as if the stream began now."""
        self._detector.reset()

    def push(self, embeddings: Rows) -> list[Hit]:
        """Take `[rows, dim]` embeddings; give the hits they complete, `Hit.label` being a place in `labels`."""
        scores = np.full((len(embeddings), len(self.labels)), -np.inf, np.float32)
        for row, embedding in zip(scores, embeddings, strict=True):
            match = self._matcher.match(embedding)
            if match.name is not None:
                row[self.labels.index(match.name)] = match.score
        return self._detector.push(scores)


def _refractory_hops(contract: Contract) -> int:
    return math.ceil(contract.refractory_s * contract.sample_rate / contract.hop)
