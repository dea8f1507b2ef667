"""What each study concludes from its numbers, and what it must not claim."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest

from confit_edge.studies.phrases import points, ranking, versus
from confit_edge.studies.questions import (
    batch,
    classes,
    convergence,
    dimensions,
    isotropy,
    mining,
    shots,
    temperature,
    unseen,
)
from confit_edge.studies.report import facts
from confit_edge.studies.results import Estimate, Results, Side
from confit_edge.studies.trial import Arm, Outcome
from tests.confit_edge.trial_outcomes import outcome


def test_sentences_claim_what_the_interval_allows() -> None:
    assert versus("A", "B", Estimate(0.05, 0.01, 0.09)) == "A is above B (+5.0 points [1.0, 9.0])."
    assert versus("A", "B", Estimate(-0.05, -0.09, -0.01)) == "A is below B (-5.0 points [-9.0, -1.0])."
    untold = versus("A", "B", Estimate(0.05, -0.01, 0.11), "In noise")
    assert untold == "In noise: no significant difference between A and B (+5.0 points [-1.0, 11.0])."
    assert "give no interval" in versus("A", "B", Estimate(0.05, math.nan, math.nan))
    assert "not both measured" in versus("A", "B", Estimate(math.nan, math.nan, math.nan))


def test_the_best_is_chosen_on_validation_and_judged_on_test() -> None:
    rng = np.random.default_rng(0)

    def noise() -> list[float]:
        return list(rng.normal(0, 0.01, 20))

    results = Results(
        outcome({"t": t}, seed, {"linear": [share + n for n in noise()]}, val_linear=val)
        for t, share, val in ((0.1, 0.8, 0.9), (0.2, 0.8, 0.8), (0.5, 0.6, 0.7), (1.0, 0.9, 0.6))
        for seed in range(3)
    )
    text = " ".join(ranking(results, results.arms(), "t"))
    assert "Best on validation is t 0.1" in text
    assert "Significantly worse on test: t 0.5." in text
    assert "Significantly better on test, though not on validation: t 1.0." in text
    assert "No significant difference from: t 0.2." in text


def test_an_arm_is_not_the_best_because_its_poor_seeds_diverged() -> None:
    def outcomes_of(t: float, validation: dict[int, float]) -> list[Outcome]:
        return [outcome({"t": t}, seed, {"linear": [0.8] * 6}, val_linear=val) for seed, val in validation.items()]

    whole = outcomes_of(0.1, {0: 0.9, 1: 0.7, 2: 0.8})
    worse = outcomes_of(0.2, {0: 0.8, 1: 0.6, 2: 0.7})
    thinned = Results(outcomes_of(0.5, {0: 0.89}) + whole + worse)
    assert (
        "Best on validation is t 0.1 (of those with 3 of 3 seeds): 80.0 %" in ranking(thinned, thinned.arms(), "t")[0]
    )
    two = Results(
        outcomes_of(0.1, {0: 0.9, 1: 0.7}) + outcomes_of(0.2, {0: 0.91, 2: 0.6}) + outcomes_of(0.5, {1: 0.99})
    )
    assert "Best on validation is t 0.2 (of those with 2 of 3 seeds): 80.0 %" in ranking(two, two.arms(), "t")[0]
    apart = Results(outcomes_of(0.1, {0: 0.9}) + outcomes_of(0.2, {1: 0.8}))
    assert apart.best(apart.arms()) == {"t": 0.1}
    assert "is t 0.1: " in ranking(Results(whole + worse), Results(whole + worse).arms(), "t")[0]


def test_a_conclusion_says_for_how_many_comparisons_its_intervals_are_widened() -> None:
    rng = np.random.default_rng(0)

    def near(share: float) -> dict[str, list[float]]:
        return {"linear": list(share + rng.normal(0, 0.01, 20)), "knn": [share] * 20}

    dropped = Results(
        outcome({"objective": "pairtune", "basis": "own", "what": arm_name, "dimensions": count}, seed, near(share))
        for arm_name, shares in (("drop top", (0.9, 0.7, 0.8)), ("drop random", (0.9, 0.8, 0.8)))
        for count, share in enumerate(shares)
        for seed in range(3)
    )
    lines = dimensions.conclude(dropped)
    assert lines[:2] == ["frozen was not measured.", "finetune was not measured."]
    (claim,) = [line for line in lines if "differs from dropping as many at random" in line]
    top, chance = (Side("linear", {"what": what, "dimensions": 1}) for what in ("drop top", "drop random"))
    assert claim.endswith(f" for 1 ({points(dropped.difference(top, chance, comparisons=2))}).")
    assert "(Intervals widened for 2 comparisons.)" in lines
    grid = Results(
        outcome({"batch": size, "window": window, "hardness": 0.0}, seed, near(0.8), val_linear=0.8)
        for size in (16, 64, 120)
        for window in (0.75, 1.0)
        for seed in range(3)
    )
    effects = [after for line, after in itertools.pairwise(batch.conclude(grid)) if "averaged over the rest" in line]
    assert ["widened for 2 comparisons" in after for after in effects] == [
        False,
        True,
        False,
    ]  # two of batch, one of window


# what each study concludes, of arms that are clearly apart


def results_of(*arms: tuple[Arm, dict[str, float], dict[str, float]]) -> Results:
    """Three seeds of twenty groups around the shares of each arm, and its numbers."""
    rng = np.random.default_rng(0)
    return Results(
        outcome(arm, seed, {name: list(share + rng.normal(0, 0.01, 20)) for name, share in shares.items()}, **numbers)
        for arm, shares, numbers in arms
        for seed in range(3)
    )


def claims(lines: list[str]) -> list[str]:
    """Without the numbers."""
    return [re.sub(r" \([+-]?\d[^()]*\)\.$", "", line) for line in lines]


VANILLA: Arm = {"objective": "finetune"}
HEAD, FEATURES = "vanilla's own head", "a linear probe on vanilla's features"


def test_of_batch_an_effect_is_that_of_the_last_level_over_the_combinations_that_both_have() -> None:
    arms = [
        ({"batch": size, "window": window, "hardness": 0.0}, {"linear": 0.6 + size / 1000 + window / 10}, {})
        for size, window in ((50, 0.5), (50, 1.0), (100, 1.0), (200, 0.5), (200, 1.0))
    ]
    results = results_of(*((arm, share, {"val_linear": 0.5}) for arm, share, _ in arms))
    lines = claims(batch.conclude(results))
    assert "Batch 200, averaged over the rest, is above batch 50" in lines
    assert "Batch 200, averaged over the rest, is above batch 100" in lines
    assert "Window 1.0, averaged over the rest, is above window 0.5" in lines
    widened = batch.main_effect(results, "batch", 200, 50, comparisons=2)
    assert f"Batch 200, averaged over the rest, is above batch 50 ({points(widened)})." in batch.conclude(results)
    effect = batch.main_effect(results, "batch", 200, 50)
    assert effect.value == pytest.approx(0.15, abs=0.005)
    # the window of 0.5 has no batch of 100, and counts for nothing here
    assert batch.main_effect(results, "batch", 200, 100).value == pytest.approx(0.10, abs=0.005)
    assert math.isnan(batch.main_effect(results, "batch", 200, 7).value)


@pytest.mark.parametrize(("gain", "verdict"), [(0.2, "above"), (0.1, None), (0.02, "below")])
def test_of_classes_a_gain_is_held_against_that_of_the_fewest(gain: float, verdict: str | None) -> None:
    """With few classes PairTune is 0.1 above vanilla's head and 0.05 below its features, with many `gain` and 0.05 less."""
    results = results_of(
        ({"objective": "pairtune", "classes": 2}, {"linear": 0.7}, {}),
        ({**VANILLA, "classes": 2}, {"head": 0.6, "linear": 0.75}, {}),
        ({"objective": "pairtune", "classes": 50}, {"linear": 0.5}, {}),
        ({**VANILLA, "classes": 50}, {"head": 0.5 - gain, "linear": 0.55}, {}),
    )
    ours, head = Side("linear", {"objective": "pairtune", "classes": 2}), Side("head", {**VANILLA, "classes": 2})
    assert points(results.difference(ours, head, comparisons=4)) in classes.conclude(results)[0]
    lines = claims(classes.conclude(results))
    assert lines[:2] == [
        f"With 2 classes: PairTune + linear probe is above {HEAD}",
        f"With 2 classes: PairTune + linear probe is below {FEATURES}",
    ]
    assert lines[4] == "(Intervals widened for 4 comparisons.)"
    claim = f"The gain over {HEAD} with 50 classes is {verdict} that with 2"
    untold = [
        f"No significant difference between the gain over {r} with 50 classes and that with 2" for r in (HEAD, FEATURES)
    ]
    assert lines[5:] == ([claim, untold[1]] if verdict else untold)


