"""Thresholds that keep a promise: an upper bound on the whole model's false accepts per hour, from hours without its words.

Thresholds and promise come from the same recordings, so the promise has to allow for that. Every label has its own
level, the one that only a few of its false accepts reached, and all labels share one margin: a label's threshold is
its level raised (or lowered) by the margin. A recording's false accepts are counted with the levels that the *other*
recordings give. Levels only rise with more recordings, so the final thresholds, which use all of them, fire no more
often than those that were counted. The margin is lowered from the top until the bound no longer meets the target.
These are tests in an order fixed beforehand, so trying many costs nothing (fixed-sequence testing, as in Angelopoulos
et al. 2021, Learn then Test).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from confit_runtime.arrays import Counts, Doubles, Floats, Indices
from confit_runtime.contract import Contract
from confit_runtime.detect import Detector, seconds_to_hops
from confit_runtime.intervals import clustered_rate_interval, clustered_rate_upper
from confit_runtime.recordings import Recording

MAX_REPORTED = 3  # of the false accepts that set the margin, how many are reported
NEVER = 1.01  # a level that no score reaches
STEP = 0.05  # of levels, in log odds: scores crowd near 1
# from 0.05: a score is a probability times the typicality of the sound, and a label must lead all others anyway
LEVELS = np.append(1 / (1 + np.exp(-np.arange(-3.0, 13.8, STEP))), NEVER)
HALF_INDEX = round(3.0 / STEP)  # the index of 0.5
RELEASE = 0.6  # `off` as a share of `on`
ALLOWED_FALSE_ACCEPTS = (
    4  # false accepts that may exceed a label's own level: the very highest says little about the others
)


@dataclass(frozen=True)
class FalseAcceptCounts:
    """False accepts `[labels, recordings, levels]` of each label alone at each level, and `hours [recordings]`."""

    events: Counts
    hours: Doubles

    def without(self, labels: Collection[int]) -> FalseAcceptCounts:
        """The counts as if these labels, by index, had not fired."""
        events = self.events.copy()
        events[list(labels)] = 0
        return FalseAcceptCounts(events, self.hours)


@dataclass(frozen=True)
class OperatingPoint:
    """Chosen levels, as indices into `LEVELS`, and what is promised for them.

    `own [labels]` is each label's level, `margin` the steps by which all are raised, `bound` the upper bound of false
    accepts per hour, and `held_out` the false accepts `[recordings]` it is based on. `met` says whether the bound is
    at most the target; if not, the thresholds are those with no held-out false accept, and `more_hours` are missing.
    No label goes below its threshold in `lowest [labels]`, which means fewer false accepts than promised. `by_hand` are
    thresholds that a person chose for some labels, by index.
    """

    own: Indices
    margin: int
    bound: float
    held_out: Counts
    met: bool
    more_hours: float
    lowest: Doubles | None = None
    by_hand: Mapping[int, float] = field(default_factory=dict)

    @property
    def levels(self) -> Indices:
        """The indices at the thresholds, or next below them."""
        indices: Indices = np.searchsorted(LEVELS, self.thresholds, side="right") - 1
        return indices

    @property
    def thresholds(self) -> Doubles:
        on = self.bound_thresholds if self.lowest is None else np.maximum(self.bound_thresholds, self.lowest)
        on[list(self.by_hand)] = list(self.by_hand.values())
        return on

    @property
    def bound_thresholds(self) -> Doubles:
        """The lowest thresholds for which the bound holds, whatever `lowest` and `by_hand` say."""
        on: Doubles = LEVELS[_shift_levels(self.own, self.margin)]
        return on


def count_false_accepts(
    contract: Contract,
    recordings: Sequence[Recording],
    progress: Callable[[float], None] = lambda seconds: None,
    *,
    release: float = RELEASE,
) -> FalseAcceptCounts:
    """Count what every label would fire at every level, in recordings that contain none of them.

    `progress(seconds)` is called during the work with the seconds of recordings counted so far.
    """
    events = np.zeros((len(contract.labels), len(recordings), len(LEVELS)), np.int64)
    labels, done = firing_label_indices(contract), 0.0
    for index, recording in enumerate(recordings):
        for rows in recording.pieces:
            firing, smooth = firing_levels(contract, rows)
            for label in labels:
                events[label, index] += _events_by_level(contract, label, firing[:, label], smooth[:, label], release)
        done += recording.seconds
        progress(done)
    # with hysteresis a lower level may fire less often (it is armed again later): use the more cautious count
    monotonic = np.maximum.accumulate(events[:, :, ::-1], axis=2)[:, :, ::-1]
    return FalseAcceptCounts(monotonic, np.array([recording.seconds / 3600 for recording in recordings]))


def choose_operating_point(counts: FalseAcceptCounts, target: float, confidence: float = 0.95) -> OperatingPoint:
    """The lowest levels whose bound meets `target` false accepts per hour with the given confidence.

    The bound allows for false accepts that come in clusters, as far as recordings show it (`clustered_rate_upper`).
    """
    own = _levels_per_label(counts.events.sum(axis=1))
    others = _leave_one_out_levels(counts)

    def held_out(margin: int) -> Counts:
        levels = _shift_levels(others, margin)
        found: Counts = np.take_along_axis(counts.events, levels.T[:, :, None], axis=2)[:, :, 0].sum(axis=0)
        return found

    def bound(margin: int) -> float:
        return clustered_rate_upper(held_out(margin), counts.hours, confidence)

    margin = len(LEVELS) - 1  # nothing ever fires
    met = bound(margin) <= target
    limit = target if met else bound(margin)
    # the order of the tests is fixed, so the first that fails is the last: below it, a bound may be lower by chance
    while margin > -len(LEVELS) and bound(margin - 1) <= limit:
        margin -= 1
    missing_hours = 0.0 if met else -math.log1p(-confidence) / target - float(counts.hours.sum())
    return OperatingPoint(own, margin, bound(margin), held_out(margin), met, missing_hours)


def set_by_hand(
    chosen: OperatingPoint, counts: FalseAcceptCounts, by_hand: Mapping[int, float], confidence: float = 0.95
) -> OperatingPoint:
    """`chosen` with thresholds that a person chose for some labels, by index, and the bound for all labels together.

    `chosen` must come from counts without these labels. Their thresholds do not depend on the recordings, so their false
    accepts need not be held out.
    """
    changed = dataclasses.replace(chosen, by_hand=dict(by_hand))
    held_out = chosen.held_out + sum(counts.events[index, :, changed.levels[index]] for index in by_hand)
    return dataclasses.replace(
        changed, held_out=held_out, bound=clustered_rate_upper(held_out, counts.hours, confidence)
    )


def firing_levels(contract: Contract, rows: Floats) -> tuple[Floats, Floats]:
    """The highest level at which each label would fire at each row, and the smoothed scores, `[rows, labels]` each.

    In a single-label model, a label that does not lead fires at no level: minus infinity.
    """
    smooth = np.stack([_moving_mean(column, contract.smoothing_hops) for column in rows.T], axis=1)
    firing = held_levels(smooth, contract.min_hops)
    if not contract.multi_label and len(rows):
        firing[smooth < smooth.max(axis=1, keepdims=True)] = -np.inf
    return firing, smooth


def held_levels(scores: Floats, hops: int) -> Floats:
    """The level that `scores [rows, labels]` held over the last `hops` rows; minus infinity for the first `hops - 1` rows."""
    held = np.full_like(scores, -np.inf)
    if len(scores) >= hops:
        held[hops - 1 :] = np.lib.stride_tricks.sliding_window_view(scores, hops, axis=0).min(axis=2)
    return held


def thresholds(contract: Contract, on: Doubles, release: float = RELEASE) -> dict[str, dict[str, float]]:
    """Contract thresholds at levels `on [labels]`, with `off` at `release` times `on`.

    A label keeps its refractory time; one that cannot fire stays unchanged.
    """
    levels = dict(contract.thresholds)
    for index in firing_label_indices(contract):
        label, level = contract.labels[index], float(on[index])
        levels[label] = with_release(levels[label], level, release)
    return levels


def with_release(threshold: Mapping[str, float], on: float, release: float = RELEASE) -> dict[str, float]:
    """A label's threshold of a contract at the level `on`, with the `off` for which false accepts are counted."""
    return {**threshold, "on": round(on, 7), "off": round(on * release, 7)}


