"""In-batch hard-pair mining: how much each pair weighs in the loss. Runs without gradients and keeps statistics.

The paper names hard-pair mining without defining it; what is here is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mined:
    """`hardness [n, n]` weighs each pair in the denominator; the statistics describe the batch (means over anchors)."""

    hardness: Tensor
    hardest_positive: float  # cosine of the least similar positive
    hardest_negative: float  # cosine of the most similar negative


@torch.no_grad()
def mine(projections: Tensor, pairs: Tensor, beta: float) -> Mined:
    """Reweight negatives by hardness: exp(beta * cos / 0.5), scaled to mean 1 over each anchor's negatives.

    After Robinson et al. 2021 (arXiv 2010.04592), without their debiasing. `projections [n, dim]`, `pairs [n, n]` the
    overlap weights (0: a negative). `beta` 0 weighs all alike. Computed in fp32 whatever the autocast.
    """
    unit = torch.nn.functional.normalize(projections.float(), dim=1)
    with torch.autocast(projections.device.type, enabled=False):
        cosine = unit @ unit.T
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    positive, negative = pairs > 0, (pairs <= 0) & ~itself
    raw = torch.exp(beta * cosine / 0.5) * negative
    mean = raw.sum(dim=1, keepdim=True) / negative.sum(dim=1, keepdim=True).clamp(min=1)
    hardness = torch.where(negative, raw / mean.clamp(min=1e-12), torch.ones_like(raw))
    return Mined(
        hardness,
        _mean_over_anchors(cosine.masked_fill(~positive, 2.0).amin(dim=1), positive.any(dim=1)),
        _mean_over_anchors(cosine.masked_fill(~negative, -2.0).amax(dim=1), negative.any(dim=1)),
    )


def _mean_over_anchors(values: Tensor, valid: Tensor) -> float:
    return float(values[valid].mean()) if bool(valid.any()) else float("nan")
