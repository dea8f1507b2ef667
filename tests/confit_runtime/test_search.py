"""Which prints are nearest: those that a comparison with every one of them finds, whatever came and went since."""

from __future__ import annotations

import numpy as np
import pytest

from confit_runtime.arrays import Floats
from confit_runtime.matcher import l2_normalise
from confit_runtime.search import ExactSearch, IncrementalSearch

PRINTS: Floats = l2_normalise(np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32))
QUERY: Floats = l2_normalise(np.ones(16, np.float32))


def by_cosine(prints: Floats) -> list[int]:
    """All rows, the nearest first."""
    return np.argsort(-(prints @ QUERY)).tolist()


@pytest.mark.parametrize("count", [1, 10, 299, 300, 900])
def test_the_nearest_are_found(count: int) -> None:
    found = ExactSearch(PRINTS).nearest(QUERY, count).tolist()
    assert sorted(found) == sorted(by_cosine(PRINTS)[:count])


def test_prints_that_are_gone_take_no_place() -> None:
    """Nor where they were the nearest of all; and those that came since are found beside the others."""
    gone = by_cosine(PRINTS)[:20]
    there = np.setdiff1d(np.arange(250), gone)  # the last fifty came later
    rows = np.full(250, -1)
    rows[there] = np.arange(len(there))
    now = PRINTS[[*there, *np.setdiff1d(np.arange(250, 300), gone)]]
    search = IncrementalSearch.updated(ExactSearch(PRINTS[:250]), rows, now)
    assert isinstance(search, IncrementalSearch)
    assert sorted(search.nearest(QUERY, 10).tolist()) == sorted(by_cosine(now)[:10])
