"""Where a clip holds a voice: real speech kept, silence, noise and clicks left out, whatever the rate and level."""

from __future__ import annotations

import numpy as np
import pytest

from confit_edge.demo import DATA
from confit_runtime.audio import load_clip, resample
from confit_runtime.voice_activity import (
    active_seconds,
    active_segments,
    remove_pauses,
    voiced_seconds,
    voiced_segments,
)
from tests.tiny_model import Floats, silence, tone


def speech(rate: int = 16_000) -> Floats:
    return load_clip(DATA / "digits-real" / "seven.ogg", rate)


def test_words_between_silences_are_found_where_they_are() -> None:
    word = speech()
    clip = np.concatenate([silence(1.0), word, silence(1.5), word, silence(0.5)])
    first, second = voiced_segments(clip, 16_000)
    for (start, end), at in ((first, 16_000), (second, 40_000 + len(word))):
        assert at - 1600 <= start < end <= at + len(word) + 1600
        assert end - start > 0.4 * len(word)


@pytest.mark.parametrize("rate", [8_000, 44_100])
@pytest.mark.parametrize("gain", [0.1, 0.9])
def test_neither_rate_nor_level_matter_much(rate: int, gain: float) -> None:
    clip = np.concatenate([silence(0.5), speech(), silence(0.5)])
    seconds = voiced_seconds(clip, 16_000)
    other = resample(clip, 16_000, rate) * np.float32(gain)
    assert voiced_seconds(other, rate) == pytest.approx(seconds, abs=0.1)


def test_noise_silence_and_clicks_are_no_voice() -> None:
    rng = np.random.default_rng(0)
    assert voiced_seconds(rng.normal(0, 0.1, 32_000).astype(np.float32), 16_000) < 0.1
    clicks = silence(2.0)
    clicks[::8000] = 0.9
    for clip in (silence(2.0), silence(0.0), clicks, tone(500, 0.01)):
        assert voiced_segments(clip, 16_000) == []


@pytest.mark.parametrize("below_db", [20, 30])
def test_a_hum_under_the_words_is_no_voice(below_db: int) -> None:
    clip = np.concatenate([silence(1.0), speech(), silence(1.5), speech(), silence(1.0)])
    level = float(np.sqrt(2 * np.square(speech()).mean())) * 10 ** (-below_db / 20)
    found = voiced_segments(clip + tone(120, len(clip) / 16_000, level=level), 16_000)
    for segment, clean in zip(found, voiced_segments(clip, 16_000), strict=True):
        assert segment == pytest.approx(clean, abs=3200)


def test_a_much_quieter_voice_is_not_voice() -> None:
    soft = speech() * np.float32(10 ** (-40 / 20))
    assert voiced_segments(np.concatenate([silence(1.0), soft, silence(1.0)]), 16_000)
    clip = np.concatenate([silence(1.0), speech(), silence(1.0), soft, silence(1.0)])
    assert max(end for _, end in voiced_segments(clip, 16_000)) < 2.2 * 16_000


@pytest.mark.parametrize(("seconds", "found"), [(0.03, 0), (0.06, 1)])
def test_a_burst_that_is_too_short_is_no_voice(seconds: float, found: int) -> None:
    clip = np.concatenate([silence(1.0), tone(500, seconds), silence(1.0)])
    assert len(voiced_segments(clip, 16_000)) == found


@pytest.mark.parametrize("quiet_s", [0.1, 0.6])
def test_a_segment_begins_and_ends_equally_far_from_its_sound(quiet_s: float) -> None:
    """By at most a frame and 30 ms, however short the quiet around it."""
    quiet = round(quiet_s * 16_000)
    clip = np.zeros(512 + 160 * 200, np.float32)  # whole steps after the first frame, forwards and backwards
    clip[quiet:-quiet] = tone(500, 2.0)[: len(clip) - 2 * quiet]
    ((start, end),) = voiced_segments(clip, 16_000)
    assert voiced_segments(np.ascontiguousarray(clip[::-1]), 16_000) == [(len(clip) - end, len(clip) - start)]
    assert quiet - 992 <= start < quiet


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(("level_db", "seconds"), [(-64, 1.0), (-66, 0.0)])
def test_a_voice_below_65_db_is_too_soft_at_any_rate(rate: int, level_db: float, seconds: float) -> None:
    sound = tone(500, 1.0, rate, level=2**0.5 * 10 ** (level_db / 20))
    assert voiced_seconds(sound, rate) == pytest.approx(seconds, abs=0.05)


