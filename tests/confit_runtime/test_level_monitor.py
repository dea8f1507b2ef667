"""What is told of live sound that is silent, clipped or cancelled, when, and how often."""

from __future__ import annotations

import numpy as np
import pytest

from confit_edge.demo import DATA
from confit_runtime import Listener, Model
from confit_runtime.audio import load_clip
from confit_runtime.level_monitor import LevelMonitor
from confit_runtime.sources import Notice
from confit_runtime.sources.base import downmix
from tests.confit_runtime.scripted import Scripted, chunks
from tests.tiny_model import RATE, Floats, silence, tone

HEARD = tone(440, 1.0)
CLIPPED = np.clip(10 * HEARD, -1.0, 1.0)


def told(*spells: tuple[Floats, int], size: int = RATE // 10) -> list[tuple[str, float]]:
    """The states that are told of each sound for so many seconds, and after how many seconds."""
    loudness, states, at = LevelMonitor("mic"), [], 0
    for sound, seconds in spells:
        for chunk, rate in chunks(np.tile(sound, seconds), size=size):
            at += len(chunk)
            if (notice := loudness.hear(chunk[:, None], rate)) is not None:
                states.append((notice.state, round(at / RATE, 1)))
    return states


@pytest.mark.parametrize("size", [RATE // 100, RATE // 10, RATE // 2])
def test_a_muted_microphone_is_reported_once_and_again_when_it_is_back(size: int) -> None:
    heard = told((HEARD, 10), (silence(1.0), 300), (HEARD, 1), size=size)
    assert heard == [("silent", 40.0), ("fine", round(310 + size / RATE, 1))]


def test_faint_or_pausing_sound_is_not_muted() -> None:
    assert told((silence(1.0), 29), (HEARD, 1), (silence(1.0), 29)) == []
    assert told((np.where(np.arange(RATE) == 9, 1 / 32_768, 0).astype(np.float32), 200)) == []


def test_silence_notices_become_less_frequent() -> None:
    states = told(*[(silence(1.0), 70), (HEARD, 1)] * 20)
    assert [state for state, _ in states] == ["silent", "fine"] * 2  # after 30 s, then after 60, then never


def test_an_hour_of_silence_is_always_reported() -> None:
    """However often there was silence before: 30 s, then twice as long each time, up to an hour."""
    needed = [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    rate = 2
    sound, quiet = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    monitor = LevelMonitor("mic")
    for seconds in needed:
        notices = [monitor.hear(quiet, rate) for _ in range(seconds * rate)]
        assert [at for at, notice in enumerate(notices, start=1) if notice] == [seconds * rate]
        assert monitor.hear(sound, rate) == Notice("fine", "mic: has sound again")


def test_a_microphone_with_sound_in_one_channel_is_not_muted() -> None:
    monitor = LevelMonitor("mic")
    for left in (0.0, 0.1):
        channels = np.tile(np.float32([left, 0.1 - left]), (RATE // 10, 1))
        assert not any(monitor.hear(channels, RATE) for _ in range(350))


def test_clipping_is_reported_when_it_begins_and_ends() -> None:
    assert told((CLIPPED, 150), (HEARD, 100)) == [("clipped", 60.0), ("fine", 240.0)]
    assert told((CLIPPED, 70), (silence(1.0), 200), (HEARD, 1)) == [
        ("clipped", 60.0),
        ("silent", 100.0),
        ("fine", 270.1),
    ]


def test_after_silence_clipping_is_judged_anew() -> None:
    """What was clipped before it counts no more, and what is clipped after it is reported again."""
    assert told((CLIPPED, 20), (silence(1.0), 31), (HEARD, 61)) == [("silent", 50.0), ("fine", 51.1)]
    assert told((CLIPPED, 60), (silence(1.0), 31), (HEARD, 61)) == [("clipped", 60.0), ("silent", 90.0), ("fine", 91.1)]
    states = told((CLIPPED, 60), (silence(1.0), 31), (CLIPPED, 61))
    assert [state for state, _ in states] == ["clipped", "silent", "fine", "clipped"]


@pytest.mark.parametrize("size", [RATE // 100, RATE // 10, RATE // 2])
def test_attenuated_clipping_is_reported(size: int) -> None:
    speech = load_clip(DATA / "digits-real" / "seven.ogg", RATE)
    speech = np.resize(speech / np.abs(speech).max(), RATE)
    clipped = (0.8 * np.clip(3 * speech, -1.0, 1.0)).astype(np.float32)
    assert told((clipped, 60), (speech * np.float32(0.7), 61), size=size) == [("clipped", 60.0), ("fine", 120.0)]
    assert told((speech * np.float32(0.7), 56), (clipped, 4), (HEARD, 60), size=size) == []


def test_a_door_that_slams_is_not_clipping() -> None:
    assert told((HEARD, 20), (CLIPPED, 4), (HEARD, 36), (0.985 * CLIPPED, 60)) == []
    peaks = np.where(np.arange(RATE) % 100 == 0, 1.0, HEARD).astype(np.float32)  # alone, each of them
    assert told((peaks, 60)) == []


@pytest.mark.parametrize("live", [True, False])
def test_a_listener_tells_it_of_live_sound(model: Model, live: bool) -> None:
    source = Scripted(chunks(np.concatenate([silence(31.0), HEARD]), size=8000))
    source.live = live
    events = Listener([model.stream()], source.name, RATE).follow(source)
    assert [event for event in events if isinstance(event, Notice)] == live * [
        Notice("silent", "scripted: nothing but digital silence for 30 s: it is muted, or this is the wrong source"),
        Notice("fine", "scripted: has sound again"),
    ]


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("kind", ["source", "client"])
def test_cancelling_channels_are_reported_as_cancelled_not_silent(model: Model, live: bool, kind: str) -> None:
    """Whether a source of confit-edge averages them, or a program gives all channels."""
    opposite = np.tile(np.stack([HEARD, -HEARD], axis=1), (40, 1))
    alike = np.tile(np.stack([HEARD, HEARD], axis=1), (12, 1))
    given = chunks(np.concatenate([opposite, alike]), size=8000)
    source = Scripted([downmix(chunk) if kind == "source" else chunk for chunk in given])
    source.live = live
    events = Listener([model.stream()], source.name, RATE).follow(source)
    cancelled, fine = [event for event in events if isinstance(event, Notice)]
    assert cancelled.state == "cancelled"
    assert cancelled.text.startswith("scripted: its channels cancel each other where they are averaged, so little is")
    assert fine == Notice("fine", "scripted: its channels no longer cancel each other")
