"""Run by .ci/run beside the suite, because it takes most of a minute: the whole demo, with less to train on."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from confit_edge.data.manifest import read_manifest
from confit_edge.demo.steps import Demo
from confit_edge.demo.story import run_demo
from confit_edge.recipe import Recipe

# what the step on voices needs: fifteen words to enroll from, three to ask with
WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "yes", "no", "up", "down", "left", "right",
    "stop", "marvin",
)  # fmt: skip
VOICES = {"train": 2, "val": 2, "test": 4}

# the model in a process that cannot import torch
CLASSIFY = """
import json, sys
sys.modules["torch"] = None
import confit_runtime
model = confit_runtime.load(sys.argv[1])
metrics, precision = model.contract.metrics, model.contract.precision
print(json.dumps({"metrics": metrics, "precision": precision, "heard": [model.classify(path).label for path in sys.argv[2:]]}))
"""


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def out(cut: Callable[..., Path], background: Path, told: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("demo") / "my out"
    shutil.copytree(cut(WORDS, VOICES).parent, data / "words")
    shutil.copytree(background, data / "background" / "train")
    run_demo(Demo(out, 0, told.append, None, data=data, epochs=1, soup=1))
    return out


def test_it_writes_what_its_help_says(out: Path) -> None:
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files >= {"words.onnx", "report.html", "summary.json", "stream.flac", "stream.txt", "words.db"}
    assert files >= {f"plots/{name}.png" for name in ("learning", "map", "confusion")}
    assert files >= {f"runs/{name}/metrics.json" for name in ("pairtune", "finetune", "voices")}


def test_its_figures_are_those_of_the_runs_and_of_the_model_without_torch(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    runs = {name: json.loads((out / "runs" / name / "metrics.json").read_text()) for name in ("pairtune", "finetune")}
    accuracy = summary["accuracy"]
    for probe in ("linear", "knn"):
        assert accuracy["frozen"][probe] == runs["pairtune"]["frozen"][probe]["test"]["accuracy"]
        for name, metrics in runs.items():
            assert accuracy[name][probe] == metrics["probes"][probe]["test"]["accuracy"]
    assert accuracy["finetune"]["head"] == runs["finetune"]["head"]["test"]["accuracy"]

    test = [clip for clip in read_manifest(out / "words.csv").clips if clip.split == "test"]
    assert accuracy["n"] == len(test) == (len(WORDS) - 1) * VOICES["test"]
    command = [sys.executable, "-c", CLASSIFY, str(out / "words.onnx"), *(str(clip.path) for clip in test)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    right = sum(heard == clip.label for heard, clip in zip(found["heard"], test, strict=True))
    assert summary["model"]["bytes"] == (out / "words.onnx").stat().st_size
    assert summary["model"]["precision"] == found["precision"] == "int8"
    assert summary["model"]["int8_accuracy"] == found["metrics"]["test"]["accuracy"] == right / len(test)
    assert summary["model"]["stream_max_abs_diff"] < 1e-3


def test_the_report_tells_the_figures(out: Path) -> None:
    summary, report = json.loads((out / "summary.json").read_text()), (out / "report.html").read_text()
    stream, word, shipped = summary["stream"], summary["enroll_word"], summary["identify"]["speaker_model"]
    assert f"<b>{100 * summary['accuracy']['pairtune']['linear']:.1f} %</b>" in report
    assert f"{stream['detected']} found, {stream['false_accepts']} false accepts" in report
    assert f"{word['correct']} of {word['n']} clips by other voices" in report
    assert f"{shipped['correct']} of their {shipped['n']} sentences" in report


def test_the_training_it_prints_is_its_own(out: Path, told: list[str]) -> None:
    (command,) = (line for line in told if " train " in line and line.startswith("  "))
    subprocess.run(f"{command} --help", shell=True, capture_output=True, check=True)  # parses what stands before it
    words = shlex.split(command)
    run = json.loads((out / "runs" / "pairtune" / "run.json").read_text())
    options = dict(zip(words[5::2], words[6::2], strict=True))
    options["--background"] = [options["--background"]]
    assert options.pop("--precision") == "auto"  # the run has what it came to
    default = {f"--{key.replace('_', '-')}": value for key, value in Recipe().to_dict().items() if key != "precision"}
    recipe = {flag: str(run["recipe"][flag[2:].replace("-", "_")]) for flag in default}
    assert recipe == {flag: str(value) for flag, value in {**default, **options}.items()}


def test_the_commands_it_prints_run_and_hear_what_it_heard(out: Path, told: list[str]) -> None:
    listen, evaluate, microphone = (line.split("    (")[0].strip() for line in told[-3:])
    assert listen == f"{microphone} --source '{out / 'stream.flac'}'"  # so what can listen to the one can to the other
    stream = json.loads((out / "summary.json").read_text())["stream"]

    def lines(command: str) -> list[dict[str, Any]]:
        done = subprocess.run(f"{command} --json", shell=True, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    heard = [line for line in lines(listen) if line["type"] == "detection"]
    judged = lines(evaluate)[-1]
    sounds = judged["false_rejects"]
    assert (sounds["sounds"], sounds["sounds"] - sounds["missed"]) == (stream["expected"], stream["detected"])
    assert judged["false_accepts"] == stream["false_accepts"]
    assert len(heard) == stream["detected"] + stream["false_accepts"]
