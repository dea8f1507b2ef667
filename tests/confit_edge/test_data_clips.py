"""Decoding real files of many formats, the cache on disk, and clips that cannot be used."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from confit_edge.data import clips
from confit_edge.data.clips import ClipStore, load_clips
from confit_edge.data.manifest import Clip, Manifest
from confit_edge.data.pack import Pack
from confit_edge.data.tables import ManifestError
from confit_runtime.audio import load_clip
from confit_runtime.errors import AudioError, ConfitError, UsageError

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, hertz: float = 440.0) -> npt.NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav(path: Path, pcm: npt.NDArray[np.float32], rate: int = RATE, subtype: str | None = "FLOAT") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, pcm, rate, subtype=subtype)
    return path


def manifest_of(folder: Path, labels: dict[str, str]) -> Manifest:
    clips = tuple(Clip(folder / name, (label,), name, None) for name, label in labels.items())
    return Manifest(clips, folder / "m.csv", multi_label=False)


@pytest.fixture
def store(tmp_path: Path) -> ClipStore:
    return ClipStore(RATE, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype", "tolerance"),
    [
        ("plain.wav", 16_000, 1, "PCM_16", 1e-4),
        ("deep.wav", 16_000, 1, "PCM_24", 1e-6),
        ("bytes.wav", 16_000, 1, "PCM_U8", 1e-2),
        ("phone.wav", 8_000, 2, "ULAW", 2e-2),
        ("stereo.wav", 44_100, 2, "PCM_16", 1e-3),
        ("free.flac", 48_000, 1, "PCM_24", 1e-3),
        ("vorbis.ogg", 16_000, 1, "VORBIS", 5e-2),
        ("opus.opus", 48_000, 1, "OPUS", 5e-2),
        ("layer3.mp3", 44_100, 1, "MPEG_LAYER_III", 5e-2),
        ("apple.aiff", 22_050, 1, "PCM_16", 1e-3),
    ],
)
def test_formats_rates_and_channels_come_out_as_mono_at_one_rate(
    tmp_path: Path, store: ClipStore, name: str, rate: int, channels: int, subtype: str, tolerance: float
) -> None:
    pcm = np.stack([tone(rate=rate)] * channels, axis=1)
    container = "OGG" if name.endswith(".opus") else None
    soundfile.write(tmp_path / name, pcm, rate, subtype=subtype, format=container)
    got = store.get(tmp_path / name)
    assert got.dtype == np.float32
    assert got.ndim == 1
    middle = slice(RATE // 10, 4 * RATE // 10)
    if name.endswith(".mp3"):  # the codec shifts the sound by some milliseconds: compare the pitch and the level
        spectrum = np.abs(np.fft.rfft(got[middle]))
        assert abs(spectrum.argmax() * RATE / len(got[middle]) - 440) < 5
        assert abs(float(np.abs(got[middle]).max()) - 0.5) < tolerance
    else:
        assert abs(len(got) - RATE // 2) <= 1
        np.testing.assert_allclose(got[middle], tone()[middle], atol=tolerance)


def damaged(folder: Path) -> dict[str, Callable[[Path], object]]:
    def cut(path: Path) -> None:
        wav(path.with_suffix(".flac"), tone(), subtype="PCM_16").rename(path)
        path.write_bytes(path.read_bytes()[:60])

    return {
        "missing": lambda path: None,
        "a-folder": lambda path: path.mkdir(),
        "text": lambda path: path.write_text("not sound at all"),
        "cut-flac": cut,
        "no-bytes": lambda path: path.write_bytes(b""),
        "no-samples": lambda path: wav(path, tone(0)),
        "nan": lambda path: wav(path, np.where(np.arange(8000) == 4000, np.nan, tone())),
        "infinite": lambda path: wav(path, np.where(np.arange(8000) == 4000, np.inf, tone())),
        "short": lambda path: wav(path, tone(0.01)),
        "one-sample": lambda path: wav(path, tone(1 / 48_000, 48_000) + 0.5, rate=48_000),
        "silent": lambda path: wav(path, tone() * 1e-5),
        "odd-rate": lambda path: wav(path, tone(), rate=500),
    }


KINDS = {
    "missing": "missing",
    "a-folder": "missing",
    "text": "unreadable",
    "cut-flac": "unreadable",
    "no-bytes": "empty",
    "no-samples": "empty",
    "nan": "not-finite",
    "infinite": "not-finite",
    "short": "short",
    "one-sample": "short",
    "silent": "silent",
    "odd-rate": "unreadable",
}


def test_each_kind_of_damage_is_reported_and_left_out(tmp_path: Path, store: ClipStore) -> None:
    labels = {"good-a.wav": "a"}
    wav(tmp_path / "good-a.wav", tone())
    for name, damage in damaged(tmp_path).items():
        damage(tmp_path / f"{name}.wav")
        labels[f"{name}.wav"] = "a"
    wav(tmp_path / "good-b.wav", tone(hertz=880))
    labels["good-b.wav"] = "b"

    calls: list[tuple[int, int]] = []
    usable, samples, problems = load_clips(
        manifest_of(tmp_path, labels), store, progress=lambda done, total: calls.append((done, total))
    )
    assert {problem.path.stem: problem.kind for problem in problems} == KINDS
    assert [clip.path.name for clip in usable.clips] == ["good-a.wav", "good-b.wav"]
    np.testing.assert_allclose(samples[0], tone())
    np.testing.assert_allclose(samples[1], tone(hertz=880))
    assert calls == [(done, 14) for done in range(1, 15)]
    assert all(problem.detail and str(problem.path) not in problem.detail for problem in problems)

    with pytest.raises(
        ConfitError, match=r"12 of 14 clips cannot be used; the first problem is .*missing\.wav: no such file"
    ):
        load_clips(manifest_of(tmp_path, labels), store, strict=True)


def test_losing_a_whole_class_is_an_error(tmp_path: Path, store: ClipStore) -> None:
    wav(tmp_path / "a.wav", tone())
    wav(tmp_path / "b.wav", tone() * 0)
    with pytest.raises(
        ManifestError, match=r"no clip of class 'b', 'c' can be used; the first problem is .*b\.wav: is sil"
    ):
        load_clips(manifest_of(tmp_path, {"a.wav": "a", "b.wav": "b", "c.wav": "c"}), store)


def test_what_only_swings_below_zero_is_not_silent(tmp_path: Path, store: ClipStore) -> None:
    wav(tmp_path / "a.wav", -np.abs(tone()))
    wav(tmp_path / "b.wav", tone())
    assert load_clips(manifest_of(tmp_path, {"a.wav": "a", "b.wav": "b"}), store)[2] == []


def test_a_class_whose_clips_are_all_too_short_is_reported(tmp_path: Path, store: ClipStore) -> None:
    wav(tmp_path / "a.wav", tone(0.01))
    wav(tmp_path / "b.wav", tone(0.5))
    with pytest.raises(ManifestError, match=r"class 'a' .*0\.010 s long, shorter than 0\.05 s"):
        load_clips(manifest_of(tmp_path, {"a.wav": "a", "b.wav": "b"}), store)


def shards(store: ClipStore) -> list[Path]:
    return sorted(store.folder.glob("*.f32"))


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded from here on."""
    names: list[str] = []

    def load(path: Path, rate: int, longest_s: float | None) -> npt.NDArray[np.float32]:
        names.append(Path(path).name)
        return load_clip(path, rate, longest_s)

    monkeypatch.setattr("confit_edge.data.clips.load_clip", load)
    return names


