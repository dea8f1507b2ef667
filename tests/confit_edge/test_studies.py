"""The machinery of the studies: which data a trial gets, what is kept of it, and what may be concluded from numbers."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.encoders import pretrained
from confit_edge.geometry.measures import contribution
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.trainer import prepared_training
from confit_edge.probes.judge import judge
from confit_edge.probes.metrics import interval
from confit_edge.recipe import Recipe
from confit_edge.studies import find, names
from confit_edge.studies.bench import precision_tally
from confit_edge.studies.journal import Journal, read_outcomes
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
from confit_edge.studies.results import Estimate, Results, Side
from confit_edge.studies.subset import (
    clips_per_class,
    cut,
    draw_classes,
    noisy,
    phone,
    shifted,
    tail_sizes,
    with_classes,
)
from confit_edge.studies.trial import Arm, Outcome, Point, Subset, Trial
from confit_runtime.errors import ConfitError, UsageError


@pytest.fixture(scope="module")
def corpus(tones: Path) -> Corpus:
    return read_corpus(tones, rate=16_000, seed=0)


def outcome(arm: Arm, seed: int, shares: dict[str, list[float]] | None = None, **numbers: float) -> Outcome:
    """Of ten clips in each group, `shares[metric][group]` right."""
    tallies = {
        metric: {f"g{group}": (10 * share, 10.0) for group, share in enumerate(by_group)}
        for metric, by_group in (shares or {}).items()
    }
    return Outcome(f"{arm}{seed}", arm, seed, Subset(), [Point(tallies, numbers)], 0.0)


# which data


def test_a_cut_is_of_the_seed_and_a_small_cut_is_part_of_a_large_one(corpus: Corpus) -> None:
    few, many = cut(corpus, Subset(shots=2), 3), cut(corpus, Subset(shots=5), 3)
    assert set(clips_per_class(few).values()) == {2}
    assert set(clips_per_class(many).values()) == {5}
    assert set(few.train.paths) < set(many.train.paths) < set(corpus.train.paths)
    assert set(Counter(few.val.labels.tolist()).values()) == {2}
    assert few.test.paths == corpus.test.paths
    assert cut(corpus, Subset(shots=2), 3).train.paths == few.train.paths
    assert cut(corpus, Subset(shots=2), 4).train.paths != few.train.paths
    assert draw_classes(corpus, 2, 3) == [
        name for name in draw_classes(corpus, 3, 3) if name in draw_classes(corpus, 2, 3)
    ]


def test_a_cut_to_groups_and_to_classes_keeps_just_these(corpus: Corpus) -> None:
    some = cut(corpus, Subset(groups=2), 1)
    assert len(set(some.train.groups)) == 2
    assert some.val.paths == corpus.val.paths
    for name in ("train", "val", "test"):
        one, whole = getattr(cut(corpus, Subset(classes=3), 1), name), getattr(corpus, name)
        kept = draw_classes(corpus, 3, 1)
        wanted = [path for path, label in zip(whole.paths, whole.labels, strict=True) if corpus.classes[label] in kept]
        assert one.paths == wanted
        assert one.targets.shape == (len(wanted), 3)
        assert [kept[label] for label in one.labels] == [f"tone{path.stem.split('-')[2]}" for path in wanted]
    with pytest.raises(UsageError, match=r"--train-groups 9: there are only 4 groups"):
        cut(corpus, Subset(groups=9), 0)


def test_a_cut_that_leaves_a_class_without_clips_is_refused(corpus: Corpus) -> None:
    lost = [index for index, label in enumerate(corpus.train.labels) if label or corpus.train.groups[index] == "train0"]
    thin = replace(corpus.train, pcm=[corpus.train.pcm[i] for i in lost], targets=corpus.train.targets[lost],
                   groups=[corpus.train.groups[i] for i in lost], paths=[corpus.train.paths[i] for i in lost],
                   uncut=None)  # fmt: skip
    refused = []
    for seed in range(8):
        try:
            cut(replace(corpus, train=thin), Subset(groups=1), seed)
        except UsageError as error:
            refused.append(str(error))
    assert 0 < len(refused) < 8  # where the one group drawn is not train0
    assert all("class 'tone0' has no clip in the groups of seed" in message for message in refused)


def test_a_tail_falls_from_all_the_shots_to_a_share_of_them(corpus: Corpus) -> None:
    sizes = tail_sizes(corpus, 8, 8.0, 0)
    assert sorted(sizes.values()) == [1, 2, 4, 8]
    assert clips_per_class(cut(corpus, Subset(shots=8, tail=8.0), 0)) == sizes
    assert tail_sizes(corpus, 8, 8.0, 1) != sizes


def test_clips_of_no_class_stay_whatever_is_cut(corpus: Corpus) -> None:
    """Of several labels or none, those with none are what the others are told from."""
    targets = corpus.train.targets.copy()
    targets[:, -1] = 0
    none = int((~targets.any(axis=1)).sum())
    assert none > 2
    several = replace(corpus, train=replace(corpus.train, targets=targets), multi_label=True)
    few = cut(with_classes(several, several.classes[:2]), Subset(shots=2), 0)
    assert int((~few.train.targets.any(axis=1)).sum()) == none
    assert few.train.targets.sum(axis=0).tolist() == [2, 2]


def with_several_labels(corpus: Corpus, beside: int) -> Corpus:
    """Of every second clip of each class the class `beside` it is heard, too."""

    def doubled(clips: Clips) -> Clips:
        targets = clips.targets.copy()
        targets[::2] |= np.roll(targets[::2], beside, axis=1)
        return replace(clips, targets=targets)

    return replace(corpus, train=doubled(corpus.train), val=doubled(corpus.val), multi_label=True)


def test_a_clip_of_several_labels_counts_for_each(corpus: Corpus) -> None:
    several = with_several_labels(corpus, 1)
    for seed in range(4):
        trials = find("shots").plan(several, replace(Recipe(), seed=seed))
        for trial in trials:
            there = clips_per_class(cut(several, trial.subset, seed))
            if trial.subset.tail is None:
                assert set(there.values()) == {trial.arm["shots"]}
            else:
                mean = sum(there.values()) / len(there)
                assert trial.options["rare"] == json.dumps([name for name in sorted(there) if there[name] < mean])
        assert {trial.arm["shots"] for trial in trials} > {1, 2}


def test_labels_that_no_draw_makes_even_are_refused(corpus: Corpus) -> None:
    """The first label is on every clip: one clip of each other label brings more than one of it."""
    targets = corpus.train.targets.copy()
    targets[:, 0] = 1
    several = replace(corpus, train=replace(corpus.train, targets=targets), multi_label=True)
    with pytest.raises(UsageError, match="equally many clips of every label"):
        find("shots").plan(several, Recipe())


def test_a_tail_of_one_and_two_clips_has_rarer_classes(corpus: Corpus) -> None:
    few = cut(with_classes(corpus, corpus.classes[:3]), Subset(shots=2), 0)
    trials = find("shots").plan(few, Recipe())
    rare = {trial.options["rare"] for trial in trials if "rare" in trial.options}
    tail = tail_sizes(few, 2, 2.0, 0)
    assert rare == {json.dumps(sorted(name for name, size in tail.items() if size == 1))}


def test_another_domain_is_the_same_clip_heard_otherwise() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    low, high = (0.3 * np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (500, 6000))
    noise = noisy(low, 16_000, rng) - low
    assert 10 * np.log10((low**2).mean() / (noise**2).mean()) == pytest.approx(5, abs=0.01)
    assert np.abs(phone(low, 16_000, rng)[400:-400] - low[400:-400]).max() < 0.03  # mu-law keeps it nearly
    assert np.abs(phone(high, 16_000, rng)[400:-400]).max() < 0.01  # the line ends at 4 kHz


def test_shifted_clips_are_the_same_each_time(corpus: Corpus) -> None:
    one, other = (shifted(corpus.test, "noise", 16_000, 0) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one.pcm, other.pcm, strict=True))
    assert one.paths == corpus.test.paths


# what is kept


def test_a_key_is_of_all_that_makes_a_trial() -> None:
    trial = Trial({"objective": "pairtune"}, Recipe())
    others = [
        replace(trial, recipe=Recipe(seed=1)),
        replace(trial, subset=Subset(shots=1)),
        replace(trial, train=False),
        replace(trial, options={"penalty": 1.0}),
        replace(trial, arm={"objective": "finetune"}),
    ]
    assert trial.key("shots") == Trial({"objective": "pairtune"}, Recipe()).key("shots")
    assert len({one.key("shots") for one in [trial, *others]} | {trial.key("unseen")}) == 7


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5), st.floats(), max_size=4),
    st.dictionaries(st.text(max_size=5), st.tuples(st.integers(0, 9), st.integers(9, 20)), max_size=4),
)
def test_an_outcome_comes_back_from_its_line(numbers: dict[str, float], tally: dict[str, tuple[int, int]]) -> None:
    kept = Outcome("k", {"a": 1, "b": "é\n"}, 3, Subset(shots=2), [Point({"linear": tally}, numbers, {"c": 0.5})], 1.5)  # type: ignore[dict-item]
    line = kept.to_json()
    assert "\n" not in line
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    assert Outcome.from_json(line) == replace(kept, points=[replace(kept.points[0], numbers=finite)])


def test_a_journal_goes_on_after_a_line_that_was_cut_short(tmp_path: Path) -> None:
    header = {"study": "shots", "recipe": Recipe().to_dict(), "fingerprint": "f", "encoder_sha256": "e"}
    journal = Journal(tmp_path / "out", header)
    assert journal.open() == {}
    assert not (tmp_path / "out").exists()
    journal.begin()
    first, second = outcome({"objective": "pairtune"}, 0), outcome({"objective": "pairtune"}, 1)
    journal.append(first)
    trials = tmp_path / "out" / "trials.jsonl"
    whole = trials.read_bytes()
    for length in (1, len(second.to_json()) // 2, len(second.to_json())):  # the last lacks only its end of line
        trials.write_bytes(whole + second.to_json().encode()[:length])
        again = Journal(tmp_path / "out", header)
        assert list(again.open()) == [first.key]
        again.begin()
        again.append(second)
        assert [one.key for one in read_outcomes(tmp_path / "out")] == [first.key, second.key]
    trials.write_bytes(b'{"key": 1}\n' + whole)
    with pytest.raises(ConfitError, match=r"trials\.jsonl, line 1: not an outcome"):
        Journal(tmp_path / "out", header).open()


def test_a_journal_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    header = {"study": "shots", "recipe": Recipe().to_dict(), "fingerprint": "f", "encoder_sha256": "e"}
    Journal(tmp_path / "out", header).begin()
    other = {**header, "study": "batch", "recipe": Recipe(epochs=1).to_dict(), "fingerprint": "g"}
    with pytest.raises(UsageError, match="differs in study, fingerprint, recipe key 'epochs'"):
        Journal(tmp_path / "out", other).open()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and contains no study"):
        Journal(tmp_path / "other", header).open()


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


def test_a_difference_of_nothing_is_seldom_told() -> None:
    """Two arms that are equally good, on groups that differ: about one interval in twenty may leave out zero."""
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(200):
        hard = rng.uniform(0.4, 0.9, 12)
        outcomes = [
            outcome({"o": arm}, seed, {"linear": list(rng.binomial(10, np.clip(hard + quirk, 0, 1)) / 10)})
            for arm in "ab"
            for quirk in [rng.normal(0, 0.08, 12)]
            for seed in range(3)
        ]
        told += Results(outcomes).difference(Side("linear", {"o": "a"}), Side("linear", {"o": "b"})).significant
    assert told / 200 < 0.08


def test_map_has_the_interval_of_its_own_bootstrap_and_nothing_is_seldom_told() -> None:
    """Of two arms that hear three labels equally well: the interval of one seed is as long as that of `judge`'s draws."""
    rng, told, lengths = np.random.default_rng(0), 0, []
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
        told += results.difference(Side("linear", {"o": "a"}), Side("linear", {"o": "b"})).significant
        alone = results.where(lambda row: row.seed == 0).share("linear", o="a")
        own = judge(scores["a", 0], targets, groups, ["x", "y", "z"], multi_label=True).metrics["map"]
        assert alone.value == pytest.approx(own.value)
        low, high = interval(own.value, own.samples, own.units)
        lengths.append((alone.high - alone.low) / (high - low))
    assert told / 100 < 0.1
    assert np.mean(lengths) == pytest.approx(1, abs=0.1)


