"""Pooling of frames over time to one vector: their mean, the mean of those with sound, or a learned attention.

Each depends on the window alone, so it works the same when exported as in training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.recipe import Pooling


class TimePool(nn.Module):
    """Pools frames `[batch, time, dim]` to `[batch, dim]`; `heard [batch, time]`, 0 or 1, marks the frames with sound.

    This one takes the mean over all frames.
    """

    def forward(self, frames: Tensor, heard: Tensor) -> Tensor:
        return frames.mean(dim=1)


class MaskedPool(TimePool):
    """The mean over the frames with sound, or over all frames where none has any."""

    def forward(self, frames: Tensor, heard: Tensor) -> Tensor:
        weights = torch.where(heard.sum(dim=1, keepdim=True) > 0, heard, torch.ones_like(heard))
        return (frames * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


class AttentivePool(TimePool):
    """A mean weighted by a softmax over time of one linear score per frame (Safari et al. 2020, arXiv 2008.01077).

    The scores start at 0, which gives the plain mean.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, frames: Tensor, heard: Tensor) -> Tensor:
        return (frames * self.score(frames).softmax(dim=1)).sum(dim=1)


def time_pool(pooling: Pooling, dim: int) -> TimePool:
    """The pooling module named `pooling` for frames of size `dim`."""
    if pooling == "attentive":
        return AttentivePool(dim)
    return MaskedPool() if pooling == "masked" else TimePool()


def heard(pcm: Tensor, frames: int, stride: int) -> Tensor:
    """Which frames have sound, `[batch, frames]` of 0 and 1: those whose `stride` samples are not all exactly 0.

    Zeros fill a window around a shorter clip; a microphone does not give zeros for long.
    """
    loudest = functional.max_pool1d(pcm.abs()[:, None], stride, stride)[:, 0, :frames]
    return (loudest > 0).to(pcm.dtype)


class LayerWeights(nn.Module):
    """A softmax-weighted sum of the hidden states of all layers (Yang et al. 2021, SUPERB), with equal weights at first."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(states))

    def forward(self, states: list[Tensor]) -> Tensor:
        return torch.einsum("l,lbtd->btd", self.logits.softmax(dim=0), torch.stack(states))
