"""What a study is made of, as plain data: trials to do, and the outcomes that are kept of them."""

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
# By test group: clips that were right, of how many; of mAP see `precision_tally`.
Tally = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Subset:
    """Which clips of a corpus a trial trains on; what is drawn is drawn by the trial's seed. None: all of them.

    `classes` and `groups` say how many classes (in all splits) and training groups are kept; `shots` how many clips of
    each class, for training and likewise for validation. With `tail`, the classes have from `shots` training clips
    down to `shots / tail`, evenly spaced in the logarithm.
    """

    classes: int | None = None
    groups: int | None = None
    shots: int | None = None
    tail: float | None = None


@dataclass(frozen=True)
class Trial:
    """One encoder to train (or, with `train` off, to take as it is) and to measure.

    `arm` says what the trial is, in the columns of the study's table; the seed is the recipe's. `options` are for the
    study's own `measure`. One that is `done` elsewhere, and is only read, costs nothing.
    """

    arm: Arm
    recipe: Recipe
    subset: Subset = Subset()
    train: bool = True
    options: Mapping[str, Scalar] = field(default_factory=dict)
    done: bool = False

    def key(self, study: str) -> str:
        """The same for the same work, in any process and on any day; what makes a study go on where it was stopped."""
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
    """What was measured of one encoder in one setting: `shares` counted on test clips, `numbers` of any other kind.

    `arm` is added to the trial's own where one trial gives several points.
    """

    shares: dict[str, Tally] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    arm: Arm = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A trial that is done: its points, or why there are none (`diverged` is not empty)."""

    key: str
    arm: Arm
    seed: int
    subset: Subset
    points: list[Point]
    cpu_seconds: float
    diverged: str = ""

    def to_json(self) -> str:
        """One line. A number that is not finite is left out: the measure is not defined there."""
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
        """Raises ValueError, KeyError or TypeError where the line is not an outcome."""
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