def test_a_difference_in_every_group_and_seed_is_told_and_one_of_three_groups_is_not() -> None:
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


def test_settings_that_no_group_tells_apart_are_not_certainly_alike() -> None:
    results = Results(outcome({"o": arm}, 0, {"linear": [0.5] * 6}) for arm in ("a", "b"))
    gap = results.difference(Side("linear", {"o": "a"}), Side("linear", {"o": "b"}))
    assert not gap.significant
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.0, 0.025 ** (1 / 6) - 1, 1 - 0.025 ** (1 / 6)))


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
    numbers = {"epochs_head": (1.0, 3.0), "anisotropy": (0.9, 1.0), "isoscore": (0.0, 0.2), "val_linear": (0.8, 1.0)}
    results = Results(
        outcome({"o": "a"}, seed, **{name: pair[seed] for name, pair in numbers.items()}) for seed in (0, 1)
    )
    found = {name: results.number(name, o="a") for name in numbers}
    assert (found["epochs_head"].low, found["epochs_head"].value) == (1, 2)
    assert (found["anisotropy"].low, found["anisotropy"].high) == (pytest.approx(0.95 - 12.706 * 0.05, abs=1e-4), 1)
    assert found["isoscore"].low == 0
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
    some = Results(
        outcome({"o": arm}, seed, {"linear": [0.5, 0.5], "linear_rare": rare})
        for arm in "ab"
        for seed, rare in ((0, []), (1, [1.0, 0.5]))
    )
    assert some.share("linear_rare", o="a").value == 0.75
    none = some.where(lambda row: row.seed == 0)
    gap = none.difference(Side("linear_rare", {"o": "a"}), Side("linear_rare", {"o": "b"}))
    assert versus("A", "B", gap) == "A and B were not both measured."
    assert none.share("linear", o="a").value == 0.5
    bare = [
        outcome({"objective": "pairtune", "n": n}, 0, {"linear": [], "knn": []}, isoscore=0.1 * n) for n in range(6)
    ]
    assert isotropy.conclude(Results(bare))[0].startswith("Too few encoders")


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
    def made(t: float, validation: dict[int, float]) -> list[Outcome]:
        return [outcome({"t": t}, seed, {"linear": [0.8] * 6}, val_linear=val) for seed, val in validation.items()]

    whole = made(0.1, {0: 0.9, 1: 0.7, 2: 0.8})
    worse = made(0.2, {0: 0.8, 1: 0.6, 2: 0.7})
    thinned = Results(whole + worse + made(0.5, {0: 0.89}))
    assert (
        "Best on validation is t 0.1 (of those with 3 of 3 seeds): 80.0 %" in ranking(thinned, thinned.arms(), "t")[0]
    )
    two = Results(made(0.1, {0: 0.9, 1: 0.7}) + made(0.2, {0: 0.91, 2: 0.6}) + made(0.5, {1: 0.99}))
    assert "Best on validation is t 0.2 (of those with 2 of 3 seeds): 80.0 %" in ranking(two, two.arms(), "t")[0]
    apart = Results(made(0.1, {0: 0.9}) + made(0.2, {1: 0.8}))
    assert apart.best(apart.arms()) == {"t": 0.1}
    assert "is t 0.1: " in ranking(Results(whole + worse), Results(whole + worse).arms(), "t")[0]


