"""Turn rows of scores into events: smoothing, hysteresis, minimum duration and a refractory time for each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Bools, Floats, Indices, is_number
from confit_runtime.contract import Contract
from confit_runtime.errors import UsageError
from confit_runtime.names import closest_name, format_known_names, normalise

if TYPE_CHECKING:
    from confit_runtime.matcher import Match, Matcher


MAX_HOLD_S = 86_400


@dataclass(frozen=True)
class Hold:
    """How many seconds a sound that fired may pause and still count as the same sound.

    `general_s` applies to all labels; `own_s` maps single labels and enrolled names to their own times. Raises
    UsageError for anything that is not a number of seconds from 0 to a day.
    """

    general_s: float = 0.0
    own_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.own_s, Mapping):
            raise UsageError(f"own_s must map labels to seconds; it is {self.own_s!r}")
        for label, seconds in [("all", self.general_s), *self.own_s.items()]:
            if not is_number(seconds) or not 0 <= seconds <= MAX_HOLD_S:
                raise UsageError(
                    f"a sound may pause for 0 to {MAX_HOLD_S} seconds and continue, not for {seconds!r} ({label})"
                )

    def among(self, labels: Sequence[str]) -> Hold:
        """The same hold with the own times of these labels only."""
        known = set(map(normalise, labels))
        return Hold(self.general_s, {label: own_s for label, own_s in self.own_s.items() if normalise(label) in known})

    def check(self, contract: Contract) -> None:
        """Raise UsageError if `own_s` names a label that the model does not have, for a stream without a gallery."""
        known = set(map(normalise, contract.labels))
        for label in self.own_s:
            if normalise(label) not in known:
                near = closest_name(label, contract.labels)
                hint = f"; did you mean {near!r}?" if near else ""
                raise UsageError(
                    f"Hold for {label!r}: {contract.name} has no such label (it has"
                    f" {format_known_names(label, contract.labels)}), and the stream has no gallery{hint}"
                )

    def hops(self, contract: Contract, labels: Sequence[str]) -> list[int]:
        """How many rows each label may pause for; labels match however their accents are encoded."""
        own = {normalise(label): seconds for label, seconds in self.own_s.items()}
        return [seconds_to_hops(contract, own.get(normalise(label), self.general_s)) for label in labels]


NO_HOLD = Hold()


@dataclass(frozen=True)
class Hit:
    """A class that fired: `start_row` is the first row at or above its `off` level, `row` the one at which it fired."""

    label: int
    score: float
    start_row: int
    row: int


class Detector:
    """Turns score rows into hits.

    A class fires when its smoothed score (the mean of the last `smoothing_hops` rows) has been at or above `on` for
    `min_hops` rows and, in a single-label model, leads all others. It is armed again only once its smoothed score has
    been below `off` for more than `hold_hops` rows. After a hit it stays silent for `refractory_hops`. Both hops may
    be one number for all classes or one for each.

    `released` lists the classes that had fired and that the last `push` or `skip_to` armed again, in the order in
    which that happened: (first row below `off`, class).
    """

    _armed: Bools
    _paused: Indices

    def __init__(
        self,
        on: npt.ArrayLike,
        off: npt.ArrayLike,
        *,
        smoothing_hops: int,
        min_hops: int,
        refractory_hops: npt.ArrayLike,
        hold_hops: npt.ArrayLike = 0,
        never: npt.ArrayLike = (),
        exclusive: bool = True,
    ) -> None:
        self.on, self.off = np.asarray(on, np.float32), np.asarray(off, np.float32)
        self.min_hops, self.exclusive = min_hops, exclusive
        self.refractory_hops = np.broadcast_to(np.asarray(refractory_hops, np.int64), self.on.shape)
        self.hold_hops = np.broadcast_to(np.asarray(hold_hops, np.int64), self.on.shape)
        self._may_fire = np.ones(len(self.on), bool)
        self._may_fire[np.asarray(never, np.int64)] = False
        self._lowest_level = np.where(self._may_fire, np.minimum(self.on, self.off), np.inf).astype(np.float32)
        self._recent = np.zeros((smoothing_hops - 1, len(self.on)), np.float32)  # the rows before the next one
        self.released: list[tuple[int, int]] = []
        self.reset()

    @staticmethod
    def from_contract(contract: Contract, hold: Hold = NO_HOLD) -> Detector:
        levels = [contract.thresholds[label] for label in contract.labels]
        never = [contract.labels.index(contract.unknown_label)] if contract.unknown_label is not None else []
        return Detector(
            [level["on"] for level in levels],
            [level["off"] for level in levels],
            smoothing_hops=contract.smoothing_hops,
            min_hops=contract.min_hops,
            refractory_hops=[
                seconds_to_hops(contract, level.get("refractory_s", contract.refractory_s)) for level in levels
            ],
            hold_hops=hold.hops(contract, contract.labels),
            never=never,
            exclusive=not contract.multi_label,
        )

    @property
    def memory(self) -> int:
        """How many earlier rows a hit depends on, apart from whatever disarmed its class."""
        return len(self._recent) + self.min_hops - 1

    def reset(self) -> None:
        """Forget everything, as if the stream began now."""
        self.rows = self._first = 0
        self.silent_until = np.zeros(len(self.on))
        self._restart_counters()

    def restart_after(self, hops: float) -> None:
        """Start over, `hops` after the beginning of what is row 0 now; only the refractory times are kept.

        Old and new rows begin equally many hops before their first row, so a row of the new count is a row of the old
        one minus `hops`.
        """
        silent = self.silent_until - hops
        self.reset()
        self.silent_until = silent

    def skip_to(self, row: int) -> None:
        """Skip rows that nobody scored; `row` is the next one. For what has fired they are a pause."""
        paused = self._paused + row - self.rows
        over = ~self._armed & (paused > self.hold_hops)
        still = ~self._armed & ~over
        in_order = sorted(np.flatnonzero(over), key=lambda label: self.hold_hops[label] - paused[label])
        self.released = [(int(row - paused[label]), int(label)) for label in in_order]
        self.rows = self._first = row
        self._restart_counters()
        self._paused, self._armed, self._idle = paused, ~still, not still.any()

    def resume_from(self, former: Detector, places: npt.ArrayLike) -> None:
        """Continue with the next row of `former`, a detector of unsmoothed scores.

        Each class takes over the state of the class at its entry in `places`; -1 marks a new class.
        """
        self.rows = self._first = former.rows
        self._restart_counters()
        places = np.asarray(places, np.int64)
        kept, of = places >= 0, places[places >= 0]
        self._idle = False
        self.silent_until[kept] = former.silent_until[of]
        self._above[kept], self._since[kept] = former._above[of], former._since[of]
        self._armed[kept], self._paused[kept] = former._armed[of], former._paused[of]

    @property
    def pausing(self) -> list[tuple[int, int]]:
        """The classes that fired and are below `off`, but may continue within their hold: (first row below `off`, class)."""
        pausing = ~self._armed & (self._paused > 0)
        return [(int(self.rows - self._paused[label]), int(label)) for label in np.flatnonzero(pausing)]

    def _restart_counters(self) -> None:
        self._recent[:] = 0.0
        self.newest: Floats | None = None  # the newest row [classes], smoothed
        self._reset_counters()

    def _reset_counters(self) -> None:
        """Reset to the state in which no class that may fire is heard: all are armed and none has begun."""
        self._idle = True
        self._above = np.zeros(len(self.on), np.int64)  # consecutive rows at or above `on`
        self._since = np.full(len(self.on), -1, np.int64)  # first row at or above `off`, -1 while below
        self._armed = np.ones(len(self.on), bool)
        self._paused = np.zeros(len(self.on), np.int64)  # consecutive rows below `off`

    def push(self, scores: Floats) -> list[Hit]:
        """Take `[rows, classes]` scores; return the hits they complete, in time order."""
        self.released = []
        hits = []
        smooth = self._smoothed(scores)
        self.newest = smooth[-1] if len(smooth) else self.newest
        heard = np.logical_or.reduce(smooth >= self._lowest_level, axis=1)
        for row, anything in zip(smooth, heard, strict=True):
            if anything:
                hits += self._process_row(row)
            elif not self._idle:
                self._process_quiet_row()
            self.rows += 1
        return hits

    def _smoothed(self, scores: Floats) -> Floats:
        """Smooth each of the `[rows, classes]`: its mean with the rows before it, of which there are fewer at the beginning."""
        rows, hops = len(scores), len(self._recent) + 1
        all_rows = np.concatenate([self._recent, scores], dtype=np.float32)
        total = all_rows[:rows].copy()
        for later in range(1, hops):
            total += all_rows[later : later + rows]
        self._recent = all_rows[rows:].copy()
        if (begun := self.rows - self._first) >= hops - 1:
            return total / np.float32(hops)
        return total / np.minimum(np.arange(begun + 1, begun + rows + 1), hops).astype(np.float32)[:, None]

    def _process_quiet_row(self) -> None:
        """Take a row at which no class is heard. If all classes are armed, as they nearly always are, nothing changes."""
        self._pause(np.ones(len(self.on), bool))
        self._above[:] = 0
        if self._armed.all():
            self._reset_counters()

    def _process_row(self, smooth: Floats) -> list[Hit]:
        self._idle = False
        low = smooth < self.off
        self._pause(low)
        self._since = np.where(~low & (self._since < 0), self.rows, self._since)
        self._above = np.where(smooth >= self.on, self._above + 1, 0)
        ready = self._may_fire & self._armed & (self._above >= self.min_hops) & (self.rows >= self.silent_until)
        if self.exclusive:
            ready &= smooth >= smooth.max()
        if not ready.any():
            return []
        hits = [
            Hit(int(label), float(smooth[label]), int(self._since[label]), self.rows) for label in np.flatnonzero(ready)
        ]
        for hit in hits:
            self._armed[hit.label] = False
            self.silent_until[hit.label] = self.rows + self.refractory_hops[hit.label]
        return hits

    def _pause(self, low: Bools) -> None:
        """Take a row at which the classes in `low [classes]` are below `off`, and arm those whose sound is over."""
        self._paused = np.where(low, self._paused + 1, 0)
        self._since[low] = -1
        if self._armed.all():
            return
        over = ~self._armed & (self._paused > self.hold_hops)
        self._armed |= over
        self.released += [(int(self.rows + 1 - self._paused[label]), int(label)) for label in np.flatnonzero(over)]


class NameDetector(Detector):
    """Turns embedding rows into hits of enrolled names: a name fires when it matches in enough consecutive rows."""

    def __init__(self, contract: Contract, matcher: Matcher, hold: Hold = NO_HOLD) -> None:
        self.labels, self.matcher, self._hold = matcher.names, matcher, hold
        self.match: Match | None = None  # what the newest row matched
        # the matcher decides: a row without a match scores -infinity
        level = np.full(len(self.labels), -1.0, np.float32)
        super().__init__(
            level,
            level,
            smoothing_hops=1,
            min_hops=name_hops(contract),
            refractory_hops=seconds_to_hops(contract, contract.refractory_s),
            hold_hops=hold.hops(contract, self.labels),
            exclusive=False,
        )

    def with_matcher(self, contract: Contract, matcher: Matcher) -> NameDetector:
        """Return a detector for the names of another matcher from the next row on; names in both keep their state."""
        other = NameDetector(contract, matcher, self._hold)
        indices = {label: index for index, label in enumerate(self.labels)}
        other.resume_from(self, [indices.get(label, -1) for label in other.labels])
        return other

    def push(self, embeddings: Floats) -> list[Hit]:
        """Take `[rows, dim]` embeddings; return the hits they complete. `Hit.label` is an index into `labels`."""
        scores = np.full((len(embeddings), len(self.labels)), -np.inf, np.float32)
        for row, embedding in zip(scores, embeddings, strict=True):
            self.match = None
            if not np.isfinite(embedding).all():
                continue  # the model failed on this sound: count it as nobody and continue
            self.match = match = self.matcher.match(embedding, in_stream=True)
            if match.name is not None:
                row[self.labels.index(match.name)] = match.score
        return super().push(scores)


def name_hops(contract: Contract) -> int:
    """In how many rows in a row a name must match to fire."""
    return max(2, contract.min_hops)


def seconds_to_hops(contract: Contract, seconds: float) -> int:
    """How many rows a duration takes, such as a refractory time or a hold."""
    return math.ceil(seconds * contract.sample_rate / contract.hop)
