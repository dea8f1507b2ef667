"""`confit-edge train` and `export` as a user runs them: killed and resumed, and with all that can be wrong with input."""

from __future__ import annotations

import csv
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from confit_edge.cli._training import TrainingBar, print_probes
from confit_edge.data.corpus import Corpus
from confit_edge.files import lock_folder
from confit_runtime import load
from tests.cli.command import COMMAND, ENVIRONMENT, Confit
from tests.cli.forked import TRAINING

WEIGHTS = ("encoder.safetensors", "probe.safetensors", "projection.safetensors")


@pytest.fixture(scope="module")
def small(cut: Callable[..., Path]) -> Path:
    """Two words of three voices to train on, one for validation."""
    return cut(words=("yes", "stop", "seven"), voices={"train": 4, "val": 1})


# killed and resumed


def test_killed_three_times_and_resumed_the_run_is_the_undisturbed_one(small: Path, tmp_path: Path) -> None:
    options = [
        "--epochs",
        "6",
        "--clips-per-class",
        "2",
        "--soup",
        "1",
        "--probe-views",
        "1",
        "--no-frozen-baseline",
        "--json",
    ]
    undisturbed = TRAINING.start("train", small, "-o", tmp_path / "undisturbed", *options)
    # killed at some time after the start, then at some time after each of two later epochs
    moments = [(epoch, random.uniform(0, 0.2)) for epoch in (0, *sorted(random.sample(range(1, 5), 2)))]
    for epoch, delay in moments:
        more = ["--resume"] if epoch else []
        process = TRAINING.start("train", small, "-o", tmp_path / "killed", *options, *more)
        if epoch:
            lines = map(json.loads, process.stdout)
            assert any(line["type"] == "epoch" and line["epoch"] >= epoch for line in lines), moments
        else:
            while not (tmp_path / "killed" / "started.json").exists():
                assert process.poll() is None
                time.sleep(0.01)
        time.sleep(delay)
        assert process.poll() is None, f"it was over too soon: {moments}"
        process.kill()
        process.wait()
        process.stdout.close()
        assert not (tmp_path / "killed" / "run.json").exists(), moments
    resumed = TRAINING.run(
        "train", small, "-o", tmp_path / "killed", "--resume", "--json"
    )  # it knows the options it was begun with
    assert resumed.returncode == 0, resumed.stderr
    _, errors = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, errors
    for name in (*WEIGHTS, "history.csv", "metrics.json"):
        one, other = (tmp_path / folder / name for folder in ("undisturbed", "killed"))
        assert one.read_bytes() == other.read_bytes(), (name, moments)
    files = [sorted(p.name for p in (tmp_path / folder).rglob("*")) for folder in ("undisturbed", "killed")]
    assert files[0] == files[1]
    with (tmp_path / "killed" / "history.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]
    # every line on stdout is JSON, the summary last
    lines = [json.loads(line) for line in resumed.stdout.splitlines()]
    assert lines[-1]["type"] == "summary"
    assert lines[-1]["run"] == str(tmp_path / "killed")


@pytest.mark.skipif(os.name == "nt", reason="Windows locks no folder")
def test_a_run_is_made_by_one_process(small: Path, tmp_path: Path) -> None:
    """From before it decodes to its end; one that was killed holds nothing, and what is refused leaves nothing."""
    options = ["--epochs", "50", "--clips-per-class", "2", "--soup", "1", "--no-frozen-baseline", "--json"]
    out = tmp_path / "runs" / "words"
    first = TRAINING.start("train", small, "-o", out, *options)
    while not out.exists():  # long before started.json is there
        assert first.poll() is None
        time.sleep(0.001)
    assert not (out / "started.json").exists()
    for more in (["--seed", "5"], ["--resume"]):
        second = TRAINING.run("train", small, "-o", out, *options, *more)
        message = f"confit-edge: {out}: another process is writing this run; wait for it, or choose another -o\n"
        assert (second.returncode, second.stdout, second.stderr) == (2, "", message)
    assert first.poll() is None, "it was over too soon"
    first.kill()
    first.communicate()
    assert json.loads((out / "started.json").read_text())["recipe"]["seed"] == 0
    refused = TRAINING.run("train", tmp_path / "none.csv", "-o", tmp_path / "other" / "words", *options)
    assert refused.returncode == 2
    assert not (tmp_path / "other").exists()
    with lock_folder(out, "run"):
        pass
    assert (out / "started.json").is_file()


def test_ctrl_c_reports_what_is_kept_and_how_to_resume(small: Path, tmp_path: Path) -> None:
    options = ["--epochs", "50", "--clips-per-class", "2", "--json"]
    process = TRAINING.start("train", small, "-o", tmp_path / "run", *options)
    assert any(json.loads(line)["type"] == "epoch" for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{tmp_path / 'run'}: stopped; the same command with --resume continues" in errors
    assert "confit-edge: stopped" not in errors  # it is said already
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()


# where nobody hears what it says

ONE_EPOCH = ("--epochs", "1", "--clips-per-class", "2", "--probe-views", "1", "--soup", "1", "--no-frozen-baseline")


def test_a_stderr_whose_reader_is_gone_costs_no_training(small: Path, tmp_path: Path) -> None:
    reader, stderr = os.pipe()
    process = TRAINING.start("train", small, "-o", tmp_path / "run", *ONE_EPOCH, stderr=stderr)
    os.close(stderr)
    os.close(reader)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out.startswith("trained, linear probe")
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_training_outlives_its_terminal(small: Path, tmp_path: Path) -> None:
    """As one that is disowned, or under nohup, when the ssh session is lost."""
    controller, terminal = pty.openpty()
    process = TRAINING.start("train", small, "-o", tmp_path / "run", *ONE_EPOCH, stderr=terminal)
    os.close(terminal)
    assert os.read(controller, 1)  # its bar is drawn
    os.close(controller)
    assert process.wait() == 0
    assert (tmp_path / "run" / "run.json").is_file()


# from clips to a model, with the flags of a user


def test_train_reports_its_progress_and_its_run_exports(small: Path, tmp_path: Path, confit: Confit) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 9\nclips_per_class: 2\nprobe_views: 1\nsoup: 1\nlr: 5e-4\n")
    begin = ("train", small, "-o", tmp_path / "run", "--recipe", recipe, "--epochs", "1")
    code, out, err = confit(*begin, "--resume")  # as a script says it that may have been stopped
    assert code == 0, err
    assert f"{tmp_path / 'run'}: no training to resume there; starting a new one" in err
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["recipe"]["epochs"], info["recipe"]["clips_per_class"]) == (1, 2)
    assert "epoch 1/1: loss" in err
    assert "3 classes ('seven', 'stop', 'yes'): 12 clips of 4 groups for training, " in err
    assert "warning: classes 'seven', 'stop', 'yes' have no clip in test, so no test result is reported for them" in err
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        *("frozen encoder, linear probe", "frozen encoder, kNN probe", "trained, linear probe", "trained, kNN probe")
    ]
    assert "validation clips of 1 group\n" in out
    code, out, err = confit("export", tmp_path / "run", "-o", tmp_path / "small.onnx", "--license", "CC0-1.0")
    assert (code, out) == (0, ""), err
    assert load(tmp_path / "small.onnx").contract.license == "CC0-1.0"
    code, out, err = confit("train", small, "-o", tmp_path / "rum", "--resume")  # which would begin with defaults
    assert (code, f"{tmp_path / 'rum'}: holds no training to resume" in err) == (2, True)
    assert not (tmp_path / "rum").exists()
    for same in (["--recipe", recipe, "--epochs", "1"], ["--epochs", "1"], []):
        code, out, err = confit("train", small, "-o", tmp_path / "run", *same, "--resume")
        assert (code, "was finished before" in err) == (0, True)
    for recipe_options in (["--recipe", recipe], []):  # what is not given is as it was begun, and does not differ
        code, out, err = confit("train", small, "-o", tmp_path / "run", *recipe_options, "--epochs", "5", "--resume")
        assert (code, "these differ: epochs (1, now 5)\n" in err) == (2, True)


