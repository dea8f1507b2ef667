"""The contrastive loss against a loop over anchors and pairs, in float64, and against pytorch-metric-learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from confit_edge.pairtune.losses import jaccard, supervised_contrastive
from tests.confit_edge import naive_pairs as naive
from tests.confit_edge.naive_pairs import CASES, Doubles, Targets, one_hot

SETTINGS = settings(max_examples=60)


def projections_of(clips: int, seed: int = 0) -> Doubles:
    return np.random.default_rng(seed).standard_normal((clips, 8))


@pytest.mark.parametrize("case", CASES)
def test_overlap_of_label_sets(case: str) -> None:
    np.testing.assert_allclose(jaccard(torch.from_numpy(CASES[case])), naive.overlap(CASES[case]), atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_loss_equals_the_double_loop(case: str, temperature: float, weighted: bool) -> None:
    targets = CASES[case]
    z, pairs = projections_of(len(targets)), naive.overlap(targets)
    weights = np.random.default_rng(1).uniform(0.2, 3.0, pairs.shape) if weighted else None
    loss = supervised_contrastive(
        torch.from_numpy(z),
        torch.from_numpy(pairs),
        temperature=temperature,
        weights=None if weights is None else torch.from_numpy(weights),
    )
    assert loss.item() == pytest.approx(naive.supcon(z, pairs, temperature, weights), rel=1e-5, abs=2e-6)


@SETTINGS
@given(batch=naive.batches(), seed=st.integers(0, 2**16), temperature=st.sampled_from([0.05, 0.1, 1.0]))
def test_loss_and_gradient_of_odd_batches_with_pairs_mined_away(
    batch: tuple[Doubles, Targets], seed: int, temperature: float
) -> None:
    z, targets = batch
    pairs = naive.overlap(targets)
    weights = np.random.default_rng(seed).choice([0.0, 0.5, 1.0, 4.0], pairs.shape)
    leaf = torch.from_numpy(z).requires_grad_()
    loss = supervised_contrastive(
        leaf, jaccard(torch.from_numpy(targets)), temperature=temperature, weights=torch.from_numpy(weights)
    )
    assert loss.item() == pytest.approx(naive.supcon(z, pairs, temperature, weights), rel=1e-4, abs=1e-5)
    loss.backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    if not (pairs * weights > 0).any():
        assert loss.item() == 0
        assert not leaf.grad.any()


def test_pairs_of_weight_zero_have_left_the_loss() -> None:
    z = torch.from_numpy(projections_of(5)).float().requires_grad_()
    pairs = jaccard(torch.from_numpy(one_hot([0, 0, 0, 1, 1])))
    weights = torch.ones(5, 5)
    weights[:, 4] = weights[4, :] = weights[:, 2] = weights[2, :] = 0  # clip 4 was a negative or a positive, clip 2 too
    loss = supervised_contrastive(z, pairs, weights=weights)
    loss.backward()
    assert z.grad is not None
    assert not z.grad[[2, 4]].any()
    assert z.grad[[0, 1, 3]].any()
    rest = [0, 1, 3]
    alone = supervised_contrastive(z.detach()[rest], pairs[rest][:, rest])
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_and_zero_where_nothing_is_asked(case: str) -> None:
    targets = torch.from_numpy(CASES[case])
    z = torch.from_numpy(projections_of(len(targets))).requires_grad_()
    pairs = jaccard(targets)
    supervised_contrastive(z, pairs).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert bool((z.grad != 0).any()) == bool((pairs > 0).any())


def test_gradient_equals_finite_differences_of_the_double_loop() -> None:
    z, pairs = projections_of(5), naive.overlap(one_hot([0, 0, 1, 1, 2]))
    weights = np.random.default_rng(2).choice([0.0, 0.5, 2.0], pairs.shape)
    leaf = torch.from_numpy(z).float().requires_grad_()
    supervised_contrastive(leaf, torch.from_numpy(pairs), temperature=0.5, weights=torch.from_numpy(weights)).backward()
    assert leaf.grad is not None
    step = 1e-5
    for at in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[at] += step
        down[at] -= step
        slope = (naive.supcon(up, pairs, 0.5, weights) - naive.supcon(down, pairs, 0.5, weights)) / (2 * step)
        assert leaf.grad[at].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_loss_and_gradient_equal_those_of_pytorch_metric_learning(temperature: float) -> None:
    from pytorch_metric_learning.losses import SupConLoss

    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    z = torch.from_numpy(projections_of(8)).float()
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = supervised_contrastive(ours, jaccard(torch.eye(4)[labels]), temperature=temperature)
    expected = SupConLoss(temperature=temperature)(theirs, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    np.testing.assert_allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_autocast_to_bf16_changes_neither_loss_nor_gradient() -> None:
    z, pairs = torch.from_numpy(projections_of(6)).float(), jaccard(torch.from_numpy(CASES["single label"]))

    def run(autocast: bool) -> tuple[Tensor, Tensor]:
        leaf = z.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = supervised_contrastive(leaf, pairs)
        loss.backward()
        assert leaf.grad is not None
        return loss.detach(), leaf.grad

    (plain, plain_grad), (cast, cast_grad) = run(False), run(True)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    assert torch.equal(plain_grad, cast_grad)


@SETTINGS
@given(batch=naive.batches(), seed=st.integers(0, 2**16))
def test_loss_does_not_depend_on_the_order_or_the_length_of_projections(
    batch: tuple[Doubles, Targets], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    z, pairs = torch.from_numpy(batch[0]).float(), jaccard(torch.from_numpy(batch[1]))
    loss = supervised_contrastive(z, pairs).item()
    order = torch.from_numpy(rng.permutation(len(z)))
    assert supervised_contrastive(z[order], pairs[order][:, order]).item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
    lengths = torch.from_numpy(rng.uniform(0.01, 100, (len(z), 1))).float()
    assert supervised_contrastive(z * lengths, pairs).item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