def test_a_conclusion_says_for_how_many_comparisons_its_intervals_are_widened() -> None:
    rng = np.random.default_rng(0)

    def near(share: float) -> dict[str, list[float]]:
        return {"linear": list(share + rng.normal(0, 0.01, 20)), "knn": [share] * 20}

    dropped = Results(
        outcome({"objective": "pairtune", "basis": "own", "what": what, "dimensions": count}, seed, near(share))
        for what, shares in (("drop top", (0.9, 0.7, 0.8)), ("drop random", (0.9, 0.8, 0.8)))
        for count, share in enumerate(shares)
        for seed in range(3)
    )
    lines = dimensions.conclude(dropped)
    assert lines[:2] == ["frozen was not measured.", "finetune was not measured."]
    (told,) = [line for line in lines if "differs from dropping as many at random" in line]
    assert re.search(r"for 1 \(-\d+\.\d points \[-\d+\.\d, -\d+\.\d\]\)\.", told)
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


def measured(*arms: tuple[Arm, dict[str, float], dict[str, float]]) -> Results:
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
    results = measured(*((arm, share, {"val_linear": 0.5}) for arm, share, _ in arms))
    lines = claims(batch.conclude(results))
    assert "Batch 200, averaged over the rest, is above batch 50" in lines
    assert "Batch 200, averaged over the rest, is above batch 100" in lines
    assert "Window 1.0, averaged over the rest, is above window 0.5" in lines
    effect = batch.main_effect(results, "batch", 200, 50)
    assert effect.value == pytest.approx(0.15, abs=0.005)
    # the window of 0.5 has no batch of 100, and counts for nothing here
    assert batch.main_effect(results, "batch", 200, 100).value == pytest.approx(0.10, abs=0.005)
    assert math.isnan(batch.main_effect(results, "batch", 200, 7).value)


