"""What taps add to detections: who spoke, what is dropped, what is kept; with the tiny model as the speaker model."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_runtime import AudioError, Detection, Listener, Model, UsageError, listen
from confit_runtime.audio import load_clip
from confit_runtime.enrollment import (
    MIN_VOICE_S,
    embed_query,
    extract_prints,
    floor_to_tenths,
    split_voice,
    still_needed,
)
from confit_runtime.gallery import Gallery
from confit_runtime.speaker import RecentAudio, SaveTap, SpeakerTap, VetoTap, trigger_audio
from confit_runtime.voice_activity import remove_pauses
from tests.nobody import as_nobody
from tests.tiny_model import HOP, RATE, Floats, chord, silence, tone

ADA, BEN = (300.0, 800.0, 1800.0), (500.0, 1200.0, 2600.0)
JINGLE = (500.0, 1800.0, 5000.0)


def detection(start: float, end: float, label: str = "low", rate: int = RATE) -> Detection:
    return Detection("tiny", label, 0.9, start, end, round(start * rate), round(end * rate))


def ahead_of(model: Model) -> int:
    """How far the window of a model's newest row reaches beyond the end of its detection."""
    return model.contract.latency_samples - model.contract.hop // 2


@pytest.fixture
def voices(tmp_path: Path, model: Model) -> Path:
    path = tmp_path / "voices.db"
    with Gallery.open(path, model, create=True) as gallery:
        for name, frequencies in (("ada", ADA), ("ben", BEN)):
            print_ = model.embed(chord(frequencies, 1.0), RATE)[None]
            gallery.enroll(name, print_, sources=["x"], voiced_s=6.0)
    return path


def scene() -> Floats:
    """ada at 1 s, ben at 6 s, a stranger at 11 s; each for a second."""
    parts = [chord(ADA, 1.0), chord(BEN, 1.0), chord((300.0, 5000.0), 1.0)]
    return np.concatenate([silence(1.0), *(np.concatenate([part, silence(4.0)]) for part in parts)])


def test_recent_audio_does_not_depend_on_chunk_sizes() -> None:
    pcm = np.arange(1000, dtype=np.float32)
    for step in (1, 7, 100, 1000):
        recent = RecentAudio(seconds=300 / RATE)
        recent.begin("source", RATE)
        for at in range(0, 1000, step):
            recent.hear(pcm[at : at + step], RATE)
        np.testing.assert_array_equal(recent.between(800, 900), pcm[800:900])
        np.testing.assert_array_equal(recent.between(0, 750), pcm[700:750])
        recent.skip(5000)
        recent.hear(pcm[:50], RATE)
        np.testing.assert_array_equal(recent.between(6000, 6050), pcm[:50])
        assert not recent.between(5900, 6000).any()
        recent.skip(10**9)
        assert len(recent.between(0, 2 * 10**9)) == 300


def test_speakers_are_named_and_others_dropped(voices: Path, model: Model) -> None:
    with Gallery.open(voices, model) as gallery:
        everybody, only = SpeakerTap(model, gallery), SpeakerTap(model, gallery, {"tiny": ["ben"]})
        heard = []
        for tap in (everybody, only):
            tap.begin("scene", RATE)
        for at, second in enumerate(np.split(scene(), 16)):
            for tap in (everybody, only):
                tap.hear(second, RATE)
            if at in (1, 6, 11):
                told = [tap.judge(detection(at + 0.3, at + 0.9)) for tap in (everybody, only)]
                heard.append([None if one is None else one.speaker for one in told])
        assert heard == [["ada", None], ["ben", "ben"], [None, None]]
        assert only.judge(detection(15.2, 15.8)) is None  # silence
        alarm = dataclasses.replace(detection(15.2, 15.8), model="alarms")
        assert only.judge(alarm) == alarm  # of a model that is listened to whoever speaks
        nobody = SpeakerTap(model, gallery, {"tiny": []})
        nobody.begin("scene", RATE)
        nobody.hear(scene()[: 8 * RATE], RATE)
        assert nobody.judge(detection(6.3, 6.9)) is None


