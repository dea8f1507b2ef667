"""Helpers that put numbers and names into words, for messages and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST = 12  # names in a message


def counted(number: int, one: str, many: str = "") -> str:
    """A number and what it counts: `1 clip`, `2 clips`. `many` is the plural where appending an s is not enough."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def lasting(seconds: float) -> str:
    """A duration in words: `3.0 s`, `41.2 min`."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def listed(names: Sequence[str], most: int = MOST) -> str:
    """The first `most` names and how many more there are: `a, b, and 3 more`."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def some(names: Sequence[str]) -> str:
    """Like `listed`, with each name in quotes, for use in a sentence: `'a', 'b', and 3 more`."""
    return listed([repr(name) for name in names])


def percent(share: float, low: float, high: float, unit: str = " %") -> str:
    """A share (0..1) in per cent with its interval, if there is one: `95.9 % [93.1, 97.8]`."""
    return f"{100 * share:.1f}{unit}" + ("" if math.isnan(low) else f" {bounds(100 * low, 100 * high)}")


def distinct(one: float, other: float) -> tuple[str, str]:
    """Two different numbers with two decimals, or with as many as it takes to see that they differ: `0.713`, `0.714`."""
    for decimals in range(2, 17):
        texts = f"{one:.{decimals}f}", f"{other:.{decimals}f}"
        if texts[0] != texts[1]:
            break
    return texts


def bounds(low: float, high: float, form: str = ".1f") -> str:
    """The two bounds of an interval, formatted alike: `[93.1, 97.8]`."""
    return f"[{low:{form}}, {high:{form}}]"
