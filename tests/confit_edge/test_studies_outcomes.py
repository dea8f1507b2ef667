"""What is kept of a trial: its key, its outcome as a line, and the journal."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.recipe import Recipe
from confit_edge.studies.journal import Journal, read_outcomes
from confit_edge.studies.trial import Outcome, Point, Subset, Trial
from confit_runtime.errors import ConfitError, UsageError
from tests.confit_edge.trial_outcomes import outcome

# what is kept


def test_a_key_is_of_all_that_makes_a_trial() -> None:
    trial = Trial({"objective": "pairtune"}, Recipe())
    others = [
        replace(trial, recipe=Recipe(seed=1)),
        replace(trial, subset=Subset(shots=1)),
        replace(trial, train=False),
        replace(trial, options={"penalty": 1.0}),
        replace(trial, arm={"objective": "finetune"}),
    ]
    assert trial.key("shots") == Trial({"objective": "pairtune"}, Recipe()).key("shots")
    assert len({one.key("shots") for one in [trial, *others]} | {trial.key("unseen")}) == 7


@settings(max_examples=50)
@given(
    st.dictionaries(st.text(max_size=5), st.floats(), max_size=4),
    st.dictionaries(st.text(max_size=5), st.tuples(st.integers(0, 9), st.integers(9, 20)), max_size=4),
)
def test_an_outcome_comes_back_from_its_line(numbers: dict[str, float], tally: dict[str, tuple[int, int]]) -> None:
    kept = Outcome("k", {"a": 1, "b": "é\n"}, 3, Subset(shots=2), [Point({"linear": tally}, numbers, {"c": 0.5})], 1.5)  # type: ignore[dict-item]
    line = kept.to_json()
    assert "\n" not in line
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    assert Outcome.from_json(line) == replace(kept, points=[replace(kept.points[0], numbers=finite)])


def test_a_journal_continues_after_a_line_that_was_cut_short(tmp_path: Path) -> None:
    header = {"study": "shots", "recipe": Recipe().to_dict(), "fingerprint": "f", "encoder_sha256": "e"}
    journal = Journal(tmp_path / "out", header)
    assert journal.open() == {}
    assert not (tmp_path / "out").exists()
    journal.begin()
    first, second = outcome({"objective": "pairtune"}, 0), outcome({"objective": "pairtune"}, 1)
    journal.append(first)
    trials = tmp_path / "out" / "trials.jsonl"
    whole = trials.read_bytes()
    for length in (1, len(second.to_json()) // 2, len(second.to_json())):  # the last lacks only its end of line
        trials.write_bytes(whole + second.to_json().encode()[:length])
        again = Journal(tmp_path / "out", header)
        assert list(again.open()) == [first.key]
        again.begin()
        again.append(second)
        assert [one.key for one in read_outcomes(tmp_path / "out")] == [first.key, second.key]
    trials.write_bytes(b'{"key": 1}\n' + whole)
    with pytest.raises(ConfitError, match=r"trials\.jsonl, line 1: not an outcome"):
        Journal(tmp_path / "out", header).open()


def test_a_journal_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    header = {"study": "shots", "recipe": Recipe().to_dict(), "fingerprint": "f", "encoder_sha256": "e"}
    Journal(tmp_path / "out", header).begin()
    other = {**header, "study": "batch", "recipe": Recipe(epochs=1).to_dict(), "fingerprint": "g"}
    with pytest.raises(UsageError, match="differs in study, fingerprint, recipe key 'epochs'"):
        Journal(tmp_path / "out", other).open()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and contains no study"):
        Journal(tmp_path / "other", header).open()


def test_outcomes_are_plain_json(tmp_path: Path) -> None:
    kept = outcome({"objective": "pairtune"}, 0, {"linear": [0.5]}, isoscore=0.1)
    assert json.loads(kept.to_json())["points"] == [
        {"arm": {}, "shares": {"linear": {"g0": [5.0, 10.0]}}, "numbers": {"isoscore": 0.1}}
    ]
