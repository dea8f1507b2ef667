"""Estimates from the outcomes of a study, with intervals: shares over seeds and test groups, numbers over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from confit_edge.geometry.measures import RANGES
from confit_edge.probes.metrics import ALIKE, agreed, least_reach
from confit_edge.studies.trial import Arm, Outcome, Scalar, Subset, Tally
from confit_runtime.arrays import Doubles
from confit_runtime.intervals import resample_counts

DRAWS = 4_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at `LEVEL`; NaN if there is none, NaN bounds if it comes from a single unit."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero, so that a difference is significant."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """One point of one outcome: its arm (the trial's and the point's own), and what was measured."""

    arm: Arm
    seed: int
    subset: Subset
    shares: dict[str, Tally]
    numbers: dict[str, float]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a share over the rows of an arm."""

    metric: str
    arm: Arm = field(default_factory=dict)


class Results:
    """The rows of the outcomes that finished, and the outcomes that diverged.

    The interval of a share takes its shape from a bootstrap that resamples seeds and test groups together: each group with
    all of its clips, and both sides of a comparison in the same way, because they saw the same clips. Its length comes from
    a two-way analysis of variance, with Student's t at Satterthwaite's degrees of freedom (1946). A bootstrap of three seeds
    or groups alone gives intervals that are far too short, and one that resamples both counts the residual variance three
    times (Owen 2007, arXiv 0712.1111). The interval of a number is Student's, over seeds. `figure` names what the shares
    are: accuracy, or mAP where clips may have several labels.
    """

    def __init__(self, outcomes: Iterable[Outcome], figure: str = "accuracy") -> None:
        done = list(outcomes)
        self.outcomes, self.figure = done, figure
        self.diverged = [outcome for outcome in done if outcome.diverged]
        self.rows = [
            Row({**outcome.arm, **point.arm}, outcome.seed, outcome.subset, point.shares, point.numbers)
            for outcome in done
            for point in outcome.points
        ]

    def select(self, arm: Arm) -> list[Row]:
        """Return the rows whose arm contains all items of `arm`."""
        return [row for row in self.rows if arm.items() <= row.arm.items()]

    def where(self, kept: Callable[[Row], bool]) -> Results:
        """Return results with only the rows that `kept` accepts."""
        found = Results(self.outcomes, self.figure)
        found.rows = list(filter(kept, self.rows))
        return found

    def exactly(self, arm: Arm) -> Results:
        """Return results with only the rows of exactly this arm."""
        return self.where(lambda row: row.arm == arm)

    def arms(self, **wanted: Scalar) -> list[Arm]:
        """Return the distinct arms among `select(wanted)`, in the order of the plan."""
        return list({tuple(row.arm.items()): row.arm for row in self.select(wanted)}.values())

    def values(self, column: str, **wanted: Scalar) -> list[Scalar]:
        """Return the distinct values of a column among `select(wanted)`, in the order of the plan."""
        return list(dict.fromkeys(row.arm[column] for row in self.select(wanted) if column in row.arm))

    def share(self, metric: str, **arm: Scalar) -> Estimate:
        """Return a share 0..1 of test clips, over seeds and groups."""
        return self.contrast([(1.0, Side(metric, arm))])

    def difference(self, one: Side, other: Side, comparisons: int = 1) -> Estimate:
        """Return the share of `one` minus that of `other`. With m `comparisons`, the level is 1 - 0.05 / m (Bonferroni)."""
        return self.contrast([(1.0, one), (-1.0, other)], comparisons)

    def contrast(self, terms: list[tuple[float, Side]], comparisons: int = 1) -> Estimate:
        """Return a weighted sum of shares, over the seeds that all of its sides have."""
        sides = [self._tallies(side) for _, side in terms]
        seeds = sorted(set.intersection(*(set(tallies) for tallies in sides)))
        if not seeds:
            return Estimate(np.nan, np.nan, np.nan)
        groups = sorted({group for tallies in sides for seed in seeds for group in tallies[seed]})
        counts = np.array(
            [[[tallies[seed].get(group, (0.0, 0.0)) for group in groups] for seed in seeds] for tallies in sides]
        )  # sides, seeds, groups, (right, clips)
        weights = np.array([weight for weight, _ in terms])
        value = float(weights @ _ratio(counts.sum(axis=(1, 2))))
        if len(seeds) == len(groups) == 1:
            return Estimate(value, np.nan, np.nan)
        estimate = _stretched(value, counts, weights, (1 - LEVEL) / 2 / comparisons)
        least, most = float(weights[weights < 0].sum()), float(weights[weights > 0].sum())  # shares are between 0 and 1
        return Estimate(value, max(least, estimate.low), min(most, estimate.high))

    def number(self, name: str, **arm: Scalar) -> Estimate:
        """Return the mean of a number over seeds."""
        found, (least, most) = self.number_difference([(1.0, name, arm)]), _range(name)
        return Estimate(found.value, max(found.low, least), min(found.high, most))

    def number_difference(self, terms: list[tuple[float, str, Arm]]) -> Estimate:
        """Return the mean, with Student's interval, of a weighted sum of numbers, over the seeds that have all of them."""
        from scipy.stats import t as student

        sides = [(weight, self._by_seed(name, arm)) for weight, name, arm in terms]
        seeds = sorted(set.intersection(*(set(found) for _, found in sides)))
        values = np.array([sum(weight * found[seed] for weight, found in sides) for seed in seeds])
        if len(values) < 2:
            return Estimate(float(values[0]) if len(values) else np.nan, np.nan, np.nan)
        counted = all(name.startswith("epochs") for _, name, _ in terms)
        spread = max(values.std(ddof=1), 0.5 if counted else 0.0)  # epochs: known to half of one
        reach = float(student.ppf(0.5 + LEVEL / 2, len(values) - 1) * spread / np.sqrt(len(values)))
        return Estimate(float(values.mean()), float(values.mean()) - reach, float(values.mean()) + reach)

    def best(self, arms: list[Arm]) -> Arm:
        """Return the arm whose linear probe has the best mean on validation clips (the first of equals); test plays no part.

        Only the arms with the most seeds compete, on the seeds they all have, because a mean that leaves out diverged
        seeds is too good.
        """
        found = [self._by_seed("val_linear", arm) for arm in arms]
        most = max(map(len, found))
        whole = [index for index, by_seed in enumerate(found) if len(by_seed) == most]
        common = set.intersection(*(set(found[index]) for index in whole))
        means = [np.mean([found[index][seed] for seed in common or found[index]]) for index in whole]
        return arms[whole[int(np.argmax(means))]]

    def seeds(self, arm: Arm) -> int:
        """Return how many seeds an arm was measured with."""
        return len({row.seed for row in self.select(arm)})

    def _tallies(self, side: Side) -> dict[int, Tally]:
        """Return, by seed, the tally of all the side's rows together, without seeds that had no clip to judge."""
        found: dict[int, Tally] = {}
        for row in self.select(side.arm):
            if tally := row.shares.get(side.metric):
                whole = found.setdefault(row.seed, {})
                for group, (right, clips) in tally.items():
                    before = whole.get(group, (0.0, 0.0))
                    whole[group] = (before[0] + right, before[1] + clips)
        return found

    def _by_seed(self, name: str, arm: Arm) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for row in self.select(arm):
            if name in row.numbers:
                found.setdefault(row.seed, []).append(row.numbers[name])
        return {seed: float(np.mean(values)) for seed, values in found.items()}


