"""The data that a trial gets: cuts to shots, groups and classes, long tails, and shifted domains."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.recipe import Recipe
from confit_edge.studies import find
from confit_edge.studies.subset import (
    can_draw,
    clips_per_class,
    cut,
    draw_classes,
    noisy,
    phone,
    shifted,
    tail_sizes,
    with_classes,
)
from confit_edge.studies.trial import Subset
from confit_runtime.errors import UsageError


@pytest.fixture(scope="module")
def corpus(tones: Path) -> Corpus:
    return read_corpus(tones, rate=16_000, seed=0)


# which data


def test_a_cut_is_of_the_seed_and_a_small_cut_is_part_of_a_large_one(corpus: Corpus) -> None:
    few, many = cut(corpus, Subset(shots=2), 3), cut(corpus, Subset(shots=5), 3)
    assert set(clips_per_class(few).values()) == {2}
    assert set(clips_per_class(many).values()) == {5}
    assert set(few.train.paths) < set(many.train.paths) < set(corpus.train.paths)
    assert set(Counter(few.val.labels.tolist()).values()) == {2}
    assert set(Counter(cut(corpus, Subset(shots=1), 3).val.labels.tolist()).values()) == {1}
    assert few.test.paths == corpus.test.paths
    assert cut(corpus, Subset(shots=2), 3).train.paths == few.train.paths
    assert cut(corpus, Subset(shots=2), 4).train.paths != few.train.paths
    assert draw_classes(corpus, 2, 3) == [
        name for name in draw_classes(corpus, 3, 3) if name in draw_classes(corpus, 2, 3)
    ]


def test_a_cut_to_groups_and_to_classes_keeps_just_these(corpus: Corpus) -> None:
    two_groups = cut(corpus, Subset(groups=2), 1)
    assert len(set(two_groups.train.groups)) == 2
    assert two_groups.val.paths == corpus.val.paths
    for name in ("train", "val", "test"):
        one, whole = getattr(cut(corpus, Subset(classes=3), 1), name), getattr(corpus, name)
        kept = draw_classes(corpus, 3, 1)
        expected = [
            path for path, label in zip(whole.paths, whole.labels, strict=True) if corpus.classes[label] in kept
        ]
        assert one.paths == expected
        assert one.targets.shape == (len(expected), 3)
        assert [kept[label] for label in one.labels] == [f"tone{path.stem.split('-')[2]}" for path in expected]
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
    assert sorted(tail_sizes(corpus, 10, 10.0, 0).values()) == [1, 2, 5, 10]  # 4.6 is nearer to 5
    uneven = cut(corpus, Subset(shots=2, tail=2.0), 0)
    assert set(clips_per_class(uneven).values()) == {1, 2}
    assert set(Counter(uneven.val.labels.tolist()).values()) == {2}  # choices are made on even classes
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


def with_several_labels(corpus: Corpus, extra_label: int) -> Corpus:
    """Of every second clip of each class the class `extra_label` it is heard, too."""

    def doubled(clips: Clips) -> Clips:
        targets = clips.targets.copy()
        targets[::2] |= np.roll(targets[::2], extra_label, axis=1)
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


def test_a_clip_of_two_labels_is_drawn_once(corpus: Corpus) -> None:
    """Two clips of both labels and five of the second alone: three of the second are drawn, however few the first has."""
    two = with_classes(corpus, corpus.classes[:2])
    targets = np.array([[1, 1]] * 2 + [[0, 1]] * 5, np.int8)
    parts = {key: getattr(two.train, key)[: len(targets)] for key in ("pcm", "groups", "paths")}
    several = replace(two, train=Clips(targets=targets, **parts), multi_label=True)
    for seed in range(10):
        assert list(clips_per_class(cut(several, Subset(shots=3), seed)).values()) == [2, 3]


def test_a_draw_that_loses_a_class_in_validation_is_none(corpus: Corpus) -> None:
    three = with_classes(corpus, corpus.classes[:3])
    targets = np.array([[1, 1, 0], [1, 0, 1]], np.int8)  # of each label one: the first is on both clips
    parts = {key: getattr(three.val, key)[: len(targets)] for key in ("pcm", "groups", "paths")}
    assert can_draw(three, Subset(shots=1), 0)
    assert not can_draw(replace(three, val=Clips(targets=targets, **parts), multi_label=True), Subset(shots=1), 0)


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


def test_another_domain_is_the_same_clip_under_other_conditions() -> None:
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
    assert not np.array_equal(one.pcm[0], shifted(corpus.test, "noise", 16_000, 1).pcm[0])
    assert one.paths == corpus.test.paths
