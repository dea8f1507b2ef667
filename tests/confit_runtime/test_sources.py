"""Sources: files, pipes, and a microphone on a fake PortAudio (this machine's real one where there is none)."""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_runtime import AudioError, DeviceError, Model, ModelError, UsageError, listen, load
from confit_runtime.sources import (
    Chunk,
    FileSource,
    Gap,
    Microphone,
    Notice,
    Pause,
    PcmSource,
    Source,
    find_clips,
    import_portaudio,
    input_devices,
    open_source,
    pcm,
)
from confit_runtime.sources.base import PlaybackClock
from confit_runtime.sources.microphone import _Converter
from tests.confit_runtime.fake_sounddevice import Back, FakePortAudio
from tests.tiny_model import Floats, tone

RNG = np.random.default_rng(2)
BLOCK = 3_840  # samples that a microphone at 48 kHz delivers at a time


def begun(source: PcmSource) -> Iterator[Chunk | Gap | Notice | Pause]:
    """What a pipe gives after the pause that it begins with."""
    items = iter(source)
    assert next(items) == Pause()
    return items


def taken(source: Source, samples: int | None = None) -> Floats:
    """What a source gives, with NaN where it says that something is missing; at most `samples`."""
    parts: list[Floats] = []
    with source:
        for item in source:
            if isinstance(item, Gap):
                parts.append(np.full(item.samples, np.nan, np.float32))
            elif not isinstance(item, Notice | Pause):
                pcm, rate = item
                assert (pcm.dtype, pcm.ndim, rate) == (np.float32, 1, source.rate)
                parts.append(pcm)
            if samples is not None and sum(map(len, parts)) >= samples:
                break
    return np.concatenate(parts)


# files


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("rate", [11_025, 48_000])
def test_a_file_is_read_whole(tmp_path: Path, suffix: str, channels: int, rate: int) -> None:
    path = tmp_path / f"sound.{suffix}"
    sound = tone(440, 1.3, rate)
    soundfile.write(path, np.stack([sound] * channels, axis=1), rate)
    source = FileSource(path)
    assert (source.name, source.rate) == (str(path), rate)
    np.testing.assert_allclose(taken(source), sound, atol=0.03)


def test_a_file_is_heard_once(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(440, 1.0, 16_000), 16_000)
    with FileSource(tmp_path / "tone.wav") as source:
        next(iter(source))
        with pytest.raises(UsageError, match=r"tone\.wav: was already read: open it again"):
            list(source)
    with FileSource(tmp_path / "tone.wav") as closed:
        pass
    with pytest.raises(UsageError, match=r"tone\.wav: was already closed: open it again"):
        list(closed)


def test_a_file_damaged_in_the_middle_is_an_audio_error(tmp_path: Path) -> None:
    path = tmp_path / "sound.flac"
    soundfile.write(path, RNG.uniform(-0.5, 0.5, 60_000), 16_000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(4000) + data[len(data) // 2 + 4000 :])
    heard: list[Floats] = []
    with FileSource(path) as source, pytest.raises(AudioError, match=r"sound\.flac"):
        heard.extend(pcm for pcm, _ in source)
    assert heard


def test_invalid_sound_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        FileSource(tmp_path / "nothing.wav")
    (tmp_path / "text.wav").write_text("not sound")
    with pytest.raises(AudioError, match=r"text\.wav"):
        FileSource(tmp_path / "text.wav")


# raw PCM


class Pieces(io.BufferedIOBase):
    """A pipe that delivers in the given pieces."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), len(data)]
        self._pieces = [data[a:b] for a, b in pairwise(edges) if a < b]

    def read1(self, size: int = -1, /) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


@settings(max_examples=50)
@given(
    channels=st.sampled_from([1, 2, 3]),
    form=st.sampled_from(["s16le", "f32le"]),
    cuts=st.lists(st.integers(0, 600), max_size=20),
    odd=st.integers(0, 5),
)
def test_pcm_in_any_pieces(channels: int, form: str, cuts: list[int], odd: int) -> None:
    sound = RNG.uniform(-1, 1, (50, channels)).astype(np.float32)
    data = (sound * 32767).astype("<i2").tobytes() if form == "s16le" else sound.astype("<f4").tobytes()
    data = data + data[: min(odd, channels * 2 - 1)]
    got = taken(PcmSource(Pieces(data, cuts), 16_000, channels, form))
    np.testing.assert_allclose(got, sound.mean(axis=1), atol=1e-4)


def test_pcm_is_passed_on_as_it_arrives() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as writer:
        chunks = begun(PcmSource(reader, 16_000))
        for value in (100, 200):
            writer.write(np.full(30, value, "<i2").tobytes())
            pcm, rate = next(chunks)
            assert rate == 16_000
            np.testing.assert_allclose(pcm, np.full(30, value / 32768))


@pytest.mark.parametrize("buffering", [-1, 0])
def test_pcm_behind_a_header_line_does_not_wait_for_more(buffering: int) -> None:
    """Reading the line filled the reader's buffer, of which the pipe tells nothing."""
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering) as reader, os.fdopen(write, "wb", buffering=0) as writer:
        writer.write(b"rate 16000\n" + bytes(60))
        assert reader.readline() == b"rate 16000\n"
        source = PcmSource(reader, 16_000)
        late = threading.Timer(5.0, source.stop)
        late.start()
        chunks = begun(source)
        assert len(next(chunks)[0]) == 30
        writer.write(bytes(20))
        assert len(next(chunks)[0]) == 10
        assert os.get_blocking(read)
        late.cancel()


def test_a_file_that_holds_nan_is_named(tmp_path: Path) -> None:
    sound = RNG.uniform(-1, 1, 40_000).astype(np.float32)
    sound[30_000] = np.nan
    soundfile.write(tmp_path / "bad.wav", sound, 16_000, subtype="FLOAT")
    with FileSource(tmp_path / "bad.wav") as source, pytest.raises(AudioError, match=r"bad\.wav: holds NaN"):
        list(source)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -3e38, 12_345])