@pytest.mark.parametrize(("gain", "verdict"), [(0.2, "above"), (0.1, None), (0.02, "below")])
def test_of_classes_a_gain_is_held_against_that_of_the_fewest(gain: float, verdict: str | None) -> None:
    """With few classes PairTune is 0.1 above vanilla's head and 0.05 below its features, with many `gain` and 0.05 less."""
    results = measured(
        ({"objective": "pairtune", "classes": 2}, {"linear": 0.7}, {}),
        ({**VANILLA, "classes": 2}, {"head": 0.6, "linear": 0.75}, {}),
        ({"objective": "pairtune", "classes": 50}, {"linear": 0.5}, {}),
        ({**VANILLA, "classes": 50}, {"head": 0.5 - gain, "linear": 0.55}, {}),
    )
    ours, head = Side("linear", {"objective": "pairtune", "classes": 2}), Side("head", {**VANILLA, "classes": 2})
    assert points(results.difference(ours, head, comparisons=2)) in classes.conclude(results)[0]
    lines = claims(classes.conclude(results))
    assert lines[:2] == [
        f"With 2 classes: PairTune + linear probe is above {HEAD}",
        f"With 2 classes: PairTune + linear probe is below {FEATURES}",
    ]
    assert lines[4] == "(Intervals widened for 2 comparisons.)"
    told = f"The gain over {HEAD} with 50 classes is {verdict} that with 2"
    untold = [
        f"No significant difference between the gain over {r} with 50 classes and that with 2" for r in (HEAD, FEATURES)
    ]
    assert lines[5:] == ([told, untold[1]] if verdict else untold)


