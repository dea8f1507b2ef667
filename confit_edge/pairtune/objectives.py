"""What a training step minimises: PairTune's contrastive objective, and the cross-entropy it is judged against."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.pairtune.losses import jaccard, supervised_contrastive
from confit_edge.pairtune.mining import mine


class Objective(nn.Module, ABC):
    """A small head on the embedding, and the loss of a batch."""

    @abstractmethod
    def forward(self, embeddings: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of `embeddings [batch, dim]` (unit length) with 0/1 `targets [batch, classes]`, and statistics."""


class PairTune(Objective):
    """Supervised contrastive learning on a projection of the embedding; the projection is thrown away afterwards."""

    def __init__(self, dim: int, projection_dim: int, temperature: float, hardness: float) -> None:
        super().__init__()
        self.temperature, self.hardness = temperature, hardness
        self.projection = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, projection_dim))

    def forward(self, embeddings: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        projections = self.projection(embeddings * embeddings.shape[1] ** 0.5)
        pairs = jaccard(targets)
        mined = mine(projections, pairs, self.hardness)
        loss = supervised_contrastive(projections, pairs, temperature=self.temperature, hardness=mined.hardness)
        return loss, {"hardest_positive": mined.hardest_positive, "hardest_negative": mined.hardest_negative}


class FineTune(Objective):
    """Vanilla fine-tuning: a linear head and cross-entropy (binary cross-entropy where clips carry several labels)."""

    def __init__(self, dim: int, classes: int, multi_label: bool) -> None:
        super().__init__()
        self.multi_label = multi_label
        self.head = nn.Linear(dim, classes)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Class scores before softmax or sigmoid, `[batch, classes]`."""
        return self.head(embeddings * embeddings.shape[1] ** 0.5)

    def forward(self, embeddings: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast(embeddings.device.type, enabled=False):
            logits = self.logits(embeddings.float())
            if self.multi_label:
                return functional.binary_cross_entropy_with_logits(logits, targets.float()), {}
            return functional.cross_entropy(logits, targets.argmax(dim=1)), {}
