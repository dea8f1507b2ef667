"""Metrics and their intervals against scikit-learn and plain loops; verification by pairs."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    roc_curve,
)

from confit_edge.data.corpus import Clips
from confit_edge.probes.judge import judge
from confit_edge.probes.metrics import (
    Resamples,
    accuracy,
    average_precisions,
    correct,
    equal_error_rate,
    equal_error_rates,
    interval,
    mean_average_precision,
    paired_difference,
    precision_draws,
    precision_gains,
    ranked,
    resampled_share_interval,
    shares,
    worth_of_classes,
)
from confit_edge.probes.verification import CLIPS, Trials, all_pairs, read_trials, verify
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.intervals import clustered_share_interval, grouped_share_interval, share_interval

Scores = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int8]
LETTERS = list("abcde")


def some_scores(clips: int, seed: int, *, several: bool = False) -> tuple[Scores, Targets]:
    """Scores that are right more often than not, with ties, of five classes of which the last has no clips."""
    rng = np.random.default_rng(seed)
    one, any_of = np.eye(5)[rng.integers(4, size=clips)], rng.random((clips, 5)) < 0.3
    targets = (any_of if several else one).astype(np.int8)
    targets[:, 4] = 0
    return (0.7 * targets * rng.random((clips, 1)) + rng.random((clips, 5))).round(1).astype(np.float32), targets


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), clips=st.integers(8, 60))
def test_of_one_label_metrics_are_scikit_learns(seed: int, clips: int) -> None:
    scores, targets = some_scores(clips, seed)
    truth, found = targets.argmax(axis=1), scores.argmax(axis=1)
    present = np.unique(truth)
    judged = judge(scores, targets, LETTERS * (clips // 5) + LETTERS[: clips % 5], LETTERS, multi_label=False)
    values = {name: estimate.value for name, estimate in judged.metrics.items()}
    assert values["accuracy"] == pytest.approx((truth == found).mean())
    recalls = [(found[truth == label] == label).mean() for label in present]
    assert values["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert values["macro_f1"] == pytest.approx(f1_score(truth, found, labels=present, average="macro", zero_division=0))
    if set(found) <= set(truth):
        assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, found))
    precision, recall, f1, support = precision_recall_fscore_support(truth, found, labels=present, zero_division=0)
    for row, *expected in zip(judged.per_class, precision, recall, f1, support, strict=True):
        assert [row["precision"], row["recall"], row["f1"], row["clips"]] == pytest.approx(expected)
    for estimate in judged.metrics.values():
        assert estimate.low <= estimate.value + 0.05
        assert estimate.value - 0.05 <= estimate.high


@settings(max_examples=15)
@given(seed=st.integers(0, 2**16), clips=st.integers(12, 60))
def test_of_several_labels_metrics_are_scikit_learns(seed: int, clips: int) -> None:
    scores, targets = some_scores(clips, seed, several=True)
    targets[0, :4] = 1
    judged = judge(scores, targets, [str(clip % 7) for clip in range(clips)], LETTERS, multi_label=True)
    precisions = [average_precision_score(targets[:, label], scores[:, label]) for label in range(4)]
    assert [row["average_precision"] for row in judged.per_class] == pytest.approx(precisions)
    assert judged.metrics["map"].value == pytest.approx(np.mean(precisions))
    assert mean_average_precision(scores, targets) == pytest.approx(np.mean(precisions))
    decided = scores >= 0.5
    for average in ("macro", "micro"):
        labels = None if average == "micro" else [0, 1, 2, 3]
        expected = f1_score(targets, decided, labels=labels, average=average, zero_division=0)
        assert judged.metrics[f"{average}_f1"].value == pytest.approx(expected)


def test_of_several_labels_of_a_clip_each_is_a_right_answer() -> None:
    targets = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]], np.int8)
    scores = np.array([[0.1, 0.2, 0.9], [0.5, 0.6, 0.1], [0.9, 0.8, 0.7], [0.9, 0.1, 0.1]], np.float32)
    assert correct(scores, targets).tolist() == [True, True, False, False]


def test_a_precision_gains_what_a_little_more_weight_of_a_clip_brings() -> None:
    scores, targets = some_scores(30, 0, several=True)
    scores = scores.round(1)  # some are alike
    gains = precision_gains(scores, targets)
    more = 1 + 1e-6 * np.eye(30)
    np.testing.assert_allclose(
        gains, (average_precisions(scores, targets, more) - average_precisions(scores, targets)) / 1e-6, atol=1e-6
    )
    np.testing.assert_allclose(gains[:, targets.any(axis=0)].sum(axis=0), 0, atol=1e-9)


def test_the_interval_of_map_holds_what_many_clips_have() -> None:
    """A clip that is drawn twice lifts its own precision: the draws as they are hold it in one case of five."""
    rng, held = np.random.default_rng(0), 0

    def drawn(clips: int) -> tuple[Scores, Targets]:
        targets = (rng.random((clips, 10)) < 0.1).astype(np.int8)
        return (rng.normal(size=(clips, 10)) + 0.5 * targets).astype(np.float32), targets

    truth = mean_average_precision(*drawn(40_000))
    for trial in range(60):
        found = ranked(*drawn(100), [f"group {clip // 5}" for clip in range(100)], trial)
        assert (found["clips"], found["clip_groups"]) == (100, 20)
        assert found["map_low"] < found["map"] < found["map_high"]
        held += found["map_low"] <= truth <= found["map_high"]
    assert held >= 48


def test_a_class_that_every_clip_is_of_has_no_precision() -> None:
    scores, targets = some_scores(30, 0, several=True)
    every = np.concatenate([targets[:, :3], np.ones((30, 1), np.int8)], axis=1)
    assert np.isnan(average_precisions(scores[:, :4], every)[0, 3])
    assert mean_average_precision(scores[:, :4], every) == mean_average_precision(scores[:, :3], every[:, :3])
    assert np.isnan(precision_gains(scores[:, :4], every)[:, 3]).all()
    alone = ranked(scores[:, :1], np.ones((30, 1), np.int8), ["a", "b", "c"] * 10)
    assert (alone["map"], alone["map_high"]) == (1.0, 1.0)
    assert alone["map_low"] == pytest.approx(clustered_share_interval(1.0, 0.0, np.array([10, 10, 10]))[0])
    assert (precision_gains(scores[:, :1], np.ones((30, 1), np.int8)) == 0).all()


def test_the_weights_of_a_draw_are_clips_repeated() -> None:
    scores, targets = some_scores(30, 0, several=True)
    weights = np.random.default_rng(1).integers(0, 4, size=(3, 30)).astype(np.float64)
    for row, drawn in zip(average_precisions(scores, targets, weights), weights.astype(int), strict=True):
        again = average_precisions(np.repeat(scores, drawn, axis=0), np.repeat(targets, drawn, axis=0))[0]
        np.testing.assert_allclose(row[:4], again[:4])
    trials, same = scores[:, 0], targets[:, 0] > 0
    for rate, drawn in zip(equal_error_rates(trials, same, weights), weights.astype(int), strict=True):
        assert rate == pytest.approx(equal_error_rate(np.repeat(trials, drawn), np.repeat(same, drawn)))


@settings(max_examples=50)
@given(seed=st.integers(0, 2**16), trials=st.integers(2, 80), steps=st.sampled_from([3, 20, 10_000]))
def test_the_equal_error_rate_is_where_the_curve_crosses(seed: int, trials: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    same = rng.random(trials) < 0.5
    same[:2] = [True, False]
    scores = ((rng.random(trials) + 0.5 * same) * steps).round() / steps
    accepted, kept, _ = roc_curve(same, scores, drop_intermediate=False)
    for (far, right), (next_far, next_right) in pairwise(zip(accepted, kept, strict=True)):
        if next_far >= 1 - next_right:  # the first piece of the curve with as many false accepts as false rejects
            step = (1 - right - far) / ((next_far - far) + (next_right - right))
            break
    assert equal_error_rate(scores, same) == pytest.approx(far + step * (next_far - far))


def test_equal_error_rates_of_plain_cases() -> None:
    same = np.array([True, True, False, False])
    assert equal_error_rate(np.array([0.9, 0.8, 0.2, 0.1]), same) == 0
    assert equal_error_rate(np.array([0.1, 0.2, 0.8, 0.9]), same) == 1
    assert equal_error_rate(np.array([0.9, 0.1, 0.8, 0.2]), same) == pytest.approx(0.5)
    assert equal_error_rate(np.full(4, 0.5), same) == pytest.approx(0.5)
    assert np.isnan(equal_error_rate(np.array([0.9, 0.8]), np.array([True, True])))


# intervals


def test_totals_are_sums_over_the_clips_of_the_groups_drawn() -> None:
    groups = ["a", "b", "a", "c", "b", "b"]
    values = np.arange(12.0).reshape(6, 2)
    resamples = Resamples.of(groups, seed=3, draws=40)
    counts = np.concatenate(list(resamples.counts()))
    assert counts.shape == (40, 3)
    assert (counts.sum(axis=1) == 3).all()
    for drawn, total in zip(counts, resamples.totals(values), strict=True):
        expected = sum(drawn["abc".index(group)] * value for group, value in zip(groups, values, strict=True))
        np.testing.assert_allclose(total, expected)


def test_a_share_of_a_draw_is_of_the_clips_that_were_drawn() -> None:
    """Groups are of one, two and three clips."""
    values, resamples = np.array([1.0, 0, 1, 1, 0, 0]), Resamples.of(list("abbccc"), seed=3, draws=40)
    weights = np.concatenate(list(resamples.weights()))
    assert len(set(weights.sum(axis=1))) > 5
    np.testing.assert_allclose(shares(values, resamples), weights @ values / weights.sum(axis=1))


def test_draws_of_map_are_reversed_about_its_value() -> None:
    scores, targets = some_scores(30, 0, several=True)
    groups, value = [str(clip // 3) for clip in range(30)], mean_average_precision(scores, targets)
    drawn = np.concatenate(list(Resamples.of(groups, 1, 200).weights())).astype(int)
    draws = precision_draws(scores, targets, groups, seed=1)
    assert draws.shape == (200,)
    for found, of in zip(draws[:5], drawn, strict=False):
        again = mean_average_precision(np.repeat(scores, of, axis=0), np.repeat(targets, of, axis=0))
        assert found == pytest.approx(2 * value - again)


@pytest.mark.parametrize("units", [2, 5, 30])
def test_an_interval_of_few_groups_is_that_of_students_t(units: int) -> None:
    """Draws of so many groups spread by (units - 1) / units too little, which is made up for."""
    quantiles = norm.ppf((np.arange(9999) + 0.5) / 9999)
    drawn, reach = 0.05 * quantiles * np.sqrt((units - 1) / units), 0.05 * student.ppf(0.975, units - 1)
    assert interval(0.1, 0.1 + drawn, units) == pytest.approx((0.1 - reach, 0.1 + reach), abs=1e-3)
    sizes = np.full(units, 20)
    found = resampled_share_interval(0.6, 0.6 + drawn, sizes, 20.0 * units)
    assert found == pytest.approx(clustered_share_interval(0.6, 0.05**2, sizes, worth=20.0 * units), abs=1e-4)


def test_a_draw_without_a_clip_of_a_class_says_nothing_of_it() -> None:
    scores, targets = np.eye(4, dtype=np.float32)[:, :2], np.eye(4, dtype=np.int8)[:, :2]
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 1, 1]])
    np.testing.assert_array_equal(average_precisions(scores, targets, weights), [[1.0, 1.0], [1.0, np.nan]])


def test_an_interval_leans_to_the_side_of_its_draws() -> None:
    """It is that of percentiles, which reach further to the side where draws spread more."""
    drawn = np.random.default_rng(0).exponential(0.1, 5000)
    assert interval(0.1, drawn, 10_000) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-3)


def test_drawing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    resamples = Resamples.of([str(clip) for clip in range(50)], seed=1, draws=30)
    whole = np.concatenate(list(resamples.counts()))
    monkeypatch.setattr("confit_edge.probes.metrics.MAX_TABLE_SIZE", 170)
    parts = list(resamples.counts())
    assert len(parts) == 10
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_differences_of_judgements_are_paired() -> None:
    scores, targets = some_scores(200, 0)
    better = scores + 0.3 * targets
    groups = [str(clip // 10) for clip in range(200)]
    one, other = (judge(of, targets, groups, LETTERS, multi_label=False) for of in (better, scores))
    assert one.resampled == "groups"
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        difference = one.metrics[name].minus(other.metrics[name])
        assert 0 < difference.low < difference.difference < difference.high
        apart = one.metrics[name].high - other.metrics[name].low
        assert difference.high - difference.low < apart
    expected = paired_difference(correct(better, targets), correct(scores, targets), groups)
    found = one.metrics["accuracy"].minus(other.metrics["accuracy"])
    assert found.to_dict() == pytest.approx(expected.to_dict())


def test_balanced_accuracies_differ_by_what_is_right_and_not_by_what_is_wrong() -> None:
    """Of two probes that are wrong on the same clips, it does not matter which other class each of them takes."""
    targets = np.eye(3, dtype=np.int8)[np.arange(30) % 3]
    wrong = np.arange(30) < 12
    one, other = (
        judge(
            np.where(wrong[:, None], np.roll(targets, turn, axis=1), targets).astype(np.float32),
            targets,
            [str(clip) for clip in range(30)],
            ["a", "b", "c"],
            multi_label=False,
        ).metrics
        for turn in (1, 2)
    )
    alike, apart = (one[name].minus(other[name]) for name in ("balanced_accuracy", "macro_f1"))
    assert alike.difference == apart.difference == 0
    assert alike.high == pytest.approx(5.5 / 30)
    assert apart.high == pytest.approx(1.96 * math.sqrt(12 / 30 / 30), rel=1e-3)


def test_several_labels_are_worth_no_more_than_their_clips() -> None:
    """Twenty clips of two labels and two of another: what is perfect here is not as sure as of 42 clips."""
    targets = np.array([[1, 1, 0]] * 20 + [[0, 0, 1]] * 2, np.int8)
    groups, scores = [str(clip) for clip in range(22)], targets.astype(np.float32)
    judged = judge(scores, targets, groups, ["a", "b", "c"], multi_label=True).metrics
    assert judged["micro_f1"].low == pytest.approx(clustered_share_interval(1.0, 0.0, np.ones(22), worth=22)[0])
    assert judged["map"].low == ranked(scores, targets, groups)["map_low"]


def test_no_difference_of_shares_is_more_than_all() -> None:
    targets = np.eye(2, dtype=np.int8)[np.arange(6) % 2]
    right, wrong = (
        judge(scores.astype(np.float32), targets, list("aabbcc"), ["a", "b"], multi_label=False).metrics["accuracy"]
        for scores in (targets, 1 - targets)
    )
    assert (right.minus(wrong).high, wrong.minus(right).low) == (1.0, -1.0)


def test_a_perfect_probe_has_an_interval_in_every_metric_and_the_confused_are_named() -> None:
    targets = np.eye(3, dtype=np.int8)[np.arange(30) % 3]
    groups = [str(clip // 3) for clip in range(30)]
    perfect = judge(targets.astype(np.float32), targets, groups, list("abc"), multi_label=False)
    low = clustered_share_interval(1.0, 0.0, np.full(10, 3))[0]
    assert [estimate.low for estimate in perfect.metrics.values()] == pytest.approx([low] * 3)
    assert 0.025 ** (1 / 10) < low < 0.025 ** (1 / 30)  # surer than of ten clips, not as sure as of thirty voices
    assert [row["taken_for"] for row in perfect.per_class] == ["", "", ""]
    scores = targets.astype(np.float32)
    scores[[0, 3, 6]] = [[0, 1, 0], [0, 0, 1], [0, 0, 1]]
    rows = judge(scores, targets, groups, list("abc"), multi_label=False).per_class
    assert rows[0]["taken_for"] == "c (2)"
    assert rows[0]["recall"] == pytest.approx(0.7)
    assert rows[0]["recall_low"] < 0.7 < rows[0]["recall_high"]


def test_draws_in_which_a_value_is_not_defined_do_not_count() -> None:
    drawn = np.random.default_rng(0).normal(0.5, 0.1, 90)
    assert interval(0.5, np.append(drawn, [np.nan] * 10), 8) == interval(0.5, drawn, 8)
    assert np.isnan(interval(1.0, np.full(5, np.nan), 8)).all()
    assert np.isnan(interval(1.0, np.ones(5), 1)).all()
    assert np.isnan(resampled_share_interval(1.0, np.ones(5), np.array([7]), 7.0)).all()


@pytest.mark.parametrize("units", [5, 6, 40])
def test_groups_that_all_agree_leave_a_share_and_a_difference_uncertain(units: int) -> None:
    """A share stands on clips that are a little alike; a difference is as sure as a share of so many groups."""
    groups = [str(clip // 5) for clip in range(5 * units)]
    three, two = (np.arange(5 * units) % 5 < right for right in (3, 2))
    reach = 1 - 0.025 ** (1 / units)
    found = accuracy(three, groups)
    assert (found.low, found.high) == pytest.approx(clustered_share_interval(0.6, 0.0, np.full(units, 5)))
    alone = share_interval(3 * units, 5 * units)
    assert found.low < alone[0] < 0.6 < alone[1] < found.high
    gap = paired_difference(three, two, groups)
    assert (gap.difference, gap.low, gap.high) == pytest.approx((0.2, 0.2 - reach, 0.2 + reach))
    gap = paired_difference(three, three, groups)
    assert (gap.difference, gap.low, gap.high) == pytest.approx((0.0, -reach, reach))
    assert interval(1e-17, np.full(9, 1e-17), units) == pytest.approx((-reach, reach))
    none = accuracy(np.zeros(5 * units, bool), groups)
    assert (none.low, none.high) == pytest.approx(clustered_share_interval(0.0, 0.0, np.full(units, 5)))


@pytest.mark.parametrize("sizes", [(20, 20, 19), (20, 20, 19, 21, 20), (30, 30, 29)])
def test_a_clip_more_in_each_of_a_few_groups_is_no_difference(sizes: tuple[int, ...]) -> None:
    """The groups agree to a fraction of a point, but McNemar's exact test needs six clips, and these may be chance."""
    groups = np.repeat(list("abcde")[: len(sizes)], sizes).tolist()
    place = np.concatenate([np.arange(size) for size in sizes])
    right = np.ones(len(place), bool)
    one, six = (paired_difference(right, place >= missed, groups) for missed in (1, 6))
    assert one.low < 0 < one.difference
    assert six.low == pytest.approx(six.difference - 1.96 * np.sqrt(6 * len(sizes)) / len(place), abs=1e-3)
    for missed, differs in ((1, False), (6, True)):  # and so say the metrics of `judge` that weight clips otherwise
        truth = np.eye(2, dtype=np.int8)[place % 2]
        scores = truth.astype(np.float32)
        wrong = np.where((place < missed)[:, None], 1 - scores, scores)
        mine, theirs = (judge(of, truth, groups, ["x", "y"], multi_label=False).metrics for of in (scores, wrong))
        for metric in ("accuracy", "balanced_accuracy", "macro_f1"):
            assert (mine[metric].minus(theirs[metric]).low > 0) == differs