@pytest.mark.parametrize(
    ("ours", "claim"), [(3.0, "PairTune takes fewer epochs than"), (11.0, "PairTune takes more epochs than")]
)
def test_of_convergence_fewer_epochs_are_fewer_and_its_curves_are_no_end(ours: float, claim: str) -> None:
    results = results_of(
        ({"objective": "pairtune"}, {"linear": 0.9}, {"epochs_linear": ours}),
        (VANILLA, {"linear": 0.8, "head": 0.8}, {"epochs_linear": 7.0, "epochs_head": ours}),
        ({"objective": "pairtune", "epoch": 1}, {"linear": 0.1}, {"epochs_linear": 99.0}),
    )
    lines = convergence.conclude(results)
    assert lines[0].startswith(f"pairtune, linear probe: {ours:.1f} [")
    assert [line.startswith(claim) for line in lines if "vanilla's features (" in line] == [True, False]
    assert any(line.startswith(f"No significant difference in epochs between PairTune and {HEAD}") for line in lines)
    assert claims(lines)[-2:] == [f"At the end: PairTune + linear probe is above {rival}" for rival in (HEAD, FEATURES)]


def test_of_mining_each_is_held_against_the_same_loss_without() -> None:
    def arm(loss: str, mining: str) -> Arm:
        return {"objective": "pairtune", "loss": loss, "mining": mining}

    results = results_of(
        (arm("supcon", "none"), {"linear": 0.8}, {"val_linear": 0.5}),
        (arm("supcon", "hardness"), {"linear": 0.9}, {"val_linear": 0.6}),
        (arm("supcon", "semi-hard"), {"linear": 0.7}, {"val_linear": 0.5}),
        (arm("triplet", "none"), {"linear": 0.6}, {"val_linear": 0.4}),
        (arm("triplet", "semi-hard"), {"linear": 0.6}, {"val_linear": 0.4}),
        (arm("nt-xent", "semi-hard"), {"linear": 0.6}, {"val_linear": 0.4}),  # nothing to hold it against
        (VANILLA, {"head": 0.95, "linear": 0.85}, {"val_linear": 0.9}),
    )
    lines = claims(mining.conclude(results))
    assert lines[0].startswith("Best on validation is loss supcon, mining hardness: ")
    mined, plain = (Side("linear", arm("supcon", name)) for name in ("hardness", "none"))
    widened = points(results.difference(mined, plain, comparisons=3))
    assert f"Supcon with hardness is above the same loss without mining ({widened})." in mining.conclude(results)
    assert lines[-6:] == [
        "Supcon with hardness is above the same loss without mining",
        "Supcon with semi-hard is below the same loss without mining",
        "No significant difference between mining and none: triplet with semi-hard.",
        "(Intervals widened for 3 comparisons.)",
        f"Supcon with hardness is below {HEAD}",
        f"Supcon with hardness is above {FEATURES}",
    ]


