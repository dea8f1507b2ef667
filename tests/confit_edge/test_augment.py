"""Augmentation does what it was asked for: place, level and noise, measured."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from confit_edge.data.augment import (
    Augmenter,
    change_speed,
    chords,
    coloured_noise,
    crop,
    noise_gain,
    place,
    rms,
    varied,
)
from confit_edge.data.corpus import UNKNOWN, Corpus
from confit_edge.encoders import pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.yamnet import YAMNet
from confit_edge.pairtune.items import training_items
from confit_edge.recipe import Recipe
from confit_edge.windows import make_augmenter
from tests.confit_edge.sounds import noise

RATE, WINDOW = 16_000, 8_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(length=st.integers(1, 40), window=st.integers(1, 40), shift=st.integers(-50, 50))
def test_a_clip_is_placed_to_the_sample(length: int, window: int, shift: int) -> None:
    clip = np.arange(1, length + 1, dtype=np.float32)
    placed = place(clip, window, shift, rng())
    assert placed.shape == (window,)
    if length > window:  # anywhere, but in one piece
        assert np.array_equal(placed, np.arange(placed[0], placed[0] + window))
        return
    expected = np.zeros(window)
    for at, value in enumerate(clip):
        where = (window - length) // 2 + shift + at
        if 0 <= where < window:
            expected[where] = value
    assert np.array_equal(placed, expected)


def test_a_crop_may_begin_anywhere_and_a_short_recording_is_repeated() -> None:
    recording = np.arange(10, dtype=np.float32)
    generator = rng()
    starts = {int(crop(recording, 7, generator)[0]) for _ in range(200)}
    assert starts == {0, 1, 2, 3}
    repeated = crop(recording, 25, generator)
    assert len(repeated) == 25
    assert np.array_equal(np.diff(repeated) % 10, np.ones(24))


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_coloured_noise_falls_with_its_slope(slope: float) -> None:
    noise = coloured_noise(1 << 16, slope, rng())
    assert noise.dtype == np.float32
    assert rms(noise) == pytest.approx(1.0, abs=1e-3)
    power = np.abs(np.fft.rfft(noise)) ** 2
    bands = [power[low : 2 * low].mean() for low in (16, 64, 256, 1024, 4096, 16384)]
    found = -np.polyfit(np.log([16, 64, 256, 1024, 4096, 16384]), np.log(bands), 1)[0]
    assert found == pytest.approx(slope, abs=0.15)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
def test_noise_gain_brings_the_noise_to_the_ratio(snr: float) -> None:
    clip, hum = noise(3000), noise(9000, 1, level=3.0)
    found = 20 * np.log10(rms(clip) / rms(hum * noise_gain(clip, hum, snr)))
    offset = np.float32(0.05)  # of the microphone
    np.testing.assert_allclose(
        [noise_gain(clip + offset, hum, snr), noise_gain(clip, hum + offset, snr)],
        noise_gain(clip, hum, snr),
        rtol=1e-4,
    )
    assert found == pytest.approx(snr, abs=0.01)
    assert noise_gain(clip, np.zeros(10, np.float32), snr) == 0
    assert noise_gain(np.zeros(10, np.float32), hum, snr) == 0
    assert rms(np.zeros(0, np.float32)) == 0


@pytest.mark.parametrize("background", [False, True])
def test_without_babble_no_other_clip_is_heard(background: bool) -> None:
    """Where clips may have several labels, another clip under one would be a label that it lacks."""
    time = np.arange(4000) / 16_000
    loud = [np.sin(2 * np.pi * 3000 * time).astype(np.float32) for _ in range(15)]
    quiet = np.zeros(50_000, np.float32)
    augment = Augmenter(WINDOW, noise_probability=1.0, background=(quiet,) if background else (), babble=False)
    low = np.sin(2 * np.pi * 200 * time).astype(np.float32)
    for seed in range(10):
        window = augment([low, *loud], np.random.default_rng(seed))[0]
        spectrum = np.abs(np.fft.rfft(window * np.hanning(WINDOW)))
        band = np.fft.rfftfreq(WINDOW, 1 / 16_000)
        assert spectrum[(band > 2900) & (band < 3100)].max() < 0.2 * spectrum.max()


@pytest.mark.parametrize("background", [False, True])
def test_noise_is_mixed_at_a_ratio_within_the_range(background: bool) -> None:
    recordings = (noise(50_000, 7, 0.9), noise(3_000, 8, 0.001)) if background else ()
    clips = [noise(4000, seed) for seed in range(16)]
    augment = Augmenter(WINDOW, 0, 0.0, 1.0, (3.0, 9.0), recordings)
    windows = augment(clips, rng())
    assert windows.shape == (16, WINDOW)
    assert windows.dtype == np.float32
    ratios = []
    for clip, window in zip(clips, windows, strict=True):
        rest = window - place(clip, WINDOW, 0, rng())
        if rms(rest) > 0:  # babble may have been moved out of the window
            ratios.append(20 * np.log10(rms(clip) / rms(rest)))
    assert len(ratios) >= 12
    assert min(ratios) >= 2.99
    assert max(ratios) <= 9.01
    assert max(ratios) - min(ratios) > 2


@pytest.mark.parametrize("factor", [0.5, 0.8, 0.93, 1.0, 1.25, 1.5])
def test_speed_changes_length_and_pitch_together(factor: float) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    changed = change_speed(tone, factor)
    assert len(changed) == pytest.approx(16_000 / factor, abs=1)
    assert changed.dtype == np.float32
    middle = changed[len(changed) // 4 : -len(changed) // 4]
    peak = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * 16_000 / len(middle)
    assert peak == pytest.approx(1000 * factor, rel=0.01)


def test_clips_are_slowed_and_sped_up_to_the_limit() -> None:
    clip = noise(2_000)
    windows = Augmenter(WINDOW, 0, 0.0, 0.0, (0.0, 0.0), speed=0.2)([clip] * 60, rng())
    lengths = [int(np.ptp(np.flatnonzero(np.abs(window) > 1e-3))) for window in windows]
    assert 2_000 / 1.2 - 60 <= min(lengths) < 1_800
    assert 2_300 < max(lengths) <= 2_000 / 0.8 + 60


def test_varied_background_holds_the_recordings_and_more() -> None:
    recordings = [noise(32_000, 0, 0.02), noise(20_000, 1, 0.04)]
    varied_recordings = varied(recordings, speeds=(0.8, 1.25), rate=RATE, rng=rng())
    again = varied(recordings, speeds=(0.8, 1.25), rate=RATE, rng=rng())
    assert len(varied_recordings) == 2 + 2 * 2 + 2
    assert all(np.array_equal(one, other) for one, other in zip(varied_recordings, again, strict=True))
    assert varied_recordings[0] is recordings[0]
    assert [len(part) for part in varied_recordings[2:6]] == [40_000, 25_000, 25_600, 16_000]
    for part in varied_recordings:
        assert part.dtype == np.float32
        assert np.isfinite(part).all()
        assert 0.005 < rms(part) < 0.1
    silent = varied([np.zeros(RATE, np.float32)], speeds=(0.8,), rate=RATE, rng=rng())
    assert all(rms(part) == 0 for part in silent)


def test_chords_have_level_one_and_peaks() -> None:
    examples = [chords(20_000, rng(seed)) for seed in range(20)]
    flatness = []
    for part in examples:
        assert part.dtype == np.float32
        assert rms(part) == pytest.approx(1.0, abs=1e-3)
        power = np.abs(np.fft.rfft(part)) ** 2 + 1e-9
        flatness.append(np.exp(np.log(power).mean()) / power.mean())
    assert np.median(flatness) < 0.05  # of white noise: about 0.56
    assert not np.array_equal(examples[0], examples[1])


def test_only_the_requested_share_of_clips_gets_noise() -> None:
    clips = [noise(WINDOW, seed) for seed in range(300)]
    windows = Augmenter(WINDOW, 0, 0.0, 0.3, (10.0, 10.0))(clips, rng())
    noisy = sum(not np.array_equal(window, clip) for window, clip in zip(windows, clips, strict=True))
    assert 60 <= noisy <= 120


def test_shift_and_gain_stay_within_their_limits() -> None:
    clip = np.zeros(101, np.float32)
    clip[50] = 1.0
    windows = Augmenter(1001, 200, 6.0, 0.0, (0.0, 0.0))([clip] * 400, rng())
    shifts = windows.argmax(axis=1) - 500
    levels = 20 * np.log10(windows.max(axis=1))
    assert (shifts.min(), shifts.max()) == (pytest.approx(-200, abs=10), pytest.approx(200, abs=10))
    assert abs(shifts).max() <= 200
    assert (levels.min(), levels.max()) == (pytest.approx(-6, abs=0.3), pytest.approx(6, abs=0.3))
    assert abs(levels).max() <= 6 + 1e-4
    assert abs(shifts.mean()) < 20
    assert abs(levels.mean()) < 0.6


def test_all_randomness_is_the_generators_and_clips_are_left_alone() -> None:
    clips = [noise(5_000, seed) for seed in range(6)]
    before = [clip.copy() for clip in clips]
    for clip in clips:
        clip.setflags(write=False)  # as the clip store gives them
    augment = Augmenter(WINDOW, 500, 6.0, 0.8, (0.0, 20.0), (noise(20_000, 9),))
    one, two, other = augment(clips, rng(1)), augment(clips, rng(1)), augment(clips, rng(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert all(np.array_equal(a, b) for a, b in zip(clips, before, strict=True))


def test_clips_are_made_as_soft_as_the_encoder_asks_unless_the_recipe_says(corpus: Corpus) -> None:
    """A soft sound is another than a loud one to YAMNet, which takes the logarithm of what it hears plus a constant."""
    yamnet, streaming = YAMNet(), pretrained("speech-embedding", 1.28)

    def levels(encoder: Encoder, recipe: Recipe) -> list[float]:
        augment = dataclasses.replace(make_augmenter(encoder, corpus, recipe), shift=0, noise_probability=0.0)
        tone = np.sin(np.arange(encoder.window) / 3).astype(np.float32)
        augmented = augment([tone] * 200, np.random.default_rng(0))
        return [20 * math.log10(float(np.abs(one).max())) for one in augmented]

    for encoder, recipe, most in ((yamnet, Recipe(), 24), (streaming, Recipe(), 6), (yamnet, Recipe(gain=3.0), 3)):
        found = levels(encoder, recipe)
        assert -most <= min(found) < -0.9 * most
        assert 0.9 * most < max(found) <= most + 0.1


def test_every_augmentation_of_a_recipe_reaches_the_augmenter(run_corpus: Corpus, tmp_path: Path) -> None:
    """Each with a value of its own, so that none can stand in for another."""
    soundfile.write(tmp_path / "hall.wav", np.linspace(1, 0, 1600), RATE)
    encoder, recipe = pretrained("speech-embedding", 1.28), Recipe(
        shift=0.07, gain=5.0, noise_probability=0.45, snr_low=3.0, snr_high=17.0, speed=0.12,
        rooms=str(tmp_path), room_probability=0.35, equaliser=4.0, band_probability=0.25, codec_probability=0.15,
    )  # fmt: skip
    augment = make_augmenter(encoder, run_corpus, recipe)
    assert (augment.window, augment.shift, augment.gain, augment.speed) == (encoder.window, 1120, 5.0, 0.12)
    assert (augment.noise_probability, augment.snr, augment.babble) == (0.45, (3.0, 17.0), True)
    effects = augment.effects
    assert effects is not None
    assert [len(room) for room in effects.rooms] == [1600]
    assert (effects.rate, effects.room_probability, effects.equaliser) == (encoder.sample_rate, 0.35, 4.0)
    assert (effects.band_probability, effects.codec_probability) == (0.25, 0.15)
    recorded = run_corpus.background_train
    assert all(any(np.array_equal(one, other) for other in augment.background) for one in recorded)
    assert len(augment.background) > 4 * len(recorded)  # and at other speeds

    several = dataclasses.replace(run_corpus, multi_label=True, background_train=[])
    plain = make_augmenter(encoder, several, Recipe())
    assert (plain.speed, plain.effects, plain.background, plain.babble) == (0.0, None, (), False)


@pytest.mark.parametrize("snr", [0.0, 30.0])
def test_fragments_are_learnt_at_the_ratio_of_the_recipe(run_corpus: Corpus, snr: float) -> None:
    """Seen in the loudest fragment, which holds the end of a word, and the softest, which holds none."""
    encoder = pretrained("speech-embedding", 1.28)
    hiss = [noise(160_000, seed, level=0.003) for seed in range(2)]
    corpus = dataclasses.replace(run_corpus, background_train=hiss)
    items = training_items(encoder, corpus, Recipe(snr_low=snr, snr_high=snr))
    unknown = np.flatnonzero(items.targets[:, corpus.classes.index(UNKNOWN)])
    levels = [rms(items.pcm[row]) for row in unknown if len(items.pcm[row]) == encoder.window]
    assert 20 * np.log10(max(levels) / min(levels)) == pytest.approx(snr, abs=6.0)


def test_a_long_clip_is_heard_from_anywhere_in_one_piece() -> None:
    """Also where it is longer than what is read of it."""
    for length in (WINDOW + 1, 2 * WINDOW - 1, 5 * WINDOW):
        clip = np.arange(1, length + 1, dtype=np.float32)
        windows = Augmenter(WINDOW, shift=100)([clip] * 40, rng())
        assert np.array_equal(windows, windows[:, :1] + np.arange(WINDOW))
        assert np.ptp(windows[:, 0]) > 0.5 * (length - WINDOW) - 1


@pytest.mark.parametrize(
    ("babble", "background", "shares"),
    [
        (True, True, (0.2, 0.3, 0.5)),
        (True, False, (0.2, 0.8, 0)),
        (False, True, (0.2, 0, 0.8)),
        (False, False, (1, 0, 0)),
    ],
)
def test_noise_is_of_each_kind_there_is(babble: bool, background: bool, shares: tuple[float, ...]) -> None:
    """A fifth is coloured noise; the rest are other clips and background, half of all of it where there is some."""
    time = np.arange(WINDOW) / RATE
    clip, hum = (np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (500, 3000))
    augment = Augmenter(
        WINDOW, noise_probability=1.0, background=(np.tile(hum, 3),) if background else (), babble=babble
    )
    energies = np.zeros(3)
    for window in augment([clip] * 400, rng()):
        power = np.abs(np.fft.rfft(window - clip)) ** 2
        assert power.sum() > 0
        in_clip, in_hum = (
            power[round(hertz * WINDOW / RATE) - 50 :][:101].sum() / power.sum() for hertz in (500, 3000)
        )
        energies[1 if in_clip > 0.9 else 2 if in_hum > 0.9 else 0] += 1 / 400
    np.testing.assert_allclose(energies, shares, atol=0.07)
    assert (energies[np.array(shares) == 0] == 0).all()


def test_half_an_hour_of_background_is_left_as_it_is() -> None:
    rate = 10
    parts = [noise(900 * rate, 0), noise(900 * rate, 1)]
    assert varied(parts, speeds=(0.8,), rate=rate, rng=rng()) == parts
    less = [parts[0], parts[1][1:]]
    assert len(varied(less, speeds=(0.8,), rate=rate, rng=rng())) == 2 + 2 + 2
