"""Listening as a library does it: one loop over a source, gaps and pauses."""

from __future__ import annotations

import asyncio
import io
import logging
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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
    Tap,
    UsageError,
    listen,
    listen_async,
    load,
)
from confit_runtime.errors import DeviceError
from confit_runtime.gallery import Gallery
from confit_runtime.sources import Chunk, Gap, Microphone, Notice, Pause, PcmSource
from confit_runtime.speaker import RecentAudio
from tests import tiny_model
from tests.confit_runtime.fake_sounddevice import Back, FakePortAudio
from tests.confit_runtime.scripted import Recorder, Scripted, Slow, chunks, direct, places, scene
from tests.tiny_model import HOP, RATE, Floats, silence, tone

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