def test_of_shots_a_tail_is_held_against_even_classes_and_pairtune_against_both_others() -> None:
    def arm(objective: str, clips: str, count: int) -> Arm:
        return {"objective": objective, "clips": clips, "shots": count}

    results = results_of(
        (arm("frozen", shots.EVEN, 5), {"linear": 0.85}, {}),
        (arm("finetune", shots.EVEN, 5), {"linear": 0.8, "head": 0.95}, {}),
        (arm("pairtune", shots.EVEN, 5), {"linear": 0.9}, {}),
        (arm("frozen", shots.UNEVEN, 9), {"linear": 0.95}, {}),
        (arm("finetune", shots.UNEVEN, 9), {"linear": 0.7, "linear_rare": 0.5, "head": 0.7}, {}),
        (arm("finetune", shots.SPREAD, 5), {"linear": 0.7, "linear_rare": 0.6}, {}),
        (arm("pairtune", shots.UNEVEN, 9), {"linear": 0.9, "linear_rare": 0.8}, {}),
        (arm("pairtune", shots.SPREAD, 5), {"linear": 0.8, "linear_rare": 0.8}, {}),
    )
    assert claims(shots.conclude(results)) == [
        "With 5 per class: PairTune + linear probe is above the frozen encoder",
        f"With 5 per class: PairTune + linear probe is below {HEAD}",
        f"With 5 per class: PairTune + linear probe is above {FEATURES}",
        "(Intervals widened for 3 comparisons.)",
        "On all classes: no significant difference between finetune on a long tail and finetune on even classes",
        "On all classes: pairtune on a long tail is above pairtune on even classes",
        "On the rarer classes: finetune on a long tail is below finetune on even classes",
        "On the rarer classes: no significant difference between pairtune on a long tail and pairtune on even classes",
        "On a long tail: PairTune + linear probe is below the frozen encoder",
        f"On a long tail: PairTune + linear probe is above {HEAD}",
        f"On a long tail: PairTune + linear probe is above {FEATURES}",
        "(Intervals widened for 7 comparisons.)",
    ]


