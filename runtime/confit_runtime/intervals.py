"""Bounds on rates and shares: exact ones for independent events, and others for events that come in groups.

There are two methods for groups. Differences between two models on the same clips are resampled by whole groups.
Percentiles say little, however, if groups are few and nearly all clips are right: the voice that is misunderstood is
then in none of them. Shares, that is accuracy and the other metrics of probes (`confit_edge.probes.metrics`) and false
rejects, use the exact interval of an effective number of clips (Korn and Graubard 1998, `clustered_share_interval`).
Rates of false accepts use that of an effective number of events in the same way (`clustered_rate_upper`): of a few
recordings, percentiles of resampled rates are too low.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
MIN_GROUPS = 5  # recordings needed to see how much recordings differ; with fewer, `calibrate` and `evaluate` say so
# lowest correlation assumed among the clips of a group: with it, intervals of 5 to 40 groups held in at least 91 % of
# cases, mostly in 95 % or more, for true correlations of 0.05 to 0.3
MIN_CORRELATION = 0.05
_TINY = 1e-300


def poisson_upper(count: float, exposure: float, confidence: float = 0.95) -> float:
    """The one-sided exact upper bound of a rate of `count` events in `exposure` hours; infinite for 0 hours.

    Garwood 1936: the rate at which so few events would occur with a probability of 1 - `confidence`. Without events it
    is -ln(1 - confidence) / exposure, which is 3.0 / exposure at 95 %.
    """
    if exposure <= 0:
        return math.inf
    return _poisson_mean(count, 1 - confidence) / exposure


def poisson_interval(count: float, exposure: float, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided exact interval of a rate; each side misses the rate with a probability of (1 - `confidence`) / 2."""
    if exposure <= 0:
        return 0.0, math.inf
    one_sided = (1 + confidence) / 2
    high = poisson_upper(count, exposure, one_sided)
    if count == 0:
        return 0.0, high
    return _poisson_mean(count - 1, one_sided) / exposure, high


