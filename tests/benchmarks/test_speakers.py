"""The intervals of speakers' shares and error rates: they are of voices, of which there are few."""

from __future__ import annotations

import pytest

from benchmarks.speakers import QueryResult, with_intervals
from confit_runtime.intervals import grouped_share_interval

VOICES, EACH = 8, 20
NAMES = [f"voice {number}" for number in range(VOICES)]
MEASURES = ("closed_accuracy", "open_error", "open_missed", "open_taken", "eer")


def queries(wrong: int) -> list[QueryResult]:
    """Every other voice is a stranger. Of the first two voices the first `wrong` utterances fail in all ways, no others."""
    found = []
    for number, voice in enumerate(NAMES):
        for utterance in range(EACH):
            fails, stranger = number < 2 and utterance < wrong, number % 2 == 1
            nearest = NAMES[number + 2] if fails else voice
            scores = {name: 0.1 if name == nearest else -0.1 for name in NAMES}
            named_of_half = (nearest if fails else None) if stranger else nearest
            found.append(QueryResult(0, voice, scores, nearest, named_of_half, stranger))
    return found


def test_nothing_wrong_is_no_certainty() -> None:
    found = with_intervals(queries(0))
    assert [found[name] for name in MEASURES] == [1.0, 0.0, 0.0, 0.0, 0.0]
    low, high = found["intervals"]["closed_accuracy"]
    assert (0.8 < low < 0.97, high) == (True, 1.0)
    for name in MEASURES[1:]:
        low, high = found["intervals"][name]
        assert (low, 0.03 < high < 0.3) == (0.0, True), name


def test_voices_that_fail_are_counted_as_voices() -> None:
    questions = queries(6)
    found = with_intervals(questions)
    assert found["n"] == {"utterances": VOICES * EACH, "voices": VOICES}
    right = [one.named == one.voice for one in questions]
    expected = grouped_share_interval(right, [one.voice for one in questions])
    assert found["intervals"]["closed_accuracy"] == pytest.approx(expected, abs=1e-4)
    assert found["closed_accuracy"] == 1 - 12 / 160
    assert (found["open_missed"], found["open_taken"], found["open_error"]) == (6 / 80, 6 / 80, 6 / 80)
    for name in MEASURES:
        low, high = found["intervals"][name]
        assert low < found[name] < high, name
        assert high - low > 0.1, name  # of 160 independent utterances it would be 0.08
    assert found["intervals"]["open_error"][1] < found["intervals"]["open_missed"][1]  # of twice as many voices
