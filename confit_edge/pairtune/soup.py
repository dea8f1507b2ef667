"""Averaged weights of several trainings from the same start: a model soup (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn


def averaged(modules: nn.Module) -> AveragedModel:
    """A running mean of the weights and buffers of `modules`, on any device.

    An integer buffer (such as batch normalisation's count of batches) has no mean: its last value is kept.
    """
    mean = get_swa_avg_fn()

    def each(before: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        return mean(before, now, count) if now.is_floating_point() else now

    return AveragedModel(modules, avg_fn=each, use_buffers=True)


class Soup(nn.Module):
    """The common start of several trainings, and the mean of their final weights.

    Trainings that start from the same pre-trained encoder and head stay in the same valley of the loss. There, the mean
    of their weights is as good as each of them, and less confident in what only one of them has learnt. A module, so that
    a checkpoint includes it.
    """

    def __init__(self, modules: nn.Module) -> None:
        super().__init__()
        self.start = copy.deepcopy(modules)
        self.mean = averaged(modules)

    def set_start(self, modules: nn.Module) -> None:
        """Make the current weights of `modules` the start of every training."""
        self.start.load_state_dict(modules.state_dict())

    def reset_to_start(self, modules: nn.Module) -> None:
        """Reset `modules` to the weights of the start."""
        modules.load_state_dict(self.start.state_dict())

    def add(self, modules: nn.Module) -> None:
        """Add the weights of `modules`, at the end of a training, to the mean."""
        self.mean.update_parameters(modules)

    def load_mean(self, modules: nn.Module) -> None:
        """Load the mean into `modules`."""
        modules.load_state_dict(self.mean.module.state_dict())
