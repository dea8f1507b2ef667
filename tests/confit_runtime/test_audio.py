"""Decoding and resampling: any format, rate and layout; damage is noticed; streaming resampling is exact."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confit_runtime import AudioError, Model, UsageError, listen
from confit_runtime.audio import (
    StreamResampler,
    check_rate,
    check_samples,
    decode_channels,
    load_clip,
    open_sound,
    read_audio,
    resample,
    sound_seconds,
    to_mono,
)
from confit_runtime.sources import Gap, Microphone
from confit_runtime.sources.base import chunk_or_gap
from tests.confit_runtime.fake_sounddevice import FakePortAudio
from tests.tiny_model import silence, tone


def test_whole_numbers_are_full_scale_at_their_least() -> None:
    assert to_mono(np.array([-32_768, 0, 16_384], np.int16)).tolist() == [-1.0, 0.0, 0.5]
    assert to_mono(np.array([-(2**31), 2**30], np.int32)).tolist() == [-1.0, 0.5]


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_U8"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("aiff", "PCM_16")],
)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_reads_any_file(tmp_path: Path, suffix: str, subtype: str, channels: int, rate: int) -> None:
    path = tmp_path / f"clip.{suffix}"
    wave = tone(440, 0.5, rate)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype=subtype)
    pcm, got = read_audio(path)
    assert (got, pcm.dtype, pcm.shape) == (rate, np.float32, wave.shape)
    np.testing.assert_allclose(pcm, wave, atol=0.01)


@pytest.mark.parametrize("suffix", ["ogg", "mp3", "opus"])
def test_reads_compressed_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(
        path, tone(440, 1.0, 48_000), 48_000, format="OGG" if suffix == "opus" else None, subtype=_subtype(suffix)
    )
    pcm, rate = read_audio(path)
    assert abs(len(pcm) / rate - 1.0) < 0.01


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_mp3_of_a_low_bit_rate_is_the_same_by_blocks(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "clip.mp3"
    soundfile.write(path, NOISE, rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.9)
    whole, _ = soundfile.read(path, dtype="float32")
    with open_sound(path) as sound:
        by_blocks = np.concatenate(list(decode_channels(sound, block=4096)))[:, 0]
    np.testing.assert_allclose(by_blocks, whole, atol=1e-6)


NO_SOUND = b"\xff\xfb" + np.random.default_rng(1).bytes(200_000)  # such as a picture


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_with_tags_is_read_to_its_end(tmp_path: Path, rate: int, mode: str) -> None:
    path, seconds = tmp_path / "clip.mp3", 30
    noise = np.stack([np.resize(NOISE, rate * seconds)] * 2, axis=1)
    soundfile.write(path, noise, rate, bitrate_mode=mode, compression_level=0.5)
    data, size = path.read_bytes(), len(NO_SOUND)
    id3 = b"ID3\x03\0\0" + bytes(size >> 7 * place & 0x7F for place in (3, 2, 1, 0)) + NO_SOUND
    ape = b"APETAGEX" + bytes(24) + NO_SOUND + b"APETAGEX" + bytes(24)
    told, *guessed = [data, data.replace(b"Info", bytes(4), 1)] if mode == "CONSTANT" else [data]
    for content in (
        told,
        id3 + told,
        told + ape,
        told + b"TAG" + bytes(125),
        *guessed,
        *(one + bytes(5_000) for one in guessed),
        *(one + b"garbage" * 700 for one in guessed),
        *(one + ape for one in guessed),
    ):
        path.write_bytes(content)
        pcm, _ = read_audio(path)
        assert len(pcm) / rate == pytest.approx(seconds, abs=10_000 / rate)
        assert sound_seconds(path) == pytest.approx(len(pcm) / rate, abs=0.1)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_an_mp3_that_is_read_in_part_is_refused(tmp_path: Path, rate: int) -> None:
    path, fading = tmp_path / "clip.mp3", np.concatenate([np.resize(NOISE, rate * 5), silence(15, rate)])
    soundfile.write(path, fading, rate, bitrate_mode="VARIABLE", compression_level=0.5)
    data = path.read_bytes()
    assert len(read_audio(path)[0]) == len(fading)
    joined, silent_about_it = data + data, data.replace(b"Xing", bytes(4), 1)
    for content, there, read in ((joined, r"4\d\.\d", r"20\.0"), (silent_about_it, r"20\.\d", r"\d\.\d")):
        path.write_bytes(content)
        with pytest.raises(
            AudioError, match=rf"clip\.mp3: contains about {there} s of sound, of which only {read} s can be"
        ):
            sound_seconds(path)


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
@pytest.mark.parametrize("seconds", [2, 100])
def test_ogg_streams_that_were_joined_are_refused(tmp_path: Path, suffix: str, seconds: int) -> None:
    path, parts = tmp_path / f"clip.{suffix}", []
    for _ in range(2):
        noise = np.resize(NOISE, 48_000 * seconds)
        with soundfile.SoundFile(path, "w", 48_000, 1, format="OGG", subtype=_subtype(suffix)) as sound:
            for block in np.split(noise, seconds):
                sound.write(block)
        parts.append(path.read_bytes())
    assert sound_seconds(path) == seconds
    first, second = parts
    for joined in (first + second, first + b"\n" + second, first[: len(first) * 2 // 3] + second):
        path.write_bytes(joined)
        with pytest.raises(
            AudioError, match=rf"clip\.{suffix}: contains several joined streams, of which only the first can"
        ):
            open_sound(path)
    path.write_bytes(first + b"garbage" * 99)
    assert sound_seconds(path) == seconds


def test_a_flac_that_does_not_say_how_long_it_is_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pipe.flac"
    soundfile.write(path, tone(440, 1.0, 8_000), 8_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of its length, in the first block
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert sound_seconds(path) == 1.0
    assert len(read_audio(path)[0]) == 8_000


@pytest.mark.parametrize("told", [True, False])
def test_a_file_of_hours_is_not_read_whole_unless_that_is_asked_for(tmp_path: Path, told: bool) -> None:
    """A megabyte of FLAC may be gigabytes of samples."""
    path = tmp_path / "hours.flac"
    with soundfile.SoundFile(path, "w", 1000, 1, "PCM_16") as file:
        for _ in range(61):
            file.write(np.ones(60_000, np.int16))
    if not told:  # as of one that was written to a pipe
        data = bytearray(path.read_bytes())
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        path.write_bytes(data)
    message = r"hours\.flac: is longer than 60 minutes, the limit for files read as a whole: cut it$"
    for read in (read_audio, lambda path: load_clip(path, 16_000)):
        with pytest.raises(AudioError, match=message):
            read(path)
    assert len(read_audio(path, None)[0]) == 3_660_000
    assert len(read_audio(path, 3660)[0]) == 3_660_000


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 192_000])
def test_a_clip_is_resampled_as_it_is_read_to_the_very_samples_of_the_whole(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "clip.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (round(1.9 * rate), 2))
    soundfile.write(path, noise, rate, subtype="FLOAT")
    pcm, _ = read_audio(path, 60)
    assert load_clip(path, 16_000, 2).tobytes() == resample(pcm, rate, 16_000).tobytes()  # 2 s of any rate


def test_reads_unseekable_files(tmp_path: Path) -> None:
    path = tmp_path / "telephone.wav"
    soundfile.write(path, tone(440, 1.0, 8_000), 8_000, subtype="GSM610")
    pcm, rate = read_audio(path)
    assert (rate, len(pcm)) == (8_000, 8_320)  # whole blocks of the codec
    assert np.abs(pcm).max() > 0.2


@pytest.mark.parametrize("suffix", ["flac", "ogg", "opus"])
def test_damage_in_the_middle_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    noise = np.tile(NOISE, 3)  # several Ogg pages
    soundfile.write(path, noise, 48_000, format="OGG" if suffix == "opus" else None, subtype=_subtype(suffix))
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(3000) + data[middle + 3000 :])
    with pytest.raises(AudioError, match=path.name):
        read_audio(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(["wav", "flac", "ogg", "aiff", "w64", "au"]),
    changes=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.integers(0, 3000),
)
def test_a_damaged_header_is_an_audio_error_or_sound(
    tmp_path: Path, suffix: str, changes: list[tuple[int, int]], cut: int
) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, NOISE[:2000], 16_000)
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(data[: max(0, len(data) - cut)])
    try:
        pcm, rate = read_audio(path)
    except AudioError as error:
        outcome = str(error)
    else:
        outcome = f"{path}: {pcm.ndim} dimension at {rate} Hz"
    assert outcome.startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"hello, I am text\n", b"RIFF", bytes(500)])
def test_invalid_files_are_audio_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"clip\.wav"):
        read_audio(path)


def test_headerless_pcm_is_an_audio_error(tmp_path: Path) -> None:
    path = tmp_path / "clip.raw"
    path.write_bytes(bytes(1000))
    with pytest.raises(AudioError, match=r"clip\.raw"):
        read_audio(path)


def test_missing_files_and_folders_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_audio(tmp_path / "clip.wav")
    with pytest.raises(UsageError, match="is a folder"):
        read_audio(tmp_path)


def test_a_clip_must_hold_finite_samples(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, silence(0), 16_000)
    with pytest.raises(AudioError, match="no samples"):
        load_clip(path, 16_000)
    soundfile.write(path, np.float32([0.0, np.nan, 0.0]), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN"):
        load_clip(path, 16_000)
    for large, said in ((3e38, r"3e\+38"), (-12_345, "12345"), (-128, "128")):  # floats of the scale of int16 and int8
        soundfile.write(path, np.float32([0.0, large, 0.0]), 16_000, subtype="FLOAT")
        with pytest.raises(AudioError, match=rf"clip\.wav: holds samples up to {said}, but sound lies in -1\.\.1"):
            load_clip(path, 16_000)
    soundfile.write(path, np.float32([0.0, -8.0, 0.0]), 16_000, subtype="FLOAT")  # +18 dBFS, as a workstation may mix
    assert load_clip(path, 16_000).min() == -8.0


def test_an_absurd_rate_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, NOISE, 500)
    with pytest.raises(AudioError, match=r"clip\.wav.*500 Hz"):
        read_audio(path)


@pytest.mark.parametrize(
    ("pcm", "value"),
    [
        (np.int16([-32768, 16384]), [-1.0, 0.5]),
        (np.int32([-(2**31), 2**30]), [-1.0, 0.5]),
        (np.array([-32768, 16384], ">i2"), [-1.0, 0.5]),
        (np.uint8([0, 192]), [-1.0, 0.5]),
        (np.float64([-1.0, 0.5]), [-1.0, 0.5]),
        (np.float32([[-1.0, -1.0], [0.0, 1.0]]), [-1.0, 0.5]),
        (np.int16([[-32768, -32768], [0, 32767]]), [-1.0, 0.5]),
    ],
)
def test_to_mono_takes_any_pcm(pcm: Any, value: list[float]) -> None:
    mono = to_mono(pcm)
    assert mono.dtype == np.float32
    np.testing.assert_allclose(mono, value, atol=1e-4)


@pytest.mark.parametrize(
    "pcm",
    [
        np.zeros((2, 2, 2), np.float32),
        np.zeros(3, bool),
        np.zeros(3, np.uint16),
        np.float32(0),
        np.zeros(3, np.int64),
        [0, 12_000, -12_000],  # int16 in a list: divided by the range of int64 they would be silence
        [[0.0], [0.0, 0.0]],
        np.zeros((320, 0), np.float32),  # no channels, of which the mean would be NaN
    ],
)
def test_to_mono_rejects_invalid_pcm(pcm: Any) -> None:
    with pytest.raises(AudioError):
        to_mono(pcm)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pcm", [np.float32([[np.inf, -np.inf]]), np.float64([1e300])])
def test_infinite_samples_raise_an_error_without_warnings(pcm: Any) -> None:
    """numpy's own warnings would stand among what a program prints."""
    with pytest.raises(AudioError, match="holds NaN or infinite samples"):
        check_samples(to_mono(pcm), "the pipe")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pair", [(1e30, -1e30), (3e38, 3e38), (150.0, -150.0)])
