"""The plain data of a study: the trials to run and the outcomes kept of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from confit_edge.recipe import Recipe

Scalar = str | int | float
Arm = Mapping[str, Scalar]
# By test group: how many clips were right, and of how many; for mAP see `precision_tally`.
Tally = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Subset:
    """Which clips of a corpus a trial trains on, drawn with the trial's seed (None: all of them).

    `classes` and `groups` are how many classes (in all splits) and training groups are kept. `shots` is how many clips of
    each class are kept, in training and in validation. With `tail`, the classes have from `shots` training clips down to
    `shots / tail`, evenly spaced in the logarithm.
    """

    classes: int | None = None
    groups: int | None = None
    shots: int | None = None
    tail: float | None = None


@dataclass(frozen=True)
class Trial:
    """One encoder to train (or, with `train` off, to use as it is) and to measure.

    `arm` identifies the trial in the columns of the study's table; the seed is the recipe's. `options` are for the study's
    own `measure`. A trial with `done` was measured elsewhere: it is only read and costs nothing.
    """

    arm: Arm
    recipe: Recipe
    subset: Subset = Subset()
    train: bool = True
    options: Mapping[str, Scalar] = field(default_factory=dict)
    done: bool = False

    def key(self, study: str) -> str:
        """Return a key that is the same for the same work in any process, so that a stopped study can resume."""
        plain = {
            "study": study,
            "arm": self.arm,
            "recipe": self.recipe.to_dict(),
            "subset": asdict(self.subset),
            "train": self.train,
            "options": dict(self.options),
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Point:
    """What was measured of one encoder in one setting: `shares` of test clips, and any other `numbers`.

    `arm` is added to the trial's own, for trials that give several points.
    """

    shares: dict[str, Tally] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    arm: Arm = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A finished trial: its points, or the reason it has none (`diverged` is not empty)."""

    key: str
    arm: Arm
    seed: int
    subset: Subset
    points: list[Point]
    cpu_seconds: float
    diverged: str = ""

    def to_json(self) -> str:
        """Return one line of JSON. Numbers that are not finite are left out, because the measure is undefined there."""
        points = [
            {
                "arm": point.arm,
                "shares": point.shares,
                "numbers": {name: value for name, value in point.numbers.items() if math.isfinite(value)},
            }
            for point in self.points
        ]
        return json.dumps(asdict(self) | {"points": points}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Outcome:
        """Read a line of JSON. Raises ValueError, KeyError or TypeError if it is not an outcome."""
        raw: dict[str, Any] = json.loads(line)
        points = [
            Point(
                {
                    name: {group: (float(right), float(clips)) for group, (right, clips) in tally.items()}
                    for name, tally in point["shares"].items()
                },
                point["numbers"],
                point["arm"],
            )
            for point in raw["points"]
        ]
        return cls(**{**raw, "subset": Subset(**raw["subset"]), "points": points})
