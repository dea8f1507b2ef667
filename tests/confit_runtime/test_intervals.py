"""Bounds against the distributions they come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confit_runtime import intervals
from confit_runtime.intervals import (
    clustered_rate_interval,
    clustered_rate_upper,
    grouped_share_interval,
    poisson_interval,
    poisson_upper,
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


@pytest.mark.parametrize("count", [0.0, 0.3, 7.7, 1e5])
def test_a_rate_of_an_effective_number_of_events_is_that_of_the_gamma_distribution(count: float) -> None:
    low, high = poisson_interval(count, 2.0)
    assert high == pytest.approx(stats.gamma.ppf(0.975, count + 1) / 2, rel=1e-9)
    assert low == pytest.approx(stats.gamma.ppf(0.025, count) / 2 if count else 0.0, rel=1e-9)


def test_events_in_one_recording_are_less_sure_than_as_many_in_all() -> None:
    hours = np.ones(20)
    together, apart = np.array([10] + [0] * 19), np.array([1, 0] * 10)
    assert clustered_rate_upper(together, hours) > 2 * clustered_rate_upper(apart, hours)
    assert clustered_rate_upper(apart, hours) < 1.05 * poisson_upper(10, 20.0)
    low, high = clustered_rate_interval(together, hours)
    exact = poisson_interval(10, 20.0)
    assert low < exact[0] < exact[1] < high


def test_what_shows_no_differences_between_recordings_is_exact() -> None:
    """No event at all, however few the recordings, and a single recording, however many its events."""
    assert clustered_rate_upper(np.zeros(2, int), np.array([1.0, 2.0])) == poisson_upper(0, 3.0)
    assert clustered_rate_upper(np.array([8]), np.array([3.0])) == poisson_upper(8, 3.0)
    assert clustered_rate_interval(np.array([8]), np.array([3.0])) == poisson_interval(8, 3.0)
    assert clustered_rate_interval(np.zeros(0, int), np.zeros(0)) == (0.0, math.inf)


def test_recordings_count_as_far_as_they_hold_the_hours() -> None:
    """One recording of nearly all hours shows no more of differences than two do."""
    counts, two = np.array([20, 0, 0, 0]), np.array([10, 10])
    one_long = clustered_rate_upper(counts, np.array([20.0, 0.01, 0.01, 0.01]))
    assert one_long == pytest.approx(clustered_rate_upper(two, np.array([10.0, 10.0])), rel=0.01)
    assert one_long > 2 * clustered_rate_upper(np.full(4, 5), np.full(4, 5.0))


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.999])
def test_a_clustered_bound_is_never_below_the_exact_one(confidence: float) -> None:
    rng = np.random.default_rng(0)
    for recordings in (2, 3, 12, 60):
        counts, hours = rng.poisson(rng.gamma(0.5, 4.0, recordings)), rng.uniform(0.1, 2.0, recordings)
        exact = poisson_interval(int(counts.sum()), float(hours.sum()), confidence)
        low, high = clustered_rate_interval(counts, hours, confidence)
        assert low <= exact[0] < exact[1] <= high
        assert clustered_rate_upper(counts, hours, confidence) >= poisson_upper(
            int(counts.sum()), float(hours.sum()), confidence
        )


@pytest.mark.parametrize(("recordings", "least"), [(2, 0.85), (3, 0.9), (5, 0.85), (10, 0.89), (20, 0.9)])
def test_rates_of_few_clustered_recordings_lie_within_their_intervals(recordings: int, least: float) -> None:
    """20 events an hour in 1 hour, whose share in each recording varies by 140 %; Poisson intervals hold in half the cases."""
    rng = np.random.default_rng(recordings)
    hours = np.full(recordings, 1 / recordings)
    held = 0
    for _ in range(300):
        low, high = clustered_rate_interval(rng.poisson(20 * hours * rng.gamma(0.5, 2.0, recordings)), hours)
        held += low <= 20 <= high
    assert held >= 300 * least


def test_independent_events_are_not_made_needlessly_unsure() -> None:
    """Of ten recordings that do not differ, the bound is a few per cent above the exact one."""
    rng = np.random.default_rng(0)
    hours = np.ones(10)
    counts = [rng.poisson(3.0, 10) for _ in range(200)]
    ratios = [clustered_rate_upper(found, hours) / poisson_upper(int(found.sum()), 10.0) for found in counts]
    assert 1.0 < np.median(ratios) < 1.1


@pytest.mark.parametrize("misses", [0, 1, 2, 30])
def test_one_miss_more_never_makes_a_share_much_surer(misses: int) -> None:
    """Resampled, a miss in one of five groups said more than none at all: an interval 87 times as narrow."""
    groups = [str(at // 100) for at in range(500)]
    now, more = (grouped_share_interval([True] * n + [False] * (500 - n), groups) for n in (misses, misses + 1))
    assert now[0] <= more[0] + 1e-12
    assert now[1] < more[1]


def test_a_share_of_groups_is_as_sure_as_its_groups_are_many() -> None:
    hits = [True, True, False, False] * 6
    groupings = (
        [str(at) for at in range(24)],
        ["abcdef"[at // 4] for at in range(24)],
        ["ab"[at // 12] for at in range(24)],
    )
    alone, by_six, by_two = (grouped_share_interval(hits, groups) for groups in groupings)
    assert alone == pytest.approx(share_interval(12, 24))
    assert by_two[0] < by_six[0] < 0.5 < by_six[1] < by_two[1]
    assert grouped_share_interval(hits, ["a"] * 24) == share_interval(0, 1)
    unlike = [at // 4 < 3 for at in range(24)]  # groups that are wholly right or wholly wrong are clips of their own
    low, high = grouped_share_interval(unlike, groupings[1])
    assert low <= share_interval(3, 6)[0]
    assert high >= share_interval(3, 6)[1]


def by_the_book(right: list[int], sizes: list[int]) -> tuple[float, float]:
    """Korn and Graubard's interval of so many clips `right` in groups of `sizes`, which are correlated by 0.05 at the least."""
    clips, groups = sum(sizes), len(sizes)
    share = sum(right) / clips
    apart = sum((hits - share * size) ** 2 for hits, size in zip(right, sizes, strict=True))
    variance = groups / (groups - 1) * apart / clips**2
    effect = max(variance / (share * (1 - share) / clips), 1 + 0.05 * (sum(size * size for size in sizes) / clips - 1))
    widening = stats.t.ppf(0.975, groups - 1) / stats.t.ppf(0.975, clips - 1)
    effective = clips / effect / widening**2
    hits, misses = share * effective, (1 - share) * effective
    return stats.beta.ppf(0.025, hits, misses + 1), stats.beta.ppf(0.975, hits + 1, misses)