def share_interval(hits: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided exact interval of a share (Clopper and Pearson 1934); (0, 1) for no trials.

    Counts need not be whole numbers, such as effective counts: the same beta distributions apply.
    """
    if trials <= 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    high = 1.0 if hits >= trials else _beta_quantile(1 - tail, hits + 1, trials - hits)
    low = 0.0 if hits <= 0 else _beta_quantile(tail, hits, trials - hits + 1)
    return low, high


def clustered_rate_upper(
    counts: npt.NDArray[np.int64], hours: npt.NDArray[np.float64], confidence: float = 0.95
) -> float:
    """The one-sided upper bound of a rate whose events come in clusters: `counts` and `hours` of each recording.

    It is that of independent events without any event, and for a single recording: these do not show how much
    recordings differ. Otherwise it is higher (`_effective_events`).
    """
    return poisson_upper(*_effective_events(counts, hours, confidence), confidence)


def clustered_rate_interval(
    counts: npt.NDArray[np.int64], hours: npt.NDArray[np.float64], confidence: float = 0.95
) -> tuple[float, float]:
    """The two-sided interval of such a rate, which contains `poisson_interval`."""
    return poisson_interval(*_effective_events(counts, hours, (1 + confidence) / 2), confidence)


def grouped_share_interval(
    hits: Sequence[bool] | npt.NDArray[np.bool_],
    groups: Sequence[str] | npt.NDArray[np.int64],
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The two-sided interval of the share of `hits` among clips that come in groups (speakers, recordings).

    With one clip in each group it equals `share_interval`. A single group counts as one clip, because nothing is known
    of others.
    """
    right = np.asarray(hits, np.float64)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    sizes, clips = np.bincount(member), len(right)
    share, count = float(right.mean()), len(sizes)
    if count == clips:
        return share_interval(right.sum(), clips, confidence)
    if count == 1:
        return share_interval(round(share), 1, confidence)
    apart = np.bincount(member, weights=right) - share * sizes
    variance = count / (count - 1) * float((apart**2).sum()) / clips**2
    return clustered_share_interval(share, variance, sizes, confidence)


def clustered_share_interval(
    share: float, variance: float, sizes: npt.NDArray, confidence: float = 0.95, *, worth: float | None = None
) -> tuple[float, float]:
    """The two-sided interval of a share 0..1 (or a similar metric) of clips in groups.

    `variance` is that of the share over groups of `sizes [groups]` clips.

    It is the exact interval of an effective number of clips (Korn and Graubard 1998): the number of clips, divided by
    the design effect (how much more the share varies than with independent clips) and by the widening of Student's t
    for so few groups. A few misses say little about how much groups differ, so clips of a group count as correlated by
    at least `MIN_CORRELATION`. For a metric that weights some clips more than others, `worth` is the smaller number of
    clips that it is worth (`worth_of_classes`).
    """
    clips, count = float(sizes.sum()), len(sizes)
    worth = clips if worth is None else worth
    together = worth / clips * float(np.square(sizes, dtype=np.float64).sum()) / clips  # of them in a clip's group
    effect = 1 + MIN_CORRELATION * max(0.0, together - 1)
    if 0 < share < 1:
        effect = max(effect, worth * variance / (share * (1 - share)))
    quantile = (1 + confidence) / 2
    widening = _student_quantile(quantile, count - 1) / _student_quantile(quantile, max(clips, count + 1) - 1)
    effective = worth / effect / widening**2
    return share_interval(share * effective, effective, confidence)


def _effective_events(
    counts: npt.NDArray[np.int64], hours: npt.NDArray[np.float64], quantile: float
) -> tuple[float, float]:
    """The number of independent events, and their hours, that say as much about the rate as `counts` in `hours`.

    Both are divided by the design effect (how much more events vary between recordings than independent ones, never
    less) and by the widening of Student's t for so few recordings, as in `clustered_share_interval`. Where a few
    recordings hold most hours, only as many count as would hold that share each (Kish 1965).
    """
    events, total_hours = float(counts.sum()), float(hours.sum())
    if events == 0 or len(counts) == 1:
        return events, total_hours
    freedom = max(1.0, total_hours**2 / float((hours**2).sum()) - 1)
    excess = counts - events / total_hours * hours
    effect = max(1.0, (freedom + 1) / freedom * float((excess**2).sum()) / events)
    quantile = max(quantile, 0.75)  # at one half, both quantiles below are 0
    effect *= (_student_quantile(quantile, freedom) / NormalDist().inv_cdf(quantile)) ** 2
    return events / effect, total_hours / effect


@lru_cache(maxsize=8)
def resample_counts(count: int, draws: int, seed: int | tuple[int, ...] = 0) -> npt.NDArray[np.float64]:
    """How often each of `count` items is in each draw of as many, `[draws, count]`; the same at every call with a seed."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


@lru_cache(maxsize=4096)
def _poisson_mean(count: float, share: float) -> float:
    """The mean at which at most `count` events, a number above -1, occur with a probability of `share`.

    Cached: a curve asks for few counts, often.
    """
    top = count + 10.0 * math.sqrt(count + 1) - math.log(share) + 10.0
    return _falling_root(lambda mean: _poisson_cdf(count, mean), share, 0.0, top)


def _poisson_cdf(count: float, mean: float) -> float:
    """The probability of at most `count` events, by the series of the incomplete gamma function (DLMF 8.7.1).

    `count` need not be a whole number.
    """
    if mean <= 0:
        return 1.0
    terms = int(max(0.0, mean - count) + 12 * math.sqrt(mean)) + 80  # those left out are far below rounding
    first = math.exp((count + 1) * math.log(mean) - mean - math.lgamma(count + 2))
    more = np.cumprod(mean / (count + 1 + np.arange(1, terms)))
    return max(0.0, 1 - first * (1 + float(more.sum())))


def _beta_quantile(share: float, a: float, b: float) -> float:
    return _falling_root(lambda x: 1 - _beta_cdf(x, a, b), 1 - share, 0.0, 1.0)


@lru_cache(maxsize=64)
def _student_quantile(share: float, freedom: float) -> float:
    """The quantile of Student's t with `freedom` degrees of freedom, for a `share` above one half."""

    def above(t: float) -> float:
        return 0.5 * _beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5)

    return _falling_root(above, 1 - share, 0.0, 1e6)


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz's method; DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - _beta_cdf(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    value, up, down = 1.0, 1.0, 0.0
    for step in range(1000):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = half * (b - half) * x / ((a + step - 1) * (a + step))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + step - 1) * (a + step))
        down = 1 / ((1 + term * down) or _TINY)
        up = (1 + term / up) or _TINY
        value *= up * down
        if abs(up * down - 1) < 1e-14:
            break
    return front * (value - 1) / a


def _falling_root(function: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Where a falling function takes a value, to 1e-12 of the range."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > value else (low, middle)
    return (low + high) / 2