def _range(name: str) -> tuple[float, float]:
    """Return the range of a number: 0..1 for validation accuracies and shares, from 1 for epochs, else as in `geometry`."""
    if name.startswith("epochs"):
        return 1.0, np.inf
    if name.startswith("val_") or name in ("balance", "top1_train"):
        return 0.0, 1.0
    return RANGES.get(name, (-np.inf, np.inf))


def _stretched(value: float, counts: Doubles, weights: Doubles, outside: float) -> Estimate:
    """Return the interval of the weighted shares of `counts [sides, seeds, groups, (right, clips)]`, `outside` on each side."""
    from scipy.stats import norm
    from scipy.stats import t as student

    seeds, groups = counts.shape[1:3]
    # the same draws every time, so that all cells of a table are resampled in the same way
    by_seed, by_group = resample_counts(seeds, DRAWS, (seeds, 5)), resample_counts(groups, DRAWS, (groups, 6))
    of_groups = np.einsum("dg,xsgc->dxsc", by_group, counts, optimize=True)
    both = _ratio(np.einsum("ds,dxsc->dxc", by_seed, of_groups)) @ weights
    variance, freedom = _variance(counts, weights)
    if np.nanvar(both) < ALIKE:
        below = above = agreed(groups, outside)
    else:
        stretch = np.sqrt(variance / np.nanvar(both)) * student.ppf(outside, freedom) / norm.ppf(outside)
        low, high = np.nanquantile(both, [outside, 1 - outside])
        below, above = float(stretch * (value - low)), float(stretch * (high - value))
    if abs(weights.sum()) < ALIKE:  # a difference on the same clips, not a share or a mean of shares
        least = least_reach(*_of_independent_clips(counts, weights), outside)
        below, above = max(below, least), max(above, least)
    return Estimate(value, value - below, value + above)


