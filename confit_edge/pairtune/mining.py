"""In-batch hard-pair mining: how much each pair weighs in the loss. Runs without gradients and keeps statistics.

A strategy is a function of a batch's cosines and of its positive and negative pairs. It returns a weight for each pair.
A weight of 0 removes the pair from the loss; a positive also leaves the denominator, where it would be pushed away. The
paper mentions hard-pair mining without defining it; these strategies are our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from confit_edge.recipe import Recipe

Strategy = Callable[[Tensor, Tensor, Tensor], Tensor]  # cosine, positive, negative [n, n] -> weights [n, n]
INFINITY = float("inf")


@dataclass(frozen=True)
class Mined:
    """`weights [n, n]` of all pairs, 0 on the diagonal, and `statistics` of the batch (NaN where it has no such pair).

    `positives_kept` and `negatives_kept` are shares of all such pairs. `hardest_positive` is the cosine of an anchor's
    least similar positive and `hardest_negative` that of its most similar negative, before mining; both are means over
    anchors.
    """

    weights: Tensor
    statistics: dict[str, float]


@torch.no_grad()
def mine(projections: Tensor, pairs: Tensor, strategy: Strategy) -> Mined:
    """Weigh the pairs of `projections [n, dim]`; `pairs [n, n]` are overlap weights (0: a negative).

    Always computed in fp32, even under autocast.
    """
    with torch.autocast(projections.device.type, enabled=False):
        unit = functional.normalize(projections.float(), dim=1)
        cosine = unit @ unit.T
    positive = pairs > 0
    negative = (~positive).fill_diagonal_(False)
    weights = strategy(cosine, positive, negative).fill_diagonal_(0.0)
    kept = weights > 0
    farthest = cosine.masked_fill(~positive, INFINITY).amin(dim=1)
    nearest = cosine.masked_fill(~negative, -INFINITY).amax(dim=1)
    statistics = {
        "positives_kept": (kept & positive).count_nonzero() / positive.count_nonzero(),
        "negatives_kept": (kept & negative).count_nonzero() / negative.count_nonzero(),
        "hardest_positive": _mean_of_finite(farthest),
        "hardest_negative": _mean_of_finite(nearest),
    }
    values = torch.stack(list(statistics.values())).tolist()  # all at once: every read from a GPU waits for it
    return Mined(weights, dict(zip(statistics, values, strict=True)))


def strategy_of(recipe: Recipe) -> Strategy:
    """The strategy named by the recipe key `mining`, with the recipe's parameters for it."""
    strategies: dict[str, Strategy] = {
        "none": all_alike,
        "hardness": partial(by_hardness, beta=recipe.hardness),
        "hardest-negatives": partial(hardest_negatives, share=recipe.mining_share),
        "hardest-positives": partial(hardest_positives, share=recipe.mining_share),
        "semi-hard": partial(semi_hard, margin=recipe.mining_margin),
        "multi-similarity": partial(multi_similarity, margin=recipe.mining_margin),
    }
    return strategies[recipe.mining]


def all_alike(cosine: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Every pair weighs 1."""
    return torch.ones_like(cosine)


def by_hardness(cosine: Tensor, positive: Tensor, negative: Tensor, *, beta: float) -> Tensor:
    """Negatives weigh exp(beta * cos / 0.5), scaled to mean 1 over each anchor's negatives; positives weigh 1.

    After Robinson et al. 2021 (arXiv 2010.04592), without their debiasing. With `beta` 0 all negatives weigh the same.
    """
    share = (cosine * (beta / 0.5)).masked_fill_(~negative, -INFINITY).softmax(dim=1)
    return share.mul_(negative.count_nonzero(dim=1)[:, None]).masked_fill_(~negative, 1.0)


def hardest_negatives(cosine: Tensor, positive: Tensor, negative: Tensor, *, share: float) -> Tensor:
    """Keep each anchor's most similar `share` (0..1) of its negatives, and all positives."""
    return (positive | _hardest(cosine, negative, share)).float()


def hardest_positives(cosine: Tensor, positive: Tensor, negative: Tensor, *, share: float) -> Tensor:
    """Keep each anchor's least similar `share` (0..1) of its positives, and all negatives."""
    return (negative | _hardest(-cosine, positive, share)).float()


def semi_hard(cosine: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
    """Keep the pairs of semi-hard triplets: cos(i, n) < cos(i, p) < cos(i, n) + margin, for anchor, positive, negative.

    After Schroff et al. 2015 (FaceNet, arXiv 1503.03832, section 3.2), with cosines for squared distances, whose margin
    is twice this one.
    """
    ahead, behind = cosine.new_full((len(cosine), 1), INFINITY), cosine.new_full((len(cosine), 1), -INFINITY)
    positives = torch.cat([cosine.masked_fill(~positive, INFINITY).sort(dim=1).values, ahead], dim=1)
    negatives = torch.cat([behind, cosine.masked_fill(~negative, -INFINITY).sort(dim=1).values], dim=1)
    above = positives.gather(1, torch.searchsorted(positives, cosine, right=True).clamp_(max=len(cosine)))
    below = negatives.gather(1, torch.searchsorted(negatives, cosine).sub_(1).clamp_(min=0))
    return ((negative & (above < cosine + margin)) | (positive & (cosine < below + margin))).float()


def multi_similarity(cosine: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
    """Keep negatives more similar than the least similar positive minus `margin`, and likewise for positives.

    Positives are kept if they are less similar than the most similar negative plus `margin`. This is the pair mining of
    Wang et al. 2019 (arXiv 1904.06627). An anchor without positives keeps no negatives, and one without negatives no
    positives.
    """
    farthest = cosine.masked_fill(~positive, INFINITY).amin(dim=1, keepdim=True)
    nearest = cosine.masked_fill(~negative, -INFINITY).amax(dim=1, keepdim=True)
    return ((negative & (cosine + margin > farthest)) | (positive & (cosine - margin < nearest))).float()


def _hardest(difficulty: Tensor, mask: Tensor, share: float) -> Tensor:
    """The most difficult `share` of each row's masked pairs, rounded to a whole number, at least one, with ties kept."""
    count = (mask.count_nonzero(dim=1)[:, None] * share).round().long().clamp_(min=1)
    ranked = difficulty.masked_fill(~mask, -INFINITY).sort(dim=1, descending=True).values
    return mask & (difficulty >= ranked.gather(1, count - 1))


def _mean_of_finite(values: Tensor) -> Tensor:
    finite = values.isfinite()
    return values.where(finite, 0.0).sum() / finite.sum()
