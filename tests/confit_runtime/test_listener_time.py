"""The time of day of live sound, and of detections in it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from confit_runtime import (
    Detection,
    Listener,
    Model,
)
from confit_runtime.sources import Gap
from tests.confit_runtime.scripted import Scripted, chunks, scene
from tests.tiny_model import RATE, silence


def test_a_sample_of_live_sound_has_a_time_of_day(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    listener = Listener([model.stream()], "mic", RATE)
    for item in ((silence(1.0), RATE), Gap(RATE, "gone"), (silence(1.0), RATE)):
        now += 1.0
        list(listener.take(item))
        assert listener.time_of(0) == pytest.approx(1000.0)
    assert listener.time_of(2 * RATE) == pytest.approx(1002.0)
    now += 3601.0  # the clock was set meanwhile
    list(listener.take((silence(1.0), RATE)))
    assert listener.time_of(3 * RATE) == pytest.approx(1003.0 + 3600.0)


def test_sound_that_comes_faster_than_time_passes_has_no_time_of_day(model: Model) -> None:
    listener = Listener([model.stream()], "a recording in a pipe", RATE)
    list(listener.take((silence(9.0), RATE)))
    assert listener.time_of(0) is not None  # as a network stream gives it when it begins
    list(listener.take((silence(9.0), RATE)))
    list(listener.take((silence(9.0), RATE)))
    assert listener.time_of(0) is None


def test_a_gap_starts_at_the_last_chunk_despite_a_burst_after_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a network stream is back: the gap is the time that nobody kept."""
    now, began = 1000.0, list[float | None]()
    monkeypatch.setattr(time, "time", lambda: now)
    listener = Listener([model.stream()], "radio", RATE)
    for after, item in (3.0, (scene(), RATE)), (8.0, Gap(RATE, "away")), (0.0, (np.tile(scene(), 4), RATE)):
        now += after
        for event in listener.take(item):
            if isinstance(event, Gap):
                began.append(listener.time_of(listener.samples - event.samples))
            elif began:
                assert isinstance(event, Detection)
                begin = listener.time_of(event.start_sample)
                assert begin is not None
                assert 1011.0 - 4 * len(scene()) / RATE < begin < 1011.0
    assert began == [pytest.approx(1003.0)]


def test_a_recording_has_no_time_of_day(model: Model) -> None:
    source = Scripted(chunks(scene()))
    source.live = False
    listener = Listener([model.stream()], source.name, RATE)
    assert [listener.time_of(one.start_sample) for one in listener.follow(source) if isinstance(one, Detection)] == [
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("first_s", "piece_s", "speed", "known"),
    [
        (24.0, 1.0, 1.0, True),
        (24.0, 10.0, 1.0, True),  # HLS, in segments
        (0.5, 1.0, 1.0, True),
        (0.5, 1.0, 1.1, False),
        (24.0, 1.0, 20.0, False),
    ],
)
def test_a_stream_that_begins_with_much_at_once_has_a_time_of_day_when_it_comes_as_it_happens(
    model: Model, monkeypatch: pytest.MonkeyPatch, first_s: float, piece_s: float, speed: float, known: bool
) -> None:
    now, told = 500.0, list[bool]()
    monkeypatch.setattr("confit_runtime.listener.boottime", lambda: now)
    listener = Listener([model.stream()], "radio", RATE)
    list(listener.take((silence(0.1), RATE)))
    list(listener.take(Gap(round(first_s * RATE), "what is skipped counts as well")))
    assert (listener.time_of(0) is None) == (first_s > 10.0)
    while now < 500.0 + 600.0:
        now += piece_s / speed
        list(listener.take(Gap(round(piece_s * RATE), "what is skipped counts as well")))
        told.append(listener.time_of(0) is not None)
    late = round(200.0 * speed / piece_s)
    assert set(told[late:]) == {known}
    assert all(told) == (known and first_s < 10.0)


def test_a_sound_card_that_runs_fast_does_not_lose_the_time_of_day(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("confit_runtime.listener.boottime", lambda: now)
    listener = Listener([model.stream()], "mic", RATE)
    for _ in range(100):  # days
        list(listener.take(Gap(round(1.0002 * 86_400 * RATE), "what is skipped counts as well")))
        now += 86_400
        assert listener.time_of(0) is not None
