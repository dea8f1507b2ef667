"""Splits against naive oracles: no group torn apart, no class lost, the fractions met, the seed obeyed."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.data.manifest import SPLITS, Clip, Manifest, read_manifest
from confit_edge.data.splits import DEFAULT, groups_across_splits, missing_classes, with_splits, without_leaks
from confit_edge.data.tables import ManifestError
from confit_runtime.errors import UsageError

WORDS = Path(__file__).parents[2] / "confit_edge" / "demo" / "data" / "words" / "manifest.csv"


def manifest_of(rows: list[tuple[str, str]] | list[tuple[str, str, str]]) -> Manifest:
    """Rows of labels (joined by a bar), group and perhaps split."""
    clips = []
    for number, (labels, group, *split) in enumerate(rows):
        names = tuple(label for label in labels.split("|") if label)
        clips.append(Clip(Path(f"/data/{number}.wav"), names, group, split[0] if split else None))
    return Manifest(tuple(clips), Path("/data/m.csv"), multi_label=any("|" in row[0] or not row[0] for row in rows))


def by_group(manifest: Manifest) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = defaultdict(set)
    for clip in manifest.clips:
        found[clip.group].add(clip.split)
    return found


def assert_sound(result: Manifest, source: Manifest) -> None:
    assert [replace(clip, split=None) for clip in result.clips] == [replace(clip, split=None) for clip in source.clips]
    assert all(len(splits) == 1 and splits <= set(SPLITS) for splits in by_group(result).values())
    for split in ("train", "val"):
        assert {label for clip in result.clips if clip.split == split for label in clip.labels} == set(source.classes)


def test_three_clips_a_class_are_one_each() -> None:
    source = manifest_of([(label, f"{label}{i}") for label in "abcde" for i in range(3)])
    for seed in range(5):
        result = with_splits(source, seed=seed)
        assert_sound(result, source)
        assert Counter((clip.label, clip.split) for clip in result.clips) == {
            (label, split): 1 for label in "abcde" for split in SPLITS
        }


def test_two_groups_a_class_leave_test_without_it() -> None:
    source = manifest_of([("a", "1"), ("a", "2"), *(("b", f"b{i}") for i in range(10))])
    result = with_splits(source, seed=0)
    assert_sound(result, source)
    assert missing_classes(result) == {"train": [], "val": [], "test": ["a"]}


@pytest.mark.parametrize("rows", [[("lone", "1")], [("lone", "1"), ("lone", "1")]])
def test_one_group_is_too_few(rows: list[tuple[str, str]]) -> None:
    with pytest.raises(
        ManifestError, match=r"class 'lone' has \d clips? in one group .* at least 2 clips in 2 different gr"
    ):
        with_splits(manifest_of([*rows, ("b", "2"), ("b", "3")]), seed=0)


def test_groups_that_bind_classes_together_can_make_it_impossible() -> None:
    source = manifest_of([("a", "1"), ("b", "1"), ("b", "2"), ("c", "2"), ("c", "3"), ("a", "3")])
    with pytest.raises(ManifestError, match="found no way to put class"):
        with_splits(source, seed=0)


def test_of_three_groups_the_largest_is_trained_on() -> None:
    """No single group can move where each split has one: they are tried in one another's place."""
    rng = random.Random(0)
    sizes = {label: rng.sample(range(1, 12), 3) for label in "abcdefgh"}
    rows = [(label, f"{label}{g}") for label, counts in sizes.items() for g, n in enumerate(counts) for _ in range(n)]
    for seed in range(4):
        clips = Counter((clip.label, clip.split) for clip in with_splits(manifest_of(rows), seed=seed).clips)
        assert {label: clips[label, "train"] for label in sizes} == {
            label: max(counts) for label, counts in sizes.items()
        }


def test_few_groups_are_dealt_as_well_as_they_can_be() -> None:
    """Against all deals there are, by the cost that the dealer states; moving one group at a time does not find the best."""
    rng = random.Random(3)
    rows = [(rng.choice("abc"), f"g{group}") for group in range(8) for _ in range(rng.randrange(1, 12))]
    source = manifest_of(rows)

    def cost(result: Manifest) -> float:
        found = Counter((label, clip.split) for clip in result.clips for label in (clip.label, ""))
        whole = Counter(label for clip in result.clips for label in (clip.label, ""))
        shares = zip(SPLITS, DEFAULT, strict=True)
        return sum((found[label, split] - share * n) ** 2 / n for split, share in shares for label, n in whole.items())

    groups = sorted({clip.group for clip in source.clips})
    best = math.inf
    for deal in itertools.product(SPLITS, repeat=len(groups)):
        split_of = dict(zip(groups, deal, strict=True))
        result = replace(source, clips=tuple(replace(clip, split=split_of[clip.group]) for clip in source.clips))
        if not any(missing_classes(result).values()):
            best = min(best, cost(result))
    assert cost(with_splits(source, seed=0)) == pytest.approx(best)


