"""Rows of recordings: what a stream sees of them, each hour scored once, and what counts as one recording."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_runtime import AudioError, Model, UsageError, load, recordings
from confit_runtime.audio import StreamResampler
from confit_runtime.calibration import count_false_accepts
from confit_runtime.detect import Detector
from confit_runtime.recordings import RowCache, clip_rows, score_recordings, stream_rows
from tests import tiny_model
from tests.full_disk import limited_file_size
from tests.tiny_model import HOP, RATE, WINDOW, Floats, silence, tone

RNG = np.random.default_rng(3)


def write(path: Path, seconds: float, rate: int = RATE) -> Floats:
    pcm = np.concatenate([0.01 * RNG.standard_normal(round(seconds * rate)), tone(500, 0.3, rate)]).astype(np.float32)
    soundfile.write(path, pcm, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return pcm


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_rows_match_those_of_a_listener(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model: Model = request.getfixturevalue(kind)
    pcm = write(tmp_path / "one.wav", 20.0)
    told: list[float] = []
    rows, seconds = stream_rows(model, tmp_path / "one.wav", told.append)
    assert seconds == len(pcm) / RATE == told[-1]
    batch = model.batch(1)
    whole = np.concatenate([silence(WINDOW / RATE), pcm, silence(1.0)])
    seen = [batch.push(hop[None])[0][0] for hop in whole[: len(whole) // HOP * HOP].reshape(-1, HOP)]
    np.testing.assert_allclose(rows, np.concatenate(seen)[: len(rows)], atol=1e-4)
    stream = model.stream(lead_in=True)
    events = [*stream.accept(pcm, RATE), *stream.finish()]
    hits = Detector.from_contract(model.contract).push(rows)
    assert [model.labels[hit.label] for hit in hits] == [event.label for event in events]


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_all_of_a_short_file_is_scored(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Files shorter than a window count as long as they are, so they must fire as often as they would on a device."""
    model: Model = request.getfixturevalue(kind)
    pcm = tone(1200, 0.2)[: WINDOW - HOP // 2]
    soundfile.write(tmp_path / "short.wav", pcm, RATE)
    rows, seconds = stream_rows(model, tmp_path / "short.wav")
    assert seconds == len(pcm) / RATE < WINDOW / RATE
    hits = Detector.from_contract(model.contract).push(rows)
    assert [model.labels[hit.label] for hit in hits] == ["mid"]
    recordings = score_recordings(model, [tmp_path / "short.wav"], RowCache(tmp_path / "rows"), lambda *told: None)
    assert count_false_accepts(model.contract, recordings).events[1].max() == 1


@pytest.mark.parametrize("kind", ["model", "windowed"])
@pytest.mark.parametrize("seconds", [0.25, 1.0])
def test_a_clip_is_heard_between_two_silences(kind: str, seconds: float, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(kind)
    hits = Detector.from_contract(model.contract).push(clip_rows(model, tone(1200, seconds)))
    assert [model.labels[hit.label] for hit in hits] == ["mid"]


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_a_recording_of_another_rate_is_scored_to_its_last_sample(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Model = request.getfixturevalue(kind)
    pcm = tone(500, 0.3, 48_000)[:-900]  # ends aloud
    soundfile.write(tmp_path / "one.wav", pcm, 48_000, subtype="FLOAT")
    resampler = StreamResampler(48_000, RATE)
    whole = np.concatenate([resampler.push(pcm), resampler.finish()])
    np.testing.assert_allclose(stream_rows(model, tmp_path / "one.wav")[0], clip_rows(model, whole), atol=1e-5)


def test_rows_do_not_depend_on_how_many_hops_a_call_has(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clip_rows(model, tone(500, 0.5))
    monkeypatch.setattr("confit_runtime.chunk_scorer.HOPS_PER_CALL", 2)  # fewer than the warm-up
    np.testing.assert_allclose(clip_rows(model, tone(500, 0.5)), whole, atol=1e-5)


def test_nothing_is_scored_twice(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "one.flac", RowCache(tmp_path / "rows")
    write(path, 2.0)
    first, seconds = cache.rows(model, path, lambda at: None)
    other = load(tiny_model.build(tmp_path / "other.onnx", name="other", thresholds=model.contract.thresholds))
    with monkeypatch.context() as patched:
        patched.delattr(recordings, "stream_rows")
        kept, again = cache.rows(other, path, lambda at: None)  # the same graph, whatever it is called
        path.rename(tmp_path / "two.flac")  # and the same sound
        cache.rows(model, tmp_path / "two.flac", lambda at: None)
    np.testing.assert_array_equal(kept, first)
    assert again == seconds == 2.3
    write(tmp_path / "two.flac", 3.0)
    assert len(cache.rows(model, tmp_path / "two.flac", lambda at: None)[0]) > len(first)


@pytest.mark.parametrize("left", [0, 10, 100])
def test_damaged_cache_files_are_recomputed(model: Model, tmp_path: Path, left: int) -> None:
    path, cache = tmp_path / "one.flac", RowCache(tmp_path / "rows")
    write(path, 1.0)
    rows, _ = cache.rows(model, path, lambda at: None)
    (kept,) = (tmp_path / "rows").glob("*/*.npy")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:left])
    np.testing.assert_array_equal(cache.rows(model, path, lambda at: None)[0], rows)
    assert kept.read_bytes() == whole


def test_an_unusable_cache_is_reported_once_before_scoring(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").touch()
    paths = [tmp_path / "one.flac", tmp_path / "two.flac"]
    lengths = [len(write(path, 2.0)) / RATE for path in paths]
    said_before: list[int] = []
    cache = RowCache(tmp_path / "taken")
    found = score_recordings(model, paths, cache, lambda *told: said_before.append(len(caplog.records)))
    assert sum(one.seconds for one in found) == sum(lengths)
    assert set(said_before) == {1}
    assert caplog.messages == [
        f"{tmp_path / 'taken'}: scored rows cannot be kept (Not a directory); set CONFIT_EDGE_CACHE"
    ]


def test_a_full_disk_does_not_stop_scoring_or_reading_the_cache(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other, cache = tmp_path / "one.flac", tmp_path / "two.flac", RowCache(tmp_path / "rows")
    write(path, 2.0)
    write(other, 40.0)
    rows, _ = cache.rows(model, path, lambda at: None)
    with limited_file_size(4_000):
        scored = [cache.rows(model, other, lambda at: None)[0] for _ in range(2)]
        monkeypatch.delattr(recordings, "stream_rows")
        np.testing.assert_array_equal(cache.rows(model, path, lambda at: None)[0], rows)
    assert scored[0].nbytes > 4_000
    np.testing.assert_array_equal(*scored)
    assert caplog.messages == [
        f"{tmp_path / 'rows'}: scored rows cannot be kept (File too large); set CONFIT_EDGE_CACHE"
    ]
    assert len(list((tmp_path / "rows").glob("*/*"))) == 1


def test_what_counts_as_one_recording(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_UNIT_S", 4.0)
    monkeypatch.setattr(recordings, "MIN_UNIT_S", 1.0)
    (tmp_path / "shorts").mkdir()
    paths = [tmp_path / "shorts" / f"{at}.wav" for at in range(3)] + [tmp_path / "long.wav", tmp_path / "one.wav"]
    lengths = [0.5, 0.5, 0.5, 11.0, 3.0]
    for path, seconds in zip(paths, lengths, strict=True):
        write(path, seconds)
    told: list[float] = []
    found = score_recordings(
        model, paths, RowCache(tmp_path / "rows"), lambda name, done, whole: told.append(done / whole)
    )
    assert sorted(round(one.seconds, 2) for one in found) == [2.4, 3.3, 3.77, 3.77, 3.77]
    assert sum(one.seconds for one in found) == pytest.approx(sum(lengths) + 0.3 * 5)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert {len(one.pieces) for one in found} == {1, 3}
    more = [tmp_path / "more1.wav", tmp_path / "more2.wav"]
    for path, seconds in zip(more, (3.1, 3.2), strict=True):
        write(path, seconds)
    enough = score_recordings(model, [*paths, *more], RowCache(tmp_path / "rows"), lambda *told: None)
    assert sorted(round(one.seconds, 2) for one in enough) == [2.4, 3.3, 3.4, 3.5, 11.3]  # five: none is cut
    with pytest.raises(UsageError, match=r"one\.wav is listed twice"):
        score_recordings(model, [*paths, paths[-1]], RowCache(tmp_path / "rows"), lambda *told: None)
    copy = Path(shutil.copy(paths[-1], tmp_path / "copy.wav"))
    with pytest.raises(UsageError, match=r"copy\.wav and .*one\.wav are the same"):
        score_recordings(model, [*paths, copy], RowCache(tmp_path / "rows"), lambda *told: None)


def test_sound_that_cannot_be_scored(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    soundfile.write(path, np.float32([0.0, np.nan] * 100), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"bad\.wav.*NaN"):
        stream_rows(model, path)
    soundfile.write(path, silence(0), RATE)
    with pytest.raises(AudioError, match=r"bad\.wav.*no samples"):
        stream_rows(model, path)
    soundfile.write(path, tone(500, 0.01), RATE)
    assert len(stream_rows(model, path)[0]) >= WINDOW // HOP
    both = tone(500, 1.0)
    for muted in (silence(1.0), np.stack([both, -both], axis=1)):  # of two channels in antiphase nothing is left
        soundfile.write(path, muted, RATE, subtype="FLOAT")
        with pytest.raises(AudioError, match=r"bad\.wav: is digital silence"):
            stream_rows(model, path)


def test_a_long_recording_is_parted_and_no_row_counts_twice(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "MAX_UNIT_S", 2.0)
    monkeypatch.setattr(recordings, "MIN_UNIT_S", 1.0)
    write(tmp_path / "long.wav", 6.0)
    found = score_recordings(model, [tmp_path / "long.wav"], RowCache(tmp_path / "rows"), lambda *told: None)
    assert len(found) == 3
    whole = stream_rows(model, tmp_path / "long.wav")[0]
    np.testing.assert_array_equal(np.concatenate([piece for one in found for piece in one.pieces]), whole)
    assert [seconds for one in found for _, seconds in one.places] == pytest.approx(
        [0.0, 2.1, 4.2]
    )  # where each begins in the file
    assert [one.seconds for one in found] == pytest.approx([2.1] * 3)
