"""Hard-pair mining against loops over anchors and pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.pairtune import mining
from confit_edge.pairtune.losses import jaccard
from confit_edge.pairtune.mining import mine, strategy_of
from confit_edge.recipe import Mining, Recipe
from tests.confit_edge import naive_pairs as naive
from tests.confit_edge.naive_pairs import Doubles, Targets

SETTINGS = settings(max_examples=60)
SHARE, MARGIN = {"share": 0.4}, {"margin": 0.25}
KEEPING: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, float]]] = {
    "none": (mining.all_alike, naive.none, {}),
    "hardest-negatives": (mining.hardest_negatives, naive.hardest_negatives, SHARE),
    "hardest-positives": (mining.hardest_positives, naive.hardest_positives, SHARE),
    "semi-hard": (mining.semi_hard, naive.semi_hard, MARGIN),
    "multi-similarity": (mining.multi_similarity, naive.multi_similarity, MARGIN),
}


def few_cosines(clips: int) -> st.SearchStrategy[Doubles]:
    """Cosines that tie often, and that float32 and the margin hold exactly."""
    return st.lists(st.integers(-8, 8), min_size=clips**2, max_size=clips**2).map(
        lambda values: np.reshape(values, (clips, clips)) / 8
    )


@SETTINGS
@pytest.mark.parametrize("name", KEEPING)
@given(data=st.data())
def test_a_strategy_keeps_the_pairs_that_the_loop_keeps(name: str, data: st.DataObject) -> None:
    clips = data.draw(st.integers(1, 7))
    cosine, pairs = data.draw(few_cosines(clips)), naive.overlap(data.draw(naive.label_sets(clips)))
    ours, oracle, options = KEEPING[name]
    positive = torch.from_numpy(pairs > 0)
    weights = ours(torch.from_numpy(cosine).float(), positive, (~positive).fill_diagonal_(False), **options)
    np.testing.assert_array_equal(weights.fill_diagonal_(0), oracle(cosine, pairs, **options))


@SETTINGS
@given(batch=naive.batches(), beta=st.floats(0, 8))
def test_weights_by_hardness_equal_the_loop(batch: tuple[Doubles, Targets], beta: float) -> None:
    z, targets = batch
    pairs = jaccard(torch.from_numpy(targets))
    weights = mine(torch.from_numpy(z), pairs, partial(mining.by_hardness, beta=beta)).weights
    expected = naive.hardness(naive.cosines(z), pairs.double().numpy(), beta)
    np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-6)
    negative = ((pairs == 0) & ~torch.eye(len(z), dtype=torch.bool)).any(dim=1)
    sums, counts = (weights * (pairs == 0)).sum(dim=1), (pairs == 0).sum(dim=1) - 1
    np.testing.assert_allclose(sums[negative] / counts[negative], 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", ["hardness", *KEEPING])
@settings(max_examples=20)
@given(batch=naive.batches(repeats=False))
def test_statistics_equal_the_loop(name: Mining, batch: tuple[Doubles, Targets]) -> None:
    z, targets = batch
    pairs = jaccard(torch.from_numpy(targets))
    mined = mine(torch.from_numpy(z), pairs, strategy_of(Recipe(mining=name)))
    expected = naive.statistics(naive.cosines(z), pairs.numpy(), mined.weights.numpy())
    assert mined.statistics == pytest.approx(expected, abs=1e-5, nan_ok=True)
    if name in ("none", "hardness"):
        for kept in (mined.statistics["positives_kept"], mined.statistics["negatives_kept"]):
            assert kept == 1 or np.isnan(kept)


def test_multi_similarity_is_that_of_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    torch.manual_seed(0)
    labels = torch.arange(40) % 7
    z = torch.randn(40, 6)
    a1, positives, a2, negatives = MultiSimilarityMiner(epsilon=0.1)(z, labels)
    expected = torch.zeros(40, 40)
    expected[a1, positives] = expected[a2, negatives] = 1
    mined = mine(z, jaccard(torch.eye(7)[labels]), partial(mining.multi_similarity, margin=0.1))
    assert torch.equal(mined.weights, expected)
    assert 0 < mined.statistics["negatives_kept"] < 1


def test_semi_hard_pairs_are_those_of_the_triplets_of_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.miners import TripletMarginMiner

    torch.manual_seed(0)
    labels = torch.arange(24) % 6
    z = torch.randn(24, 6)
    miner = TripletMarginMiner(margin=0.05, type_of_triplets="semihard", distance=CosineSimilarity())
    anchors, positives, negatives = miner(z, labels)
    expected = torch.zeros(24, 24)
    expected[anchors, positives] = expected[anchors, negatives] = 1
    mined = mine(z, jaccard(torch.eye(6)[labels]), partial(mining.semi_hard, margin=0.05))
    assert torch.equal(mined.weights, expected)
    assert 0 < mined.statistics["positives_kept"] < 1


def test_a_nearer_negative_weighs_more_and_a_great_beta_overflows_nothing() -> None:
    projections = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.5], [-1.0, 0.0]])
    pairs = jaccard(torch.eye(3)[[0, 0, 1, 2]])
    weights = mine(projections, pairs, partial(mining.by_hardness, beta=2.0)).weights
    assert weights[0, 2] > 1 > weights[0, 3]
    assert weights[0, 1] == 1  # a positive is left alone
    weights = mine(projections, pairs, partial(mining.by_hardness, beta=500.0)).weights
    assert weights[0].tolist() == pytest.approx([0, 1, 2, 0], abs=1e-6)  # all on the hardest negative


@pytest.mark.parametrize("name", ["hardness", *KEEPING])
def test_mining_gives_no_gradient_and_is_fp32_under_autocast(name: Mining) -> None:
    torch.manual_seed(0)
    projections, pairs = torch.randn(12, 6).requires_grad_(), jaccard(torch.eye(3)[torch.arange(12) % 3])
    strategy = strategy_of(Recipe(mining=name))
    plain = mine(projections, pairs, strategy)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mine(projections, pairs, strategy)
    assert not plain.weights.requires_grad
    assert torch.equal(plain.weights, cast.weights)
    assert plain.statistics == cast.statistics


@pytest.mark.parametrize("name", ["hardness", *KEEPING])
def test_a_recipe_names_its_strategy_and_gives_it_its_own_parameters(name: Mining) -> None:
    torch.manual_seed(0)
    projections, pairs = torch.randn(24, 6), jaccard(torch.eye(4)[torch.arange(24) % 4])
    recipe = Recipe(mining=name, hardness=1.5, mining_share=SHARE["share"], mining_margin=MARGIN["margin"])
    ours, _, options = {**KEEPING, "hardness": (mining.by_hardness, None, {"beta": 1.5})}[name]
    expected = mine(projections, pairs, partial(ours, **options)).weights
    assert torch.equal(mine(projections, pairs, strategy_of(recipe)).weights, expected)
