"""Who an embedding belongs to: the nearest prints, open-set thresholds adjusted by a name's own prints, and vetoes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats, as_floats
from confit_runtime.contract import Contract
from confit_runtime.errors import UsageError
from confit_runtime.names import format_known_names, normalise
from confit_runtime.search import ExactSearch, Search

NEAREST_PRINTS = 3  # prints of a name, and sounds of the cohort, that make up a score
NEIGHBOUR_PRINTS = 64  # nearest prints overall; the names that own them are scored
DEFAULT_THRESHOLD, DEFAULT_MARGIN = 0.6, 0.03
PRIOR_PRINTS = 4.5  # number of prints of a name that weigh as much as what the model says of names in general
MIN_SHIFT, MAX_SHIFT = -0.25, 0.05  # of the threshold, by a name's own prints
SHIFT_ROOM = 0.2  # distance from the threshold to 1 that these limits are for; with less they shrink in proportion
UNIT_TOLERANCE = 1e-6  # a length this close to 1 differs from it by rounding only
ROUNDING_TOLERANCE = 1e-6  # of a cosine: refuse a clip that is both a print and a negative one, whatever its last digit
SAME_SOUND = 0.99  # cosine with a negative print from which a sound is that very one again
PRINT_EXPONENT = 0.25  # of 1 - cosine: n prints then cover as much of a space of 8 dimensions (2 / 8) as three do
NEWEST_PRINTS = 64  # of a name, the newest, from which the similarity of its prints is computed

Reason = Literal["nobody", "too low", "negative", "stranger", "other", "too close"]


@dataclass(frozen=True)
class Match:
    """The answer to "who is this?". `name` is None if no enrolled name is near enough, or two are equally near.

    `reason` says which rule made the answer unknown; it is None if `name` is not. The rules, in the order in which
    they apply:

    - "nobody": nobody is enrolled.
    - "too low": the score is below the threshold.
    - "negative": the name's negative prints are nearer.
    - "stranger": a sound of the cohort is nearer.
    - "other": another name is nearer (only if one name was asked for).
    - "too close": two names are too close to each other.

    The other fields are set even if the answer is unknown. `nearest` is the name with the best score. `score` is its
    similarity, -1..1 (0 in an empty gallery), or that of the name that was asked for; `threshold` is what it needed.
    `runner_up` is the next name, and `margin` the difference between the two scores, None without a runner-up.
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
    """The similarity levels at which a match counts, from a model's calibration.

    `threshold` is the similarity that one stranger in a hundred reaches, or a guess, meant to be higher, where too few trials
    were made to tell. `genuine` is how similar the prints of one name were in that measurement (each against the others);
    None if `threshold` was given by hand. A stream asks many times a second, so each of its rows needs `stream_threshold`
    as well; None: it needs no more than a clip. `per_name` holds thresholds given by hand for single names. `by_hand` says
    whether `threshold` was given by hand, for all names: then levels that `calibrate` stored in the gallery do not count.
    """

    threshold: float = DEFAULT_THRESHOLD
    margin: float = DEFAULT_MARGIN
    genuine: float | None = None
    stream_threshold: float | None = None
    per_name: Mapping[str, float] = field(default_factory=dict)
    by_hand: bool = False

    @property
    def veto_threshold(self) -> float:
        """The similarity that the negative prints of a label need at least.

        It is that of a match, but `DEFAULT_THRESHOLD` is enough: a match may need almost the same sound, in a model of few
        classes.
        """
        return min(self.threshold, DEFAULT_THRESHOLD)

    @classmethod
    def of(
        cls, contract: Contract, threshold: float | None, margin: float | None, own: Mapping[str, float] | None = None
    ) -> Levels:
        """The model's levels, replaced by those given by hand.

        A model of sounds for which no `stream_threshold` was measured gets one halfway from its threshold to 1. Raises
        UsageError for a threshold or a margin outside its range.
        """
        for given in [*([] if threshold is None else [threshold]), *(own or {}).values()]:
            if not (isinstance(given, Real) and -1.0 <= given <= 1.0):
                raise UsageError(f"the threshold of a name must be a similarity from -1 to 1, not {given!r}")
        if margin is not None and not (isinstance(margin, Real) and 0.0 <= margin <= 2.0):
            raise UsageError(f"the margin between two similarities must be from 0 to 2, not {margin!r}")
        found = contract.calibration.get("enroll", {})
        levels = {key: found[key] for key in ("threshold", "margin", "genuine", "stream_threshold") if key in found}
        if found.get("kind", "sound") == "sound":
            levels.setdefault("stream_threshold", (1.0 + levels.get("threshold", DEFAULT_THRESHOLD)) / 2.0)
        if threshold is not None:
            levels = {**levels, "threshold": threshold, "genuine": None, "stream_threshold": None, "by_hand": True}
        return cls(**{**levels, **({} if margin is None else {"margin": margin})}, per_name=own or {})