@dataclass(frozen=True)
class Positive:
    """A clip that contains `label`: the highest level at which that fires, and what else fires at the thresholds."""

    label: str
    group: str
    level: float
    others: tuple[str, ...]


def score_positive(contract: Contract, label: str, group: str, rows: Floats, own: Collection[str] = ()) -> Positive:
    """Evaluate a clip's `rows`, as `clip_rows` returns them, with the contract's own thresholds for what else fires.

    `own` lists all labels of a clip that contains several; none of them counts as a confusion.
    """
    firing, _ = firing_levels(contract, rows)
    index = contract.labels.index(label)
    hits = Detector.from_contract(contract).push(rows)
    fired = (contract.labels[hit.label] for hit in hits)
    others = tuple(other for other in fired if other != label and other not in own)
    return Positive(label, group, float(firing[:, index].max(initial=-np.inf)), others)


def det_curve(
    counts: FalseAcceptCounts,
    chosen: OperatingPoint,
    contract: Contract,
    positives: Sequence[Positive],
    confidence: float = 0.95,
) -> list[dict[str, float]]:
    """False accepts per hour, with their interval, and false rejects 0..1, for each margin that makes a difference.

    The levels were chosen on the same recordings, so the rates, unlike the promised bound, are optimistic.
    """
    points: list[dict[str, float]] = []
    hours = float(counts.hours.sum())
    labels = np.array([contract.labels.index(positive.label) for positive in positives], np.int64)
    reached = np.array([positive.level for positive in positives])
    for margin in range(-len(LEVELS), len(LEVELS)):
        levels = _shift_levels(chosen.own, margin)
        levels[list(chosen.by_hand)] = chosen.levels[list(chosen.by_hand)]
        found = np.take_along_axis(counts.events, levels[:, None, None], axis=2)[:, :, 0].sum(axis=0)
        low, high = clustered_rate_interval(found, counts.hours, confidence)
        point = {"margin": margin * STEP, "fa_per_hour": int(found.sum()) / hours, "fa_low": low, "fa_high": high}
        if len(positives):
            point["frr"] = float((reached < LEVELS[levels[labels]]).mean())
        if not points or {**point, "margin": 0.0} != {**points[-1], "margin": 0.0}:
            points.append(point)
    return points


