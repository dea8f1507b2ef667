"""Several trainings from the same start, their weights averaged: a model soup (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn


def averaged(modules: nn.Module) -> AveragedModel:
    """A running mean of the weights and buffers of `modules`, on any device.

    A buffer of whole numbers (the batches that a batch normalisation has seen) has no mean: the last is taken.
    """
    mean = get_swa_avg_fn()

    def each(before: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        return mean(before, now, count) if now.is_floating_point() else now

    return AveragedModel(modules, avg_fn=each, use_buffers=True)


class Soup(nn.Module):
    """The start that trainings share, and the mean of the weights that they ended with.

    Trainings that begin at one pre-trained encoder and one head stay in one valley, where the mean of their weights is
    as good as each and less sure of what only one of them believes. A module, so that a checkpoint holds it.
    """

    def __init__(self, modules: nn.Module) -> None:
        super().__init__()
        self.start = copy.deepcopy(modules)
        self.mean = averaged(modules)

    def begin(self, modules: nn.Module) -> None:
        """Each training is to start at the weights of `modules` as they are."""
        self.start.load_state_dict(modules.state_dict())

    def begin_again(self, modules: nn.Module) -> None:
        """Give `modules` the weights of the start."""
        modules.load_state_dict(self.start.state_dict())

    def add(self, modules: nn.Module) -> None:
        """Take a training's end, the weights of `modules`, into the mean."""
        self.mean.update_parameters(modules)

    def pour(self, modules: nn.Module) -> None:
        """Give `modules` the mean."""
        modules.load_state_dict(self.mean.module.state_dict())
