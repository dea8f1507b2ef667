"""Scores of a probe on a split, with intervals of groups (clips of one voice are not independent).

Targets are 0/1, `[clips, classes]`. Of decisions the draws of a bootstrap sum what each clip adds; `average_precisions` and
`equal_error_rates`, which are of rankings, weigh clips by how often each is drawn, `weights [draws, clips]`, in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import LARGEST_TABLE, Bools, Doubles, Floats, Targets
from confit_runtime.intervals import DRAWS, clustered_share_interval, grouped_share_interval
from confit_runtime.wording import percent

RANK_DRAWS = 200  # of metrics that sort all clips again in each draw
ALIKE = 1e-12  # a variance of draws that differ by rounding only


@dataclass(frozen=True)
class Accuracy:
    """A share 0..1 with its 95 % interval, the clips and the groups it stands on, and which of them count as independent."""

    accuracy: float
    low: float
    high: float
    n: int
    groups: int
    resampled: str  # "groups"; "clips" where there is one group only, and then the interval is too narrow

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return percent(self.accuracy, self.low, self.high)


@dataclass(frozen=True)
class Difference:
    """How far one value is above another on the same clips, with the 95 % interval of the paired difference."""

    difference: float
    low: float
    high: float

    @classmethod
    def of(cls, difference: float, samples: Doubles, units: int) -> Difference:
        """Of shares, by its values in the draws of `units` groups or clips."""
        low, high = interval(difference, samples, units)
        return cls(difference, *np.clip([low, high], -1.0, 1.0).tolist())

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def units_of(groups: list[str]) -> tuple[str, npt.NDArray[np.int64]]:
    """What is taken for independent, "groups", or "clips" where there is one group only, and of which each clip is, `[clips]`."""
    names, unit = np.unique(groups, return_inverse=True)
    return ("groups", unit) if len(names) > 1 else ("clips", np.arange(len(groups)))


@dataclass(frozen=True)
class Resamples:
    """A bootstrap of clips by their groups: `draws` times as many groups as there are, drawn with replacement.

    A single group cannot be resampled; its clips are then, as if they were independent, and `by` says so.
    """

    unit: npt.NDArray[np.int64]  # the group (or clip) of each clip, counted from 0
    units: int
    by: str  # "groups" or "clips"
    seed: int
    draws: int

    @classmethod
    def of(cls, groups: list[str], seed: int = 0, draws: int = DRAWS) -> Resamples:
        by, unit = units_of(groups)
        return cls(unit, int(unit.max()) + 1, by, seed, draws)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """How many clips each group has, `[units]`."""
        return np.bincount(self.unit)

    def counts(self) -> Iterator[Doubles]:
        """How often each group is drawn, `[draws, units]`, in parts of some draws each; the same at every call."""
        rng, most = np.random.default_rng(self.seed), max(1, LARGEST_TABLE // self.units)
        for start in range(0, self.draws, most):
            some = min(most, self.draws - start)
            drawn = rng.integers(self.units, size=(some, self.units)) + self.units * np.arange(some)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=some * self.units)
            yield counts.reshape(some, self.units).astype(np.float64)

    def weights(self) -> Iterator[Doubles]:
        """How often each clip is drawn, `[draws, clips]`, in parts."""
        return (counts[:, self.unit] for counts in self.counts())

    def totals(self, values: npt.NDArray) -> Doubles:
        """Sums of `values [clips, k]` over the clips of each draw, `[draws, k]`."""
        by_unit = np.zeros((self.units, values.shape[1]))
        np.add.at(by_unit, self.unit, values)
        return np.concatenate([counts @ by_unit for counts in self.counts()])


def interval(value: float, samples: Doubles, units: int) -> tuple[float, float]:
    """The 95 % interval of a value by the draws of `units` groups or clips in which it is defined; NaN where it is in none.

    The percentile interval, widened for few units: those draws spread by (units - 1) / units too little, and as if the
    spread were known (Hesterberg 2014, arXiv 1411.5279, section 5.3). With one unit there is none. Where units all agree, if
    only on no difference, it goes as far as `agreed`.
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    defined = samples[~np.isnan(samples)]
    if not len(defined) or units < 2:
        return float("nan"), float("nan")
    if defined.var() < ALIKE:
        return value - agreed(units), value + agreed(units)
    stretch = student.ppf(0.975, units - 1) / norm.ppf(0.975) * np.sqrt(units / (units - 1))
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(value - stretch * (value - low)), float(value + stretch * (high - value))


