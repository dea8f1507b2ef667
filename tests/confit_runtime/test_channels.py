"""What is measured of single channels before they are averaged: clipping, also below full scale, and cancellation."""

from __future__ import annotations

import numpy as np
import pytest

from confit_edge.demo import DATA
from confit_runtime.audio import load_clip, resample
from confit_runtime.channels import ChannelCheck, Clipping
from confit_runtime.sources.base import DownmixedChunk, downmix
from tests.tiny_model import Floats, silence, tone

RATE = 16_000


def speech(rate: int = RATE) -> Floats:
    """Ten digits one after another, with a peak of 1."""
    pcm = np.concatenate([load_clip(path, rate) for path in sorted((DATA / "digits-real").glob("*.ogg"))])
    return pcm / np.abs(pcm).max()


def sixteen_bits(pcm: Floats) -> Floats:
    return (np.round(np.clip(pcm, -1, 1) * 32_767) / 32_768).astype(np.float32)


def clipping(*channels: Floats, size: int = 1280) -> Clipping:
    measure = Clipping()
    pcm = np.stack(channels, axis=1)
    for at in range(0, len(pcm), size):
        measure.hear(pcm[at : at + size])
    return measure


def check(channels: Floats, rate: int = RATE, size: int = 1280) -> ChannelCheck:
    measure = ChannelCheck()
    for at in range(0, len(channels), size):
        measure.hear(downmix((channels[at : at + size], rate)))
    return measure


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("softer", [1.0, 0.8, 0.1])
@pytest.mark.parametrize("size", [800, 10**7])
def test_clipping_is_found_at_any_level_and_chunk_size(rate: int, softer: float, size: int) -> None:
    sound = speech(rate)
    clipped = sixteen_bits(np.float32(softer) * np.clip(8 * sound, -1, 1))
    wanted = np.mean(np.abs(8 * sound) >= 1)  # a flat top of one or two samples is not one
    assert 0.5 * wanted < clipping(clipped, size=size).share < 1.01 * wanted
    assert clipping(sixteen_bits(softer * sound), size=size).share == 0.0


@pytest.mark.parametrize("side", [1, -1])
def test_clipping_on_one_side_is_clipping(side: int) -> None:
    sound = speech()
    half = np.where(sound > 0, np.minimum(8 * sound, 1.0), sound)  # the other half keeps its round peaks
    assert clipping(sixteen_bits(np.float32(0.5 * side) * half)).share > 0.01
    pulses = np.where(np.arange(RATE) % 100 < 30, side, -0.2 * side).astype(np.float32)  # no peak of it is round
    assert clipping(pulses).share == pytest.approx(0.3)


@pytest.mark.parametrize(("run", "share"), [(2, 0.0), (3, 0.03)])
def test_at_full_scale_three_samples_in_a_row_are_clipped(run: int, share: float) -> None:
    assert clipping(np.where(np.arange(RATE) % 100 < run, 1.0, 0.1).astype(np.float32)).share == pytest.approx(share)


def test_what_was_clipped_below_the_loudest_sound_was_not_clipped_here() -> None:
    """Whether the louder sound came before or after."""
    sound = speech()
    music = sixteen_bits(np.float32(0.3) * np.clip(8 * sound, -1, 1))  # as it was bought, from a loudspeaker
    assert clipping(music).share > 0.05
    assert clipping(np.concatenate([music, 0.9 * sound])).share == 0.0
    assert clipping(np.concatenate([0.9 * sound, music])).share == 0.0


def test_a_single_flat_top_is_not_clipping() -> None:
    sound = sixteen_bits(0.5 * speech())
    top = int(sound.argmax())
    sound[top - 2 : top + 3] = [0.48, 0.52, 0.52, 0.52, 0.48]
    assert clipping(sound).share == 0.0


def test_a_pulse_that_rises_gently_is_not_clipped() -> None:
    """Its top is nearly flat, and steep on one side only."""
    phase = 2 * np.pi * 100 * np.arange(48_000) / 48_000
    pulses = np.where(phase % (2 * np.pi) < np.pi / 2, np.sin(phase), 0.4 * np.sin(8 * phase))
    assert clipping(sixteen_bits(0.5 * pulses)).share == 0.0
    assert clipping(sixteen_bits(0.5 * pulses[::-1])).share == 0.0


def test_an_alarm_with_a_rippled_tone_is_not_clipped() -> None:
    """Ripples near the top of a square wave are not the round peaks of a sound that was clipped."""
    at = np.arange(2 * RATE)
    ripples = np.where(at % 200 < 100, 0.5, 0.47 + 0.01 * np.sin(at))
    assert clipping(sixteen_bits(np.where(at % 50 < 25, ripples, -0.2))).share == 0.0


@pytest.mark.parametrize("frequency", [100, 440, 1000, 2731, 3000])
@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("shape", [np.sin, lambda phase: np.sign(np.sin(phase) + 1e-9)])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.02])
def test_a_beep_is_not_clipped(frequency: int, rate: int, shape: np.ufunc, noise: float) -> None:
    """A square wave is flat by nature, and a low sine has three samples that are nearly equal."""
    time = np.arange(2 * rate) / rate
    beep = 0.5 * shape(2 * np.pi * frequency * time) * (time % 0.5 < 0.25)
    hiss = noise * np.random.default_rng(0).standard_normal(len(beep))
    assert clipping(sixteen_bits((beep + hiss).astype(np.float32))).share == 0.0


