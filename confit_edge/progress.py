"""Progress of work that takes minutes: a count of things done, or a watcher, called with events that name their `stage`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]  # clips or other things done, of how many
Watcher = Callable[[dict[str, Any]], None]


def ignore_event(event: dict[str, Any]) -> None:
    """A watcher that ignores every event."""


def report_probe_progress(notify: Watcher, of: str, done: int, total: int) -> None:
    """Report that `done` of the `total` sounds for probing the encoder `of` have been embedded."""
    notify({"stage": "probe", "of": of, "done": done, "total": total})