class Matcher:
    """The prints of a gallery at one moment: immutable, safe to share between threads.

    A name's score is the cosine between the embedding and the centroid of the name's three nearest prints, weighted by
    their similarity. A name is scored if it owns one of the 64 nearest prints (or of more, if those all belong to one
    name). The answer is unknown if the best score is below its threshold, within `margin` of the next name's, no
    better than the mean cosine of the three nearest sounds of the `cohort`, or no better than the similarity to the
    name's negative prints (`negatives_win`).

    A name's threshold is the model's, shifted by how similar the name's own prints are (each against the others)
    compared with those the model was calibrated on. The shift is shrunk: `p` prints weigh `p / (p + 4.5)`. Prints that
    agree less, for example from a far microphone, need less. Where the threshold is so near to 1 that a small shift is a
    large one, the limits of the shift are narrower: no name can need more than 1. (Adaptive normalisation by the cohort,
    AS-norm, was tried instead and was worse: docs/enrollment.md.)
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
        calibrated: Mapping[str, float] | None = None,
    ) -> None:
        """`prints [n, dim]` belong to `names[owners[n]]`, `owners` ascending; `cohort [m, dim]` may be empty.

        The negative prints `vetoes [v, dim]` belong to `names[vetoed[v]]`, also ascending. A name may have negative
        prints only. `calibrated` holds the thresholds in streams of the names that were calibrated.
        """
        self.names, self.levels = tuple(names), levels
        self._calibrated = {} if levels.by_hand else calibrated or {}
        self._prints, self._cohort = np.ascontiguousarray(prints), l2_normalise(cohort)
        self._owners = np.asarray(owners, np.int64)
        self._search = search or ExactSearch(self._prints)
        indices = np.arange(len(self.names) + 1)
        self._starts = np.searchsorted(self._owners, indices)
        self._enrolled = int(np.count_nonzero(np.diff(self._starts)))
        self._vetoes = np.zeros((0, prints.shape[1]), np.float32) if vetoes is None else np.ascontiguousarray(vetoes)
        self._veto_starts = np.searchsorted(np.asarray(vetoed, np.int64), indices)
        self._shifts: dict[int, float] = {}  # of thresholds, computed when a name is asked for

    @property
    def enrolled(self) -> list[str]:
        """The names that can be matched: those with prints that are not negative."""
        return [self.names[index] for index in np.flatnonzero(np.diff(self._starts))]

    @property
    def search(self) -> Search:
        """How the prints are searched."""
        return self._search

    @property
    def has_vetoes(self) -> bool:
        """Whether any name has negative prints."""
        return len(self._vetoes) > 0

    def match(self, embedding: npt.ArrayLike, *, in_stream: bool = False) -> Match:
        """Return the name that an embedding `[dim]` matches: of a clip or, with `in_stream`, of a row of a stream.

        The two differ in the threshold of a name. Raises UsageError for another shape, NaN or infinity.
        """
        query = self._query(embedding)
        ranking = self._ranking(query)
        if not ranking:
            return Match(None, "nobody", None, 0.0, None, None, None, self.levels.threshold)
        second = ranking[1] if len(ranking) > 1 else None
        return self._answer(query, ranking[0], second, self.levels.margin, in_stream=in_stream)

    def stream_threshold(self, name: str, *, calibrated: bool = True) -> float:
        """The similarity that an enrolled name needs in a stream.

        It is the one given by hand, else the calibrated one (unless that is not wanted), else the model's, which is at
        least that of a clip. The model's is for a few prints: the more a name has, the more sounds lie near one of them.
        """
        index = self.names.index(name)
        by_hand, of_clips = name in self.levels.per_name, self._threshold(index)
        if calibrated and not by_hand and name in self._calibrated:
            return self._calibrated[name]
        of_model = self.levels.stream_threshold
        if by_hand or of_model is None:
            return of_clips
        prints = min(max(len(self._own_prints(index)), NEAREST_PRINTS), NEWEST_PRINTS)
        return max(of_clips, 1.0 - (1.0 - of_model) * (prints / NEAREST_PRINTS) ** -PRINT_EXPONENT)

    def verify(self, name: str, embedding: npt.ArrayLike) -> Match:
        """Whether an embedding `[dim]` is `name`: the answer's `name` is that or None, `score` is that name's.

        No other enrolled name may be nearer, but no margin is required. Raises UsageError if `name` is not enrolled,
        and for what `match` refuses.
        """
        query, name = self._query(embedding), normalise(name)
        if name not in (enrolled := self.enrolled):
            raise UsageError(
                f"nobody is enrolled as {name!r} (enrolled: {format_known_names(name, enrolled) or 'nobody'})"
            )
        claimed = self.names.index(name)
        others = [entry for entry in self._ranking(query) if entry[1] != claimed]
        return self._answer(query, (self._score(claimed, query), claimed), others[0] if others else None, 0.0)

    def vetoes(self, label: str, embedding: npt.ArrayLike) -> bool:
        """Whether an embedding `[dim]` of a sound detected as `label` matches the negative prints of that label.

        It does if it is as near to them as its score would be if the cohort, which holds true sounds of each label, were
        the label's own prints, and at least `Levels.veto_threshold`. Raises UsageError for what `match` refuses.
        """
        query, label = self._query(embedding), normalise(label)
        if label not in self.names:
            return False
        score = max(self.levels.veto_threshold, print_score(self._cohort, query))
        return negatives_win(self._negatives(self.names.index(label)), query, score)

    def _query(self, embedding: npt.ArrayLike) -> Floats:
        query = as_floats(embedding, f"an embedding [{self._prints.shape[1]}]")
        if query.shape != self._prints.shape[1:]:
            raise UsageError(f"an embedding must have the shape [{self._prints.shape[1]}], got {list(query.shape)}")
        if not np.isfinite(query).all():
            raise UsageError("the embedding to match contains NaN or infinite values: check its model and its sound")
        return l2_normalise(query)

    def _answer(
        self,
        query: Floats,
        best: tuple[float, int],
        second: tuple[float, int] | None,
        least_margin: float,
        *,
        in_stream: bool = False,
    ) -> Match:
        score, index = best
        name = self.names[index]
        threshold = self.stream_threshold(name) if in_stream else self._threshold(index)
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
        """The rule that makes the answer unknown, if any."""
        score, index = best
        if not score >= threshold:
            return "too low"
        if negatives_win(self._negatives(index), query, score):
            return "negative"
        if self._nearest_cohort(query) >= score:
            return "stranger"
        if margin is not None and margin < 0.0:
            return "other"
        return "too close" if margin is not None and margin < least_margin else None

    def _ranking(self, query: Floats) -> list[tuple[float, int]]:
        """The two best scores, with the indices of their names."""
        ranking = sorted(((self._score(index, query), -index) for index in self._candidate_names(query)), reverse=True)
        return [(score, -index) for score, index in ranking[:2]]

    def _candidate_names(self, query: Floats) -> list[int]:
        """The indices of the names that own the nearest prints.

        At least two, if there are two, because the margin needs the next name.
        """
        count = NEIGHBOUR_PRINTS
        while True:
            owners = np.unique(self._owners[self._search.nearest(query, count)])
            if len(owners) >= min(2, self._enrolled) or count >= len(self._prints):
                return [int(index) for index in owners]
            count *= 4

    def _score(self, place: int, query: Floats) -> float:
        return print_score(self._own_prints(place), query)

    def _threshold(self, place: int) -> float:
        if self.names[place] in self.levels.per_name:
            return self.levels.per_name[self.names[place]]
        if place not in self._shifts:
            self._shifts[place] = self._shift(self._own_prints(place)[-NEWEST_PRINTS:])
        return self.levels.threshold + self._shifts[place]

    def _shift(self, prints: Floats) -> float:
        if self.levels.genuine is None or len(prints) < 2:
            return 0.0
        share = len(prints) / (len(prints) + PRIOR_PRINTS)
        room = min(1.0, max(0.0, 1.0 - self.levels.threshold) / SHIFT_ROOM)
        return min(max(share * (mutual_similarity(prints) - self.levels.genuine), room * MIN_SHIFT), room * MAX_SHIFT)

    def _nearest_cohort(self, query: Floats) -> float:
        nearest = np.sort(self._cohort @ query)[-NEAREST_PRINTS:]
        return float(nearest.mean()) if len(nearest) else -math.inf

    def _own_prints(self, place: int) -> Floats:
        return self._prints[self._starts[place] : self._starts[place + 1]]

    def _negatives(self, place: int) -> Floats:
        return self._vetoes[self._veto_starts[place] : self._veto_starts[place + 1]]


def refuses_own_sounds(calibration: Mapping[str, float]) -> bool:
    """Whether most sounds of any name are refused, by the calibration of a model for enrollment.

    So it is if one stranger in a hundred is more like the prints of a name than these are like each other.
    """
    return "genuine" in calibration and calibration["genuine"] <= calibration["threshold"]


def l2_normalise(rows: Floats) -> Floats:
    """Rows `[..., dim]` scaled to length 1. Rows that already have that length stay bit for bit, so that copies stay equal."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    lengths = np.where(np.abs(lengths - 1.0) < UNIT_TOLERANCE, 1.0, np.maximum(lengths, 1e-12))
    return (rows / lengths).astype(np.float32)