@pytest.mark.parametrize(("total", "reports"), [(2500, 11), (60, 1)])
def test_a_long_probe_reports_each_tenth_without_a_progress_bar(
    total: int, reports: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for json_lines in (False, True):
        with TrainingBar(json_lines) as bar:
            for of in ("the frozen encoder", "the trained encoder"):
                for done in range(0, total + 1, 20):
                    bar({"stage": "probe", "of": of, "done": done, "total": total})
        out, err = capsys.readouterr()
        lines = (out if json_lines else err).splitlines()
        assert len(lines) == 2 * reports
        if json_lines:
            shares = [10 * json.loads(line)["done"] // total for line in lines]
            assert shares == 2 * list(range(reports))
        else:
            assert lines[0] == "probing the frozen encoder"
            assert lines[reports] == "probing the trained encoder"
            assert reports == 1 or lines[-1] == "probing the trained encoder: 2500 of 2500 sounds"


def test_an_epoch_is_counted_within_its_training(capsys: pytest.CaptureFixture[str]) -> None:
    heard = {"stage": "epoch", "merit": "accuracy", "loss": 1.0, "val_linear": 0.5}
    with TrainingBar(False) as bar:
        bar({**heard, "epoch": 2, "epochs": 3})
        for epoch in (1, 5, 12):
            bar({**heard, "epoch": epoch, "epochs": 12, "training": (epoch - 1) // 3 + 1, "trainings": 4})
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "epoch 2/3",
        "training 1/4, epoch 1/3",
        "training 2/4, epoch 2/3",
        "training 4/4, epoch 3/3",
    ]


@pytest.mark.parametrize(("linear", "n", "warned"), [(0.2, 40, True), (0.5, 40, False), (0.2, 10, False)])
def test_a_linear_probe_far_behind_the_neighbours_is_reported(
    capsys: pytest.CaptureFixture[str], linear: float, n: int, warned: bool
) -> None:
    def shown(accuracy: float) -> dict[str, Any]:
        val = {"accuracy": 0.5, "n": n}
        return {"val": val, "test": {"accuracy": accuracy, "low": 0.0, "high": 1.0, "n": n, "groups": 5}}

    print_probes({"probes": {"linear": shown(linear), "knn": shown(0.6)}})
    assert ("is 40 points behind the kNN probe" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(("trained", "warned"), [(0.9, True), (0.98, False), (1.0, False)])
def test_the_share_found_of_own_classes_is_shown_and_a_training_that_lost_is_reported(
    capsys: pytest.CaptureFixture[str], trained: float, warned: bool
) -> None:
    def shown(accuracy: float) -> dict[str, Any]:
        own = {"right": 2, "n": 3}
        val = {"accuracy": accuracy, "low": 0.0, "high": 1.0, "n": 45, "groups": 5, "own": own}
        return {"val": val, "test": None}

    print_probes({"frozen": {"linear": shown(1.0)}, "probes": {"linear": shown(trained), "knn": shown(0.9)}})
    captured = capsys.readouterr()
    assert captured.out.count("; without unknown: 2 of 3 right") == 3
    assert ("validation accuracy fell from 100.0 % with the frozen encoder" in captured.err) == warned


@pytest.mark.parametrize("distilled", [False, True])
def test_a_multi_label_training_that_lost_is_reported_by_map_with_options_of_its_verb(
    capsys: pytest.CaptureFixture[str], distilled: bool
) -> None:
    def shown(precision: float) -> dict[str, Any]:
        of_best = {"accuracy": 0.9, "low": 0.85, "high": 0.95, "n": 45, "groups": 5}
        of_all = {
            "map": precision,
            "map_low": precision - 0.1,
            "map_high": precision + 0.1,
            "clips": 60,
            "clip_groups": 6,
        }
        return {"val": {**of_best, **of_all}, "test": None}

    probes = {"linear": shown(0.6), "knn": shown(0.9)}
    probes["linear"]["test"] = {**probes["linear"]["val"], "map_weighed": 0.57}
    print_probes({"frozen": {"linear": shown(0.8)}, "probes": probes, **({"teacher": {}} if distilled else {})})
    printed, err = capsys.readouterr()
    of_frozen, of_trained, _ = printed.splitlines()
    assert "mAP  80.0 %  [70.0, 90.0]  on 60 validation clips of 6 groups" in of_frozen
    assert (
        "mAP  60.0 %  [50.0, 70.0]  on 60 test clips of 6 groups; 57.0 % weighted by typicality (validation 60.0 %)"
        in of_trained
    )
    assert "is 30 points behind the kNN probe" in err
    assert "validation mAP fell from 80.0 % with the frozen encoder to 60.0 % with the trained one" in err
    assert ("--freeze all" in err, "--unlabelled" in err) == (not distilled, distilled)


def test_a_run_exports_from_another_folder_than_it_was_trained_in(
    small: Path, background: Path, tmp_path: Path, confit: Confit, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--epochs", "1", "--clips-per-class", "2", "--soup", "1", "--probe-views", "1", "--no-frozen-baseline"]
    soundfile.write(tmp_path / "room.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 160_000), 16_000)
    places = ["--background", background.name, "--background", tmp_path / "room.wav"]
    monkeypatch.chdir(background.parent)
    code, _, err = confit("train", os.path.relpath(small), "-o", tmp_path / "run", *places, *options)
    assert code == 0, err
    ends = ", ".join(f"the end of each recording of {place}" for place in (background, tmp_path / "room.wav"))
    assert f"\nbackground: 26.6 s for training, 11.4 s for thresholds ({ends})\n" in err
    recorded = json.loads((tmp_path / "run" / "run.json").read_bytes())["recipe"]["background"]
    assert recorded == [str(background), str(tmp_path / "room.wav")]
    monkeypatch.chdir(tmp_path)
    code, _, err = confit("export", "run", "-o", "model.onnx", "--background", tmp_path / "room.wav")
    assert code == 2
    assert "--background is given 1 time, but run was trained with 2: " in err
    code, _, err = confit("export", "run", "-o", "model.onnx", "--no-quantize", "--json")
    assert code == 0, err
    assert load(tmp_path / "model.onnx").contract.unknown_label == "unknown"


def test_a_corrupt_clip_among_good_ones_is_named_and_training_continues(
    cut: Callable[..., Path], tmp_path: Path, confit: Confit
) -> None:
    manifest = cut(words=("yes", "stop"), voices={"train": 3, "val": 1})
    truncated, text = sorted(manifest.parent.glob("yes-*.ogg"))[0], manifest.parent / "text.wav"
    truncated.write_bytes(truncated.read_bytes()[:100])
    text.write_text("this is not sound\n")
    with manifest.open("a") as file:
        file.write("text.wav,stop,somebody,train\n")
    options = ["--epochs", "1", "--clips-per-class", "2", "--soup", "1", "--probe-views", "1", "--no-frozen-baseline"]
    code, _, err = confit("train", manifest, "-o", tmp_path / "run", *options)
    assert code == 0, err
    for path in (truncated, text):
        assert sum(str(path) in line and "left out" in line for line in err.splitlines()) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["problems"] == {"unreadable": 2}
    code, out, err = confit("train", manifest, "-o", tmp_path / "strict", *options, "--strict")
    assert (code, out) == (1, "")
    assert f"2 of 9 clips cannot be used; the first problem is {truncated}" in one_line(err)
    assert not (tmp_path / "strict").exists()
    code, out, err = confit("train", manifest, "-o", tmp_path / "json", *options, "--json")
    problems = [json.loads(line) for line in out.splitlines() if json.loads(line)["type"] == "problem"]
    assert [problem["kind"] for problem in problems] == ["unreadable"] * 2


def test_a_statistic_that_has_no_value_is_null(corpus: Corpus, tmp_path: Path, confit: Confit) -> None:
    """Where every clip shares a label with every other there are no negatives, and so no hardest one."""
    rows = ["path,labels,group,split"]
    for split, clips in (("train", corpus.train), ("val", corpus.val)):
        for path, label, group in zip(clips.paths, clips.labels, clips.groups, strict=True):
            rows.append(f"{path},speech|{corpus.classes[label]},{group},{split}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    options = ["--epochs", "1", "--soup", "1", "--probe-views", "1", "--no-frozen-baseline", "--json"]
    code, out, err = confit("train", tmp_path / "m.csv", "-o", tmp_path / "run", *options)
    assert code == 0, err
    (epoch,) = [json.loads(line) for line in out.splitlines() if json.loads(line)["type"] == "epoch"]
    assert epoch["hardest_negative"] is None
    assert epoch["loss"] > 0


# bad input


def one_line(err: str) -> str:
    """The error, and nothing beside it but what a training told before it."""
    (line,) = (line for line in err.splitlines() if not (line.startswith("warning: ") or " for validation, " in line))
    assert line.startswith("confit-edge: ")
    return line


def test_data_that_a_run_could_not_record_is_refused_before_training(
    small: Path, background: Path, run_path: Path, tmp_path: Path, confit: Confit
) -> None:
    latin = tmp_path / os.fsdecode(b"caf\xe9")
    latin.mkdir()
    for name, source in (("words", small.parent), ("sound", background), ("run", run_path)):
        shutil.copytree(source, latin / name)
    words, sound, run = latin / "words" / "manifest.csv", latin / "sound", latin / "run"
    out = ["-o", tmp_path / "out"]
    for arguments in (
        ["train", words, *out],
        ["train", small, *out, "--background", sound],
        ["train", small, *out, "--others", sound],
        ["train", small, *out, "--rooms", sound],
        ["train", small, "-o", latin / "out"],
        ["distill", run_path, *out, "--unlabelled", sound],
        ["distill", run_path, *out, "--manifest", words],
        ["distill", run, *out],
        ["study", "shots", "--data", words, *out],
        ["study", "shots", "--data", small, "-o", latin / "out"],
        ["demo", "--out", latin / "out"],
        ["data", "split", words, "-o", tmp_path / "split.csv"],
        ["probe", run],
    ):
        code, printed, err = confit(*arguments)
        assert (code, printed) == (2, ""), arguments
        assert "the name b'caf\\xe9" in one_line(err), arguments
        assert f"`convmv -f latin1 -t utf8 --notest {tmp_path}/*`" in err
    code, _, err = confit("export", run_path, "-o", tmp_path / os.fsdecode(b"caf\xe9.onnx"))  # the name of the model
    assert (code, "the name b'caf\\xe9.onnx'" in one_line(err)) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == [latin.name]
    assert confit("data", "split", words, "-o", latin / "words" / "split.csv")[0] == 0  # clips are named from there


def test_what_cannot_be_written_as_utf8_is_one_line(run_path: Path, tmp_path: Path, confit: Confit) -> None:
    code, _, err = confit("export", run_path, "-o", tmp_path / "m.onnx", "--license", os.fsdecode(b"caf\xe9"))
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("confit-edge: cannot be written: ")
    assert "caf\\udce9" in last
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of manifests with something wrong."""
    folder = tmp_path_factory.mktemp("bad")
    noise = np.random.default_rng(0)
    for name in "abcdef":
        soundfile.write(folder / f"{name}.wav", noise.uniform(-0.3, 0.3, 8000), 16_000)
    (folder / "text.wav").write_text("this is not sound\n")
    head = "path,label,group"
    rows = {
        "one-class": [head, "a.wav,yes,1", "b.wav,yes,2"],
        "one-clip": [head, "a.wav,yes,1", "b.wav,yes,2", "c.wav,no,3"],
        "no-label": ["path,word,group", "a.wav,yes,1", "b.wav,no,2"],
        "only-text": [head, "a.wav,yes,1", "b.wav,yes,2", "text.wav,no,3"],
        "only-missing": [head, "a.wav,yes,1", "b.wav,yes,2", "nowhere.wav,no,3"],
        "good": [head, *(f"{name}.wav,{'yes' if name < 'd' else 'no'},{name}" for name in "abcdef")],
    }
    for name, lines in rows.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text("epoch: 3\n")
    (folder / "soft.yaml").write_text("snr_high: 10\n")
    (folder / "layers.yaml").write_text("layers: 4\n")
    (folder / "broken.yaml").write_text("epochs: [3\n")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("hello")
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["nowhere.csv"], 2, ["nowhere.csv"]),
        (["notes.txt"], 2, ["notes.txt", ".csv"]),
        (["empty"], 1, ["empty"]),
        (["no-label.csv"], 2, ["no-label.csv", "'label'", "path, word, group"]),
        (["one-class.csv", "--others", "empty"], 2, ["empty: has no sound files for --others"]),
        (["good.csv", "--label-column", "word"], 2, ["'word'", "path, label, group"]),
        (["good.csv", "--group-column", "speaker"], 2, ["'speaker'", "name it with --group-column"]),
        (["good.csv", "--split-by", "take"], 2, ["'take'", "name it with --split-by"]),
        (["one-class.csv"], 1, ["one-class.csv", "yes", "two"]),
        (["one-clip.csv"], 1, ["one-clip.csv", "'no'", "1 clip "]),
        (["only-text.csv"], 1, ["'no'", "text.wav"]),
        (["only-missing.csv"], 1, ["'no'", "nowhere.wav"]),
        (["good.csv", "--background", "nowhere"], 2, ["nowhere", "--background"]),
        (["good.csv", "--background", "empty"], 2, ["empty", "--background"]),
        (["good.csv", "--background", "text.wav"], 2, ["--background", "text.wav: no recording can be used"]),
        (["good.csv", "--rooms", "nowhere"], 2, ["nowhere: no such file or folder (for --rooms)"]),
        (["good.csv", "--rooms", "empty"], 2, ["empty: has no sound files for --rooms"]),
        (["good.csv", "--recipe", "nowhere.yaml"], 2, ["nowhere.yaml"]),
        (["good.csv", "--recipe", "recipe.yaml"], 2, ["recipe.yaml", "epoch"]),
        (["good.csv", "--recipe", "broken.yaml"], 2, ["broken.yaml"]),
        (["good.csv", "--lr", "fast"], 2, ["--lr"]),
        (["good.csv", "--epochs", "0"], 2, ["confit-edge: --epochs must be at least 1; it is 0"]),
        (["good.csv", "--seed", "-1"], 2, ["--seed must be"]),
        (["good.csv", "--objective", "guess"], 2, ["--objective must be one of pairtune"]),
        (
            ["good.csv", "--snr-low", "20", "--snr-high", "10"],
            2,
            ["confit-edge: --snr-low (20.0) must not be above --snr-high (10.0)"],
        ),
        (["good.csv", "--snr-low", "20"], 2, ["confit-edge: --snr-low (20.0) must not be above --snr-high (15.0)"]),
        (
            ["good.csv", "--recipe", "soft.yaml", "--snr-low", "20"],
            2,
            ["confit-edge: soft.yaml: --snr-low (20.0) must not be above recipe key 'snr_high' (10)"],
        ),
        (["good.csv", "--recipe", "layers.yaml"], 2, ["confit-edge: recipe key 'layers' is for attention encoders"]),
        (
            ["good.csv", "--layers", "4"],
            2,
            ["confit-edge: --layers is for attention encoders, not for --encoder speech"],
        ),
        (
            ["good.csv", "--lora-rank", "4"],
            2,
            ["confit-edge: --lora-rank is for attention encoders, not for --encoder sp"],
        ),
        (["good.csv", "--mining", "none", "--hardness", "3"], 2, ["--hardness has no effect with mining none"]),
        (["good.csv", "--loss-margin", "0.2"], 2, ["--loss-margin", "triplet"]),
        (["good.csv", "--objective", "finetune", "--loss", "triplet"], 2, ["--loss belongs to the objective pairtune"]),
        (["good.csv", "--window", "inf"], 2, ["--window inf"]),
        (["good.csv", "--device", "abacus"], 2, ["--device abacus"]),
        (["good.csv", "--encoder", "empty"], 2, ["--encoder ", "empty: has no config.json"]),
        (["good.csv", "--lr", "1e6", "--epochs", "1", "--soup", "1"], 1, ["lr"]),
        (["good.csv", "-o", "notes.txt"], 2, ["notes.txt"]),
        (["good.csv", "-o", "."], 2, ["not empty"]),
        (
            ["good.csv", "-o", "notes.txt/run"],
            2,
            ["notes.txt/run: cannot create this folder, because notes.txt is a file"],
        ),
        (["good.csv", "--encoder", "speech-embeding"], 2, ["speech-embedding, ge2e, yamnet"]),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else str(part),
)
def test_train_refuses_bad_input_on_one_line(
    arguments: list[str], code: int, named: list[str], bad: Path, confit: Confit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bad)
    out = [] if "-o" in arguments else ["-o", "out"]
    found, printed, err = confit("train", *arguments, *out, "--no-frozen-baseline")
    assert (found, printed) == (code, "")
    assert all(name in one_line(err) for name in named), err
    assert not (bad / "out" / "run.json").exists()
    assert "--rooms" not in arguments or not (bad / "out").exists()
    for leftover in (bad / "out").glob("*"):
        leftover.unlink()
    if (bad / "out").exists():
        (bad / "out").rmdir()


def test_export_refuses_bad_input_on_one_line(
    bad: Path, run_path: Path, manifest: Path, tmp_path: Path, confit: Confit
) -> None:
    fewer = tmp_path / "fewer.csv"
    rows = manifest.read_text().splitlines()
    fewer.write_text("\n".join([rows[0], *(f"{manifest.parent}/{row}" for row in rows[1:-1])]))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "checkpoint.safetensors").write_bytes(b"")
    out = tmp_path / "model.onnx"
    cases: list[tuple[list[str | Path], int, str]] = [
        ([bad / "nowhere", "-o", out], 2, "nowhere: not a run"),
        ([bad / "good.csv", "-o", out], 2, "not a run"),
        ([bad, "-o", out], 2, "not a run"),
        ([tmp_path / "unfinished", "-o", out], 2, "--resume"),
        ([run_path, "-o", tmp_path / "model.bin"], 2, ".onnx"),
        ([run_path, "-o", tmp_path], 2, ".onnx"),
        ([run_path, "-o", tmp_path / "two\nlines.onnx", "--data", fewer], 2, r"two\nlines.onnx: contains a line break"),
        (
            [run_path, "-o", out, "--data", fewer, "--license", "MIT\nMIT"],
            2,
            r"--license MIT\nMIT: contains a line break",
        ),
        ([run_path, "-o", bad / "good.csv" / "model.onnx"], 2, "cannot create this folder"),
        ([run_path, "-o", out, "--data", fewer], 2, "not the data that"),
        ([run_path, "-o", out, "--data", tmp_path / "gone.csv"], 2, "gone.csv"),
    ]
    for arguments, code, named in cases:
        found, printed, err = confit("export", *arguments)
        assert (found, printed) == (code, ""), (arguments, err)
        assert named in one_line(err)
    assert not out.exists()


def test_the_real_command_prints_one_line_and_no_traceback(bad: Path, tmp_path: Path) -> None:
    calls = [
        (["train", bad / "only-text.csv", "-o", tmp_path / "run"], 1, "text.wav"),
        (["export", bad, "-o", tmp_path / "model.onnx"], 2, "not a run"),
    ]
    for arguments, code, named in calls:
        command = [*COMMAND, *map(str, arguments)]
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert named in one_line(done.stderr)
