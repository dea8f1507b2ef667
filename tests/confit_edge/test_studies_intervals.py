"""Means, differences and intervals over seeds and groups."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from confit_edge.probes.judge import judge
from confit_edge.probes.metrics import interval
from confit_edge.studies.bench import precision_tally
from confit_edge.studies.phrases import versus
from confit_edge.studies.questions import (
    isotropy,
)
from confit_edge.studies.results import Estimate, Results, Side
from confit_edge.studies.trial import Outcome, Point, Subset, Tally
from tests.confit_edge.trial_outcomes import outcome

# what may be concluded


def test_shares_and_numbers_are_means_over_what_they_are_of() -> None:
    results = Results(
        outcome({"o": name}, seed, {"linear": [base, base + 0.2]}, val_linear=base + seed / 10)
        for name, base in (("a", 0.5), ("b", 0.3))
        for seed in (0, 1, 2)
    )
    assert results.share("linear", o="a").value == pytest.approx(0.6)
    assert results.share("linear").value == pytest.approx(0.5)  # of both together, as many clips of each
    assert results.difference(Side("linear", {"o": "a"}), Side("linear", {"o": "b"})).value == pytest.approx(0.2)
    gap = results.contrast([(0.5, Side("linear", {"o": "a"})), (0.5, Side("linear", {"o": "b"}))])
    assert gap.value == pytest.approx(0.5)
    number = results.number("val_linear", o="a")
    # Student's interval of 0.5, 0.6, 0.7: the mean and 4.3027 standard errors
    assert (number.value, number.low) == pytest.approx((0.6, 0.6 - 0.43027 / math.sqrt(3)), abs=1e-4)
    assert math.isnan(results.share("knn", o="a").value)
    assert results.best(results.arms()) == {"o": "a"}


def test_counts_that_agree_in_all_seeds_are_known_to_half_a_step() -> None:
    results = Results(
        outcome({"o": name}, seed, {"linear": [0.5, 0.5]}, epochs=epochs)
        for name, epochs in (("a", 3), ("b", 2))
        for seed in (0, 1)
    )
    gap = results.number_difference([(1.0, "epochs", {"o": "a"}), (-1.0, "epochs", {"o": "b"})])
    assert gap.value == 1
    assert not gap.significant
    assert gap.high - gap.value == pytest.approx(12.706 * 0.5 / math.sqrt(2), abs=1e-3)


def test_a_zero_difference_is_rarely_significant() -> None:
    """Two arms that are equally good, on groups that differ: about one interval in twenty may leave out zero."""
    rng = np.random.default_rng(0)
    significant = 0
    for _ in range(200):
        hard = rng.uniform(0.4, 0.9, 12)
        outcomes = [
            outcome({"o": arm}, seed, {"linear": list(rng.binomial(10, np.clip(hard + quirk, 0, 1)) / 10)})
            for arm in "ab"
            for quirk in [rng.normal(0, 0.08, 12)]
            for seed in range(3)
        ]
        significant += Results(outcomes).difference(Side("linear", {"o": "a"}), Side("linear", {"o": "b"})).significant
    assert significant / 200 < 0.08


def test_map_has_the_interval_of_its_bootstrap_and_a_zero_difference_is_rarely_significant() -> None:
    """Of two arms that hear three labels equally well: the interval of one seed is as long as that of `judge`'s draws."""
    rng, significant, lengths = np.random.default_rng(0), 0, []
    groups = [f"g{group}" for group in range(20) for _ in range(8)]
    for _ in range(100):
        targets = (rng.random((160, 3)) < 0.35).astype(np.int8)
        hard = np.repeat(rng.normal(0, 0.7, (20, 3)), 8, axis=0) + rng.normal(0, 0.7, (160, 3)) + 1.5 * targets
        scores = {
            (arm, seed): (hard + rng.normal(0, 0.7, (160, 3))).astype(np.float32) for arm in "ab" for seed in range(3)
        }
        results = Results(
            Outcome(
                f"{arm}{seed}",
                {"o": arm},
                seed,
                Subset(),
                [Point({"linear": precision_tally(one, targets, groups)})],
                0,
            )
            for (arm, seed), one in scores.items()
        )
        significant += results.difference(Side("linear", {"o": "a"}), Side("linear", {"o": "b"})).significant
        alone = results.where(lambda row: row.seed == 0).share("linear", o="a")
        own = judge(scores["a", 0], targets, groups, ["x", "y", "z"], multi_label=True).metrics["map"]
        assert alone.value == pytest.approx(own.value)
        low, high = interval(own.value, own.samples, own.units)
        lengths.append((alone.high - alone.low) / (high - low))
    assert significant / 100 < 0.1
    assert np.mean(lengths) == pytest.approx(1, abs=0.1)