def test_what_is_decoded_is_kept_on_disk_for_the_next_process(
    tmp_path: Path, store: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = decoded(monkeypatch)
    path = wav(tmp_path / "a.wav", tone(rate=8_000), rate=8_000)
    first = store.get(path)
    np.testing.assert_array_equal(ClipStore(RATE, tmp_path / "cache").get(path), first)
    assert names == ["a.wav"]
    assert len(ClipStore(22_050, tmp_path / "cache").get(path)) == 11_025  # another rate is another entry
    assert names == ["a.wav", "a.wav"]
    assert len(shards(store)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "flipped bit",
        "shard cut",
        "shard empty",
        "shard gone",
        "index garbage",
        "index pages",
        "index of others",
        "index gone",
    ],
)
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, store: ClipStore, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    good, path = wav(tmp_path / "good.wav", tone(hertz=880)), wav(tmp_path / "a.wav", tone())
    for clip in (good, path):
        store.get(clip)
    (shard,) = shards(store)
    index = store.folder / "index.db"
    del store
    if damage == "flipped bit":
        with shard.open("r+b") as file:
            file.seek(4 * len(tone()) + 5000)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    elif damage == "shard cut":
        os.truncate(shard, 4 * len(tone()) + 5000)
    elif damage == "shard empty":
        os.truncate(shard, 0)
    elif damage == "index garbage":
        index.write_bytes(b"garbage" * 2000)
    elif damage == "index pages":
        index.write_bytes(index.read_bytes()[:4096] + b"garbage!" * 4096)
    elif damage == "index of others":
        index.unlink()
        with contextlib.closing(sqlite3.connect(index)) as other:
            other.execute("CREATE TABLE arrays (name TEXT)")
    else:
        (shard if damage == "shard gone" else index).unlink()
    names = decoded(monkeypatch)
    again = ClipStore(RATE, tmp_path / "cache")
    np.testing.assert_array_equal(again.get(good), tone(hertz=880))
    np.testing.assert_array_equal(again.get(path), tone())
    assert "a.wav" in names
    last = ClipStore(RATE, tmp_path / "cache")
    before = len(names)
    np.testing.assert_array_equal(last.get(path), tone())
    np.testing.assert_array_equal(last.get(good), tone(hertz=880))
    assert len(names) == before


def test_a_replaced_clip_is_decoded_again(tmp_path: Path, store: ClipStore) -> None:
    path = wav(tmp_path / "a.wav", tone())
    other = wav(tmp_path / "b.wav", tone(hertz=880))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    store.get(path)
    os.utime(other, ns=times)
    os.replace(other, path)  # of the same size, and as old
    np.testing.assert_array_equal(store.get(path), tone(hertz=880))


@pytest.mark.parametrize("folder", ["a-file", "/proc/confit-edge"])
def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a-file").write_text("in the way")
    store = ClipStore(RATE, tmp_path / folder)
    paths = [wav(tmp_path / f"{hertz}.wav", tone(hertz=hertz)) for hertz in (440, 880)]
    for path, hertz in zip(paths, (440, 880), strict=True):
        np.testing.assert_array_equal(store.get(path), tone(hertz=hertz))
        np.testing.assert_array_equal(store.get(path), tone(hertz=hertz))
    assert len(caplog.records) == 1
    assert "CONFIT_EDGE_CACHE" in caplog.text


def test_clips_take_no_memory_of_the_process(tmp_path: Path, store: ClipStore, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [wav(tmp_path / f"{hertz}.wav", tone(hertz=hertz)) for hertz in range(300, 320)]
    got = [store.get(path) for path in paths]
    assert len({id(pcm.base) for pcm in got}) == 1  # views of one map
    assert store.get(paths[0]) is got[0]
    monkeypatch.setattr("confit_edge.data.pack.MAPPED", 0)  # where too many files are open, they are read instead
    again = ClipStore(RATE, tmp_path / "cache")
    for path, pcm in zip(paths, got, strict=True):
        read = again.get(path)
        np.testing.assert_array_equal(read, pcm)
        assert not read.flags.writeable


def test_a_clip_longer_than_a_shard_has_one_of_its_own(
    tmp_path: Path, store: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confit_edge.data.pack.SHARD", 3000)
    clips = {wav(tmp_path / f"{seconds}.wav", tone(seconds)): tone(seconds) for seconds in (0.1, 0.5, 0.05, 0.06)}
    for _ in range(2):
        for path, pcm in clips.items():
            np.testing.assert_array_equal(store.get(path), pcm)
        store = ClipStore(RATE, tmp_path / "cache")
    assert sorted(path.stat().st_size // 4 for path in shards(store)) == [3000, 3000, 8000]


def test_processes_that_add_at_once_do_not_overwrite_each_other(tmp_path: Path) -> None:
    paths = [wav(tmp_path / f"{hertz}.wav", tone(0.1, hertz=hertz)) for hertz in range(300, 340)]
    stores = [ClipStore(RATE, tmp_path / "cache") for _ in range(4)]  # each with a connection of its own
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: job[0].get(job[1]), [(store, path) for path in paths for store in stores]))
    last = ClipStore(RATE, tmp_path / "cache")
    for path, hertz in zip(paths, range(300, 340), strict=True):
        np.testing.assert_array_equal(last.get(path), tone(0.1, hertz=hertz))


def test_a_place_is_given_once_even_where_another_asks_in_between(tmp_path: Path) -> None:
    one, other = Pack(tmp_path), Pack(tmp_path)
    arrays = {key: np.full(1000, value, np.float32) for value, key in enumerate("abcd")}
    kept = {"a": one.put("a", arrays["a"]), "b": other.put("b", arrays["b"])}
    assert one._connection is not None
    assert other._connection is not None
    other._connection.execute("PRAGMA busy_timeout = 0")
    count = 0

    def query_between(statement: str) -> None:
        nonlocal count
        if statement.startswith("UPDATE shards"):  # the place was looked up, and is about to be taken
            count += 1
            with contextlib.suppress(sqlite3.OperationalError):  # it is locked, as it should be
                kept["c"] = other.put("c", arrays["c"])

    one._connection.set_trace_callback(query_between)
    kept["d"] = one.put("d", arrays["d"])
    one._connection.set_trace_callback(None)
    assert count == 1
    for key, array in kept.items():
        np.testing.assert_array_equal(array, arrays[key])


def test_clips_are_shared_and_cannot_be_written_to(tmp_path: Path, store: ClipStore) -> None:
    path = wav(tmp_path / "a.wav", tone())
    for pcm in (store.get(path), ClipStore(RATE, tmp_path / "cache").get(path)):
        with pytest.raises(ValueError, match="read-only"):
            pcm *= 2


def test_clips_that_cannot_be_kept_cannot_be_written_to_either(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("in the way")
    pcm = ClipStore(RATE, tmp_path / "a-file").get(wav(tmp_path / "a.wav", tone()))
    with pytest.raises(ValueError, match="read-only"):
        pcm *= 2


def test_many_threads_read_the_same_clips(tmp_path: Path, store: ClipStore) -> None:
    paths = [wav(tmp_path / f"{i}.wav", tone(0.1, hertz=300 + i)) for i in range(10)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(store.get, paths * 20))
    for pcm, i in zip(got, list(range(10)) * 20, strict=True):
        np.testing.assert_array_equal(pcm, tone(0.1, hertz=300 + i))
    assert len(shards(store)) == 1


def test_the_environment_says_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIT_EDGE_CACHE", str(tmp_path / "there"))
    ClipStore(RATE).get(wav(tmp_path / "a.wav", tone()))
    assert (tmp_path / "there" / "clips" / "index.db").is_file()
    monkeypatch.delenv("CONFIT_EDGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ClipStore(RATE).folder == tmp_path / "home" / ".cache" / "confit-edge" / "clips"


def test_errors_of_one_clip(tmp_path: Path, store: ClipStore) -> None:
    with pytest.raises(UsageError, match="no such file"):
        store.get(tmp_path / "absent.wav")
    (tmp_path / "text.wav").write_text("text")
    with pytest.raises(AudioError, match="cannot be read as sound"):
        store.get(tmp_path / "text.wav")
    with pytest.raises(UsageError, match="sample rate"):
        ClipStore(0, tmp_path)


def test_cached_compressed_sound_is_read_again_where_reading_changed(
    tmp_path: Path, store: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, again in (("clip.ogg", 2), ("clip.wav", 1)):
        soundfile.write(tmp_path / name, tone(440, 1.0, RATE), RATE)
        read = []
        with monkeypatch.context() as patch:
            patch.setattr(clips, "load_clip", lambda *given, read=read: read.append(given) or load_clip(*given))
            store.get(tmp_path / name)
            store.get(tmp_path / name)
            patch.setattr(clips, "READING", clips.READING + 1)
            store.get(tmp_path / name)
        assert len(read) == again
