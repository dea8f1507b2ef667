"""The contrastive objective of stage 1."""

from __future__ import annotations

import torch
from torch import Tensor


def jaccard(targets: Tensor) -> Tensor:
    """Pair weights `[n, n]`: the Jaccard overlap of label sets, 0 on the diagonal.

    `targets [n, classes]` are 0/1 rows. Two single-label clips weigh 1 when their labels agree, else 0; a clip with an
    empty label set is nobody's positive.
    """
    targets = targets.float()
    shared = targets @ targets.T
    sizes = targets.sum(dim=1)
    union = sizes[:, None] + sizes[None, :] - shared
    weights = shared / union.clamp(min=1.0)
    return weights.fill_diagonal_(0.0)


def supervised_contrastive(
    projections: Tensor, pairs: Tensor, *, temperature: float = 0.1, hardness: Tensor | None = None
) -> Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (arXiv 2004.11362, eq. 2), positives weighted by overlap.

        -1/sum_p w_ip  *  sum_p w_ip log( exp(z_i z_p / t) / sum_{a != i} h_ia exp(z_i z_a / t) )

    averaged over the anchors i that have a positive. `projections [n, dim]` are normalised here; `pairs [n, n]` are the
    weights w (see `jaccard`); `hardness [n, n]` are the miner's weights h of the denominator (1 when None). Computed in
    fp32 whatever the autocast. A batch in which no anchor has a positive gives 0, with a gradient of 0.
    """
    with torch.autocast(projections.device.type, enabled=False):
        unit = torch.nn.functional.normalize(projections.float(), dim=1)
        similarity = unit @ unit.T / temperature
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        terms = similarity.masked_fill(itself, float("-inf"))
        if hardness is not None:
            terms = terms + hardness.clamp(min=1e-12).log()
        log_probability = similarity - terms.logsumexp(dim=1, keepdim=True)
        pairs = pairs.to(unit.dtype)
        total = pairs.sum(dim=1)
        anchors = total > 0
        per_anchor = -(pairs * log_probability.masked_fill(itself, 0.0)).sum(dim=1) / total.clamp(min=1e-12)
        return per_anchor[anchors].mean() if bool(anchors.any()) else (unit * 0.0).sum()
