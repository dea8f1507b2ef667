"""Measures of a microphone against sounds whose measures are known, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from confit_edge.demo import DATA
from confit_runtime import AudioError, DeviceError, UsageError
from confit_runtime.audio import read_audio, resample
from confit_runtime.channels import ChannelCheck
from confit_runtime.frames import FLOOR_DB, loudest_db
from confit_runtime.recording import record_clip
from confit_runtime.soundcheck import find_fault, findings, soundcheck
from confit_runtime.sources import FileSource, Microphone
from confit_runtime.sources.base import MICROPHONE_AWAY, OVERRUN, downmix
from confit_runtime.voice_activity import trim_silence
from tests.confit_runtime.fake_sounddevice import Back, FakePortAudio
from tests.tiny_model import Floats, silence, tone

RATE = 16_000
RNG = np.random.default_rng(5)


def noise(seconds: float, level: float, rate: int = RATE) -> Floats:
    return RNG.normal(0, level, round(seconds * rate)).astype(np.float32)


def speech(rate: int = RATE) -> Floats:
    """A person who says seven after a second of quiet, over a little noise."""
    pcm, at = read_audio(DATA / "digits-real" / "seven.ogg")
    word = resample(pcm, at, rate)
    return (
        np.concatenate([silence(1.0, rate), word, silence(0.3, rate)])
        + noise(1.3 + len(word) / rate, 1e-3, rate)[: rate + len(word) + round(0.3 * rate)]
    )


def words(check_of: Floats, rate: int = RATE, lost_s: dict[str, float] | None = None) -> str:
    return " | ".join(f"{one.level}: {one.text}" for one in findings(soundcheck(check_of, rate), lost_s=lost_s))


def test_levels_are_measured_correctly() -> None:
    check = soundcheck(np.concatenate([noise(1.0, 0.001), tone(1000, 1.0, RATE, 0.5)]), RATE)
    assert check.peak_db == pytest.approx(20 * np.log10(0.5), abs=0.1)
    assert check.loud_db == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.2)
    assert check.noise_db == pytest.approx(-60, abs=1.0)
    assert (check.clipped, check.holes, check.seconds) == (0.0, 0, 2.0)
    assert abs(check.dc_offset) < 1e-3


def test_a_good_microphone_needs_nothing() -> None:
    assert words(speech()) == "good: nothing to do: it sounds right"
    assert find_fault(soundcheck(speech(), RATE)) is None


@pytest.mark.parametrize(
    ("sound", "level", "said", "fault"),
    [
        (silence(1.0), "bad", "digital silence", "silent"),
        (noise(1.0, 1e-4), "bad", "very quiet", "silent"),
        (np.clip(20 * speech(), -1, 1), "bad", "clipped", "clipped"),
        (0.5 * np.clip(20 * speech(), -1, 1), "bad", "clipped", "clipped"),  # and then made softer
        (0.05 * speech(), "warning", "quiet", None),
        (speech() + noise(9.0, 0.05)[: len(speech())], "warning", "noisy", None),
        (speech() + np.float32(0.1), "warning", "DC offset of +0.100", None),
    ],
)
def test_problems_are_reported(sound: Floats, level: str, said: str, fault: str | None) -> None:
    told = words(sound)
    assert told.startswith(f"{level}: ")
    assert said in told
    found = find_fault(soundcheck(sound, RATE))
    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)


def test_clipping_that_leaves_an_offset_is_not_blamed_on_the_hardware() -> None:
    lopsided = np.clip(20 * speech(), -0.3, 1)
    assert abs(soundcheck(lopsided, RATE).dc_offset) > 0.01
    assert "clipped" in words(lopsided)
    assert "DC offset" not in words(lopsided)


def test_a_narrowband_headset_is_distinguished_from_a_wideband_one() -> None:
    wide = speech(48_000)
    narrow = resample(resample(wide, 48_000, 8_000), 8_000, 48_000)
    assert soundcheck(narrow, 48_000).bandwidth_hz < 4_300
    assert soundcheck(wide, 48_000).bandwidth_hz > 15_000
    assert "hears nothing above" in words(narrow, 48_000)
    assert "hears nothing above" in words(resample(wide, 48_000, 8_000), 8_000)  # whatever rate it claims


def test_a_dc_offset_hides_no_bandwidth_and_counts_in_no_level() -> None:
    sound = 0.03 * speech()
    without, offset = (soundcheck(sound + np.float32(level), RATE) for level in (0.0, 0.2))
    assert offset.bandwidth_hz == pytest.approx(without.bandwidth_hz, rel=0.02)
    assert (offset.loud_db, offset.noise_db) == pytest.approx((without.loud_db, without.noise_db), abs=0.1)
    assert loudest_db(sound + np.float32(0.2), RATE) == pytest.approx(loudest_db(sound, RATE), abs=0.1)
    hour = np.concatenate([0.5 * tone(440, 1.0), silence(100.0)])  # more than is measured at a time
    assert (
        loudest_db(hour, RATE)
        == loudest_db(hour[::-1], RATE)
        == pytest.approx(loudest_db(hour[: 2 * RATE], RATE), abs=0.1)
    )
    assert loudest_db(np.full(100, 0.2, np.float32), RATE) == loudest_db(silence(0.0), RATE) == FLOOR_DB


def test_holes_and_losses_are_counted() -> None:
    torn = speech().copy()
    for at in (17_000, 20_000, 23_000):
        torn[at : at + 160] = 0.0
    check = soundcheck(torn, RATE)
    assert check.holes == 3
    assert find_fault(check) == "some of its sound was lost"
    assert "broke off 3 times" in words(torn)
    assert words(speech(), lost_s={OVERRUN: 0.25}) == (
        "bad: 0.25 s of sound were lost: this machine could not keep up (something else keeps it busy)"
    )
    assert words(speech(), lost_s={MICROPHONE_AWAY: 1.5, "it hiccuped": 0.1}) == (
        "bad: 1.50 s of sound were lost: the microphone was away (unplugged, a loose cable, or a weak power supply)"
        " | bad: 0.10 s of sound were lost: it hiccuped"
    )


def test_sound_that_pauses_or_begins_softly_is_not_torn() -> None:
    paused = speech().copy()
    paused[17_000:20_000] = 0.0  # for longer than a tenth of a second
    assert soundcheck(paused, RATE).holes == 0
    rising = np.linspace(0, 1, RATE // 4, dtype=np.float32) ** 4
    begun = np.concatenate([tone(440, 0.5)[: RATE // 4], silence(0.05), tone(440, 0.5)[: RATE // 4] * rising])
    assert soundcheck(begun, RATE).holes == 0


def test_a_microphone_has_one_fault_at_a_time() -> None:
    assert words(noise(1.0, 1e-4)).count("|") == 0  # so quiet, it cannot be said how far speech is above the noise
    sound, channels = tone(440, 1.0), ChannelCheck()
    channels.hear(downmix((np.stack([sound, -sound], axis=1), RATE)))
    (told,) = findings(soundcheck(0 * sound, RATE, channels))  # which is no silence
    assert "channels cancel each other" in told.text


@pytest.mark.parametrize("release_s", [0.005, 0.03])
def test_a_noise_gate_is_not_a_dropout(release_s: float) -> None:
    """It fades a sound out, until 16 bits of it are zero, and lets the next one in again."""
    time_s = np.arange(int(0.5 * RATE)) / RATE
    gate = np.where(time_s < 13 * release_s, np.exp(-time_s / release_s), 1 - np.exp(-(time_s - 13 * release_s) / 1e-3))
    sound = np.round(np.tile(tone(440, 0.5, level=0.3) * gate, 4) * 32_768) / 32_768
    silent = np.flatnonzero(np.diff(np.concatenate([[0], sound == 0, [0]]).astype(int)))
    assert ((silent[1::2] - silent[::2]) > 0.003 * RATE).any()  # there is digital silence in it
    assert soundcheck(sound.astype(np.float32), RATE).holes == 0


def test_a_room_so_quiet_that_most_samples_are_zero_has_no_holes() -> None:
    hiss = np.random.default_rng(0).normal(0, 0.3 / 32_768, 4 * RATE)
    check = soundcheck((np.round(hiss * 32_768) / 32_768).astype(np.float32), RATE)
    assert check.holes == 0
    assert find_fault(check) is not None
    assert find_fault(check, quiet=True) is None


def test_a_sound_that_is_not_finite_is_not_judged() -> None:
    sound = speech().copy()
    sound[300] = np.nan
    with pytest.raises(AudioError, match="NaN"):
        soundcheck(sound, RATE)


def test_too_little_sound_is_not_judged() -> None:
    with pytest.raises(AudioError, match="too short"):
        soundcheck(silence(0.05), RATE)


# recording


def test_a_clip_begins_after_the_countdown_and_has_its_length() -> None:
    sound = np.repeat(np.arange(40, dtype=np.float32) / 50, 2400)  # a staircase: each tenth of a second another value
    seen: list[float] = []
    with Microphone(portaudio=FakePortAudio(sound, 24_000, real_time=True)) as microphone:
        take = record_clip(microphone, 0.5, countdown_s=0.4, show=lambda to_go, pcm: seen.append(to_go))
    assert len(take.pcm) == 12_000
    assert take.rate == 24_000
    assert take.pcm[0] >= 0.05  # what was said in the countdown is not in it
    assert np.isin(np.round(np.diff(take.pcm) * 50, 3), [0.0, 1.0]).all()
    assert seen[0] < 0.0
    assert seen[-1] == 0.0


def test_a_take_that_lost_sound_is_refused() -> None:
    sound = np.tile(tone(440, 1.0, 24_000), 3)
    machine = FakePortAudio(sound, 24_000, real_time=True, overflows={8: 500})
    with Microphone(portaudio=machine) as microphone:
        assert record_clip(microphone, 0.8).fault == "some of its sound was lost"


def test_a_take_whose_channels_cancel_is_refused_for_that() -> None:
    sound = tone(440, 2.0, 24_000, 0.3)
    both = np.stack([sound, -sound], axis=1)
    with Microphone(portaudio=FakePortAudio(both, 24_000, mono=False, real_time=True)) as microphone:
        fault = record_clip(microphone, 0.5).fault
    assert fault is not None
    assert fault.startswith("its channels cancel each other; use one of them: #1 after a microphone's name")
    with Microphone(channel=1, portaudio=FakePortAudio(both, 24_000, mono=False, real_time=True)) as microphone:
        assert record_clip(microphone, 0.5).fault is None


def test_recording_restarts_when_the_microphone_is_back() -> None:
    before, after = tone(440, 0.6, 24_000), np.repeat(np.arange(30, dtype=np.float32) / 50, 2400)
    machine = FakePortAudio(before, 24_000, real_time=True, then="unplugged", back=Back(after, 24_000, after=2))
    said: list[str] = []
    seen: list[float] = []
    with Microphone(portaudio=machine) as microphone:
        take = record_clip(
            microphone, 0.5, countdown_s=0.3, show=lambda to_go, pcm: seen.append(to_go), notify=said.append
        )
    away, back = said
    assert away.endswith("went away (unplugged?); waiting for it to come back")
    assert back.endswith("is back")
    assert (take.fault, len(take.pcm)) == (None, 12_000)
    assert take.pcm[0] >= 0.05  # a countdown after it was back
    assert np.isin(np.round(np.diff(take.pcm) * 50, 3), [0.0, 1.0]).all()
    assert np.isfinite(seen).all()


def test_recordings_are_not_recorded_again() -> None:
    with (
        FileSource(DATA / "digits-real" / "seven.ogg") as source,
        pytest.raises(UsageError, match="already a recording"),
    ):
        record_clip(source, 1.0)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), "2", None])
def test_invalid_clip_lengths_are_usage_errors(seconds: Any) -> None:
    with Microphone(portaudio=FakePortAudio(tone(440, 1.0, 24_000), 24_000)) as microphone:
        for attempt in (
            lambda: record_clip(microphone, seconds),
            lambda: record_clip(microphone, 0.5, countdown_s=seconds),
        ):
            with pytest.raises(UsageError, match=f"of a clip: must be a number of seconds, .*it is {seconds!r}"):
                attempt()
        with pytest.raises(UsageError, match="the length of a clip"):
            record_clip(microphone, 0.0)


def test_a_source_that_ends_before_the_clip_does() -> None:
    microphone = Microphone(portaudio=FakePortAudio(tone(440, 0.3, 24_000), 24_000), stall_s=0.2, wait_s=0.0)
    with microphone, pytest.raises(DeviceError):
        record_clip(microphone, 2.0)


def test_the_quiet_around_a_word_is_cut_and_the_word_is_not() -> None:
    word = tone(500, 0.6, RATE)
    clip = np.concatenate([silence(0.7), word, silence(0.5)]) + noise(1.8, 1e-4)
    kept = trim_silence(clip, RATE)
    assert len(kept) == pytest.approx(0.9 * RATE, abs=0.05 * RATE)
    np.testing.assert_allclose(np.abs(kept).max(), np.abs(clip).max())
    steady = noise(1.0, 0.1)
    assert len(trim_silence(steady, RATE)) == len(steady)