@pytest.mark.parametrize(
    ("ours", "claim"), [(3.0, "PairTune takes fewer epochs than"), (11.0, "PairTune takes more epochs than")]
)
def test_of_convergence_fewer_epochs_are_fewer_and_its_curves_are_no_end(ours: float, claim: str) -> None:
    results = measured(
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

    results = measured(
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
    assert "Supcon with hardness is above the same loss without mining" in lines
    assert "Supcon with semi-hard is below the same loss without mining" in lines
    assert "No significant difference between mining and none: triplet with semi-hard." in lines
    assert lines[-3:] == [
        "(Intervals widened for 3 comparisons.)",
        f"Supcon with hardness is below {HEAD}",
        f"Supcon with hardness is above {FEATURES}",
    ]


def test_of_shots_a_tail_is_held_against_even_classes_and_pairtune_against_both_others() -> None:
    def arm(objective: str, clips: str, count: int) -> Arm:
        return {"objective": objective, "clips": clips, "shots": count}

    results = measured(
        (arm("frozen", shots.EVEN, 5), {"linear": 0.87}, {}),
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
        "On all classes: no significant difference between finetune on a long tail and finetune on even classes",
        "On all classes: pairtune on a long tail is above pairtune on even classes",
        "On the rarer classes: finetune on a long tail is below finetune on even classes",
        "On the rarer classes: no significant difference between pairtune on a long tail and pairtune on even classes",
        "On a long tail: PairTune + linear probe is below the frozen encoder",
        f"On a long tail: PairTune + linear probe is above {HEAD}",
        f"On a long tail: PairTune + linear probe is above {FEATURES}",
    ]


def test_of_temperature_the_best_on_validation_is_held_against_vanilla() -> None:
    results = measured(
        ({"objective": "pairtune", "temperature": 0.1}, {"linear": 0.7}, {"val_linear": 0.9}),
        ({"objective": "pairtune", "temperature": 1.0}, {"linear": 0.9}, {"val_linear": 0.8}),
        (VANILLA, {"head": 0.8, "linear": 0.6}, {"val_linear": 1.0}),
    )
    lines = claims(temperature.conclude(results))
    assert lines[0].startswith("Best on validation is temperature 0.1: ")
    assert lines[1] == "Significantly better on test, though not on validation: temperature 1.0."
    assert lines[-2:] == [f"PairTune at 0.1 is below {HEAD}", f"PairTune at 0.1 is above {FEATURES}"]


def test_of_a_ranking_each_arm_is_told_apart_as_one_of_many() -> None:
    """Of twenty that are ever so little worse, some differ by themselves and not as one of twenty."""
    results = measured(*(({"t": at}, {"linear": 0.8 - at / 2000}, {"val_linear": 0.9 - at / 1000}) for at in range(21)))
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
    def made(setting: Arm, metric: str, *shares: float) -> list[tuple[Arm, dict[str, float], dict[str, float]]]:
        other = {"prototype": "linear", "linear": "prototype"}[metric]
        return [
            ({"objective": objective, **setting}, {metric: share, other: 0.5}, {})
            for objective, share in zip(("frozen", "finetune", "pairtune"), shares, strict=True)
        ]

    results = measured(
        *made({"classes": "trained", "domain": "phone"}, "linear", 0.6, 0.9, 0.8),
        *made({"classes": "unseen", "domain": "noise", "way": 5, "shots": 1}, "prototype", 0.9, 0.7, 0.8),
    )
    trained: Arm = {"classes": "trained", "domain": "phone"}
    ours, frozen = (Side("linear", {"objective": name, **trained}) for name in ("pairtune", "frozen"))
    assert points(results.difference(ours, frozen, comparisons=2)) in unseen.conclude(results)[0]
    assert claims(unseen.conclude(results)) == [
        "Trained classes, phone: PairTune is above the frozen encoder",
        "Trained classes, phone: PairTune is below vanilla",
        "Unseen classes, noise (5-way 1-shot): PairTune is below the frozen encoder",
        "Unseen classes, noise (5-way 1-shot): PairTune is above vanilla",
        "(Intervals widened for 2 comparisons.)",
    ]


# the parts of single studies


def test_every_file_of_questions_is_a_study_of_its_name() -> None:
    assert [find(name).name for name in names()] == names()
    assert {"dimensions", "shots", "unseen", "temperature", "mining", "batch", "classes", "convergence"} < set(names())
    with pytest.raises(UsageError, match="study 'luck': there is no such study; choose one of batch, classes"):
        find("luck")


def test_mining_is_tried_with_every_loss_that_can_use_it() -> None:
    pairs = [(one.loss, one.mining) for one in mining.combinations(Recipe(), multi_label=False)]
    assert len(pairs) == len(set(pairs))
    assert {loss for loss, _ in pairs} == {"supcon", "triplet", "nt-xent", "n-pairs", "proxy-anchor"}
    assert ("proxy-anchor", "hardness") not in pairs
    assert {one.loss for one in mining.combinations(Recipe(), multi_label=True)} == {"supcon"}


def test_epochs_to_near_the_best() -> None:
    assert convergence.epochs_to([0.1, 0.5, 0.94, 0.95, 1.0, 0.9]) == 4
    assert convergence.epochs_to([0.9, 0.1, 0.2]) == convergence.epochs_to([0.0, 0.0]) == 1


def test_dropping_dimensions_is_what_a_loop_says() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((7, 6)).astype(np.float32)
    embeddings[:, 2] *= 9
    assert np.argmax(contribution(embeddings)) == 2
    kept = [0, 1, 3, 4, 5]
    naive = [[row[i] / math.sqrt(sum(row[j] ** 2 for j in kept)) for i in kept] for row in embeddings]
    assert np.allclose(dimensions.only(embeddings, np.array([5, 4, 3, 1, 0])), naive, atol=1e-6)


def test_a_random_rotation_leaves_cosines_as_they_are() -> None:
    turn = dimensions.random_rotation(12, 0)
    rows = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    assert np.allclose((rows @ turn) @ (rows @ turn).T, rows @ rows.T, atol=1e-4)
    assert not np.allclose(turn, dimensions.random_rotation(12, 1))


def test_imbalance_is_of_the_shares_of_all_pairs() -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(rows, dim=1)
    sums = sum((unit[i] * unit[j]).abs() for i, j in itertools.permutations(range(6), 2))
    assert isinstance(sums, torch.Tensor)
    shares = sums / sums.sum()
    assert float(dimensions.imbalance(rows)) == pytest.approx(float(4 * (shares**2).sum() - 1), rel=1e-5)
    assert np.allclose(shares.numpy(), contribution(rows.numpy()), atol=1e-6)
    assert float(dimensions.imbalance(torch.ones(5, 8))) == pytest.approx(0, abs=1e-5)
    assert float(dimensions.imbalance(torch.eye(8)[:1].repeat(5, 1))) == pytest.approx(7, rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"chunk_size": 3}, {"chunk_size": 4, "accumulate": 3}])
