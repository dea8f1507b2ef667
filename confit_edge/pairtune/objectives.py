"""What a training step minimises: PairTune's contrastive objective, or the cross-entropy it is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.pairtune.losses import SupCon, jaccard
from confit_edge.pairtune.mining import Strategy, mine, strategy_of
from confit_edge.pairtune.variants import Variant
from confit_edge.recipe import Recipe
from confit_runtime.errors import UsageError


class Objective(nn.Module, ABC):
    """A small head on the embedding, and the loss of a batch of its outputs.

    The two halves are separate so that a trainer can gather or cache outputs between them: `project` handles each row on
    its own, `loss` needs the whole batch.
    """

    @abstractmethod
    def project(self, embeddings: Tensor) -> Tensor:
        """The head's outputs `[batch, outputs]` for `embeddings [batch, dim]` of unit length."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of `outputs` with 0/1 `targets [batch, classes]`, and statistics."""

    def forward(self, embeddings: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Both halves: the loss of `embeddings [batch, dim]`, and statistics."""
        return self.loss(self.project(embeddings), targets)


class PairTune(Objective):
    """Contrastive learning on a projection of the embedding; the projection is discarded after training.

    A miner's `strategy` weighs the pairs of a batch. `contrast` is the loss over these pairs, called with the projections,
    the targets, the overlaps of the pairs and their weights; it may have parameters of its own.
    """

    def __init__(self, dim: int, projection_dim: int, contrast: nn.Module, strategy: Strategy, *, layers: int) -> None:
        super().__init__()
        hidden = [layer for _ in range(layers - 1) for layer in (nn.Linear(dim, dim), nn.ReLU())]
        self.projection = nn.Sequential(*hidden, nn.Linear(dim, projection_dim))
        self.contrast, self.strategy = contrast, strategy

    def project(self, embeddings: Tensor) -> Tensor:
        return self.projection(embeddings * embeddings.shape[1] ** 0.5)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        pairs = jaccard(targets)
        mined = mine(outputs, pairs, self.strategy)
        return self.contrast(outputs, targets, pairs, mined.weights), mined.statistics


class FineTune(Objective):
    """Vanilla fine-tuning: a linear head and cross-entropy (binary cross-entropy where clips carry several labels)."""

    def __init__(self, dim: int, classes: int, multi_label: bool) -> None:
        super().__init__()
        self.multi_label = multi_label
        self.head = nn.Linear(dim, classes)

    def project(self, embeddings: Tensor) -> Tensor:
        """Class scores before softmax or sigmoid, `[batch, classes]`; fp32 whatever the autocast."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.head(embeddings.float() * embeddings.shape[1] ** 0.5)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        if self.multi_label:
            return functional.binary_cross_entropy_with_logits(outputs, targets.float()), {}
        return functional.cross_entropy(outputs, targets.argmax(dim=1)), {}


# makes an objective from the recipe, the size of the embeddings, the number of classes, and whether clips have several labels
MakeObjective = Callable[[Recipe, int, int, bool], Objective]


def make_objective(recipe: Recipe, dim: int, classes: int, multi_label: bool) -> Objective:
    """The recipe's objective for embeddings of `dim`. Raises UsageError for a loss that cannot take several labels."""
    if recipe.objective == "finetune":
        return FineTune(dim, classes, multi_label)
    if recipe.loss == "supcon":
        contrast: nn.Module = SupCon(recipe.temperature)
    elif multi_label:
        raise UsageError(
            f"recipe key 'loss' {recipe.loss} needs clips with one label, but these have several; use supcon"
        )
    else:
        contrast = Variant(recipe, classes)
    return PairTune(dim, recipe.projection_dim, contrast, strategy_of(recipe), layers=recipe.projection_layers)