def test_pcm_that_is_no_sound_comes_as_a_gap(bad: float) -> None:
    sound = RNG.uniform(-1, 1, 90).astype("<f4")
    sound[40] = bad
    pieces = [30 * 4, 60 * 4]
    got = taken(PcmSource(Pieces(sound.tobytes(), pieces), 16_000, format="f32le"))
    np.testing.assert_array_equal(got, np.concatenate([sound[:30], np.full(30, np.nan), sound[60:]]))


def test_an_idle_pipe_can_be_stopped_from_another_thread() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as writer:
        source = PcmSource(reader, 16_000)
        threading.Timer(0.2, source.stop).start()
        writer.write(bytes(20))
        assert [len(pcm) for pcm, _ in begun(source)] == [10]


def test_a_stalled_pipe_is_reported_once_and_when_it_resumes() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as writer:
        items = begun(PcmSource(reader, 16_000, stall_s=0.3))
        for at_once in (b"", bytes(20), bytes(20)):  # also before anything came
            writer.write(at_once)
            assert not at_once or isinstance(next(items), tuple)
            later = threading.Timer(1.0, writer.write, [bytes(60)])
            later.start()
            assert [getattr(next(items), "state", "sound") for _ in range(3)] == ["away", "back", "sound"]
            later.join()
        threading.Timer(0.6, writer.close).start()
        assert [getattr(item, "state", "sound") for item in items] == ["away"]  # it ended


def test_a_pipe_pauses_when_nothing_more_came_for_a_while_and_not_when_it_stutters() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as writer:
        items = begun(PcmSource(reader, 16_000, pause_s=1.0))
        threading.Timer(1.5, writer.write, [bytes(20)]).start()  # nothing had begun
        assert isinstance(next(items), tuple)
        threading.Timer(0.3, writer.write, [bytes(20)]).start()
        assert isinstance(next(items), tuple)
        assert next(items) == Pause()
        threading.Timer(1.5, writer.write, [bytes(20)]).start()  # and does not pause again
        assert isinstance(next(items), tuple)
        writer.close()
        assert list(items) == []


@pytest.mark.parametrize(
    ("paces", "waits", "found"),
    [
        ([48_000] * 3, 0.9, [48_000]),  # arecord -r 48000 | listen - --rate 16000
        ([8_010] * 5, 0.5, [8_000]),  # half the rate: voices at double speed; reported once
        ([88_200] * 3, 0.3, [88_200]),  # arecord -f cd: two channels
        ([16_080] * 3, 0.9, []),  # a sound card that runs fast
        ([48_000, 30_000, 48_000], 0.9, []),  # not steady
        ([13_000] * 3, 0.9, []),  # a writer that leaves out silence, or a slow network
        ([48_000] * 3, 0.01, []),  # a recording that the models hear at three times its speed
    ],
)
def test_a_pipe_whose_rate_is_wrong_is_known_by_its_pace(paces: list[int], waits: float, found: list[int]) -> None:
    pace, now, reported = pcm._Pace(16_000), 0.0, []
    pace.came(65_536, now, 5.0)  # what was waiting in the pipe
    for frames in paces:
        for _ in range(51):
            now += 0.2
            reported.append(pace.came(frames / 5, now, waits / 5))
    assert [one for one in reported if one is not None] == found


