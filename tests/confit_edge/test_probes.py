"""Both probes and the intervals of their accuracy, against scikit-learn and plain loops."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from confit_edge.data.compose import compose
from confit_edge.data.corpus import UNKNOWN, Clips, Corpus
from confit_edge.encoders import pretrained
from confit_edge.encoders.embedding import embed_clips
from confit_edge.judging.compare import _start_names, judge_subject
from confit_edge.probes.dual import dual_probe, score
from confit_edge.probes.knn import METRICS, NEIGHBOURS, KnnProbe
from confit_edge.probes.linear import LinearProbe, log_loss
from confit_edge.probes.metrics import accuracy, correct, paired_difference
from confit_edge.probes.verification import all_pairs
from confit_edge.probes.views import (
    ROWS,
    _cap_rows_per_source,
    _parts,
    augmented_views,
    background_rows,
    stream_views,
)
from confit_edge.recipe import Recipe
from confit_runtime.audio import Pcm
from confit_runtime.errors import ConfitError
from tests.confit_edge.sounds import noise

Floats = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int8]
CPU = torch.device("cpu")
RATE = 16_000


def blobs(classes: int, clips: int, seed: int = 0, dim: int = 12) -> tuple[Floats, Targets]:
    """Overlapping clouds on unequal axes, off the origin, `clips` of each class."""
    middles = np.random.default_rng(99).standard_normal((classes, dim))
    labels = np.arange(clips * classes) % classes
    points = middles[labels] + 1.2 * np.random.default_rng(seed).standard_normal((len(labels), dim))
    return (points * np.linspace(0.1, 20, dim) + 5).astype(np.float32), np.eye(classes, dtype=np.int8)[labels]


def several_labels(clips: int, seed: int = 0) -> tuple[Floats, Targets]:
    points = np.random.default_rng(seed).standard_normal((clips, 6)).astype(np.float32)
    return points, (points[:, :3] + 0.5 * points[:, 3:] > 0).astype(np.int8)


# linear


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_a_linear_probe_is_logistic_regression_at_one_temperature(classes: int, strength: float) -> None:
    (x, y), (val, val_y) = blobs(classes, 30), blobs(classes, 20, 1)
    probe = LinearProbe.fit(x, y, val, val_y, strengths=(strength,))
    mean, scale = x.mean(axis=0), x.std(axis=0)
    reference = LogisticRegression(C=strength, tol=1e-6, max_iter=5000).fit((x - mean) / scale, y.argmax(axis=1))
    expected = reference.decision_function((val - mean) / scale)
    if classes == 2:
        expected = np.stack([-expected, expected], axis=1) / 2
    found = probe.logits(val)
    expected, found = (logits - logits.mean(axis=1, keepdims=True) for logits in (expected, found))
    temperature = np.sum(expected * found) / np.sum(found * found)
    np.testing.assert_allclose(found * temperature, expected, atol=0.02 * np.abs(expected).max())
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.98
    np.testing.assert_allclose(probe.scores(val).sum(axis=1), 1, atol=1e-5)
    exact = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probe.scores(val), exact, atol=1e-5)


def test_a_probe_of_several_labels_is_one_regression_a_label() -> None:
    (x, y), (val, val_y) = several_labels(120), several_labels(60, 1)
    probe = LinearProbe.fit(x, y, val, val_y, multi_label=True, strengths=(1.0,))
    mean, scale = x.mean(axis=0), x.std(axis=0)
    expected = np.stack(
        [
            LogisticRegression(C=1.0, tol=1e-6)
            .fit((x - mean) / scale, y[:, label])
            .decision_function((val - mean) / scale)
            for label in range(3)
        ],
        axis=1,
    )
    found = probe.logits(val)
    np.testing.assert_allclose(found * (expected * found).sum() / (found**2).sum(), expected, atol=0.1)
    np.testing.assert_allclose(probe.scores(val), 1 / (1 + np.exp(-found)), atol=1e-5)
    assert ((probe.scores(val) > 0.5) == val_y).mean() > 0.9


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_label_that_every_training_clip_has_or_none_is_no_obstacle(everywhere: bool) -> None:
    (x, y), (val, val_y) = several_labels(60), several_labels(30, 1)
    y[:, 1] = everywhere
    probe = LinearProbe.fit(x, y, val, val_y, multi_label=True)
    assert np.isfinite(probe.weight).all()
    assert ((probe.scores(val)[:, 1] > 0.5) == everywhere).all()


def test_temperature_betters_the_validation_loss_and_changes_no_prediction() -> None:
    (x, y), (val, val_y) = blobs(3, 6), blobs(3, 40, 1)  # few clips: overconfident
    probe = LinearProbe.fit(x, y, val, val_y, strengths=(1.0,))
    loss = log_loss(probe.logits(val), val_y, False)
    for factor in (0.3, 0.8, 0.95, 1.05, 1.25, 3.0):
        other = probe.sharpened(factor)
        assert loss <= log_loss(other.logits(val), val_y, False) + 1e-4
        assert np.array_equal(other.scores(val).argmax(axis=1), probe.scores(val).argmax(axis=1))


def test_the_strength_is_chosen_by_validation_loss() -> None:
    (x, y), (val, val_y) = blobs(3, 6), blobs(3, 40, 1)
    losses = {
        strength: log_loss(LinearProbe.fit(x, y, val, val_y, strengths=(strength,)).logits(val), val_y, False)
        for strength in (1e-4, 1e-2, 1.0, 100.0)
    }
    chosen = LinearProbe.fit(x, y, val, val_y, strengths=tuple(losses))
    assert len(set(losses.values())) == len(losses)
    assert log_loss(chosen.logits(val), val_y, False) == pytest.approx(min(losses.values()))


def test_a_class_without_clips_and_embeddings_that_are_no_numbers_are_reported() -> None:
    (x, y), (val, val_y) = blobs(4, 20), blobs(4, 20, 1)
    kept = y[:, 1] == 0
    with pytest.raises(ConfitError, match="a training clip of every class; targets have none in column 1"):
        LinearProbe.fit(x[kept], y[kept], val, val_y)
    assert LinearProbe.fit(x[kept], y[kept], val, val_y, multi_label=True).weight.shape == (4, x.shape[1])
    x[0, 0] = np.nan
    with pytest.raises(ConfitError, match="not finite"):
        LinearProbe.fit(x, y, val, val_y)


def test_a_constant_dimension_does_no_harm() -> None:
    (x, y), (val, val_y) = blobs(3, 20), blobs(3, 20, 1)
    x[:, 0] = val[:, 0] = 7.0
    probe = LinearProbe.fit(x, y, val, val_y)
    assert np.isfinite(probe.weight).all()
    assert correct(probe.scores(val), val_y).mean() > 0.8


@pytest.mark.parametrize("several", [False, True])
def test_log_loss_is_the_mean_cross_entropy(several: bool) -> None:
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -700.0], [800.0, 1.0, 0.0]], np.float32)
    targets = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]], np.int8) if several else np.eye(3, dtype=np.int8)[[0, 1, 0]]
    losses = []
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        if several:
            losses += [math.log1p(math.exp(-abs(v))) + max(v, 0) - t * v for v, t in zip(row, target, strict=True)]
        else:
            top = max(row)
            losses.append(top + math.log(sum(math.exp(v - top) for v in row)) - row[target.argmax()])
    assert log_loss(logits, targets, several) == pytest.approx(np.mean(losses))


# kNN


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), prints=st.integers(1, 12), k=st.integers(1, 20), several=st.booleans())
def test_neighbours_vote_as_in_the_loop(seed: int, prints: int, k: int, several: bool) -> None:
    rng = np.random.default_rng(seed)
    x, queries = (rng.standard_normal((count, 4)) for count in (prints, 5))
    x, queries = ((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (x, queries))
    targets = (rng.integers(0, 2, (prints, 3)) if several else np.eye(3)[rng.integers(3, size=prints)]).astype(np.int8)
    found = KnnProbe(x, targets, k).scores(queries)
    for query, scores in zip(queries, found, strict=True):
        near = sorted(range(prints), key=lambda row: -float(query @ x[row]))[:k]
        weights = {row: math.exp(float(query @ x[row]) / 0.1) for row in near}
        for label in range(3):
            votes = sum(weight for row, weight in weights.items() if targets[row, label])
            assert scores[label] == pytest.approx(votes / sum(weights.values()), abs=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_votes_of_many_classes_are_held_in_parts(several: bool) -> None:
    rng, clips, classes = np.random.default_rng(0), 1500, 400
    x, queries = rng.standard_normal((50, 4)).astype(np.float32), rng.standard_normal((clips, 4)).astype(np.float32)
    targets = np.eye(classes, dtype=np.int8)[rng.integers(classes, size=len(x))]
    targets[:, 0] |= several
    probe = KnnProbe(x, targets, 20)
    tracemalloc.start()
    found = probe.scores(queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < clips * 20 * classes * 4 / 2  # half of a table of all votes
    rows = [0, 700, clips - 1]  # in different parts
    np.testing.assert_allclose(found[rows], probe.scores(queries[rows]), atol=1e-5)


def test_k_is_chosen_on_validation() -> None:
    rng = np.random.default_rng(0)
    angle = np.concatenate([rng.uniform(0, 1.5, 60), rng.uniform(1.6, 3.1, 60)])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    labels = np.repeat([0, 1], 60)
    flipped = np.where(rng.random(120) < 0.3, 1 - labels, labels)  # noisy labels: one neighbour is a poor judge
    targets = np.eye(2, dtype=np.int8)
    probe = KnnProbe.fit(x[::2], targets[flipped[::2]], x[1::2], targets[labels[1::2]])
    share = {
        k: correct(KnnProbe(x[::2], targets[flipped[::2]], k).scores(x[1::2]), targets[labels[1::2]]).mean()
        for k in (1, 3, 5, 10, 20)
    }
    assert share[probe.k] == max(share.values()) > share[1]
    assert probe.k == min(k for k in share if share[k] == max(share.values()))


def test_the_metric_is_chosen_on_validation() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    loud = 3 * rng.standard_normal((200, 3))
    x = np.hstack([loud, 0.2 * (2 * labels[:, None] - 1 + 0.3 * rng.standard_normal((200, 1)))])
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    targets = np.eye(2, dtype=np.int8)[labels]
    probe = KnnProbe.fit(
        x[:100], targets[:100], x[100:], targets[100:]
    )  # a class is in the one dimension that is small
    assert probe.metric == "standardised"
    by_cosine = max(
        correct(KnnProbe(x[:100], targets[:100], k).scores(x[100:]), targets[100:]).mean() for k in (1, 3, 5)
    )
    assert correct(probe.scores(x[100:]), targets[100:]).mean() > by_cosine
    mean, scale = x[:100].mean(axis=0), x[:100].std(axis=0) * 2  # 2: the root of four dimensions
    for query, scores in zip(x[100:104], probe.scores(x[100:104]), strict=True):
        away = np.square((query - mean) / scale - (x[:100] - mean) / scale).sum(axis=1)
        near = np.argsort(away)[: probe.k]
        weights = np.exp(-away[near] / 2 / 0.1)
        expected = [weights[targets[:100][near, label] > 0].sum() / weights.sum() for label in (0, 1)]
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_k_of_several_labels_is_chosen_by_average_precision() -> None:
    (x, y), (val, val_y) = several_labels(80), several_labels(60, 1)
    x, val = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, val))
    probe = KnnProbe.fit(x, y, val, val_y, multi_label=True)
    found = {
        (metric, k): average_precision_score(val_y, KnnProbe(x, y, k, metric).scores(val))
        for metric in METRICS
        for k in NEIGHBOURS
    }
    assert found[probe.metric, probe.k] == pytest.approx(max(found.values()))


def test_k_is_judged_by_any_of_a_clips_labels() -> None:
    x = np.array([[1.0, 0.0], [0.98, 0.2], [0.98, -0.2]], np.float32)
    targets = np.array([[0, 1], [1, 0], [1, 0]], np.int8)
    # the nearest says label 1, which the clip has beside label 0: with k = 1 it is right already
    assert KnnProbe.fit(x, targets, x[:1], np.array([[1, 1]], np.int8)).k == 1
    assert KnnProbe.fit(x, targets, x[:1], np.array([[1, 0]], np.int8)).k == 3


# accuracy


def test_correct_means_the_best_class_is_one_of_the_clips() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]], np.float32)
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]], np.int8)
    assert correct(scores, targets).tolist() == [True, False, True, False]


def test_the_interval_is_of_groups_not_clips() -> None:
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.3, 1.0, 20)  # some voices are hard
    right = np.concatenate([rng.random(40) < chance for chance in chances])
    by_voice = accuracy(right, [str(clip // 40) for clip in range(800)])
    by_clip = accuracy(right, [str(clip) for clip in range(800)])
    assert by_voice.accuracy == by_clip.accuracy == right.mean()
    assert (by_voice.n, by_voice.groups, by_clip.groups) == (800, 20, 800)
    assert by_voice.high - by_voice.low > 2 * (by_clip.high - by_clip.low)
    # for independent clips the interval is near the textbook's
    share = right.mean()
    half = 1.96 * math.sqrt(share * (1 - share) / 800)
    assert by_clip.low == pytest.approx(share - half, abs=0.01)
    assert by_clip.high == pytest.approx(share + half, abs=0.01)
    assert by_voice == accuracy(right, [str(clip // 40) for clip in range(800)])


@pytest.mark.parametrize("groups", [2, 6, 18])
def test_all_right_or_all_wrong_still_has_an_interval(groups: int) -> None:
    names = [str(clip % groups) for clip in range(5 * groups)]
    perfect = accuracy(np.ones(len(names), bool), names)
    hopeless = accuracy(np.zeros(len(names), bool), names)
    assert (perfect.accuracy, perfect.high) == (1.0, 1.0)
    few = student.ppf(0.975, groups - 1) / student.ppf(0.975, len(names) - 1)
    effective = len(names) / (1 + 0.05 * 4) / few**2  # of five clips a group, alike by 0.05
    assert perfect.low**effective == pytest.approx(0.025)  # so rarely would all be right were it no better than that
    assert (hopeless.low, hopeless.high) == (0.0, pytest.approx(1 - perfect.low))


def test_with_one_group_clips_count_as_independent_and_the_result_reports_it() -> None:
    right = np.random.default_rng(0).random(400) < 0.7
    one, each = accuracy(right, ["a"] * 400), accuracy(right, [str(clip) for clip in range(400)])
    assert (one.groups, one.resampled, each.resampled) == (1, "clips", "groups")
    assert one.high - one.low == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 400), rel=0.15)
    assert accuracy(np.ones(10, bool), ["a"] * 10).low == pytest.approx(0.025 ** (1 / 10))
    assert paired_difference(right, ~right, ["a"] * 400).low < right.mean() - (~right).mean()


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.8
    other = right & (rng.random(400) < 0.9)
    groups = [str(clip // 20) for clip in range(400)]
    difference = paired_difference(right, other, groups)
    assert difference.difference == pytest.approx(right.mean() - other.mean())
    assert 0 < difference.low < difference.difference < difference.high
    none = paired_difference(right, right, groups)
    assert none.difference == 0
    assert none.low == -none.high < 0  # 20 groups that agree are not certainty


# side by side


def test_runs_that_started_alike_share_a_frozen_encoder_and_others_are_distinguished() -> None:
    def starts(*recipes: Recipe) -> list[str]:
        return _start_names([SimpleNamespace(recipe=recipe) for recipe in recipes])  # type: ignore[list-item]

    assert starts(Recipe(), Recipe(seed=3, objective="finetune")) == ["frozen speech-embedding"] * 2
    assert starts(Recipe(), Recipe(window=2.0)) == [
        "frozen speech-embedding window=1.28",
        "frozen speech-embedding window=2.0",
    ]
    drawn = starts(Recipe(), Recipe(initialise="random", seed=1), Recipe(initialise="random", seed=2))
    assert drawn == [
        "frozen speech-embedding initialise=pretrained",
        "frozen speech-embedding initialise=random seed=1",
        "frozen speech-embedding initialise=random seed=2",
    ]
    assert starts(Recipe(encoder="a/tiny"), Recipe(encoder="b/tiny")) == ["frozen a/tiny", "frozen b/tiny"]
    assert starts(Recipe(encoder="a/tiny")) == ["frozen tiny"]


# on real clips


def test_with_many_unknown_clips_the_share_found_of_the_others_is_reported(run_corpus: Corpus) -> None:
    clips, unknown = run_corpus.val, run_corpus.unknown_column
    assert unknown is not None
    targets = clips.targets.copy()
    targets[3:] = np.eye(len(run_corpus.classes), dtype=np.int8)[unknown]
    mixed = replace(clips, targets=targets)
    scores = targets.astype(np.float32)
    scores[0] = scores[5] = np.float32(1) - scores[0]  # one of the three own is missed, and one that is unknown
    found = score(scores, mixed, run_corpus, 0)
    assert found is not None
    assert (found["own"], round(found["accuracy"] * found["n"])) == ({"right": 2, "n": 3}, len(clips) - 2)
    whole = score(clips.targets.astype(np.float32), clips, run_corpus, 0)
    assert whole is not None
    assert "own" not in whole  # nothing is unknown


def test_the_unknown_class_is_no_answer_where_clips_have_several_labels(run_corpus: Corpus) -> None:
    """However high its score: it stands for none of the labels, and is heard beside them."""
    several = replace(run_corpus, multi_label=True)
    scores = several.val.targets.astype(np.float32)
    scores[:, several.classes.index(UNKNOWN)] = 2
    found = score(scores, several.val, several, 0)
    assert found is not None
    assert (found["accuracy"], found["map"]) == (1, 1)
    fixed = SimpleNamespace(scores=lambda embeddings: scores, k=1, metric="cosine")
    subject = SimpleNamespace(head=None)
    probed: Any = SimpleNamespace(
        corpus=several,
        subject=subject,
        probes=SimpleNamespace(linear=fixed, knn=fixed),
        embeddings=lambda split: np.eye(len(scores), dtype=np.float32),
    )
    judged = judge_subject(probed, "val", all_pairs(several.val, 0), 0).probes["linear"]
    assert {name: estimate.value for name, estimate in judged.metrics.items()} == dict.fromkeys(judged.metrics, 1)
    assert [row["class"] for row in judged.per_class] == [label for label in several.classes if label != UNKNOWN]


def test_both_probes_hear_words_of_unseen_voices(run_corpus: Corpus) -> None:
    encoder = pretrained("speech-embedding", 1.28)
    probes = dual_probe(encoder, run_corpus, Recipe(probe_views=1), CPU)
    for name in ("linear", "knn"):
        found = probes.metrics[name]["test"]
        assert found["accuracy"] >= 0.8  # frozen, of five words
        assert found["low"] <= found["accuracy"] <= found["high"]
        assert (found["n"], found["groups"]) == (15, 3)
    assert (probes.metrics["k"], probes.metrics["metric"]) == (probes.knn.k, probes.knn.metric)
    assert (len(probes.val_embeddings), len(probes.test_embeddings)) == (15, 15)
    # the linear probe knows nothing as nothing
    silence = encoder(torch.from_numpy(run_corpus.background_val[0][: encoder.window].copy())[None]).detach().numpy()
    assert run_corpus.classes[int(probes.linear.scores(silence).argmax())] == UNKNOWN


def test_nothing_but_the_test_figures_depends_on_the_test_clips(run_corpus: Corpus) -> None:
    """Or the probes were chosen on them: here they become noise, with the labels that another kNN probe gives to noise."""
    encoder, recipe, test = pretrained("speech-embedding", 1.28), Recipe(probe_views=1), run_corpus.test
    one = dual_probe(encoder, run_corpus, recipe, CPU)
    noises = [noise(8_000, seed) for seed in range(len(test))]
    rival = KnnProbe(one.knn.prints, one.knn.targets, NEIGHBOURS[-1], METRICS[-1])
    heard = embed_clips(encoder, noises, CPU)
    targets = np.eye(len(run_corpus.classes), dtype=np.int8)[rival.scores(heard).argmax(axis=1)]
    assert KnnProbe.fit(rival.prints, rival.targets, heard, targets).metric != one.knn.metric
    two = dual_probe(encoder, replace(run_corpus, test=replace(test, pcm=noises, targets=targets)), recipe, CPU)
    assert one.metrics["linear"]["test"] != two.metrics["linear"]["test"]
    for name in ("linear", "knn"):
        assert one.metrics[name]["val"] == two.metrics[name]["val"]
    assert (one.knn.k, one.knn.metric) == (two.knn.k, two.knn.metric)
    rows = one.test_embeddings
    for probe, same in ((one.linear, two.linear), (one.knn, two.knn)):
        assert np.array_equal(probe.scores(rows), same.scores(rows))
    assert np.array_equal(one.typicality.factors(rows), two.typicality.factors(rows))


def without_background(corpus: Corpus) -> Corpus:
    own = [column for column, label in enumerate(corpus.classes) if label != UNKNOWN]
    splits = {
        name: replace(clips, targets=clips.targets[:, own])
        for name, clips in (("train", corpus.train), ("val", corpus.val), ("test", corpus.test))
    }
    classes = [corpus.classes[column] for column in own]
    return replace(corpus, classes=classes, unknown=None, background_train=[], background_val=[], **splits)


@pytest.mark.parametrize("streams", [True, False])
def test_probe_progress_is_reported_against_a_total_known_beforehand(run_corpus: Corpus, streams: bool) -> None:
    """Of a clip longer than a window, too; and where views are augmented, not streams."""
    corpus = run_corpus if streams else without_background(run_corpus)
    long = [np.tile(corpus.train.pcm[0], 3), *corpus.train.pcm[1:]]
    corpus = replace(corpus, train=replace(corpus.train, pcm=long))
    progress: list[tuple[int, int]] = []
    recipe = Recipe(probe_views=2)
    dual_probe(pretrained("speech-embedding", 1.28), corpus, recipe, CPU, progress=lambda *of: progress.append(of))
    done, totals = zip(*progress, strict=True)
    assert len(set(totals)) == 1
    assert (done[0], done[-1]) == (0, totals[0])
    assert list(done) == sorted(done)
    assert len(set(done)) > 5
    assert totals[0] >= 3 * len(corpus.train) + len(corpus.val) + len(corpus.test)


def test_views_are_rows_of_streams_with_their_own_targets(run_corpus: Corpus) -> None:
    encoder, recipe = pretrained("speech-embedding", 1.28), Recipe(snr_low=10.0)
    views = partial(stream_views, encoder, run_corpus, run_corpus.train, run_corpus.background_train)
    rows, targets = views(recipe, CPU, views=1, salt=2)
    again, _ = views(recipe, CPU, views=1, salt=2)
    assert np.array_equal(rows, again)
    unknown = run_corpus.classes.index(UNKNOWN)
    assert targets.sum(axis=1).tolist() == [1] * len(rows)
    assert 0 < targets[:, unknown].sum() <= len(rows) - targets[:, unknown].sum()
    assert (targets.sum(axis=0) > 0).all()
    clean, clean_targets = augmented_views(encoder, run_corpus, Recipe(noise_probability=0.0, probe_views=1), CPU)
    words = np.delete(clean_targets, unknown, axis=1)
    probe = LinearProbe.fit(clean, words, clean, words)  # never saw a stream
    spoken = targets[:, unknown] == 0
    assert correct(probe.scores(rows[spoken]), np.delete(targets, unknown, axis=1)[spoken]).mean() > 0.7


def test_half_of_what_is_unknown_is_background_alone(run_corpus: Corpus) -> None:
    encoder, background = pretrained("speech-embedding", 1.28), run_corpus.background_train
    _, targets = stream_views(encoder, run_corpus, run_corpus.train, background, Recipe(), CPU, views=1, salt=2)
    unknown = run_corpus.classes.index(UNKNOWN)
    spoken = int((targets[:, unknown] == 0).sum())
    alone = spoken // 2
    assert (targets[-alone:, unknown] == 1).all()
    assert int(targets[:, unknown].sum()) == spoken


def test_no_row_within_a_long_clip_is_unknown(run_corpus: Corpus) -> None:
    """A hum of three seconds is a hum from its beginning to its end."""
    encoder, quiet = pretrained("speech-embedding", 1.28), run_corpus.background_train
    targets = run_corpus.train.targets[:4]
    hums = [np.float32(0.1) * np.sin(np.arange(48_000) * pitch).astype(np.float32) for pitch in (0.05, 0.1, 0.2, 0.4)]
    clips = Clips(hums, targets, ["a"] * 4, [Path()] * 4)
    _, found = stream_views(encoder, run_corpus, clips, quiet, Recipe(), CPU, views=1, salt=2)
    unknown = run_corpus.classes.index(UNKNOWN)
    within = (48_000 - encoder.window) // encoder.hop
    assert int((found[:, unknown] == 0).sum()) >= 4 * within


def test_a_long_clip_gives_no_more_rows_than_most_do(run_corpus: Corpus) -> None:
    """Or its class would be thought the more frequent: hums of 30 s beside words gave 98 % of the rows."""
    encoder, words = pretrained("speech-embedding", 1.28), run_corpus.train
    hum = np.float32(0.1) * np.sin(np.arange(480_000) * 0.1).astype(np.float32)
    other = int(words.labels[0])
    targets = words.targets.copy()
    targets[:, other] = 0
    kept = np.flatnonzero(targets.any(axis=1))
    one = np.eye(len(run_corpus.classes), dtype=np.int8)[[other]]
    mixed = Clips(
        [words.pcm[row] for row in kept] + [hum] * 2,
        np.concatenate([targets[kept], one, one]),
        [words.groups[row] for row in kept] + ["hum"] * 2,
        [Path()] * (len(kept) + 2),
    )
    _, found = stream_views(encoder, run_corpus, mixed, run_corpus.background_train, Recipe(), CPU, views=3, salt=2)
    unknown = run_corpus.classes.index(UNKNOWN)
    a_clip = (found[:, unknown] == 0).sum() / 3 / len(mixed)
    assert found[:, other].sum() / 3 / 2 <= 1.5 * a_clip
    assert found[:, other].sum() > 0


def test_a_large_corpus_is_heard_in_several_streams(run_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each clip is heard in one of them, and not all of a class in the same."""
    encoder, clips = pretrained("speech-embedding", 1.28), run_corpus.train
    views = partial(stream_views, encoder, run_corpus, clips, run_corpus.background_train, Recipe(), CPU)
    _, whole = views(views=1, salt=2)
    composed: list[int] = []

    def counted(pcm: list[Pcm], *args: Any, **keys: Any) -> Any:
        composed.append(len(pcm))
        return compose(pcm, *args, **keys)

    monkeypatch.setattr("confit_edge.probes.views.STREAM_S", 10)
    monkeypatch.setattr("confit_edge.probes.views.compose", counted)
    _, parts = views(views=1, salt=2)
    assert len(composed) > 1
    assert sum(composed) == len(clips)
    unknown = run_corpus.classes.index(UNKNOWN)
    assert abs(int((parts[:, unknown] == 0).sum()) - int((whole[:, unknown] == 0).sum())) <= len(clips)


