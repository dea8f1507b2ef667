"""Other contrastive losses to compare with ours, from pytorch-metric-learning.

They need one class per clip, and a pair is either used or not. `confit_edge.recipe` lists the mining that each can use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.recipe import Recipe

PROXY_SCALE = 32.0  # alpha of Kim et al. 2020


class Variant(nn.Module):
    """A loss of pytorch-metric-learning on the unit sphere; computed in fp32 whatever the autocast.

    - `triplet`: max(0, cos(a, n) - cos(a, p) + margin), the mean over triplets above 0 (Schroff et al. 2015).
    - `nt-xent`: each positive pair against the negatives of its anchor, with the temperature (Chen et al. 2020). It needs
      memory for all positive times all negative pairs: 4 MB for 72 clips in fours, 1.6 GB for 512.
    - `n-pairs`: one pair of each class against the positives of the others (Sohn 2016), with the temperature. It uses unit
      vectors, where Sohn limits their length with a penalty.
    - `proxy-anchor`: clips against a learnt proxy of each class (Kim et al. 2020, arXiv 2003.13911). The proxies are
      parameters of this module.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
        super().__init__()
        from pytorch_metric_learning import losses
        from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity

        metrics: dict[str, Callable[[], nn.Module]] = {
            "triplet": lambda: losses.TripletMarginLoss(margin=recipe.loss_margin, distance=CosineSimilarity()),
            "nt-xent": lambda: losses.NTXentLoss(temperature=recipe.temperature),
            "n-pairs": lambda: losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False)),
            "proxy-anchor": lambda: losses.ProxyAnchorLoss(
                classes, recipe.projection_dim, margin=recipe.loss_margin, alpha=PROXY_SCALE
            ),
        }
        self.metric = metrics[recipe.loss]()
        self.length = recipe.temperature**-0.5 if recipe.loss == "n-pairs" else 1.0  # it takes plain dot products
        self.kept = {"triplet": kept_triplets, "proxy-anchor": None}.get(recipe.loss, kept_pairs)

    def forward(self, projections: Tensor, targets: Tensor, pairs: Tensor, weights: Tensor) -> Tensor:
        """The loss of `projections [n, dim]` with one class in each row of `targets [n, classes]`.

        Uses the `pairs [n, n]` (above 0: positive) whose weight in `weights [n, n]` is above 0.
        """
        with torch.autocast(projections.device.type, enabled=False):
            unit = functional.normalize(projections.float(), dim=1) * self.length
            return self.metric(unit, targets.argmax(dim=1), self.kept and self.kept(pairs > 0, weights > 0))


def kept_pairs(positive: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
    """The kept pairs of `[n, n]`, as indices: anchors and their positives, anchors and their negatives."""
    return *torch.where(positive & kept), *torch.where(~positive & kept)


def kept_triplets(positive: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
    """Every kept positive pair of `[n, n]` with every kept negative of its anchor, as indices of all three."""
    anchors, positives = torch.where(positive & kept)
    rows, negatives = torch.where((~positive & kept)[anchors])
    return anchors[rows], positives[rows], negatives