def resampled_share_interval(
    value: float, samples: Doubles, sizes: npt.NDArray[np.int64], worth: float
) -> tuple[float, float]:
    """The 95 % interval of a metric 0..1 by its values in the draws of groups of `sizes [units]` clips; NaN where it is in none.

    That of a share with the variance of the draws, widened for few units as in `interval`, and never narrower than of the
    number of clips that the metric is `worth`, which are a little alike within a group (`clustered_share_interval`). With one
    unit there is none.
    """
    defined, units = samples[~np.isnan(samples)], len(sizes)
    if not len(defined) or units < 2:
        return float("nan"), float("nan")
    return clustered_share_interval(value, float(defined.var()) * units / (units - 1), sizes, worth=worth)


def worth_of_classes(clips: npt.NDArray[np.int64]) -> float:
    """How many clips a mean over classes is worth that have so many `clips [classes]`: K^2 / sum(1 / clips), after Kish 1965.

    All, where classes are alike; of one with few clips hardly more than these for each class. Classes without clips do not
    count.
    """
    counted = clips[clips > 0]
    return float(len(counted) ** 2 / (1 / counted).sum()) if len(counted) else 0.0


def agreed(units: int, outside: float = 0.025) -> float:
    """How far from the truth a value may be on which so many units all agree, and resampling gives no width.

    The one-sided exact bound of a share that is 0 or 1 in all of them, 1 - outside^(1/units).
    """
    return 1 - outside ** (1 / units)


def correct(scores: Floats, targets: Targets) -> Bools:
    """Whether each clip's best class is one of its own, `[clips]`, of scores and 0/1 targets `[clips, classes]`."""
    return np.take_along_axis(targets, scores.argmax(axis=1)[:, None], axis=1)[:, 0] > 0


def merit(scores: Floats, targets: Targets, *, multi_label: bool) -> float:
    """What epochs, rates and probes are chosen by: the share of clips that are right; where they have several labels, mAP.

    There the best class of a clip says little: where one label is on every clip, it is right whatever else is heard.
    """
    if multi_label:
        return mean_average_precision(scores, targets)
    return float(correct(scores, targets).mean())


def merit_name(*, multi_label: bool) -> str:
    """What `merit` is called."""
    return "mAP" if multi_label else "accuracy"


@dataclass(frozen=True)
class Merit:
    """What a probe is judged by on a split, for a person: its name, its value 0..1 with the interval, and what it stands on."""

    name: str
    value: float
    low: float
    high: float
    clips: int
    groups: int

    @classmethod
    def of(cls, found: dict[str, Any]) -> Merit:
        """Of what `confit_edge.probes.dual.score` gives: mAP of all clips where they have several labels, else accuracy."""
        several = "map_low" in found  # a teacher's may be of before mAP had an interval
        keys = (
            ("map", "map_low", "map_high", "clips", "clip_groups")
            if several
            else ("accuracy", "low", "high", "n", "groups")
        )
        return cls(merit_name(multi_label=several), *(found[key] for key in keys))


