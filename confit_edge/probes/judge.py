"""Judge a probe on a split: every metric with its interval, and a row for each class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_edge.probes.metrics import (
    Difference,
    Resamples,
    accuracy,
    average_precisions,
    balanced_accuracy,
    correct,
    macro_f1,
    mean_average_precision,
    micro_f1,
    precision_draws,
    resampled_share_interval,
    shares,
    tallies,
    units_of,
    worth_of_classes,
    worth_of_ranking,
)
from confit_runtime.arrays import Bools, Doubles, Floats, Targets
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.intervals import grouped_share_interval


@dataclass(frozen=True)
class Bootstrapped:
    """A value 0..1 with its 95 % interval, and the values in the bootstrap draws (`samples`).

    For metrics of decisions, `answers [clips, k]` are what the value depends on in each clip, and `worth` is the number of
    clips that it is worth; for metrics of rankings there are no answers of single clips.
    """

    value: float
    low: float
    high: float
    samples: Doubles = field(repr=False, compare=False)
    units: int = field(repr=False, compare=False)
    worth: float = field(repr=False, compare=False)
    answers: Bools | None = field(repr=False, compare=False)

    @classmethod
    def of(
        cls, value: float, samples: Doubles, sizes: npt.NDArray[np.int64], worth: float, answers: Bools | None = None
    ) -> Bootstrapped:
        """Build it from its `samples`, drawn over groups of `sizes` clips, and the number of clips that it is `worth`."""
        low, high = resampled_share_interval(value, samples, sizes, worth)
        return cls(value, low, high, samples, len(sizes), worth, answers)

    def minus(self, other: Bootstrapped) -> Difference:
        """The paired difference from the same metric of another probe on the same clips, groups and seed."""
        difference, samples = self.value - other.value, self.samples - other.samples
        if self.answers is None or other.answers is None:
            return Difference.of(difference, samples, self.units)
        differing = float((self.answers != other.answers).any(axis=1).mean())
        return Difference.of(difference, samples, self.units, differing, self.worth)

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Judgement:
    """The metrics of a probe by name, and a row for each class that has clips."""

    metrics: dict[str, Bootstrapped]
    per_class: list[dict[str, Any]]
    resampled: str  # what counts as independent: "groups", or "clips" if there is only one group


def judge(
    scores: Floats, targets: Targets, groups: list[str], classes: list[str], *, multi_label: bool, seed: int = 0
) -> Judgement:
    """Judge `scores [clips, classes]` by 0/1 `targets [clips, classes]`; intervals are over `groups [clips]`.

    With one label per clip, the decision is the best class, and the metrics are `accuracy`, `balanced_accuracy` and
    `macro_f1`. With several labels (`multi_label`), every class with a score of at least 0.5 is decided for, and the metrics
    are `accuracy` (the share of labelled clips whose best class is one of their labels), `map`, `macro_f1` and `micro_f1`.
    Raises ConfitError if a score is NaN, and UsageError if no clip has a label.
    """
    if nan := int(np.isnan(scores).any(axis=1).sum()):
        raise ConfitError(f"{nan} of {len(scores)} clips to judge on have scores that are not numbers (NaN)")
    resamples = Resamples.of(groups, seed)
    decided = scores >= 0.5 if multi_label else np.eye(len(classes), dtype=bool)[scores.argmax(axis=1)]
    parts = tallies(decided, targets)
    whole = {name: part.sum(axis=0) for name, part in parts.items()}
    drawn = dict(zip(parts, np.split(resamples.totals(np.hstack(list(parts.values()))), 3, axis=1), strict=True))

    of_class = targets.sum(axis=0, dtype=np.int64)

    def estimate(
        value: float | Doubles, samples: Doubles, worth: float, answers: Bools | None = decided
    ) -> Bootstrapped:
        return Bootstrapped.of(float(value), samples, resamples.sizes, worth, answers)

    labelled = targets.any(axis=1)
    if not labelled.any():
        raise UsageError("none of the clips to judge on has a label")
    of_labelled = [groups[at] for at in np.flatnonzero(labelled)]
    right = correct(scores[labelled], targets[labelled])
    metrics = {"accuracy": _accuracy(right, of_labelled, seed)}
    if multi_label:
        precisions = average_precisions(scores, targets)[0]
        metrics["map"] = estimate(
            mean_average_precision(scores, targets),
            precision_draws(scores, targets, groups, seed),
            worth_of_ranking(targets),
            answers=None,
        )
    else:
        metrics["balanced_accuracy"] = estimate(
            balanced_accuracy(whole["hits"], whole["missed"]),
            balanced_accuracy(drawn["hits"], drawn["missed"]),
            worth_of_classes(of_class),
            parts["hits"] > 0,
        )
    metrics["macro_f1"] = estimate(macro_f1(**whole), macro_f1(**drawn), worth_of_classes(of_class))
    if multi_label:
        labels = float(min(of_class.sum(), len(targets)))
        metrics["micro_f1"] = estimate(micro_f1(**whole), micro_f1(**drawn), labels)

    rows = []
    for column in np.flatnonzero(targets.any(axis=0)):
        own = targets[:, column] > 0
        # the interval of its recall is over the groups that contain the class
        holding = [groups[at] for at in np.flatnonzero(own)]
        bounds = grouped_share_interval(decided[own, column], units_of(holding)[1])
        counts = {name: int(part[column]) for name, part in whole.items()}
        row = {"class": classes[column], "groups": len(set(holding)), **_class_row(**counts, bounds=bounds)}
        if multi_label:
            row["average_precision"] = float(precisions[column])
        else:
            row["taken_for"] = _taken_for(decided[own], int(column), classes)
        rows.append(row)
    return Judgement(metrics, rows, resamples.by)


def _accuracy(right: Bools, groups: list[str], seed: int) -> Bootstrapped:
    """The accuracy and interval as computed everywhere, and the draws needed for differences."""
    found, resamples = accuracy(right, groups), Resamples.of(groups, seed)
    draws = shares(right, resamples)
    return Bootstrapped(found.accuracy, found.low, found.high, draws, resamples.units, len(right), right[:, None])


def _class_row(hits: int, false: int, missed: int, bounds: tuple[float, float]) -> dict[str, Any]:
    """The row of a class, from its tallies and the interval of its recall."""
    return {
        "clips": hits + missed,
        "recall": hits / (hits + missed),
        "recall_low": bounds[0],
        "recall_high": bounds[1],
        "precision": hits / (hits + false) if hits + false else 0.0,
        "f1": 2 * hits / (2 * hits + false + missed),
    }


def _taken_for(decided: npt.NDArray[np.bool_], column: int, classes: list[str]) -> str:
    """The class these clips were most often mistaken for, with their number; empty if none was."""
    counts = decided.sum(axis=0)
    counts[column] = 0
    return f"{classes[int(counts.argmax())]} ({counts.max()})" if counts.any() else ""