def _of_independent_clips(counts: Doubles, weights: Doubles) -> tuple[float, float]:
    """Return the variance that a difference has at least if clips are independent, and how far one clip moves it.

    Tallies do not hold single clips, so each group's gain, the mean of its seeds, counts as that of the fewest clips that
    add up to it. Sides with equally many clips are judged on the same ones.
    """
    clips = counts[..., 1].sum(axis=2).mean(axis=1)
    variance = 0.0
    for number in np.unique(clips):
        same = clips == number
        gains = np.abs(np.einsum("x,xsg->g", weights[same], counts[same, ..., 0]) / counts.shape[1])
        variance += float(np.minimum(gains, gains**2).sum() / number**2)  # below one clip: the square of its gain
    return variance, float(1 / clips.min())


def _variance(counts: Doubles, weights: Doubles) -> tuple[float, float]:
    """Return the variance of the weighted shares of `counts [sides, seeds, groups, (right, clips)]`, and its degrees of freedom.

    The layout is two-way without replication. The variances between seeds and between groups both contain the residual, so
    it is subtracted once. The shares are linearised, because groups differ in size.
    """
    seeds, groups = counts.shape[1:3]
    whole = counts.sum(axis=(1, 2))
    share, clips = _ratio(whole)[:, None, None], whole[:, 1][:, None, None] / (seeds * groups)
    parts = np.einsum("x,xsg->sg", weights, (counts[..., 0] - share * counts[..., 1]) / clips)
    by_seed, by_group = parts.mean(axis=1, keepdims=True), parts.mean(axis=0, keepdims=True)
    neither = parts - by_seed - by_group + parts.mean()
    squares = [
        np.square(by_seed - parts.mean()).sum(),
        np.square(by_group - parts.mean()).sum(),
        np.square(neither).sum(),
    ]
    free = [seeds - 1, groups - 1, (seeds - 1) * (groups - 1)]
    of = [seeds, groups, seeds * groups]
    found = [square / part / units if part else 0.0 for square, part, units in zip(squares, free, of, strict=True)]
    variance = max(found[0] + found[1] - found[2], found[0], found[1])
    spread = sum(part**2 / units for part, units in zip(found, free, strict=True) if units)
    fewest = min(units for units in free[:2] if units)
    return float(variance), max(float(fewest), float(variance**2 / max(spread, 1e-30)))


def _ratio(sums: Doubles) -> Doubles:
    """Return shares from sums `[..., (right, clips)]`; NaN where there are no clips."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)