def test_channels_that_are_not_sound_are_not_averaged_into_sound(pair: tuple[float, float]) -> None:
    """Opposite channels cancel in the mean; the sum of large ones overflows, of which numpy warns."""
    pcm = np.full((100, 2), pair, np.float32)
    with pytest.raises(AudioError, match=re.escape(f"holds samples up to {pair[0]:.5g}, ")):
        check_samples(to_mono(pcm), "the pipe")
    assert isinstance(chunk_or_gap((pcm, 16_000), "the pipe"), Gap)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_to_mono_does_not_guess_the_format_of_bytes(kind: Any) -> None:
    """Of 16-bit PCM each byte would be a sample."""
    pcm = np.int16([-32768, 16384])
    with pytest.raises(AudioError, match=r"numpy\.frombuffer\(pcm, '<i2'\)"):
        to_mono(kind(pcm.tobytes()))
    assert to_mono(memoryview(pcm)).tolist() == [-1.0, 0.5]  # which tells what it holds


@pytest.mark.parametrize("rate", [0, -16_000, 999, 1e9, 16_000.5, float("nan"), float("inf")])
def test_absurd_rates_are_usage_errors(rate: float) -> None:
    with pytest.raises(UsageError, match="sample rate"):
        check_rate(rate)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 20_000), max_size=12))
