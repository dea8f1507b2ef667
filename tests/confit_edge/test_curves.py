"""Curves for TensorBoard: what was told is what TensorBoard reads, also after a training was resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from confit_edge.pairtune.curves import Curves
from confit_runtime.errors import UsageError


def feed_epochs(curves: Curves, epochs: range, stop_after: int = 99) -> list[dict[str, Any]]:
    """Events of epochs of three batches; the loss is the number of batches seen."""
    events = []
    for epoch in epochs:
        for step in (1, 2, 3):
            events.append({"stage": "step", "epoch": epoch, "epochs": 4, "step": step, "steps": 3})
            events[-1]["loss"] = float(3 * epoch + step)
        events.append({"stage": "epoch", "epoch": epoch + 1, "epochs": 4, "loss": 1.0, "val_linear": epoch / 4})
    events = events[:stop_after]
    for event in events:
        curves(event)
    curves.close()
    return events


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(point.step, point.value) for point in reader.Scalars(name)]


def test_curves_continue_where_a_training_was_resumed(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    stopped = feed_epochs(
        Curves(tmp_path, events.append), range(3), stop_after=10
    )  # in the second batch of the third epoch
    assert events == stopped
    feed_epochs(Curves(tmp_path, None), range(2, 4))
    assert scalars(tmp_path, "batch/loss") == [(seen, seen) for seen in range(1, 13)]
    assert scalars(tmp_path, "epoch/val_linear") == [(3, 0.0), (6, 0.25), (9, 0.5), (12, 0.75)]


def test_a_training_with_nothing_left_to_do_writes_nothing(tmp_path: Path) -> None:
    Curves(tmp_path / "tensorboard", None).close()
    assert not (tmp_path / "tensorboard").exists()


def test_the_package_that_is_absent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        Curves(tmp_path, None)