def test_background_rows_come_from_places_in_the_background() -> None:
    """Of two recordings, far apart, a block is of the one or of the other, and every second block of both at once."""
    encoder, rng = pretrained("speech-embedding", 1.28), np.random.default_rng(0)
    length = encoder.window + (ROWS - 1) * encoder.hop
    time = np.arange(length) / encoder.sample_rate
    low, high = (np.float32(0.1) * np.sin(2 * np.pi * hz * time).astype(np.float32) for hz in (200, 3000))
    rows = background_rows(encoder, [low, high], 10 * ROWS - 3, CPU, rng)
    assert rows.shape == (10 * ROWS - 3, encoder.dim)
    pure = [encoder.rows(torch.from_numpy(sound)).numpy() for sound in (low, high)]
    same = [min(float(np.abs(rows[at : at + ROWS] - one).max()) for one in pure) for at in range(0, 9 * ROWS, ROWS)]
    assert max(same[::2]) < 1e-5
    assert max(same[1::2]) > 0.05
    assert background_rows(encoder, [low], 0, CPU, rng).shape == (0, encoder.dim)


def test_background_is_heard_by_how_long_its_recordings_are() -> None:
    """Of a minute and of ten seconds, the minute in six blocks of seven."""
    encoder, rng = pretrained("speech-embedding", 1.28), np.random.default_rng(0)
    long, short = (np.full(seconds * RATE, level, np.float32) for seconds, level in ((60, 0.0), (10, 0.5)))
    rows = background_rows(encoder, [long, short], 40 * ROWS, CPU, rng)
    alone = rows.reshape(40, ROWS, -1)[::2]  # every second block is of two places
    with torch.no_grad():
        silent = encoder.rows(torch.zeros(encoder.window)).numpy()[0]
    share = float((np.abs(alone - silent).max(axis=(1, 2)) < 1e-5).mean())
    assert share == pytest.approx(6 / 7, abs=0.15)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 6), st.integers(0, 9))