@dataclass(frozen=True)
class LimitingFalseAccept:
    """The sound at which a label's score was highest: its file, and the second in it."""

    label: str
    score: float
    file: str
    at_s: float


def limiting_false_accepts(
    counts: FalseAcceptCounts, contract: Contract, recordings: Sequence[Recording]
) -> list[LimitingFalseAccept]:
    """The false accepts furthest above their label's level from the other recordings: they set the margin.

    At most one per label and recording; empty if nothing reached its label's level.
    """
    found = []
    for at, (recording, others) in enumerate(zip(recordings, _leave_one_out_levels(counts), strict=True)):
        for index in firing_label_indices(contract):
            reached = np.flatnonzero(counts.events[index, at])
            if len(reached) and reached[-1] >= others[index]:
                found.append((int(reached[-1] - others[index]), index, recording))
    found.sort(key=lambda one: -one[0])
    return [_peak_of(contract, index, recording) for _, index, recording in found[:MAX_REPORTED]]


def _peak_of(contract: Contract, place: int, recording: Recording) -> LimitingFalseAccept:
    tops = [firing_levels(contract, rows)[0][:, place] for rows in recording.pieces]
    piece = int(np.argmax([top.max(initial=-np.inf) for top in tops]))
    row = int(tops[piece].argmax())
    file, start_s = recording.places[piece]
    seconds = max(0.0, start_s + (row * contract.hop - contract.latency_samples) / contract.sample_rate)
    return LimitingFalseAccept(contract.labels[place], float(tops[piece][row]), file, seconds)


