"""Metrics of a probe on a split, with intervals over groups (clips of one voice are not independent).

Targets are 0/1, `[clips, classes]`. For metrics of decisions, a bootstrap draw sums what each drawn clip adds. The metrics
of rankings, `average_precisions` and `equal_error_rates`, instead weight each clip by how often it is drawn,
`weights [draws, clips]`, and compute all draws in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import MAX_TABLE_SIZE, Bools, Doubles, Floats, Targets
from confit_runtime.formatting import format_percent
from confit_runtime.intervals import RESAMPLES, clustered_share_interval, grouped_share_interval

RANK_DRAWS = 200  # bootstrap draws of metrics of rankings
ALIKE = 1e-12  # a variance below which draws differ only by rounding


@dataclass(frozen=True)
class Accuracy:
    """A share 0..1 with its 95 % interval, its numbers of clips and groups, and which of the two count as independent."""

    accuracy: float
    low: float
    high: float
    n: int
    groups: int
    resampled: str  # "groups"; "clips" if there is only one group, and then the interval is too narrow

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return format_percent(self.accuracy, self.low, self.high)


@dataclass(frozen=True)
class Difference:
    """How much higher one value is than another on the same clips, with the 95 % interval of the paired difference."""

    difference: float
    low: float
    high: float

    @classmethod
    def of(
        cls, difference: float, samples: Doubles, units: int, differing: float = 0.0, worth: float = np.inf
    ) -> Difference:
        """A difference of shares, with its interval from the `samples` in draws of `units` groups or clips.

        The two sides answer a share `differing` of the clips differently, of which there are as many as the metric is
        `worth`. The interval reaches at least as far as `least_reach`; if nothing is known of single clips, `worth` is
        infinite, and the draws alone decide.
        """
        low, high = interval(difference, samples, units)
        reach = least_reach(differing / worth, 1 / worth)
        bounds = [min(low, difference - reach), max(high, difference + reach)]  # NaN stays NaN
        return cls(difference, *np.clip(bounds, -1.0, 1.0).tolist())

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def units_of(groups: list[str]) -> tuple[str, npt.NDArray[np.int64]]:
    """The independent units ("groups", or "clips" if there is only one group), and the unit of each clip, `[clips]`."""
    names, unit = np.unique(groups, return_inverse=True)
    return ("groups", unit) if len(names) > 1 else ("clips", np.arange(len(groups)))


@dataclass(frozen=True)
class Resamples:
    """A bootstrap of clips by groups: each of `draws` draws takes as many groups as there are, with replacement.

    A single group cannot be resampled, so its clips are resampled as if they were independent, and `by` is "clips".
    """

    unit: npt.NDArray[np.int64]  # the group (or clip) of each clip, counted from 0
    units: int
    by: str  # "groups" or "clips"
    seed: int
    draws: int

    @classmethod
    def of(cls, groups: list[str], seed: int = 0, draws: int = RESAMPLES) -> Resamples:
        by, unit = units_of(groups)
        return cls(unit, int(unit.max()) + 1, by, seed, draws)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """The number of clips in each group, `[units]`."""
        return np.bincount(self.unit)

    def counts(self) -> Iterator[Doubles]:
        """How often each group is drawn, `[draws, units]`, in parts of several draws; the same at every call."""
        rng, most = np.random.default_rng(self.seed), max(1, MAX_TABLE_SIZE // self.units)
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
    """The 95 % interval of a value from the draws of `units` groups or clips in which it is defined; NaN if there are none.

    It is the percentile interval, widened for few units, because the variance of the draws is too small by the factor
    (units - 1) / units and treated as known (Hesterberg 2014, arXiv 1411.5279, section 5.3). With one unit it is NaN. If all
    units agree, even if only that there is no difference, it reaches as far as `agreed`.
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


def least_reach(variance: float, clip: float, outside: float = 0.025) -> float:
    """How far the interval of a difference on the same clips reaches at least, to either side.

    `variance` is that of the difference if clips were independent, and `clip` is how far one clip moves it. Groups that
    agree almost exactly, as a few of them may by chance, do not make a difference surer than independent clips would. Nor
    is a difference of so few clips claimed that McNemar's exact test could not be significant even if all of them went one
    way: five at 95 %, and the interval reaches half a clip further.
    """
    from scipy.stats import norm

    return max(float(norm.ppf(1 - outside)) * math.sqrt(variance), (math.floor(math.log2(1 / outside)) + 0.5) * clip)


