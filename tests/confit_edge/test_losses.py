"""The contrastive loss against a loop over anchors and pairs, in float64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from confit_edge.pairtune.losses import jaccard, supervised_contrastive
from confit_edge.pairtune.objectives import FineTune, PairTune

Doubles = npt.NDArray[np.float64]
SETTINGS = settings(max_examples=40, deadline=None)


def naive_overlap(targets: npt.NDArray[np.int8]) -> Doubles:
    sets = [set(np.flatnonzero(row)) for row in targets]
    return np.array(
        [[len(a & b) / len(a | b) if i != j and a | b else 0.0 for j, b in enumerate(sets)] for i, a in enumerate(sets)]
    ).reshape(len(sets), len(sets))


def naive_loss(z: Doubles, pairs: Doubles, temperature: float, hardness: Doubles | None = None) -> float:
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(len(z)):
        total = sum(pairs[i, p] for p in range(len(z)) if p != i)
        if total == 0:
            continue
        below = 0.0
        for a in range(len(z)):
            if a != i:
                weight = 1.0 if hardness is None else hardness[i, a]
                below += weight * math.exp(z[i] @ z[a] / temperature)
        loss = 0.0
        for p in range(len(z)):
            if p != i:
                loss -= pairs[i, p] / total * math.log(math.exp(z[i] @ z[p] / temperature) / below)
        losses.append(loss)
    return sum(losses) / len(losses) if losses else 0.0


def one_hot(labels: list[int]) -> npt.NDArray[np.int8]:
    return np.eye(6, dtype=np.int8)[labels]


def projections_of(clips: int, seed: int = 0) -> Doubles:
    return np.random.default_rng(seed).standard_normal((clips, 8))


MULTI = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]], np.int8)
CASES = {
    "single label": one_hot([0, 0, 1, 1, 1, 2]),
    "several labels": MULTI,
    "an anchor without a positive": one_hot([0, 1, 1, 2]),
    "no anchor with a positive": one_hot([0, 1, 2, 3]),
    "empty label sets": np.zeros((4, 3), np.int8),
    "all of one class": one_hot([2, 2, 2, 2]),
    "one clip": one_hot([0]),
}


@pytest.mark.parametrize("case", CASES)
def test_overlap_of_label_sets(case: str) -> None:
    np.testing.assert_allclose(jaccard(torch.from_numpy(CASES[case])), naive_overlap(CASES[case]), atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_loss_equals_the_double_loop(case: str, temperature: float, weighted: bool) -> None:
    targets = CASES[case]
    z, pairs = projections_of(len(targets)), naive_overlap(targets)
    hardness = np.random.default_rng(1).uniform(0.2, 3.0, pairs.shape) if weighted else None
    loss = supervised_contrastive(
        torch.from_numpy(z),
        torch.from_numpy(pairs),
        temperature=temperature,
        hardness=None if hardness is None else torch.from_numpy(hardness).float(),
    )
    assert loss.item() == pytest.approx(naive_loss(z, pairs, temperature, hardness), rel=1e-5, abs=1e-6)


def test_negatives_without_weight_leave_the_denominator() -> None:
    targets = one_hot([0, 0, 1, 1])
    z, pairs = projections_of(4), naive_overlap(targets)
    loss = supervised_contrastive(torch.from_numpy(z), torch.from_numpy(pairs), hardness=torch.from_numpy(pairs))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)  # one positive and nothing else: log(1)


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
    z, pairs = projections_of(5), naive_overlap(one_hot([0, 0, 1, 1, 2]))
    leaf = torch.from_numpy(z).float().requires_grad_()
    supervised_contrastive(leaf, torch.from_numpy(pairs), temperature=0.5).backward()
    assert leaf.grad is not None
    step = 1e-5
    for at in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[at] += step
        down[at] -= step
        slope = (naive_loss(up, pairs, 0.5) - naive_loss(down, pairs, 0.5)) / (2 * step)
        assert leaf.grad[at].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


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
@given(seed=st.integers(0, 2**16), clips=st.integers(2, 10), classes=st.integers(1, 4), several=st.booleans())
def test_loss_does_not_depend_on_the_order_or_the_length_of_projections(
    seed: int, clips: int, classes: int, several: bool
) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (clips, classes)) if several else np.eye(classes)[rng.integers(classes, size=clips)]
    z = torch.from_numpy(rng.standard_normal((clips, 5))).float()
    pairs = jaccard(torch.from_numpy(targets))
    loss = supervised_contrastive(z, pairs).item()
    order = torch.from_numpy(rng.permutation(clips))
    assert supervised_contrastive(z[order], pairs[order][:, order]).item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
    lengths = torch.from_numpy(rng.uniform(0.01, 100, (clips, 1))).float()
    assert supervised_contrastive(z * lengths, pairs).item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
    assert naive_loss(z.double().numpy(), pairs.double().numpy(), 0.1) == pytest.approx(loss, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("objective", ["pairtune", "finetune", "finetune, several labels"])
def test_an_objective_under_autocast_is_near_to_fp32(objective: str) -> None:
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(12, 16), dim=1)
    targets = torch.eye(4, dtype=torch.int8)[torch.arange(12) % 4]
    module = PairTune(16, 8, 0.1, 4.0) if objective == "pairtune" else FineTune(16, 4, "several" in objective)
    plain, _ = module(embeddings, targets)
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = module(embeddings, targets)
    assert cast.dtype == torch.float32
    assert cast.item() == pytest.approx(plain.item(), rel=0.02)


def test_fine_tuning_on_one_or_on_several_labels_is_cross_entropy() -> None:
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    single, several = FineTune(16, 3, False), FineTune(16, 3, True)
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    share = single.logits(embeddings).softmax(dim=1)[targets.bool()]
    assert single(embeddings, targets)[0].item() == pytest.approx(-share.log().mean().item(), rel=1e-5)
    targets = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 0, 0]])
    yes = several.logits(embeddings).sigmoid()
    chosen = torch.where(targets.bool(), yes, 1 - yes)
    assert several(embeddings, targets)[0].item() == pytest.approx(-chosen.log().mean().item(), rel=1e-5)
