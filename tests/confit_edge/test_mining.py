"""Hard-pair mining against a loop over anchors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.pairtune.losses import jaccard
from confit_edge.pairtune.mining import mine
from confit_edge.pairtune.objectives import PairTune


def batch(seed: int, clips: int, classes: int, several: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (clips, classes)) if several else np.eye(classes)[rng.integers(classes, size=clips)]
    return torch.from_numpy(rng.standard_normal((clips, 6))).float(), jaccard(torch.from_numpy(targets))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    clips=st.integers(1, 9),
    classes=st.integers(1, 4),
    several=st.booleans(),
    beta=st.floats(0, 8),
)
def test_weights_and_statistics_equal_the_loop(seed: int, clips: int, classes: int, several: bool, beta: float) -> None:
    projections, pairs = batch(seed, clips, classes, several)
    mined = mine(projections, pairs, beta)
    z = projections.double().numpy()
    cosine = z @ z.T / np.outer(np.linalg.norm(z, axis=1), np.linalg.norm(z, axis=1))
    positives, negatives = [], []
    for i in range(clips):
        mine_of = [a for a in range(clips) if a != i and pairs[i, a] == 0]
        raw = {a: math.exp(beta * cosine[i, a] / 0.5) for a in mine_of}
        for a in range(clips):
            expected = raw[a] * len(raw) / sum(raw.values()) if a in raw else 1.0
            assert mined.hardness[i, a].item() == pytest.approx(expected, rel=1e-3)
        if mine_of:
            assert mined.hardness[i, mine_of].mean().item() == pytest.approx(1.0, rel=1e-4)
            negatives.append(max(cosine[i, a] for a in mine_of))
        if same := [p for p in range(clips) if pairs[i, p] > 0]:
            positives.append(min(cosine[i, p] for p in same))
    for found, values in ((mined.hardest_positive, positives), (mined.hardest_negative, negatives)):
        assert found == pytest.approx(np.mean(values) if values else math.nan, abs=1e-5, nan_ok=True)


def test_beta_zero_weighs_all_alike() -> None:
    projections, pairs = batch(0, 8, 3)
    np.testing.assert_allclose(mine(projections, pairs, 0.0).hardness, 1.0, rtol=1e-6)


def test_a_nearer_negative_weighs_more() -> None:
    projections = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.5], [-1.0, 0.0]])
    pairs = jaccard(torch.eye(3)[[0, 0, 1, 2]])
    hardness = mine(projections, pairs, 2.0).hardness
    assert hardness[0, 2] > 1 > hardness[0, 3]
    assert hardness[0, 1] == 1  # a positive is left alone


def test_mining_gives_no_gradient_and_is_fp32_under_autocast() -> None:
    projections, pairs = batch(0, 8, 3)
    projections.requires_grad_()
    plain = mine(projections, pairs, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mine(projections, pairs, 4.0)
    assert not plain.hardness.requires_grad
    assert torch.equal(plain.hardness, cast.hardness)
    assert plain.hardest_negative == cast.hardest_negative


def test_pairtune_passes_hardness_to_the_loss() -> None:
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(9, 8), dim=1)
    targets = torch.eye(3)[torch.arange(9) % 3]
    soft = PairTune(8, 4, temperature=0.1, hardness=0.0)
    hard = PairTune(8, 4, temperature=0.1, hardness=4.0)
    hard.load_state_dict(soft.state_dict())
    (soft_loss, statistics), (hard_loss, _) = soft(embeddings, targets), hard(embeddings, targets)
    assert hard_loss > soft_loss  # the hardest negatives count for more
    assert -1 <= statistics["hardest_positive"] <= 1
    assert -1 <= statistics["hardest_negative"] <= 1
