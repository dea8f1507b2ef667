"""Several processes train as one would: real processes with gloo between them, two of them started by torchrun."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from confit_edge.data.corpus import Corpus
from confit_edge.pairtune.distributed import Ranks, _join_processes
from confit_edge.runs import read_run
from confit_runtime.errors import UsageError
from tests import processes
from tests.cli.forked import TRAINING, Forked

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def environment() -> dict[str, str]:
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "runtime", "export"))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes of a program, on a free port."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done


def start(rank: str, port: str, *arguments: str, cwd: Path | None = None) -> Forked:
    """`confit-edge ARGUMENTS` as one of two processes of a launcher."""
    joined = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
    return TRAINING.start(*arguments, cwd=cwd, environment={**os.environ, **joined})


def free_port() -> str:
    with socket.create_server(("localhost", 0)) as server:
        return str(server.getsockname()[1])


def ends(started: Sequence[Forked], status: int) -> list[str]:
    """What is said on stderr by processes that all end with `status`, one after the other."""
    said = []
    for process in started:
        _, err = process.communicate()
        assert "Traceback" not in err
        assert process.wait() == status, err
        said += err.splitlines()
    return said


@pytest.fixture
def machines(manifest: Path, tmp_path: Path) -> Path:
    """A folder each for two processes, with the same clips."""
    for rank in ("0", "1"):
        shutil.copytree(manifest.parent, tmp_path / rank / "words")
    return tmp_path


def test_processes_with_other_clips_report_it_once_and_write_nothing(machines: Path) -> None:
    manifest = machines / "1" / "words" / "manifest.csv"
    damaged = machines / "1" / "words" / next(csv.DictReader(manifest.open()))["path"]
    damaged.write_bytes(b"cut off")
    port, train = free_port(), ("train", "words/manifest.csv", "-o", "run", "--epochs", "1", "--device", "cpu")
    err = ends([start(rank, port, *train, cwd=machines / rank) for rank in "01"], status=2)
    assert [line for line in err if line.startswith("left out") and str(damaged) in line and "on process 1: " in line]
    complaints = [line for line in err if line.startswith("confit-edge: ")]
    assert len(complaints) == 1
    assert "process 1 would train something different from process 0" in complaints[0]
    assert "the data (60 clips of 5 classes, there 59 clips of 5 classes)" in complaints[0]
    assert not list(machines.glob("*/run"))


def test_a_training_that_one_process_alone_sees_is_not_gone_on_with(
    machines: Path, launched: tuple[Path, list[dict[str, Any]]]
) -> None:
    shutil.copytree(launched[0], machines / "0" / "run")
    port, train = free_port(), ("train", "words/manifest.csv", "-o", "run", "--resume")
    err = ends([start(rank, port, *train, cwd=machines / rank) for rank in "01"], status=2)
    complaints = [line for line in err if line.startswith("confit-edge: ")]
    assert len(complaints) == 1
    assert "run: process 1 and process 0 see different trainings there" in complaints[0]
    assert not (machines / "1" / "run").exists()


def test_a_training_that_only_one_process_would_resume_is_refused(manifest: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "run", free_port()
    train = ("train", str(manifest), "-o", str(out), "--device", "cpu")
    err = ends([start("0", port, *train), start("1", port, *train, "--resume")], status=2)
    complaints = [line for line in err if line.startswith("confit-edge: ")]
    assert complaints == [
        "confit-edge: process 1 has --resume, but process 0 does not: give all processes the same command"
    ]
    assert not out.exists()


def test_a_process_that_waits_for_others_reports_it(manifest: Path, tmp_path: Path) -> None:
    process = start("0", free_port(), "train", str(manifest), "-o", str(tmp_path / "run"), "--device", "cpu")
    ending = Timer(120, process.kill)
    ending.start()
    try:
        line_read = next((line for line in process.stderr if line.startswith("waiting")), "")
    finally:
        ending.cancel()
        process.kill()
        process.communicate()
    assert line_read == "waiting for the other processes (WORLD_SIZE is 2; unset it to train alone)\n"


def test_a_process_without_its_place_on_the_machine_does_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UsageError, match=r"cannot be joined \(LOCAL_RANK is not set\)"):
        _join_processes("cuda")


def test_a_process_that_ends_is_reported_in_one_line(manifest: Path, tmp_path: Path) -> None:
    train = ("train", str(manifest), "-o", str(tmp_path / "run"), "--epochs", "500", "--no-frozen-baseline")
    port, settings = free_port(), ("--soup", "1", "--window", "0.8", "--device", "cpu")
    first, second = (start(rank, port, *train, *settings) for rank in "01")
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoint.safetensors").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        second.kill()
        _, err = first.communicate(timeout=60)
    finally:
        for process in (first, second):
            if process.poll() is None:
                process.kill()
    assert first.returncode == 1
    assert err.splitlines()[-1].startswith("confit-edge: another process of this training ended")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "words", "-o", "run", "--device", "cpu"], "cannot be joined"),
        (["train", "words", "-o", "run", "--epochs", "0"], "--epochs must be at least 1"),
        (["train", "words", "-o", "run", "--epochs", "many"], "'many'"),
        (["study", "shots", "--data", "words", "-o", "study"], "--jobs"),
        (["demo", "--out", "demo"], "or unset WORLD_SIZE"),
        (["classify", "--nope"], "--nope"),
    ],
)
def test_failures_before_processes_connect_are_reported_by_each(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    incomplete = {**os.environ, "WORLD_SIZE": "2"}  # no MASTER_ADDR
    each = [TRAINING.start(*arguments, cwd=tmp_path, environment={**incomplete, "LOCAL_RANK": rank}) for rank in "01"]
    for process in each:
        assert told in "\n".join(ends([process], status=2))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def launched(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run that two processes made, and what they said."""
    out = tmp_path_factory.mktemp("launched") / "run"
    settings = ["--epochs", "1", "--no-frozen-baseline", "--soup", "1", "--probe-views", "1", "--window", "0.8"]
    done = launch("-m", "confit_edge", "train", str(manifest), "-o", str(out), *settings, "--device", "cpu", "--json")
    return out, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def processed(
    manifest: Path, launched: tuple[Path, Any], checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder in which `processes` left what it did, and what was said as the run was distilled."""
    out = tmp_path_factory.mktemp("processes")
    distill = ["distill", str(launched[0]), "-o", str(out / "student"), "--student", str(checkpoints["whisper"])]
    settings = ["--epochs", "1", "--lr", "5e-4", "--device", "cpu", "--json"]
    done = launch(str(Path(processes.__file__)), str(manifest), str(out), *distill, *settings)
    return out, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def trained(processed: tuple[Path, Any]) -> Path:
    """Weights of every case after a training by two processes, in `CASE-RANK.safetensors`."""
    return processed[0]


@pytest.mark.parametrize("case", processes.CASES)
def test_two_processes_end_with_the_weights_of_one(case: str, trained: Path, corpus: Corpus) -> None:
    alone = processes.weights(corpus, **processes.CASES[case])
    first, second = (load_file(trained / f"{case}-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys() == alone.keys()
    assert all(torch.equal(first[name], second[name]) for name in alone)
    start = processes.in_double().state_dict()
    assert max(float((alone[name] - start[name]).abs().max()) for name in start) > 3e-4
    difference = {name: float((first[name] - alone[name]).abs().max()) for name in alone}
    assert max(difference.values()) < 1e-8, sorted(difference.items(), key=lambda one: -one[1])[:5]


def test_the_gradients_are_those_of_one_batch(trained: Path) -> None:
    # weights alone would not show it: AdamW's step hardly knows the scale of a gradient
    alone = processes.gradients(Ranks(CPU))
    assert {name.split(".")[0] for name in alone} == set(processes.OBJECTIVES)
    assert any(name.endswith("metric.proxies") for name in alone)
    for rank in (0, 1):
        found = load_file(trained / f"gradients-{rank}.safetensors")
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def test_what_several_processes_cannot_do_is_reported_by_each(trained: Path) -> None:
    refusals = [(trained / f"refusals-{rank}.txt").read_text(encoding="utf-8").splitlines() for rank in (0, 1)]
    assert refusals[0] == refusals[1]
    over_batch, one_device, diverged, alone, other, drifted, of_one, another_verb, elsewhere = refusals[0]
    assert "normalises over the batch (layers.44)" in over_batch
    assert "--device cpu:0" in one_device
    assert "smaller lr" in diverged
    assert "only 1 of 2 processes can see it" in alone
    assert "process 1 has a different recipe" in other
    assert "weights of process 1 no longer equal those of process 0 (" in drifted
    assert " differ, first encoder." in drifted
    assert of_one == "no clip"
    assert "process 1 runs distill, but process 0 runs train" in another_verb
    assert "process 1 reports its recipe, but process 0 reports its checkpoint" in elsewhere


def test_gradients_that_not_all_have_and_what_the_first_reads_are_the_same_on_each(trained: Path) -> None:
    for rank in (0, 1):
        found = json.loads((trained / f"others-{rank}.json").read_text(encoding="utf-8"))
        assert found["left_out"] == [1.0, 2.0, 0.5, None]
        assert found["rate"] == 0.2
        assert found["waiting"] >= 6 * 3600  # the first validates, and writes, for as long as it takes


def test_processes_leave_each_other_before_they_end(trained: Path) -> None:
    # one whose gloo threads still ran as the interpreter ended aborted on a loaded machine, three times in fourteen
    for rank in (0, 1):
        threads = (trained / f"left-{rank}.txt").read_text(encoding="utf-8").splitlines()
        assert threads
        assert not [name for name in threads if "gloo" in name]


def test_train_and_distill_work_under_a_launcher_and_speak_with_one_voice(
    launched: tuple[Path, list[dict[str, Any]]], processed: tuple[Path, list[dict[str, Any]]]
) -> None:
    path, lines = launched
    assert [line["type"] for line in lines] == ["note", "note", "epoch", "probing", "summary"]
    run = read_run(path)
    assert run.metrics["probes"] == lines[-1]["metrics"]["probes"]
    assert not list(path.glob("*.partial"))
    _, lines = processed
    assert sum("no --unlabelled sound" in line.get("text", "") for line in lines) == 1
    assert [line["type"] for line in lines].count("summary") == 1
    assert lines[-1]["type"] == "summary"


@pytest.mark.parametrize("rows", [1, 2, 7, 15])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_the_batch(rows: int, count: int) -> None:
    shares = [Ranks(CPU, index, count).share(rows) for index in range(count)]
    assert [row for share in shares for row in range(rows)[share]] == list(range(rows))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == -(-rows // count)


def test_one_process_alone_exchanges_nothing() -> None:
    alone = Ranks(CPU)
    share = torch.randn(3, 2, requires_grad=True)
    assert alone.gather(share, 3) is share
    assert alone.agree({"val_linear": 0.5}) == {"val_linear": 0.5}
    assert alone.exists_for_all(Path(__file__))
    assert not alone.exists_for_all(Path(__file__) / "nothing")
    assert alone.main