def test_of_temperature_the_best_on_validation_is_held_against_vanilla() -> None:
    results = results_of(
        ({"objective": "pairtune", "temperature": 0.1}, {"linear": 0.7}, {"val_linear": 0.9}),
        ({"objective": "pairtune", "temperature": 1.0}, {"linear": 0.9}, {"val_linear": 0.8}),
        (VANILLA, {"head": 0.8, "linear": 0.6}, {"val_linear": 1.0}),
    )
    lines = claims(temperature.conclude(results))
    assert lines[0].startswith("Best on validation is temperature 0.1: ")
    assert lines[1] == "Significantly better on test, though not on validation: temperature 1.0."
    assert lines[-2:] == [f"PairTune at 0.1 is below {HEAD}", f"PairTune at 0.1 is above {FEATURES}"]


def test_of_a_ranking_each_arm_is_distinguished_as_one_of_many() -> None:
    """Of twenty that are a little worse, some differ by themselves and not as one of twenty."""
    results = results_of(
        *(({"t": at}, {"linear": 0.8 - at / 250}, {"val_linear": 0.9 - at / 1000}) for at in range(21))
    )
    best, *others = results.arms()
    worse = {
        comparisons: [
            f"t {arm['t']}"
            for arm in others
            if results.difference(Side("linear", best), Side("linear", arm), comparisons).low > 0
        ]
        for comparisons in (1, 20)
    }
    assert 0 < len(worse[20]) < len(worse[1])
    assert f": {'; '.join(worse[20])}." in ranking(results, results.arms(), "t")[1]