def test_streamed_resampling_does_not_depend_on_chunk_sizes(rate: int, cuts: list[int]) -> None:
    sound = NOISE[:20_000]
    whole, chopped = StreamResampler(rate, 16_000), StreamResampler(rate, 16_000)
    wanted = np.concatenate([whole.push(sound), whole.finish()])
    got = np.concatenate([*(chopped.push(part) for part in np.split(sound, sorted(cuts))), chopped.finish()])
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(wanted, resample(sound, rate, 16_000)[: len(wanted)], atol=1e-4)
    assert abs(len(wanted) - len(sound) * 16_000 / rate) <= 1


def test_resampling_keeps_time_and_pitch() -> None:
    np.testing.assert_allclose(
        resample(tone(440, 0.5, 48_000), 48_000, 16_000)[200:-200], tone(440, 0.5, 16_000)[200:-200], atol=2e-3
    )


def test_a_microphone_of_the_models_own_rate_hears_with_a_soxr_that_cannot_be_loaded(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "soxr.py").write_text('raise ImportError("libsoxr.so.0: cannot open shared object file")')
    monkeypatch.delitem(sys.modules, "soxr", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    scene = np.concatenate([silence(0.5), tone(500, 0.5), silence(0.5)])
    microphone = Microphone(portaudio=FakePortAudio(scene, 16_000))
    assert [event.label for event in listen(model, microphone, seconds=1.5)] == ["low"]


def test_sound_of_the_models_own_rate_needs_no_soxr(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    scene, rate = np.concatenate([silence(0.5), tone(500, 0.5), silence(0.5)]), 16_000
    soundfile.write(tmp_path / "low.wav", scene, rate)
    assert model.classify(tmp_path / "low.wav").label == "low"
    assert [event.label for event in listen(model, tmp_path / "low.wav")] == ["low"]
    microphone = Microphone(portaudio=FakePortAudio(scene, rate))
    assert [event.label for event in listen(model, microphone, seconds=1.5)] == ["low"]
    stream, why = model.stream(), r"resampling sound from 44100 Hz to 16000 Hz needs soxr .*: pip install soxr"
    with pytest.raises(UsageError, match=why):
        stream.accept(scene, 44_100)
    assert [event.label for event in stream.accept(scene, rate)] == ["low"]
    with pytest.raises(UsageError, match=why):
        model.classify(scene, 44_100)
    soundfile.write(tmp_path / "low.wav", scene, 44_100)
    with pytest.raises(UsageError, match=why):
        model.classify(tmp_path / "low.wav")


def _subtype(suffix: str) -> str | None:
    return "OPUS" if suffix == "opus" else None