def test_a_pipe_whose_rate_is_wrong_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcm, "_PACE_S", 0.5)
    monkeypatch.setattr(pcm, "_NEAR", 0.3)  # a busy machine
    monkeypatch.setattr(pcm, "_PACES", [48_000])
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "wb", buffering=0) as writer:

        def send() -> None:
            began = time.monotonic()
            for block in range(60):
                writer.write(bytes(2 * 48_000 // 20))
                time.sleep(max(0.0, began + (block + 1) / 20 - time.monotonic()))
            writer.close()

        sender = threading.Thread(target=send)
        sender.start()
        notices = [item for item in PcmSource(reader, 16_000) if isinstance(item, Notice)]
        sender.join()
    assert [(notice.state, notice.text) for notice in notices] == [
        (
            "rate",
            "-: 48,000 samples per second come through the pipe, though its rate is said to be 16,000 Hz: check rate,"
            " channels and format",
        )
    ]


def test_a_pipe_that_sends_much_at_once_pauses_when_that_has_sounded() -> None:
    second, bursts = bytes(32_000), 3
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as writer:

        def send() -> None:
            for _ in range(bursts):
                writer.write(second)
                time.sleep(1.0)

        items, sender = begun(PcmSource(reader, 16_000, pause_s=0.5)), threading.Thread(target=send)
        sender.start()
        heard = list(takewhile(lambda item: item != Pause(), items))
        sender.join()
    assert sum(len(pcm) for pcm, _ in heard) == bursts * 16_000


@pytest.mark.parametrize(("backlog", "late"), [(0.0, 0.2), (6.0, 0.2), (6.0, 0.0)])
def test_sound_that_began_late_pauses_as_soon_as_other_sound(backlog: float, late: float) -> None:
    """Each 20 ms comes when it has sounded, or a little after, behind a backlog that came at once."""
    lasting = PlaybackClock()
    assert lasting.pause_due(2.0) == math.inf
    lasting.received(backlog, 100.0)
    assert lasting.pause_due(2.0) == 102.0 + backlog
    for at in range(1, 1501):
        lasting.received(0.02, 100 + 0.02 * at + late * (at % 7 == 0))
    assert lasting.pause_due(2.0) == pytest.approx(132.0, abs=0.3)


def test_blocks_of_any_length_last_until_the_next_one() -> None:
    lasting = PlaybackClock()
    for block in range(20):
        for piece in range(15):  # as they are read
            lasting.received(2.0, 30.0 * block + 0.01 * piece)
        assert lasting.pause_due(2.0) == pytest.approx(30.0 * block + 32, abs=0.2)


def test_a_file_is_stopped_on_the_way(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(160_000), 16_000)
    with FileSource(tmp_path / "long.wav") as source:
        blocks = iter(source)
        next(blocks)
        source.stop()
        assert list(blocks) == []


def test_pcm_that_cannot_be() -> None:
    for settings_ in (
        {"rate": 0},
        {"rate": 16_000, "channels": 0},
        {"rate": 16_000, "channels": 1.5},
        {"rate": 16_000, "format": "u8"},
    ):
        with pytest.raises(UsageError):
            PcmSource(io.BytesIO(), **settings_)  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "named"), [("WAV", "WAV"), ("FLAC", "FLAC"), ("OGG", "Ogg")])
def test_a_pipe_that_holds_a_file_is_refused(form: str, named: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1_600), 16_000, format=form)
    with pytest.raises(UsageError, match=f"contains {named} data.*arecord -t raw"):
        taken(PcmSource(Pieces(file.getvalue(), [1, 3]), 16_000))


# microphones

SOUND = RNG.uniform(-0.5, 0.5, (13 * BLOCK, 2)).astype(np.float32)


@pytest.mark.parametrize("mono", [True, False])
@pytest.mark.parametrize("rate", [48_000, 44_100])
def test_a_microphone_gives_all_it_hears_at_its_own_rate(mono: bool, rate: int) -> None:
    portaudio = FakePortAudio(SOUND, rate, mono=mono)
    microphone = Microphone(portaudio=portaudio)
    assert (microphone.name, microphone.rate) == ("mic", rate)
    heard = taken(microphone, samples=40_000)
    np.testing.assert_allclose(heard, SOUND[: len(heard)].mean(axis=1), atol=1e-6)
    assert portaudio.closed


