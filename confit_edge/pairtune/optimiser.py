"""Which parts of an encoder train, and how fast: frozen blocks, layer-wise rates and the schedule."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn

from confit_edge.encoders.base import Encoder
from confit_edge.pairtune.objectives import Objective
from confit_edge.recipe import Recipe
from confit_runtime.errors import UsageError
from confit_runtime.formatting import format_count

WARM_UP = 0.1  # of the steps
AVERAGED_RATE = 0.5  # of the peak learning rate, while weights are averaged


@contextlib.contextmanager
def frozen(encoder: Encoder, freeze: str) -> Iterator[list[nn.Module]]:
    """Freeze part of `encoder` for the time of the context; yields the frozen modules.

    `freeze` is `none`, `features` (everything before the first layer), a number of layers (with the features before
    them), or `all`. Raises UsageError when the encoder has fewer layers.
    """
    modules = _named(encoder, freeze)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield modules
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _named(encoder: Encoder, freeze: str) -> list[nn.Module]:
    if freeze == "none":
        return []
    blocks = encoder.blocks()
    if freeze == "all":
        return [module for block in blocks for module in block] if encoder.learned_pooling() else [encoder]
    count = 1 if freeze == "features" else 1 + int(freeze)
    if count > len(blocks):
        raise UsageError(
            f"recipe key 'freeze' is {freeze}, but this encoder has only {format_count(len(blocks) - 1, 'layer')}"
        )
    return [module for block in blocks[:count] for module in block]


def make_optimiser(encoder: Encoder, objective: Objective, recipe: Recipe, lr: float) -> torch.optim.AdamW:
    """AdamW over everything trainable; the objective and newly learned pooling train at the recipe's `head_lr`.

    The last block of the encoder learns at `lr`, each block before it at `lr_decay` times the rate of the next one (as in
    Clark et al. 2020, arXiv 2003.10555).
    """
    depth = {}
    if recipe.lr_decay != 1.0:
        blocks = encoder.blocks()
        depth = {
            parameter: len(blocks) - 1 - index
            for index, block in enumerate(blocks)
            for module in block
            for parameter in module.parameters()
        }
    pooling = [parameter for module in encoder.learned_pooling() for parameter in module.parameters()]
    anew = set(pooling)
    by_depth: dict[int, list[nn.Parameter]] = {0: []}
    for parameter in encoder.parameters():
        if parameter.requires_grad and parameter not in anew:
            by_depth.setdefault(depth.get(parameter, 0), []).append(parameter)
    groups = [{"params": group, "lr": lr * recipe.lr_decay**below} for below, group in sorted(by_depth.items())]
    groups.append({"params": [*objective.parameters(), *pooling], "lr": recipe.head_lr})
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def cosine_schedule(step: int, steps: int, averaging: float = 0.0) -> float:
    """The share of the peak learning rate at `step` of `steps`: a linear warm-up, then half a cosine to 0.

    If the weights of the last `averaging` of the steps are averaged, the cosine ends where that share begins, at
    `AVERAGED_RATE`, and the rate stays there: averaging weights that hardly change would gain nothing.
    """
    warm, end, least = max(1.0, WARM_UP * steps), (1 - averaging) * steps, AVERAGED_RATE if averaging else 0.0
    if step < warm:
        return (step + 1) / (warm + 1)
    done = min(1.0, (step - warm) / max(1.0, end - warm))
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * done))
