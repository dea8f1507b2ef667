"""`calibrate` and `evaluate` as a user runs them, with the tiny model and sound of which everything is known."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile

from confit_edge.cli._calibration_report import cautions, lowered_thresholds, report
from confit_edge.cli._positives import clips_as_recordings
from confit_runtime import load
from confit_runtime.calibration import LEVELS, FalseAcceptCounts, choose_operating_point
from confit_runtime.intervals import grouped_share_interval, poisson_upper
from confit_runtime.recordings import Recording
from tests import tiny_model
from tests.cli.command import Confit
from tests.tiny_model import RATE, Floats, silence, tone


def hiss(seconds: float, seed: int) -> Floats:
    noise: Floats = (1e-3 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)
    return noise


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings without tones, clips of two tones, and two labelled recordings."""
    home = tmp_path_factory.mktemp("sounds")
    for name in ("negatives", "clips/low", "clips/mid", "clips/parrot", "labelled"):
        (home / name).mkdir(parents=True)
    for at in range(6):
        soundfile.write(home / "negatives" / f"radio-{at}.flac", hiss(70, at), 8_000)
    for at in range(4):
        for name, pitch in (("low", 500.0), ("mid", 1200.0), ("parrot", 2600.0)):
            level = 0.3 if at else 1e-5  # the first take of each is too soft to be heard
            soundfile.write(home / "clips" / name / f"{at}.wav", tone(pitch, 0.3, level=level), RATE, subtype="FLOAT")
    kitchen = np.concatenate([silence(2), tone(500, 0.3), silence(3), tone(1200, 0.3), silence(2.4), tone(3600, 0.3)])
    soundfile.write(home / "labelled" / "kitchen.wav", kitchen + hiss(len(kitchen) / RATE, 9)[: len(kitchen)], RATE)
    (home / "labelled" / "kitchen.txt").write_text(
        "2.0\t2.3\tlow\n\\\t500\t600\n5.3\t5.6\tmid\n6.5\t6.8\tlow\n8.0\t8.3\tparrot\n", encoding="utf-8"
    )
    soundfile.write(home / "labelled" / "hall.wav", hiss(20, 10), RATE)
    (home / "labels.csv").write_text(
        "path,start_s,end_s,label\n"
        "labelled/kitchen.wav,2.0,2.3,low\nlabelled/kitchen.wav,5.3,5.6,mid\nlabelled/kitchen.wav,6.5,6.8,low\n"
        "labelled/kitchen.wav,8.0,8.3,parrot\nlabelled/hall.wav,,,\n",
        encoding="utf-8",
    )
    return home


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model.build(tmp_path / "tiny.onnx")


