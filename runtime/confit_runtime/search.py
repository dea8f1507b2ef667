"""Find the prints nearest to an embedding: all are compared, in numpy."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from confit_runtime.arrays import Floats, Indices

MAX_PENDING_CHANGES = 1_000  # prints added or removed since a search was made, before a new one is made


class Search(Protocol):
    """Finds rows of `prints [n, dim]`."""

    def nearest(self, unit: Floats, count: int) -> Indices:
        """The rows nearest to `unit [dim]`, in no order: `count` of them, or all there are."""


class ExactSearch:
    """Compares with every print.

    It keeps a second copy of the prints, one dimension after another. Reading a hundred thousand prints in this order
    takes half the time of reading them row by row, because memory access dominates a product with one vector.
    """

    def __init__(self, prints: Floats) -> None:
        self._prints = np.asfortranarray(prints)

    def nearest(self, unit: Floats, count: int) -> Indices:
        return _nearest(self._prints, unit, count)


class IncrementalSearch:
    """Uses a search of earlier prints, and compares with each print that was added since.

    For a hundred thousand prints, making a new search takes longer than live sound can wait.
    """

    def __init__(self, before: Search, rows: Indices, prints: Floats) -> None:
        """`rows` are the rows of the prints of `before` in `prints [n, dim]`, -1 for a removed one."""
        self._before, self._rows, self._prints = before, rows, prints
        present = np.zeros(len(prints), bool)
        present[rows[rows >= 0]] = True
        self._added, self._removed = np.flatnonzero(~present), int(np.count_nonzero(rows < 0))

    @staticmethod
    def updated(before: Search, rows: Indices, prints: Floats) -> Search:
        """The search to use: a new one, if many prints were added or removed."""
        if isinstance(before, IncrementalSearch):
            rows = np.append(rows, -1)[before._rows]
            before = before._before
        search = IncrementalSearch(before, rows, prints)
        return (
            search
            if len(search._added) + search._removed <= max(MAX_PENDING_CHANGES, len(prints) // 10)
            else ExactSearch(prints)
        )

    def nearest(self, unit: Floats, count: int) -> Indices:
        found = self._rows[self._before.nearest(unit, count + self._removed)]
        rows = np.concatenate([found[found >= 0], self._added])
        return rows[_nearest(self._prints[rows], unit, count)]


def _nearest(prints: Floats, unit: Floats, count: int) -> Indices:
    """The rows of `prints [n, dim]` nearest to `unit [dim]`, in no order: `count` of them, or all there are."""
    if count >= len(prints):
        return np.arange(len(prints))
    return np.argpartition(prints @ unit, -count)[-count:]
