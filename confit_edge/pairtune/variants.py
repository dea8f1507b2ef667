"""Other contrasts between the pairs of a batch, to compare with ours: the losses of pytorch-metric-learning.

They take one class a clip, and pairs that are in or out: which of them takes which mining is in `confit_edge.recipe`.
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
    - `nt-xent`: each positive pair against the negatives of its anchor, at the temperature (Chen et al. 2020). Its memory
      is that of all positive times all negative pairs: 4 MB for 72 clips in fours, 1.6 GB for 512.
    - `n-pairs`: one pair of each class, against the positives of the others (Sohn 2016); at the temperature, and on unit
      vectors where Sohn bounds their length by a penalty.
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

        Of `pairs [n, n]` (above 0: positive) those with a weight above 0 in `weights [n, n]` are taken.
        """
        with torch.autocast(projections.device.type, enabled=False):
            unit = functional.normalize(projections.float(), dim=1) * self.length
            return self.metric(unit, targets.argmax(dim=1), self.kept and self.kept(pairs > 0, weights > 0))


def kept_pairs(positive: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
    """The kept of all pairs `[n, n]`, as indices: anchors and their positives, anchors and their negatives."""
    return *torch.where(positive & kept), *torch.where(~positive & kept)


def kept_triplets(positive: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
    """Each kept positive pair of `[n, n]` beside each kept negative of its anchor, as indices of all three."""
    anchors, positives = torch.where(positive & kept)
    rows, negatives = torch.where((~positive & kept)[anchors])
    return anchors[rows], positives[rows], negatives
