"""`confit-edge distill` as a user runs it: from a teacher's run to a model, killed and resumed, and with bad input."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.files import lock_folder
from confit_edge.runs import read_run, weights_sha256
from confit_runtime import load
from confit_runtime.audio import load_clip
from tests.cli.command import Confit
from tests.cli.forked import TRAINING

QUICK = ["--clips-per-class", "2", "--soup", "1", "--probe-views", "1", "--no-frozen-baseline"]


@pytest.fixture(scope="module")
def small(cut: Callable[..., Path]) -> Path:
    """Three words of four voices to train on, one for validation and one for test."""
    return cut(words=("yes", "stop", "seven"), voices={"train": 4, "val": 1, "test": 1})


@pytest.fixture(scope="module")
def teacher(small: Path, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny Whisper. Not to be changed."""
    run = tmp_path_factory.mktemp("teacher") / "whisper"
    arguments = ["train", small, "-o", run, "--encoder", checkpoints["whisper"], "--epochs", "1", *QUICK]
    done = TRAINING.run(*arguments)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quick to train by; keys of training and of the lesson in one file."""
    path = tmp_path_factory.mktemp("recipe") / "quick.yaml"
    path.write_text("clips_per_class: 2\nprobe_views: 1\nunlabelled_per_batch: 4\nlr: 5e-4\n")
    return path


def test_a_student_is_a_run_like_any_other(
    teacher: Path, recipe: Path, small: Path, background: Path, tmp_path: Path, confit: Confit
) -> None:
    student, model, muted = tmp_path / "student", tmp_path / "student.onnx", tmp_path / "muted.wav"
    soundfile.write(muted, np.zeros(16_000), 16_000)
    code, out, err = confit(
        *("distill", teacher, "-o", student, "--unlabelled", background, "--epochs", "1", "--recipe", recipe),
        *("--similarity-weight", "2.5", "--unlabelled", muted),
    )
    assert code == 0, err
    assert f"left out {muted}: silent" in err
    assert "epoch 1/1: loss" in err
    shown = [line.split("  ")[0] for line in out.splitlines()]
    assert shown == [
        f"{encoder}, {probe} probe"
        for encoder in ("frozen encoder", "teacher", "trained")
        for probe in ("linear", "kNN")
    ]
    info = json.loads((student / "run.json").read_text())
    assert info["encoder"]["family"] == "speech_embedding"
    assert (info["recipe"]["clips_per_class"], info["recipe"]["epochs"]) == (2, 1)
    about = info["distilled"]
    assert about["teacher_weights_sha256"] == weights_sha256(read_run(teacher).encoder)
    assert (about["similarity_weight"], about["unlabelled_per_batch"]) == (2.5, 4)
    assert (about["unlabelled"]["recordings"], about["unlabelled"]["seconds"]) == (3, 28.0)
    header = (student / "history.csv").read_text().splitlines()[0].split(",")
    assert {"teacher_cosine", "similarity_loss", "supervised_loss"} <= set(header)
    assert about["teacher_weights_sha256"][:12] in (student / "README.md").read_text()
    # what is done with a run is done with this one
    code, out, err = confit("probe", student, "--baseline", teacher, "--json")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["objective"] for row in rows if row["type"] == "probe"} == {"frozen", "pairtune", "distill"}
    code, out, err = confit("analyze", student, "--json")
    assert code == 0, err
    code, _, err = confit("export", student, "-o", model, "--no-quantize")
    assert code == 0, err
    loaded = load(model)
    clip = load_clip(sorted(small.parent.glob("yes-*.ogg"))[0], 16_000)
    assert loaded.contract.labels == ("seven", "stop", "yes")
    assert np.isfinite(loaded.embed(clip, 16_000)).all()


def test_distilling_without_unlabelled_sound_reports_it_and_prints_json(
    teacher: Path, recipe: Path, tmp_path: Path, confit: Confit
) -> None:
    code, out, err = confit(
        "distill", teacher, "-o", tmp_path / "student", "--epochs", "1", "--recipe", recipe, "--json", "--tensorboard"
    )
    assert code == 0, err
    assert list((tmp_path / "student" / "tensorboard").iterdir())
    lines = [json.loads(line) for line in out.splitlines()]
    assert any(line["type"] == "note" and "training clips only" in line["text"] for line in lines)
    (epoch,) = [line for line in lines if line["type"] == "epoch"]
    assert -1 <= epoch["teacher_cosine"] <= 1
    assert lines[-1]["type"] == "summary"
    assert lines[-1]["teacher_run"] == str(teacher)
    assert lines[-1]["metrics"]["teacher"]["linear"]["test"]["n"] == 3
    assert lines[-1]["metrics"]["probes"]["linear"]["test"]["n"] == 3


def test_killed_and_resumed_the_student_is_the_undisturbed_one(
    teacher: Path, recipe: Path, background: Path, tmp_path: Path
) -> None:
    arguments = ["distill", teacher, "--unlabelled", background, "--epochs", "3", "--recipe", recipe, "--json"]

    undisturbed, last = TRAINING.start(*arguments, "-o", tmp_path / "undisturbed"), random.randint(1, 2)
    process = TRAINING.start(*arguments, "-o", tmp_path / "killed")
    assert any(line["type"] == "epoch" and line["epoch"] == last for line in map(json.loads, process.stdout))
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "run.json").exists()
    resumed = TRAINING.run(*arguments, "-o", tmp_path / "killed", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert next(line["epoch"] for line in map(json.loads, resumed.stdout.splitlines()) if line["type"] == "epoch") > 1
    _, err = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, err
    for name in ("encoder.safetensors", "projection.safetensors", "probe.safetensors", "history.csv", "metrics.json"):
        one, other = (tmp_path / folder / name for folder in ("undisturbed", "killed"))
        assert one.read_bytes() == other.read_bytes(), (name, last)


@pytest.mark.skipif(os.name == "nt", reason="Windows locks no folder")
def test_a_student_that_another_process_makes_is_refused(teacher: Path, tmp_path: Path, confit: Confit) -> None:
    with lock_folder(tmp_path / "student", "run"):
        code, out, err = confit("distill", teacher, "-o", tmp_path / "student", "--resume")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'student'}: another process is writing this run; wait for it" in err
    assert not (tmp_path / "student").exists()


def test_bad_input_is_refused_on_one_line(
    teacher: Path, small: Path, cut: Callable[..., Path], checkpoints: dict[str, Path], tmp_path: Path, confit: Confit
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "keys.yaml").write_text("similarity: 1\n")
    (tmp_path / "same.yaml").write_text(f"encoder: {checkpoints['whisper']}\n")
    judged = tmp_path / "judged"
    judged.mkdir()
    rows = [line.split(",") for line in small.read_text().splitlines()]
    clip = next(path for path, _, _, split in rows if split == "test")
    shutil.copy(small.parent / clip, judged / "somewhere-else.ogg")
    other_classes = cut(words=("yes", "stop", "happy"), voices={"train": 4, "val": 1, "test": 1})
    other_clips = cut(words=("yes", "stop", "seven"), voices={"train": 3, "val": 1, "test": 1})
    cases: list[tuple[list[str | Path], int, list[str]]] = [
        ([tmp_path / "nowhere"], 2, ["nowhere: not a run"]),
        ([teacher, "--student", checkpoints["whisper"]], 2, ["--student", "that encoder itself"]),
        ([teacher, "--recipe", tmp_path / "same.yaml"], 2, [str(checkpoints["whisper"]), "that encoder itself"]),
        ([teacher, "--unlabelled-per-batch", "8"], 2, ["--unlabelled-per-batch", "--unlabelled"]),
        ([teacher, "--similarity-weight", "0", "--similarity-temperature", "1"], 2, ["--similarity-temperature"]),
        ([teacher, "--student", "nothing-of-the-kind"], 2, ["nothing-of-the-kind"]),
        ([teacher, "--unlabelled", tmp_path / "empty"], 2, ["empty", "--unlabelled"]),
        ([teacher, "--unlabelled", tmp_path / "keys.yaml"], 2, ["keys.yaml: no recording can be used"]),
        ([teacher, "--unlabelled", judged], 2, ["somewhere-else.ogg", "test clip"]),
        ([teacher, "--manifest", other_classes], 2, ["other classes", "happy", "seven"]),
        ([teacher, "--manifest", other_clips], 2, [str(other_clips), "not the data that"]),
        ([teacher, "--manifest", tmp_path / "gone.csv"], 2, ["gone.csv", "--manifest"]),
        ([teacher, "--background", tmp_path / "gone"], 2, ["gone: no such file or folder (for --background)"]),
        ([teacher, "--others", tmp_path / "gone"], 2, ["gone: no such file or folder (for --others)"]),
        ([teacher, "--recipe", tmp_path / "keys.yaml"], 2, ["keys.yaml", "unknown keys: similarity"]),
        ([teacher, "--similarity-temperature", "0"], 2, ["--similarity-temperature must"]),
        ([teacher, "--lr", "fast"], 2, ["--lr fast"]),
        ([teacher, "-o", teacher], 2, ["contains a finished run"]),
    ]
    for arguments, code, named in cases:
        out = [] if "-o" in arguments else ["-o", tmp_path / "student"]
        found, printed, err = confit("distill", *arguments, *out)
        assert (found, printed) == (code, ""), (arguments, err)
        *notes, line = err.splitlines()
        messages = ("--unlabelled sound", " for validation, ", " min for thresholds", "warning: ")
        assert all(any(part in note for part in messages) for note in notes)
        assert line.startswith("confit-edge: ")
        assert all(name in line for name in named), (arguments, err)
    assert not (tmp_path / "student").exists()
