"""`calibrate --gallery`, `evaluate --gallery` and `gallery uncalibrate`, with chords enrolled for the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_runtime import Gallery, load, recordings
from tests import tiny_model
from tests.cli.command import Confit
from tests.tiny_model import RATE, Floats, chord, silence, tone

CALLS = 6  # of a chord that is nearly the enrolled one, in each recording


def bell(seconds: float, upper: float = 0.3) -> Floats:
    """The enrolled chord; the softer its `upper` tone, the less it is like it."""
    return tone(800, seconds) + tone(2600, seconds, level=upper)


def with_hiss(parts: list[Floats], seed: int) -> Floats:
    pcm = np.concatenate(parts)
    noise: Floats = (1e-3 * np.random.default_rng(seed).standard_normal(len(pcm))).astype(np.float32)
    return pcm + noise


@pytest.fixture(scope="module")
def radio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings of 87 s with a softer and softer copy of the bell, and no bell."""
    home = tmp_path_factory.mktemp("radio")
    for at in range(6):
        parts = [part for call in range(CALLS) for part in (silence(14), bell(0.5, 0.18 - 0.01 * call))]
        soundfile.write(home / f"{at}.flac", with_hiss(parts, at), RATE)
    return home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the tests stand in, with tiny.onnx and house.db: `bell`, and `horn`, which is like nothing on the radio."""
    monkeypatch.chdir(tmp_path)
    model = load(tiny_model.build(tmp_path / "tiny.onnx"))
    with Gallery.open(tmp_path / "house.db", model, create=True) as gallery:
        for name, pcm in (("bell", bell(0.5)), ("horn", chord((300, 5000), 0.5))):
            gallery.enroll(name, model.embed(pcm, RATE)[None], sources=[name], voiced_s=0.5)
    return tmp_path


def heard(confit: Confit, source: Path, *options: object) -> list[str]:
    code, out, err = confit("listen", "tiny.onnx", "--gallery", "house.db", "--source", source, "--json", *options)
    assert code == 0, err
    return [line["label"] for line in map(json.loads, out.splitlines()) if line["type"] == "detection"]


def test_a_name_is_calibrated_and_no_longer_fires_falsely(
    confit: Confit, radio: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(
        "bell.wav", with_hiss([silence(1), bell(0.5), silence(1), chord((300, 5000), 0.5), silence(1)], 9), RATE
    )
    for name in ("bell", "horn"):
        (home / "clips" / name).mkdir(parents=True)
    soundfile.write(home / "clips" / "bell" / "a.wav", bell(0.5), RATE)
    soundfile.write(home / "clips" / "bell" / "soft.wav", bell(0.5, 0.18), RATE)
    soundfile.write(home / "clips" / "horn" / "a.wav", chord((300, 5000), 0.5), RATE)
    assert heard(confit, radio / "0.flac") == ["bell"] * CALLS
    assert heard(confit, Path("bell.wav")) == ["bell", "horn"]
    arguments = (
        *("calibrate", "tiny.onnx", "--gallery", "house.db", "--negatives", radio, "--positives", "clips"),
        *("--target-fa-per-hour", 25, "--json"),
    )
    code, out, err = confit(*arguments)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["by_label"].keys() == {"bell", "horn"}
    assert summary["gallery"] == "house.db"
    assert summary["fa_per_hour_bound"] <= 25
    assert summary["by_label"]["bell"]["false_accepts"] == 0
    assert (summary["by_label"]["bell"]["frr"], summary["by_label"]["horn"]["frr"]) == (0.5, 0.0)
    assert f"bell ({6 * CALLS} times" in err  # that it fires there at the default
    assert not (home / "tiny.device.json").exists()
    with Gallery.open("house.db") as gallery:
        stored = gallery.calibrated()
    assert {name: one.threshold for name, one in stored.items()} == {
        name: row["threshold"] for name, row in summary["by_label"].items()
    }
    assert stored["bell"].target_fa_per_hour == 25

    assert heard(confit, radio / "0.flac") == []
    assert heard(confit, Path("bell.wav")) == ["bell", "horn"]
    told = confit("listen", "tiny.onnx", "--gallery", "house.db", "--source", "bell.wav", "--threshold", "horn=0.5")[2]
    assert (
        f"house.db: calibrated thresholds: bell {stored['bell'].threshold:.2f} (made on {stored['bell'].made}, for"
        in told
    )
    assert "horn 0" not in told
    assert heard(confit, radio / "0.flac", "--threshold", "bell=0.8") == ["bell"] * CALLS  # by hand it is another
    soundfile.write("soft.wav", bell(0.5, 0.18), RATE)
    assert (
        json.loads(confit("identify", "tiny.onnx", "soft.wav", "--gallery", "house.db", "--json")[1].splitlines()[0])[
            "name"
        ]
        == "bell"
    )  # a clip keeps its own threshold

    with monkeypatch.context() as patched:
        patched.delattr(recordings, "stream_rows")  # calibrated again, no hour is streamed twice
        assert json.loads(confit(*arguments)[1]) == summary
    assert confit("gallery", "uncalibrate", "horn", "--gallery", "house.db")[1] == "no longer calibrated: horn\n"
    assert heard(confit, radio / "0.flac") == []
    assert confit("gallery", "uncalibrate", "--gallery", "house.db")[1] == "no longer calibrated: bell\n"
    assert heard(confit, radio / "0.flac") == ["bell"] * CALLS


def test_one_name_is_calibrated_by_itself(confit: Confit, radio: Path, home: Path) -> None:
    arguments = ("calibrate", "tiny.onnx", "--gallery", "house.db", "--negatives", radio, "--target-fa-per-hour", 25)
    code, out, err = confit(*arguments, "--only", "bell")
    assert code == 0, err
    assert "for all names together" in out
    (levels,) = json.loads(confit(*arguments, "--only", "bell", "--json")[1])["thresholds"].items()
    assert levels[0] == "bell"  # the horn keeps its threshold
    assert levels[1]["off"] == levels[1]["on"]  # a name is armed again by any row that is not answered with it
    with Gallery.open("house.db") as gallery:
        assert list(gallery.calibrated()) == ["bell"]
    assert (
        "--only bel: is not enrolled in house.db (enrolled: bell, horn); did you mean 'bell'?"
        in confit(*arguments, "--only", "bel")[2]
    )
    assert "give one of the two" in confit(*arguments, "--bake", "new.onnx")[2]


def test_too_few_hours_leave_the_gallery_as_it_is(confit: Confit, radio: Path, home: Path) -> None:
    code, _, err = confit("calibrate", "tiny.onnx", "--gallery", "house.db", "--negatives", radio)
    assert (code, "are too few to promise 0.5" in err) == (1, True)
    with Gallery.open("house.db") as gallery:
        assert gallery.calibrated() == {}


def test_enrolled_names_are_evaluated(confit: Confit, home: Path) -> None:
    parts = [silence(2), bell(0.5), silence(3), bell(0.5, 0.18), silence(3), tone(500, 0.5), silence(2)]
    soundfile.write("kitchen.wav", with_hiss(parts, 3), RATE)
    (home / "labels.csv").write_text(
        "path,start_s,end_s,label\nkitchen.wav,2.0,2.5,bell\nkitchen.wav,5.5,6.0,door\nkitchen.wav,9.0,9.5,low\n"
    )
    arguments = ("evaluate", "tiny.onnx", "labels.csv", "--gallery", "house.db")
    code, out, err = confit(*arguments, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["false_rejects"]["sounds"], report["false_rejects"]["missed"]) == (2, 0)
    assert report["fired_for"] == [{"heard": "bell", "was": "door", "times": 1}]
    hours = 11.5 / 3600
    names = report["by_name"]
    assert names.keys() == {"bell", "horn"}
    assert (names["bell"]["false_accepts"], names["bell"]["calibrated"]) == (1, None)
    assert names["bell"]["fa_per_hour"] == pytest.approx(1 / hours, rel=1e-3)
    assert names["horn"]["fa_per_hour"] == 0
    assert names["bell"]["threshold"] == pytest.approx(0.8)
    assert "enrolled name bell at 0.80, not calibrated: 1 false accept" in confit(*arguments)[1]
    with Gallery.open("house.db") as gallery:
        gallery.calibrate({"bell": 0.9, "horn": 0.9}, 0.5, "2026-01-31")
    by_hand = json.loads(confit(*arguments, "--threshold", "bell=0.9995", "--json")[1])
    assert by_hand["false_accepts"] == 0
    assert (by_hand["by_name"]["bell"]["calibrated"], by_hand["by_name"]["horn"]["calibrated"]) == (None, "2026-01-31")
    assert "bell" in confit(*arguments[:3])[2]  # without the gallery it is no label


def test_whoever_adds_prints_is_told_that_the_calibration_ended(confit: Confit, home: Path) -> None:
    soundfile.write("bell.wav", bell(0.5, 0.25), RATE)
    soundfile.write("other.wav", bell(0.5, 0.2), RATE)
    with Gallery.open("house.db") as gallery:
        gallery.calibrate({"bell": 0.9}, 0.5, "2026-01-31")
    assert "  calibrated to 0.90\n" in confit("gallery", "list", "--gallery", "house.db")[1]
    err = confit("listen", "tiny.onnx", "--gallery", "house.db", "--source", "bell.wav")[2]
    assert "calibrated thresholds: bell 0.90" in err
    assert "not calibrated, at the model's thresholds for streams: horn 0.80. If a name is missed" in err
    assert "--threshold horn=VALUE" in err
    err = confit("listen", "tiny.onnx", "--gallery", "house.db", "--source", "bell.wav", "--threshold", "horn=0.7")[2]
    assert "not calibrated" not in err

    ended = "house.db: no longer calibrated, because other prints give other scores: bell"
    enroll = ("enroll", "tiny.onnx", "bell", "bell.wav", "--gallery")
    code, _, err = confit(*enroll, "house.db")
    assert (code, ended in err) == (0, True), err
    assert "in a stream, bell needs a similarity of 0.80; if it is missed, enroll clips of more voices" in err
    err = confit(*enroll, "house.db")[2]  # nothing new
    assert "no longer calibrated" not in err

    confit("enroll", "tiny.onnx", "bell", "other.wav", "--gallery", "more.db")
    with Gallery.open("house.db") as gallery:
        gallery.calibrate({"bell": 0.9, "horn": 0.9}, 0.5, "2026-01-31")
    code, _, err = confit("gallery", "import", "more.db", "--gallery", "house.db")
    assert (code, ended in err, "horn" in err) == (0, True, False), err