def test_no_source_has_more_rows_than_half_of_them_have(sources: list[int], short: int, seed: int) -> None:
    kept = _cap_rows_per_source(np.array(sources, np.int64), short, np.random.default_rng(seed)).tolist()
    assert kept == sorted(set(kept))
    counts = Counter(sources)
    most = max(short, int(median(counts.values())) if counts else 0)
    assert Counter(sources[place] for place in kept) == {source: min(most, count) for source, count in counts.items()}


def test_which_rows_of_a_source_are_kept_is_drawn() -> None:
    sources = np.repeat([0, 1, 2], (50, 2, 2))
    draws = {tuple(_cap_rows_per_source(sources, 1, np.random.default_rng(seed))[:2].tolist()) for seed in range(20)}
    assert len(draws) > 10
    assert max(place for draw in draws for place in draw) > 40


def test_streams_are_as_long_as_they_may_be_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confit_edge.probes.views.STREAM_S", 100)
    rate, gap_s = 10, 3.0
    seconds = [*range(1, 40), 130]  # the last is longer than any stream by itself
    clips = Clips(
        [np.zeros(one * rate, np.float32) for one in seconds], np.ones((40, 1), np.int8), ["a"] * 40, [Path()] * 40
    )
    parts = _parts(clips, rate, gap_s, np.random.default_rng(0))
    assert sorted(at for part in parts for at in part) == list(range(40))
    lengths = [[seconds[at] + gap_s for at in part] for part in parts]
    assert all(sum(part) <= 100 or len(part) == 1 for part in lengths)
    assert all(
        sum(part) + after[0] > 100 for part, after in pairwise(lengths)
    )  # no clip would have fitted that came next
    assert [at for part in parts for at in part] != list(range(40))
    few = Clips(clips.pcm[:9], clips.targets[:9], ["a"] * 9, [Path()] * 9)  # of 72 s with their gaps
    assert _parts(few, rate, gap_s, np.random.default_rng(0)) == [list(range(9))]