def test_a_microphone_that_is_not_open_says_so() -> None:
    microphone = Microphone(portaudio=FakePortAudio(SOUND))
    with pytest.raises(UsageError, match=r"mic: is not open: iterate .* inside its `with` block"):
        next(iter(microphone))
    taken(microphone, samples=2000)
    with pytest.raises(UsageError, match="mic: is not open"):
        next(iter(microphone))


@pytest.mark.parametrize("device", [1, "USB Mic", "usb mic: audio"])
def test_a_microphone_by_index_or_name(device: int | str) -> None:
    assert len(taken(Microphone(device, portaudio=FakePortAudio(SOUND)), samples=2000)) >= 2000


def test_portaudio_overflows_become_gaps() -> None:
    heard = taken(Microphone(portaudio=FakePortAudio(SOUND, overflows={3: 777, 10: 5})), samples=40_000)
    missing = np.isnan(heard)
    assert missing.sum() == 782
    np.testing.assert_allclose(heard[~missing], SOUND[: len(heard)].mean(axis=1)[~missing], atol=1e-6)


def test_without_a_clock_a_loss_counts_as_one_block() -> None:
    heard = taken(Microphone(portaudio=FakePortAudio(SOUND, overflows={3: 777}, keeps_time=False)), samples=40_000)
    assert np.isnan(heard).sum() == BLOCK


def test_a_loss_before_anything_was_heard_is_no_longer_than_a_block() -> None:
    """PortAudio's clock counts from the start of the machine: a gap of as long would be a minute of nothing."""
    heard = taken(Microphone(portaudio=FakePortAudio(SOUND, overflows={0: 777})), samples=20_000)
    assert np.isnan(heard).sum() == BLOCK


def test_a_microphone_is_not_opened_twice(model: Model) -> None:
    """The first opening would never be closed, and no device be found again."""
    portaudio = FakePortAudio(SOUND, then="unplugged")
    microphone = Microphone(portaudio=portaudio)
    with microphone:
        with pytest.raises(UsageError, match=r"mic: is already open: .* outside its `with` block"):
            list(listen(model, microphone))
        assert portaudio.open_streams == 1
        next(item for item in microphone if isinstance(item, Notice))  # it went away
        with pytest.raises(UsageError, match="mic: is already open"):
            list(listen(model, microphone))
    assert portaudio.open_streams == 0


def test_the_clock_is_right_where_the_reader_was_busy_while_the_microphone_went_away() -> None:
    portaudio = FakePortAudio(SOUND, real_time=True, then="unplugged", back=Back(SOUND))
    clock = 0
    with Microphone(portaudio=portaudio) as microphone:
        began = time.monotonic()
        for item in microphone:
            if isinstance(item, Notice) and item.state == "back":
                break
            clock += item.samples if isinstance(item, Gap) else len(item[0]) if isinstance(item, tuple) else 0
            if clock == BLOCK:
                time.sleep(len(SOUND) / 48_000 + 0.7)
    assert clock / 48_000 == pytest.approx(time.monotonic() - began, abs=0.3)


def test_a_slow_reader_gets_gaps() -> None:
    microphone = Microphone(portaudio=FakePortAudio(SOUND, real_time=True), queue_s=0.1)
    parts: list[Floats] = []
    with microphone:
        for item in microphone:
            parts.append(np.full(item.samples, np.nan, np.float32) if isinstance(item, Gap) else item[0])
            if len(parts) == 3:
                time.sleep(0.3)
            if sum(map(len, parts)) > 30_000:
                break
    heard = np.concatenate(parts)
    missing = np.isnan(heard)
    assert 0 < missing.sum() < 30_000
    np.testing.assert_allclose(heard[~missing], SOUND[: len(heard)].mean(axis=1)[~missing], atol=1e-6)


