"""Clips cut out of labelled recordings: which stretches by which labels, and that their samples are the recording's own."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_edge.data.clips import MIN_S
from confit_edge.data.cut import Part, UniqueNames, atomic_folder, extract
from confit_edge.data.pieces import APART_S, pieces_of, rest_of
from confit_runtime.errors import AudioError, UsageError
from confit_runtime.labels import LabelledRecording
from confit_runtime.scoring import SoundEvent

RATE = 16_000


def night(*sounds: tuple[str, float, float], seconds: float = 20.0) -> LabelledRecording:
    events = sorted((SoundEvent(*sound) for sound in sounds), key=lambda one: (one.start_s, one.end_s, one.label))
    return LabelledRecording(Path("night.wav"), seconds, events)


def test_a_margin_ends_where_another_sound_begins() -> None:
    recording = night(("owl", 0.2, 1.0), ("owl", 1.3, 2.0), ("crow", 5.0, 6.0), ("crow", 19.8, 20.05))
    assert pieces_of(recording, 0.5).kept == [
        (0.0, 1.3, ("owl",)),
        (1.0, 2.5, ("owl",)),
        (4.5, 6.5, ("crow",)),
        (19.3, 20.0, ("crow",)),
    ]
    assert [piece[:2] for piece in pieces_of(recording).kept] == [(0.2, 1.0), (1.3, 2.0), (5.0, 6.0), (19.8, 20.0)]


def test_what_is_heard_in_a_piece_is_in_its_labels() -> None:
    """One place of two labels is one piece; a sound that another touches for less than MIN_S has its own label alone."""
    recording = night(
        *(("owl", 1.0, 2.0), ("crow", 1.0, 2.0)),
        *(("owl", 4.0, 5.0), ("crow", 4.8, 6.0)),
        *(("owl", 8.0, 9.0), ("crow", 8.97, 10.0)),
        *(("wren", 12.0, 14.0), ("Unknown", 12.5, 13.0), ("unknown", 16.0, 17.0), ("crow", 18.0, 18.0)),
    )
    found = pieces_of(recording)
    assert found.kept == [
        (1.0, 2.0, ("crow", "owl")),
        (4.0, 5.0, ("crow", "owl")),
        (4.8, 6.0, ("crow", "owl")),
        (8.0, 9.0, ("owl",)),
        (8.97, 10.0, ("crow",)),
        (12.0, 14.0, ("wren",)),
        (16.0, 17.0, ()),
    ]
    assert (found.overlapping, found.dropped_unknown, [one.start_s for one in found.zero_length]) == (0, 1, [18.0])
    alone = pieces_of(recording, 0.2, alone=True)
    assert [piece.labels for piece in alone.kept] == [("owl",), ("crow",), ("wren",), (), ("crow",)]
    assert (alone.overlapping, alone.zero_length) == (3, [])
    assert alone.kept[0][:2] == (7.8, 9.0)  # and no more of the crow than the table says
    assert alone.kept[-1][:2] == (17.8, 18.2)


def test_two_that_overlap_between_others_are_one_piece() -> None:
    recording = night(("owl", 1.0, 2.0), ("crow", 2.1, 3.0), ("wren", 2.2, 2.9), ("owl", 3.1, 4.0))
    assert pieces_of(recording, 0.3).kept[1:-1] == [(2.0, 3.1, ("crow", "wren"))]


SPANS = st.lists(
    st.tuples(st.sampled_from(["owl", "crow", "unknown"]), st.integers(0, 199), st.integers(0, 30)), max_size=12
)


@settings(max_examples=300)
@given(spans=SPANS, margin=st.sampled_from([0.0, 0.1, 0.7, 3.0]))
def test_no_piece_hides_a_sound_and_no_rest_holds_one(spans: list[tuple[str, int, int]], margin: float) -> None:
    sounds = {(label, start / 10, min(20.0, (start + length) / 10)) for label, start, length in spans}
    recording = night(*sounds)

    def overlap_s(piece: tuple[float, ...], sound: SoundEvent) -> float:
        return min(piece[1], sound.end_s) - max(piece[0], sound.start_s)

    for piece in pieces_of(recording, margin).kept:
        assert 0.0 <= piece.start_s < piece.end_s <= 20.0
        for sound in recording.sounds:
            if sound.label not in (*piece.labels, "unknown"):
                assert overlap_s(piece, sound) < MIN_S
    for stretch in rest_of(recording, margin):
        assert stretch[1] - stretch[0] >= 1.0
        for sound in recording.sounds:
            assert overlap_s(stretch, sound) <= -max(APART_S, margin) + 1e-9


def test_the_rest_of_a_recording_without_sounds_is_all_of_it() -> None:
    assert rest_of(night()) == [(0.0, 20.0)]
    assert rest_of(night(("owl", 1.0, 2.0), ("owl", 3.0, 4.0), ("owl", 19.0, 19.5))) == [(4.5, 18.5)]


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate", "channels", "written"),
    [
        (".wav", "PCM_16", 44_100, 2, ("FLAC", "PCM_16")),
        (".wav", "PCM_U8", 8_000, 1, ("FLAC", "PCM_16")),
        (".flac", "PCM_24", 96_000, 2, ("FLAC", "PCM_24")),
        (".wav", "FLOAT", 48_000, 1, ("WAV", "FLOAT")),
        (".wav", "PCM_16", 16_000, 9, ("WAV", "PCM_16")),
        (".wav", "PCM_16", 96_001, 1, ("WAV", "PCM_16")),  # FLAC holds tens there
        (".ogg", "VORBIS", 22_050, 2, ("FLAC", "PCM_16")),
        (".mp3", "MPEG_LAYER_III", 22_050, 1, ("FLAC", "PCM_16")),
    ],
)
def test_clips_hold_the_samples_of_the_recording(
    tmp_path: Path, suffix: str, subtype: str, rate: int, channels: int, written: tuple[str, str]
) -> None:
    pcm = np.random.default_rng(0).uniform(-0.9, 0.9, (20 * rate, channels)).astype(np.float32)
    source = tmp_path / f"night{suffix}"
    soundfile.write(source, 3 * pcm if subtype == "FLOAT" else pcm, rate, subtype=subtype)
    whole, _ = soundfile.read(source, always_2d=True, dtype="float32")
    spans = [(17.25, 18.0), (1.0, 9.5), (1.0, 2.0), (9.0, 10.0)]  # out of order, and one within another
    files = extract(source, [Part(*span, tmp_path / "owl" / str(at)) for at, span in enumerate(spans)])
    for file, (start, end) in zip(files, spans, strict=True):
        info = soundfile.info(file)
        assert (info.format, info.subtype, info.samplerate, info.channels) == (*written, rate, channels)
        clip, _ = soundfile.read(file, always_2d=True, dtype="float32")
        there = whole[round(start * rate) : round(end * rate)]
        exact = subtype not in ("VORBIS", "MPEG_LAYER_III")
        assert np.allclose(
            clip, there if subtype == "FLOAT" else np.clip(there, -1, 1), rtol=0, atol=0 if exact else 1e-4
        )


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_what_lies_between_parts_costs_little(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour is not decoded for a call in it, where the format says where its samples are."""
    from confit_edge.data import cut

    source = tmp_path / f"night{suffix}"
    soundfile.write(source, np.random.default_rng(0).uniform(-0.3, 0.3, 600 * 8_000), 8_000)
    read, seen = cut._read, []
    monkeypatch.setattr(cut, "_read", lambda *arguments: seen.append(len(got := read(*arguments))) or got)
    extract(source, [Part(500.0, 501.0, tmp_path / "a"), Part(3.0, 4.0, tmp_path / "b")])
    assert sum(seen) == (501 if suffix == ".mp3" else 2) * 8_000