def test_a_device_file_is_written_and_read(confit: Confit, sounds: Path, model: Path) -> None:
    code, out, err = confit(
        "calibrate", model, "--negatives", sounds / "negatives", "--positives", sounds / "clips",
        "--target-fa-per-hour", 20, "--plot", model.parent / "det.png", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert "parrot" in err  # left out: the model has no such label
    summary = json.loads(out)
    assert summary["met"]
    assert summary["recordings"] == 6
    assert summary["hours"] == pytest.approx(420 * 2 / 3600, rel=1e-3)  # at 8 kHz they last twice as long
    assert summary["fa_per_hour_bound"] == pytest.approx(2.9957 / summary["hours"], rel=1e-3)
    assert summary["clips"] == 8
    assert summary["by_label"]["low"]["frr"] == summary["by_label"]["mid"]["frr"] == 0.25
    assert (model.parent / "det.png").stat().st_size > 5_000
    assert (model.parent / "det.csv").read_text().startswith("margin,fa_per_hour,fa_low,fa_high,frr\n")
    device = json.loads((model.parent / "tiny.device.json").read_bytes())
    assert device["thresholds"] == summary["thresholds"]
    loaded = load(model)
    assert loaded.contract.thresholds == summary["thresholds"] != load(model, calibrated=False).contract.thresholds
    assert loaded.contract.calibration["device"]["hours"] == summary["hours"]


def test_calibrated_again_it_scores_nothing_twice(
    confit: Confit, sounds: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("calibrate", model, "--negatives", sounds / "negatives", "--target-fa-per-hour", 20, "--json")
    first = confit(*arguments)
    from confit_runtime import recordings

    monkeypatch.delattr(recordings, "stream_rows")
    assert confit(*arguments)[:2] == first[:2]


def test_too_few_hours_are_reported_and_nothing_is_written(confit: Confit, sounds: Path, model: Path) -> None:
    code, out, err = confit("calibrate", model, "--negatives", sounds / "negatives", "--json")
    assert code == 1
    assert "5.76 more" in err
    assert "--target-fa-per-hour 13" in err
    summary = json.loads(out)
    assert not summary["met"]
    assert not (model.parent / "tiny.device.json").exists()
    code, _, err = confit("calibrate", model, "--negatives", sounds / "negatives", "--target-fa-per-hour", 13)
    assert code == 0, err  # what it says can be promised, can


def test_a_copy_is_baked_and_means_the_same(confit: Confit, sounds: Path, model: Path) -> None:
    out = model.parent / "kitchen.onnx"
    code, _, err = confit(
        "calibrate", model, "--negatives", sounds / "negatives", "--target-fa-per-hour", 20, "--bake", out,
        "--lower",
    )  # fmt: skip
    assert code == 0, err
    assert not (model.parent / "tiny.device.json").exists()
    baked, plain = load(out), load(model)
    assert baked.digest == plain.digest
    assert baked.contract.embedding_id == plain.contract.embedding_id
    assert baked.contract.thresholds["low"]["on"] != plain.contract.thresholds["low"]["on"]
    np.testing.assert_array_equal(baked.rows(tone(500, 1.0), RATE)[0], plain.rows(tone(500, 1.0), RATE)[0])


def test_recordings_that_hold_the_models_own_sounds_are_reported(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path
) -> None:
    own = np.tile(np.concatenate([tone(500, 0.3), silence(7)]), 10)
    soundfile.write(tmp_path / "own.flac", own + hiss(len(own) / RATE, 20)[: len(own)], RATE)
    arguments = ("--negatives", sounds / "negatives", "--negatives", tmp_path / "own.flac", "--target-fa-per-hour", 20)
    code, out, err = confit("calibrate", model, *arguments, "--json")
    assert code == 0, err
    caution, raised = json.loads(out)["cautions"]
    assert f"fires in these recordings: low (10 times, 10 in {tmp_path / 'own.flac'})" in caution
    assert caution in err
    assert "mid (to " in raised  # by the margin that this recording asks of the others
    where = re.search(rf"These set the margin: low at [01]\.\d+ in {tmp_path / 'own.flac'} at ([0-9.]+) s", raised)
    assert where is not None, raised
    assert float(where[1]) % 7.3 == pytest.approx(0.15, abs=0.4)  # in the middle of one of the tones
    (few,) = json.loads(confit("calibrate", model, *arguments[2:], "--only", "mid", "--json")[1])["cautions"]
    assert "all hours come from 1 file." in few
    assert json.loads(confit("calibrate", model, *arguments[:2], *arguments[4:], "--json")[1])["cautions"] == []


def test_few_recordings_of_many_short_files_are_reported(model: Path) -> None:
    contract = load(model).contract
    counts = FalseAcceptCounts(np.zeros((len(contract.labels), 1, len(LEVELS)), np.int64), np.array([6.0]))
    clips = Recording("radio (500 short files)", [], 3600 * 6.0, [(f"{at}.wav", 0.0) for at in range(500)])
    (few,) = cautions(counts, choose_operating_point(counts, 0.5), contract, [clips], "")
    assert few.startswith("all hours count as 1 recording, because the short files of a folder")


def test_the_interval_reaches_above_the_promised_bound(model: Path) -> None:
    """The bound is one-sided, and both allow for the twelve false accepts of one recording of ten."""
    contract = load(model).contract
    events = np.zeros((len(contract.labels), 10, len(LEVELS)), np.int64)
    events[0, 3, :150] = 12
    counts = FalseAcceptCounts(events, np.full(10, 3.0))
    chosen = choose_operating_point(counts, 4.0)
    summary = report(contract, [0], counts, chosen, [], 0.95, {"low": 0.5})
    assert summary["false_accepts_held_out"] == 12
    low, high = summary["fa_per_hour_interval"]
    assert low < 0.4 < summary["fa_per_hour_bound"] < high


def test_a_label_that_others_raised_is_reported(model: Path) -> None:
    contract = load(model).contract
    events = np.zeros((len(contract.labels), 4, len(LEVELS)), np.int64)
    low, mid = contract.labels.index("low"), contract.labels.index("mid")
    events[mid, 0, : np.searchsorted(LEVELS, 0.99)] = 4  # the surprise of one recording, below what its own level heeds
    events[low, 1, : np.searchsorted(LEVELS, 0.3)] = 1
    counts = FalseAcceptCounts(events, np.full(4, 2.0))
    chosen = choose_operating_point(counts, 0.5)
    rows = np.zeros((40, len(contract.labels)), np.float32)
    rows[20:30, mid] = 0.98
    recordings = [Recording(f"r{at}", [rows if at == 0 else 0 * rows], 7200.0, [(f"{at}.wav", 0.0)]) for at in range(4)]
    caution, few = cautions(counts, chosen, contract, recordings, "Do this.")
    assert caution.endswith(" Do this.")
    assert "These set the margin: mid at 0.980 in 0.wav at " in caution
    assert "4 files" in few
    assert "low (to 0.990, fired up to 0.3" in caution
    assert "high (to 0.990, never fired)" in caution
    assert "mid (" not in caution


def test_an_unchanged_threshold_is_not_reported() -> None:
    """The level next to 0.5 may lie below it by the rounding of floats."""
    contract = tiny_model.contract(thresholds={label: {"on": 0.5, "off": 0.3} for label in tiny_model.LABELS})
    events = np.zeros((len(contract.labels), 4, len(LEVELS)), np.int64)
    chosen = choose_operating_point(FalseAcceptCounts(events, np.full(4, 2.0)), 0.5)
    level = int(np.argmin(np.abs(LEVELS - 0.5)))
    kept = replace(chosen, own=np.full(len(contract.labels), level), margin=0)
    assert lowered_thresholds(contract, kept) == ""
    assert lowered_thresholds(contract, replace(kept, margin=-1)).startswith("low (0.50 instead of 0.49)")


def test_hours_in_which_little_sounds_allow_nothing(confit: Confit, model: Path, tmp_path: Path) -> None:
    """An empty house never comes near a threshold: by its hours alone anything might fire."""
    for at in range(5):
        night = 1e-4 * np.random.default_rng(at).standard_normal(RATE * 70)
        soundfile.write(tmp_path / f"night-{at}.flac", night.astype(np.float32), RATE)
    arguments = ("calibrate", model, "--negatives", tmp_path / "night-*.flac", "--target-fa-per-hour", 40)
    before = {label: level["on"] for label, level in load(model, calibrated=False).contract.thresholds.items()}
    code, _, err = confit(*arguments)
    assert code == 0, err
    assert "kept at the threshold the model came with" in err
    assert "low (0.60 instead of 0.05)" in err
    assert {label: level["on"] for label, level in load(model).contract.thresholds.items()} == before
    code, out, err = confit(*arguments, "--lower", "--json")
    assert code == 0, err
    assert json.loads(out)["thresholds"]["low"]["on"] < 0.1
    soundfile.write(tmp_path / "muted.flac", silence(70), RATE)
    code, _, err = confit("calibrate", model, "--negatives", tmp_path / "muted.flac")
    assert code == 1
    assert "muted.flac: is digital silence" in err


def test_labels_calibrated_apart_listen_together(confit: Confit, sounds: Path, model: Path) -> None:
    target, separate_thresholds = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20), []
    for name, label in (("alarm", "low"), ("words", "mid")):
        separate_thresholds.append(model.parent / f"{name}.onnx")
        assert confit("calibrate", model, *target, "--only", label, "--bake", separate_thresholds[-1])[0] == 0
    code, out, err = confit("listen", *separate_thresholds, "--source", sounds / "labelled" / "kitchen.wav", "--json")
    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert [(one["model"], one["label"]) for one in events if one["type"] == "detection"] == [
        ("alarm", "low"),
        ("words", "mid"),
    ]


def test_a_label_that_was_set_never_to_fire_is_not_calibrated(confit: Confit, sounds: Path, model: Path) -> None:
    target, baked = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20), model.parent / "low.onnx"
    assert confit("calibrate", model, *target, "--only", "low", "--bake", baked)[0] == 0
    code, _, err = confit("calibrate", baked, *target, "--only", "mid")
    assert code == 2
    assert "--only mid: is set never to fire in low (labels that fire: low); calibrate the model" in err


def test_a_curve_replaces_no_table_of_something_else(confit: Confit, sounds: Path, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "kitchen.csv"
    table.write_text("path,start_s,end_s,label\n")
    arguments = ("calibrate", model, "--negatives", sounds / "negatives", "--target-fa-per-hour", 20)
    code, _, err = confit(*arguments, "--plot", tmp_path / "kitchen.png")
    assert code == 2
    assert "would replace" in err
    assert table.read_text() == "path,start_s,end_s,label\n"
    for _ in range(2):  # its own it does
        assert confit(*arguments, "--plot", tmp_path / "det.png")[0] == 0


def test_a_curve_is_reported_even_if_the_target_cannot_be_kept(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path
) -> None:
    for target, ends in ((20, 0), (0.01, 1)):
        plot = tmp_path / f"{ends}.png"
        arguments = ("--negatives", sounds / "negatives", "--target-fa-per-hour", target, "--plot", plot)
        code, _, err = confit("calibrate", model, *arguments)
        assert code == ends
        assert f"wrote {plot} and {plot.with_suffix('.csv')}\n" in err
        assert plot.is_file()


def test_a_threshold_set_by_hand_is_kept_and_the_others_stay(confit: Confit, sounds: Path, model: Path) -> None:
    code, _, err = confit(
        "calibrate", model, "--negatives", sounds / "negatives", "--target-fa-per-hour", 20, "--lower"
    )
    assert code == 0, err
    before = load(model).contract.thresholds
    assert before["low"]["on"] != 0.6
    code, out, err = confit("calibrate", model, "--threshold", "low=0.6", "--positives", sounds / "clips")
    assert code == 0, err
    assert f"low: 0.6 (was {before['low']['on']:g}), misses 25.0 % of 4 clips\n" in out
    assert "tiny.device.json" in err
    after = load(model).contract
    assert after.thresholds == {**before, "low": {**before["low"], "on": 0.6, "off": 0.36}}
    assert after.calibration["device"]["by_hand"] == {"low": 0.6}
    code, out, err = confit("evaluate", model, sounds / "labels.csv")
    assert "device.json, made on" in out
    assert ", set by hand: low=0.6; the others are of an earlier calibration, for 20 false accepts per hour\n" in out
    of_earlier = "set by hand: low=0.6; the others are of an earlier calibration, for 20 false accepts per hour"
    assert of_earlier in confit("inspect", model)[1]
    code, out, _ = confit("calibrate", model, "--threshold", "mid=0.7", "--json")
    assert code == 0
    assert json.loads(out)["by_hand"] == {"low": 0.6, "mid": 0.7}
    assert json.loads(out)["calibrated"] == load(model).contract.calibration["device"]["calibrated"]
    assert json.loads(out)["calibrated"]["target_fa_per_hour"] == 20
    copy = model.parent / "copy.onnx"
    assert confit("calibrate", model, "--threshold", 0.8, "--bake", copy)[0] == 0
    copied = load(copy).contract
    assert {copied.thresholds[label]["on"] for label in copied.can_fire} == {0.8}
    recordings = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20)
    code, _, err = confit("calibrate", model, *recordings, "--threshold", "mid=0.7")
    assert code == 0, err
    assert "no longer set by hand, but calibrated: low=0.6. To keep" in err
    assert (
        "no longer set by hand" not in confit("calibrate", model, *recordings, "--bake", model.parent / "baked.onnx")[2]
    )


