"""Taps hear all sound next to the streams, and decide about each detection."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest

from confit_runtime import (
    AudioError,
    Detection,
    Ended,
    Listener,
    Model,
    Tap,
    UsageError,
    listen,
    listen_async,
)
from confit_runtime.sources import Gap
from confit_runtime.speaker import RecentAudio
from tests.confit_runtime.scripted import Recorder, Scripted, chunks, scene
from tests.tiny_model import RATE, WINDOW, Floats, silence, tone


def test_a_long_chunk_is_heard_in_parts_that_taps_can_hold(model: Model) -> None:
    """A tap holds the last seconds, and a stream that comes back may deliver a minute at once."""

    class Held(RecentAudio):
        def judge(self, detection: Detection) -> Detection:
            found.append(self.between(detection.start_sample, detection.end_sample))
            return detection

    found: list[Floats] = []
    long = np.concatenate([scene(), silence(8.0), scene(), silence(8.0)])
    for item in Listener([model.stream()], "", RATE, taps=[Held()]).follow(Scripted([(long, RATE)])):
        assert isinstance(item, Detection)
        np.testing.assert_array_equal(found[-1], long[item.start_sample : item.end_sample])
    assert len(found) == 4


@pytest.mark.parametrize("lost_s", [0.5, 3.0, 3600.0])
def test_taps_keep_the_sound_of_detections_that_a_gap_completes(model: Model, lost_s: float) -> None:
    """A gap is as long as a laptop sleeps, and a tap keeps the last seconds."""

    class Held(RecentAudio):
        def judge(self, detection: Detection) -> Detection:
            found.append(self.between(detection.start_sample, detection.end_sample))
            return detection

    found: list[Floats] = []
    sound, held, gap = np.append(silence(0.3), tone(500, 0.05)), Held(), Gap(round(lost_s * RATE), "asleep")
    listener = Listener([model.stream()], "", RATE, taps=[held])
    assert list(listener.take((sound, RATE))) == []
    (low,) = listener.take(gap)
    assert isinstance(low, Detection)
    np.testing.assert_array_equal(found[0], np.append(sound, silence(1.0))[low.start_sample : low.end_sample])
    assert found[0].any()
    now = len(sound) + gap.samples
    list(listener.take((tone(500, 0.05), RATE)))
    np.testing.assert_array_equal(held.between(now, now + RATE), tone(500, 0.05))


def test_withheld_detections_have_no_end_and_gaps_end_reported_ones(model: Model) -> None:
    class NoMid(Tap):
        def judge(self, detection: Detection) -> Detection | None:
            return None if detection.label == "mid" else dataclasses.replace(detection, speaker="ada")

    stream, sound = model.stream(ends=True), np.concatenate([scene(), tone(500, 0.3)])
    # lost sound is heard as silence, in which its score falls
    for rest, late in ([], 0), ([Gap(RATE, "gone"), (silence(0.1), RATE)], WINDOW):
        items = [*chunks(sound), *rest]
        told = list(Listener([stream], "", RATE, taps=[NoMid()]).follow(Scripted(items)))
        events = [event for event in told if isinstance(event, Detection | Ended)]
        assert [(type(event), event.label) for event in events] == [(Detection, "low"), (Ended, "low")] * 2
        assert len(sound) <= events[-1].end_sample <= len(sound) + late
        assert [type(event) for event in told[len(events) :]] == (
            [Gap] if rest else []
        )  # the gap is told after what it ended


def test_an_end_is_of_the_detection_that_was_reported(model: Model) -> None:
    """A listener finds by its label which sound is over, so a tap that renames a detection renames its end."""

    class Renames(Tap):
        def judge(self, detection: Detection) -> Detection:
            return dataclasses.replace(detection, label=f"a {detection.label}", start_s=0.0, start_sample=0)

    listener = Listener([model.stream(ends=True)], "", RATE, taps=[Renames()])
    told = listener.follow(Scripted(chunks(scene())))
    events = [event for event in told if isinstance(event, Detection | Ended)]
    assert [(type(event), event.label) for event in events] == [
        (Detection, "a low"), (Ended, "a low"), (Detection, "a mid"), (Ended, "a mid")
    ]  # fmt: skip
    assert not listener._sounding  # what is over is not kept
    for detection, ended in zip(events[::2], events[1::2], strict=True):
        assert (ended.start_s, ended.start_sample) == (0.0, 0)
        assert ended.end_sample >= detection.end_sample


def test_listen_rejects_streams_with_ends(model: Model) -> None:
    source = Scripted(chunks(scene()))

    async def hear() -> None:
        async for _ in listen_async([model.stream(ends=True)], source):
            pass

    why = (
        r"a stream of tiny was made with ends=True, .*Listener\(\[stream\], \.\.\.\)\.follow\(source\), or follow_async"
    )
    with pytest.raises(UsageError, match=why):
        list(listen(model.stream(ends=True), source))
    with pytest.raises(UsageError, match=why):
        asyncio.run(hear())
    assert not source.left.is_set()  # it was not even opened


class Counter(Tap):
    def __init__(self) -> None:
        self.judged: list[Detection] = []

    def judge(self, detection: Detection) -> Detection:
        self.judged.append(detection)
        return detection


def test_taps_hear_everything_and_judge_in_turn(model: Model) -> None:
    recorder, counter = Recorder(), Counter()
    source = Scripted([*chunks(scene()), Gap(30, "late")])
    found = list(listen(model, source, taps=[recorder, counter]))
    assert [(event.label, event.speaker) for event in found] == [("low", "ada")]
    assert counter.judged == found
    heard = np.concatenate(recorder.heard)
    np.testing.assert_array_equal(heard, np.append(scene(), np.full(30, np.nan, np.float32)))


def test_taps_get_read_only_arrays(model: Model) -> None:
    class Louder(Tap):
        def hear(self, pcm: Floats, rate: int) -> None:
            pcm *= 2

    pcm = scene()
    with pytest.raises(ValueError, match="read-only"):
        list(Listener([model.stream()], "", RATE, taps=[Louder()]).take((pcm, RATE)))
    np.testing.assert_array_equal(pcm, scene())
    assert pcm.flags.writeable


def test_taps_hear_integers_and_channels_as_the_streams_do(model: Model) -> None:
    heard: list[Floats] = []

    class Keep(Tap):
        def hear(self, pcm: Floats, rate: int) -> None:
            heard.append(pcm)

    stereo = np.round(np.stack([scene(), np.zeros_like(scene())], axis=1) * 32767).astype(np.int16)
    sent = [*chunks(stereo[:9000]), *chunks(stereo[9000:].tolist())]
    with pytest.raises(AudioError, match="got int64"):
        list(listen(model, Scripted(sent)))
    heard.clear()
    assert [event.label for event in listen(model, Scripted(chunks(stereo)), taps=[Keep()])] == ["low", "mid"]
    np.testing.assert_allclose(np.concatenate(heard), scene() / 2, atol=1e-4)


def test_a_tap_that_does_not_begin_leaves_the_stream_free(model: Model) -> None:
    class Full(Tap):
        def begin(self, name: str, rate: int) -> None:
            raise OSError("disk full")

    stream = model.stream()
    with pytest.raises(OSError, match="disk full") as kept:
        Listener([stream], "first", RATE, taps=[Full()])
    Listener([stream], "second", RATE).close()
    assert kept.value
