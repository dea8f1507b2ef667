"""Who an embedding is: the nearest prints, open-set thresholds that a name's own prints move, and vetoes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats, floats
from confit_runtime.contract import Contract
from confit_runtime.errors import UsageError
from confit_runtime.names import known_names, plain
from confit_runtime.search import ExactSearch, Search

NEAREST = 3  # prints of a name, and sounds of the cohort, that a score is made of
NEIGHBOURS = 64  # nearest prints of all: the names they belong to are scored
DEFAULT_THRESHOLD, DEFAULT_MARGIN = 0.6, 0.03
PRIOR_PRINTS = 4.5  # prints of a name that weigh as much as what the model says of names in general
LOWEST_SHIFT, HIGHEST_SHIFT = -0.25, 0.05  # of the threshold, by a name's own prints
UNIT_WITHIN = 1e-6  # of 1: a length that rounding alone keeps from it
ROUNDING = 1e-6  # of a cosine: a clip that is both a print and a negative one is refused, whatever its last digit
OWN_PRINTS = 64  # of a name, the newest, that tell how alike its prints are

Reason = Literal["nobody", "too low", "negative", "stranger", "other", "too close"]


@dataclass(frozen=True)
class Match:
    """The answer to "who is this?". `name` is None when nobody enrolled is near enough, or two are equally near.

    `reason` tells which rule said so, the first of these: "nobody" is enrolled, the score is "too low", a "negative" print
    of the name is nearer, a "stranger" of the cohort is, an "other" name is (when one name was asked for), or two names are
    "too close". It is None where `name` is not.

    `nearest` is the name that scores best, whatever the answer. `score` is its similarity, -1..1 (0 in an empty gallery),
    or that of the name that was asked for, and `threshold` the one it needed; `runner_up` is the next name. All are given
    even when the answer is unknown. `margin` is what lies between the two scores, None without a runner-up.
    """

    name: str | None
    reason: Reason | None
    nearest: str | None
    score: float
    runner_up: str | None
    runner_up_score: float | None
    margin: float | None
    threshold: float


@dataclass(frozen=True)
class Levels:
    """When a match is one, from a model's calibration.

    `threshold` is the similarity that one stranger in a hundred reaches, `genuine` how alike the prints of one name
    were where that was measured (each against the others); None where `threshold` was given by hand. `own` are thresholds
    given by hand for single names.
    """

    threshold: float = DEFAULT_THRESHOLD
    margin: float = DEFAULT_MARGIN
    genuine: float | None = None
    own: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, contract: Contract, threshold: float | None, margin: float | None, own: Mapping[str, float] | None = None
    ) -> Levels:
        """The model's levels, with what was given by hand instead.

        Raises UsageError on a threshold that is no similarity and on a margin that is none between two of them.
        """
        for given in [*([] if threshold is None else [threshold]), *(own or {}).values()]:
            if not (isinstance(given, Real) and -1.0 <= given <= 1.0):
                raise UsageError(f"the threshold of a name is a similarity between -1 and 1, not {given!r}")
        if margin is not None and not (isinstance(margin, Real) and 0.0 <= margin <= 2.0):
            raise UsageError(f"the margin between two similarities is from 0 to 2, not {margin!r}")
        found = contract.calibration.get("enroll", {})
        levels = {key: found[key] for key in ("threshold", "margin", "genuine") if key in found}
        if threshold is not None:
            levels = {**levels, "threshold": threshold, "genuine": None}
        return cls(**{**levels, **({} if margin is None else {"margin": margin})}, own=own or {})


class Matcher:
    """The prints of a gallery at one moment: immutable, safe to share between threads.

    A name's score is the cosine between the embedding and the centroid of the name's three nearest prints, weighted by
    their similarity; names are scored that own one of the 64 nearest prints (or of more, where those are all of one name).
    The answer is unknown when the best score is below its threshold, or within `margin` of the next name's, or no better
    than the mean cosine of the three nearest sounds of the `cohort`, or than that of a negative print of the name.

    A threshold is the model's, moved by how alike the name's own prints are (each against the others) compared with what
    the model was calibrated on, and shrunk: `p` prints weigh `p / (p + 4.5)`. Prints that agree less, as from a far
    microphone, need less. (Adaptive normalisation by the cohort, AS-norm, was tried instead and lost: docs/enrollment.md.)
    """

    def __init__(
        self,
        names: Sequence[str],
        owners: npt.ArrayLike,
        prints: Floats,
        cohort: Floats,
        *,
        levels: Levels,
        search: Search | None = None,
        vetoed: npt.ArrayLike = (),
        vetoes: Floats | None = None,
    ) -> None:
        """`prints [n, dim]` belong to `names[owners[n]]`, `owners` ascending; `cohort [m, dim]` may be empty.

        The negative prints `vetoes [v, dim]` belong to `names[vetoed[v]]`, ascending too. A name may have only those.
        """
        self.names, self.levels = tuple(names), levels
        self._prints, self._cohort = np.ascontiguousarray(prints), unit(cohort)
        self._owners = np.asarray(owners, np.int64)
        self._search = search or ExactSearch(self._prints)
        places = np.arange(len(self.names) + 1)
        self._starts = np.searchsorted(self._owners, places)
        self._enrolled = int(np.count_nonzero(np.diff(self._starts)))
        self._vetoes = np.zeros((0, prints.shape[1]), np.float32) if vetoes is None else np.ascontiguousarray(vetoes)
        self._veto_starts = np.searchsorted(np.asarray(vetoed, np.int64), places)
        self._shifts: dict[int, float] = {}  # of thresholds, filled as names are asked for

    @property
    def enrolled(self) -> list[str]:
        """The names that can be matched: those with prints that are not negative."""
        return [self.names[place] for place in np.flatnonzero(np.diff(self._starts))]

    @property
    def search(self) -> Search:
        """How the prints are searched."""
        return self._search

    @property
    def has_vetoes(self) -> bool:
        """Whether any name has negative prints."""
        return len(self._vetoes) > 0

    def match(self, embedding: npt.ArrayLike) -> Match:
        """Who an embedding `[dim]` is nearest to. Raises UsageError on another shape, and on NaN or infinity."""
        query = self._query(embedding)
        ranking = self._ranking(query)
        if not ranking:
            return Match(None, "nobody", None, 0.0, None, None, None, self.levels.threshold)
        return self._answer(query, ranking[0], ranking[1] if len(ranking) > 1 else None, self.levels.margin)

    def verify(self, name: str, embedding: npt.ArrayLike) -> Match:
        """Whether an embedding `[dim]` is `name`: the answer's `name` is that or None, `score` is of that name.

        Nobody else who is enrolled may be nearer, by however little: no margin is asked. Raises UsageError when nobody is
        enrolled as `name`, and on what `match` refuses.
        """
        query, name = self._query(embedding), plain(name)
        if name not in (enrolled := self.enrolled):
            raise UsageError(f"nobody is enrolled as {name!r} (enrolled: {known_names(name, enrolled) or 'nobody'})")
        claimed = self.names.index(name)
        others = [entry for entry in self._ranking(query) if entry[1] != claimed]
        return self._answer(query, (self._score(claimed, query), claimed), others[0] if others else None, 0.0)

    def vetoes(self, label: str, embedding: npt.ArrayLike) -> bool:
        """Whether an embedding `[dim]` of a sound that was taken for `label` is one that was enrolled as negative of it.

        It is when it is as near to such a print as a match must be, and nearer than to the sounds of the cohort.
        Raises UsageError on what `match` refuses.
        """
        query, label = self._query(embedding), plain(label)
        if label not in self.names:
            return False
        nearest = self._nearest_veto(self.names.index(label), query)
        return nearest >= self.levels.threshold and nearest > self._nearest_cohort(query)

    def _query(self, embedding: npt.ArrayLike) -> Floats:
        query = floats(embedding, f"an embedding [{self._prints.shape[1]}]")
        if query.shape != self._prints.shape[1:]:
            raise UsageError(f"an embedding here is [{self._prints.shape[1]}], got {list(query.shape)}")
        if not np.isfinite(query).all():
            raise UsageError(
                "an embedding to be matched holds NaN or infinite values: is its model or its sound at fault?"
            )
        return unit(query)

    def _answer(
        self, query: Floats, best: tuple[float, int], second: tuple[float, int] | None, least_margin: float
    ) -> Match:
        score, place = best
        name, threshold = self.names[place], self._threshold(place)
        runner_up = runner_up_score = margin = None
        if second is not None:
            runner_up, runner_up_score = self.names[second[1]], second[0]
            margin = score - runner_up_score
        reason = self._reason(query, best, threshold, margin, least_margin)
        nearest = name if margin is None or margin >= 0.0 else runner_up
        return Match(
            name if reason is None else None, reason, nearest, score, runner_up, runner_up_score, margin, threshold
        )

    def _reason(
        self, query: Floats, best: tuple[float, int], threshold: float, margin: float | None, least_margin: float
    ) -> Reason | None:
        """Which rule says that the answer is unknown, if one does."""
        score, place = best
        if not score >= threshold:
            return "too low"
        if self._nearest_veto(place, query) >= score - ROUNDING:
            return "negative"
        if self._nearest_cohort(query) >= score:
            return "stranger"
        if margin is not None and margin < 0.0:
            return "other"
        return "too close" if margin is not None and margin < least_margin else None

    def _ranking(self, query: Floats) -> list[tuple[float, int]]:
        """The two best scores, with the places of their names."""
        ranking = sorted(((self._score(place, query), -place) for place in self._near(query)), reverse=True)
        return [(score, -place) for score, place in ranking[:2]]

    def _near(self, query: Floats) -> list[int]:
        """The places of the names that own the nearest prints: two, where there are two, for the margin is to the next."""
        count = NEIGHBOURS
        while True:
            owners = np.unique(self._owners[self._search.nearest(query, count)])
            if len(owners) >= min(2, self._enrolled) or count >= len(self._prints):
                return [int(place) for place in owners]
            count *= 4

    def _score(self, place: int, query: Floats) -> float:
        return print_score(self._prints[self._starts[place] : self._starts[place + 1]], query)

    def _threshold(self, place: int) -> float:
        if self.names[place] in self.levels.own:
            return self.levels.own[self.names[place]]
        if place not in self._shifts:
            self._shifts[place] = self._shift(self._prints[self._starts[place] : self._starts[place + 1]][-OWN_PRINTS:])
        return self.levels.threshold + self._shifts[place]

    def _shift(self, prints: Floats) -> float:
        if self.levels.genuine is None or len(prints) < 2:
            return 0.0
        share = len(prints) / (len(prints) + PRIOR_PRINTS)
        return min(max(share * (likeness(prints) - self.levels.genuine), LOWEST_SHIFT), HIGHEST_SHIFT)

    def _nearest_cohort(self, query: Floats) -> float:
        nearest = np.sort(self._cohort @ query)[-NEAREST:]
        return float(nearest.mean()) if len(nearest) else -math.inf

    def _nearest_veto(self, place: int, query: Floats) -> float:
        start, end = self._veto_starts[place], self._veto_starts[place + 1]
        if end == start:
            return -math.inf
        prints = self._vetoes[start:end]
        # of a clip of several sounds the query is their mean, and each of its prints one of them: as a name is scored, too
        return max(float((prints @ query).max()), print_score(prints, query))


def unit(rows: Floats) -> Floats:
    """Rows `[..., dim]` scaled to length 1. What has that length already stays bit for bit, or copies of it would differ."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    lengths = np.where(np.abs(lengths - 1.0) < UNIT_WITHIN, 1.0, np.maximum(lengths, 1e-12))
    return (rows / lengths).astype(np.float32)


def print_score(prints: Floats, query: Floats) -> float:
    """The cosine of `query [dim]` with the similarity-weighted centroid of its three nearest in `prints [n, dim]`."""
    cosines = prints @ query
    if len(cosines) > NEAREST:
        near = np.argpartition(cosines, -NEAREST)[-NEAREST:]
        prints, cosines = prints[near], cosines[near]
    weights = np.maximum(cosines, 0.0)
    centroid = (weights if weights.any() else np.ones_like(weights)) @ prints
    return float(centroid @ query / max(float(np.linalg.norm(centroid)), 1e-12))


def likeness(prints: Floats) -> float:
    """How alike prints `[n >= 2, dim]` are: the mean score of each against the others."""
    return float(np.mean([print_score(np.delete(prints, at, axis=0), prints[at]) for at in range(len(prints))]))