def test_a_threshold_set_by_hand_is_measured_and_leaves_the_target_to_the_others(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path
) -> None:
    own = np.tile(np.concatenate([tone(500, 0.3), silence(7)]), 10)  # low fires falsely, ten times
    soundfile.write(tmp_path / "own.flac", own + hiss(len(own) / RATE, 20)[: len(own)], RATE)
    arguments = ("calibrate", model, "--negatives", sounds / "negatives", "--target-fa-per-hour", 20, "--json")
    alone = json.loads(confit(*arguments, "--only", "mid", "--only", "high", "--negatives", tmp_path / "own.flac")[1])
    code, out, err = confit(*arguments, "--threshold", "low=0.5", "--negatives", tmp_path / "own.flac")
    assert code == 0, err
    found = json.loads(out)
    assert found["by_hand"] == {"low": 0.5}
    assert found["thresholds"]["low"]["on"] == 0.5
    assert found["thresholds"]["mid"] == alone["thresholds"]["mid"]
    fired = found["by_label"]["low"]["false_accepts"]
    assert fired >= 10
    assert found["false_accepts_held_out"] == alone["false_accepts_held_out"] + fired
    assert found["fa_per_hour_bound"] >= poisson_upper(fired, found["hours"], 0.95) > 20
    assert not found["met"]
    assert "warning: with the thresholds set by hand, the bound is" in err
    assert found["cautions"] == alone["cautions"]


def test_where_clips_are_missed_it_says_what_lower_thresholds_would_find(
    confit: Confit, sounds: Path, model: Path
) -> None:
    arguments = (
        "calibrate",
        model,
        "--negatives",
        sounds / "negatives",
        "--positives",
        sounds / "clips",
        "--threshold",
        "low=1",
    )
    code, _, err = confit(*arguments, "--target-fa-per-hour", 20)
    assert code == 0, err
    assert "low: mostly missed. A lower threshold would miss fewer: " in err
    assert "25 % at 0.9 (0 false accepts), " in err
    assert (
        "25 % at 0.1 (2 false accepts). To set one by hand: --threshold low=0.9\n" in err
    )  # the highest that finds as many
    code, out, _ = confit(*arguments, "--target-fa-per-hour", 20, "--json")
    lower = json.loads(out)["by_label"]["low"]["lower_thresholds"]
    assert [row["threshold"] for row in lower] == [0.9, 0.6, 0.4, 0.1]
    assert "lower_thresholds" not in json.loads(out)["by_label"]["mid"]
    soft = sounds / "soft"  # clips that no threshold finds: the first take of each label
    (soft / "low").mkdir(parents=True, exist_ok=True)
    shutil.copy(sounds / "clips" / "low" / "0.wav", soft / "low")
    code, _, err = confit(*arguments[:4], "--positives", soft, *arguments[6:], "--target-fa-per-hour", 20)
    assert code == 0, err
    assert "would miss fewer" not in err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ("", "--negatives is missing: give recordings"),
        ("--threshold lo=0.3", "'lo' is not a label"),
        ("--threshold low=0.3 --only low", "--only: has no effect without --negatives"),
        (
            "--threshold low=0.3 --target-fa-per-hour 0.5",
            "--target-fa-per-hour: has no effect without --negatives; leave it out, or give --negatives",
        ),
        ("--threshold low=0", "above 0 and at most 1"),
        (
            "--threshold low=0.01 --negatives {}",
            "--threshold low=0.01: recordings are measured at thresholds of 0.05 or more",
        ),
        ("--threshold low=0.3 --only mid --negatives {}", "--threshold low=0.3: is not among the labels of --only"),
    ],
)
def test_a_threshold_that_cannot_be_set_by_hand(
    confit: Confit, sounds: Path, model: Path, arguments: str, fault: str
) -> None:
    code, _, err = confit("calibrate", model, *arguments.format(sounds / "negatives").split())
    assert code == 2
    assert fault in err
    assert not (model.parent / "tiny.device.json").exists()


def test_only_some_labels_fire(confit: Confit, sounds: Path, model: Path) -> None:
    target = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20)
    code, out, err = confit("calibrate", model, *target, "--positives", sounds / "clips", "--only", "mid", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert list(summary["by_label"]) == ["mid"]
    assert summary["clips"] == 4
    code, out, err = confit("listen", model, "--source", sounds / "labelled" / "kitchen.wav", "--json", "--gate", "-45")
    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["label"] for event in events if event["type"] == "detection"] == ["mid"]
    for label, expected in (
        ("parrot", "is not a label of tiny (labels that fire: low, mid, high)"),
        ("Lowe", "is not a label of tiny (labels that fire: low, mid, high); did you mean 'low'?"),
        (
            "other",
            "stands for everything that is not a label of tiny, and never fires (labels that fire: low, mid, high)",
        ),
    ):
        code, _, err = confit("calibrate", model, *target, "--only", label)
        assert (code, err) == (2, f"confit-edge: --only {label}: {expected}\n")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--negatives", "nowhere"), "nowhere"),
        (("--negatives", "negatives", "--target-fa-per-hour", "0"), "--target-fa-per-hour"),
        (("--negatives", "negatives", "--confidence", "95"), "--confidence"),
        (("--negatives", "negatives", "--bake", "model.json"), ".onnx"),
        (("--negatives", "negatives", "--positives", "labelled"), "labelled"),
        (("--negatives", "negatives", "--negatives", "negatives/radio-0.flac"), "twice"),
    ],
)
def test_wrong_usage(
    confit: Confit, sounds: Path, model: Path, arguments: tuple[str, ...], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sounds)
    code, _, err = confit("calibrate", model, *arguments)
    assert code in (1, 2)
    assert fault in err
    assert len(err.strip().splitlines()) == 1