def test_each_view_is_another_stream(run_corpus: Corpus) -> None:
    """Else a second one would say nothing that the first has not said."""
    encoder, background = pretrained("speech-embedding", 1.28), run_corpus.background_train
    rows, targets = stream_views(encoder, run_corpus, run_corpus.train, background, Recipe(), CPU, views=2, salt=2)
    spoken = rows[targets[:, run_corpus.classes.index(UNKNOWN)] == 0]
    assert len({row.tobytes() for row in spoken}) == len(spoken)


@pytest.mark.parametrize("snr", [0.0, 30.0])
def test_the_clips_of_a_stream_exceed_its_background_by_the_ratio_of_the_recipe(
    run_corpus: Corpus, snr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by an encoder whose embedding is the power of its window."""
    encoder = pretrained("speech-embedding", 1.28)

    def powers(pcm: torch.Tensor) -> torch.Tensor:
        return pcm.unfold(0, encoder.window, encoder.hop).square().mean(dim=1)[:, None].expand(-1, encoder.dim)

    monkeypatch.setattr(encoder, "rows", powers)
    hiss, recipe = [noise(64_000, seed, level=0.01) for seed in range(2)], Recipe(snr_low=snr, snr_high=snr)
    tones = [0.1 * np.sin(np.arange(encoder.window) * pitch).astype(np.float32) for pitch in (0.1, 0.2, 0.3, 0.4)]
    clips = Clips(tones, run_corpus.train.targets[: len(tones)], ["a"] * len(tones), [Path()] * len(tones))
    power, targets = stream_views(encoder, run_corpus, clips, hiss, recipe, CPU, views=2, salt=2)
    spoken = targets[:, run_corpus.classes.index(UNKNOWN)] == 0
    quietest = power[~spoken].min()  # of the background of the stream, or of the background alone: not mixed
    assert 10 * np.log10(power[spoken].max() / quietest - 1) == pytest.approx(snr, abs=1.0)


def test_views_keep_every_label_of_a_clip(run_corpus: Corpus) -> None:
    clips = run_corpus.train
    targets = clips.targets.copy()
    first, last = 0, run_corpus.classes.index(UNKNOWN) - 1
    targets[:, last] |= targets[:, first]  # whoever says the first word also has the last label
    empty = np.flatnonzero(targets[:, 1])
    targets[empty] = 0  # and one word is nobody's
    labelled = Clips(clips.pcm, targets, clips.groups, [Path()] * len(clips))
    _, found = stream_views(
        pretrained("speech-embedding", 1.28),
        run_corpus,
        labelled,
        run_corpus.background_train,
        Recipe(),
        CPU,
        views=1,
        salt=2,
    )
    assert found[:, first].sum() > 0
    assert np.array_equal(found[:, first] & found[:, last], found[:, first])
    assert (found.sum(axis=1) == 0).sum() > 0
    assert found[:, 1].sum() == 0


def test_standardised_neighbours_vote_as_in_the_loop() -> None:
    rng, stretch = np.random.default_rng(0), np.linspace(0.1, 2, 9, dtype=np.float32)
    x, queries = (rng.standard_normal((count, 9)).astype(np.float32) * stretch for count in (40, 6))
    targets = np.eye(3, dtype=np.int8)[rng.integers(3, size=40)]
    found = KnnProbe(x, targets, 5, "standardised").scores(queries)
    for query, scores in zip(queries, found, strict=True):
        away = np.square((query - x) / x.std(axis=0)).sum(axis=1) / 9
        near = np.argsort(away)[:5]
        weights = np.exp(-(away[near] - away.min()) / 2 / 0.1)
        np.testing.assert_allclose(scores, weights @ targets[near] / weights.sum(), atol=1e-4)
    assert ((found > 0.05) & (found < 0.95)).any()
