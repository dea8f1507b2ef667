"""The contrastive loss of stage 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

ABSENT = -1e30  # stands for the log of a weight of 0: a row with nothing but minus infinity has no gradient


def jaccard(targets: Tensor) -> Tensor:
    """Pair weights `[n, n]`: the Jaccard overlap of label sets, 0 on the diagonal.

    `targets [n, classes]` are rows of 0 and 1. Two single-label clips weigh 1 when their labels agree, else 0; a clip
    without labels is a positive of no other clip.
    """
    targets = targets.float()
    shared = targets @ targets.T
    sizes = targets.sum(dim=1)
    union = sizes[:, None] + sizes[None, :] - shared
    weights = shared / union.clamp_(min=1.0)
    return weights.fill_diagonal_(0.0)


def supervised_contrastive(
    projections: Tensor, pairs: Tensor, *, temperature: float = 0.1, weights: Tensor | None = None
) -> Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (arXiv 2004.11362, eq. 2), positives weighted by overlap.

        -1/sum_p w_ip h_ip  *  sum_p w_ip h_ip log( exp(z_i z_p / t) / sum_{a != i} h_ia exp(z_i z_a / t) )

    averaged over the anchors i that have a positive. `projections [n, dim]` are normalised here; `pairs [n, n]` are the
    overlaps w (see `jaccard`); `weights [n, n]` are the miner's h (1 when None). A pair of weight 0, positive or negative,
    is left out of the loss. Always computed in fp32, even under autocast. A batch in which no anchor has a positive gives
    0, with a gradient of 0.
    """
    with torch.autocast(projections.device.type, enabled=False):
        unit = functional.normalize(projections.float(), dim=1)
        similarity = unit @ unit.T / temperature
        with torch.no_grad():
            pairs = pairs.float()
            logs = torch.zeros_like(pairs)
            if weights is not None:
                pairs = pairs * weights
                logs = weights.float().log().clamp_(min=ABSENT)
            logs.fill_diagonal_(ABSENT)
            total = pairs.sum(dim=1)
            share = pairs / total.clamp(min=1e-12)[:, None]
            anchors = total > 0
        nearness = (share * similarity).sum(dim=1)
        per_anchor = (similarity + logs).logsumexp(dim=1) - nearness
        return per_anchor.where(anchors, 0.0).sum() / anchors.sum().clamp(min=1)


class SupCon(nn.Module):
    """`supervised_contrastive` with a fixed temperature, as a module."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, projections: Tensor, targets: Tensor, pairs: Tensor, weights: Tensor) -> Tensor:
        """The loss of `projections [n, dim]`; `pairs [n, n]` from `targets`, `weights [n, n]` from the miner."""
        return supervised_contrastive(projections, pairs, temperature=self.temperature, weights=weights)