def test_a_difference_in_every_group_and_seed_is_significant_and_one_of_three_groups_is_not() -> None:
    def gap(groups: int, comparisons: int = 1) -> Estimate:
        rng = np.random.default_rng(1)
        outcomes = [
            outcome({"o": arm}, seed, {"linear": list(0.5 + gain + rng.normal(0, 0.05, groups))})
            for arm, gain in (("a", 0.08), ("b", 0.0))
            for seed in range(3)
        ]
        return Results(outcomes).difference(Side("linear", {"o": "a"}), Side("linear", {"o": "b"}), comparisons)

    assert gap(20).significant
    assert not gap(3).significant
    one, ten = gap(20), gap(20, comparisons=10)
    assert ten.low < one.low < one.value < one.high < ten.high


def test_the_residual_of_seeds_and_groups_counts_once_and_an_interval_leans_as_its_draws() -> None:
    """Seeds, groups and the residual each move a share by 0.02, so its variance is 0.02^2 with one degree of freedom."""
    found = Results(outcome({"o": "a"}, seed, {"linear": [0.56 - 0.08 * seed, 0.48]}) for seed in (0, 1)).share(
        "linear"
    )
    # a draw is 0.48 + 0.08 s g, where s and g are 0, 1/2 or 1 with a chance of 1/4, 1/2 and 1/4
    stretch = 0.02 / math.sqrt(0.08**2 * (0.375**2 - 0.25**2)) * 12.706 / 1.960
    assert found.value == pytest.approx(0.5)
    assert found.value - found.low == pytest.approx(0.02 * stretch, rel=0.03)
    assert found.high - found.value == pytest.approx(0.06 * stretch, rel=0.03)


def test_an_interval_has_at_least_the_freedom_of_its_fewest_units() -> None:
    """However much of a variance is the residual: of three seeds, Student's t has two degrees of freedom and not one."""
    steps = np.array([-1, 0, 1])
    cells = 0.5 + 0.02 * steps[:, None] + 0.02 * steps + 0.06 * np.outer(steps, steps)
    found = Results(outcome({"o": "a"}, seed, {"linear": list(cells[seed])}) for seed in range(3)).share("linear")
    turns = list(itertools.product(range(3), repeat=3))
    draws = [cells[np.ix_(seeds, groups)].mean() for seeds in turns for groups in turns]
    low, high = np.quantile(draws, [0.025, 0.975])
    # the variance of the mean is that of the seeds, because more than that of the groups is residual
    length = (high - low) * 0.02 / math.sqrt(3) / np.std(draws) * 4.303 / 1.960
    assert found.high - found.low == pytest.approx(length, rel=0.1)


def test_settings_that_no_group_distinguishes_are_not_certainly_equal() -> None:
    results = Results(outcome({"o": arm}, 0, {"linear": [0.5] * 6}) for arm in ("a", "b"))
    gap = results.difference(Side("linear", {"o": "a"}), Side("linear", {"o": "b"}))
    assert not gap.significant
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.0, 0.025 ** (1 / 6) - 1, 1 - 0.025 ** (1 / 6)))