def test_a_reader_that_is_too_slow_loses_long_stretches_and_not_a_block_now_and_again() -> None:
    portaudio = FakePortAudio(np.tile(SOUND, (3, 1)), real_time=True, then="unplugged")
    gaps, blocks = [], 0
    with Microphone(portaudio=portaudio, queue_s=0.4, wait_s=0.0) as microphone:
        for item in microphone:
            if isinstance(item, Gap):
                gaps.append(item.samples // BLOCK)
            else:
                blocks += 1
                time.sleep(1.6 * BLOCK / 48_000)
            if blocks == 20:
                break
    assert sum(gaps) > 5
    assert min(gaps) >= 5  # until the queue is empty


def test_blocks_that_hold_nan_come_as_gaps() -> None:
    heard = taken(Microphone(portaudio=FakePortAudio(SOUND, faulty=(2, 5))), samples=40_000)
    missing = np.isnan(heard)
    assert missing.sum() == 2 * BLOCK
    np.testing.assert_allclose(heard[~missing], SOUND[: len(heard)].mean(axis=1)[~missing], atol=1e-6)


@pytest.mark.parametrize("then", ["stalls", "unplugged"])
def test_a_microphone_that_goes_away_and_is_not_waited_for(then: str) -> None:
    stall_s = 60.0 if then == "unplugged" else 0.3
    with pytest.raises(DeviceError, match="went away"):
        taken(Microphone(portaudio=FakePortAudio(SOUND, then=then), stall_s=stall_s, wait_s=0.0))


def test_a_microphone_that_does_not_come_back_in_time() -> None:
    microphone = Microphone(portaudio=FakePortAudio(SOUND, then="unplugged"), wait_s=0.3)
    items = []
    with pytest.raises(DeviceError, match=r"did not come back within 0\.3 s"), microphone:
        items.extend(microphone)
    assert [item.state for item in items if isinstance(item, Notice)] == ["away"]


def test_gaps_cover_the_whole_absence() -> None:
    microphone = Microphone(portaudio=FakePortAudio(SOUND, then="unplugged"), wait_s=0.6)
    gaps: list[int] = []
    began = time.monotonic()
    with pytest.raises(DeviceError, match="did not come back"), microphone:
        gaps.extend(item.samples for item in microphone if isinstance(item, Gap))
    assert len(gaps) > 1
    assert 0.4 < sum(gaps) / 48_000 <= time.monotonic() - began


@pytest.mark.parametrize("then", ["stalls", "unplugged"])
@pytest.mark.parametrize(
    ("rate", "name"),
    [(48_000, "USB Mic: Audio (hw:1,0)"), (44_100, "USB Mic: Audio (hw:3,0)"), (16_000, "USB Mic: Audio")],
)
def test_a_microphone_that_comes_back(then: str, rate: int, name: str) -> None:
    after = tone(500, 1.0, rate)
    portaudio = FakePortAudio(SOUND, then=then, back=Back(after, rate, name))
    microphone = Microphone(portaudio=portaudio, stall_s=0.3)
    before: list[Floats] = []
    later: list[Floats] = []
    states, away = [], 0
    began = time.monotonic()
    with microphone:
        for item in microphone:
            if isinstance(item, Notice):
                states.append(item.state)
            elif isinstance(item, Gap):
                away += item.samples
            else:
                assert item[1] == 48_000
                (later if states else before).append(item[0])
            if sum(map(len, later)) >= 40_000:
                break
    took = time.monotonic() - began
    assert states == ["away", "back"]
    np.testing.assert_allclose(np.concatenate(before), SOUND.mean(axis=1), atol=1e-6)
    heard = np.concatenate(later)
    np.testing.assert_allclose(heard, tone(500, 1.0, 48_000)[: len(heard)], atol=2e-3)
    assert 0 < away <= took * 48_000


@pytest.mark.parametrize("rate", [48_000, 44_100])
def test_the_time_until_a_microphone_that_came_back_delivers_is_away_too(rate: int) -> None:
    """Through PulseAudio it is a second or two, each time; one that never does is opened once more."""
    portaudio = FakePortAudio(SOUND, then="unplugged", back=Back(tone(500, 1.0, rate), rate, late_s=2.5))
    items = []
    with Microphone(portaudio=portaudio, stall_s=1.0) as microphone:
        for item in microphone:
            items.append(item)
            if len(portaudio.opened) == 2:
                portaudio.late_s = 0.5  # when it is opened the third time
            if "back" in [getattr(one, "state", "") for one in items] and isinstance(item, tuple):
                break
    assert [item.state for item in items if isinstance(item, Notice)] == ["away", "away", "back"]
    assert len(portaudio.opened) == 3
    gaps_s = sum(item.samples for item in items if isinstance(item, Gap)) / 48_000
    assert gaps_s == pytest.approx(portaudio.away_s, abs=0.02)
    assert gaps_s > 1.4


def test_a_microphone_whose_first_block_comes_late_is_not_closed_before() -> None:
    """Its time doubles at each opening; and the gaps go on meanwhile, and are as long as nothing came."""
    back = Back(SOUND, after=1, late_s=1.5)
    portaudio = FakePortAudio(SOUND, real_time=True, then="unplugged", back=back)
    events: list[str] = []
    away = 0
    with Microphone(portaudio=portaudio, stall_s=0.5) as microphone:
        for item in microphone:
            assert len(portaudio.opened) <= 3
            if isinstance(item, Gap):
                away += item.samples
                assert item.samples < 1.5 * 48_000
            elif isinstance(item, Notice):
                events.append(item.text)
            elif len(events) == 3:
                break
    assert len(portaudio.opened) == 3
    assert "delivers nothing" in events[1]
    assert events[2].endswith("is back")
    assert away / 48_000 == pytest.approx(portaudio.away_s, abs=0.05)


def test_a_microphone_that_is_there_but_delivers_nothing_is_waited_for_so_long_and_no_longer() -> None:
    portaudio = FakePortAudio(SOUND, real_time=True, then="stalls", back=Back(SOUND, late_s=60.0))
    microphone, items = Microphone(portaudio=portaudio, stall_s=0.2, wait_s=1.5), []
    timer = threading.Timer(20.0, microphone.stop)
    timer.start()
    with pytest.raises(DeviceError, match=r"did not come back within 1\.5 s"), microphone:
        items.extend(microphone)
    timer.cancel()
    notices = [item.text for item in items if isinstance(item, Notice)]
    assert ["delivers nothing" in text for text in notices] == [False, True]
    assert sum(item.samples for item in items if isinstance(item, Gap)) / 48_000 == pytest.approx(1.6, abs=0.4)
    assert portaudio.open_streams == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no clock tells")
@pytest.mark.parametrize("stays", [True, False])
def test_a_suspended_machine_loses_as_much_as_it_slept(stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asleep_s = time.clock_gettime, 0.0
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + asleep_s * (clock == time.CLOCK_BOOTTIME))
    sound = np.tile(SOUND, (3 if stays else 1, 1))
    portaudio = FakePortAudio(sound, real_time=True, then="unplugged", back=Back(SOUND, after=2))
    states, away = [], 0
    with Microphone(portaudio=portaudio) as microphone:
        for item in microphone:
            if isinstance(item, Notice):
                states.append(item.state)
            if isinstance(item, Gap):
                away += item.samples
            elif "back" in states:
                break
            elif stays or "away" in states:
                asleep_s = 3600.0
    assert states == ["away", "back"]
    assert away / 48_000 == pytest.approx(3600.0, abs=3.0)


def test_iterating_again_waits_for_an_absent_microphone() -> None:
    microphone = Microphone(portaudio=FakePortAudio(SOUND, then="unplugged", back=Back(SOUND, after=3)))
    states: list[str] = []
    began, away = time.monotonic(), 0
    with microphone:
        for wanted in (Notice, Gap, tuple):
            for item in microphone:
                states += [item.state] if isinstance(item, Notice) else []
                away += item.samples if isinstance(item, Gap) else 0
                if states and isinstance(item, wanted):
                    break
    assert states == ["away", "away", "away", "back"]
    assert 1.0 < away / 48_000 <= time.monotonic() - began
    with pytest.raises(UsageError, match="inside its `with` block"):
        next(iter(microphone))


def test_a_microphone_that_was_left_while_it_was_away_is_not_waited_for() -> None:
    microphone = Microphone(portaudio=FakePortAudio(SOUND, then="unplugged"))
    with microphone:
        assert any(isinstance(item, Notice) for item in microphone)
    with pytest.raises(UsageError, match="inside its `with` block"):
        next(iter(microphone))


def test_a_resampled_clock_stays_right_after_a_loss() -> None:
    convert, sound = _Converter(44_100, 48_000), tone(500, 0.31, 44_100)
    given = len(convert.push(sound)) + convert.skip(44_101 - len(sound))
    assert given == round(44_101 * 48_000 / 44_100)  # what was on its way in the resampler is lost too
    given += len(convert.push(sound)) + convert.skip(44_101 - len(sound))
    assert given == round(2 * 44_101 * 48_000 / 44_100)
    np.testing.assert_array_equal(convert.push(sound), _Converter(44_100, 48_000).push(sound))


def test_a_portaudio_that_cannot_be_started_for_a_while_is_tried_again() -> None:
    portaudio = FakePortAudio(SOUND, then="unplugged", back=Back(SOUND, after=2))
    portaudio.dead_looks = 1
    microphone = Microphone(portaudio=portaudio, wait_s=4.0)
    assert len(taken(microphone, samples=2 * len(SOUND))) >= 2 * len(SOUND)
    assert portaudio.looks == 2


def test_another_microphone_of_the_same_make_does_not_stand_in_for_a_lost_one() -> None:
    portaudio = FakePortAudio(SOUND, then="unplugged")
    portaudio._devices.append({**portaudio._devices[1], "name": "USB Mic: Audio (hw:5,0)", "index": 3})
    with pytest.raises(DeviceError, match="did not come back"):
        taken(Microphone(1, portaudio=portaudio, wait_s=0.3))


@pytest.mark.parametrize("index", [1, 3])
def test_another_microphone_of_the_same_name_does_not_stand_in_for_a_lost_one(index: int) -> None:
    portaudio = FakePortAudio(SOUND, then="unplugged", back=Back(SOUND, after=3))
    portaudio._devices.append({**portaudio._devices[1], "index": 3})
    with Microphone(index, portaudio=portaudio) as microphone:
        assert any(isinstance(item, Notice) and item.state == "back" for item in microphone)
    assert portaudio.looks == 3  # at the first two, only one of that name was there
    assert portaudio.opened == [index, index]


@pytest.mark.parametrize(("spec", "column"), [("mic#1", 0), ("mic:USB Mic#2", 1), ("mic:1#2", 1)])
def test_one_channel_of_a_microphone(spec: str, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    portaudio = FakePortAudio(SOUND)
    monkeypatch.setattr("confit_runtime.sources.microphone.import_portaudio", lambda: portaudio)
    microphone = open_source(spec)
    assert microphone.name == spec
    heard = taken(microphone, samples=20_000)
    np.testing.assert_array_equal(heard, SOUND[: len(heard), column])


def test_a_microphone_whose_name_ends_like_a_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    portaudio = FakePortAudio(SOUND)
    portaudio._devices[1]["name"] = "USB Audio #2: - (hw:1,0)"
    monkeypatch.setattr("confit_runtime.sources.microphone.import_portaudio", lambda: portaudio)
    heard = taken(open_source("mic:USB Audio #2"), samples=20_000)
    np.testing.assert_allclose(heard, SOUND[: len(heard)].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("channel", [0, -1, 1.5, float("nan"), "1"])
def test_invalid_channels_are_usage_errors(channel: Any) -> None:
    with pytest.raises(UsageError, match="channel of a microphone: must be a whole number, 1 or more"):
        Microphone(channel=channel, portaudio=FakePortAudio(SOUND))


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), "1"])
def test_invalid_durations_are_usage_errors(seconds: Any) -> None:
    for name in ("queue_s", "stall_s", "wait_s"):
        with pytest.raises(UsageError, match=f"{name} of a microphone: must be a number of seconds, 0"):
            Microphone(portaudio=FakePortAudio(SOUND), **{name: seconds})
    with pytest.raises(UsageError, match="stall_s of a pipe: must be a number of seconds"):
        PcmSource(io.BytesIO(), 16_000, stall_s=seconds)