def named_probes(metrics: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Of the metrics of a run each probe that was fitted: whose, its name, and what it reached on the splits."""
    of_each = {
        "frozen encoder": metrics.get("frozen", {}),
        "teacher": metrics.get("teacher", {}),
        "": {"head": metrics.get("head")},
        "trained": metrics["probes"],
    }
    for whose, found in of_each.items():
        for key, probe in (("linear", "linear probe"), ("knn", "kNN probe"), ("head", "its own head")):
            if result := found.get(key):
                yield whose, probe, result


def accuracy(right: Bools, groups: list[str]) -> Accuracy:
    """The share of clips that are right, with the interval of a share of clips that come in groups.

    Where there is one group only its clips are taken for independent, and `resampled` says so: the interval is then too
    narrow.
    """
    by, unit = units_of(groups)
    low, high = grouped_share_interval(right, unit)
    return Accuracy(float(right.mean()), low, high, len(right), len(set(groups)), by)


def paired_difference(right: Bools, other: Bools, groups: list[str], seed: int = 0, draws: int = DRAWS) -> Difference:
    """The share right minus the other's, both on the same clips, with a bootstrap interval that resamples groups."""
    gain = right.astype(np.float64) - other
    resamples = Resamples.of(groups, seed, draws)
    return Difference.of(float(gain.mean()), shares(gain, resamples), resamples.units)


def shares(values: npt.NDArray, resamples: Resamples) -> Doubles:
    """The mean of `values [clips]` in each draw, `[draws]`."""
    sums = resamples.totals(np.stack([values, np.ones(len(values))], axis=1))
    return sums[:, 0] / sums[:, 1]


# of decisions: each takes tallies [..., classes] of one or many draws


def tallies(decided: Bools, targets: Targets) -> dict[str, npt.NDArray[np.int64]]:
    """What each clip adds to `hits`, `false` alarms and `missed` of each class, `[clips, classes]` each."""
    truth = targets > 0
    parts = {"hits": decided & truth, "false": decided & ~truth, "missed": ~decided & truth}
    return {name: part.astype(np.int64) for name, part in parts.items()}


def balanced_accuracy(hits: npt.NDArray, missed: npt.NDArray) -> Doubles:
    """The mean recall over the classes that have clips, `[...]`, of tallies `[..., classes]`."""
    return _mean_where(_ratio(hits, hits + missed), hits + missed > 0)


def macro_f1(hits: npt.NDArray, false: npt.NDArray, missed: npt.NDArray) -> Doubles:
    """The mean F1 over the classes that have clips, `[...]`, of tallies `[..., classes]`."""
    return _mean_where(_ratio(2 * hits, 2 * hits + false + missed), hits + missed > 0)


def micro_f1(hits: npt.NDArray, false: npt.NDArray, missed: npt.NDArray) -> Doubles:
    """F1 of all decisions together, `[...]`, of tallies `[..., classes]`."""
    return _ratio(2 * hits.sum(axis=-1), (2 * hits + false + missed).sum(axis=-1))


# of rankings


def average_precisions(scores: Floats, targets: Targets, weights: Doubles | None = None) -> Doubles:
    """The average precision of each class, `[draws, classes]`: the mean precision at its clips.

    NaN for a class without clips, and for one that all clips are of: there is nothing to rank. Clips of
    equal score are one step, as in scikit-learn's `average_precision_score`.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    found = np.full((len(weights), targets.shape[1]), np.nan)
    for column in _ranked_columns(targets):
        order, last = _ranking(scores[:, column])
        drawn = weights[:, order]
        relevant = drawn * targets[order, column]
        precision = _ratio(relevant.cumsum(axis=1)[:, last], drawn.cumsum(axis=1)[:, last])
        whole = relevant.sum(axis=1)
        found[:, column] = np.where(whole > 0, _ratio((relevant * precision).sum(axis=1), whole), np.nan)
    return found


def mean_average_precision(scores: Floats, targets: Targets) -> float:
    """mAP: the mean over classes of `average_precisions`; those in which there is nothing to rank are left out.

    Where that is each class that has a clip it is 1, for nothing is ranked wrongly; NaN where no class has one.
    """
    if len(_ranked_columns(targets)):
        return float(np.nanmean(average_precisions(scores, targets)))
    return 1.0 if targets.any() else float("nan")


def precision_draws(scores: Floats, targets: Targets, groups: list[str], seed: int = 0) -> Doubles:
    """`mean_average_precision` in each draw of a bootstrap that resamples groups, reversed about its value, `[draws]`.

    A clip that is drawn twice lifts its own precision, so the draws lie too high, and as they are their interval would hold
    the truth hardly ever: reversed, value - (draw - value), it is that of the basic bootstrap (Davison and Hinkley 1997,
    section 5.2). NaN for a draw without a class to rank.
    """
    value = mean_average_precision(scores, targets)
    if not len(_ranked_columns(targets)):
        return np.full(RANK_DRAWS, value)
    resamples = Resamples.of(groups, seed, RANK_DRAWS)
    drawn = (average_precisions(scores, targets, weights) for weights in resamples.weights())
    return np.concatenate([2 * value - _mean_where(np.nan_to_num(found), ~np.isnan(found)) for found in drawn])


def worth_of_ranking(targets: Targets) -> float:
    """How many clips `mean_average_precision` is worth: those that have a label, each class counting alike."""
    columns = _ranked_columns(targets)
    return worth_of_classes((targets[:, columns] if len(columns) else targets).sum(axis=0))


def ranked(scores: Floats, targets: Targets, groups: list[str], seed: int = 0) -> dict[str, float]:
    """`map`, the mean average precision, with the 95 % interval of groups, `map_low` and `map_high`, of so many
    `clips` and `clip_groups`.
    """
    value, draws = mean_average_precision(scores, targets), precision_draws(scores, targets, groups, seed)
    low, high = resampled_share_interval(value, draws, Resamples.of(groups, seed).sizes, worth_of_ranking(targets))
    return {"map": value, "map_low": low, "map_high": high, "clips": len(scores), "clip_groups": len(set(groups))}


def precision_gains(scores: Floats, targets: Targets) -> Doubles:
    """By how much the average precision of each class rises for each unit of weight that a clip gains, `[clips, classes]`.

    NaN for a class in which there is nothing to rank, but no gain where that is all. The gains of a class sum to
    zero, since clips of twice the weight all rank as before.
    """
    columns = _ranked_columns(targets)
    found = np.full(targets.shape, np.nan if len(columns) else 0.0)
    for column in columns:
        order, last = _ranking(scores[:, column])
        first, ranked = np.searchsorted(last, last), last + 1.0
        relevant = targets[order, column].astype(np.float64)
        precision, whole = relevant.cumsum()[last] / ranked, relevant.sum()
        own = relevant * (precision - relevant @ precision / whole)
        below = np.stack([relevant / ranked, relevant * precision / ranked])[:, ::-1].cumsum(axis=1)[:, ::-1][:, first]
        found[order, column] = (own + relevant * below[0] - below[1]) / whole
    return found


def equal_error_rates(scores: Floats | Doubles, same: Bools, weights: Doubles | None = None) -> Doubles:
    """EER of trials, `[draws]`: where as large a share of `same` trials is rejected as of the others accepted.

    A trial is accepted when its score reaches a threshold; between two thresholds both shares are taken as straight
    lines. NaN where there are no trials of one kind.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    order, last = _ranking(scores)
    ends = np.unique(last)
    drawn, truth = weights[:, order], same[order]
    accepted = (drawn * ~truth).cumsum(axis=1)[:, ends]
    kept = (drawn * truth).cumsum(axis=1)[:, ends]
    start = np.zeros((len(weights), 1))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no trials of that kind
        false_accepts = np.concatenate([start, accepted / accepted[:, -1:]], axis=1)
        false_rejects = 1 - np.concatenate([start, kept / kept[:, -1:]], axis=1)
    gap = false_rejects - false_accepts  # from 1 down to -1
    at = np.maximum((gap <= 0).argmax(axis=1), 1)
    rows = np.arange(len(gap))
    before, after = gap[rows, at - 1], gap[rows, at]
    part = before / (before - after)
    return false_accepts[rows, at - 1] + part * (false_accepts[rows, at] - false_accepts[rows, at - 1])


def equal_error_rate(scores: Floats | Doubles, same: Bools) -> float:
    """The equal error rate 0..1 of trials with `scores [n]`, of which `same [n]` should be accepted."""
    return float(equal_error_rates(scores, same)[0])


def _ranked_columns(targets: Targets) -> npt.NDArray[np.int64]:
    """The classes that some clips are of, and some are not."""
    return np.flatnonzero(targets.any(axis=0) & ~targets.all(axis=0))


def _ranking(scores: npt.NDArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The order by falling score, and for each place the last place with the same score."""
    order = np.argsort(-scores, kind="stable")
    ranked = -scores[order]
    return order, np.searchsorted(ranked, ranked, side="right") - 1


def _ratio(part: npt.NDArray, whole: npt.NDArray) -> Doubles:
    return part / np.maximum(whole, 1e-12)


def _mean_where(values: Doubles, defined: Bools) -> Doubles:
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: none is
        found: Doubles = (values * defined).sum(axis=-1) / defined.sum(axis=-1)
    return found