@pytest.mark.parametrize("sizes", [(20, 20, 19), (20, 21), (20, 20, 19, 21, 20)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_clip_more_in_each_of_a_few_groups_is_not_significant(sizes: tuple[int, ...], seeds: int) -> None:
    """All groups and seeds agree to a fraction of a point, and McNemar's exact test needs six clips."""

    def gap(clips: int) -> Estimate:
        outcomes = [
            Outcome(
                f"{arm}{seed}", {"o": arm}, seed, Subset(),
                [Point({"linear": {f"g{n}": (float(size - missed), float(size)) for n, size in enumerate(sizes)}})], 0.0,
            )
            for arm, missed in (("a", 0), ("b", clips))
            for seed in range(seeds)
        ]  # fmt: skip
        return Results(outcomes).difference(Side("linear", {"o": "a"}), Side("linear", {"o": "b"}))

    assert not gap(1).significant
    assert gap(6).significant
    assert gap(6).low == pytest.approx(gap(6).value - 1.96 * math.sqrt(6 * len(sizes)) / sum(sizes), abs=1e-3)


def test_a_gain_among_few_clips_widens_its_comparison_with_a_gain_among_many() -> None:
    def tally(clips: int, share: float, apart: float) -> Tally:
        """Ten groups of as many clips, in turn a little better and a little worse."""
        return {f"g{n}": ((share + apart * (-1) ** n) * clips / 10, clips / 10) for n in range(10)}

    outcomes = [
        Outcome(f"{clips}{arm}{seed}", {"o": arm, "clips": clips}, seed, Subset(), [Point({"linear": found})], 0.0)
        for clips, ours, theirs, apart in ((500, 0.9, 0.8, 0.01), (30, 0.8, 0.8, 0.02))
        for arm, found in (("a", tally(clips, ours, apart)), ("b", tally(clips, theirs, 0.0)))
        for seed in range(3)
    ]
    results = Results(outcomes)
    many, few = ([Side("linear", {"o": arm, "clips": clips}) for arm in "ab"] for clips in (500, 30))
    assert results.difference(*many).significant
    growth = results.contrast([(1, many[0]), (-1, many[1]), (-1, few[0]), (1, few[1])])
    assert growth.value == pytest.approx(0.1)
    assert not growth.significant  # of thirty clips, five may be chance


def test_no_interval_goes_beyond_what_a_difference_of_shares_can_be() -> None:
    results = Results(
        outcome({"o": arm}, seed, {"linear": [share + seed * move, share]})
        for arm, share, move in (("a", 0.6, 0.4), ("b", 0.5, -0.4))
        for seed in (0, 1)
    )
    sides = Side("linear", {"o": "a"}), Side("linear", {"o": "b"})
    gap = results.difference(*sides, comparisons=15)  # of two seeds at that level Student's t is past 200
    assert (gap.low, gap.high) == (-1.0, 1.0)
    assert results.contrast([(0.5, side) for side in sides], comparisons=15).low == 0.0


def test_no_interval_of_a_number_goes_beyond_what_it_can_be_but_that_of_a_difference_does() -> None:
    numbers = {
        "epochs_head": (1.0, 3.0), "anisotropy": (0.9, 1.0), "isoscore": (0.0, 0.2), "val_linear": (0.8, 1.0),
        "balance": (0.0, 0.2), "top1_train": (0.0, 0.2),
    }  # fmt: skip
    results = Results(
        outcome({"o": "a"}, seed, **{name: pair[seed] for name, pair in numbers.items()}) for seed in (0, 1)
    )
    found = {name: results.number(name, o="a") for name in numbers}
    assert (found["epochs_head"].low, found["epochs_head"].value) == (1, 2)
    assert (found["anisotropy"].low, found["anisotropy"].high) == (pytest.approx(0.95 - 12.706 * 0.05, abs=1e-4), 1)
    assert found["isoscore"].low == found["balance"].low == found["top1_train"].low == 0
    assert found["val_linear"].high == 1
    gap = results.number_difference([(1.0, "isoscore", {"o": "a"}), (-1.0, "anisotropy", {"o": "a"})])
    assert gap.high == pytest.approx(gap.value + 12.706 * 0.05, abs=1e-4)
    assert math.isnan(Results([outcome({"o": "a"}, 0, isoscore=0.1)]).number("isoscore", o="a").low)


def test_one_seed_of_one_group_has_no_interval_and_unanimity_a_bound() -> None:
    alone = Results([outcome({"o": "a"}, 0, {"linear": [0.5]})])
    assert math.isnan(alone.share("linear", o="a").low)
    right = Results(outcome({"o": "a"}, seed, {"linear": [1.0] * 10}) for seed in range(2)).share("linear", o="a")
    assert (right.value, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(0.025 ** (1 / 10))
    wrong = Results(outcome({"o": "a"}, seed, {"linear": [0.0] * 6}) for seed in range(2)).share("linear", o="a")
    assert (wrong.value, wrong.low, wrong.high) == (0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 6)))


def test_what_no_test_clip_was_of_has_no_figure_and_does_not_end_a_study() -> None:
    """Of `shots`, a seed whose rare classes have no test clip: other seeds are told, and of none there is nothing to tell."""
    unanimous = Results(
        outcome({"o": arm}, seed, {"linear": [0.5, 0.5], "linear_rare": rare})
        for arm in "ab"
        for seed, rare in ((0, []), (1, [1.0, 0.5]))
    )
    assert unanimous.share("linear_rare", o="a").value == 0.75
    none = unanimous.where(lambda row: row.seed == 0)
    gap = none.difference(Side("linear_rare", {"o": "a"}), Side("linear_rare", {"o": "b"}))
    assert versus("A", "B", gap) == "A and B were not both measured."
    assert none.share("linear", o="a").value == 0.5
    bare = [
        outcome({"objective": "pairtune", "n": n}, 0, {"linear": [], "knn": []}, isoscore=0.1 * n) for n in range(6)
    ]
    assert isotropy.conclude(Results(bare))[0].startswith("Too few encoders")