def test_own_groups_are_shared_out_exactly() -> None:
    source = manifest_of([(label, f"{label}{i}") for label in ("x", "y") for i in range(100)])
    result = with_splits(source, seed=3)
    for label in ("x", "y"):
        assert Counter(clip.split for clip in result.clips if clip.label == label) == {
            "train": 70,
            "val": 15,
            "test": 15,
        }
    halves = with_splits(source, seed=3, fractions=(0.5, 0.5, 0.0))
    assert_sound(halves, source)
    assert Counter(clip.split for clip in halves.clips) == {"train": 100, "val": 100}


def test_voices_of_the_demo_words() -> None:
    source = read_manifest(WORDS, label_column="group", split_by="label")
    result = with_splits(source, seed=0)
    assert_sound(result, source)
    words = {split: {clip.group for clip in result.select(split).clips} for split in SPLITS}
    assert {split: len(found) for split, found in words.items()} == {"train": 21, "val": 5, "test": 4}
    assert missing_classes(result) == {"train": [], "val": [], "test": []}


def test_the_demo_manifest_keeps_its_own_splits() -> None:
    source = read_manifest(WORDS)
    assert with_splits(source, seed=1) == source


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    rng = random.Random(0)
    rows = [(rng.choice("abc"), f"speaker{rng.randrange(30)}") for _ in range(300)]
    source = manifest_of(rows)
    result = with_splits(source, seed=7)
    shuffled = replace(source, clips=tuple(rng.sample(source.clips, len(source))))
    again = with_splits(shuffled, seed=7)
    assert {clip.path: clip.split for clip in again.clips} == {clip.path: clip.split for clip in result.clips}
    assert len({with_splits(source, seed=seed) for seed in range(5)}) > 1
    sizes = Counter(clip.split for clip in result.clips)
    for split, fraction in zip(SPLITS, DEFAULT, strict=True):
        assert abs(sizes[split] / 300 - fraction) < 0.05


def test_multi_label_clips_and_clips_of_nothing() -> None:
    rng = random.Random(1)
    rows = [("|".join(rng.sample("abcd", rng.randrange(0, 3))), f"g{i // 2}") for i in range(100)]
    source = manifest_of(rows)
    assert any(not clip.labels for clip in source.clips)
    result = with_splits(source, seed=0)
    assert_sound(result, source)
    assert missing_classes(result)["test"] == []


def has_valid_split(source: Manifest, splits: tuple[str, ...]) -> bool:
    """Brute force: is there a deal of groups that has every class in each of the wanted splits?"""
    groups = sorted({clip.group for clip in source.clips})
    holds = {
        group: {label for clip in source.clips if clip.group == group for label in clip.labels} for group in groups
    }
    for deal in itertools.product(SPLITS, repeat=len(groups)):
        found: dict[str, set[str]] = {split: set() for split in SPLITS}
        for group, split in zip(groups, deal, strict=True):
            found[split] |= holds[group]
        if all(found[split] == set(source.classes) for split in splits):
            return True
    return False


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("123456")), min_size=2, max_size=24), st.integers(0, 9)
)
def test_splits_are_found_whenever_they_exist(rows: list[tuple[str, str]], seed: int) -> None:
    source = manifest_of(rows)
    if not has_valid_split(source, ("train", "val")):
        with pytest.raises(ManifestError):
            with_splits(source, seed=seed)
        return
    result = with_splits(source, seed=seed)
    assert_sound(result, source)
    if has_valid_split(source, SPLITS):
        assert missing_classes(result)["test"] == []


def test_the_one_deal_there_is_is_found_where_the_greedy_one_fails() -> None:
    source = manifest_of([("a", "1"), ("a", "4"), ("b", "3"), ("b", "4"), ("c", "1"), ("c", "3"), ("c", "6")])
    for seed in range(30):
        assert_sound(with_splits(source, seed=seed), source)


def test_given_splits_are_checked() -> None:
    good = [("a", "1", "train"), ("a", "2", "val"), ("b", "1", "train"), ("b", "2", "val")]
    assert with_splits(manifest_of(good), seed=0) == manifest_of(good)
    torn = manifest_of([*good, ("a", "1", "test")])
    assert groups_across_splits(torn) == {"1": ["train", "test"]}
    with pytest.raises(ManifestError, match="group '1' is in train and test"):
        with_splits(torn, seed=0)
    with pytest.raises(ManifestError, match="class 'c' has no clip in val"):
        with_splits(manifest_of([*good, ("c", "1", "train")]), seed=0)
    with pytest.raises(ManifestError, match="no clip is in val"):
        with_splits(manifest_of([("a", "1", "train"), ("b", "1", "train"), ("b", "2", "test")]), seed=0)
    with pytest.raises(ManifestError, match="no clips to split"):
        with_splits(manifest_of([]), seed=0)
    half = manifest_of(good)
    with pytest.raises(ManifestError, match=r"only 3 of 4 clips have a split \(/data/0\.wav, for example, has none\)"):
        with_splits(replace(half, clips=(replace(half.clips[0], split=None), *half.clips[1:])), seed=0)


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.1), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.9, 0.2, -0.1)])
def test_unusable_fractions_are_wrong_usage(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="fractions"):
        with_splits(manifest_of([("a", "1"), ("b", "2")]), seed=0, fractions=fractions)