def test_a_microphone_is_given_the_time_of_a_block_at_least() -> None:
    for name in ("queue_s", "stall_s"):
        with pytest.raises(UsageError, match=f"{name} of a microphone: .* 0.08 or more; it is 0"):
            Microphone(portaudio=FakePortAudio(SOUND), **{name: 0.0})


def test_a_channel_may_be_a_whole_number_of_any_type() -> None:
    microphone = Microphone(channel=np.float32(2.0), portaudio=FakePortAudio(SOUND))
    assert microphone.name == "mic#2"
    np.testing.assert_array_equal(taken(microphone, samples=2000)[:2000], SOUND[:2000, 1])


def test_a_channel_that_a_microphone_does_not_have() -> None:
    with pytest.raises(DeviceError, match=r"mic#3: USB Mic.* has only 2 channels"):
        Microphone(channel=3, portaudio=FakePortAudio(SOUND))


def test_a_driver_that_refuses_its_own_default_rate() -> None:
    portaudio = FakePortAudio(SOUND, 44_100)
    portaudio._devices[1]["default_samplerate"] = 96_000.0
    microphone = Microphone(portaudio=portaudio)
    assert microphone.rate == 44_100
    assert len(taken(microphone, samples=2000)) >= 2000


def test_a_microphone_is_stopped_from_another_thread() -> None:
    microphone = Microphone(portaudio=FakePortAudio(SOUND))
    with microphone:
        timer = threading.Timer(0.3, microphone.stop)
        timer.start()
        heard = sum(len(item[0]) for item in microphone if isinstance(item, tuple))
    assert heard == len(SOUND)