@pytest.mark.parametrize("level", [0.0, 1e-4, 2e-3, 0.02])
def test_quiet_sound_is_not_clipped(level: float) -> None:
    hiss = np.random.default_rng(0).normal(0, level, 4 * RATE).astype(np.float32)
    for quiet in (sixteen_bits(hiss), sixteen_bits(level * speech()), np.full(RATE, level, np.float32)):
        assert clipping(quiet).share == 0.0


def test_sound_that_was_compressed_or_resampled_is_not_clipped() -> None:
    for clip in sorted((DATA / "background").rglob("*.ogg"))[:3]:
        pcm = load_clip(clip, RATE)[: 20 * RATE]
        pcm *= 0.9 / np.abs(pcm).max()
        assert clipping(sixteen_bits(pcm)).share == 0.0
        assert clipping(sixteen_bits(0.8 * resample(pcm, RATE, 44_100))).share == 0.0


def test_one_clipped_channel_of_two_is_found_before_they_are_averaged() -> None:
    sound = speech()
    clipped = np.clip(8 * sound, -1, 1)
    both = np.stack([sixteen_bits(0.5 * sound), sixteen_bits(clipped)], axis=1)
    assert clipping(*both.T).share == clipping(both[:, 1]).share > 0.02
    assert clipping(both.mean(axis=1)).share == 0.0
    assert check(both).clipped == clipping(both[:, 1]).share
    assert not check(both).cancelled


def test_channels_of_opposite_polarity_cancel() -> None:
    rng, sound = np.random.default_rng(0), np.float32(0.1) * speech()
    hiss = rng.normal(0, 1e-3, (len(sound), 2)).astype(np.float32)
    assert check(np.stack([sound, -sound], axis=1) + hiss).cancelled
    assert check(np.stack([sound, -0.5 * sound], axis=1) + hiss).cancelled
    assert check(np.stack([sound, -sound], axis=1) + np.float32([0.3, 0.1])).cancelled  # whatever their offsets


@pytest.mark.parametrize(("channels", "limit"), [(2, -0.5), (4, -1 / 6)])
def test_channels_cancel_if_less_than_half_is_left_of_what_unrelated_ones_leave(channels: int, limit: float) -> None:
    """Of n channels with correlations r, the mean has (1 + (n - 1) r) / n of a channel's power, unrelated ones 1 / n."""
    rng = np.random.default_rng(0)
    for nearer, cancelled in ((0.9, False), (1.1, True)):
        correlation = np.full((channels, channels), nearer * limit) + (1 - nearer * limit) * np.eye(channels)
        sound = 0.1 * rng.standard_normal((RATE, channels)) @ np.linalg.cholesky(correlation).T
        assert check(sound.astype(np.float32)).cancelled == cancelled


def test_channels_that_differ_do_not_cancel() -> None:
    rng, sound = np.random.default_rng(0), np.float32(0.1) * speech()
    other = rng.normal(0, 0.1, (len(sound), 7)).astype(np.float32)
    assert not check(sound).cancelled
    assert not check(np.stack([sound, np.roll(sound, 8)], axis=1)).cancelled  # 17 cm apart
    assert not check(np.column_stack([sound, 0 * other])).cancelled  # one of eight has sound
    assert not check(np.column_stack([sound, other])).cancelled
    quiet = np.float32(1e-2) * sound
    assert not check(np.stack([quiet, -quiet], axis=1)).cancelled  # too faint to say
    short = tone(440, 0.15)
    assert not check(np.stack([short, -short], axis=1)).cancelled  # and too short


def test_a_chunk_keeps_the_channels_it_was_averaged_from() -> None:
    left, right = tone(440, 0.1), silence(0.1)
    pcm = (np.stack([left, right], axis=1) * 32_767).astype(np.int16)
    chunk = downmix((pcm, RATE))
    assert isinstance(chunk, DownmixedChunk)
    np.testing.assert_array_equal(chunk.channels, pcm / np.float32(32_768))
    np.testing.assert_array_equal(chunk[0], chunk.channels.mean(axis=1))
    assert downmix(chunk) is chunk
    assert not isinstance(downmix((pcm[:, :1], RATE)), DownmixedChunk)


def test_another_number_of_channels_begins_a_new_sound() -> None:
    loud = np.ones((RATE, 1), np.float32)
    measure = Clipping()
    for channels in (loud, np.hstack([0.1 * loud, 0.2 * loud])):
        measure.hear(channels)
    assert measure.share == 0.0
    measure.hear(loud)
    assert measure.share == 1.0


def test_a_chunk_without_samples_changes_no_measure() -> None:
    """Whatever its number of channels, which otherwise begins a new sound."""
    loud = np.clip(np.random.default_rng(0).normal(0, 2, RATE), -1.0, 1.0).astype(np.float32)
    measure = check(np.stack([loud, -loud], axis=1))
    clipped, cancelled = measure.clipped, measure.cancelled
    measure.hear((np.zeros(0, np.float32), RATE))
    assert (measure.clipped, measure.cancelled) == (clipped, cancelled)
    assert clipped > 0.1
    assert cancelled
