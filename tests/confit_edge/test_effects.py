"""Rooms, bands, equalisers and codecs, measured on what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.data.augment import Augmenter, rms
from confit_edge.data.effects import (
    CODECS,
    Effects,
    colour,
    make_effects,
    read_rooms,
    response,
    reverberate,
    through_codec,
)
from confit_runtime.audio import Pcm
from confit_runtime.errors import AudioError, UsageError
from tests.confit_edge.sounds import noise

RATE = 16_000
FLAT = np.zeros(9)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def band_db(pcm: Pcm, low: float, high: float) -> float:
    """Mean power per bin between two frequencies, in dB."""
    power = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm)))) ** 2
    hertz = np.fft.rfftfreq(len(pcm), 1 / RATE)
    return float(10 * np.log10(power[(hertz >= low) & (hertz < high)].mean()))


# rooms


@pytest.mark.parametrize("rt60", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("direct_db", [-3.0, 6.0, 12.0])
def test_a_synthetic_room_has_the_reverberation_it_was_asked_for(rt60: float, direct_db: float) -> None:
    measured = []
    for seed in range(8):
        room = response(rt60, direct_db, RATE, rng(seed))
        assert room.dtype == np.float32
        assert room[0] == 1
        tail = room[1:].astype(np.float64)
        assert -10 * np.log10(np.sum(tail**2)) == pytest.approx(direct_db, abs=0.01)
        falling = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] / np.sum(tail**2))  # Schroeder's integral
        from_5, to_35 = (np.argmax(falling < level) for level in (-5, -35))
        measured.append(2 * (to_35 - from_5) / RATE)  # 30 dB of it, so twice
    assert np.mean(measured) == pytest.approx(rt60, rel=0.05)


def test_a_room_keeps_place_length_and_level() -> None:
    click = np.zeros(4000, np.float32)
    click[1000] = 0.5
    wet = reverberate(click, response(0.3, 6.0, RATE, rng()))
    assert len(wet) == 4000
    assert wet.dtype == np.float32
    assert int(np.abs(wet).argmax()) == 1000
    assert np.abs(wet[:1000]).max() < 1e-6
    assert np.abs(wet[1001:3000]).max() > 1e-3
    assert rms(wet) == pytest.approx(rms(click), rel=1e-3)
    assert rms(reverberate(np.zeros(100, np.float32), click)) == 0


def test_convolution_is_the_textbooks() -> None:
    pcm, room = noise(300), response(0.1, 3.0, 1000, rng())
    expected = np.array([sum(room[k] * pcm[n - k] for k in range(min(n + 1, len(room)))) for n in range(300)])
    wet = reverberate(pcm, room)
    np.testing.assert_allclose(wet / rms(wet), expected / rms(expected), atol=1e-4)


def test_recorded_rooms_begin_with_their_direct_sound(tmp_path: Path) -> None:
    recorded = np.zeros(44_100 * 3, np.float32)
    recorded[4410], recorded[4410 + 2205] = 0.9, 0.3
    soundfile.write(tmp_path / "hall.wav", recorded, 44_100, subtype="FLOAT")
    (tmp_path / "notes.txt").write_text("a hall")
    (room,) = read_rooms(tmp_path, RATE)
    assert len(room) == RATE  # a second
    assert int(np.abs(room).argmax()) == 0
    assert int(np.abs(room[100:]).argmax()) + 100 == pytest.approx(800, abs=1)
    effects = make_effects(
        RATE, rooms=str(tmp_path), room_probability=1.0, equaliser=0, band_probability=0, codec_probability=0
    )
    assert effects is not None
    np.testing.assert_array_equal(effects.room(noise(), rng()), reverberate(noise(), room))
    soundfile.write(tmp_path / "tomb.wav", np.zeros(RATE), RATE)
    with pytest.raises(UsageError, match=r"tomb\.wav is silent"):
        read_rooms(tmp_path, RATE)
    (tmp_path / "tomb.wav").unlink()
    (tmp_path / "hall.wav").write_text("not sound")
    with pytest.raises(AudioError, match=r"hall\.wav"):
        read_rooms(tmp_path, RATE)
    (tmp_path / "hall.wav").unlink()
    with pytest.raises(UsageError, match="--rooms"):
        read_rooms(tmp_path, RATE)


# microphones


@pytest.mark.parametrize(("low", "high"), [(300.0, 3400.0), (100.0, 5000.0)])
def test_what_is_outside_the_band_is_more_than_20_db_down(low: float, high: float) -> None:
    pcm = noise(4 * RATE)
    out = colour(pcm, RATE, octaves=FLAT, bands=[(low, high)])
    assert out.dtype == np.float32
    assert len(out) == len(pcm)
    inside = band_db(out, low, high) - band_db(pcm, low, high)
    assert inside == pytest.approx(0, abs=0.1)
    assert band_db(out, 0, low / 1.5) - band_db(pcm, 0, low / 1.5) < -20
    assert band_db(out, 1.5 * high, 8000) - band_db(pcm, 1.5 * high, 8000) < -20


def test_an_equaliser_gives_each_octave_its_gain() -> None:
    pcm = noise(4 * RATE)
    gains = np.array([0.0, 3.0, -6.0, 6.0, 0.0, -3.0, 4.0, -8.0, 8.0])
    out = colour(pcm, RATE, octaves=gains, bands=[])
    for octave, gain in enumerate(gains[:8]):
        hertz = 31.25 * 2**octave
        narrow = (0.98 * hertz, 1.02 * hertz)
        assert band_db(out, *narrow) - band_db(pcm, *narrow) == pytest.approx(gain, abs=0.5)
    np.testing.assert_allclose(colour(pcm, RATE, octaves=FLAT, bands=[]), pcm, atol=1e-6)


def test_nothing_comes_round_from_the_end_to_the_start() -> None:
    click = np.zeros(5000, np.float32)
    click[-1] = 1.0
    out = colour(click, RATE, octaves=FLAT, bands=[(300.0, 3400.0)])
    assert np.abs(out[:2000]).max() < 1e-3


# codecs


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec[1])
@pytest.mark.parametrize("samples", [20_480, 16_000, 1_000])
def test_a_codec_changes_a_sound_and_keeps_it(codec: tuple, samples: int) -> None:
    time = np.arange(samples) / RATE
    speech = (
        0.3 * np.sin(2 * np.pi * 440 * time) * (1 + np.sin(2 * np.pi * 4 * time)) / 2 + noise(samples, 1, 0.01)
    ).astype(np.float32)
    out = through_codec(speech, RATE, *codec)
    assert out.shape == speech.shape
    assert out.dtype == np.float32
    error = 20 * np.log10(rms(out - speech) / rms(speech))
    assert -45 < error < -5  # changed, and neither shifted nor lost
    lag = np.correlate(out[: samples // 2], speech[: samples // 2], "full").argmax() - (samples // 2 - 1)
    assert abs(lag) <= 1


def test_mu_law_has_the_noise_of_eight_bits() -> None:
    speech = noise(RATE, level=0.1)
    out = through_codec(speech, RATE, "WAV", "ULAW", None)
    assert 20 * np.log10(rms(speech) / rms(out - speech)) == pytest.approx(38, abs=2)  # ITU-T G.711


def test_a_sound_beyond_full_scale_is_not_clipped_by_a_codec() -> None:
    loud = noise(RATE, level=1.0)
    out = through_codec(loud, RATE, "WAV", "ULAW", None)
    assert 20 * np.log10(rms(loud) / rms(out - loud)) > 30
    assert rms(through_codec(np.zeros(4000, np.float32), RATE, "MP3", "MPEG_LAYER_III", 0.95)) < 1e-3


# together


def all_effects(**changes: float) -> Effects:
    shares = {"room_probability": 0.5, "equaliser": 6.0, "band_probability": 0.4, "codec_probability": 0.3} | changes
    effects = make_effects(RATE, rooms="synthetic", **shares)
    assert effects is not None
    return effects


def test_no_request_means_no_effects() -> None:
    none = {"room_probability": 0.5, "equaliser": 0.0, "band_probability": 0.0, "codec_probability": 0.0}
    assert make_effects(RATE, rooms=None, **none) is None
    assert make_effects(RATE, rooms="synthetic", **none) is not None


def test_the_requested_share_of_clips_gets_a_room_and_a_band() -> None:
    effects, generator, pcm = all_effects(equaliser=0.0, codec_probability=0.0), rng(), noise(2000)
    rooms = sum(effects.room(pcm, generator) is not pcm for _ in range(400))
    bands = sum(effects.channel(pcm, generator) is not pcm for _ in range(400))
    assert rooms == pytest.approx(200, abs=40)
    assert bands == pytest.approx(160, abs=40)


def test_effects_come_from_the_generator_alone_and_leave_clips_alone() -> None:
    clips = [noise(5_000, seed) for seed in range(12)]
    before = [clip.copy() for clip in clips]
    for clip in clips:
        clip.setflags(write=False)
    augment = Augmenter(8_000, 500, 6.0, 0.8, (0.0, 20.0), effects=all_effects())
    one, two, other = augment(clips, rng(1)), augment(clips, rng(1)), augment(clips, rng(2))
    assert one.shape == (12, 8_000)
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert all(np.array_equal(a, b) for a, b in zip(clips, before, strict=True))


def test_the_noise_is_not_in_the_room() -> None:
    """Noise is mixed under the reverberated clip at the asked ratio, to 0.1 dB."""
    clip = noise(8_000)
    effects = all_effects(room_probability=1.0, equaliser=0.0, band_probability=0.0, codec_probability=0.0)
    quiet = Augmenter(8_000, effects=effects)([clip], rng(3))[0]
    noisy = Augmenter(8_000, 0, 0.0, 1.0, (10.0, 10.0), effects=effects)([clip], rng(3))[0]
    assert 20 * np.log10(rms(quiet) / rms(noisy - quiet)) == pytest.approx(10, abs=0.1)
