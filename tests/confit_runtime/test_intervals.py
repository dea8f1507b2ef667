"""Bounds against the distributions they come from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from confit_runtime.intervals import (
    grouped_share_interval,
    poisson_interval,
    poisson_upper,
    resampled_interval,
    resampled_upper,
    share_interval,
)

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("count", [0, 1, 5, 60, 700])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_rates_are_garwoods(count: int, confidence: float) -> None:
    upper = stats.chi2.ppf(confidence, 2 * count + 2) / 2
    assert poisson_upper(count, 2.5, confidence) == pytest.approx(upper / 2.5, rel=1e-9)
    tail = (1 - confidence) / 2
    low, high = poisson_interval(count, 1.0, confidence)
    assert low == pytest.approx(stats.chi2.ppf(tail, 2 * count) / 2 if count else 0.0, rel=1e-9)
    assert high == pytest.approx(stats.chi2.ppf(1 - tail, 2 * count + 2) / 2, rel=1e-9)


def test_no_hours_promise_nothing() -> None:
    assert poisson_upper(0, 0.0) == math.inf
    assert poisson_interval(0, 0.0) == (0.0, math.inf)


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (3, 10), (400, 500)])
def test_shares_are_clopper_and_pearsons(hits: int, trials: int) -> None:
    exact = stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert share_interval(hits, trials) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert share_interval(0, 0) == (0.0, 1.0)


def test_events_in_one_recording_are_less_sure_than_as_many_in_all() -> None:
    hours = np.ones(20)
    together, apart = np.array([10] + [0] * 19), np.array([1, 0] * 10)
    assert resampled_upper(together, hours) > 1.4 * resampled_upper(apart, hours)
    assert resampled_upper(np.zeros(20, int), hours) == 0.0
    low, high = resampled_interval(apart, hours)
    assert low < 0.5 < high


def test_a_share_of_groups_is_as_sure_as_its_groups_are_many() -> None:
    hits = [True, True, False, False] * 6
    alone, by_six, by_two = (
        grouped_share_interval(hits, groups)
        for groups in (
            [str(at) for at in range(24)],
            ["abcdef"[at // 4] for at in range(24)],
            ["ab"[at // 12] for at in range(24)],
        )
    )
    assert alone == share_interval(12, 24)
    assert by_six == (0.5, 0.5)  # every group alike: resampling them changes nothing
    assert by_two == share_interval(1, 2)
    assert grouped_share_interval([True] * 24, ["abcdef"[at // 4] for at in range(24)]) == share_interval(6, 6)
