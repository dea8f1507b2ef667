"""`enroll`, `identify`, `classify` and `gallery` as a user runs them, with good clips and bad ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests import tiny_model
from tests.cli.device import lines, on_a_terminal, run
from tests.tiny_model import chord, tone

# enroll, identify, gallery


def test_enroll_identify_and_manage_a_gallery(home: Path, tmp_path: Path) -> None:
    clips = [str(home / "bells" / "*.wav"), str(home / "buzz.wav"), str(home / "stranger.wav")]
    model = str(home / "tiny.onnx")
    assert run(tmp_path, "enroll", model, "bell", clips[0]).stdout == "bell: 3 prints from 1.5 s of sound\n"
    done = run(tmp_path, "enroll", model, "Büzz", clips[1])
    assert done.stdout == "Büzz: 1 print from 0.5 s of sound\n"
    held, needed, unknown = done.stderr.splitlines()
    assert needed.startswith("in a stream, Büzz needs a similarity of 0.")
    assert held == "gallery.db holds 1 print of Büzz"
    assert "how often Büzz fires falsely" in unknown
    assert f"`confit-edge calibrate {model} --gallery gallery.db --negatives DIR`" in unknown

    done = run(tmp_path, "identify", model, *clips, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    *matches, summary = lines(done)
    assert [(Path(one["clip"]).stem, one["name"], one["runner_up"]) for one in matches] == [
        ("bell-0", "bell", "Büzz"),
        ("bell-1", "bell", "Büzz"),
        ("bell-2", "bell", "Büzz"),
        ("buzz", "Büzz", "bell"),
        ("stranger", None, "Büzz"),
    ]
    assert matches[0].keys() == {
        *("type", "clip", "name", "reason", "nearest", "score", "runner_up", "runner_up_score", "margin", "threshold")
    }
    assert [(one["reason"], one["nearest"]) for one in matches[-2:]] == [(None, "Büzz"), ("too low", "bell")]
    assert summary == {"type": "summary", "clips": 5, "known": 4, "unknown": 1, "failed": 0}

    assert run(tmp_path, "gallery", "list").stdout == "Büzz  1 print  0.5 s\nbell  3 prints  1.5 s\n"
    assert lines(run(tmp_path, "gallery", "list", "--json")) == [
        {
            "type": "name",
            "name": "Büzz",
            "prints": 1,
            "negative_prints": 0,
            "voiced_s": 0.5,
            "calibrated_threshold": None,
        },
        {
            "type": "name",
            "name": "bell",
            "prints": 3,
            "negative_prints": 0,
            "voiced_s": 1.5,
            "calibrated_threshold": None,
        },
        {"type": "summary", "gallery": "gallery.db", "names": 2, "prints": 4, "negative_prints": 0},
    ]
    shown = lines(run(tmp_path, "gallery", "show", "bell", "--json"))
    assert [Path(one["source"]).name for one in shown[:-1]] == ["bell-0.wav", "bell-1.wav", "bell-2.wav"]
    assert all(one["similarity"] > 0.99 for one in shown[:-1])
    assert run(tmp_path, "gallery", "rename", "bell", "doorbell").stdout == "bell is now doorbell\n"
    assert lines(run(tmp_path, "gallery", "remove", "doorbell", "--json")) == [
        {"type": "removed", "name": "doorbell", "prints": 3, "negative_prints": 0}
    ]
    assert run(tmp_path, "gallery", "list").stdout == "Büzz  1 print  0.5 s\n"


def test_prints_and_negative_ones_are_distinguished(home: Path, tmp_path: Path) -> None:
    model, negative = str(home / "tiny.onnx"), ("--negative", "--json")
    assert run(tmp_path, "enroll", model, "bell", str(home / "bells"), "--gallery", "one.db").returncode == 0
    (enrolled,) = lines(
        run(tmp_path, "enroll", model, "bell", str(home / "buzz.wav"), "--gallery", "one.db", *negative)
    )
    assert (enrolled["prints"], enrolled["negative_prints"]) == (0, 1)
    run(tmp_path, "enroll", model, "low", str(home / "stranger.wav"), "--gallery", "one.db", "--negative")
    one, both = ("--gallery", "one.db"), {"prints": 3, "negative_prints": 1}
    answers = {
        "name": run(tmp_path, "gallery", "list", *one, "--json"),
        "exported": run(tmp_path, "gallery", "export", "-o", "two.db", *one, "--json"),
        "imported": run(tmp_path, "gallery", "import", "one.db", "--gallery", "three.db", "--json"),
    }
    for kind, done in answers.items():
        bell, low, summary = lines(done)
        assert bell.items() >= {"type": kind, "name": "bell", **both}.items()
        assert low.items() >= {"type": kind, "name": "low", "prints": 0, "negative_prints": 1}.items()
        assert summary.items() >= {"names": 2, "prints": 3, "negative_prints": 2}.items()
    again = run(tmp_path, "gallery", "import", "one.db", "--gallery", "three.db", "--json")
    assert lines(again)[-1] == {
        "type": "summary", "gallery": "three.db", "names": 0, "prints": 0, "negative_prints": 0, "left_out": 5
    }  # fmt: skip
    assert again.stderr == "5 prints left out: already in three.db\n"
    assert lines(run(tmp_path, "gallery", "show", "bell", *one, "--json"))[-1].items() >= both.items()
    assert run(tmp_path, "gallery", "export", "-o", "four.db", *one).stdout == (
        "bell: 3 prints and 1 negative print written to four.db\nlow: 1 negative print written to four.db\n"
    )
    removed = run(tmp_path, "gallery", "remove", "bell", *one)
    assert removed.stdout == "removed bell, with 3 prints and 1 negative print\n"
    assert lines(run(tmp_path, "gallery", "remove", "bell", "--gallery", "two.db", "--json"))[0].items() >= both.items()


def test_a_file_whose_name_is_not_utf8_is_called_the_same_by_every_verb(home: Path) -> None:
    clip = home / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(os.fsencode(clip), tone(500, 1.5), 16_000, format="WAV")
    *_, detection = lines(run(home, "listen", "tiny.onnx", "--source", clip.name, "--json"))
    classification, _ = lines(run(home, "classify", "tiny.onnx", clip.name, "--json"))
    gallery = ("--gallery", "cafe.db")
    assert run(home, "enroll", "tiny.onnx", "cafe", clip.name, *gallery).returncode == 0
    matched, _ = lines(run(home, "identify", "tiny.onnx", clip.name, *gallery, "--json"))
    (verified,) = lines(run(home, "verify", "tiny.onnx", "cafe", clip.name, *gallery, "--json"))
    assert [one["clip"] for one in (classification, matched, verified)] == [detection["source"]] * 3 == [clip.name] * 3


def test_a_bad_clip_does_not_stop_the_others(home: Path) -> None:
    clips = ["damaged.flac", "bells/bell-0.wav", "text.wav", "nothing.wav", "buzz.wav"]
    done = run(home, "identify", "tiny.onnx", *clips, "--gallery", "house.db", "--json")
    assert done.returncode == 1
    *classifications, summary = lines(done)
    assert [(one["type"], one["clip"], one.get("name")) for one in classifications] == [
        ("failed", "damaged.flac", None),
        ("match", "bells/bell-0.wav", "bell"),
        ("failed", "text.wav", None),
        ("failed", "nothing.wav", None),
        ("match", "buzz.wav", None),
    ]
    assert summary == {"type": "summary", "clips": 5, "known": 1, "unknown": 1, "failed": 3}
    warnings = done.stderr.splitlines()
    assert len(warnings) == 3
    for line, clip in zip(warnings, ["damaged.flac", "text.wav", "nothing.wav"], strict=True):
        assert line.startswith(f"confit-edge: {clip}: ")
    assert warnings == [f"confit-edge: {one['error']}" for one in classifications if one["type"] == "failed"]


@pytest.mark.parametrize(
    ("arguments", "status", "clips"),
    [
        ("verify tiny.onnx bell silent.wav --gallery house.db", 2, ["silent.wav"]),
        ("verify tiny.onnx bell text.wav --gallery house.db", 2, ["text.wav"]),
        ("verify tiny.onnx nobody text.wav --gallery house.db", 2, ["text.wav"]),
        ("verify nothing.onnx bell text.wav --gallery house.db", 2, []),
        ("enroll tiny.onnx hum bells/bell-0.wav text.wav silent.wav --gallery new.db", 1, ["text.wav", "silent.wav"]),
        ("enroll tiny.onnx hum text.wav --gallery new.db", 1, ["text.wav"]),
    ],
)
def test_a_clip_that_cannot_be_used_has_a_line_of_its_own(
    home: Path, arguments: str, status: int, clips: list[str]
) -> None:
    """As with `identify`, whatever else comes of it."""
    done = run(home, *arguments.split(), "--json")
    assert (done.returncode, [(one["type"], one["clip"]) for one in lines(done)]) == (
        status, [("failed", clip) for clip in clips]
    )  # fmt: skip
    assert all(f"confit-edge: {one['error']}" in done.stderr.splitlines() for one in lines(done))


def test_a_note_says_how_a_clip_that_is_too_long_is_heard(home: Path, tmp_path: Path) -> None:
    clip = tmp_path / "an hour.flac"
    soundfile.write(clip, np.ones(3_660_000, np.int16), 1000)
    too_long = f"confit-edge: {clip}: is longer than 60 minutes, the limit for files read as a whole: cut it"
    listen = f"or run `confit-edge listen tiny.onnx --source '{clip}'"
    warnings = run(home, "classify", "tiny.onnx", str(clip)).stderr.splitlines()
    assert warnings[-1] == f"{too_long}, {listen}`"
    warnings = run(home, "identify", "tiny.onnx", str(clip), "--gallery", "house.db").stderr.splitlines()
    assert warnings[-1] == f"{too_long}, {listen} --gallery house.db`"
    warnings = run(home, "enroll", "tiny.onnx", "hum", str(clip), "--gallery", "house.db").stderr.splitlines()
    assert too_long in warnings


def test_classify_prints_each_clips_label_and_all_scores_and_continues(home: Path) -> None:
    for label, pitch in (("low", 500), ("high", 3600)):
        soundfile.write(home / f"{label}.wav", tone(pitch, 0.5), 16_000)
    done = run(home, "classify", "tiny.onnx", "low.wav", "text.wav", "high.wav", "--json")
    assert done.returncode == 1
    first, failed, other, summary = lines(done)
    found = [first, other]
    assert (failed["type"], failed["clip"], f"confit-edge: {failed['error']}\n") == ("failed", "text.wav", done.stderr)
    assert [(one["type"], one["clip"], one["label"]) for one in found] == [
        ("classification", "low.wav", "low"),
        ("classification", "high.wav", "high"),
    ]
    for one in found:
        assert set(one["scores"]) == set(tiny_model.LABELS)
        assert one["score"] == max(one["scores"].values()) == pytest.approx(one["scores"][one["label"]])
    assert summary == {"type": "summary", "clips": 3, "by_label": {"low": 1, "high": 1}, "nothing": 0, "failed": 1}
    (line,) = run(home, "classify", "tiny.onnx", "low.wav").stdout.splitlines()
    assert line.startswith("low.wav  low  ")


def test_names_of_files_and_prints_cannot_control_the_terminal(tmp_path: Path) -> None:
    tiny_model.build(tmp_path / "tiny.onnx")
    name = "a\x1bc\x9b2J\nb.wav  high  0.99\u202e"
    soundfile.write(tmp_path / name, chord((300.0, 2600.0), 0.4), 16_000, format="WAV")
    (tmp_path / f"{name}.txt").write_text("no sound")
    escaped = r"a\x1bc\x9b2J\nb.wav  high  0.99\u202e"
    done = run(tmp_path, "classify", "tiny.onnx", name, f"{name}.txt")
    (line,), (error,) = done.stdout.splitlines(), done.stderr.splitlines()
    assert line.startswith(f"{escaped}  ")
    assert error.startswith(f"confit-edge: {escaped}.txt: ")
    assert run(tmp_path, "enroll", "tiny.onnx", "bell", name, "--gallery", "house.db").returncode == 0
    for verb in ("show bell", "show bell --json"):
        shown = run(tmp_path, "gallery", *verb.split(), "--gallery", "house.db").stdout
        assert "\x1b" not in shown
        assert "\x9b" not in shown
        assert "\u202e" not in shown
    print_, _ = lines(run(tmp_path, "gallery", "show", "bell", "--gallery", "house.db", "--json"))
    assert print_["source"] == name


def test_a_models_metadata_cannot_control_the_terminal(
    tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    tiny_model.build(tmp_path / "tiny.onnx", name="ti\x1b[31mny", license="MIT\n(all of it)")
    printed = run(tmp_path, "inspect", "tiny.onnx").stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in printed if line.startswith("licence")] == [r"MIT\n(all of it)"]
    output, _ = on_a_terminal(tmp_path, fake_portaudio("stalls"), "listen", "tiny.onnx", "--seconds", "1.2")
    assert r"ti\x1b[31mny: other 1.00" in output
    assert "\x1b[31mny" not in output.replace(r"\x1b", "")


def test_classify_prints_all_labels_that_reach_their_thresholds_or_none(home: Path) -> None:
    """Of a model of several labels, whose scores here share one sum; its unknown class is no answer."""
    soundfile.write(home / "both.wav", chord((500, 3600), 0.5), 16_000)
    soundfile.write(home / "hush.wav", np.zeros(8000), 16_000)
    levels = {label: {"on": 0.3, "off": 0.1} for label in tiny_model.LABELS}
    tiny_model.build(home / "several.onnx", multi_label=True, thresholds=levels)
    both, hush, summary = lines(run(home, "classify", "several.onnx", "both.wav", "hush.wav", "--json"))
    assert sorted(both["labels"]) == ["high", "low"]
    assert both["labels"][0] == both["label"]
    assert hush["labels"] == []
    assert hush["label"] != "other"
    assert max(hush["scores"], key=hush["scores"].get) == "other"
    assert summary == {
        "type": "summary", "clips": 2, "by_label": {"high": 1, "low": 1}, "nothing": 1, "failed": 0,
    }  # fmt: skip
    one, other = run(home, "classify", "several.onnx", "both.wav", "hush.wav").stdout.splitlines()
    assert re.fullmatch(r"both\.wav  (low|high)  0\.\d\d  (low|high)  0\.\d\d  \(then mid 0\.\d\d\)", one)
    assert other.startswith("hush.wav  nothing  (then ")
    assert "other" not in other
    never = {**levels, "low": {"on": 1.01, "off": 0.9}}
    tiny_model.build(home / "several.onnx", multi_label=True, thresholds=never)
    both, _ = lines(run(home, "classify", "several.onnx", "both.wav", "--json"))
    assert ("low" in both["labels"]) == (both["scores"]["low"] >= 0.5)


def test_enrolling_what_the_model_knows_is_reported(home: Path) -> None:
    soundfile.write(home / "known.wav", tone(500, 0.5), 16_000)
    done = run(home, "enroll", "tiny.onnx", "eve", "known.wav", "--gallery", "known.db")
    assert done.returncode == 0, done.stderr
    assert "most of these sounds are like 'low'" in done.stderr
    assert "warning" not in run(home, "enroll", "tiny.onnx", "buzz", "buzz.wav", "--gallery", "known.db").stderr
    for name in ("low", "Low"):
        err = run(home, "enroll", "tiny.onnx", name, "buzz.wav", "--gallery", "labels.db").stderr
        assert "warning: 'low' is also a label of tiny" in err


def test_enrolling_with_a_guessed_threshold_is_reported(home: Path) -> None:
    enroll: dict[str, object] = {"kind": "sound", "threshold": 0.7, "genuine": 0.9, "trials": 12, "classes": 2}
    tiny_model.build(home / "few.onnx", name="few", embedding_id="few", calibration={"enroll": enroll})
    done = run(home, "enroll", "few.onnx", "buzz", "buzz.wav", "--gallery", "few.db", "--json")
    assert "few was calibrated with 12 trials of 2 classes, too few to tell, so its threshold is a guess" in done.stderr
    assert lines(done)[0]["false_accept_rate"] is None
    assert (
        "warning" not in run(home, "enroll", "few.onnx", "buzz", "buzz.wav", "--negative", "--gallery", "few.db").stderr
    )
    measured = {"enroll": {**enroll, "trials": 400, "classes": 12, "false_accept_rate": 0.01}}
    tiny_model.build(home / "many.onnx", name="many", embedding_id="many", calibration=measured)
    done = run(home, "enroll", "many.onnx", "buzz", "buzz.wav", "--gallery", "many.db", "--json")
    assert "warning" not in done.stderr
    assert lines(done)[0]["false_accept_rate"] == 0.01


def test_enrolling_with_a_model_that_refuses_a_names_own_sounds_is_reported(home: Path) -> None:
    enroll = {
        "kind": "sound",
        "threshold": 0.9931,
        "genuine": 0.9825,
        "false_accept_rate": 0.01,
        "trials": 1800,
        "classes": 30,
    }
    tiny_model.build(home / "vague.onnx", name="vague", embedding_id="vague", calibration={"enroll": enroll})
    err = " ".join(run(home, "enroll", "vague.onnx", "buzz", "buzz.wav", "--gallery", "vague.db").stderr.split())
    assert "warning: most sounds of buzz will be answered 'unknown'" in err
    assert "(0.9931)" in err
    assert "(0.9825)" in err


def test_a_name_that_a_stream_can_hardly_ever_find_is_reported_instead_of_its_similarity(home: Path) -> None:
    enroll = {"kind": "sound", "threshold": 0.7, "stream_threshold": 0.9996}
    tiny_model.build(home / "deaf.onnx", name="deaf", embedding_id="deaf", calibration={"enroll": enroll})
    err = " ".join(run(home, "enroll", "deaf.onnx", "buzz", "buzz.wav", "--gallery", "deaf.db").stderr.split())
    assert "warning: in a stream, buzz needs a similarity of more than 0.99, which hardly any sound but the" in err
    assert (
        "deaf can hardly tell it from other sounds; train a model with more classes or epochs, or with buzz as a class"
        in err
    )
    assert "1.00" not in err


@pytest.mark.parametrize("clip", ["silent.wav", "short.wav", "text.wav", "damaged.flac", "nothing.wav"])
def test_enrolling_a_bad_clip_writes_nothing(home: Path, clip: str) -> None:
    done = run(home, "enroll", "tiny.onnx", "eve", "buzz.wav", clip, "--gallery", "new.db")
    assert done.returncode == (2 if clip == "nothing.wav" else 1)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"confit-edge: {clip}: ")
    assert not (home / "new.db").exists()
