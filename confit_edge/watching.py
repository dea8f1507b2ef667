"""Who is told how far work is that takes minutes: a watcher hears events, dictionaries with their `stage`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Watcher = Callable[[dict[str, Any]], None]


def unwatched(event: dict[str, Any]) -> None:
    """The watcher where nobody watches."""


def tell_of_probe(tell: Watcher, of: str, done: int, total: int) -> None:
    """That `done` of the `total` sounds have been heard by which the encoder `of` is probed."""
    tell({"stage": "probe", "of": of, "done": done, "total": total})
