"""Several processes train as one would: real processes, started as a user starts them, gloo between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from confit_edge.data.corpus import Corpus
from confit_edge.pairtune.distributed import Ranks
from confit_edge.runs import read_run
from tests import processes

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes of a program, on a free port."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *arguments]
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "runtime", "export"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done


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
    apart = {name: float((first[name] - alone[name]).abs().max()) for name in alone}
    assert max(apart.values()) < 1e-8, sorted(apart.items(), key=lambda one: -one[1])[:5]


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


def test_what_several_processes_cannot_do_is_said_by_each(trained: Path) -> None:
    said = [(trained / f"refusals-{rank}.txt").read_text(encoding="utf-8").splitlines() for rank in (0, 1)]
    assert said[0] == said[1]
    over_batch, one_device, diverged, apart = said[0]
    assert "normalises over the batch (layers.44)" in over_batch
    assert "--device cpu:0" in one_device
    assert "smaller lr" in diverged
    assert "1 of the 2 processes see it" in apart


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
    assert alone.everywhere(Path(__file__))
    assert not alone.everywhere(Path(__file__) / "nothing")
    assert alone.main