@pytest.mark.parametrize(("groups", "clips"), [(3, 15), (5, 8), (10, 6), (18, 20)])
def test_of_two_that_are_equally_good_a_few_clips_apart_one_is_seldom_better(groups: int, clips: int) -> None:
    rng, wrong = np.random.default_rng(groups), 0
    for _ in range(300):
        sizes = rng.integers(clips - 2, clips + 3, groups)
        names = np.repeat([f"g{group}" for group in range(groups)], sizes).tolist()
        differ, wins = rng.random((2, len(names))) < [[0.06], [0.5]]
        gap = paired_difference(~differ | wins, ~differ | ~wins, names, draws=200)
        if gap.low > 0 or gap.high < 0:
            wrong += 1
            assert differ.sum() > 5
    assert wrong / 300 < 0.06


def test_a_recall_stands_on_the_groups_that_hold_its_class() -> None:
    """Where each speaker is a class, another speaker's clips say nothing of how sure it is."""
    targets = np.eye(10, dtype=np.int8)[np.repeat(np.arange(10), 6)]
    groups = [str(clip // 6) for clip in range(60)]
    scores = targets.astype(np.float32)
    scores[:2] = targets[6]
    rows = judge(scores, targets, groups, list("abcdefghij"), multi_label=False).per_class
    assert (rows[0]["recall_low"], rows[0]["recall_high"]) == pytest.approx(share_interval(4, 6))
    assert rows[1]["recall_low"] == pytest.approx(share_interval(6, 6)[0])
    # of three speakers in a class, one is not understood
    few = np.eye(2, dtype=np.int8)[np.repeat([0, 1], 30)]
    scores, groups = few.astype(np.float32), [str(clip // 10) for clip in range(60)]
    scores[:10] = few[30]
    row = judge(scores, few, groups, ["a", "b"], multi_label=False).per_class[0]
    expected = grouped_share_interval(np.arange(30) >= 10, np.arange(30) // 10)
    assert (row["recall_low"], row["recall_high"]) == pytest.approx(expected)
    assert row["recall_low"] < share_interval(20, 30)[0] - 0.1


@pytest.mark.parametrize("groups", [2, 4, 6, 12])
def test_an_interval_of_few_groups_holds_the_truth(groups: int) -> None:
    """Groups differ by more than their clips do: 95 of 100 intervals should hold what holds of all groups."""
    rng, held, differs = np.random.default_rng(groups), 0, 0
    names = [str(clip // 20) for clip in range(20 * groups)]
    for _ in range(200):
        skill = np.repeat(rng.beta(3.5, 1.5, groups), 20)
        one, other = (rng.random(20 * groups) < skill for _ in range(2))
        found = accuracy(one, names)
        held += found.low <= 0.7 <= found.high
        gap = paired_difference(one, other, names, draws=300)
        differs += gap.low <= 0 <= gap.high
    assert held >= 178
    assert differs >= 178


@pytest.mark.parametrize(
    ("groups", "clips", "median", "apart"), [(18, 30, 4.0, 0.8), (6, 20, 3.0, 1.0), (8, 20, 3.5, 1.5)]
)
def test_where_nearly_all_is_right_the_interval_holds_the_truth_too(
    groups: int, clips: int, median: float, apart: float
) -> None:
    """The voices that are not understood are few, and may be in none of the groups: percentiles of draws flatter then."""
    rng = np.random.default_rng(groups)
    truth = float((1 / (1 + np.exp(-median - apart * rng.standard_normal(100_000)))).mean())
    names, targets = [str(clip // clips) for clip in range(groups * clips)], np.eye(2, dtype=np.int8)
    targets = targets[np.arange(groups * clips) % 2]
    flatters = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), 0)
    for _ in range(200):
        right = rng.random(groups * clips) < np.repeat(
            1 / (1 + np.exp(-median - apart * rng.standard_normal(groups))), clips
        )
        scores = np.where(right[:, None], targets, 1 - targets).astype(np.float32)
        judged = judge(scores, targets, names, ["a", "b"], multi_label=False).metrics
        for name in flatters:
            flatters[name] += judged[name].low > truth
    assert all(count <= 10 for count in flatters.values()), flatters  # 2.5 in a hundred; percentiles: 8 to 16


def test_a_mean_over_classes_is_no_surer_than_its_rare_class() -> None:
    """A thousand clips of noise say nothing of how well the three cries for help are heard."""
    labels = np.array([0] * 400 + [1] * 3)
    targets = np.eye(2, dtype=np.int8)[labels]
    names = [str(clip // 20) if clip < 400 else f"h{clip}" for clip in range(403)]
    perfect = judge(targets.astype(np.float32), targets, names, ["noise", "help"], multi_label=False)
    recall = {row["class"]: row["recall_low"] for row in perfect.per_class}
    for name in ("balanced_accuracy", "macro_f1"):
        assert perfect.metrics[name].low < (recall["help"] + recall["noise"]) / 2 + 0.1
    assert perfect.metrics["accuracy"].low > 0.98
    assert [row["groups"] for row in perfect.per_class] == [20, 3]
    several = np.concatenate([targets, targets[:, :1] * 0], axis=1)
    several[:200, 2] = 1
    assert ranked(several.astype(np.float32), several, names)["map_low"] < 0.9
    assert worth_of_classes(np.array([7, 7, 7, 0])) == pytest.approx(21)
    assert worth_of_classes(np.array([1000, 3])) == pytest.approx(4 / (1 / 1000 + 1 / 3))


@pytest.mark.parametrize("several", [False, True])
def test_scores_that_are_no_numbers_are_not_judged(several: bool) -> None:
    scores, targets = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.int8)
    scores[1, 2] = np.nan
    with pytest.raises(ConfitError, match=r"^1 of 3 clips to judge on have scores that are not numbers"):
        judge(scores, targets, list("abc"), list("xyz"), multi_label=several)


# verification


def clips_of(labels: list[int], groups: list[str] | None = None, folder: Path = Path("/clips")) -> Clips:
    targets = np.eye(max(labels) + 1, dtype=np.int8)[labels]
    return Clips([np.zeros(1, np.float32)] * len(labels), targets, groups or ["g"] * len(labels), [
        folder / f"{row}.wav" for row in range(len(labels))
    ])  # fmt: skip


def test_an_equal_error_rate_is_as_sure_as_its_trials_are_many() -> None:
    """Clips of the split that stand in no trial say nothing of it."""
    rng = np.random.default_rng(0)
    same = np.array([True, True, False, False, False, False])
    one, other = np.arange(6), np.arange(6, 12)
    embeddings = rng.standard_normal((400, 8)).astype(np.float32)
    embeddings[other[same]] = embeddings[one[same]]
    embeddings[other[~same]] = -embeddings[one[~same]]
    groups = [str(clip // 2) for clip in range(400)]
    found = verify(embeddings, Trials(one, other, same), groups)
    alone = verify(embeddings[:12], Trials(one, other, same), groups[:12])
    assert found is not None
    assert alone is not None
    assert (found.value, found.low, found.high) == (alone.value, alone.low, alone.high)
    assert found.value == 0
    assert found.high > 0.7  # of two trials of one class


def test_trials_among_a_few_clips_are_worth_no_more_than_these() -> None:
    """Five clips of a class make ten trials, next to a hundred with twenty others."""
    one, other = np.triu_indices(5, 1)
    strange = np.array([(clip, stranger) for clip in range(5) for stranger in range(5, 25)])
    trials = Trials(*np.concatenate([np.stack([one, other], axis=1), strange]).T, np.arange(110) < 10)
    embeddings = np.eye(2, dtype=np.float32)[(np.arange(25) < 5).astype(int)]
    found = verify(embeddings, trials, [str(clip) for clip in range(25)])
    assert found is not None
    assert (found.low, found.high) == pytest.approx(clustered_share_interval(0.0, 0.0, np.ones(25), worth=5))


def test_all_pairs_are_of_one_class_or_of_two() -> None:
    trials = all_pairs(clips_of([0, 1, 0, 2]))
    pairs = {(int(a), int(b)): bool(same) for a, b, same in zip(trials.one, trials.other, trials.same, strict=True)}
    assert pairs == {(0, 1): False, (0, 2): True, (0, 3): False, (1, 2): False, (1, 3): False, (2, 3): False}
    clips = clips_of([0, 1, 0, 2])
    clips.targets[1:3] = 0  # of two clips in which nothing is heard nobody says that they are different
    trials = all_pairs(clips)
    assert set(zip(trials.one.tolist(), trials.other.tolist(), strict=True)) == {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)}
    assert not trials.same.any()
    assert trials.left_out == 1
    many = all_pairs(clips_of([row % 3 for row in range(CLIPS + 50)]), seed=1)
    assert len(many) == CLIPS * (CLIPS - 1) // 2
    assert not np.array_equal(many.one, all_pairs(clips_of([row % 3 for row in range(CLIPS + 50)]), seed=2).one)
    assert len(np.unique(np.concatenate([many.one, many.other]))) == CLIPS


def test_a_list_of_trials_is_read_by_path(tmp_path: Path) -> None:
    clips = clips_of([0, 1, 0], folder=tmp_path)
    path = tmp_path / "trials.txt"
    path.write_text("1 0.wav 2.wav\n\n0 0.wav ./1.wav\n")
    trials = read_trials(path, clips, tmp_path)
    assert (trials.one.tolist(), trials.other.tolist(), trials.same.tolist()) == ([0, 0], [2, 1], [True, False])
    embeddings = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)
    estimate = verify(embeddings, trials, ["a", "b", "c"])
    assert estimate is not None
    assert estimate.value == 0


@pytest.mark.parametrize("line", ['{} "a b\'s.wav" c.wav', "{}\ta b's.wav\tc.wav"])
def test_a_clip_of_a_trial_may_have_a_space_in_its_name(line: str, tmp_path: Path) -> None:
    clips = replace(clips_of([0, 1, 0]), paths=[tmp_path / name for name in ("a b's.wav", "d.wav", "c.wav")])
    path = tmp_path / "trials.txt"
    path.write_text(line.format(1) + "\n0 c.wav d.wav\n")
    trials = read_trials(path, clips, tmp_path)
    assert (trials.one.tolist(), trials.other.tolist(), trials.same.tolist()) == ([0, 2], [2, 1], [True, False])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1 a b.wav 2.wav", "double quotes"),
        ('1 "0.wav 2.wav', "line 1"),
        ("1 0.wav 2.wav\n2 0.wav 1.wav", "line 2"),
        ("1 0.wav", "line 1"),
        ("1 0.wav 9.wav\n", r"line 1.*9\.wav"),
        ("1 0.wav 2.wav\n1 2.wav 0.wav", "both kinds"),
        ("", "both kinds"),
    ],
)
def test_a_wrong_list_of_trials_is_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"trials\.txt.*{named}"):
        read_trials(path, clips_of([0, 1, 0], folder=tmp_path), tmp_path)


def test_a_list_of_trials_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.txt: no such file$"):
        read_trials(tmp_path / "none.txt", clips_of([0, 1]), tmp_path)
    with pytest.raises(UsageError, match=r"cannot be read as a list of trials \(Is a directory\)$"):
        read_trials(tmp_path, clips_of([0, 1]), tmp_path)


def test_verification_resamples_groups() -> None:
    rng = np.random.default_rng(0)
    labels, voices = np.arange(120) % 6, np.arange(120) // 12
    loudness = np.linspace(0.05, 1.2, 10)[voices, None]  # of the noise: some voices are hard
    points = np.eye(6)[labels] + loudness * rng.standard_normal((120, 6))
    embeddings = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    clips = clips_of(labels.tolist())
    trials = all_pairs(clips)
    by_voice = verify(embeddings, trials, [str(voice) for voice in voices])
    by_clip = verify(embeddings, trials, [str(row) for row in range(120)])
    assert by_voice is not None
    assert by_clip is not None
    assert by_voice.value == by_clip.value
    assert by_voice.low < by_voice.value < by_voice.high
    assert by_voice.high - by_voice.low > by_clip.high - by_clip.low
    # one draw by hand: every trial as often as its groups are drawn
    counts = next(Resamples.of([str(voice) for voice in voices], 0, 200).counts())[0]
    repeats = [
        int(counts[voices[a]]) if voices[a] == voices[b] else int(counts[voices[a]] * counts[voices[b]])
        for a, b in zip(trials.one, trials.other, strict=True)
    ]
    scores = (embeddings[trials.one] * embeddings[trials.other]).sum(axis=1)
    expected = equal_error_rate(np.repeat(scores, repeats), np.repeat(trials.same, repeats))
    assert by_voice.samples[0] == pytest.approx(expected, abs=1e-6)


def test_without_pairs_of_both_kinds_there_is_no_error_rate() -> None:
    embeddings = np.eye(3, dtype=np.float32)
    assert verify(embeddings, all_pairs(clips_of([0, 1, 2])), ["a", "b", "c"]) is None
    only = Trials(np.array([0]), np.array([1]), np.array([True]))
    assert verify(embeddings, only, ["a", "b", "c"]) is None
