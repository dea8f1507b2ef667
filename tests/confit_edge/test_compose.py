"""Composed streams: the truth beside them is exact, and clips are as loud over the rest as was asked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.data.augment import rms
from confit_edge.data.compose import Spoken, compose, fragments, nearest_clip
from confit_edge.windows import GAP_S, OFF_S, gaps_s, off_samples
from confit_runtime.audio import Pcm
from tests.confit_edge.sounds import noise

RATE_HZ = 16_000
RATE = 100
PART = 20 * RATE  # the background changes this often


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(20, 900), min_size=1, max_size=8),
    samples=st.integers(1, 8_000),
    snr=st.floats(-3, 20),
)
def test_truth_is_exact_and_clips_never_overlap(seed: int, lengths: list[int], samples: int, snr: float) -> None:
    clips = [noise(length, row, 0.01) for row, length in enumerate(lengths)]
    background = [noise(3_000, 100, 0.002), noise(700, 101, 0.004)]

    def make(loud: float) -> tuple[Pcm, list]:
        rng = np.random.default_rng(seed)
        names = [str(row) for row in range(len(clips))]
        return compose(
            clips, names, background, samples=samples, rate=RATE, snr=(loud, loud), rng=rng, gap_s=(0.1, 0.5)
        )

    (stream, spoken), (quiet, again) = make(snr), make(-400.0)  # the second is the background alone
    assert spoken == again
    assert len(stream) == len(quiet) == samples
    assert stream.dtype == np.float32
    assert len({word.label for word in spoken}) == len(spoken)
    end = 0
    outside = np.ones(samples, bool)
    for word in spoken:
        clip = clips[int(word.label)]
        assert word.end - word.start == len(clip)
        assert end + 0.1 * RATE - 1 <= word.start <= end + 0.5 * RATE
        assert word.end <= samples
        added = stream[word.start : word.end] - quiet[word.start : word.end]
        part = quiet[word.start // PART * PART :][:PART]
        if len(part) == min(PART, samples):  # the last is cut off by the stream's end
            assert 20 * np.log10(rms(added) / rms(part)) == pytest.approx(snr, abs=0.05)
        scale = float(added @ clip / (clip @ clip))
        np.testing.assert_allclose(added, scale * clip, atol=1e-5)
        outside[word.start : word.end] = False
        end = word.end
    assert np.array_equal(stream[outside], quiet[outside])


def distance_to_clip(word: Spoken, middle: float, window: int) -> float:
    """How far a window's middle is from where it speaks of a clip: its middle, or, of a longer one, anywhere within."""
    if word.end - word.start <= window:
        return abs((word.start + word.end) / 2 - middle)
    first, last = word.start + window / 2, word.end - window / 2
    return 0.0 if first <= middle <= last else min(abs(first - middle), abs(last - middle))


@settings(max_examples=60)
@given(
    clips=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 400)), max_size=5),  # the gap before it, its length
    samples=st.integers(1, 1_200),
    window=st.integers(2, 300),
    off=st.integers(1, 200),
)
def test_fragments_are_windows_that_speak_of_no_clip(
    clips: list[tuple[int, int]], samples: int, window: int, off: int
) -> None:
    stream, spoken, at = np.arange(samples, dtype=np.float32), list[Spoken](), 0
    for gap, length in clips:
        spoken.append(Spoken("", at + gap, at + gap + length))
        at += gap + length
    starts = range(0, samples - window + 1, window // 2)
    away = [[distance_to_clip(word, start + window / 2, window) for word in spoken] for start in starts]
    found = fragments(stream, spoken, window=window, off=off)
    expected = [start for start, row in zip(starts, away, strict=True) if all(one >= off for one in row)]
    assert [int(part[0]) for part in found] == expected
    assert all(len(part) == window for part in found)
    if spoken:
        nearest, least = nearest_clip(np.array(starts) + window / 2, spoken, window)
        assert least.tolist() == [min(row) for row in away]
        assert [row[place] for row, place in zip(away, nearest, strict=True)] == least.tolist()


def test_every_clip_is_spoken_where_there_is_room() -> None:
    clips, names = [noise(200, row) for row in range(20)], [f"word {row}" for row in range(20)]
    rng = np.random.default_rng(0)
    _, spoken = compose(clips, names, [noise(5_000, 99)], samples=60_000, rate=RATE, snr=(0.0, 10.0), rng=rng)
    assert sorted(word.label for word in spoken) == sorted(names)
    assert [word.label for word in spoken] != names
    assert len({word.start % 100 for word in spoken}) > 5  # at arbitrary offsets


def test_over_silence_and_at_any_level_the_stream_stays_within_full_scale() -> None:
    silent, loud = np.zeros(5_000, np.float32), noise(5_000, 1, 0.9)
    for background in (silent, loud):
        stream, spoken = compose(
            [noise(300, 2)] * 3,
            ["a", "b", "c"],
            [background],
            samples=5_000,
            rate=RATE,
            snr=(20.0, 20.0),
            rng=np.random.default_rng(0),
        )
        assert np.isfinite(stream).all()
        assert np.abs(stream).max() <= 1.0
        assert all(rms(stream[word.start : word.end]) > 0 for word in spoken)
        assert spoken


@pytest.mark.parametrize("window_s", [1.28, 2.0, 2.88, 5.0])
def test_no_window_of_nothing_known_holds_a_whole_clip(window_s: float) -> None:
    """However long it is: a window of five seconds holds a word of half a second wherever that lies in it."""
    encoder = SimpleNamespace(sample_rate=RATE_HZ, window=round(window_s * RATE_HZ))
    clip, off = Spoken("", 8 * RATE_HZ, 8 * RATE_HZ + RATE_HZ // 2), off_samples(encoder)
    middles = np.arange(0, 16 * RATE_HZ, 100)
    _, away = nearest_clip(middles, [clip], encoder.window)
    for middle in middles[away >= off]:
        assert not middle - encoder.window / 2 <= clip.start < clip.end <= middle + encoder.window / 2
    assert window_s > 1.28 or (off, gaps_s(encoder)) == (round(OFF_S * RATE_HZ), GAP_S)


def test_background_recordings_follow_one_another_each_from_a_place_of_its_own() -> None:
    """Of two recordings and five parts of 20 s, the first is heard thrice and the second twice, in turn."""
    one = np.arange(1, 5_001, dtype=np.float32) / 20_000
    rng = np.random.default_rng(0)
    stream, spoken = compose([], [], [one, -one], samples=4 * PART + 100, rate=RATE, snr=(0.0, 0.0), rng=rng)
    assert spoken == []
    parts = [stream[start : start + PART] for start in range(0, len(stream), PART)]
    assert [float(np.sign(part).mean()) for part in parts] == [1, -1, 1, -1, 1]
    for part in parts:
        np.testing.assert_allclose(np.diff(np.abs(part)), 1 / 20_000, atol=1e-6)  # from one place on
    assert len({float(abs(part[0])) for part in parts}) == 5


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_stream_is_brought_within_full_scale_whichever_way_its_peak_points(sign: int) -> None:
    clip = np.full(200, 0.01 * sign, np.float32)
    clip[100] = sign
    quiet, rng = np.tile(np.float32([0.1, -0.1]), 1_500), np.random.default_rng(0)
    stream, _ = compose([clip], ["a"], [quiet], samples=3_000, rate=RATE, snr=(20.0, 20.0), rng=rng)
    assert np.abs(stream).max() == pytest.approx(1.0, abs=1e-6)
    assert stream[np.abs(stream).argmax()] * sign > 0
