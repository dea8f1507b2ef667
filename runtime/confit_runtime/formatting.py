"""Helpers that put numbers and names into words, for messages and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

MAX_NAMES = 12  # names in a message


def format_count(number: int, one: str, many: str = "") -> str:
    """A number and what it counts: `1 clip`, `2 clips`. `many` is the plural where appending an s is not enough."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def format_duration(seconds: float) -> str:
    """A duration in words: `3.0 s`, `41.2 min`."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def format_list(names: Sequence[str], maximum: int = MAX_NAMES) -> str:
    """The first `maximum` names and how many more there are: `a, b, and 3 more`."""
    more = f", and {len(names) - maximum} more" if len(names) > maximum else ""
    return ", ".join(names[:maximum]) + more


def format_quoted_list(names: Sequence[str]) -> str:
    """Like `format_list`, with each name in quotes, for use in a sentence: `'a', 'b', and 3 more`."""
    return format_list([repr(name) for name in names])


def format_percent(share: float, low: float, high: float, unit: str = " %") -> str:
    """A share (0..1) in per cent with its interval, if there is one: `95.9 % [93.1, 97.8]`."""
    return f"{100 * share:.1f}{unit}" + ("" if math.isnan(low) else f" {format_interval(100 * low, 100 * high)}")


def format_table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A line per row, with columns as wide as their cells: the first `left` aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([*map(str.ljust, row[:left], widths), *map(str.rjust, row[left:], widths[left:])]) for row in rows
    ]


def format_distinct(one: float, other: float) -> tuple[str, str]:
    """Two different numbers with two decimals, or with as many as it takes to see that they differ: `0.713`, `0.714`."""
    for decimals in range(2, 17):
        texts = f"{one:.{decimals}f}", f"{other:.{decimals}f}"
        if texts[0] != texts[1]:
            break
    return texts


def format_interval(low: float, high: float, form: str = ".1f") -> str:
    """The two bounds of an interval, formatted alike: `[93.1, 97.8]`."""
    return f"[{low:{form}}, {high:{form}}]"