def test_the_penalty_is_of_the_whole_batch(corpus: Corpus, changes: dict[str, Any]) -> None:
    """Also where a batch is embedded in chunks, or several batches make a step: as the loss that it is added to."""
    encoder = pretrained("speech-embedding", 0.8)
    recipe = Recipe(objective="finetune", clips_per_class=2, **changes)
    options: dict[str, Any] = {"lr": 1e-3, "epochs": 1}
    with prepared_training(encoder, corpus, recipe, **options, make=dimensions.balanced(0.7)) as training:
        pcm, targets = next(training._windows(0))
        assert len(pcm) == 8
        assert isinstance(training.objective, FineTune)
        loss, _ = FineTune.forward(training.objective, embeddings := encoder(pcm), targets)
        loss = loss + 0.7 * dimensions.imbalance(embeddings)
        wanted = torch.autograd.grad(loss / recipe.accumulate, training.parameters)
        told = training._backward(pcm, targets, recipe.accumulate)
        assert told["loss"] == pytest.approx(loss.item(), rel=1e-5)
        found = [parameter.grad for parameter in training.parameters if parameter.grad is not None]
        one, other = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (found, wanted))
        assert float((one - other).norm() / other.norm()) < 1e-5


def test_episodes_are_decided_by_prototypes_of_their_own_classes(corpus: Corpus) -> None:
    """With prints that point where their class does all are right; with the classes swapped, none are."""
    directions = np.eye(4, dtype=np.float32)
    rng = np.random.default_rng(0)
    given, asked = directions[corpus.train.labels], directions[corpus.test.labels]
    found = unseen.episodes(given, corpus.train, asked, corpus.test, 3, 2, rng)
    for tally in found.values():
        assert set(tally) == {"test0", "test1", "test2"}
        assert all(right == clips == 100 * 3 for right, clips in tally.values())
    wrong = unseen.episodes(given, corpus.train, -asked, corpus.test, 2, 1, rng)
    assert sum(right for right, _ in wrong["prototype"].values()) == 0