def test_thousands_of_groups_are_dealt_in_seconds() -> None:
    rng = random.Random(0)
    source = manifest_of([(f"class{rng.randrange(50)}", f"speaker{rng.randrange(3000)}") for _ in range(20_000)])
    result = with_splits(source, seed=0)
    assert_sound(result, source)
    shares = Counter(clip.split for clip in result.clips)
    assert abs(shares["val"] / 20_000 - DEFAULT[1]) < 0.01


def test_a_published_split_without_validation_gives_it_an_eighth_of_its_training_groups() -> None:
    rows = [(label, f"{label}{at}", "train") for label in "ab" for at in range(16)]
    result, changed = without_leaks(manifest_of([*rows, *((label, f"t{label}", "test") for label in "ab")]))
    assert Counter((clip.label, clip.split) for clip in result.clips) == {
        (label, split): count for label in "ab" for split, count in (("train", 14), ("val", 2), ("test", 1))
    }
    assert len(changed) == 1


def test_a_published_validation_without_a_class_is_made_again() -> None:
    rows = [(label, f"{label}{at}", "train") for label in "ab" for at in range(8)]
    source = manifest_of([*rows, ("a", "a8", "val"), ("a", "a9", "test"), ("b", "b9", "test")])
    result, changed = without_leaks(source)
    assert_sound(result, source)
    assert {clip.group for clip in result.clips if clip.split == "test"} == {"a9", "b9"}
    assert changed == [
        "not every class has groups of its own in the published val: train and val were made again, by group"
    ]


def test_a_group_of_the_published_train_and_val_goes_to_train() -> None:
    rows = [(label, f"{label}{at}", split) for label in "ab" for at, split in enumerate(("train", "val", "test"))]
    source = manifest_of([*rows, ("a", "a0", "val"), ("a", "a0", "train"), ("b", "b2", "val")])
    result, changed = without_leaks(source)
    assert by_group(result) == {
        f"{label}{at}": {split} for label in "ab" for at, split in enumerate(("train", "val", "test"))
    }
    assert len(result) == len(source) - 1
    assert changed == [
        "1 clip is left out of train and val, because test has clips of the same group",
        "1 clip was moved from val to train, because train has clips of the same group",
    ]


def test_a_published_split_that_tears_every_group_is_not_kept() -> None:
    """Few speakers, split by clip: without those of test nothing would be left to train on."""
    rows = [
        (label, speaker, split)
        for label in "ab"
        for speaker in ("ann", "ben", "cid", "dan")
        for split in ("train", "train", "val", "test")
    ]
    source = manifest_of(rows)
    result, changed = without_leaks(source)
    assert_sound(result, source)
    assert missing_classes(result) == {"train": [], "val": [], "test": []}
    assert changed == [
        "every group in train is also in test, so the published split was not kept: new splits were made, by group"
    ]
    disjoint = [("a", f"{split}{at}", split) for split in ("train", "val", "test") for at in range(4)]
    result, (note,) = without_leaks(manifest_of([*disjoint, *(row for row in rows if row[0] == "b")]))
    assert groups_across_splits(result) == {}
    assert "every group of class 'b' in train is also in test, so the published split was not kept" in note
    with pytest.raises(ManifestError, match="class 'a' has 2 clips in one group"):
        without_leaks(
            manifest_of([("a", "ann", "train"), ("a", "ann", "test"), ("b", "ben", "train"), ("b", "ben", "test")])
        )


@pytest.mark.parametrize(("named", "none"), [(3, 3), (2, 3), (8, 3), (1, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_clips_without_a_label_are_shared_out_as_those_of_a_class(named: int, none: int, seed: int) -> None:
    """All in train, one label beside them would be right on each validation clip, whatever was learnt."""
    rows = [("beep|low", f"b{group}") for group in range(named + 1) for _ in range(2)]
    rows += [("", f"n{group}") for group in range(none) for _ in range(3)]
    result = with_splits(manifest_of(rows), seed=seed)
    without = {clip.split for clip in result.clips if not clip.labels}
    assert {"train", "val"} <= without
    assert ("test" in without) == (none >= 3)


def test_clips_without_a_label_of_one_group_are_no_hindrance() -> None:
    rows = [("beep|low", f"b{group}") for group in range(4)] + [("", "n")] * 3
    result = with_splits(manifest_of(rows), seed=0)
    assert not any(missing_classes(result)[split] for split in ("train", "val"))