@pytest.mark.parametrize(
    ("right", "sizes"),
    [([4, 4, 4], [8, 8, 8]), ([1, 0, 8, 2, 3], [1, 3, 8, 2, 10]), ([9, 2], [10, 40]), ([5, 1, 1, 1], [6, 1, 1, 2])],
)
def test_a_share_of_groups_is_by_the_book(right: list[int], sizes: list[int]) -> None:
    hits = [at < own for own, size in zip(right, sizes, strict=True) for at in range(size)]
    found = grouped_share_interval(hits, np.repeat(np.arange(len(sizes)), sizes))
    assert found == pytest.approx(by_the_book(right, sizes), abs=1e-9)


def test_six_groups_of_eight_that_are_alike_are_worth_fewer_clips() -> None:
    hits = ([True] * 4 + [False] * 4) * 6
    assert grouped_share_interval(hits, np.repeat(np.arange(6), 8)) == pytest.approx((0.2811, 0.7189), abs=1e-4)


@pytest.mark.parametrize(("share", "alike"), [(0.05, 0.05), (0.05, 0.2), (0.3, 0.2)])
@pytest.mark.parametrize(("groups", "clips"), [(5, 20), (10, 20), (18, 29)])
def test_intervals_have_their_nominal_coverage(share: float, alike: float, groups: int, clips: int) -> None:
    """And is no wider for it than a mean of independent groups would be, but for a half."""
    rng, worlds, inside, width = np.random.default_rng(0), 200, 0, 0.0
    names = [str(at // clips) for at in range(groups * clips)]
    spread = (1 - alike) / alike
    for _ in range(worlds):
        own = rng.beta(share * spread, (1 - share) * spread, groups)
        hits = rng.random(groups * clips) < np.repeat(own, clips)
        low, high = grouped_share_interval(hits.tolist(), names)
        inside += low <= share <= high
        width += (high - low) / worlds
    assert inside / worlds > 0.9
    error = math.sqrt(share * (1 - share) * (1 + (clips - 1) * alike) / (groups * clips))
    assert width < 1.5 * 2 * stats.t.ppf(0.975, groups - 1) * error


@pytest.mark.parametrize("freedom", [1, 2, 4, 17, 500])
def test_quantiles_are_students(freedom: int) -> None:
    for share in (0.8, 0.975, 0.9995):
        assert intervals._student_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-8)


@given(st.floats(0.001, 0.999), st.floats(0.01, 400), st.floats(0.01, 400))
def test_the_incomplete_beta_function_is_scipys(x: float, a: float, b: float) -> None:
    assert intervals._beta_cdf(x, a, b) == pytest.approx(stats.beta.cdf(x, a, b), abs=1e-11)