def test_of_a_damaged_recording_no_clip_stays(tmp_path: Path) -> None:
    source = tmp_path / "night.flac"
    soundfile.write(source, np.random.default_rng(0).uniform(-0.3, 0.3, 20 * RATE), RATE)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    parts = [Part(1.0, 2.0, tmp_path / "a" / "1"), Part(15.0, 16.0, tmp_path / "a" / "2")]
    with pytest.raises(AudioError, match=r"night.flac: cannot be read as sound"):
        extract(source, parts)
    assert list((tmp_path / "a").iterdir()) == []
    assert [path.name for path in extract(source, parts[:1])] == ["1.flac"]


def test_names_are_given_once_and_fit_any_file_system() -> None:
    names, span = UniqueNames(), (1.5, 2.0)
    assert names.part(Path("x"), ["Owl/*: b", "night 1"], span) == (1.5, 2.0, Path("x/Owl___ b night 1 00001.500"))
    assert names.part(Path("x"), ["owl|*: b", "night 1"], (1.5, 3.0)).stem.name == "owl___ b night 1 00001.500 (2)"
    assert names.part(Path("x"), ["..", "\udce9"], span).stem == Path("x/_ _ 00001.500")
    long = names.part(Path("x"), ["\u9ce5" * 300, "n" * 300], span).stem.name
    assert len(f"{long} (999).flac".encode()) <= 255


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_whole_or_not_there(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "new" / "clips"
    if there:  # such as a disk of its own, which is neither removed nor replaced
        out.mkdir(parents=True)
        same = out.stat().st_ino
    with suppress(KeyboardInterrupt), atomic_folder(out, "-o") as partial:
        (partial / "1.flac").write_text("")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == (["new", "clips"] if there else ["new"])
    left = (out if there else out.parent) / ".clips.0123abcd.partial"  # as kill -9 does
    (left / "wrong").mkdir(parents=True)
    with atomic_folder(out, "-o") as partial:
        (partial / "owl").mkdir()
        (partial / "owl" / "1.flac").write_text("")
        (partial / "manifest.csv").write_text("")
        assert partial.name.startswith(".")
        assert not (out / "manifest.csv").exists()
    assert sorted(path.name for path in out.parent.rglob("*")) == ["1.flac", "clips", "manifest.csv", "owl"]
    assert not there or out.stat().st_ino == same
    with pytest.raises(UsageError, match=r"-o .*clips: is not empty"), atomic_folder(out, "-o"):
        pass


@pytest.mark.parametrize("there", [False, True])
def test_of_two_that_make_one_folder_the_second_to_end_is_refused(tmp_path: Path, there: bool) -> None:
    """So its clips do not come among those of the first, whose manifest knows nothing of them."""
    out = tmp_path / "clips"
    if there:
        out.mkdir()
    with ExitStack() as held:
        second = held.enter_context(atomic_folder(out, "-o"))
        (second / "crow").mkdir()
        with atomic_folder(out, "-o") as first:
            (first / "owl").mkdir()
        with pytest.raises(UsageError, match=r"-o .*clips: is no longer empty"):
            held.close()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["clips", "clips/owl"]