def test_segments_are_apart_and_in_order_in_noisy_speech() -> None:
    rng = np.random.default_rng(1)
    clip = np.concatenate([part for _ in range(4) for part in (speech(), silence(0.7))])
    clip = clip + rng.normal(0, 0.002, len(clip)).astype(np.float32)
    segments = voiced_segments(clip, 16_000)
    flat = [edge for segment in segments for edge in segment]
    assert len(segments) >= 4
    assert flat == sorted(set(flat))
    assert 0 <= flat[0] < flat[-1] <= len(clip)


def test_long_pauses_are_cut_and_short_ones_kept() -> None:
    word = speech()
    clip = np.concatenate([silence(2.0), word, silence(0.3), word, silence(3.0), word, silence(2.0)])
    cut = remove_pauses(clip, 16_000)
    assert voiced_seconds(clip, 16_000) <= len(cut) / 16_000 <= 3 * len(word) / 16_000 + 0.3 + 4 * 0.35
    assert len(remove_pauses(np.concatenate([word, silence(0.3), word]), 16_000)) >= 2 * len(word) + 0.25 * 16_000
    assert len(remove_pauses(silence(3.0), 16_000)) == 0


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_sounding_seconds(rate: int) -> None:
    clip = np.concatenate(
        [silence(1.0, rate), tone(440, 0.5, rate), silence(1.0, rate), tone(440, 0.3, rate, level=0.1)]
    )
    assert active_seconds(clip, rate) == pytest.approx(0.8, abs=0.04)
    assert active_seconds(clip * np.float32(1e-3), rate) == 0.0
    assert active_seconds(silence(1.0, rate), rate) == active_seconds(silence(0.0, rate), rate) == 0.0


@pytest.mark.parametrize("offset", [0.01, -0.05])
def test_a_dc_offset_does_not_sound(offset: float) -> None:
    clip = np.concatenate([silence(1.0), tone(440, 0.06), silence(1.0)])
    assert active_seconds(clip + np.float32(offset), 16_000) == pytest.approx(0.06, abs=0.02)
    assert active_seconds(silence(1.0) + np.float32(offset), 16_000) == 0.0


def test_sound_in_an_incomplete_last_frame_counts() -> None:
    assert active_seconds(np.concatenate([silence(1.0), tone(1000, 0.01)]), 16_000) == 0.02


def test_hiss_and_a_dc_offset_do_not_join_what_pauses() -> None:
    hiss = np.random.default_rng(0).normal(0, 0.3 * 2**-0.5 * 10 ** (-20 / 20), 3 * 16_000).astype(np.float32)
    sound = np.concatenate([tone(440, 0.5), silence(1.0), tone(440, 0.5), silence(1.0)]) + hiss
    segments = active_segments(sound, 16_000)
    assert [round(edge / 16_000, 1) for segment in segments for edge in segment] == pytest.approx(
        [0, 0.6, 1.4, 2.2], abs=0.11
    )
    assert active_segments(sound + np.float32(0.3), 16_000) == segments


def test_a_click_does_not_hide_a_softer_sound() -> None:
    sound = np.concatenate([silence(1.0), tone(440, 0.5, level=0.02), silence(2.0)])
    (segment,) = active_segments(sound, 16_000)
    sound[40_000:40_160] = 1.0
    assert segment in active_segments(sound, 16_000)


def test_frames_far_below_the_loudest_are_not_active() -> None:
    loud, soft, softer = (tone(440, 0.5, level=0.5 * 10 ** (-below / 20)) for below in (0, 35, 45))
    assert active_seconds(np.concatenate([loud, soft]), 16_000) == pytest.approx(1.0, abs=0.04)
    assert active_seconds(np.concatenate([loud, softer]), 16_000) == pytest.approx(0.5, abs=0.04)
    assert active_seconds(softer, 16_000) == pytest.approx(0.5, abs=0.04)
