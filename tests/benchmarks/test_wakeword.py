"""What is told of several models together."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.wakeword import pool_results


def model_result(false_accepts: int) -> tuple[dict[str, Any], dict[str, list[tuple[bool, str]]]]:
    """The row of a model that heard four hours, and what was found of two clips."""
    calibrated = {"frr_clean": 0.5, "frr_10db": 0.5, "measured_fa_per_hour": 0.0, "promised_fa_per_hour": 0.75}
    others = {"other_words_seen": [0, 9], "other_words_unseen": [1, 6]}
    row = {"false_accepts": false_accepts, "hours": 4.0, "calibrated": calibrated, **others}
    found = [(True, "anna"), (False, "ben")]
    return row, {"clean": found, "10db": found}


def test_false_accepts_of_models_on_the_same_hours_are_listed_without_an_interval() -> None:
    rates = pool_results([model_result(0), model_result(8), model_result(1)])["fa_per_hour"]
    assert rates == {"rate": pytest.approx(0.75), "by_model": [0.0, 2.0, 0.25]}