def test_a_correlation_is_of_ranks_within_the_same_data() -> None:
    """Rising with the measure in each of two data sets, while the one with the larger measures is the harder."""

    def made(source: str, shift: float, sign: float) -> list[Outcome]:
        return [
            outcome(
                {"objective": "pairtune", "temperature": i, "from": source}, 0,
                {"linear": [0.5 - shift + sign * 0.01 * i, 0.5 - shift + sign * 0.01 * i]}, isoscore=shift + 0.01 * i,
            )
            for i in range(8)
        ]  # fmt: skip

    results = Results(made("easy", 0.0, 1) + made("hard", 0.3, 1))
    found = isotropy.pairs(results.rows, "isoscore", "linear").correlation()
    assert found.value == pytest.approx(1.0)
    assert found.significant
    falling = Results(made("easy", 0.0, -1) + made("hard", 0.3, -1))
    assert isotropy.pairs(falling.rows, "isoscore", "linear").correlation().value == pytest.approx(-1.0)
    assert math.isnan(isotropy.pairs(results.rows, "anisotropy", "linear").correlation().value)


def encoder(name: str, source: str, share: float, isoscore: float, seed: int = 0) -> Outcome:
    arm: Arm = {"objective": "pairtune", "n": name, "from": source}
    return outcome(arm, seed, {"linear": [share, share]}, isoscore=isoscore)


