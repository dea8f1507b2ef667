"""Listening as a library does it: one loop, taps, threads that share a model, and asyncio."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import logging
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import confit_runtime.listener as listener_module
from confit_edge.demo import DATA
from confit_runtime import (
    AudioError,
    Detection,
    Ended,
    Listener,
    Model,
    Stream,
    Tap,
    UsageError,
    asynchronous,
    listen,
    listen_async,
    load,
)
from confit_runtime.errors import DeviceError
from confit_runtime.gallery import Gallery
from confit_runtime.sources import Chunk, Gap, Item, Microphone, Notice, Pause, PcmSource
from confit_runtime.speaker import RecentAudio, SpeakerTap, VetoTap
from tests import tiny_model
from tests.confit_runtime.fake_sounddevice import Back, FakePortAudio
from tests.tiny_model import HOP, RATE, WINDOW, Floats, silence, tone


def scene(rate: int = RATE) -> Floats:
    """low at 0.4 s, mid at 1.1 s."""
    return np.concatenate(
        [silence(0.4, rate), tone(500, 0.3, rate), silence(0.4, rate), tone(1200, 0.3, rate), silence(0.5, rate)]
    )


def chunks(pcm: Floats, rate: int = RATE, size: int = 700) -> list[Chunk]:
    return [(pcm[start : start + size], rate) for start in range(0, len(pcm), size)]


class Scripted:
    """A live source that gives what it is told to, and then waits until it is stopped (or is at its end)."""

    name, rate, live = "scripted", RATE, True

    def __init__(self, items: Sequence[Chunk | Gap | Notice | Pause], *, endless: bool = False) -> None:
        self._items, self.endless = items, endless
        self.stopped, self.left = threading.Event(), threading.Event()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *details: object) -> None:
        self.left.set()

    def __iter__(self) -> Iterator[Chunk | Gap | Notice | Pause]:
        for item in self._items:
            if self.stopped.is_set():
                return
            yield item
        if self.endless:
            self.stopped.wait(30)

    def stop(self) -> None:
        self.stopped.set()


def places(events: Sequence[Detection]) -> list[tuple[str, int, int]]:
    return [(event.label, event.start_sample, event.end_sample) for event in events]


def direct(model: Model) -> list[tuple[str, int, int]]:
    stream = model.stream()
    return places([*stream.accept(scene(), RATE), *stream.finish()])


# one loop


def test_a_listener_reports_what_its_streams_detect_and_each_gap_once(model: Model) -> None:
    pcm = scene()
    first, second = chunks(pcm[:12_000]), chunks(pcm[12_000:])
    gaps = [Gap(800, "too slow"), Notice("away", "gone"), Gap(900, "gone"), Gap(1100, "gone"), Notice("back", "here")]
    source = Scripted([*first, *gaps, *second])
    listener = Listener([model.stream()], source.name, RATE)
    events = list(listener.follow(source))
    assert [event for event in events if not isinstance(event, Detection)] == [
        Notice("away", "gone"),
        Gap(800, "too slow"),
        Notice("back", "here"),
        Gap(2000, "gone"),
    ]
    heard = [event for event in events if isinstance(event, Detection)]
    assert [event.label for event in heard] == ["low", "mid"]
    # the hops after the gap begin with its end
    assert heard[1].start_sample - direct(model)[1][1] == pytest.approx(2800, abs=HOP)
    assert (listener.samples, listener.dropped_samples) == (len(pcm) + 2800, 2800)


def test_a_gap_at_the_end_is_reported(model: Model) -> None:
    listener = Listener([model.stream()], "", RATE)
    events = list(listener.follow(Scripted([*chunks(scene()), Gap(50, "late")])))
    assert [event for event in events if isinstance(event, Gap)] == [Gap(50, "late")]


@pytest.mark.parametrize("bad", [np.nan, 12_345.0])
def test_a_faulty_block_of_live_sound_is_a_gap(model: Model, bad: float) -> None:
    given = chunks(scene())
    faulty = np.where(np.arange(700) == 9, bad, given[12][0]).astype(np.float32)
    heard = []
    for block in ((faulty, RATE), Gap(700, "lost")):
        tap = Recorder()
        listener = Listener([model.stream()], "the client", RATE, taps=[tap])
        events = list(listener.follow(Scripted([*given[:12], block, *given[13:]])))
        gaps = [event for event in events if isinstance(event, Gap)]
        heard.append((places([event for event in events if isinstance(event, Detection)]), np.concatenate(tap.heard)))
        assert [gap.samples for gap in gaps] == [700]
        assert (listener.samples, listener.dropped_samples) == (len(scene()), 700)
    assert heard[0][0] == heard[1][0] != []
    np.testing.assert_array_equal(heard[0][1], heard[1][1])


def test_a_faulty_block_of_a_recording_is_refused_before_anything_moves_on(model: Model) -> None:
    tap = Recorder()
    listener = Listener([model.stream()], "a file", RATE, taps=[tap])
    listener.live = False
    events = []
    for at, item in enumerate(chunks(scene())):
        if at == 12:
            with pytest.raises(AudioError, match="a file: holds NaN"):
                list(listener.take((np.full(700, np.nan, np.float32), RATE)))
        events += [event for event in listener.take(item) if isinstance(event, Detection)]
    events += [event for event in listener.finish() if isinstance(event, Detection)]
    assert places(events) == direct(model)[:1]  # the tap drops the other
    assert listener.samples == len(scene())
    np.testing.assert_array_equal(np.concatenate(tap.heard), scene())


def test_half_a_sample_is_no_gap(model: Model) -> None:
    listener = Listener([model.stream()], "", RATE)
    with pytest.raises(UsageError, match=r"the samples of a gap: must be a whole number, 0 or more; it is 1\.5"):
        list(listener.take(Gap(1.5, "late")))  # type: ignore[arg-type]


def test_a_listener_that_a_gap_has_filled_hears_no_more(model: Model) -> None:
    listener = Listener([model.stream()], "", RATE, seconds=1.0)
    for item in ((silence(0.5), RATE), Gap(RATE, "late"), (scene(), RATE)):
        assert not [event for event in listener.take(item) if isinstance(event, Detection)]
    assert (listener.full, listener.samples) == (True, 1.5 * RATE)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), "2"])
def test_negative_listening_times_are_rejected(model: Model, seconds: Any) -> None:
    with pytest.raises(UsageError, match=f"must be a number of seconds, 0 or more; it is {seconds!r}"):
        list(listen(model, Scripted(chunks(scene())), seconds=seconds))


@pytest.mark.parametrize(("seconds", "labels"), [(0.0, []), (1.0, ["low"]), (60.0, ["low", "mid"])])
def test_a_listener_ends_after_so_many_seconds(model: Model, seconds: float, labels: list[str]) -> None:
    listener = Listener([model.stream()], "", RATE, seconds=seconds)
    events = list(listener.follow(Scripted([*chunks(scene()), Gap(50, "late")])))
    assert listener.samples == min(round(seconds * RATE), len(scene()) + 50)
    assert [event.label for event in events if isinstance(event, Detection)] == labels


class Recorder(Tap):
    """Keeps all it hears, renames what is low, and drops what is mid."""

    def begin(self, name: str, rate: int) -> None:
        self.heard: list[Floats] = []

    def hear(self, pcm: Floats, rate: int) -> None:
        self.heard.append(pcm)

    def skip(self, samples: int) -> None:
        self.heard.append(np.full(samples, np.nan, np.float32))

    def judge(self, detection: Detection) -> Detection | None:
        # all of what was detected has been heard already
        assert sum(map(len, self.heard)) >= detection.end_sample
        return None if detection.label == "mid" else dataclasses.replace(detection, speaker="ada")


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


def test_a_pause_completes_pending_detections(model: Model) -> None:
    """As by a pipe whose writer sends only while somebody speaks."""
    pcm, cut = scene(), round(0.44 * RATE)  # the low tone has just begun
    listener = Listener([model.stream(ends=True)], "", RATE)
    assert list(listener.take((pcm[:cut], RATE))) == []
    low, low_ended = listener.take(Pause())
    assert isinstance(low, Detection)
    assert isinstance(low_ended, Ended)
    assert (low.label, low_ended.start_sample, low_ended.end_sample) == ("low", low.start_sample, cut)
    assert low.end_sample <= cut
    assert list(listener.take(Pause())) == []
    later = [*listener.take((pcm[round(0.74 * RATE) :], RATE)), *listener.finish()]
    mid, mid_ended = later
    assert isinstance(mid, Detection)
    assert isinstance(mid_ended, Ended)
    assert mid.start_sample == pytest.approx(direct(model)[1][1] - round(0.3 * RATE), abs=HOP)
    assert (listener.samples, listener.dropped_samples) == (len(pcm) - round(0.3 * RATE), 0)


def test_after_a_pause_the_first_word_is_heard_at_the_time_it_has() -> None:
    digits = load("digits")
    seven, rate = soundfile.read(DATA / "digits-real" / "seven.ogg", dtype="float32")
    quiet = silence(1.0, rate)
    listener = Listener([digits.stream()], "", rate)
    found = [
        event
        for item in [(quiet, rate), (seven, rate), Pause(), (seven, rate), Pause(), (seven, rate), Pause()]
        for event in listener.take(item)
        if isinstance(event, Detection)
    ]
    assert [event.label for event in found] == ["seven"] * 3
    starts = [event.start_sample - len(quiet) - at * len(seven) for at, event in enumerate(found)]
    assert starts == pytest.approx([starts[0]] * 3, abs=2 * digits.contract.hop * rate / digits.contract.sample_rate)


@pytest.mark.parametrize(
    "before",
    [(), (Gap(900, ""),), (Pause(), Gap(900, "")), (Gap(900, ""), Gap(900, ""))],
    ids=["nothing", "gap", "pause, gap", "two gaps"],
)
@pytest.mark.parametrize("muted", [False, True])
def test_a_pause_is_one_whatever_came_before_it(before: tuple[Gap | Pause, ...], muted: bool) -> None:
    digits = load("digits")
    seven, rate = soundfile.read(DATA / "digits-real" / "seven.ogg", dtype="float32")
    stream = digits.stream()
    listener = Listener([stream], "", rate)
    with stream.muted() if muted else nullcontext():
        for item in ((silence(2.0, rate), rate), *before, *([(seven, rate)] if muted else []), Pause()):
            assert not any(isinstance(event, Detection) for event in listener.take(item))
    heard = [*listener.take((seven, rate)), *listener.finish()]
    assert [event.label for event in heard if isinstance(event, Detection)] == ["seven"]


def test_clients_that_send_only_speech_are_heard_from_the_first_word() -> None:
    digits = load("digits")
    seven, rate = soundfile.read(DATA / "digits-real" / "seven.ogg", dtype="float32")
    pcm = (seven * 32767).astype("<i2").tobytes()
    assert [event.label for event in listen(digits, PcmSource(io.BytesIO(pcm), rate))] == ["seven"]

    async def client() -> AsyncIterator[Chunk]:
        yield seven, rate

    async def main() -> list[str]:
        return [event.label async for event in listen_async(digits, client())]

    assert asyncio.run(main()) == ["seven"]


def test_the_refractory_time_spans_a_pause(tmp_path: Path) -> None:
    patient = load(tiny_model.build(tmp_path / "patient.onnx", refractory_s=1.5))
    listener = Listener([patient.stream()], "", RATE)
    events = []
    for item in [(silence(0.4), RATE), (tone(500, 0.3), RATE), Pause(), (tone(500, 0.3), RATE), (silence(1.2), RATE)]:
        events += [*listener.take(item)]
    assert len(events) == 1
    events += [*listener.take((tone(500, 0.3), RATE)), *listener.take(Pause())]
    assert [event.label for event in events if isinstance(event, Detection)] == ["low", "low"]


def test_a_label_and_a_name_called_alike_have_an_end_each(model: Model, tmp_path: Path) -> None:
    """They may begin at one sample."""
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("low", model.embed(tone(500, 0.3), RATE)[None], sources=["x"], voiced_s=0.3)
        listener = Listener([model.stream(gallery, ends=True)], "", RATE)
        told = list(listener.follow(Scripted(chunks(np.concatenate([scene(), silence(1.0)])))))
    lows = [event for event in told if isinstance(event, Detection | Ended) and event.label == "low"]
    begun = [event.start_sample for event in lows if isinstance(event, Detection)]
    assert (len(begun), len(set(begun))) == (2, 1)
    assert [type(event) for event in lows] == [Detection, Detection, Ended, Ended]
    assert [event.enrolled for event in lows] == [True, False, True, False]  # a label's scores are smoothed


def test_ends_of_names_and_labels_with_equal_spelling_are_distinct(model: Model, tmp_path: Path) -> None:
    class LabelsAlone(Tap):
        def judge(self, detection: Detection) -> Detection | None:
            return None if detection.enrolled else detection

    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("low", model.embed(tone(500, 0.3), RATE)[None], sources=["x"], voiced_s=0.3)
        listener = Listener([model.stream(gallery, ends=True)], "", RATE, taps=[LabelsAlone()])
        told = list(listener.follow(Scripted(chunks(np.concatenate([scene(), silence(1.0)])))))
    lows = [event for event in told if isinstance(event, Detection | Ended) and event.label == "low"]
    assert [(type(event), event.enrolled) for event in lows] == [(Detection, False), (Ended, False)]


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


def test_listen_accepts_models_streams_and_sources_in_any_form(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = load(tiny_model.build(tmp_path / "other.onnx", name="other"))
    soundfile.write("mic", scene(), RATE, format="FLAC", subtype="PCM_24")

    async def hear() -> list[Detection]:
        return [event async for event in listen_async((one for one in [model]), Path("mic"))]

    assert places(list(listen((one for one in [model]), Path("mic")))) == direct(model)  # not the microphone
    assert places(asyncio.run(hear())) == direct(model)
    assert len(list(listen([model, other], Path("mic")))) == 4


@pytest.mark.parametrize("models", ["digits", Path("digits"), ["digits"], None, []])
def test_listen_rejects_invalid_models(models: Any) -> None:
    source = Scripted([])
    with pytest.raises(UsageError, match=r"load\(\.\.\.\)"):
        list(listen(models, source))

    async def hear() -> None:
        async for _ in listen_async(models, source):
            pass

    with pytest.raises(UsageError, match=r"load\(\.\.\.\)"):
        asyncio.run(hear())
    assert not source.left.is_set()  # it was not even opened


@pytest.mark.parametrize("source", [5, None, [(silence(0.1), RATE)]])
def test_listen_rejects_invalid_sources(model: Model, source: Any) -> None:
    async def hear() -> None:
        async for _ in listen_async(model, source):
            pass

    with pytest.raises(UsageError, match=rf"got {type(source).__name__}, which lacks name, .*open_source\(\.\.\.\)"):
        list(listen(model, source))
    with pytest.raises(UsageError, match=r"which lacks .*stop: open_source\(\.\.\.\)"):
        asyncio.run(hear())


def test_a_source_that_cannot_be_stopped_is_listened_to_all_the_same(model: Model) -> None:
    whole = Scripted(chunks(scene()))
    kept = {part: getattr(Scripted, part) for part in ("name", "rate", "live", "__exit__", "__iter__")}
    unstoppable = type("Unstoppable", (), {**kept, "__enter__": lambda self: self})()
    vars(unstoppable).update(vars(whole))
    assert places(list(listen(model, unstoppable))) == direct(model)


@pytest.mark.parametrize(
    ("item", "what"),
    [
        ([silence(0.1), RATE], "this one yielded list"),
        (silence(0.1), "this one yielded ndarray"),
        ((silence(0.1), RATE, 0), "this one yielded a tuple of 3"),
        ((silence(0.1), None), "sample rate must be a number in Hz, got None"),
    ],
)
def test_invalid_source_items_are_rejected(model: Model, item: Any, what: str) -> None:
    async def client() -> AsyncIterator[Any]:
        while True:
            yield item

    async def hear() -> None:
        async for _ in listen_async(model, client()):
            pass

    with pytest.raises(UsageError, match=what):
        asyncio.run(asyncio.wait_for(hear(), 30))
    with pytest.raises(UsageError, match=what):
        list(listen(model, Scripted([item])))


@pytest.mark.parametrize("rate", [None, "16000", float("nan"), float("inf"), 0])
def test_a_listener_needs_a_rate(model: Model, rate: Any) -> None:
    with pytest.raises(UsageError, match="sample rate"):
        Listener([model.stream()], "", rate, seconds=1.0)


def test_a_listener_takes_streams(model: Model) -> None:
    given: list[Any] = [model.stream(), [model], [model.stream(), None], model, None, "digits"]
    for one in given:
        with pytest.raises(UsageError, match=r"a Listener takes a list of streams, such as \[model.stream\(\)\], not "):
            Listener(one, "", RATE)


def test_one_stream_does_not_hear_a_source_twice(model: Model) -> None:
    stream, source = model.stream(), Scripted(chunks(scene()))
    with pytest.raises(UsageError, match="a stream is listed twice"):
        list(listen([stream, stream], source))
    assert source.left.is_set()


def test_one_stream_is_one_listeners_until_that_has_finished(model: Model, tmp_path: Path) -> None:
    stream, taken = (
        model.stream(),
        "a stream of tiny is still listening to first: give each listener its own stream",
    )
    first = Listener([stream], "first", RATE)
    list(first.take((scene(), RATE)))
    with pytest.raises(UsageError, match=taken):
        Listener([stream], "second", RATE)
    list(first.finish())
    second = Listener([stream], "second", RATE)
    with pytest.raises(UsageError, match="a stream of tiny is still listening to second"):
        list(first.take((scene(), RATE)))
    second.close()
    hearing = listen(stream, Scripted(chunks(scene())))
    next(hearing)
    with pytest.raises(UsageError, match="a stream of tiny is still listening to scripted"):
        list(listen(stream, Scripted([])))
    hearing.close()
    Listener([stream], "nobody keeps it", RATE)
    other = load(tiny_model.build(tmp_path / "other.onnx", name="other")).stream()
    kept = Listener([other], "second", RATE)
    with pytest.raises(UsageError, match="is still listening to second"):
        Listener([stream, other], "both", RATE)
    kept.close()
    assert places(list(listen(stream, Scripted(chunks(scene()))))) == direct(model)


def test_two_clients_do_not_share_a_stream(model: Model) -> None:
    async def client(pcm: Floats) -> AsyncIterator[Chunk]:
        for chunk in chunks(pcm):
            yield chunk
            await asyncio.sleep(0)

    async def hear(stream: Stream, pcm: Floats) -> list[tuple[str, int, int]]:
        return places([event async for event in listen_async(stream, client(pcm))])

    async def both() -> None:
        stream = model.stream()
        heard = await asyncio.gather(*(hear(stream, scene()) for _ in range(2)), return_exceptions=True)
        assert [type(one) for one in heard] == [list, UsageError]
        assert heard[0] == direct(model)
        with pytest.raises(AudioError):
            await hear(stream, np.zeros((9, 100), np.float32))
        assert await hear(stream, scene()) == direct(model)

    asyncio.run(both())


def test_sound_of_another_rate_than_the_listeners_is_refused(model: Model) -> None:
    listener = Listener([model.stream()], "the client", 48_000)
    with pytest.raises(UsageError, match="the client: began at 48000 Hz and now comes at 16000 Hz"):
        list(listener.take((scene(), RATE)))
    assert listener.samples == 0
    (first, *_) = [event for event in listener.take((scene(48_000), 48_000)) if isinstance(event, Detection)]
    assert first.label == "low"


def test_a_model_hears_a_recording_from_its_very_beginning() -> None:
    digits, clip = load("digits"), DATA / "digits-real" / "seven.ogg"

    async def hear() -> list[str]:
        return [event.label async for event in listen_async(digits, clip)]

    assert [event.label for event in listen(digits, clip)] == ["seven"] == asyncio.run(hear())
    assert list(listen(digits.stream(), clip)) == []  # as it was made
    pcm, rate = soundfile.read(clip, dtype="float32")
    live = Scripted([(pcm, rate)])
    live.rate = rate
    assert list(listen(digits, live)) == []


def test_models_need_distinct_names(model: Model, windowed: Model) -> None:
    with pytest.raises(UsageError, match="2 of the models are named tiny: their detections could not be told apart"):
        list(listen([model, windowed], Scripted(chunks(scene()))))
    with pytest.raises(UsageError, match="2 of the models are named tiny"):
        Listener([model.stream(), model.stream()], "", RATE)


def test_a_stream_that_heard_a_file_is_live_again(model: Model) -> None:
    stream, source = model.stream(), Scripted(chunks(scene()))
    source.live = False

    class Look(Tap):
        def hear(self, pcm: Floats, rate: int) -> None:
            assert not stream.live

    assert len(list(listen(stream, source, taps=[Look()]))) == 2
    assert stream.live
    source = Scripted(chunks(scene()))
    source.live = False
    hearing = listen(stream, source)
    next(hearing)
    hearing.close()  # left in the middle
    assert not stream.live
    Listener([stream], "the client", RATE)
    assert stream.live


def test_a_stream_restarts_after_a_failed_source(model: Model) -> None:
    stream = model.stream()
    torn = Scripted([*chunks(scene(8000), 8000)[:9], (np.full(9, np.nan, np.float32), 8000)])
    torn.rate, torn.live = 8000, False
    with pytest.raises(AudioError):
        list(listen(stream, torn))
    assert places(list(listen(stream, Scripted(chunks(scene()))))) == direct(model)


def test_pending_detections_precede_a_connection_error(model: Model) -> None:
    pcm = np.round(scene()[: round(0.44 * RATE)] * 32_767).astype("<i2")  # low has just begun
    stream = model.stream()
    assert not stream.accept(pcm, RATE)
    wanted = places(stream.finish())

    class Resets(Tap):
        """Resets the connection when all has come."""

        left = len(pcm)

        def hear(self, pcm: Floats, rate: int) -> None:
            self.left -= len(pcm)
            if not self.left:
                theirs.close()

    found: list[Detection] = []
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.sendall(pcm.tobytes())
        with ours.makefile("rb") as pipe, pytest.raises(DeviceError, match=r"phone: broke off .*reset"):
            found.extend(listen(stream, PcmSource(pipe, RATE, name="phone"), taps=[Resets()]))
    assert places(found) == wanted != []


def test_pending_detections_precede_any_source_error(model: Model) -> None:
    class Breaks(Scripted):
        def __iter__(self) -> Iterator[Chunk | Gap | Notice | Pause]:
            yield from super().__iter__()
            raise OSError("the connection is lost")

    found: list[Detection] = []
    with pytest.raises(OSError, match="the connection is lost"):
        found.extend(listen(model, Breaks(chunks(scene()[: round(0.44 * RATE)]))))  # low has just begun
    assert [event.label for event in found] == ["low"]


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


def test_losses_are_logged(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "confit_runtime"):
        list(listen(model, Scripted([Notice("away", "the mic is gone"), Gap(8000, "it was away"), *chunks(scene())])))
    assert [record.message for record in caplog.records] == [
        "the mic is gone",
        "scripted: 0.50 s of sound were lost: it was away",
    ]


def test_a_microphone_that_fails_in_every_way_still_hears(model: Model) -> None:
    rate = 48_000
    before, after = scene(rate), scene(44_100)
    portaudio = FakePortAudio(
        np.append(before, silence(0.2, rate)),
        rate,
        overflows={5: 960},
        faulty=(10,),
        then="unplugged",
        back=Back(after, 44_100),
    )
    microphone = Microphone(portaudio=portaudio, stall_s=0.3)
    stream = model.stream()
    listener = Listener([stream], microphone.name, microphone.rate, seconds=4.0)
    with microphone:
        events = list(listener.follow(microphone))
    assert [event.label for event in events if isinstance(event, Detection)] == ["low", "mid", "low", "mid"]
    assert {event.reason for event in events if isinstance(event, Gap)} >= {
        "this machine could not keep up",
        "the microphone delivered values that are not sound",
        "the microphone was away",
    }
    assert listener.samples == 4 * rate


# what a source lacks


@pytest.mark.parametrize(("rate", "told"), [(8_000, 1), (RATE, 0), (44_100, 0)])
def test_a_source_below_the_models_rate_is_reported_once(model: Model, tmp_path: Path, rate: int, told: int) -> None:
    other = load(tiny_model.build(tmp_path / "other.onnx", name="other"))
    listener = Listener([model.stream(), other.stream()], "phone", rate)
    events = list(listener.follow(Scripted(chunks(scene(rate), rate))))
    assert [event.state for event in events if isinstance(event, Notice)] == ["narrow"] * told
    assert isinstance(events[0], Notice) == bool(told)
    for event in events[:told]:
        assert isinstance(event, Notice)
        assert event.text.startswith(
            "phone: comes at 8000 Hz and has nothing above 4 kHz, but tiny, other hears up to 8 kHz"
        )


@pytest.mark.parametrize(
    ("highest_hz", "rate", "told"),
    [(3_800.0, 8_000, False), (3_800.0, 6_000, True), (7_500.0, 15_000, False), (8_000.0, 15_000, True)],
)
def test_frequencies_above_the_front_end_are_not_missed(
    tmp_path: Path, highest_hz: float, rate: int, told: bool
) -> None:
    model = load(tiny_model.build(tmp_path / "tiny.onnx", highest_hz=highest_hz))
    events = Listener([model.stream()], "phone", rate).take((silence(0.1, rate), rate))
    assert [isinstance(event, Notice) for event in events] == [True] * told


# keeping up


class Slow(Tap):
    """Takes so many times as long to hear a part as it lasts; the factors are for one part each, and the last for the rest."""

    def __init__(self, *times: float) -> None:
        self._times = list(times)

    def hear(self, pcm: Floats, rate: int) -> None:
        times = self._times.pop(0) if len(self._times) > 1 else self._times[0]
        time.sleep(times * len(pcm) / rate)


@pytest.mark.parametrize(
    ("times", "live", "told"),
    [
        ((1.5,), True, 2),  # of seven spells, in which it is slow, two are a second of sound apart
        ((1.5,), False, 0),
        ((0.0,), True, 0),
        ((20.0, 0.0), True, 0),  # a hiccup
        ((20.0, 1.5), True, 2),
    ],
)
def test_slow_processing_is_reported(
    model: Model, monkeypatch: pytest.MonkeyPatch, times: tuple[float, ...], live: bool, told: int
) -> None:
    monkeypatch.setattr(listener_module, "PACE_S", 0.2)
    monkeypatch.setattr(listener_module, "REMIND_INTERVAL_S", 1.0)
    source = Scripted(chunks(scene()[: int(1.4 * RATE)], size=RATE // 50))
    source.live = live
    listener = Listener([model.stream()], source.name, RATE, taps=[Slow(*times)])
    notices = [event for event in listener.follow(source) if isinstance(event, Notice)]
    assert [notice.state for notice in notices] == ["behind"] * told
    for notice in notices:
        assert notice.text.startswith("scripted: this machine cannot keep up: hearing it with tiny takes ")


# threads


def test_threads_share_a_model(model: Model, windowed: Model) -> None:
    pcm = scene()

    def hear(size: int) -> list[tuple[str, int, int]]:
        one = windowed if size % 2 else model
        return places(list(listen(one, Scripted(chunks(pcm, size=size)))))

    alone = [direct(windowed), direct(model)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(hear, [321, 320, 1000, 77, 4000, 901, 160, 55, 6000, 333]))
    for size, found in zip([321, 320, 1000, 77, 4000, 901, 160, 55, 6000, 333], together, strict=True):
        assert found == alone[1 - size % 2]


# asyncio


def test_asyncio_hears_a_source_by_name(model: Model, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "scene.flac", scene(), RATE, subtype="PCM_24")

    async def hear() -> list[Detection]:
        return [event async for event in listen_async(model, str(tmp_path / "scene.flac"))]

    assert places(asyncio.run(hear())) == direct(model)


def test_asyncio_hears_what_a_client_sends(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk | Gap | Notice]:
        yield Gap(100, "before anything")
        for chunk in chunks(scene()):
            await asyncio.sleep(0)
            yield chunk

    async def hear() -> list[Detection]:
        return [event async for event in listen_async([model], client())]

    assert places(asyncio.run(hear())) == direct(model)


def test_a_client_that_sends_nan_is_heard_on(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk]:
        yield np.full(700, np.nan, np.float32), RATE
        for chunk in chunks(scene()):
            yield chunk

    async def hear() -> list[Detection]:
        return [event async for event in listen_async(model, client())]

    assert [(label, start - 700) for label, start, _ in places(asyncio.run(hear()))] == [
        (label, start) for label, start, _ in direct(model)
    ]


def test_an_event_may_be_waited_for_for_a_while_only(model: Model) -> None:
    """As docs/microphone.md says."""

    async def client() -> AsyncIterator[Chunk]:
        for chunk in chunks(scene()):
            await asyncio.sleep(0.005)
            yield chunk

    async def hear() -> tuple[list[Detection], int]:
        found, timeouts = [], 0
        async with aclosing(listen_async(model, client())) as events:
            while True:
                task = asyncio.ensure_future(anext(events))
                while not (await asyncio.wait({task}, timeout=0.01))[0]:
                    timeouts += 1
                try:
                    found.append(task.result())
                except StopAsyncIteration:
                    return found, timeouts

    found, timeouts = asyncio.run(hear())
    assert places(found) == direct(model)
    assert timeouts


def test_a_pausing_client_gets_its_pending_detections(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    async def client(*, tells: bool) -> AsyncIterator[Chunk | Pause]:
        await asyncio.sleep(0.5)  # nothing had begun
        for part in (scene()[: round(0.2 * RATE)], scene()[round(0.2 * RATE) : round(0.44 * RATE)]):
            assert heard == []
            yield part, RATE
            await asyncio.sleep(0.1)
        if tells:
            yield Pause()
        else:
            await asyncio.sleep(0.2)  # the first two parts still sound
            assert heard == []
            await asyncio.sleep(0.8)
        assert heard == ["low"]

    async def main(*, tells: bool) -> None:
        heard.clear()
        async for event in listen_async(model, client(tells=tells)):
            heard.append(event.label)
        assert heard == ["low"]

    asyncio.run(main(tells=True))
    monkeypatch.setattr(asynchronous, "PAUSE_S", 0.3)
    asyncio.run(main(tells=False))


def test_a_client_that_breaks_off_is_heard_to_its_end(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk]:
        yield scene()[: round(0.44 * RATE)], RATE
        raise ConnectionResetError("gone")

    heard: list[str] = []

    async def main() -> None:
        async for event in listen_async(model, client()):
            heard.append(event.label)

    with pytest.raises(ConnectionResetError, match="gone"):
        asyncio.run(main())
    assert heard == ["low"]


def test_a_listener_that_is_cancelled_as_a_chunk_comes_ends(model: Model) -> None:
    async def main(turns: int) -> None:
        sent: asyncio.Queue[Chunk] = asyncio.Queue()

        async def client() -> AsyncIterator[Chunk]:
            while True:
                yield await sent.get()

        async def hear() -> None:
            async for _ in listen_async(model, client()):
                pass

        task = asyncio.create_task(hear())
        sent.put_nowait((silence(0.1), RATE))
        await asyncio.sleep(0.1)
        sent.put_nowait((silence(0.1), RATE))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        assert await asyncio.wait([task], timeout=20) == ({task}, set())

    for turns in range(8):
        asyncio.run(main(turns))


def test_a_client_whose_own_task_was_cancelled_has_not_ended(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk]:
        yield silence(0.1), RATE
        task = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            async for _ in listen_async(model, client()):
                pass

    asyncio.run(main())


def test_client_errors_are_raised_and_waiting_clients_closed(model: Model) -> None:
    closed: list[str] = []

    async def client(*, fails: bool) -> AsyncIterator[Chunk]:
        try:
            async with asyncio.timeout(30):
                yield silence(0.1), RATE
                if fails:
                    raise OSError("the line is dead")
                begun.set()
                await asyncio.sleep(30)
        finally:
            closed.append("client")

    async def hear(*, fails: bool) -> None:
        async for _ in listen_async(model, client(fails=fails)):
            raise AssertionError("nothing was to be heard")

    async def leave() -> None:
        task = asyncio.create_task(hear(fails=False))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pytest.raises(OSError, match="the line is dead"):
        asyncio.run(hear(fails=True))
    assert closed == ["client"]
    begun = asyncio.Event()
    asyncio.run(leave())
    assert closed == ["client"] * 2


def test_a_client_that_is_heard_no_longer_is_closed(model: Model) -> None:
    closed: list[str] = []

    async def client() -> AsyncIterator[Chunk | Gap | Notice]:
        try:
            for chunk in chunks(np.tile(scene(), 20)):
                yield chunk
        finally:
            closed.append("client")

    async def hear() -> list[str]:
        heard = [event.label async for event in listen_async(model, client(), seconds=1.0)]
        return [*heard, *closed]

    assert asyncio.run(hear()) == ["low", "client"]


def test_a_cancelled_task_leaves_no_thread_at_its_stream(model: Model) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    class Slow(Tap):
        def hear(self, pcm: Floats, rate: int) -> None:
            begun.set()
            go_on.wait(5)
            done.set()

    async def client() -> AsyncIterator[Chunk | Gap | Notice]:
        yield tone(500, 0.3), RATE

    async def hear() -> None:
        async for _ in listen_async(model, client(), taps=[Slow()]):
            raise AssertionError("nothing was to be heard yet")

    async def main() -> None:
        task = asyncio.create_task(hear())
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done.is_set()

    asyncio.run(main())


def test_errors_of_abandoned_sources_are_logged(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    class Breaking(Scripted):
        def __exit__(self, *details: object) -> None:
            super().__exit__(*details)
            raise OSError("the device broke")

    source = Breaking(chunks(scene()), endless=True)

    async def hear() -> None:
        async with aclosing(listen_async(model, source)) as events:
            async for _ in events:
                return

    asyncio.run(hear())
    assert source.left.is_set()
    assert "scripted: failed after listening had stopped: the device broke" in caplog.text


def test_a_loop_that_was_left_at_once_may_be_begun_again_on_its_stream(model: Model) -> None:
    async def hear(stream: Stream) -> list[str]:
        labels = []
        for _ in range(3):
            async for event in listen_async(stream, Scripted(chunks(np.tile(scene(), 200)), endless=True)):
                labels.append(event.label)
                break
        return labels

    assert asyncio.run(hear(model.stream())) == ["low"] * 3


def test_leaving_a_client_without_closing_it_says_nothing(model: Model) -> None:
    async def client() -> AsyncIterator[Chunk]:
        for chunk in chunks(np.tile(scene(), 20)):
            yield chunk
            await asyncio.sleep(0)

    async def hear() -> str:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        async for event in listen_async(model, client()):
            return event.label
        raise AssertionError("nothing was heard")

    told: list[str] = []
    assert asyncio.run(hear()) == "low"
    assert told == []


def test_a_tap_that_does_not_begin_leaves_the_stream_free(model: Model) -> None:
    class Full(Tap):
        def begin(self, name: str, rate: int) -> None:
            raise OSError("disk full")

    stream = model.stream()
    with pytest.raises(OSError, match="disk full") as kept:
        Listener([stream], "first", RATE, taps=[Full()])
    Listener([stream], "second", RATE).close()
    assert kept.value


def test_leaving_an_asyncio_loop_stops_the_source_and_closes_it(model: Model) -> None:
    source = Scripted(chunks(np.tile(scene(), 200)), endless=True)

    async def hear() -> Detection:
        async with aclosing(listen_async(model, source)) as events:
            async for event in events:
                return event
        raise AssertionError("nothing was heard")

    assert asyncio.run(hear()).label == "low"
    assert source.stopped.is_set()
    assert source.left.is_set()


def test_a_cancelled_task_stops_the_source_and_closes_it(model: Model) -> None:
    source = Scripted(chunks(scene()), endless=True)

    async def hear(found: asyncio.Queue[Detection]) -> None:
        async for event in listen_async(model, source):
            found.put_nowait(event)

    async def main() -> Detection:
        found: asyncio.Queue[Detection] = asyncio.Queue()
        task = asyncio.create_task(hear(found))
        first = await found.get()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return first

    assert asyncio.run(main()).label == "low"
    assert source.left.wait(5)


def test_a_loop_that_ends_ends_those_that_still_listen(model: Model) -> None:
    """Whichever of its tasks it cancels first: no thread is waited for before its source is stopped."""
    sources = [Scripted(chunks(silence(0.1)), endless=True) for _ in range(8)]

    async def hear(source: Scripted) -> None:
        async with aclosing(listen_async(model, source)) as events:
            async for _ in events:
                raise AssertionError("nothing is to be heard")

    async def main() -> None:
        listening = [asyncio.create_task(hear(source)) for source in sources]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in listening)

    program = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    program.start()
    program.join(30)
    assert not program.is_alive()
    assert all(source.left.is_set() for source in sources)


def test_asyncio_raises_what_the_source_raises(model: Model) -> None:
    async def hear() -> list[Detection]:
        torn = Scripted([*chunks(scene()), (np.full(9, np.nan, np.float32), RATE)])
        torn.live = False
        return [event async for event in listen_async(model, torn)]

    with pytest.raises(AudioError, match="NaN"):
        asyncio.run(hear())


def test_asyncio_has_taps_that_ask_a_gallery_opened_before(model: Model, tmp_path: Path) -> None:
    """The models run in another thread than the one that opened it."""
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        low = model.embed(tone(500, 0.3), RATE)[None]
        gallery.enroll("low", low, sources=["x"], voiced_s=0.3, negative=True)
        taps = [SpeakerTap(model, gallery), VetoTap(model, gallery)]

        async def hear() -> list[Detection]:
            return [event async for event in listen_async(model, Scripted(chunks(scene())), taps=taps)]

        assert [event.label for event in asyncio.run(hear())] == ["mid"]


def test_asyncio_hears_more_sources_at_once_than_the_loop_has_threads(model: Model) -> None:
    count = 40

    async def main() -> None:
        sources = [Scripted(chunks(scene()), endless=True) for _ in range(count)]
        found: asyncio.Queue[int] = asyncio.Queue()

        async def hear(number: int) -> None:
            async for _ in listen_async(model, sources[number]):
                found.put_nowait(number)

        async with asyncio.timeout(60):
            tasks = [asyncio.create_task(hear(number)) for number in range(count)]
            silent = set(range(count))
            while silent:
                silent.discard(await found.get())
            assert await asyncio.to_thread(lambda: "free") == "free"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


# asyncio, every event

Told = Detection | Ended | Gap | Notice
GIVEN: list[Chunk | Gap | Notice | Pause] = [
    *chunks(scene()),
    Notice("away", "gone"),
    Gap(900, "gone"),
    Notice("back", "here"),
    *chunks(np.concatenate([scene(), tone(500, 0.3)])),
]


def sent(as_a_client: bool, source: Scripted) -> Scripted | AsyncIterator[Item]:
    """What a source gives, as a client sends it or by itself."""

    async def client() -> AsyncIterator[Item]:
        with source:
            for item in source:
                await asyncio.sleep(0)
                yield item
            while source.endless and not source.stopped.is_set():
                await asyncio.sleep(0.01)

    return client() if as_a_client else source


async def every_event(
    listener: Listener, source: Scripted | AsyncIterator[Item], *, pause_s: float | None = None
) -> list[Told]:
    """All that is told, to who takes so long over each event."""
    told: list[Told] = []
    async with aclosing(listener.follow_async(source)) as events:
        async for event in events:
            told.append(event)
            if pause_s is not None:
                await asyncio.sleep(pause_s)
    return told


def listening() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "confit-listen"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """It hears the same, half as often, and by the name of other."""
    path = tiny_model.build(tmp_path_factory.mktemp("other") / "other.onnx", name="other", smoothing_hops=9)
    return load(path)


def listener_of(*models: Model, rate: int = RATE) -> Listener:
    return Listener([model.stream(ends=True) for model in models], "scripted", rate)


@pytest.mark.parametrize("as_a_client", [False, True])
def test_follow_async_yields_what_follow_yields(model: Model, other: Model, as_a_client: bool) -> None:
    wanted = list(listener_of(model, other).follow(Scripted([Pause(), *GIVEN])))
    assert {(type(event), getattr(event, "model", "")) for event in wanted} == {
        *((kind, name) for kind in (Detection, Ended) for name in ("tiny", "other")),
        (Gap, ""),
        (Notice, ""),
    }
    listener = listener_of(model, other)
    assert asyncio.run(every_event(listener, sent(as_a_client, Scripted(GIVEN)))) == wanted
    assert (listener.samples, listener.dropped_samples) == (2 * len(scene()) + len(tone(500, 0.3)) + 900, 900)
    assert not any(stream.listener for stream in listener.streams)


@pytest.mark.parametrize("as_a_client", [False, True])
def test_slow_readers_get_all_events_in_order(
    model: Model, other: Model, monkeypatch: pytest.MonkeyPatch, as_a_client: bool
) -> None:
    monkeypatch.setattr(asynchronous, "_MAX_PENDING_EVENTS", 2)  # then the source waits
    wanted = list(listener_of(model, other).follow(Scripted([Pause(), *GIVEN])))

    async def main() -> list[list[Told]]:
        sources = [sent(as_a_client, Scripted(GIVEN)) for _ in range(20)]
        slow = [None, 0.0, 0.01, 0.03] * 5
        async with asyncio.timeout(60):
            return await asyncio.gather(
                *(
                    every_event(listener_of(model, other), source, pause_s=pause_s)
                    for source, pause_s in zip(sources, slow, strict=True)
                )
            )

    assert asyncio.run(main()) == [wanted] * 20
    assert listening() == []


@pytest.mark.parametrize("as_a_client", [False, True])
def test_stopping_the_source_completes_pending_detections(model: Model, as_a_client: bool) -> None:
    source = Scripted(chunks(np.concatenate([scene(), tone(500, 2.0)])), endless=True)

    async def hear() -> list[str]:
        told: list[str] = []
        async with asyncio.timeout(30):
            async for event in listener_of(model).follow_async(sent(as_a_client, source)):
                assert isinstance(event, Detection | Ended)
                told.append(f"{type(event).__name__} {event.label}")
                if told[-1:] == ["Detection low"] and len(told) > 1:
                    await asyncio.sleep(0.2)  # the rest has come, and sounds still
                    source.stop()
        return told

    told = asyncio.run(hear())
    assert told == ["Detection low", "Ended low", "Detection mid", "Ended mid", "Detection low", "Ended low"]
    assert source.left.is_set()


@pytest.mark.parametrize("as_a_client", [False, True])
@pytest.mark.parametrize("how", ["aclose", "cancelled", "cancelled while it waits"])
def test_leaving_every_event_leaves_no_thread_and_the_stream_free(model: Model, as_a_client: bool, how: str) -> None:
    stream = model.stream(ends=True)
    wanted = list(Listener([stream], "", RATE).follow(Scripted([Pause(), *GIVEN])))
    many = np.tile(scene(), 1 if how.endswith("waits") else 100)

    async def hear(source: Scripted, leaves_after: int, told: list[Told]) -> None:
        listener = Listener([stream], "", RATE)
        async with aclosing(listener.follow_async(sent(as_a_client, source))) as events:
            async for event in events:
                told.append(event)
                if len(told) == leaves_after:
                    return

    async def leave(after: int) -> None:
        source, told = Scripted(chunks(many), endless=True), list[Told]()
        task = asyncio.create_task(hear(source, after if how == "aclose" else -1, told))
        while how != "aclose" and len(told) < after:
            await asyncio.sleep(0.001)
        if how != "aclose":
            task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        assert [type(one) for one in done] == [type(None) if how == "aclose" else asyncio.CancelledError]
        assert source.left.is_set()
        assert not listening()
        # at once, and nothing of before is told
        assert await every_event(Listener([stream], "", RATE), sent(as_a_client, Scripted(GIVEN))) == wanted

    async def main() -> None:
        async with asyncio.timeout(60):
            for after in (1, 2, 4):
                await leave(after)

    asyncio.run(main())


def test_a_source_that_does_not_open_leaves_the_stream_free(model: Model) -> None:
    class Busy(Scripted):
        def __enter__(self) -> Scripted:
            raise DeviceError("scripted: is in use")

    stream = model.stream(ends=True)
    with pytest.raises(DeviceError, match="is in use"):
        asyncio.run(every_event(kept := Listener([stream], "first", RATE), Busy([])))
    Listener([stream], "second", RATE).close()
    assert kept.samples == 0
    any_source: Any = "mic"
    with pytest.raises(UsageError, match=r"expected a source, got str, which lacks name, .* open_source\("):
        asyncio.run(every_event(kept, any_source))


@pytest.mark.parametrize("as_a_client", [False, True])
def test_ends_precede_source_errors(model: Model, as_a_client: bool) -> None:
    class Breaks(Scripted):
        def __iter__(self) -> Iterator[Chunk | Gap | Notice | Pause]:
            yield from super().__iter__()
            raise OSError("the connection is lost")

    told: list[str] = []

    async def hear() -> None:
        source = Breaks(chunks(scene()[: round(0.6 * RATE)]))  # low sounds still
        async for event in listener_of(model).follow_async(sent(as_a_client, source)):
            told.append(type(event).__name__)

    with pytest.raises(OSError, match="the connection is lost"):
        asyncio.run(hear())
    assert told == ["Detection", "Ended"]


def test_a_listener_hears_a_short_gap_as_the_silence_that_its_taps_keep(model: Model) -> None:
    pcm, start, end = scene(), 7_000, 7_500
    zeroed = np.concatenate([pcm[:start], np.zeros(end - start, np.float32), pcm[end:]])
    tap = RecentAudio(seconds=60.0)
    listener = Listener([model.stream(ends=True)], "", RATE, taps=[tap])
    items = [*chunks(pcm[:start]), Gap(200, "late"), Gap(end - start - 200, "late"), *chunks(pcm[end:])]
    told = list(listener.follow(Scripted(items)))
    plain = list(Listener([model.stream(ends=True)], "", RATE).follow(Scripted(chunks(zeroed))))
    assert [event for event in told if not isinstance(event, Gap)] == plain != []
    assert [event for event in told if isinstance(event, Gap)] == [Gap(end - start, "late")]
    assert (listener.samples, listener.dropped_samples) == (len(pcm), end - start)
    np.testing.assert_array_equal(tap.between(0, len(pcm)), zeroed)


def test_detections_completed_by_a_gap_are_reported_during_it(model: Model) -> None:
    listener = Listener([model.stream()], "", RATE)
    told = [*listener.take((np.append(silence(0.3), tone(500, 0.05)), RATE)), *listener.take(Gap(RATE // 4, "late"))]
    assert [event.label for event in told if isinstance(event, Detection)] == ["low"]