def test_of_unseen_classes_prototypes_are_judged_and_of_trained_ones_the_linear_probe() -> None:
    def results_at(setting: Arm, metric: str, *shares: float) -> list[tuple[Arm, dict[str, float], dict[str, float]]]:
        other = {"prototype": "linear", "linear": "prototype"}[metric]
        return [
            ({"objective": objective, **setting}, {metric: share, other: 0.5}, {})
            for objective, share in zip(("frozen", "finetune", "pairtune"), shares, strict=True)
        ]

    results = results_of(
        *results_at({"classes": "trained", "domain": "phone"}, "linear", 0.6, 0.9, 0.8),
        *results_at({"classes": "unseen", "domain": "noise", "way": 5, "shots": 1}, "prototype", 0.9, 0.7, 0.8),
    )
    trained: Arm = {"classes": "trained", "domain": "phone"}
    ours, frozen = (Side("linear", {"objective": name, **trained}) for name in ("pairtune", "frozen"))
    assert points(results.difference(ours, frozen, comparisons=4)) in unseen.conclude(results)[0]
    assert claims(unseen.conclude(results)) == [
        "Trained classes, phone: PairTune is above the frozen encoder",
        "Trained classes, phone: PairTune is below vanilla",
        "Unseen classes, noise (5-way 1-shot): PairTune is below the frozen encoder",
        "Unseen classes, noise (5-way 1-shot): PairTune is above vanilla",
        "(Intervals widened for 4 comparisons.)",
    ]


def test_a_correlation_is_of_ranks_within_the_same_data() -> None:
    """Rising with the measure in each of two data sets, while the one with the larger measures is the harder."""

    def outcomes_of_source(source: str, shift: float, sign: float) -> list[Outcome]:
        return [
            outcome(
                {"objective": "pairtune", "temperature": i, "from": source}, 0,
                {"linear": [0.5 - shift + sign * 0.01 * i, 0.5 - shift + sign * 0.01 * i]}, isoscore=shift + 0.01 * i,
            )
            for i in range(8)
        ]  # fmt: skip

    results = Results(outcomes_of_source("easy", 0.0, 1) + outcomes_of_source("hard", 0.3, 1))
    found = isotropy.pairs(results.rows, "isoscore", "linear").correlation()
    assert found.value == pytest.approx(1.0)
    assert found.significant
    falling = Results(outcomes_of_source("easy", 0.0, -1) + outcomes_of_source("hard", 0.3, -1))
    assert isotropy.pairs(falling.rows, "isoscore", "linear").correlation().value == pytest.approx(-1.0)
    assert math.isnan(isotropy.pairs(results.rows, "anisotropy", "linear").correlation().value)


def encoder(name: str, source: str, share: float, isoscore: float, seed: int = 0) -> Outcome:
    arm: Arm = {"objective": "pairtune", "temperature": name, "from": source}
    return outcome(arm, seed, {"linear": [share, share]}, isoscore=isoscore)


def test_encoders_judged_alone_make_no_correlation() -> None:
    """Each alone on its data but two, in three seeds: of these a correlation is 1 or -1, whatever the measure is worth."""
    alone = [encoder(str(n), f"study {n}", 0.1 * n, 0.1 * n, seed) for n in range(6) for seed in range(3)]
    two = [encoder(name, "both", share, share, seed) for name, share in (("a", 0.5), ("b", 0.7)) for seed in range(3)]
    level = [encoder(str(n), "easy", 1.0, 0.1 * n) for n in range(6)]
    results = Results(alone + two + level)
    assert isotropy.pairs(results.rows, "isoscore", "linear").different == 2
    assert len(isotropy.pairs(results.rows, "isoscore", "linear").measure) == 2  # of their seeds, the means
    assert isotropy.conclude(results)[0].startswith("Too few encoders for a correlation: 5 that differ in objective")
    assert math.isnan(isotropy.pairs(Results(alone).rows, "isoscore", "linear").correlation().value)