def firing_label_indices(contract: Contract) -> list[int]:
    """The indices of the labels that can fire."""
    return [contract.labels.index(label) for label in contract.can_fire]


def on_thresholds(contract: Contract) -> Doubles:
    """The thresholds `[labels]` of a contract."""
    return np.array([contract.thresholds[label]["on"] for label in contract.labels])


def restrict_to_labels(contract: Contract, labels: Collection[str]) -> Contract:
    """`contract` with only these labels able to fire; the others still compete with them."""
    levels = {
        label: level if label in labels or label == contract.unknown_label else {**level, "on": NEVER, "off": RELEASE}
        for label, level in contract.thresholds.items()
    }
    return dataclasses.replace(contract, thresholds=levels)


def _levels_per_label(events: Counts) -> Indices:
    """The lowest level that no more than `ALLOWED_FALSE_ACCEPTS` events of each label reach, from `events [labels, levels]`.

    It is at least one half, although the margin may lower all levels further. A label that hardly fires has shown
    little: with a lower level, its first surprise would raise the common margin, and with it all other labels, by as
    much.
    """
    own: Indices = np.maximum((events <= ALLOWED_FALSE_ACCEPTS).argmax(axis=1), HALF_INDEX)
    return own


def _leave_one_out_levels(counts: FalseAcceptCounts) -> Indices:
    """Each label's own level without each recording, `[recordings, labels]`."""
    together = counts.events.sum(axis=1)
    return np.stack([_levels_per_label(together - counts.events[:, index]) for index in range(len(counts.hours))])


def _shift_levels(levels: Indices, margin: int) -> Indices:
    return np.clip(levels + margin, 0, len(LEVELS) - 1)


def _events_by_level(contract: Contract, label: int, firing: Floats, smooth: Floats, release: float) -> Counts:
    """How often one label fires at each of `LEVELS`: the detector's own rules, for all levels at once.

    It is armed again below `release` times the level.
    """
    level = contract.thresholds[contract.labels[label]]
    refractory = seconds_to_hops(contract, level.get("refractory_s", contract.refractory_s))
    count, armed = np.zeros(len(LEVELS), np.int64), np.ones(len(LEVELS), bool)
    silent_until = np.zeros(len(LEVELS), np.int64)
    indices = np.flatnonzero(firing >= LEVELS[0])
    since_last = np.zeros(len(indices), np.float32)  # the lowest score since the previous one of these rows
    if len(indices) > 1:
        since_last[1:] = np.minimum.reduceat(smooth[: indices[-1] + 1], indices[:-1] + 1)
    for row, lowest in zip(indices.tolist(), since_last, strict=True):
        armed |= lowest < release * LEVELS
        fires = armed & (firing[row] >= LEVELS) & (row >= silent_until)
        count += fires
        armed &= ~fires
        silent_until[fires] = row + refractory
    return count


def _moving_mean(column: Floats, length: int) -> Floats:
    """The mean of the last `length` values at each index (of fewer at the beginning)."""
    sums = np.concatenate([[0.0], np.cumsum(column, dtype=np.float64)])
    first = np.maximum(np.arange(1, len(sums)) - length, 0)
    mean: Floats = ((sums[1:] - sums[first]) / (np.arange(1, len(sums)) - first)).astype(np.float32)
    return mean
