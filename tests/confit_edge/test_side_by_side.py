"""Work in several processes: the trainings of the demo are those of `train`, and a process that dies is told of."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from confit_edge.demo.report import time_and_memory
from confit_edge.demo.side_by_side import train_all
from confit_edge.pairtune.session import train
from confit_edge.recipe import Recipe
from confit_edge.workers import limited_to, workers
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.memory import peak_bytes

ADVICE = "buy more memory"


def test_trained_at_once_is_as_trained_alone(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # one thread each, as the lone trainings below
    small: dict[str, Any] = {"epochs": 2, "classes_per_batch": 3, "clips_per_class": 2, "probe_views": 1, "soup": 1}
    recipes = {
        "pairtune": Recipe(**small),
        "finetune": Recipe(**small, objective="finetune", lr=(5e-4, 2e-3), search_epochs=1, frozen_baseline=False),
    }
    events: list[dict[str, Any]] = []
    ballast = np.ones(600 << 20, np.uint8)  # of this process alone: the other's peak must not begin with it
    trained, memory = train_all(manifest, tmp_path / "runs", recipes, events.append)
    own = peak_bytes()
    assert (memory is None) == (own is None)
    if memory is not None and own is not None:
        assert own + 100e6 < memory < 2 * own - ballast.nbytes / 2
    del ballast
    for name, recipe in recipes.items():
        with limited_to(1):
            alone = train(manifest, tmp_path / "alone" / name, recipe)
        assert alone is not None
        assert trained[name].metrics == alone.metrics
        assert trained[name].fitted.history == alone.fitted.history
        for kept in ("encoder.safetensors", "projection.safetensors"):
            assert (tmp_path / "runs" / name / kept).read_bytes() == (tmp_path / "alone" / name / kept).read_bytes()
        of_it = [event for event in events if event["run"] == name]
        assert [event["epoch"] for event in of_it if event["stage"] == "epoch"] == [1, 2]
        assert [event["stage"] for event in of_it][-1] == "probe"
    assert [event["lr"] for event in events if event["stage"] == "search"] == [5e-4, 2e-3]


def test_the_demo_reports_its_time_and_where_possible_its_memory() -> None:
    assert time_and_memory({"seconds": 301.4, "peak_rss_mb": 1930}) == "301 s, 1930 MB of memory at most"
    assert time_and_memory({"seconds": 301.4, "peak_rss_mb": None}) == "301 s"


@pytest.mark.parametrize("order", [("bad", "long"), ("long", "bad")])
def test_an_error_of_one_training_ends_the_other(manifest: Path, tmp_path: Path, order: tuple[str, str]) -> None:
    both = {"bad": Recipe(epochs=1, background=(str(tmp_path / "nowhere"),)), "long": Recipe(epochs=10_000)}
    started = time.monotonic()
    with pytest.raises(UsageError, match="nowhere"):
        train_all(manifest, tmp_path / "runs", {name: both[name] for name in order}, None)
    assert time.monotonic() - started < 60


def test_a_worker_has_its_threads_and_its_death_is_reported_with_advice(tmp_path: Path) -> None:
    def work() -> None:
        with workers(1, threads=1, initializer=os.chdir, args=(tmp_path,), advice=ADVICE) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
            assert pool.submit(os.getcwd).result() == str(tmp_path.resolve())
            pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()

    with pytest.raises(ConfitError, match=ADVICE):
        work()


def test_leaving_ends_its_own_processes_only() -> None:
    """Whatever else the program began meanwhile, from another thread say, goes on."""
    with workers(1, threads=1, advice=ADVICE) as pool:
        other_process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        other_process.start()
        working = pool.submit(time.sleep, 60)
        while not working.running():
            time.sleep(0.01)
        started = time.monotonic()
    assert time.monotonic() - started < 30
    assert multiprocessing.active_children() == [other_process]
    other_process.terminate()
    other_process.join()