def test_encoders_that_no_other_was_judged_beside_make_no_correlation() -> None:
    """Each alone on its data but two, in three seeds: of these a correlation is 1 or -1, whatever the measure is worth."""
    alone = [encoder(str(n), f"study {n}", 0.1 * n, 0.1 * n, seed) for n in range(6) for seed in range(3)]
    two = [encoder(name, "both", share, share, seed) for name, share in (("a", 0.5), ("b", 0.7)) for seed in range(3)]
    level = [encoder(str(n), "easy", 1.0, 0.1 * n) for n in range(6)]
    results = Results(alone + two + level)
    assert isotropy.pairs(results.rows, "isoscore", "linear").different == 2
    assert isotropy.conclude(results)[0].startswith("Too few encoders for a correlation: 5 different ones")
    assert math.isnan(isotropy.pairs(Results(alone).rows, "isoscore", "linear").correlation().value)


def test_a_measure_that_has_nothing_to_do_with_accuracy_is_seldom_correlated_with_it() -> None:
    """In each layout (arms on each of some data) of encoders of three seeds, one interval in twenty may leave out zero."""
    rng, told = np.random.default_rng(0), Counter[tuple[int, ...]]()
    layouts = [(8,), (4, 6), (3,) * 6, (2,) * 3]
    for layout, _ in itertools.product(layouts, range(200)):
        made = [
            encoder(f"{arm}", f"{source}", *(worth + 0.2 * rng.normal(size=2)), seed)
            for source, arms in enumerate(layout)
            for arm, worth in enumerate(rng.normal(size=(arms, 2)))
            for seed in range(3)
        ]
        told[layout] += isotropy.pairs(Results(made).rows, "isoscore", "linear").correlation().significant
    assert all(0.02 < told[layout] / 200 < 0.08 for layout in layouts[:-1])
    assert not told[2, 2, 2]  # all three in one order: one draw in four


def test_a_perfect_correlation_of_few_encoders_has_an_interval() -> None:
    def perfect(arms: int, comparisons: int) -> Estimate:
        made = [encoder(str(n), "one", 0.1 * n, -0.1 * n) for n in range(arms)]
        return isotropy.pairs(Results(made).rows, "isoscore", "linear").correlation(comparisons)

    assert perfect(8, 12).significant
    assert perfect(8, 12).low == pytest.approx(-1, abs=1e-6)
    assert perfect(8, 12).high > -0.9
    assert not perfect(5, 12).significant  # one order in sixty is as good by chance


def test_an_encoder_that_two_studies_measured_is_one() -> None:
    def made(source: str, number: int) -> Outcome:
        return outcome(
            {"objective": "pairtune", "n": number, "from": source}, 0, {"linear": [0.1 * number]}, isoscore=number
        )

    rows = Results([made("one", n) for n in range(3)] + [made("two", n) for n in range(4)]).rows
    assert [row.arm["from"] for row in isotropy.encoders(rows)] == ["one"] * 3 + ["two"]


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


def test_outcomes_are_plain_json(tmp_path: Path) -> None:
    kept = outcome({"objective": "pairtune"}, 0, {"linear": [0.5]}, isoscore=0.1)
    assert json.loads(kept.to_json())["points"] == [
        {"arm": {}, "shares": {"linear": {"g0": [5.0, 10.0]}}, "numbers": {"isoscore": 0.1}}
    ]
