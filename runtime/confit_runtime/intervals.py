"""Bounds on rates and shares: exact ones for independent events, and ones that resample whole recordings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

DRAWS = 2000
FEWEST_GROUPS = 5  # that can be resampled: of fewer the draws say next to nothing


def poisson_upper(count: int, exposure: float, confidence: float = 0.95) -> float:
    """The one-sided exact upper bound of a rate: `count` events in `exposure` hours give an infinite rate for 0 hours.

    Garwood 1936: the rate at which so few events would come with a probability of 1 - `confidence`. With no event it is
    -ln(1 - confidence) / exposure, which is 3.0 / exposure at 95 %.
    """
    if exposure <= 0:
        return math.inf
    top = count + 10.0 * math.sqrt(count + 1) - math.log1p(-confidence) + 10.0
    return _falling_root(lambda mean: _poisson_cdf(count, mean), 1 - confidence, 0.0, top) / exposure


def poisson_interval(count: int, exposure: float, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided exact interval of a rate, each side missing it with (1 - `confidence`) / 2."""
    if exposure <= 0:
        return 0.0, math.inf
    one_sided = (1 + confidence) / 2
    high = poisson_upper(count, exposure, one_sided)
    if count == 0:
        return 0.0, high
    low = _falling_root(lambda mean: _poisson_cdf(count - 1, mean), one_sided, 0.0, float(count)) / exposure
    return low, high


def share_interval(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided exact interval of a share (Clopper and Pearson 1934); (0, 1) for no trials."""
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    high = 1.0 if hits == trials else _falling_root(lambda share: _binomial_cdf(hits, trials, share), tail, 0.0, 1.0)
    low = 0.0 if hits == 0 else _falling_root(lambda share: _binomial_cdf(hits - 1, trials, share), 1 - tail, 0.0, 1.0)
    return low, high


def resampled_upper(
    counts: npt.NDArray[np.int64], hours: npt.NDArray[np.float64], confidence: float = 0.95, draws: int = DRAWS
) -> float:
    """The one-sided upper bound of a rate whose events come in clusters: `counts` and `hours` of each recording.

    The quantile of the rate over draws of as many recordings, with replacement. It says nothing where there is no event.
    """
    return float(np.quantile(_resampled(counts, hours, draws), confidence)) if counts.any() else 0.0


def resampled_interval(
    counts: npt.NDArray, amounts: npt.NDArray[np.float64], confidence: float = 0.95, draws: int = DRAWS
) -> tuple[float, float]:
    """The two-sided percentile interval of sum(counts) / sum(amounts), recordings resampled."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled(counts, amounts, draws), [tail, 1 - tail])
    return float(low), float(high)


def grouped_share_interval(
    hits: Sequence[bool], groups: Sequence[str], confidence: float = 0.95
) -> tuple[float, float]:
    """The two-sided interval of the share of `hits`, the groups (speakers, recordings) resampled.

    Where there are fewer than five groups, or all clips agree, it is the exact one of so many groups or clips.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) == len(hits):
        return share_interval(sum(hits), len(hits), confidence)
    if len(names) < FEWEST_GROUPS or len(set(hits)) == 1:
        share = sum(hits) / len(hits)
        return share_interval(round(share * len(names)), len(names), confidence)
    by_group = np.bincount(member, weights=np.asarray(hits, np.float64))
    return resampled_interval(by_group, np.bincount(member).astype(np.float64), confidence)


def _resampled(counts: npt.NDArray, amounts: npt.NDArray, draws: int) -> npt.NDArray[np.float64]:
    drawn = _drawn(len(counts), draws)
    rates: npt.NDArray[np.float64] = (drawn @ counts) / np.maximum(drawn @ amounts, 1e-12)
    return rates


@lru_cache(maxsize=4)
def _drawn(count: int, draws: int) -> npt.NDArray[np.float64]:
    """How often each of `count` things is in each draw of as many, `[draws, count]`: the same at every call."""
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _poisson_cdf(count: int, mean: float) -> float:
    """The probability of at most `count` events: the sum of the terms from the last down to where they are nothing."""
    terms = min(count, 80 + int(20 * math.sqrt(count)))
    if mean <= 0 or (terms < count and mean < count - terms / 2):  # ten standard deviations away
        return 1.0
    last = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))
    below = np.cumprod(np.arange(count, count - terms, -1) / mean)
    return min(1.0, last * (1.0 + float(below.sum())))


def _binomial_cdf(hits: int, trials: int, share: float) -> float:
    if share <= 0:
        return 1.0
    if share >= 1:
        return float(hits >= trials)
    whole = math.lgamma(trials + 1)
    logs = [
        whole
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(share)
        + (trials - k) * math.log1p(-share)
        for k in range(hits + 1)
    ]
    return math.exp(_log_sum(logs))


def _log_sum(logs: list[float]) -> float:
    largest = max(logs)
    return largest + math.log(sum(math.exp(value - largest) for value in logs))


def _falling_root(function: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Where a falling function takes a value, to 1e-12 of the range."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > value else (low, middle)
    return (low + high) / 2