def test_only_names_match_in_any_unicode_normalisation(voices: Path, model: Model) -> None:
    with Gallery.open(voices, model) as gallery:
        gallery.rename("ben", "Zoë")
        tap = SpeakerTap(model, gallery, {"tiny": [unicodedata.normalize("NFD", "Zoë")]})
        tap.begin("scene", RATE)
        tap.hear(scene()[: 8 * RATE], RATE)
        told = tap.judge(detection(6.3, 6.9))
        assert told is not None
        assert told.speaker == "Zoë"


def test_removing_the_only_listed_name_is_logged(voices: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with Gallery.open(voices, model) as gallery:
        tap = SpeakerTap(model, gallery, {"tiny": ["ben"]})
        tap.begin("scene", RATE)
        tap.hear(scene(), RATE)
        assert tap.judge(detection(15.2, 15.8)) is None
        assert not caplog.records
        gallery.rename("ben", "benjamin")
        assert [tap.judge(detection(15.2, 15.8)) for _ in range(3)] == [None] * 3
    assert [record.message for record in caplog.records] == [
        f"{voices}: ben is no longer enrolled, so no detections of tiny are reported"
    ]


def test_speech_before_a_short_detection_identifies_the_speaker(voices: Path, model: Model) -> None:
    with Gallery.open(voices, model) as gallery:
        tap = SpeakerTap(model, gallery)
        tap.begin("scene", RATE)
        tap.hear(scene()[: 2 * RATE], RATE)
        told = tap.judge(detection(1.8, 1.9))
        assert told is not None
        assert told.speaker == "ada"


def test_what_nobody_speaks_is_not_credited_to_who_spoke_before(voices: Path, model: Model) -> None:
    with Gallery.open(voices, model) as gallery:
        tap = SpeakerTap(model, gallery)
        tap.begin("scene", RATE)
        beep = chord((5000.0,), 0.9)
        tap.hear(np.concatenate([silence(1.0), chord(ADA, 1.5), silence(0.2), beep, silence(0.5)]), RATE)
        told = tap.judge(detection(2.8, 3.5))
        assert told is not None
        assert told.speaker is None


def test_of_a_long_detection_all_voice_counts_and_nothing_else(voices: Path, model: Model) -> None:
    spoken = {1.0: chord(ADA, 2.4), 3.4: chord(BEN, 2.2), 5.6: chord(ADA, 0.5)}
    whistled = {1.0: chord(ADA, 0.4), 2.2: chord((5000.0,), 2.8), 5.6: chord(ADA, 0.5)}  # above all voices
    with Gallery.open(voices, model) as gallery:
        for parts in (spoken, whistled):
            sound = silence(7.0)
            for at, part in parts.items():
                sound[round(at * RATE) :][: len(part)] += part
            tap = SpeakerTap(model, gallery)
            tap.begin("scene", RATE)
            tap.hear(sound, RATE)
            told = tap.judge(detection(1.1, 6.1))
            assert told is not None
            assert told.speaker == "ada"


# of the last two the first is within the slack of a word, which needs 0.6, and the second is not
@pytest.mark.parametrize(
    ("second", "speaker"),
    [(ADA, "ada"), (BEN, None), ((1000.0, 3600.0), None), ((300.0, 3600.0), "ada"), ((300.0, 3600.0, 5000.0), None)],
)
def test_an_earlier_speaker_is_not_credited_with_anothers_word(
    voices: Path, model: Model, second: tuple[float, ...], speaker: str | None
) -> None:
    pause = silence(0.3)
    with Gallery.open(voices, model) as gallery:
        tap = SpeakerTap(model, gallery)
        tap.begin("scene", RATE)
        tap.hear(np.concatenate([silence(1.0), chord(ADA, 2.2), pause, chord(second, 0.5), pause]), RATE)
        told = tap.judge(detection(3.6, 3.9))
        assert told is not None
        assert told.speaker == speaker
        everything = tap.between(round(0.9 * RATE), round(3.9 * RATE))
        assert gallery.match(model.embed(everything, RATE)).name == "ada"  # which alone would not tell


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_the_sound_of_a_detection_is_its_window_in_the_sources_own_samples(model: Model, rate: int) -> None:
    pcm = np.arange(5 * rate, dtype=np.float32)
    recent = RecentAudio()
    recent.begin("source", rate)
    recent.hear(pcm, rate)
    event = dataclasses.replace(detection(0.0, 0.0), start_sample=2 * rate, end_sample=2 * rate + rate // 100)
    window, ahead = (at * rate // RATE for at in (model.contract.window, ahead_of(model)))
    last = event.end_sample + ahead
    np.testing.assert_array_equal(trigger_audio(recent, event, model), pcm[last - window : last])
    recent.begin("another", rate)
    assert len(recent.between(0, 5 * rate)) == 0


def test_a_lent_buffer_may_be_used_again() -> None:
    recent, lent = RecentAudio(), np.ones(100, np.float32)
    recent.begin("source", RATE)
    recent.hear(lent, RATE)
    lent[:] = 9.0
    assert recent.between(0, 100).max() == 1.0


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_false_alarm_that_was_taught_is_dropped(tmp_path: Path, model: Model, rate: int) -> None:
    """Whatever rate the microphone has."""
    parts = silence(1.0, rate), chord(JINGLE, 0.5, rate), silence(1.0, rate), tone(500, 0.5, rate)
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        tap = VetoTap(model, gallery)
        tap.begin("scene", rate)
        tap.hear(np.concatenate(parts), rate)
        alarm, truth = detection(1.0, 1.5, rate=rate), detection(2.5, 3.0, rate=rate)
        assert tap.judge(alarm) == alarm
        jingle = model.embed(chord(JINGLE, 0.5), RATE)[None]
        gallery.enroll("low", jingle, sources=["tv"], voiced_s=0.5, negative=True)
        assert tap.judge(alarm) is None
        assert tap.judge(truth) == truth
        assert tap.judge(detection(1.0, 1.5, "mid", rate)) is not None
        of_a_name = dataclasses.replace(alarm, enrolled=True)  # its stream compared it with the negative prints already
        assert tap.judge(of_a_name) == of_a_name
        of_another_model = dataclasses.replace(alarm, model="other")
        assert tap.judge(of_another_model) == of_another_model


def test_triggers_are_saved_with_a_full_window(tmp_path: Path, model: Model) -> None:
    tap, pcm = SaveTap(tmp_path / "triggers", [model]), scene()
    tap.begin("scene", RATE)
    tap.hear(pcm[: 2 * RATE], RATE)
    assert tap.judge(detection(1.2, 1.3, "lów/../x")) == detection(1.2, 1.3, "lów/../x")
    (kept,) = (tmp_path / "triggers").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600  # what was said in a house
    sound, rate = soundfile.read(kept, dtype="float32")
    assert rate == RATE
    last = round(1.3 * RATE) + ahead_of(model)
    first = min(round(1.2 * RATE), last - model.contract.window)
    np.testing.assert_allclose(sound, pcm[first:last], atol=1e-4)


def test_triggers_are_not_saved_where_nothing_can_be_written(public_folder: Path) -> None:
    public_folder.chmod(0o555)
    program = as_nobody(
        "from pathlib import Path; from confit_runtime import load; from confit_runtime.speaker import SaveTap;"
        " models = [load('digits')]",
        "SaveTap(Path(sys.argv[1]), models)",
    )
    result = subprocess.run([sys.executable, "-c", program, public_folder], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == f"PermissionError: [Errno 13] Permission denied: '{public_folder}'"


@pytest.mark.parametrize("size", [100, HOP, 16 * HOP])
def test_saved_triggers_do_not_depend_on_chunk_sizes(tmp_path: Path, model: Model, size: int) -> None:
    """Half a hop of the window was missing where sound came in small pieces."""
    pcm = np.concatenate([silence(1.0), tone(500, 0.5), silence(1.0)])
    listener = Listener([model.stream()], "scene", RATE, taps=[SaveTap(tmp_path, [model])])
    for at in range(0, len(pcm), size):
        for event in listener.take((pcm[at : at + size], RATE)):
            assert isinstance(event, Detection)
            last = event.end_sample + ahead_of(model)
            first = min(event.start_sample, last - model.contract.window)
            sound, _ = soundfile.read(next(tmp_path.iterdir()), dtype="float32")
            np.testing.assert_allclose(sound, pcm[first:last], atol=1e-4)
            assert model.rows(sound, RATE)[0][-1].argmax() == 0
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("rate", "kept"), [(65_535, 65_535), (65_537, 65_530), (96_001, 96_000), (768_000, 655_350)])
def test_triggers_are_kept_at_any_rate(tmp_path: Path, model: Model, rate: int, kept: int) -> None:
    tap = SaveTap(tmp_path, [model])
    tap.begin("scene", rate)
    tap.hear(tone(500, 1.0, rate), rate)
    tap.judge(dataclasses.replace(detection(0.4, 0.6), start_sample=round(0.4 * rate), end_sample=round(0.6 * rate)))
    (path,) = tmp_path.iterdir()
    assert soundfile.info(path).samplerate == kept
    assert model.classify(path).label == "low"


def test_a_trigger_of_a_model_that_was_not_named_is_refused(tmp_path: Path, model: Model) -> None:
    tap = SaveTap(tmp_path, [model])
    tap.begin("scene", RATE)
    tap.hear(scene()[: 2 * RATE], RATE)
    with pytest.raises(UsageError, match=r"cannot save a trigger of other: .* \(tiny\)"):
        tap.judge(dataclasses.replace(detection(1.2, 1.3), model="other"))


def test_of_a_window_of_many_seconds_all_is_kept(tmp_path: Path, model: Model) -> None:
    wide = copy.copy(model)
    hop = model.contract.hop
    window = 10 * RATE // hop * hop
    wide.contract = dataclasses.replace(
        model.contract, window=window, warmup_hops=window // hop - 1, latency_samples=window // 2
    )
    pcm = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE).astype(np.float32)
    tap = SaveTap(tmp_path, [model, wide])
    tap.begin("scene", RATE)
    for second in np.split(pcm, 20):
        tap.hear(second, RATE)
    tap.judge(detection(14.0, 14.5))  # told at 19.5 s
    sound, _ = soundfile.read(next(tmp_path.iterdir()), dtype="float32")
    last = round(14.5 * RATE) + ahead_of(wide)
    np.testing.assert_allclose(sound, pcm[last - window : last], atol=1e-4)


def test_a_trigger_at_the_start_holds_the_available_sound(tmp_path: Path, model: Model) -> None:
    """A name fires before its sound is over: what the model heard by then is kept, not what it fired on alone."""
    path, bell = tmp_path / "gallery.db", chord((300.0, 2600.0), 0.6)
    soundfile.write(tmp_path / "bell.wav", np.concatenate([bell, silence(0.5)]), RATE)
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("bell", model.embed(bell, RATE)[None], sources=["x"], voiced_s=0.6)
        tap = SaveTap(tmp_path / "triggers", [model])
        (found,) = listen(model.stream(gallery, lead_in=True), str(tmp_path / "bell.wav"), taps=[tap])
    (kept,) = (tmp_path / "triggers").iterdir()
    last = found.end_sample + ahead_of(model)
    assert soundfile.info(kept).frames == last - max(0, last - model.contract.window)


def test_every_trigger_has_a_file_of_its_own(tmp_path: Path, model: Model) -> None:
    taps = [SaveTap(tmp_path / "triggers", [model]) for _ in range(2)]  # as two programs begun in the same second
    for tap in taps:
        for clip in ("clips/a.wav", "clips/b.wav"):
            tap.begin(clip, RATE)
            tap.hear(scene()[: 2 * RATE], RATE)
            tap.judge(detection(1.2, 1.3))
    kept = [file.name for file in sorted((tmp_path / "triggers").iterdir())]
    assert len(kept) == 4
    assert sum("-a-" in name for name in kept) == sum("-b-" in name for name in kept) == 2


def test_simultaneous_listeners_save_separate_files(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    taps = [SaveTap(tmp_path, [model]) for _ in range(4)]
    for tap in taps:
        tap.begin("mic", RATE)
        tap.hear(chord(ADA, 2.0), RATE)
    workers = [
        threading.Thread(target=lambda tap=tap: [tap.judge(detection(1.2, 1.3)) for _ in range(10)]) for tap in taps
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    kept = list(tmp_path.iterdir())
    assert len(kept) == 40
    assert all(path.read_bytes().startswith(b"fLaC") for path in kept)


def test_listening_continues_if_a_trigger_cannot_be_saved(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is cleared away is made again; one that cannot be is told of once, and again after it could be."""
    folder = tmp_path / "triggers"
    tap = SaveTap(folder, [model])
    tap.begin("scene", RATE)
    tap.hear(scene()[: 2 * RATE], RATE)
    for occupied, kept in ((False, 1), (True, 0), (True, 0), (False, 1), (True, 0)):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        if occupied:
            folder.write_text("in the way")
        assert tap.judge(detection(1.2, 1.3)) == detection(1.2, 1.3)
        if not occupied:
            assert len(list(folder.iterdir())) == kept
    assert caplog.text.count("triggers cannot be saved") == 2


def test_of_a_folder_of_triggers_the_newest_are_kept(tmp_path: Path, model: Model) -> None:
    """Those of a former program too; and what has another name is nobody's to remove."""
    others = ["low-20260101-000000-mic.flac", "low.flac", "low-20260101-000000-mic-0001.wav", "märz-1.flac"]
    for name in others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    kept: list[str] = []
    for label in ("lów/../x", "a" * 50, "mid"):
        tap = SaveTap(tmp_path, [model], max_files=3)
        for source in ("rtsp://camera.local/a-1 b", "-", ""):
            tap.begin(source, RATE)
            tap.hear(scene()[: 2 * RATE], RATE)
            for _ in range(2):
                before = set(tmp_path.iterdir())
                tap.judge(detection(1.2, 1.3, label))
                (new,) = set(tmp_path.iterdir()) - before
                kept = [*kept, new.name][-3:]
                assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, *kept])
    for name in kept[:2]:  # moved away meanwhile
        (tmp_path / name).unlink()
    tap.judge(detection(1.2, 1.3))
    assert len(list(tmp_path.iterdir())) == len(others) + 2


def test_several_programs_share_one_trigger_limit(tmp_path: Path, model: Model) -> None:
    taps = [SaveTap(tmp_path, [model], max_files=3) for _ in range(2)]
    for source, tap in zip(("kitchen", "hall"), taps, strict=True):
        tap.begin(source, RATE)
        tap.hear(scene()[: 2 * RATE], RATE)
    made: list[Path] = []
    for at in (0, 0, 1, 1, 0, 1, 1, 1, 0):
        before = set(tmp_path.iterdir())
        taps[at].judge(detection(1.2, 1.3))
        made += set(tmp_path.iterdir()) - before
        os.utime(made[-1], (len(made), len(made)))  # written within one tick of the clock they would be equally old
        assert set(tmp_path.iterdir()) == set(made[-3:])


def test_a_trigger_that_cannot_be_removed_does_not_end_the_limit(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """As another user's in a shared folder; here they are folders, which nobody removes as files. The log says so once."""
    staying = [tmp_path / f"low-20260101-000000-mic-000{at}.flac" for at in (1, 2)]
    for path in staying:
        path.mkdir()
        os.utime(path, (0, 0))
    tap = SaveTap(tmp_path, [model], max_files=3)
    tap.begin("mic", RATE)
    tap.hear(scene()[: 2 * RATE], RATE)
    made: list[Path] = []
    for _ in range(6):
        before = set(tmp_path.iterdir())
        tap.judge(detection(1.2, 1.3))
        made += set(tmp_path.iterdir()) - before
    assert set(tmp_path.iterdir()) == {*staying, *made[-3:]}
    assert caplog.text.count("cannot be removed") == 1
    for path in staying:  # what could be removed meanwhile counts no more, and the limit stands
        path.rmdir()
    tap.judge(detection(1.2, 1.3))
    assert len(list(tmp_path.iterdir())) == 3


# enrolling


def test_too_little_voice_is_rejected_with_the_missing_seconds(model: Model) -> None:
    word = load_clip(Path(__file__).parents[2] / "confit_edge/demo/data/digits-real/one.ogg", RATE)[: RATE // 3]
    with pytest.raises(AudioError, match=r"one\.wav: holds 0\.\d s of voice in .* 0\.\d s more"):
        extract_prints(model, np.concatenate([silence(2.0), word]), "speaker", "one.wav")
    with pytest.raises(AudioError, match="is silent"):
        embed_query(model, silence(2.0), "speaker", "none.wav")
    assert extract_prints(model, tone(440, 0.2), "sound", "beep.wav").seconds == pytest.approx(0.2, abs=0.03)
    assert (floor_to_tenths(0.499), floor_to_tenths(3.96)) == (0.4, 3.9)  # as little as it is, not as what is needed
    assert still_needed(3.5, "speaker") == MIN_VOICE_S - 3.5
    assert still_needed(50.0, "speaker") == still_needed(0.0, "sound") == 0.0


def test_silence_around_a_sound_counts_for_nothing(model: Model) -> None:
    padded = np.concatenate([silence(1.0), tone(440, 0.3), silence(1.0)])
    assert extract_prints(model, padded, "sound", "beep.wav").seconds == pytest.approx(0.3, abs=0.1)


def test_queries_are_embedded_where_there_is_voice(model: Model) -> None:
    word = load_clip(Path(__file__).parents[2] / "confit_edge/demo/data/digits-real/seven.ogg", RATE)
    clip = np.concatenate([silence(2.0), word, word, silence(2.0)])
    asked = embed_query(model, clip, "speaker", "q.wav")
    np.testing.assert_allclose(asked, model.embed(remove_pauses(clip, RATE), RATE), atol=1e-6)
    assert asked @ model.embed(clip, RATE) < 0.99


def test_a_print_is_of_about_three_seconds_of_voice() -> None:
    word = load_clip(Path(__file__).parents[2] / "confit_edge/demo/data/digits-real/seven.ogg", RATE)
    voice = remove_pauses(np.tile(word, 14), RATE)
    parts = [len(split_voice(voice[: round(seconds * RATE)], RATE)) for seconds in (1.0, 4.4, 4.9)]
    assert parts == [1, 1, 2]
    (among_silences,) = split_voice(np.concatenate([silence(4.0), voice[: 3 * RATE], silence(4.0)]), RATE)
    assert len(among_silences) / RATE == pytest.approx(3.5, abs=0.2)


def test_long_clips_give_several_prints_of_equal_length(model: Model) -> None:
    word = load_clip(Path(__file__).parents[2] / "confit_edge/demo/data/digits-real/seven.ogg", RATE)
    parts = split_voice(np.tile(word, 14), RATE)
    lengths = [len(part) / RATE for part in parts]
    assert len(parts) >= 2
    assert max(lengths) - min(lengths) < 0.01
    assert 1.5 < lengths[0] < 4.5
    taken = extract_prints(model, np.tile(word, 14), "speaker", "sevens")
    assert taken.embeddings.shape == (len(parts), model.contract.embedding_dim)
    assert 0.5 * sum(lengths) < taken.seconds <= sum(lengths)