def test_a_measure_that_has_nothing_to_do_with_accuracy_is_seldom_correlated_with_it() -> None:
    """In each layout (arms on each of some data) of encoders of three seeds, one interval in twenty may leave out zero."""
    rng, significant = np.random.default_rng(0), Counter[tuple[int, ...]]()
    layouts = [(8,), (4, 6), (3,) * 6, (2,) * 3]
    for layout, _ in itertools.product(layouts, range(200)):
        outcomes = [
            encoder(f"{source} {arm}", f"{source}", *(worth + 0.2 * rng.normal(size=2)), seed)
            for source, arms in enumerate(layout)
            for arm, worth in enumerate(rng.normal(size=(arms, 2)))
            for seed in range(3)
        ]
        significant[layout] += isotropy.pairs(Results(outcomes).rows, "isoscore", "linear").correlation().significant
    assert all(0.005 < significant[layout] / 200 < 0.08 for layout in layouts[:-1])
    assert not significant[2, 2, 2]  # all three in one order: one draw in four


def test_a_perfect_correlation_of_few_encoders_has_an_interval() -> None:
    def perfect(arms: int, comparisons: int) -> Estimate:
        encoders = [encoder(str(n), "one", 0.1 * n, -0.1 * n) for n in range(arms)]
        return isotropy.pairs(Results(encoders).rows, "isoscore", "linear").correlation(comparisons)

    assert perfect(8, 12).significant
    assert perfect(8, 12).low == pytest.approx(-1, abs=1e-6)
    assert perfect(8, 12).high > -0.9
    assert not perfect(5, 12).significant  # one order in sixty is as good by chance


def test_an_encoder_that_two_studies_measured_is_one() -> None:
    """Its geometry is the same in both, though another study found it a little less accurate."""
    one = [encoder(str(n), "one", 0.1 * n, n) for n in range(3)]
    two = [encoder(str(n), "two", 0.09 * n, n) for n in range(4)]
    rows = Results(one + two).rows
    assert [row.arm["from"] for row in isotropy.encoders(rows)] == ["one"] * 3 + ["two"]


def test_variants_of_a_training_are_not_encoders_of_their_own() -> None:
    """Of what `study isotropy` once trained: each temperature after few and many epochs, with and without hardness.

    Where the variants are near-copies and geometry has nothing to do with accuracy, a correlation is seldom claimed.
    """
    rng, claimed = np.random.default_rng(0), 0
    for _ in range(60):
        outcomes = []
        for value in range(8):
            worth = rng.normal(size=2)
            for epochs, hardness in itertools.product((5, 20), (0, 4)):
                accuracy, isoscore = worth + 0.1 * rng.normal(size=2)
                arm: Arm = {"objective": "pairtune", "epochs": epochs, "temperature": value, "hardness": hardness}
                outcomes.append(outcome(arm, 0, {"linear": [0.5 + accuracy / 10]}, isoscore=isoscore))
        found = isotropy.pairs(Results(outcomes).rows, "isoscore", "linear")
        assert found.different == 8
        claimed += found.correlation().significant
    assert claimed / 60 < 0.1  # 0.42, were the 32 counted one by one


def test_a_rotation_is_told_by_what_it_moves_of_knn() -> None:
    results = Results(
        outcome(
            {"objective": "frozen", "basis": basis, "what": "drop top", "dimensions": 0}, 0,
            {"linear": [linear, linear], "knn": [knn, knn]}, top1_train=top,
        )
        for basis, linear, knn, top in (("own", 0.9, 0.7, 0.4), ("rotated", 0.6, 0.8, 0.1))
    )  # fmt: skip
    assert dimensions.conclude(results)[0] == (
        "frozen: the top dimension contributes 0.400; after a random rotation 0.100, which moves kNN by +10.0 points."
    )


