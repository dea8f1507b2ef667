"""How what an emulated processor hears is held against what this one hears."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.aarch64 import compare_outputs
from confit_runtime.errors import ConfitError


def side(machine: str, score: float, *starts: int) -> dict[str, Any]:
    events = [{"label": "one", "start_sample": start, "end_sample": start + 3200, "score": score} for start in starts]
    rows = np.full((4, 2), score, np.float32)
    return {"machine": machine, "scores": rows, "embeddings": rows / 2, "events": events}


def test_the_same_events_with_scores_that_differ_a_little() -> None:
    found = compare_outputs(side("x86_64", 0.75, 1600, 8000), side("aarch64", 0.5, 1600, 8000))
    assert found == {
        "rows": 4,
        "scores_max_abs_diff": 0.25,
        "embeddings_max_abs_diff": 0.125,
        "events": 2,
        "events_equal": True,
        "event_scores_max_abs_diff": 0.25,
    }


@pytest.mark.parametrize("starts", [(1600,), (1600, 9280), ()])
def test_events_that_are_missing_or_moved_are_not_equal(starts: tuple[int, ...]) -> None:
    found = compare_outputs(side("x86_64", 0.5, 1600, 8000), side("aarch64", 0.5, *starts))
    assert (found["events_equal"], found["event_scores_max_abs_diff"]) == (False, None)


def test_a_program_that_was_not_emulated_proves_nothing() -> None:
    with pytest.raises(ConfitError, match="ran a program of x86_64"):
        compare_outputs(side("x86_64", 0.5), side("x86_64", 0.5))