def resampled_share_interval(
    value: float, samples: Doubles, sizes: npt.NDArray[np.int64], worth: float
) -> tuple[float, float]:
    """The 95 % interval of a metric 0..1 from draws of groups of `sizes [units]` clips; NaN if no draw defines the metric.

    It is the interval of a share with the variance of the draws, widened for few units as in `interval`. It is never
    narrower than that of as many clips as the metric is `worth`, given that clips within a group are somewhat alike
    (`clustered_share_interval`). With one unit it is NaN.
    """
    defined, units = samples[~np.isnan(samples)], len(sizes)
    if not len(defined) or units < 2:
        return float("nan"), float("nan")
    return clustered_share_interval(value, float(defined.var()) * units / (units - 1), sizes, worth=worth)


def worth_of_classes(clips: npt.NDArray[np.int64]) -> float:
    """The number of clips that a mean over classes with `clips [classes]` is worth: K^2 / sum(1 / clips), after Kish 1965.

    If all classes have equally many clips, that is all clips; one class with few clips pulls it down towards K times its
    own number. Classes without clips do not count.
    """
    counted = clips[clips > 0]
    return float(len(counted) ** 2 / (1 / counted).sum()) if len(counted) else 0.0


def agreed(units: int, outside: float = 0.025) -> float:
    """How far from the truth a value may be on which all `units` agree, so that resampling gives an interval of no width.

    It is the exact one-sided bound of a share that is 0 or 1 in all units, 1 - outside^(1/units).
    """
    return 1 - outside ** (1 / units)


def correct(scores: Floats, targets: Targets) -> Bools:
    """Whether the best class of each clip is one of its own, `[clips]`, given scores and 0/1 targets `[clips, classes]`."""
    return np.take_along_axis(targets, scores.argmax(axis=1)[:, None], axis=1)[:, 0] > 0


def merit(scores: Floats, targets: Targets, *, multi_label: bool) -> float:
    """The metric that epochs, rates and probes are chosen by: the share of correct clips; mAP if clips have several labels.

    With several labels, the best class of a clip says little: a label on every clip is correct whatever else is heard.
    """
    if multi_label:
        return mean_average_precision(scores, targets)
    return float(correct(scores, targets).mean())


def merit_name(*, multi_label: bool) -> str:
    """The name of `merit`."""
    return "mAP" if multi_label else "accuracy"


@dataclass(frozen=True)
class Merit:
    """The merit of a probe on a split: its name, its value 0..1 with the interval, and its numbers of clips and groups."""

    name: str
    value: float
    low: float
    high: float
    clips: int
    groups: int

    @classmethod
    def of(cls, found: dict[str, Any]) -> Merit:
        """Build it from a result of `confit_edge.probes.dual.score`: mAP of all clips if multi-label, else accuracy."""
        several = "map" in found
        keys = (
            ("map", "map_low", "map_high", "clips", "clip_groups")
            if several
            else ("accuracy", "low", "high", "n", "groups")
        )
        return cls(merit_name(multi_label=several), *(found[key] for key in keys))


