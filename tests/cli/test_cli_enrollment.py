"""Enrollment as a user runs it: the shipped speaker model on real and synthetic speech, negatives, other files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.cli._gallery_options import refusal_reason
from confit_edge.demo import DATA
from confit_runtime import Match
from confit_runtime.audio import load_clip
from tests import tiny_model
from tests.cli.command import Confit
from tests.cli.device import lines, run
from tests.tiny_model import tone

RATE = 16_000


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of five words by three synthetic voices of the demo's test split, and a scene of a real person's digits."""
    folder, rng = tmp_path_factory.mktemp("voices"), np.random.default_rng(0)
    words = sorted(path.name for path in (DATA / "words").iterdir() if path.is_dir())
    for voice in ("am_santa", "bf_lily", "zf_xiaoyi"):
        order = rng.permutation(words)
        for at in range(4):
            chosen = order[5 * at : 5 * at + 5]
            parts = [load_clip(DATA / "words" / word / f"{voice}.ogg", RATE) for word in chosen]
            soundfile.write(folder / f"{voice}-{at}.flac", np.concatenate(parts), RATE)
    pause = np.zeros(RATE, np.float32)
    digits = [load_clip(DATA / "digits-real" / f"{word}.ogg", RATE) for word in ("one", "seven")]
    soundfile.write(folder / "scene.flac", np.concatenate([pause, digits[0], pause, digits[1], pause]), RATE)
    return folder