def balance_results(penalised: float, reached: float, ours: float = 0.9, moves: float = 0.01) -> Results:
    """Three seeds, by which each balance but vanilla's moves, and of which vanilla's own is 0.3."""
    rng = np.random.default_rng(0)
    whole: Arm = {"basis": "own", "what": "drop top", "dimensions": 0}
    arms: list[tuple[Arm, float, float, float]] = [
        ({"objective": "finetune"}, 0.70, 0.3, 0.0),
        ({"objective": "pairtune"}, 0.80, ours, moves),
        ({"objective": "finetune, balanced", "penalty": 0.1}, 0.70, 0.3, 0.0),
        ({"objective": "finetune, balanced", "penalty": 1.0}, penalised, reached, -moves),
    ]
    return Results(
        outcome(
            {**arm, **whole}, seed, {"linear": list(share + rng.normal(0, 0.01, 20)), "knn": [share] * 20},
            balance=balance + (seed - 1) * moved,
        )
        for arm, share, balance, moved in arms
        for seed in range(3)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("penalised", "reached", "verdict"),
    [
        (0.78, 0.85, "So balance by itself raised accuracy."),
        (0.70, 0.85, "So balance by itself did not significantly raise accuracy."),
        (0.78, 0.5, "than half of the gap, so nothing is concluded about the cause."),
        (0.78, 0.61, "than half of the gap, so nothing is concluded about the cause."),  # 0.6 is half
        (0.78, 1.19, "than half of the gap, so nothing is concluded about the cause."),  # 1.2 is as far beyond
    ],
)
def test_balance_is_a_cause_only_where_bringing_it_about_brought_accuracy(
    penalised: float, reached: float, verdict: str
) -> None:
    lines = dimensions.conclude(balance_results(penalised, reached))
    assert lines[-1].endswith(verdict)
    assert "penalty of 1.0" in " ".join(lines)


@pytest.mark.parametrize(
    ("ours", "moves", "verdict"),
    [
        (
            0.28,
            0.001,
            "PairTune is less balanced than vanilla here (-0.020 [-0.022, -0.018]), so balance cannot be the reason",
        ),
        (
            0.28,
            0.01,
            "No significant difference in balance between PairTune and vanilla (-0.020 [-0.045, 0.005]), so nothing",
        ),
        (
            0.40,
            0.05,
            "No significant difference in balance between PairTune and vanilla (0.100 [-0.024, 0.224]), so nothing",
        ),
    ],
)
def test_balance_is_ruled_out_only_where_seeds_agree_that_pairtune_has_less(
    ours: float, moves: float, verdict: str
) -> None:
    assert dimensions.conclude(balance_results(0.78, ours, ours, moves))[-1].startswith(verdict)


def test_a_study_says_what_its_intervals_do_not_cover() -> None:
    def base(groups: int, seeds: int) -> str:
        return facts(Results(outcome({"o": "a"}, seed, {"linear": [0.5] * groups}) for seed in range(seeds)))

    groups_only = "With one seed, the intervals cover the test groups only."
    seeds_only = "With one test group, the intervals cover the seeds only."
    assert base(1, 3).endswith(seeds_only)
    assert base(3, 1).endswith(groups_only)
    assert "intervals cover" not in base(1, 1) + base(3, 3)  # of one seed and one group there are none


def test_the_encoders_of_isotropys_own_plan_are_enough_for_a_claim() -> None:
    """The seven kinds that its plan trains, in the order of one measure: of 24 correlations two are claimed."""
    pairtune = [{"objective": "pairtune", "temperature": value} for value in isotropy.TEMPERATURES]
    kinds: list[Arm] = [{"objective": "frozen"}, VANILLA, *pairtune]
    rng = np.random.default_rng(0)
    other = {kind: dict(zip(isotropy.MEASURES, rng.random(6), strict=True)) for kind in range(len(kinds))}
    outcomes = [
        outcome(
            {**arm, "epochs": epochs}, seed, {key: [0.5 + at / 20] for key in ("linear", "knn")},
            **{**other[at], "silhouette": at / 10 + seed / 100},
        )
        for at, arm in enumerate(kinds)
        for epochs in (2, 8)
        for seed in range(3)
    ]  # fmt: skip
    lines = isotropy.conclude(Results(outcomes))
    assert re.match(
        r"Over all encoders, significant .*: silhouette with linear [^;]*; silhouette with knn [^;]*$", lines[0]
    )
    assert not any("significant" in line and "no significant" not in line for line in lines[1:])
    assert "(Intervals widened for 24 comparisons.)" in lines
