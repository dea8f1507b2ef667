"""Every metric of one probe on one split, with intervals, and a row for each class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_edge.probes.metrics import (
    Difference,
    Resamples,
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
)
from confit_runtime import intervals
from confit_runtime.arrays import Doubles, Floats, Targets
from confit_runtime.errors import UsageError


@dataclass(frozen=True)
class Bootstrapped:
    """A value 0..1 with its 95 % interval, and its values in the draws of the bootstrap."""

    value: float
    low: float
    high: float
    samples: Doubles = field(repr=False, compare=False)
    units: int = field(repr=False, compare=False)

    @classmethod
    def of(cls, value: float, samples: Doubles, units: int) -> Bootstrapped:
        return cls(value, *resampled_share_interval(value, samples, units), samples, units)

    def minus(self, other: Bootstrapped) -> Difference:
        """The paired difference to the same metric of another probe on the same clips, groups and seed."""
        return Difference.of(self.value - other.value, self.samples - other.samples, self.units)

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Judgement:
    """The metrics of a probe by name, and for each class that has clips what became of them."""

    metrics: dict[str, Bootstrapped]
    per_class: list[dict[str, Any]]
    resampled: str  # "groups", or "clips" where there is one group only


def judge(
    scores: Floats, targets: Targets, groups: list[str], classes: list[str], *, multi_label: bool, seed: int = 0
) -> Judgement:
    """Judge `scores [clips, classes]` by 0/1 `targets [clips, classes]`; intervals resample `groups [clips]`.

    Of one label a clip: `accuracy`, `balanced_accuracy`, `macro_f1`; the best class is decided for. Of several: `accuracy`
    (of clips that have one: the best class is one of the clip's), `map`, `macro_f1`, `micro_f1`; a score of 0.5 or more is
    a decision.
    """
    resamples = Resamples.of(groups, seed)
    decided = scores >= 0.5 if multi_label else np.eye(len(classes), dtype=bool)[scores.argmax(axis=1)]
    parts = tallies(decided, targets)
    whole = {name: part.sum(axis=0) for name, part in parts.items()}
    drawn = dict(zip(parts, np.split(resamples.totals(np.hstack(list(parts.values()))), 3, axis=1), strict=True))

    def estimate(value: float | Doubles, samples: Doubles, units: int = resamples.units) -> Bootstrapped:
        return Bootstrapped.of(float(value), samples, units)

    labelled = targets.any(axis=1)
    if not labelled.any():
        raise UsageError("none of the clips to judge on has a label")
    of_labelled = resamples if labelled.all() else Resamples.of([groups[at] for at in np.flatnonzero(labelled)], seed)
    right = correct(scores[labelled], targets[labelled])
    metrics = {"accuracy": estimate(right.mean(), shares(right, of_labelled), of_labelled.units)}
    if multi_label:
        precisions = average_precisions(scores, targets)[0]
        metrics["map"] = estimate(
            mean_average_precision(scores, targets), precision_draws(scores, targets, groups, seed)
        )
    else:
        metrics["balanced_accuracy"] = estimate(
            balanced_accuracy(whole["hits"], whole["missed"]), balanced_accuracy(drawn["hits"], drawn["missed"])
        )
    metrics["macro_f1"] = estimate(macro_f1(**whole), macro_f1(**drawn))
    if multi_label:
        metrics["micro_f1"] = estimate(micro_f1(**whole), micro_f1(**drawn))

    rows = []
    for column in np.flatnonzero(targets.any(axis=0)):
        # its recall stands on the groups that hold the class
        with_it = len(np.unique(resamples.unit[targets[:, column] > 0]))
        counts, draws = ({name: part[..., column] for name, part in some.items()} for some in (whole, drawn))
        row = {"class": classes[column], **_class_row(counts, draws, with_it)}
        if multi_label:
            row["average_precision"] = float(precisions[column])
        else:
            row["taken_for"] = _taken_for(decided[targets[:, column] > 0], int(column), classes)
        rows.append(row)
    return Judgement(metrics, rows, resamples.by)


def _class_row(whole: dict[str, Any], drawn: dict[str, Doubles], groups: int) -> dict[str, Any]:
    """What became of the clips of a class, from its tallies and those in each draw; `groups` hold it."""
    hits, false, missed = (int(whole[name]) for name in ("hits", "false", "missed"))
    with np.errstate(invalid="ignore"):  # a draw without clips of the class has no recall
        recalls = drawn["hits"] / (drawn["hits"] + drawn["missed"])
    recall = Bootstrapped.of(hits / (hits + missed), recalls, groups)
    if groups == 1:  # it stands on nothing but its clips
        low, high = intervals.share_interval(hits, hits + missed)
        recall = replace(recall, low=low, high=high)
    return {
        "clips": hits + missed,
        "recall": recall.value,
        "recall_low": recall.low,
        "recall_high": recall.high,
        "precision": hits / (hits + false) if hits + false else 0.0,
        "f1": 2 * hits / (2 * hits + false + missed),
    }


def _taken_for(decided: npt.NDArray[np.bool_], column: int, classes: list[str]) -> str:
    """The other class that most of these clips were taken for, with their number; empty where none was."""
    counts = decided.sum(axis=0)
    counts[column] = 0
    return f"{classes[int(counts.argmax())]} ({counts.max()})" if counts.any() else ""
