"""What a training step minimises: each objective against loops, in its two halves, and with what it learns itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.functional import normalize

from confit_edge.pairtune.mining import mine, strategy_of
from confit_edge.pairtune.objectives import FineTune, Objective, PairTune, make_objective
from confit_edge.pairtune.variants import PROXY_SCALE
from confit_edge.recipe import Loss, Mining, Recipe
from confit_runtime.errors import UsageError
from tests.confit_edge import naive_pairs as naive
from tests.confit_edge.naive_pairs import Doubles, Targets

if TYPE_CHECKING:
    from confit_edge.data.corpus import Corpus

MINING: tuple[Mining, ...] = (
    "hardness", "none", "hardest-negatives", "hardest-positives", "semi-hard", "multi-similarity",
)  # fmt: skip
VARIANTS: tuple[Loss, ...] = ("triplet", "nt-xent", "n-pairs", "proxy-anchor")
TAKEN: list[tuple[Loss, Mining]] = [
    *(("supcon", mining) for mining in MINING),
    *(("triplet", mining) for mining in MINING[1:]),
    *(("nt-xent", mining) for mining in MINING[1:]),
    ("n-pairs", "none"),
    ("n-pairs", "hardest-positives"),
    ("proxy-anchor", "none"),
]
LABELS = torch.arange(15) % 4


def recipe_of(loss: Loss, mining: Mining) -> Recipe:
    return Recipe(loss=loss, mining=mining, projection_dim=6, temperature=0.2, loss_margin=0.3)  # not the defaults


def batch_of(dim: int = 10, labels: Tensor = LABELS) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return normalize(torch.randn(len(labels), dim), dim=1), torch.eye(4, dtype=torch.int8)[labels]


def make(loss: Loss, mining: Mining, seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    return make_objective(recipe_of(loss, mining), dim=10, classes=4, multi_label=False)


def oracle(objective: PairTune, recipe: Recipe, z: Doubles, labels: list[int]) -> float:
    """The loss by loops, from the weights that `test_mining` holds to loops."""
    pairs = naive.overlap(np.eye(4, dtype=np.int8)[labels])
    weights = mine(torch.from_numpy(z), torch.from_numpy(pairs), strategy_of(recipe)).weights.double().numpy()
    if recipe.loss == "triplet":
        return naive.triplet(z, pairs, weights, recipe.loss_margin)
    if recipe.loss == "nt-xent":
        return naive.nt_xent(z, pairs, weights, recipe.temperature)
    if recipe.loss == "n-pairs":
        return naive.n_pairs(z, labels, pairs, weights, recipe.temperature)
    if recipe.loss == "proxy-anchor":
        proxies = dict(objective.named_parameters())["contrast.metric.proxies"].detach().double().numpy()
        return naive.proxy_anchor(z, labels, proxies, recipe.loss_margin, PROXY_SCALE)
    return naive.supcon(z, pairs, recipe.temperature, weights)


@pytest.mark.parametrize(("loss", "mining"), TAKEN)
def test_the_loss_of_a_batch_equals_the_loop(loss: Loss, mining: Mining) -> None:
    embeddings, targets = batch_of()
    objective = make(loss, mining)
    assert isinstance(objective, PairTune)
    value, statistics = objective(embeddings, targets)
    z = objective.project(embeddings).detach().double().numpy()
    expected = oracle(objective, recipe_of(loss, mining), z, LABELS.tolist())
    assert expected > 0
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert set(statistics) == {"positives_kept", "negatives_kept", "hardest_positive", "hardest_negative"}
    assert all(isinstance(number, float) for number in statistics.values())


@settings(max_examples=40)
@given(batch=naive.batches())
def test_the_default_is_supervised_contrast_with_negatives_by_hardness(batch: tuple[Doubles, Targets]) -> None:
    z, targets = batch
    objective = make_objective(Recipe(), 5, targets.shape[1], True)
    pairs = naive.overlap(targets)
    weights = naive.hardness(naive.cosines(z), pairs, 4.0)
    loss, _ = objective.loss(torch.from_numpy(z), torch.from_numpy(targets))
    assert loss.item() == pytest.approx(naive.supcon(z, pairs, 0.1, weights), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("loss", "mining"), TAKEN)
@settings(max_examples=15)
@given(batch=naive.batches())
def test_odd_batches_give_a_finite_loss_and_gradient(
    loss: Loss, mining: Mining, batch: tuple[Doubles, Targets]
) -> None:
    z, targets = batch
    if loss != "supcon":
        targets = np.eye(targets.shape[1], dtype=np.int8)[targets.argmax(axis=1)]
    recipe = Recipe(loss=loss, mining=mining, projection_dim=5)
    objective = make_objective(recipe, 5, targets.shape[1], loss == "supcon")
    leaf = torch.from_numpy(z).float().requires_grad_()
    value, _ = objective.loss(leaf, torch.from_numpy(targets))
    value.backward()
    assert torch.isfinite(value)
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()


def test_a_projection_and_a_head_see_embeddings_of_the_scale_of_a_layers_outputs() -> None:
    """Unit vectors of many dimensions have tiny coordinates; the layer is given them at a spread of 1."""
    objective = make_objective(Recipe(projection_dim=8, projection_layers=1), 16, 4, multi_label=False)
    assert isinstance(objective, PairTune)
    vanilla = FineTune(16, 4, multi_label=False)
    embeddings = torch.randn(3, 16)
    torch.testing.assert_close(objective.project(embeddings), objective.projection(4 * embeddings))
    torch.testing.assert_close(vanilla.project(embeddings), vanilla.head(4 * embeddings))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_projection_of_one_layer_is_linear_and_of_more_is_not(layers: int) -> None:
    objective = make_objective(Recipe(projection_layers=layers, projection_dim=7), 10, 4, False)
    one, other, _ = torch.randn(3, 5, 10)
    zero = objective.project(torch.zeros(5, 10))
    added = objective.project(one + other) - objective.project(one) - objective.project(other) + zero
    assert zero.shape == (5, 7)
    assert torch.allclose(added, torch.zeros(5, 7), atol=1e-4) == (layers == 1)
    assert sum(parameter.ndim == 2 for parameter in objective.parameters()) == layers


@pytest.mark.parametrize("loss", ["supcon", *VARIANTS, "finetune"])
def test_rows_are_projected_alone_and_the_gradient_passes_between_the_halves(loss: Loss) -> None:
    embeddings, targets = batch_of()
    objective = FineTune(10, 4, False) if loss == "finetune" else make(loss, "none")
    apart = torch.cat([objective.project(part) for part in embeddings.split(4)])
    torch.testing.assert_close(apart, objective.project(embeddings))
    objective(embeddings, targets)[0].backward()
    whole = [parameter.grad for parameter in objective.parameters()]
    objective.zero_grad(set_to_none=True)
    cached = objective.project(embeddings).detach().requires_grad_()
    objective.loss(cached, targets)[0].backward()
    objective.project(embeddings).backward(cached.grad)
    for grad, parameter in zip(whole, objective.parameters(), strict=True):
        assert grad is not None
        torch.testing.assert_close(parameter.grad, grad)


@pytest.mark.parametrize("loss", ["supcon", *VARIANTS, "finetune", "finetune, several labels"])
def test_an_objective_under_autocast_is_near_to_fp32(loss: str) -> None:
    embeddings, targets = batch_of()
    objective = FineTune(10, 4, "several" in loss) if "finetune" in loss else make(loss, "none")  # type: ignore[arg-type]
    plain, _ = objective(embeddings, targets)
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = objective(embeddings, targets)
        outputs = objective.project(embeddings)
        within, _ = objective.loss(outputs, targets)
    after, _ = objective.loss(outputs, targets)
    assert cast.dtype == torch.float32
    assert cast.item() == pytest.approx(plain.item(), rel=0.03)
    assert torch.equal(within, after)  # the loss itself is computed in fp32


@pytest.mark.parametrize("mining", MINING)
def test_a_few_steps_bring_classes_together(mining: Mining) -> None:
    embeddings, targets = batch_of()
    objective = make("supcon", mining)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    history = []
    for _ in range(60):
        loss, statistics = objective(embeddings, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(statistics)
    gap = [row["hardest_positive"] - row["hardest_negative"] for row in (history[0], history[-1])]
    assert gap[1] > gap[0] + 0.2
    if mining == "multi-similarity":  # what is easy by now has left
        assert history[-1]["negatives_kept"] < history[0]["negatives_kept"]


def test_proxies_are_learnt_kept_in_the_state_and_one_for_each_class() -> None:
    embeddings, targets = batch_of()
    objective = make("proxy-anchor", "none")
    assert objective.state_dict()["contrast.metric.proxies"].shape == (4, 6)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    for _ in range(5):
        loss, _ = objective(embeddings, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = objective.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    other = make("proxy-anchor", "none", seed=1)
    other.load_state_dict(after)
    assert torch.equal(other(embeddings, targets)[0], objective(embeddings, targets)[0])


@pytest.mark.parametrize("loss", VARIANTS)
def test_several_labels_are_refused_by_what_takes_one(loss: Loss) -> None:
    with pytest.raises(UsageError, match=f"'loss' {loss} needs .* use supcon"):
        make_objective(recipe_of(loss, "none"), 10, 4, multi_label=True)


@pytest.mark.parametrize("loss", VARIANTS)
@pytest.mark.parametrize("mining", MINING)
def test_what_a_loss_cannot_mine_is_refused_with_what_it_can(loss: Loss, mining: Mining) -> None:
    if (loss, mining) in TAKEN:
        assert isinstance(make(loss, mining), PairTune)
        return
    with pytest.raises(UsageError, match=f"'loss' {loss} cannot use recipe key 'mining' {mining}; use mining none"):
        recipe_of(loss, mining)


@pytest.mark.parametrize(
    ("key", "value"), [("mining_share", 0.0), ("mining_share", 1.5), ("mining_margin", -0.1), ("loss_margin", -0.1)]
)
def test_parameters_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"'{key}'"):
        Recipe.from_dict({key: value})


def test_fine_tuning_on_one_or_on_several_labels_is_cross_entropy() -> None:
    torch.manual_seed(0)
    embeddings = normalize(torch.randn(5, 16), dim=1)
    single, several = FineTune(16, 3, False), FineTune(16, 3, True)
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    share = single.project(embeddings).softmax(dim=1)[targets.bool()]
    assert single(embeddings, targets)[0].item() == pytest.approx(-share.log().mean().item(), rel=1e-5)
    targets = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 0, 0]])
    yes = several.project(embeddings).sigmoid()
    chosen = torch.where(targets.bool(), yes, 1 - yes)
    assert several(embeddings, targets)[0].item() == pytest.approx(-chosen.log().mean().item(), rel=1e-5)


def test_proxies_are_in_the_checkpoint_and_in_the_run(manifest: Path, corpus: Corpus, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from confit_edge.encoders import pretrained
    from confit_edge.pairtune.session import train
    from confit_edge.pairtune.trainer import fit

    recipe = Recipe(
        loss="proxy-anchor", mining="none", epochs=2, soup=1, probe_views=1, frozen_baseline=False, projection_dim=6
    )
    train(manifest, tmp_path / "whole", recipe)
    proxies = load_file(tmp_path / "whole" / "projection.safetensors")["contrast.metric.proxies"]
    assert proxies.shape == (len(corpus.classes), 6)

    class StopError(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["stage"] == "epoch":
            raise StopError

    path = tmp_path / "checkpoint.safetensors"
    encoder = pretrained(recipe.encoder, recipe.window)
    with pytest.raises(StopError):
        fit(encoder, corpus, recipe, lr=encoder.learning_rate, epochs=2, checkpoint_path=path, watch=stop)
    encoder = pretrained(recipe.encoder, recipe.window)
    fitted = fit(encoder, corpus, recipe, lr=encoder.learning_rate, epochs=2, checkpoint_path=path)
    assert torch.equal(fitted.objective.state_dict()["contrast.metric.proxies"], proxies)


def test_the_default_recipe_does_without_pytorch_metric_learning() -> None:
    script = (
        "import sys, torch; sys.modules['pytorch_metric_learning'] = None\n"
        "from confit_edge.recipe import Recipe\n"
        "from confit_edge.pairtune.objectives import make_objective\n"
        "objective = make_objective(Recipe(), 8, 3, False)\n"
        "objective(torch.randn(6, 8), torch.eye(3)[[0, 0, 1, 1, 2, 2]])[0].backward()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