@pytest.mark.parametrize(
    ("device", "present", "message"),
    [
        (None, False, "no default microphone .*there are no microphones"),
        ("Webcam", True, "Webcam"),
        ("USB", True, "Multiple input devices"),
        (0, True, "Not an input device"),
        (9, True, "no microphone 9"),
    ],
)
def test_a_microphone_that_is_not_there(device: int | str | None, present: bool, message: str) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        Microphone(device, portaudio=FakePortAudio(SOUND, present=present))
    assert "\n" not in str(caught.value)


def test_a_microphone_that_cannot_be_opened() -> None:
    microphone = Microphone(portaudio=FakePortAudio(SOUND, busy=True))
    with pytest.raises(DeviceError, match="Device unavailable"), microphone:
        pass


def test_a_stream_hears_the_microphone_and_its_gaps(model: Model) -> None:
    rate = 48_000
    sound = np.concatenate(
        [np.zeros(rate // 2), tone(500, 0.4, rate), np.zeros(rate), tone(500, 0.4, rate), np.zeros(rate)]
    )
    source = Microphone(portaudio=FakePortAudio(sound.astype(np.float32), rate, overflows={60: 9_600}))
    stream, found = model.stream(), []
    with source:
        for item in source:
            if isinstance(item, Gap):
                stream.skip(item.samples)
            else:
                found += stream.accept(*item)
            if len(found) == 2:
                break
    assert [event.label for event in found] == ["low", "low"]
    np.testing.assert_allclose([event.start_s for event in found], [0.45, 1.85], atol=0.03)


def test_devices_are_listed() -> None:
    found = input_devices(FakePortAudio(SOUND))
    assert [(one.index, one.channels, one.default_rate, one.default, one.rates) for one in found] == [
        (1, 2, 48_000, True, (48_000,)),
        (2, 2, 44_100, False, (48_000,)),
    ]
    assert input_devices(FakePortAudio(SOUND, present=False)) == []


@pytest.mark.parametrize("use", [import_portaudio, input_devices, Microphone, lambda: open_source("mic:USB")])
@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise OSError('PortAudio library not found')\n", "apt-get install libportaudio2"),
        ("import a_module_that_is_nowhere\n", "pip install sounddevice"),
    ],
)
def test_a_missing_portaudio_error_says_what_to_install(
    use: Callable[[], object], module: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sounddevice.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(DeviceError, match=said):
        use()


# how a user names them


def test_sources_by_name(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, tone(440, 0.1), 16_000)
    source = open_source(str(path))
    assert isinstance(source, FileSource)
    source.__exit__(None, None, None)
    with pytest.raises(UsageError, match=r"--rate HZ, or in a program open_source\('-', rate=HZ\)"):
        open_source("-")
    with pytest.raises(UsageError, match="--rate"):
        open_source(str(path), rate=16_000)
    with pytest.raises(UsageError, match="no such file"):
        open_source("microphone")


def test_clips_by_name(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in (
        "b.wav",
        "a.FLAC",
        "c.opus",
        "notes.txt",
        "._a.wav",
        "labels.csv",
        "deep/er/d.wav",
        "f.m4a",
        ".hidden/e.wav",
    ):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    names = [path.name for path in find_clips([tmp_path, tmp_path / "notes.txt", f"{tmp_path}/*.wav", "not-there.wav"])]
    assert names == ["a.FLAC", "b.wav", "c.opus", "d.wav", "f.m4a", "notes.txt", "b.wav", "not-there.wav"]
    for nothing in (tmp_path / "empty", tmp_path / "*.mp3"):
        with pytest.raises(UsageError, match="no sound files"):
            find_clips([nothing])
    with pytest.raises(UsageError, match="is empty"):
        find_clips([""])


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder for who may not read everything, as root may."""
    folder, user = Path(tempfile.mkdtemp()), os.geteuid()
    folder.chmod(0o777)
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    shutil.rmtree(folder)


def test_unreadable_paths_are_reported(unprivileged: Path) -> None:
    (unprivileged / "closed").mkdir(mode=0)
    clip = unprivileged / "clip.wav"
    soundfile.write(clip, np.zeros(100), 16_000)
    clip.chmod(0)
    with pytest.raises(UsageError, match=r"closed: the folder cannot be read \(Permission denied\)"):
        find_clips([unprivileged])
    for path in (clip, unprivileged / "closed" / "clip.wav"):
        with pytest.raises(AudioError, match=r"clip.wav: cannot be read \(Permission denied\)"):
            FileSource(path)
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be read \(Permission denied\)"):
        load(unprivileged / "closed" / "model.onnx")
