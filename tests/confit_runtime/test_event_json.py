"""Events as the JSON objects of docs/json.md."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from confit_runtime import Detection, Ended, Listener, Model, event_to_json
from confit_runtime.sources import Gap, Notice
from tests.tiny_model import RATE, silence

DETECTION = Detection("tiny", "low", 0.75, 1.0, 1.5, RATE, RATE * 3 // 2, speaker="ada")
ENDED = Ended("tiny", "zoë", 1.0, 1.5, RATE, RATE * 3 // 2, True)
GAP = Gap(RATE // 3, "away")
NOTICE = Notice("narrow", "kitchen: hears less", ("tiny",))
TABLE = (Path(__file__).parents[2] / "docs" / "json.md").read_text()


@pytest.fixture
def listener(model: Model, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """A live listener that has heard two seconds, the last of them at 1000 s since 1970."""
    listener = Listener([model.stream()], "kitchen", RATE)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    list(listener.take((silence(2.0), RATE)))
    return listener


def test_a_detection_has_the_time_of_its_start(listener: Listener) -> None:
    assert event_to_json(DETECTION, listener) == {
        "type": "detection",
        "model": "tiny",
        "label": "low",
        "score": 0.75,
        "start_s": 1.0,
        "end_s": 1.5,
        "start_sample": RATE,
        "end_sample": RATE * 3 // 2,
        "enrolled": False,
        "speaker": "ada",
        "source": "kitchen",
        "at": "1970-01-01T00:16:39.000+00:00",
    }


def test_an_end_has_the_time_of_the_end(listener: Listener) -> None:
    assert event_to_json(ENDED, listener) == {
        "type": "ended",
        "model": "tiny",
        "label": "zoë",
        "start_s": 1.0,
        "end_s": 1.5,
        "start_sample": RATE,
        "end_sample": RATE * 3 // 2,
        "enrolled": True,
        "source": "kitchen",
        "at": "1970-01-01T00:16:39.500+00:00",
    }


def test_a_gap_has_its_seconds_and_the_time_of_its_start(listener: Listener) -> None:
    assert event_to_json(GAP, listener) == {
        "type": "gap",
        "samples": RATE // 3,
        "seconds": 0.333,
        "reason": "away",
        "source": "kitchen",
        "at": "1970-01-01T00:16:39.666+00:00",
    }


def test_a_notice_has_the_current_time(listener: Listener) -> None:
    assert event_to_json(NOTICE, listener) == {
        "type": "notice",
        "state": "narrow",
        "text": "kitchen: hears less",
        "source": "kitchen",
        "at": "1970-01-01T00:16:40.000+00:00",
    }


@pytest.mark.parametrize("event", [DETECTION, ENDED, GAP, NOTICE])
def test_sound_that_is_not_live_has_no_time_of_day(listener: Listener, event: Detection | Ended | Gap | Notice) -> None:
    timed = event_to_json(event, listener)
    listener.live = False
    assert list(event_to_json(event, listener).items()) == list(timed.items())[:-1]


@pytest.mark.parametrize("event", [DETECTION, ENDED, GAP, NOTICE])
def test_keys_are_those_of_the_documentation(listener: Listener, event: Detection | Ended | Gap | Notice) -> None:
    fields = event_to_json(event, listener)
    (row,) = (line for line in TABLE.splitlines() if line.startswith(f"| `listen` | `{fields['type']}` |"))
    documented = [key.strip("` ?") for key in row.split("|")[3].split(",")]
    assert list(fields)[1:] == [key for key in documented if key != "clip"]
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields
