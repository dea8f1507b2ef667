"""What the studies measure: epochs to the best, dropped dimensions, rotations, imbalance, penalties and episodes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.encoders import pretrained
from confit_edge.geometry.measures import contribution
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.trainer import prepared_training
from confit_edge.recipe import Recipe
from confit_edge.studies import find, names
from confit_edge.studies.questions import (
    convergence,
    dimensions,
    mining,
    unseen,
)
from confit_runtime.errors import UsageError


@pytest.fixture(scope="module")
def corpus(tones: Path) -> Corpus:
    return read_corpus(tones, rate=16_000, seed=0)


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


def test_dropping_dimensions_equals_a_naive_loop() -> None:
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
        expected = torch.autograd.grad(loss / recipe.accumulate, training.parameters)
        loss_parts = training._backward(pcm, targets, recipe.accumulate)
        assert loss_parts["loss"] == pytest.approx(loss.item(), rel=1e-5)
        found = [parameter.grad for parameter in training.parameters if parameter.grad is not None]
        one, other = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (found, expected))
        assert float((one - other).norm() / other.norm()) < 1e-5


def test_episodes_are_decided_by_prototypes_of_their_own_classes(corpus: Corpus) -> None:
    """With prints that point where their class does all are right; with the classes swapped, none are."""
    directions = np.eye(4, dtype=np.float32)
    rng = np.random.default_rng(0)
    prototypes_from, queries = directions[corpus.train.labels], directions[corpus.test.labels]
    found = unseen.episodes(prototypes_from, corpus.train, queries, corpus.test, 3, 2, rng)
    for tally in found.values():
        assert set(tally) == {"test0", "test1", "test2"}
        assert all(right == clips == 100 * 3 for right, clips in tally.values())
    wrong = unseen.episodes(prototypes_from, corpus.train, -queries, corpus.test, 2, 1, rng)
    assert sum(right for right, _ in wrong["prototype"].values()) == 0


def test_episodes_equal_a_naive_loop(corpus: Corpus) -> None:
    """A class is known by as many prints as there are shots: by the cosine of their mean, or by that many neighbours' votes."""
    given, asked = (np.random.default_rng(2).normal(size=(len(clips), 3)) for clips in (corpus.train, corpus.test))
    given, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (given, asked))
    found = unseen.episodes(
        given.astype(np.float32), corpus.train, asked.astype(np.float32), corpus.test, 3, 3, np.random.default_rng(0)
    )
    rng, right = np.random.default_rng(0), {"prototype": 0, "knn": 0}
    for _ in range(unseen.EPISODES):
        drawn = {
            column: given[rng.permutation(np.flatnonzero(corpus.train.labels == column))[:3]]
            for column in rng.permutation(4)[:3]
        }
        for query, label in zip(asked, corpus.test.labels, strict=True):
            if label not in drawn:
                continue
            cosines = {
                column: query @ rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0)) for column, rows in drawn.items()
            }
            right["prototype"] += max(cosines, key=lambda column: cosines[column]) == label
            near = sorted(
                ((float(query @ row), column) for column, rows in drawn.items() for row in rows), reverse=True
            )[:3]
            votes = dict.fromkeys(drawn, 0.0)
            for similarity, column in near:
                votes[column] += math.exp((similarity - near[0][0]) / 0.1)
            right["knn"] += max(votes, key=lambda column: votes[column]) == label
    assert {name: sum(hits for hits, _ in tally.values()) for name, tally in found.items()} == right