def test_voices_are_enrolled_identified_and_verified(clips: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "enroll", "speakers", "santa", str(clips / "am_santa-0.flac"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "s more are missing, a sentence or two; nothing was written" in done.stderr
    assert not (tmp_path / "gallery.db").exists()
    for name, voice in (("santa", "am_santa"), ("lily", "bf_lily")):
        own_clips = [str(clips / f"{voice}-{at}.flac") for at in range(3)]
        (enrolled,) = lines(run(tmp_path, "enroll", "speakers", name, *own_clips, "--json"))
        assert (enrolled["name"], enrolled["negative"]) == (name, False)
        assert enrolled["prints"] >= 3
        assert enrolled["voiced_s"] > 4.0

    other = run(
        tmp_path, "enroll", "speakers", "somebody", str(clips / "bf_lily-1.flac"), str(clips / "zf_xiaoyi-0.flac")
    )
    assert (other.returncode, other.stdout) == (2, "")
    assert "some of the sounds for 'somebody' are already enrolled as 'lily'" in other.stderr

    query_clips = [str(clips / f"{voice}-3.flac") for voice in ("am_santa", "bf_lily", "zf_xiaoyi")]
    *matches, summary = lines(run(tmp_path, "identify", "speakers", *query_clips, "--json"))
    assert [match["name"] for match in matches] == ["santa", "lily", None]
    assert [match["score"] >= match["threshold"] for match in matches[:2]] == [True, True]
    assert (summary["known"], summary["unknown"]) == (2, 1)

    yes = run(tmp_path, "verify", "speakers", "santa", query_clips[0], "--json")
    no = run(tmp_path, "verify", "speakers", "santa", query_clips[1], "--json")
    assert [(done.returncode, lines(done)[0]["verified"]) for done in (yes, no)] == [(0, True), (1, False)]
    assert lines(no)[0]["runner_up"] == "lily"
    assert run(tmp_path, "verify", "speakers", "nobody", query_clips[0]).returncode == 2
    (tmp_path / "text.wav").write_text("no sound")
    untold = run(tmp_path, "verify", "speakers", "santa", "text.wav")
    assert (untold.returncode, untold.stdout, len(untold.stderr.splitlines())) == (2, "", 1)  # which is no "no"


def test_a_voice_is_known_whatever_its_level_offset_and_hum(clips: Path, tmp_path: Path) -> None:
    own_clips = [str(clips / f"am_santa-{at}.flac") for at in range(3)]
    assert run(tmp_path, "enroll", "speakers", "santa", *own_clips).returncode == 0
    voice = load_clip(clips / "am_santa-3.flac", RATE)
    voice *= np.float32(10 ** (-30 / 20) / np.sqrt(np.square(voice).mean()))
    hum = 0.014 * np.sin(2 * np.pi * 50 * np.arange(len(voice)) / RATE)
    flawed = {"soft": 0.1 * voice, "loud": 5 * voice, "offset": voice + 0.02, "hum": voice + hum}
    for name, pcm in flawed.items():
        soundfile.write(tmp_path / f"{name}.flac", pcm, RATE)
    *matches, _ = lines(run(tmp_path, "identify", "speakers", *(f"{name}.flac" for name in flawed), "--json"))
    assert [match["name"] for match in matches] == ["santa"] * 4


def test_a_saved_trigger_is_taught_as_a_false_alarm(clips: Path, tmp_path: Path) -> None:
    listen = ("listen", "digits", "--source", str(clips / "scene.flac"), "--json")
    first = [line for line in lines(run(tmp_path, *listen, "--save-triggers", "kept")) if line["type"] == "detection"]
    assert [line["label"] for line in first] == ["one", "seven"]
    (trigger,) = (tmp_path / "kept").glob("one-*.flac")
    done = run(tmp_path, "enroll", "digits", "one", str(trigger), "--negative", "--gallery", "house.db", "--json")
    assert lines(done)[0]["negative"] is True
    again = lines(run(tmp_path, *listen, "--gallery", "house.db"))
    assert [line["label"] for line in again if line["type"] == "detection"] == ["seven"]
    assert again[-1]["by_model"] == {"digits": {"detections": {"seven": 1}, "withheld": {"one": 1}}}


def test_only_one_speaker_is_listened_to(clips: Path, tmp_path: Path) -> None:
    own_clips = [str(clips / f"bf_lily-{at}.flac") for at in range(3)]
    assert run(tmp_path, "enroll", "speakers", "lily", *own_clips).returncode == 0
    listen = ("listen", "digits", "--source", str(clips / "scene.flac"), "--gallery", "gallery.db")
    voices = ("--speaker-model", "speakers")
    detections = lines(run(tmp_path, *listen, *voices, "--json"))
    assert [(line["label"], line["speaker"]) for line in detections[:-1]] == [("one", None), ("seven", None)]
    (summary,) = lines(run(tmp_path, *listen, *voices, "--only", "lily", "--json"))
    assert summary["by_model"] == {"digits": {"detections": {}, "withheld": {"one": 1, "seven": 1}}}
    silent = run(tmp_path, *listen, *voices, "--only", "lily")
    assert silent.stderr.rstrip().endswith("s; withheld: one 1, seven 1")
    for options, what in (
        ([*listen, *voices, "--only", "ada"], "--only ada: is not enrolled"),
        (["listen", "digits", "--source", "x.wav", "--only", "lily"], "--speaker-model"),
        (["listen", "digits", "--source", "x.wav", *voices], "--gallery"),
        (["enroll", "speakers", "ada"], "--mic"),
    ):
        done = run(tmp_path, *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert what in done.stderr


def test_commands_are_taken_only_from_the_family_and_alarms_from_anybody(clips: Path, tmp_path: Path) -> None:
    own_clips = [str(clips / f"bf_lily-{at}.flac") for at in range(3)]
    assert run(tmp_path, "enroll", "speakers", "lily", *own_clips).returncode == 0
    spoken, rate = soundfile.read(clips / "scene.flac", dtype="float32")
    soundfile.write(tmp_path / "house.flac", np.concatenate([spoken, tone(500, 0.5, rate)]), rate)
    tiny_model.build(tmp_path / "alarms.onnx", name="ala\N{LATIN SMALL LETTER R WITH CARON}m")
    listen = ("listen", "digits", "alarms.onnx", "--source", "house.flac", "--json")
    voices = ("--speaker-model", "speakers", "--gallery", "gallery.db")
    digits, alarms = (
        "eight, five, four, nine, one, seven, six, three, two, zero (digits)",
        "low, mid, high (ala\N{LATIN SMALL LETTER R WITH CARON}m)",
    )
    for only, expected_names, of_digits, of_alarms in (
        ("digits:lily", "from anybody", {}, True),
        ("lily", "only from lily", {}, False),
        ("alar\N{COMBINING CARON}m:lily", "only from lily", {"one": 1, "seven": 1}, False),
    ):
        done = run(tmp_path, *listen, *voices, "--only", only)
        assert done.returncode == 0, done.stderr
        first, second = (one["detections"] for one in lines(done)[-1]["by_model"].values())
        assert (first, "low" in second) == (of_digits, of_alarms)
        from_whom = "from anybody" if of_digits else "only from lily"
        assert done.stderr == f"reporting: {digits} {from_whom}; {alarms} {expected_names}\n"
    done = run(tmp_path, *listen, *voices, "--only", "bells:lily")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "what stands before a colon must be a model: digits, ala\N{LATIN SMALL LETTER R WITH CARON}m" in done.stderr


def test_the_speaker_is_reported_without_a_keyword(clips: Path, tmp_path: Path) -> None:
    """As the docs show it, alone and beside another model; who is not enrolled is nobody."""
    own_clips = [str(clips / f"bf_lily-{at}.flac") for at in range(3)]
    assert run(tmp_path, "enroll", "speakers", "lily", *own_clips, "--gallery", "family.db").returncode == 0
    pause = np.zeros(RATE, np.float32)
    spoken = [load_clip(clips / f"{voice}-3.flac", RATE) for voice in ("am_santa", "bf_lily", "zf_xiaoyi")]
    soundfile.write(tmp_path / "family.flac", np.concatenate([pause, spoken[0], pause, *spoken[1:]]), RATE)
    start_s, end_s = (1.0 + len(spoken[0]) / RATE + 1.0 + seconds for seconds in (0.0, len(spoken[1]) / RATE))
    for models in (("speakers",), ("digits", "speakers")):
        detections = lines(
            run(tmp_path, "listen", *models, "--source", "family.flac", "--gallery", "family.db", "--json")
        )
        named = [line for line in detections if line["type"] == "detection" and line["model"] == "speakers"]
        assert {line["label"] for line in named} == {"lily"}
        assert all(start_s - 0.5 < line["start_s"] < end_s for line in named)


def test_galleries_are_exported_imported_and_rebuilt_for_another_model(clips: Path, tmp_path: Path) -> None:
    own_clips = [str(clips / f"bf_lily-{at}.flac") for at in range(3)]
    run(tmp_path, "enroll", "speakers", "lily", *own_clips, "--keep-audio")
    assert run(tmp_path, "gallery", "export", "lily", "-o", "lily.db").returncode == 0
    imported = lines(run(tmp_path, "gallery", "import", "lily.db", "--gallery", "new.db", "--json"))
    assert imported[0]["name"] == "lily"
    refused = run(tmp_path, "identify", "digits", own_clips[0], "--gallery", "new.db")
    assert refused.returncode == 1
    assert refused.stderr.endswith(": use that model, or another --gallery\n")
    again = ("gallery", "re-enroll", "digits", "--gallery", "new.db")
    refused = run(tmp_path, *again)
    assert refused.returncode == 2
    assert "holds voices, but digits is for sounds" in refused.stderr
    assert run(tmp_path, *again, "--kind", "speaker").returncode == 0
    answer = run(tmp_path, "identify", "digits", own_clips[0], "--gallery", "new.db", "--json")
    match = lines(answer)[0]
    assert match["score"] > 0.8


@pytest.fixture
def words(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confit: Confit) -> Path:
    """The folder the tests stand in, with words.db: `marvin`, enrolled with digits from one clip."""
    monkeypatch.chdir(tmp_path)
    assert confit("enroll", "digits", "marvin", word("bed", "am_santa"), "--gallery", "words.db")[0] == 0
    return tmp_path


def word(label: str, voice: str) -> Path:
    return DATA / "words" / label / f"{voice}.ogg"


def test_the_reason_for_unknown_is_reported(words: Path, confit: Confit) -> None:
    query_path, house = "again.flac", ("--gallery", "words.db")
    pcm = load_clip(word("bed", "am_santa"), RATE)  # what marvin was enrolled from, with a little hiss
    soundfile.write(query_path, pcm + 1e-4 * np.random.default_rng(0).standard_normal(len(pcm)), RATE)
    _, out, _ = confit("identify", "digits", word("house", "zm_yunyang"), *house)
    assert "unknown  (nearest marvin " in out
    assert ", needs " in out or ", but strangers" in out
    assert confit("enroll", "digits", "marvin", query_path, "--negative", *house)[0] == 0
    _, out, _ = confit("identify", "digits", query_path, *house)
    assert out == f"{query_path}  unknown  (nearest marvin 1.00, but the negative prints of marvin are nearer)\n"
    status, out, _ = confit("verify", "digits", "marvin", query_path, *house)
    assert (status, out) == (1, f"{query_path}  is not marvin  1.00  (but the negative prints of marvin are nearer)\n")
    _, out, _ = confit("identify", "digits", query_path, *house, "--json")
    match = json.loads(out.splitlines()[0])
    assert (match["name"], match["reason"], match["nearest"]) == (None, "negative", "marvin")


def test_what_is_no_voice_is_reported(clips: Path, words: Path, confit: Confit) -> None:
    time = np.arange(12 * RATE) / RATE
    soundfile.write("hum.flac", 0.3 * np.sin(2 * np.pi * 200 * time) * (time % 1 < 0.7), RATE)
    _, _, err = confit("enroll", "speakers", "hum", "hum.flac")
    assert "warning: hum.flac: to speakers it is partly more like a hum or a knock than like any voice" in err
    for voice in ("am_santa", "bf_lily", "zf_xiaoyi"):
        own_clips = [clips / f"{voice}-{at}.flac" for at in range(4)]
        assert "than like any voice" not in confit("enroll", "speakers", voice, *own_clips)[2]


def test_what_weakens_a_name_is_reported_at_enrollment(clips: Path, words: Path, confit: Confit) -> None:
    own, other = ([clips / f"{voice}-{at}.flac" for at in range(4)] for voice in ("am_santa", "zf_xiaoyi"))
    status, _, err = confit("enroll", "speakers", "santa", *own[:3])
    assert (status, "warning" in err) == (0, False)
    status, _, err = confit("enroll", "speakers", "santa", other[0])
    assert status == 0
    odd = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(odd) == 1  # however many prints the clip gives
    assert all(line.startswith(f"warning: {other[0]}: is unlike the rest of santa (similarity 0.") for line in odd)
    err = confit("enroll", "speakers", "two", own[0], other[0], "--gallery", "two.db")[2]
    assert "warning: the two prints of two are unlike each other (similarity 0." in err
    assert confit("enroll", "speakers", "nick", *own[2:], "--gallery", "one.db")[0] == 0
    status, _, err = confit("enroll", "speakers", "claus", *own[:2], "--gallery", "one.db")
    assert status == 0
    assert "prints are recognised as 'nick', which is enrolled: is it the same?" in err


def test_a_clip_of_hardly_more_than_the_room_is_reported(words: Path, confit: Confit) -> None:
    rng = np.random.default_rng(0)
    soundfile.write("room.flac", 3e-3 * rng.standard_normal(4 * RATE), RATE)
    status, _, err = confit("enroll", "digits", "nothing", "room.flac", "--gallery", "words.db")
    assert status == 0
    assert "warning: room.flac: to digits it is almost like a quiet room" in err
    status, _, err = confit("enroll", "digits", "bed", word("bed", "bf_lily"), "--gallery", "words.db")
    assert (status, "quiet room" in err) == (0, False)


def test_a_sound_that_a_word_model_confuses_with_a_beep_is_reported(words: Path, confit: Confit) -> None:
    time = np.arange(RATE) / RATE
    soundfile.write("bell.flac", 0.4 * np.sin(2 * np.pi * 880 * time) * np.exp(-3 * time), RATE)
    status, _, err = confit("enroll", "digits", "bell", "bell.flac", "--gallery", "house.db")
    assert status == 0
    assert "warning: bell.flac: to digits it is much like any beep, hum or knock (similarity 0.9" in err
    own_clips = [word(what, "bf_lily") for what in ("bed", "house", "marvin")]
    assert "like any beep" not in confit("enroll", "digits", "words", *own_clips, "--gallery", "words2.db")[2]


def test_a_clip_of_many_sounds_is_reported(words: Path, confit: Confit) -> None:
    pause, said_once = np.zeros(RATE, np.float32), load_clip(word("bed", "bf_lily"), RATE)
    for count, warned in ((5, False), (6, True)):
        soundfile.write(f"{count}.flac", np.concatenate([pause, *[said_once, pause] * count]), RATE)
        err = confit("enroll", "digits", f"bed {count}", f"{count}.flac", "--gallery", f"{count}.db")[2]
        assert (f"warning: {count}.flac: holds {count} sounds separated by pauses" in err) == warned


def test_negatives_that_silence_the_name_itself_are_refused(words: Path, confit: Confit) -> None:
    house = ("--gallery", "deaf.db")
    voices = ("am_santa", "bf_lily", "zf_xiaoyi")
    assert confit("enroll", "digits", "marvin", *(word("marvin", voice) for voice in voices), *house)[0] == 0
    _, _, err = confit("enroll", "digits", "marvin", word("bed", "bf_lily"), "--negative", *house)
    assert "warning" not in err
    own = [word("marvin", voice) for voice in ("af_kore", "am_fenrir", "bm_george", "jf_alpha", "pm_alex")]
    before = Path("deaf.db").read_bytes()
    code, out, err = confit("enroll", "digits", "marvin", *own, "--negative", *house)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    found = re.search(
        r"marvin: ([23]) of the 3 prints of marvin are nearer to its negative prints than to its other prints, so", err
    )
    assert found, err
    assert err.rstrip().endswith("; nothing was written")
    assert Path("deaf.db").read_bytes() == before
    code, _, err = confit("enroll", "digits", "marvin", *own, "--negative", "--force", *house)
    assert (code, "deaf.db holds 6 negative prints of marvin" in err) == (0, True)
    assert f"warning: {found[1]} of the 3 prints of marvin" in err
    assert confit("enroll", "digits", "marvin", *own, "--force", *house)[0] == 2  # only for --negative


def test_negatives_that_silence_a_label_are_refused(words: Path, confit: Confit) -> None:
    house = ("--gallery", "label.db")
    _, _, err = confit("enroll", "digits", "eight", word("bed", "bf_lily"), "--negative", *house)
    assert "warning" not in err
    said = sorted((DATA / "words" / "eight").glob("*.ogg"))[-20:]
    code, _, err = confit("enroll", "digits", "eight", *said, "--negative", *house)
    assert code == 2
    assert re.search(
        r"eight: \d of the \d sounds in digits's cohort that these clips are most like would be withheld if eight fired",
        err,
    )
    assert "leave out clips that are eight, raise its threshold instead" in err  # a label needs no prints of its own


def test_accents_of_names_are_the_same_however_they_are_spelt(clips: Path, words: Path, confit: Confit) -> None:
    own_clips = [clips / f"bf_lily-{at}.flac" for at in range(3)]
    assert confit("enroll", "speakers", "Zo\u00eb", *own_clips)[0] == 0
    listen = (
        "listen",
        "digits",
        "--source",
        clips / "scene.flac",
        "--gallery",
        "gallery.db",
        "--speaker-model",
        "speakers",
    )
    status, _, err = confit(*listen, "--only", "Zoe\u0308", "--threshold", "Zoe\u0308=0.5")
    assert status == 0, err
    status, _, err = confit(*listen, "--threshold", "Zoe=0.5")
    assert (status, "'Zoe' is neither a label nor an enrolled name" in err) == (2, True)


def test_a_score_that_rounds_to_the_threshold_is_shown_below_it() -> None:
    match = Match(None, "too low", "ada", 0.7196, None, None, None, 0.7204)
    assert refusal_reason(match, "ada") == "just below the 0.72 needed"


def test_the_same_clip_counts_once(clips: Path, words: Path, confit: Confit) -> None:
    short = clips / "am_santa-0.flac"  # too little alone
    status, _, err = confit("enroll", "speakers", "santa", *[short] * 6)
    assert status == 1
    assert "these clips hold" in err
    own_clips = [clips / f"am_santa-{at}.flac" for at in range(3)]
    _, out, _ = confit("enroll", "speakers", "santa", *own_clips, "--json")
    _, listed, _ = confit("gallery", "list")
    _, again, err = confit("enroll", "speakers", "santa", *own_clips, "--json")
    prints = json.loads(out)["prints"]
    assert (json.loads(again)["prints"], json.loads(again)["left_out"], json.loads(again)["voiced_s"]) == (
        0,
        prints,
        0.0,
    )
    assert f"{prints} prints left out: already enrolled as santa" in err
    status, _, err = confit("enroll", "speakers", "santa", *own_clips[:2], "--negative")
    assert (status, f"a sound of {own_clips[0]}, {own_clips[1]} is already enrolled as 'santa'" in err) == (2, True)
    assert confit("gallery", "list")[1] == listed


def test_all_clips_that_cannot_be_used_are_named(clips: Path, words: Path, confit: Confit) -> None:
    soundfile.write(words / "silent.wav", np.zeros(RATE), RATE)
    (words / "text.wav").write_text("no sound")
    bad = ["silent.wav", "text.wav"]
    status, out, err = confit("enroll", "speakers", "santa", clips / "am_santa-0.flac", *bad)
    assert (status, out) == (1, "")
    assert [line.split(": ")[1] for line in err.splitlines()[:2]] == bad
    assert err.splitlines()[2] == "confit-edge: 2 of 3 clips cannot be used; nothing was written"


def test_what_an_enrollment_cannot_be_is_reported_in_one_line(clips: Path, words: Path, confit: Confit) -> None:
    clip, house = word("bed", "am_santa"), ("--gallery", "words.db")
    own_clips = [clips / f"bf_lily-{at}.flac" for at in range(3)]
    assert confit("enroll", "speakers", "lily", *own_clips, "--keep-audio", "--gallery", "voices.db")[0] == 0
    (words / "taken").write_text("a file")
    listen = ("listen", "digits", "--source", clips / "scene.flac")
    for arguments, status, message in (
        (
            ("enroll", "digits", "nonsense", clip, "--negative", *house),
            2,
            "neither enrolled (enrolled: marvin) nor a label of digits",
        ),
        (("enroll", "digits", "unknown", clip, "--negative", *house), 2, "'unknown' cannot be a name"),
        (("enroll", "digits", "Unknown", clip, *house), 2, "'Unknown' cannot be a name"),
        (("gallery", "rename", "marvin", "unknown", *house), 2, "'unknown' cannot be a name"),
        (("enroll", "digits", "x", clip, "--gallery", "voices.db"), 1, ": use that model, or another --gallery"),
        (("gallery", "import", "missing.db"), 2, "missing.db: no such file"),
        (("gallery", "export", "-o", "nowhere/x.db", *house), 2, "nowhere: no such folder"),
        (("identify", "digits", clip, *house, "--threshold", "2"), 2, "from -1 to 1, not 2"),
        (
            ("verify", "digits", "marvin", clip, *house, "--threshold", "nan"),
            2,
            "--threshold nan: is not a usable number",
        ),
        ((*listen, "--speaker-model", "speakers", *house), 2, "enrolled with it (words.db belongs to digits)"),
        ((*listen, "--speaker-model", "digits", *house), 2, "--speaker-model digits: words.db holds sounds"),
        ((*listen, "--speaker-model", "digits"), 2, "--speaker-model digits: needs the --gallery"),
        ((*listen, "--threshold", "unknown=0.5"), 2, "--threshold unknown=0.5: 'unknown' never fires"),
        (
            (*listen, "--threshold", "ada=0.5", *house),
            2,
            "'ada' is neither a label nor an enrolled name (labels that fire: eight",
        ),
        ((*listen, "--save-triggers", "taken"), 2, "--save-triggers taken: the folder cannot be created or written"),
        ((*listen, "--save-triggers", "taken/deeper"), 2, "--save-triggers taken/deeper: the folder cannot"),
    ):
        done, out, err = confit(*arguments)
        assert (done, out) == (status, ""), arguments
        assert message in err
        assert len(err.splitlines()) == 1
    assert not (words / "gallery.db").exists()
    assert "words.db" in confit("gallery", "list", *house, "--json")[1]


def test_thresholds_in_any_order_and_of_enrolled_names(clips: Path, words: Path, confit: Confit) -> None:
    soundfile.write(words / "bed.wav", load_clip(word("bed", "am_santa"), RATE), RATE)

    def labels_heard(source: str | Path, *options: str) -> list[str]:
        found = [
            json.loads(line)
            for line in confit("listen", "digits", "--source", source, *options, "--json")[1].splitlines()
        ]
        return [one["label"] for one in found if one["type"] == "detection"]

    for options in (("1", "one=0.3"), ("one=0.3", "1")):
        thresholds = [part for option in options for part in ("--threshold", option)]
        assert labels_heard(clips / "scene.flac", *thresholds) == ["one"]
    house = ("--gallery", "words.db", "--threshold", "1")
    assert labels_heard("bed.wav", *house, "--threshold", "marvin=0.3") == ["marvin"]
    assert labels_heard("bed.wav", *house, "--threshold", "marvin=1") == []


def test_a_folder_of_clips_gives_a_trigger_a_detection(clips: Path, words: Path, confit: Confit) -> None:
    (words / "scenes").mkdir()
    for at in range(3):
        (words / "scenes" / f"{at}.flac").write_bytes((clips / "scene.flac").read_bytes())
    _, out, _ = confit("listen", "digits", "--source", "scenes", "--save-triggers", "kept", "--json")
    assert sum(json.loads(out.splitlines()[-1])["by_model"]["digits"]["detections"].values()) == 6
    assert len(list((words / "kept").iterdir())) == 6


def test_a_word_enrolled_from_three_voices_does_not_fire_in_speech_and_music_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confit: Confit
) -> None:
    monkeypatch.chdir(tmp_path)
    three = [word("bird", voice) for voice in ("bm_george", "am_santa", "zf_xiaoyi")]
    code, _, err = confit("enroll", "digits", "bird", *three, "--gallery", "words.db")
    assert code == 0
    assert "how often bird fires falsely in your own background is unknown: `confit-edge calibrate digits" in err

    def heard(source: Path, *options: str) -> int:
        out = confit("listen", "digits", "--gallery", "words.db", "--source", source, "--json", *options)[1]
        return sum(line.get("label") == "bird" for line in map(json.loads, out.splitlines()))

    background = DATA / "background" / "test"
    assert heard(background) <= 2
    assert heard(background, "--threshold", "bird=0.747") >= 8  # the level of a clip
    others = ("af_kore", "am_fenrir", "bf_isabella", "bm_lewis", "jf_alpha")
    assert sum(heard(word("bird", voice)) for voice in others) >= 3
