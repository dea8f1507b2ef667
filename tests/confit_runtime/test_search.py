"""Which prints are nearest: those that a comparison with every one of them finds, whatever came and went since."""

from __future__ import annotations

import numpy as np
import pytest

from confit_runtime.arrays import Floats
from confit_runtime.matcher import l2_normalise
from confit_runtime.search import ExactSearch, IncrementalSearch, Search

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


@pytest.mark.parametrize("seed", range(20))
def test_what_came_and_went_several_times_is_found_as_if_it_were_searched_anew(seed: int) -> None:
    """Prints of names that were added, removed and given other rows: any of them may be among the nearest, also the last."""
    rng = np.random.default_rng(seed)
    held = rng.permutation(300)[:40]  # which of PRINTS are there
    search: Search = ExactSearch(PRINTS[held])
    for _ in range(4):
        kept = rng.permutation(held[rng.random(len(held)) < 0.8])
        came = np.setdiff1d(np.arange(300), held)[: rng.integers(0, 6)]
        now = np.concatenate([kept, came])
        where = {print_: row for row, print_ in enumerate(now.tolist())}
        rows = np.array([where.get(print_, -1) for print_ in held.tolist()])
        search, held = IncrementalSearch.updated(search, rows, PRINTS[now]), now
        assert isinstance(search, IncrementalSearch)
        for count in (1, 5, len(now)):
            assert sorted(search.nearest(QUERY, count).tolist()) == sorted(by_cosine(PRINTS[now])[:count])
        last = PRINTS[now[-1]]
        assert search.nearest(last, 1).tolist() == [len(now) - 1]
