"""A training's curves for TensorBoard: the loss of each batch, and each epoch's row of the history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from confit_edge.progress import Watcher
from confit_runtime.errors import UsageError


class Curves:
    """A watcher that writes scalars into `folder` and passes every event on. All curves are over the batches seen.

    When a training is resumed, points beyond its first new batch are dropped. Raises UsageError where the package
    tensorboard is absent.
    """

    def __init__(self, folder: Path, watch: Watcher | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                f"--tensorboard needs the package tensorboard: pip install tensorboard ({error})"
            ) from error
        self._open = lambda first: SummaryWriter(str(folder), purge_step=first)
        self._writer: Any = None
        self._steps = 0
        self._watch = watch

    def __call__(self, event: dict[str, Any]) -> None:
        if event["stage"] == "step":
            self._steps = event["steps"]
            seen = event["epoch"] * self._steps + event["step"]
            self._writer = self._writer or self._open(seen)
            self._writer.add_scalar("batch/loss", event["loss"], seen)
        elif event["stage"] == "epoch":
            for key, value in event.items():
                if key not in ("stage", "epoch", "epochs", "merit"):
                    self._writer.add_scalar(f"epoch/{key}", value, event["epoch"] * self._steps)
            self._writer.flush()
        if self._watch:
            self._watch(event)

    def close(self) -> None:
        if self._writer:
            self._writer.close()