def named_probes(metrics: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each fitted probe in the metrics of a run: whose it is, its name, and its results on the splits."""
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
    """The share of clips that are right, with an interval that accounts for groups.

    If there is only one group, its clips are treated as independent and `resampled` is "clips": the interval is then too
    narrow.
    """
    by, unit = units_of(groups)
    low, high = grouped_share_interval(right, unit)
    return Accuracy(float(right.mean()), low, high, len(right), len(set(groups)), by)


def paired_difference(
    right: Bools, other: Bools, groups: list[str], seed: int = 0, draws: int = RESAMPLES
) -> Difference:
    """The share `right` minus the share `other`, both on the same clips, with a bootstrap interval that resamples groups."""
    gain = right.astype(np.float64) - other
    resamples = Resamples.of(groups, seed, draws)
    differing = float((right != other).mean())
    return Difference.of(float(gain.mean()), shares(gain, resamples), resamples.units, differing, len(gain))


def shares(values: npt.NDArray, resamples: Resamples) -> Doubles:
    """The mean of `values [clips]` in each draw, `[draws]`."""
    sums = resamples.totals(np.stack([values, np.ones(len(values))], axis=1))
    return sums[:, 0] / sums[:, 1]


# metrics of decisions: each takes tallies [..., classes] of one or many draws


def tallies(decided: Bools, targets: Targets) -> dict[str, npt.NDArray[np.int64]]:
    """What each clip adds to the `hits`, `false` alarms and `missed` of each class, `[clips, classes]` each."""
    truth = targets > 0
    parts = {"hits": decided & truth, "false": decided & ~truth, "missed": ~decided & truth}
    return {name: part.astype(np.int64) for name, part in parts.items()}


def balanced_accuracy(hits: npt.NDArray, missed: npt.NDArray) -> Doubles:
    """The mean recall over the classes that have clips, `[...]`, from tallies `[..., classes]`."""
    return _mean_where(_ratio(hits, hits + missed), hits + missed > 0)


def macro_f1(hits: npt.NDArray, false: npt.NDArray, missed: npt.NDArray) -> Doubles:
    """The mean F1 over the classes that have clips, `[...]`, from tallies `[..., classes]`."""
    return _mean_where(_ratio(2 * hits, 2 * hits + false + missed), hits + missed > 0)


def micro_f1(hits: npt.NDArray, false: npt.NDArray, missed: npt.NDArray) -> Doubles:
    """F1 of all decisions together, `[...]`, from tallies `[..., classes]`."""
    return _ratio(2 * hits.sum(axis=-1), (2 * hits + false + missed).sum(axis=-1))


# metrics of rankings


def average_precisions(scores: Floats, targets: Targets, weights: Doubles | None = None) -> Doubles:
    """The average precision of each class, `[draws, classes]`: the mean precision at its clips.

    NaN for a class that no clip has, and for one that every clip has, because there is nothing to rank. Clips with equal
    scores form one step, as in scikit-learn's `average_precision_score`.
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
    """mAP: the mean of `average_precisions` over the classes, without those in which there is nothing to rank.

    If no class is left but some clip has a label, it is 1, because nothing is ranked wrongly; if no clip has a label, NaN.
    """
    if len(_ranked_columns(targets)):
        return float(np.nanmean(average_precisions(scores, targets)))
    return 1.0 if targets.any() else float("nan")


def precision_draws(scores: Floats, targets: Targets, groups: list[str], seed: int = 0) -> Doubles:
    """`mean_average_precision` in each draw of a bootstrap that resamples groups, mirrored at its value, `[draws]`.

    A clip that is drawn twice raises its own precision, so the draws are too high, and their plain interval would hardly
    ever contain the truth. Mirrored, value - (draw - value), they give the interval of the basic bootstrap (Davison and
    Hinkley 1997, section 5.2). NaN for a draw without a class to rank.
    """
    value = mean_average_precision(scores, targets)
    if not len(_ranked_columns(targets)):
        return np.full(RANK_DRAWS, value)
    resamples = Resamples.of(groups, seed, RANK_DRAWS)
    drawn = (average_precisions(scores, targets, weights) for weights in resamples.weights())
    return np.concatenate([2 * value - _mean_where(np.nan_to_num(found), ~np.isnan(found)) for found in drawn])


def worth_of_ranking(targets: Targets) -> float:
    """The number of clips that `mean_average_precision` is worth: the clips with a label, all classes counting equally."""
    columns = _ranked_columns(targets)
    return worth_of_classes((targets[:, columns] if len(columns) else targets).sum(axis=0))


def ranked(scores: Floats, targets: Targets, groups: list[str], seed: int = 0) -> dict[str, float]:
    """`map`, the mean average precision, with its 95 % interval over groups, `map_low` and `map_high`, and the numbers of
    `clips` and `clip_groups`.
    """
    value, draws = mean_average_precision(scores, targets), precision_draws(scores, targets, groups, seed)
    low, high = resampled_share_interval(value, draws, Resamples.of(groups, seed).sizes, worth_of_ranking(targets))
    return {"map": value, "map_low": low, "map_high": high, "clips": len(scores), "clip_groups": len(set(groups))}


def precision_gains(scores: Floats, targets: Targets) -> Doubles:
    """How much the average precision of each class rises per unit of weight added to a clip, `[clips, classes]`.

    NaN for a class in which there is nothing to rank, but 0 if that applies to all classes. The gains of a class sum to
    zero, because doubling the weight of every clip changes nothing.
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
    """EER of trials, `[draws]`: where the rejected share of `same` trials equals the accepted share of the others.

    A trial is accepted if its score reaches a threshold; between two thresholds both shares are interpolated linearly. NaN
    if there are no trials of one kind.
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
    """The classes that some, but not all, clips have."""
    return np.flatnonzero(targets.any(axis=0) & ~targets.all(axis=0))


def _ranking(scores: npt.NDArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The order by descending score, and for each position the last position with the same score."""
    order = np.argsort(-scores, kind="stable")
    ranked = -scores[order]
    return order, np.searchsorted(ranked, ranked, side="right") - 1


def _ratio(part: npt.NDArray, whole: npt.NDArray) -> Doubles:
    return part / np.maximum(whole, 1e-12)


def _mean_where(values: Doubles, defined: Bools) -> Doubles:
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no value is defined
        found: Doubles = (values * defined).sum(axis=-1) / defined.sum(axis=-1)
    return found
