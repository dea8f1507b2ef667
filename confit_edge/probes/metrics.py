"""Scores of a probe on a split, with intervals that resample groups (clips of one voice are not independent)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Accuracy:
    """A share 0..1 with its 95 % interval, the clips and the groups it stands on."""

    accuracy: float
    low: float
    high: float
    n: int
    groups: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def correct(scores: npt.NDArray[np.float32], targets: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Whether each clip's best class is one of its own, `[clips]`, of scores and 0/1 targets `[clips, classes]`."""
    return np.take_along_axis(targets, scores.argmax(axis=1)[:, None], axis=1)[:, 0] > 0


def accuracy(right: npt.NDArray[np.bool_], groups: list[str], seed: int = 0, draws: int = 2000) -> Accuracy:
    """The share of clips that are right, with a percentile bootstrap interval that resamples groups.

    When every clip (or none) is right, resampling gives an interval of no width; its open end is then the one-sided
    exact bound of the groups, 1 - 0.025^(1/groups).
    """
    names, member = np.unique(groups, return_inverse=True)
    hits = np.bincount(member, weights=right, minlength=len(names))
    sizes = np.bincount(member, minlength=len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    shares = hits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(shares, [0.025, 0.975])
    share = float(right.mean())
    reach = 1 - 0.025 ** (1 / len(names))
    if share == 1.0:
        low = 1 - reach
    if share == 0.0:
        high = reach
    return Accuracy(share, float(low), float(high), len(right), len(names))


@dataclass(frozen=True)
class Difference:
    """How far one share is above another on the same clips, with the 95 % interval of the paired difference."""

    difference: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def paired_difference(
    right: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], groups: list[str], seed: int = 0, draws: int = 2000
) -> Difference:
    """The share right minus the other's, both on the same clips, with a bootstrap interval that resamples groups."""
    names, member = np.unique(groups, return_inverse=True)
    gains = np.bincount(member, weights=right.astype(np.float64) - other, minlength=len(names))
    sizes = np.bincount(member, minlength=len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    shares = gains[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return Difference(float(right.mean() - other.mean()), float(low), float(high))