def print_score(prints: Floats, query: Floats) -> float:
    """The cosine of `query [dim]` with the similarity-weighted centroid of its three nearest in `prints [n, dim]`."""
    cosines = prints @ query
    if len(cosines) > NEAREST_PRINTS:
        near = np.argpartition(cosines, -NEAREST_PRINTS)[-NEAREST_PRINTS:]
        prints, cosines = prints[near], cosines[near]
    weights = np.maximum(cosines, 0.0)
    centroid = (weights if weights.any() else np.ones_like(weights)) @ prints
    return float(centroid @ query / max(float(np.linalg.norm(centroid)), 1e-12))


def negatives_win(negatives: Floats, query: Floats, score: float) -> bool:
    """Whether `query [dim]` is as near to negative prints `[n, dim]` as `score`, its similarity to what they are not.

    The mean cosine of the nearest ones decides: the square root of n of them, rounded up, as is usual for nearest
    neighbours. (The highest cosine alone grows with every print that is added, until nothing is ever nearer to the
    name.) A single one is enough if the query is that very sound again.
    """
    if not len(negatives):
        return False
    cosines = negatives @ query
    nearest = np.sort(cosines)[-math.ceil(math.sqrt(len(cosines))) :]
    # the query of a clip with several sounds is their mean, and each of its prints one of them: also compare as for a
    # name
    same = max(float(cosines.max()), print_score(negatives, query))
    return max(float(nearest.mean()), same if same >= SAME_SOUND else -math.inf) >= score - ROUNDING_TOLERANCE


def mutual_similarity(prints: Floats) -> float:
    """How similar prints `[n >= 2, dim]` are: the mean score of each against the others."""
    return float(np.mean([print_score(np.delete(prints, at, axis=0), prints[at]) for at in range(len(prints))]))