def test_a_shipped_model_is_calibrated_into_a_copy(confit: Confit, sounds: Path) -> None:
    code, _, err = confit("calibrate", "digits", "--negatives", sounds / "negatives")
    assert code == 2
    assert "--bake" in err


@pytest.mark.parametrize("labelled", ["labels.csv", "labelled"])
def test_labelled_recordings_are_scored(confit: Confit, sounds: Path, model: Path, labelled: str) -> None:
    code, out, err = confit("evaluate", model, sounds / labelled, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["recordings"] == 2
    assert report["hours"] == pytest.approx((8.3 + 20) / 3600, abs=1e-4)
    assert report["false_accepts"] == 1
    assert report["fired_for"] == [{"heard": "high", "was": "parrot", "times": 1}]
    kitchen, (false_accept,) = str(sounds / "labelled" / "kitchen.wav"), report["heard_falsely"]
    assert (false_accept["file"], false_accept["label"], false_accept["was"]) == (kitchen, "high", "parrot")
    assert 7.9 < false_accept["start_s"] < false_accept["end_s"] < 8.5
    assert 0.6 <= false_accept["score"] <= 1
    assert report["not_heard"] == [{"file": kitchen, "start_s": 6.5, "end_s": 6.8, "label": "low"}]
    _, out, _ = confit("evaluate", model, sounds / labelled)
    false_accepts, missed = out.split("\n\nfalse accepts\n")[1].split("\n\nmissed sounds\n")
    assert f"  {kitchen}  {false_accept['start_s']:.2f} to {false_accept['end_s']:.2f} s  high (" in false_accepts
    assert missed == f"  {kitchen}  6.50 to 6.80 s  low\n"
    low, high = report["fa_per_hour_interval"]
    assert low < report["fa_per_hour"] < high
    assert report["by_label"]["low"] == {**report["by_label"]["low"], "sounds": 2, "missed": 1, "frr": 0.5}
    assert report["by_label"]["mid"]["missed"] == 0
    assert report["snr"]["20 dB and more"]["missed"] == 0
    assert sum(row["sounds"] for row in report["snr"].values()) == 3
    assert -0.3 < report["latency_from_start_s"]["median"] - 0.3 < 0.3  # of sounds of 0.3 s in windows of 0.12


def test_latency_is_from_the_start_of_what_is_longer_than_the_window(
    confit: Confit, model: Path, tmp_path: Path
) -> None:
    """An alarm that rings for twenty seconds is told at once, not twenty seconds before it ends."""
    ring, beep = tone(500, 20), tone(3600, 0.1)
    soundfile.write(tmp_path / "hall.wav", np.concatenate([silence(1), beep, silence(2), ring, silence(2)]), RATE)
    (tmp_path / "hall.txt").write_text("1.0\t1.1\thigh\n3.1\t23.1\tlow\n", encoding="utf-8")
    code, out, err = confit("evaluate", model, tmp_path, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["by_label"]["low"]["missed"] == report["by_label"]["high"]["missed"] == 0
    assert -0.1 < report["latency_s"]["most"] < 0.3
    assert 0 < report["latency_from_start_s"]["most"] < 0.3
    _, out, _ = confit("evaluate", model, tmp_path)
    (end,) = re.findall(r"\n\nreported ([+-][0-9.]+) s from a sound's end \(median\), ", out)
    (start,) = re.findall(r"\nreported ([+-][0-9.]+) s from the start of a sound longer than the model's window", out)
    assert float(end) == pytest.approx(report["latency_s"]["median"], abs=0.006)
    assert float(start) == pytest.approx(report["latency_from_start_s"]["median"], abs=0.006)


def test_what_cannot_be_written_is_reported_before_hours_pass(
    confit: Confit, sounds: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confit_runtime import recordings

    monkeypatch.delattr(recordings, "stream_rows")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    before, occupied = model.read_bytes(), model.parent / "a-file"
    occupied.touch()
    for option, value, fault in (
        ("--bake", model, "is the model being calibrated"),
        ("--bake", occupied / "x.onnx", "its folder cannot be written"),
        ("--plot", occupied / "x.png", "its folder cannot be written"),
        ("--plot", "x.png", "needs matplotlib"),
    ):
        monkeypatch.delitem(sys.modules, "confit_edge.geometry.plots", raising=False)
        code, out, err = confit("calibrate", model, "--negatives", sounds / "negatives", option, value)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert fault in err
    assert model.read_bytes() == before


@pytest.mark.parametrize("verb", ["calibrate", "evaluate"])
def test_a_model_without_a_label_that_fires_is_refused(confit: Confit, sounds: Path, tmp_path: Path, verb: str) -> None:
    levels = {label: {"on": 1.01, "off": 0.5} for label in tiny_model.LABELS}
    mute = tiny_model.build(tmp_path / "mute.onnx", thresholds=levels)
    rest = ("--negatives", sounds / "negatives") if verb == "calibrate" else (sounds / "labels.csv",)
    code, out, err = confit(verb, mute, *rest)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "has no label that can fire" in err
    assert "use it with `enroll` and `identify`" in err


def test_labels_are_held_against_the_recordings_and_the_model(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path
) -> None:
    table, kitchen = tmp_path / "labels.csv", sounds / "labelled" / "kitchen.wav"
    head = "path,start_s,end_s,label\n"
    table.write_text(f"{head}{kitchen},2.0,2.3,low\n{kitchen},3,400,mid\n", encoding="utf-8")
    code, _, err = confit("evaluate", model, table)
    assert code == 1
    assert "labels.csv, line 3: ends at 400 s, past the end of" in err
    table.write_text(f"{head}{kitchen},2.0,2.3,Low\n{kitchen},5.3,5.6,parrot\n", encoding="utf-8")
    code, _, err = confit("evaluate", model, table)
    assert code == 2
    assert "holds none of the labels that tiny detects (low, mid, high), but Low (low?), parrot" in err
    assert "correct misspelt labels" in err
    table.write_text(f"{head}{kitchen},2.0,2.3,dishwasher\n{kitchen},8.0,8.3,parrot\n", encoding="utf-8")
    code, out, err = confit("evaluate", model, table)
    assert code == 0
    assert "but dishwasher, parrot; they count as other sounds, and only false accepts are measured" in err
    assert out.startswith("3 false accepts in")
    assert "1 x low fired, label there: dishwasher" in out
    assert "false rejects" not in out
    table.write_text(f"{head}{kitchen},2.0,2.3,Low\n{kitchen},5.3,5.6,mid\n", encoding="utf-8")
    code, out, err = confit("evaluate", model, table)
    assert code == 0
    assert "labels that tiny does not have: Low (low?); they count as other sounds" in err
    assert "hours of 1 recording:" in out
    assert (
        "\nfewer than 5 recordings do not show how much recordings differ: the interval of false accepts per hour"
        in out
    )
    assert (
        "these intervals are wide because sounds of one recording tend to be missed together; 5 or more recordings"
        in out
    )
    table.write_text(f"{head}{kitchen},2.0,2.3,low\n{sounds / 'labelled' / 'hall.wav'}\n", encoding="utf-8")
    code, out, _ = confit("evaluate", model, table)
    assert code == 0
    assert "hours of 2 recordings" in out


@pytest.mark.parametrize("column", ["label", "labels"])
def test_clips_that_must_not_fire_are_evaluated_alone_but_show_no_misses(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path, column: str
) -> None:
    soundfile.write(tmp_path / "one.wav", tone(500, 0.6), RATE)
    table = tmp_path / "quiet.csv"
    table.write_text(f"path,{column}\none.wav,unknown\n", encoding="utf-8")
    code, out, err = confit("evaluate", model, table)
    assert code == 0, err
    assert "1 false accept" in out
    code, _, err = confit("calibrate", model, "--negatives", sounds / "negatives", "--positives", table)
    assert code == 2
    assert "holds none of the labels that can fire" in err


def test_of_several_labels_each_is_a_positive_and_none_is_another(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "both.wav", np.concatenate([tone(500, 0.3), silence(1), tone(1200, 0.3)]), RATE)
    table = "path,labels\nboth.wav,low|mid|parrot\n"
    (tmp_path / "m.csv").write_text(
        table + "".join(f"{sounds / 'clips' / name},{labels}\n" for name, labels in
                        (("low/1.wav", "low"), ("parrot/1.wav", "parrot"), ("parrot/2.wav", "unknown")))
    )  # fmt: skip
    options = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20, "--positives", tmp_path / "m.csv")
    several = tiny_model.build(tmp_path / "several.onnx", multi_label=True)
    code, out, err = confit("calibrate", several, *options, "--json")
    assert code == 0, err
    report = json.loads(out.splitlines()[-1])
    assert (report["clips"], report["confusions"], report["frr"]) == (3, 0, 0)
    assert "left out clips without a label that can fire: no label (1), parrot (1)" in err
    assert "of 3 sounds missed" in confit("calibrate", several, *options)[1]
    code, out, err = confit("calibrate", model, *options, "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["clips"] == 1
    assert "left out 1 clip with several labels, because tiny gives a clip one label" in err


def test_of_a_manifest_with_splits_the_clips_of_test_are_heard(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.csv"
    options = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20, "--positives", manifest, "--json")
    for of_two, clips, missed, expected in (
        (
            "test",
            2,
            0.5,
            "left out 2 clips of other splits than test, because a model misses fewer of the clips it was trained on",
        ),
        (
            "val",
            4,
            0.25,
            "has splits, but none of these clips is in test; if the model was trained on them, it will miss more",
        ),
        (
            "",
            4,
            0.25,
            "has no splits, so all of it counts (4 clips); if the model was trained on some",
        ),
    ):
        splits = [of_two, of_two, *(["train", ""] if of_two else ["", ""])]
        rows = [f"{sounds / 'clips' / 'low' / f'{at}.wav'},low,{split}\n" for at, split in enumerate(splits)]
        manifest.write_text(f"path,label,split\n{''.join(rows)}", encoding="utf-8")
        code, out, err = confit("calibrate", model, *options)
        assert code == 0, err
        report = json.loads(out)
        assert (report["clips"], report["frr"]) == (clips, missed)
        assert f"{manifest}: {expected}" in err
    own = {"low": "test", "high": "val"}
    rows = [f"{sounds / 'clips' / 'low' / f'{at}.wav'},{label},{own[label]}\n" for at, label in enumerate(own)]
    manifest.write_text(f"path,label,split\n{''.join(rows)}", encoding="utf-8")
    _, _, err = confit("calibrate", model, *options)
    assert "m.csv: has no test clip of high, so its misses are not measured" in err
    _, _, err = confit("calibrate", model, *options[:4], "--positives", sounds / "clips")
    assert f"`confit-edge data split {sounds / 'clips'} -o OUT.csv` makes the splits" in err


def test_positives_have_the_columns_of_the_training(confit: Confit, sounds: Path, model: Path, tmp_path: Path) -> None:
    """Four clips of one voice say less than four of four."""
    manifest = tmp_path / "m.csv"
    rows = [f"{sounds / 'clips' / 'low' / f'{at}.wav'},x,low,ann\n" for at in range(4)]
    manifest.write_text(f"path,label,word,voice\n{''.join(rows)}", encoding="utf-8")
    options = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20, "--json", "--positives", manifest)
    upper = []
    for more in ((), ("--group-column", "voice")):
        code, out, err = confit("calibrate", model, *options, "--label-column", "word", *more)
        assert code == 0, err
        upper.append(json.loads(out)["frr_interval"][1])
        column_options = " ".join(["--label-column", "word", *more])
        assert f"`confit-edge data split {manifest} -o OUT.csv {column_options}` makes the splits" in err
        assert ("treats each clip as independent" in err) == (not more)
    assert upper[0] < upper[1]
    for wrong, named in (("--label-column", "'words'"), ("--group-column", "'words'")):
        code, _, err = confit("calibrate", model, *options, wrong, "words")
        assert code == 2
        assert f"{manifest}: there is no column {named}" in err
    code, _, err = confit("calibrate", model, *options[:5], "--group-column", "voice")
    assert code == 2
    assert "are columns of --positives" in err


def test_sounds_within_recordings_are_no_positives(confit: Confit, sounds: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        f"path,start_s,end_s,label\n{sounds / 'labelled' / 'kitchen.wav'},2.0,2.3,low\n"
    )
    quiet = ("--negatives", sounds / "labelled" / "hall.wav", "--positives", tmp_path / "labels.csv")
    code, _, err = confit("calibrate", model, *quiet)
    assert (code, "`confit-edge data cut " in err) == (2, True)


@pytest.mark.parametrize("kind", ["folder", "csv", "jsonl"])
def test_clips_are_evaluated_each_between_silences(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path, kind: str
) -> None:
    """They are found and missed as `calibrate --positives` counts them, and clips of other sounds may fire falsely."""
    rows = [(path, path.parent.name) for path in sorted((sounds / "clips").glob("*/*.wav"))]
    soundfile.write(tmp_path / "false.wav", tone(500, 0.3, level=0.3), RATE)  # not what its label says
    rows.append((tmp_path / "false.wav", "parrot"))
    source = {"folder": tmp_path / "clips", "csv": tmp_path / "m.csv", "jsonl": tmp_path / "m.jsonl"}[kind]
    if kind == "folder":
        shutil.copytree(sounds / "clips", source)
        shutil.copy(tmp_path / "false.wav", source / "parrot" / "false.wav")
    elif kind == "csv":
        source.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    else:
        source.write_text("".join(json.dumps({"path": str(path), "label": label}) + "\n" for path, label in rows))
    code, out, err = confit("evaluate", model, source, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["recordings"] == 13
    assert {label: (row["sounds"], row["missed"]) for label, row in summary["by_label"].items()} == {
        "low": (4, 1), "mid": (4, 1)
    }  # fmt: skip
    low, high = grouped_share_interval([True, False, False, False] * 2, [f"{at}" for at in range(8)], 0.95)
    assert summary["false_rejects"]["frr_interval"] == [low, high]
    assert summary["fired_for"] == [{"heard": "low", "was": "parrot", "times": 1}]
    assert Path(summary["heard_falsely"][0]["file"]).name == "false.wav"
    assert summary["snr"] == summary["latency_s"] == {}
    code, out, err = confit("evaluate", model, source)
    assert "1 false accept in 0.00 hours of 13 clips" in out
    assert "has no groups, so the interval of missed clips treats each clip as independent" in err


@pytest.mark.parametrize(
    ("kind", "rows", "fault"),
    [
        # with two labels, each row would be a false accept of the other's
        (
            "csv",
            "path,label\n{low}/1.wav,low\n{low}/../low/1.wav,mid\n",
            "line 3: {shown}/1.wav is listed as 'low' and as",
        ),
        ("csv", "path,label,split\n{low}/1.wav,low,tset\n", "line 2: split 'tset' is not one of train, val, test"),
        ("jsonl", '{{"path": "{low}/1.wav", "label": "low"}}\n{{"label": "low"}}\n', "line 2: path is empty"),
    ],
    ids=["twice", "split", "path"],
)
def test_a_faulty_manifest_is_refused_as_by_train(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path, kind: str, rows: str, fault: str
) -> None:
    low, source = sounds / "clips" / "low", tmp_path / f"m.{kind}"
    source.write_text(rows.format(low=low))
    fault = fault.format(shown=os.path.relpath(low, tmp_path))
    for command in (("evaluate", model), ("calibrate", model, "--negatives", sounds / "negatives", "--positives")):
        code, _, err = confit(*command, source)
        assert (code, f"{source}, {fault}" in err) == (1, True), err


def test_a_group_is_the_same_with_spaces_around_it(sounds: Path, model: Path, tmp_path: Path) -> None:
    low = sounds / "clips" / "low"
    (tmp_path / "m.csv").write_text(f"path,label,group\n{low}/1.wav,low,ada\n{low}/2.wav,low, ada\n")
    clips = clips_as_recordings(tmp_path / "m.csv", load(model).contract)
    assert [clip.groups for clip in clips] == [{"ada"}, {"ada"}]


def test_of_a_manifest_the_test_clips_are_evaluated(confit: Confit, sounds: Path, model: Path, tmp_path: Path) -> None:
    rows = [
        f"{sounds / 'clips' / label / str(at)}.wav,{label},{('train', 'test')[at % 2]},{'ab'[at // 2]}"
        for label in ("low", "mid")
        for at in range(4)
    ]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,split,group", *rows]))
    code, out, err = confit("evaluate", model, tmp_path / "m.csv", "--json")
    assert code == 0, err
    rejects = json.loads(out)["false_rejects"]
    assert rejects["sounds"] == 4
    assert rejects["frr_interval"] == list(grouped_share_interval([False] * 4, [*"abab"], 0.95))
    assert "left out 4 clips of other splits than test" in err


def test_recordings_without_sounds_need_only_their_paths(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "radio.csv").write_text(
        "path\n" + "".join(f"{sounds / 'negatives' / f'radio-{at}.flac'}\n" for at in range(3))
    )
    code, out, err = confit("evaluate", model, tmp_path / "radio.csv", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["recordings"], summary["false_accepts"], summary["false_rejects"]) == (3, 0, {"sounds": 0})
    (tmp_path / "radio.csv").write_text(f"path,begin\n{sounds / 'negatives' / 'radio-0.flac'},1\n")
    assert "has no column start_s" in confit("evaluate", model, tmp_path / "radio.csv")[2]


def test_a_hint_names_only_a_csv_that_can_be_used(confit: Confit, sounds: Path, model: Path, tmp_path: Path) -> None:
    shutil.copy(sounds / "negatives" / "radio-0.flac", tmp_path)
    (tmp_path / "manifest.csv").write_text("path,label\nradio-0.flac,low\n")
    assert confit("data", "cut", tmp_path, "-o", tmp_path / "out")[2].endswith("as Audacity exports them)\n")
    (tmp_path / "labels.csv").write_text("path,start_s,end_s,label\nradio-0.flac,1,2,low\n")
    assert f"pass the file itself: {tmp_path / 'labels.csv'}" in confit("evaluate", model, tmp_path)[2]


def test_evaluate_at_another_threshold(confit: Confit, sounds: Path, model: Path) -> None:
    labels = sounds / "labelled"
    at_own = json.loads(confit("evaluate", model, labels, "--json")[1])
    never = ("--threshold", "1.01", "--threshold", "mid=0.5")
    code, out, _ = confit("evaluate", model, labels, *never[2:])
    assert code == 0
    assert "thresholds from the export, except --threshold mid=0.5\n" in out
    code, _, err = confit("evaluate", model, labels, *never)
    assert (code, "above 0 and at most 1" in err) == (2, True)
    strict = json.loads(confit("evaluate", model, labels, "--threshold", "1", "--threshold", "mid=0.5", "--json")[1])
    assert strict["thresholds_of"] == {"from": "export", "given": ["1", "mid=0.5"]}
    assert strict["by_label"]["mid"]["missed"] == at_own["by_label"]["mid"]["missed"] == 0
    assert (
        strict["by_label"]["low"]["missed"] == strict["by_label"]["low"]["sounds"] > at_own["by_label"]["low"]["missed"]
    )
    code, _, err = confit("evaluate", model, labels, "--threshold", "lo=0.5")
    assert (code, "'lo' is not a label (labels that fire: low, mid, high); did you mean 'low'?" in err) == (2, True)


def test_a_bare_threshold_does_not_bring_back_what_was_set_never_to_fire(
    confit: Confit, sounds: Path, model: Path
) -> None:
    target = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20)
    assert confit("calibrate", model, *target, "--only", "low")[0] == 0
    for more, labels in ((), ["low"]), (("--threshold", "mid=0.5"), ["low", "mid"]):
        options = ("--threshold", "0.5", *more, "--json")
        out = confit("listen", model, "--source", sounds / "labelled" / "kitchen.wav", *options)[1]
        events = [json.loads(line) for line in out.splitlines()]
        assert [one["label"] for one in events if one["type"] == "detection"] == labels
        report = json.loads(confit("evaluate", model, sounds / "labelled", *options)[1])
        assert report["never_fire"] == ({} if more else {"mid": 1})


def test_a_sound_without_length_is_refused_where_it_should_be_found(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path
) -> None:
    for name in ("kitchen.wav", "hall.wav"):
        shutil.copy(sounds / "labelled" / name, tmp_path)
    (tmp_path / "hall.txt").write_text("1.5\t1.5\tmid\n", encoding="utf-8")
    labels = tmp_path / "kitchen.txt"
    labels.write_text("2.3\t2.3\tlow\n5.3\t5.6\tmid\n", encoding="utf-8")
    code, out, err = confit("evaluate", model, tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"mid at 1.5 s of {tmp_path / 'hall.wav'} (and 1 more) has no length" in err
    (tmp_path / "hall.txt").write_text("1.5\t1.5\tparrot\n", encoding="utf-8")  # nothing is to be found there
    labels.write_text("2.0\t2.3\tlow\n5.3\t5.6\tmid\n", encoding="utf-8")
    assert confit("evaluate", model, tmp_path)[0] == 0


def test_a_recording_that_breaks_off_is_left_out_and_the_others_are_reported(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path
) -> None:
    for name in ("kitchen.wav", "kitchen.txt"):
        shutil.copy(sounds / "labelled" / name, tmp_path)
    full_report = json.loads(confit("evaluate", model, tmp_path, "--json")[1])
    assert full_report["failed"] == 0
    damaged = tmp_path / "a.flac"
    soundfile.write(damaged, hiss(20, 11), RATE)
    damaged.write_bytes(damaged.read_bytes()[:-9000])
    code, out, err = confit("evaluate", model, tmp_path, "--json")
    one, report = map(json.loads, out.splitlines())
    assert (code, one["type"], one["clip"]) == (1, "failed", str(damaged))
    assert one["error"].startswith(f"{damaged}: cannot be read as sound (")
    assert f"confit-edge: {one['error']}\n" in err
    assert report == {**full_report, "failed": 1}
    code, out, _ = confit("evaluate", model, tmp_path)
    assert code == 1
    assert "\nincomplete: 1 of 2 recordings could not be read; the figures leave them out\n" in out
    (tmp_path / "a.txt").write_text("1\t2\tlow\n", encoding="utf-8")
    code, out, err = confit("evaluate", model, damaged)  # nothing is left
    assert (code, out, err) == (1, "", f"confit-edge: {one['error']}\n")
    code, out, err = confit("evaluate", model, damaged, "--json")
    again, report = map(json.loads, out.splitlines())
    assert (code, again, err) == (1, one, f"confit-edge: {one['error']}\n")
    counts = {key: report[key] for key in ("type", "failed", "recordings", "hours", "false_accepts", "false_rejects")}
    assert counts == {
        "type": "summary", "failed": 1, "recordings": 0, "hours": 0, "false_accepts": 0, "false_rejects": {"sounds": 0}
    }  # fmt: skip
    assert report["fa_per_hour"] is report["fa_per_hour_interval"] is None


@pytest.mark.parametrize("at_fault", ["evaluate", "negatives", "positives", "missing"])
def test_a_file_that_holds_nothing_is_refused_before_anything_is_heard(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_fault: str
) -> None:
    from confit_runtime import evaluation, recordings

    monkeypatch.delattr(recordings, "stream_rows")
    monkeypatch.delattr(evaluation, "FileSource")
    empty, table = tmp_path / "x.wav", tmp_path / "x.csv"
    if at_fault != "missing":
        soundfile.write(empty, silence(0), RATE)
    if at_fault == "evaluate":
        table.write_text(f"path,start_s,end_s,label\n{sounds / 'labelled' / 'kitchen.wav'},2.0,2.3,low\nx.wav\n")
        arguments = ["evaluate", model, table]
    else:
        table.write_text(f"path,label,split\n{sounds / 'clips' / 'low' / '1.wav'},low,test\nx.wav,low,test\n")
        negatives = empty if at_fault == "negatives" else sounds / "negatives"
        arguments = ["calibrate", model, "--negatives", negatives]
        arguments += ["--positives", table] if at_fault != "negatives" else []
    code, out, err = confit(*arguments)
    fault = "no such file" if at_fault == "missing" else "holds no samples"
    status = 2 if at_fault == "missing" else 1
    assert (code, out, err) == (status, "", f"confit-edge: {empty}: {fault}\n")
    code, out, err = confit(*arguments, "--json")
    assert (code, json.loads(out)) == (status, {"type": "failed", "clip": str(empty), "error": f"{empty}: {fault}"})
    assert err == f"confit-edge: {empty}: {fault}\n"


@pytest.mark.parametrize("at_fault", ["negatives", "positives"])
def test_a_damaged_file_that_ends_a_calibration_has_a_line_of_its_own(
    confit: Confit, sounds: Path, model: Path, tmp_path: Path, at_fault: str
) -> None:
    """Which shows as it is heard."""
    damaged, table = tmp_path / "x.flac", tmp_path / "x.csv"
    soundfile.write(damaged, hiss(20, 11), RATE)
    damaged.write_bytes(damaged.read_bytes()[:-9000])
    table.write_text(f"path,label,split\n{sounds / 'clips' / 'low' / '1.wav'},low,test\nx.flac,low,test\n")
    arguments = ["calibrate", model, "--target-fa-per-hour", 1000, "--negatives"]
    arguments += [damaged] if at_fault == "negatives" else [sounds / "negatives", "--positives", table]
    code, out, err = confit(*arguments, "--json")
    (failed,) = map(json.loads, out.splitlines())
    assert (code, failed["type"], failed["clip"]) == (1, "failed", str(damaged))
    assert failed["error"].startswith(f"{damaged}: cannot be read as sound (")
    assert err.endswith(f"confit-edge: {failed['error']}\n")


def test_each_recording_and_each_sound_counts_once(confit: Confit, sounds: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "ev").mkdir()
    table, kitchen = tmp_path / "ev" / "labels.csv", tmp_path / "ev" / "kitchen.wav"
    shutil.copy(sounds / "labelled" / "kitchen.wav", kitchen)
    head = "path,start_s,end_s,label\nkitchen.wav,2.0,2.3,low\n"
    table.write_text(f"{head}../ev/kitchen.wav,5.3,5.6,mid\n{kitchen},8.0,8.3,parrot\n", encoding="utf-8")
    code, out, err = confit("evaluate", model, table, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["recordings"], report["hours"]) == (1, pytest.approx(8.3 / 3600))
    assert (report["false_rejects"]["missed"], report["fired_for"][0]["was"]) == (0, "parrot")
    table.write_text(f"{head}kitchen.wav,2.0,2.3,mid\n../ev/kitchen.wav,2,2.30,low\n", encoding="utf-8")
    code, out, err = confit("evaluate", model, table)
    message = f"{table}: low from 2 s to 2.3 s of {kitchen} is listed twice: keep one of the two"
    assert (code, out, err) == (1, "", f"confit-edge: {message}\n")
    shutil.copy(kitchen, tmp_path / "ev" / "copy.wav")
    table.write_text(f"{head}copy.wav,2.0,2.3,low\n", encoding="utf-8")
    code, out, err = confit("evaluate", model, table)
    assert (code, out) == (2, "")
    assert f"{kitchen.with_name('copy.wav')} and {kitchen} are the same: list each recording once" in err
    (tmp_path / "ev" / "copy.wav").unlink()
    (tmp_path / "ev" / "kitchen.txt").write_text("2.0\t2.3\tlow\n", encoding="utf-8")
    soundfile.write(kitchen.with_suffix(".flac"), *soundfile.read(kitchen))
    code, out, err = confit("evaluate", model, kitchen.parent)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert (
        f"{kitchen.with_suffix('.flac')} and {kitchen} share the label file {kitchen.with_suffix('.txt')}: keep" in err
    )


def test_labels_that_are_set_never_to_fire_are_reported_and_not_missed(
    confit: Confit, sounds: Path, model: Path
) -> None:
    code, out, _ = confit("evaluate", model, sounds / "labels.csv")
    assert code == 0
    assert "\nthresholds from the export\n" in out
    assert "\nSNR 20 dB and more " in out
    assert "never to fire" not in out
    arguments = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20, "--only", "mid")
    assert confit("calibrate", model, *arguments)[0] == 0
    code, out, _ = confit("evaluate", model, sounds / "labels.csv")
    path, today = model.with_suffix(".device.json"), datetime.date.today().isoformat()
    assert code == 0
    assert f"\nthresholds from {path}, made on {today}, for 20 false accepts per hour\n" in out
    assert f"{'all':<20}{1:>8}{0:>8}" in out
    assert f"{'low':<20}{2:>8}{'-':>8}  set never to fire\n" in out
    report = json.loads(confit("evaluate", model, sounds / "labels.csv", "--json")[1])
    assert (report["by_label"].keys(), report["never_fire"]) == ({"mid"}, {"low": 2})
    assert report["false_rejects"]["missed"] == 0
    thresholds = report["thresholds_of"]
    assert (thresholds["from"], thresholds["file"], thresholds["made"]) == ("device file", str(path), today)
    assert thresholds["target_fa_per_hour"] == 20 > thresholds["fa_per_hour_bound"]
    path.unlink()
    baked = model.parent / "baked.onnx"
    assert confit("calibrate", model, *arguments, "--bake", baked)[0] == 0
    out = confit("evaluate", baked, sounds / "labels.csv")[1]
    assert "\nthresholds from a calibration baked into the model, for 20 false accepts per hour\n" in out


def test_joined_labels_are_a_sound_each(confit: Confit, sounds: Path, model: Path, tmp_path: Path) -> None:
    joined, alone = (("2.0", "2.3", "low|parrot"), ("5.3", "5.6", " mid |low|mid|")), ("low", "parrot", "mid", "low")
    places = ("2.0,2.3", "2.0,2.3", "5.3,5.6", "5.3,5.6")
    tables = {
        "rows.csv": ("label", [f"{place},{label}" for place, label in zip(places, alone, strict=True)]),
        "label.csv": ("label", [",".join(row) for row in joined]),
        "labels.csv": ("labels", [",".join(row) for row in joined]),
    }
    for name, (column, rows) in tables.items():
        lines = [f"path,start_s,end_s,{column}", *(f"kitchen.wav,{row}" for row in rows)]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "kitchen.txt").write_text("".join("\t".join(row) + "\n" for row in joined), encoding="utf-8")
    shutil.copy(sounds / "labelled" / "kitchen.wav", tmp_path)
    reports = []
    for table in (*tables, "kitchen.wav"):
        code, out, err = confit("evaluate", model, tmp_path / table, "--json")
        assert code == 0, err
        assert "labels that tiny does not have: parrot;" in err
        reports.append(json.loads(out))
    assert reports[1:] == reports[:1] * 3
    assert {label: row["missed"] for label, row in reports[0]["by_label"].items()} == {"low": 1, "mid": 0}
    (tmp_path / "labels.csv").write_text("path,start_s,end_s,labels\nkitchen.wav,1,2,|\n", encoding="utf-8")
    assert confit("evaluate", model, tmp_path / "labels.csv")[2].endswith("line 2: label is empty\n")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_labels_mean_the_same_however_their_accents_are_spelt(
    confit: Confit, sounds: Path, tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    labels = ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", *tiny_model.LABELS[1:]]
    levels = {label: {"on": 0.6, "off": 0.3} for label in labels}
    model = tiny_model.build(tmp_path / "tiny.onnx", labels=labels, thresholds=levels)
    spelt, kitchen = unicodedata.normalize(form, labels[0]), sounds / "labelled" / "kitchen.wav"
    shutil.copy(kitchen, tmp_path)
    (tmp_path / "kitchen.txt").write_text(f"2.0\t2.3\t{spelt}\n", encoding="utf-8")
    (tmp_path / "l.csv").write_text(f"path,start_s,end_s,label\n{kitchen},2.0,2.3,{spelt}\n", encoding="utf-8")
    for labelled in (tmp_path / "kitchen.wav", tmp_path / "l.csv"):
        code, out, err = confit("evaluate", model, labelled, "--json")
        assert code == 0, err
        assert json.loads(out)["by_label"] == {
            labels[0]: {**json.loads(out)["false_rejects"], "sounds": 1, "missed": 0}
        }
    target = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20)
    code, out, err = confit("calibrate", model, *target, "--only", spelt, "--json")
    assert code == 0, err
    assert list(json.loads(out)["by_label"]) == labels[:1]


def test_recordings_without_labels_are_counted(
    confit: Confit, sounds: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert confit("evaluate", model, sounds / "labelled")[0] == 0
    assert (
        "1 of 2 recordings have no label file (first: hall.txt); treating them as having none of the sounds"
        in caplog.text
    )


def test_a_link_is_calibrated_where_its_calibration_lies(confit: Confit, sounds: Path, model: Path) -> None:
    target = ("--negatives", sounds / "negatives", "--target-fa-per-hour", 20)
    link, device = model.parent / "current.onnx", model.parent / "tiny.device.json"
    link.symlink_to("tiny.onnx")
    assert confit("calibrate", model, *target, "--only", "low")[0] == 0
    assert json.loads(confit("inspect", link, "--json")[1])["device_file"] == str(device)
    code, _, err = confit("calibrate", link, *target, "--only", "mid")
    assert (code, f"wrote {device}" in err) == (0, True)
    assert load(link).contract.can_fire == load(model).contract.can_fire == ["mid"]


def test_inspect_shows_the_thresholds_in_use(confit: Confit, sounds: Path, model: Path) -> None:
    assert "thresholds       0.6 for all labels\nthresholds from  export, not calibrated since\n" in confit(
        *("inspect", model, "--no-measure")
    )[1].replace("  " * 9, "")
    confit("calibrate", model, "--negatives", sounds / "negatives", "--target-fa-per-hour", 20, "--only", "mid")
    code, out, _ = confit("inspect", model, "--no-measure")
    assert code == 0
    assert "(mid)" not in out  # all that fire have one level
    assert "never: low, high" in out
    path, today = model.with_suffix(".device.json"), datetime.date.today().isoformat()
    assert (
        f"thresholds from  {path} of {today}: calibration on 0.23 hours: at most 13 false accepts per hour (95 %" in out
    )
    listened = confit("listen", model, "--source", sounds / "negatives")[2]
    assert f"tiny: thresholds from {path}, made on {today}, for " in listened
    assert "thresholds from" not in confit("listen", model, "--source", sounds / "negatives", "--threshold", "0.5")[2]
    described = json.loads(confit("inspect", model, "--no-measure", "--json")[1])
    assert described["device_file"] == str(model.with_suffix(".device.json"))
    assert described["contract"]["thresholds"]["mid"]["on"] < 1
    path.write_text(json.dumps({**json.loads(path.read_text()), "report": {}}), encoding="utf-8")
    out = confit("inspect", model, "--no-measure")[1]
    assert f"thresholds from  {path} of {today}: no calibration report" in out
    assert "never: low, high" in out


def test_labels_that_cannot_be_read(confit: Confit, sounds: Path, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    for text, fault in (
        ("path,start,end,label\n", "start_s"),
        (
            "path;start_s;end_s;label\nx.wav;1;2;low\n",
            "path;start_s;end_s;label); columns must be separated by commas\n",
        ),
        ("path,start_s,end_s,label\nx.wav,one,2,low\n", "line 2"),
        ("path,start_s,end_s,label\nx.wav,3,2,low\n", "line 2"),
        ("path,start_s,end_s,label\nx.wav,1,2,\n", "label is empty"),
        ("path,start_s,end_s,label\nx.wav,1,2,low\n", "x.wav: no such file"),
    ):
        table.write_text(text, encoding="utf-8")
        code, _, err = confit("evaluate", model, table)
        assert code in (1, 2)
        assert fault in err
    code, _, err = confit("evaluate", model, sounds / "negatives")
    assert code == 2
    assert err.endswith("no label files found (name.txt next to name.wav, as Audacity exports them)\n")
    shutil.copy(sounds / "negatives" / "radio-0.flac", tmp_path)
    code, _, err = confit("evaluate", model, tmp_path)
    assert code == 2
    assert err.endswith(f"to use a CSV, pass the file itself: {table}\n")
