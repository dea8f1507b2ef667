"""Measuring: what is measured must be what runs, and the arithmetic around it must hold. No timing is asserted."""

from __future__ import annotations

import json
import math
import subprocess
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
import pytest

from confit_runtime import Model, load
from confit_runtime.batch import Batch
from confit_runtime.bench import (
    _call_s,
    call_latency,
    fresh_process,
    live_rtf,
    lowest_rtf,
    stream_rtf,
    streams_per_core,
)
from confit_runtime.errors import ConfitError
from confit_runtime.gemm import Rates, measure_rates, product, saturates
from confit_runtime.memory import peak_bytes
from confit_runtime.sources.microphone import BLOCK_S
from confit_runtime.stream import Stream
from tests.cli.command import COMMAND
from tests.cli.device import environment

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("a", "weight"),
    [
        (RNG.standard_normal((3, 5)).astype(np.float32), RNG.standard_normal((5, 4)).astype(np.float32)),
        (RNG.integers(0, 256, (7, 300), np.uint8), RNG.integers(-64, 65, (300, 2), np.int8)),
    ],
)
def test_a_product_is_a_valid_model_of_the_product(a: np.ndarray, weight: np.ndarray) -> None:
    model = product(len(a), weight)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"a": a})
    wide = np.int64 if weight.dtype == np.int8 else np.float64
    np.testing.assert_allclose(out, a.astype(wide) @ weight.astype(wide), rtol=1e-5)


def test_a_processor_without_vnni_is_found_out() -> None:
    a = RNG.integers(0, 256, (64, 300), np.uint8)
    weight = RNG.integers(-127, 128, (300, 64), np.int8)
    (out,) = onnxruntime.InferenceSession(product(64, weight), providers=["CPUExecutionProvider"]).run(None, {"a": a})
    assert saturates() == bool((out != a.astype(np.int64) @ weight.astype(np.int64)).any())


def test_the_roofline_adds_the_time_of_each_precision() -> None:
    rates = Rates(fp32=10.0, int8=40.0)
    assert lowest_rtf({"fp32": 5.0, "int8": 20.0}, rates) == pytest.approx(1.0)
    assert lowest_rtf({"fp16": 5.0}, rates) == pytest.approx(0.5)  # stored small, computed in fp32
    assert lowest_rtf({"int8": 8.0}, rates) == pytest.approx(0.2)


def test_this_machine_has_rates() -> None:
    rates = measure_rates(0.01)
    assert rates.fp32 > 0
    assert rates.int8 > 0


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_figures_of_a_model(kind: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(kind)
    latency = call_latency(model, 0.01)
    assert latency.calls >= 20
    assert 0 < latency.p50_ms <= latency.p99_ms
    hop_ms = 1e3 * model.contract.hop / model.contract.sample_rate
    assert latency.cpu_rtf == pytest.approx(latency.cpu_ms / hop_ms)
    assert stream_rtf(model, 0.01) > 0


class Clock:
    """Time that passes only in `method`, where the real work is done too: `took` says how long, call by call.

    A wall clock goes at twice the pace of the processor's, as on a busy machine.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> None:
        self.took: list[float] = []
        rng, work = np.random.default_rng(0), getattr(owner, method)

        def timed(*arguments: object) -> object:
            self.took.append(float(rng.exponential(0.01)))
            return work(*arguments)

        monkeypatch.setattr(owner, method, timed)
        monkeypatch.setattr("confit_runtime.bench.time.thread_time", lambda: sum(self.took))
        monkeypatch.setattr("confit_runtime.bench.time.perf_counter", lambda: 2 * sum(self.took))


@pytest.mark.parametrize("kind", ["model", "windowed"])
def test_latency_is_of_the_calls_after_the_warm_up(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Model = request.getfixturevalue(kind)
    contract, clock = model.contract, Clock(monkeypatch, Batch, "push")
    for seconds in (0.0, 1.0):
        clock.took.clear()
        latency = call_latency(model, seconds)
        counted = clock.took[contract.window // contract.hop + 5 :]
        assert latency.calls == len(counted) == (20 if not seconds else len(counted))
        assert sum(counted) >= seconds
        assert len(counted) == 20 or sum(counted[:-1]) < seconds
        ordered = sorted(counted)
        assert 1e-3 * latency.p50_ms == pytest.approx(2 * median(counted))
        assert 2 * ordered[-len(ordered) // 50 - 1] <= 1e-3 * latency.p99_ms <= 2 * ordered[-1]
        assert 1e-3 * latency.cpu_ms == pytest.approx(median(counted))
        assert latency.cpu_rtf == pytest.approx(median(counted) / (contract.hop / contract.sample_rate))


def test_a_stream_is_measured_by_the_second_once_its_window_is_full(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, Stream, "accept")
    found = stream_rtf(model, 1.0)
    blocks = math.ceil(1 / BLOCK_S)  # of a second
    seconds = [sum(clock.took[at : at + blocks]) for at in range(0, len(clock.took), blocks)]
    counted = seconds[-(-model.contract.window // model.contract.sample_rate) :]
    assert found == pytest.approx(median(counted))
    assert len(counted) == 3 or sum(counted[:-1]) < 1.0 <= sum(counted)


def test_a_live_stream_costs_what_its_blocks_take(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confit_runtime.bench.time.sleep", lambda _: None)
    clock = Clock(monkeypatch, Stream, "accept")
    found = live_rtf(model, seconds=2.0)
    counted = clock.took[-round(2.0 / BLOCK_S) :]
    assert len(clock.took) - len(counted) == math.ceil(model.contract.window / model.contract.sample_rate / BLOCK_S)
    assert found == pytest.approx(sum(counted) / 2.0)


@pytest.mark.parametrize(("kind", "before"), [("model", 1), ("windowed", None)])
def test_streams_are_timed_once_every_call_computes(
    kind: str, before: int | None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Model = request.getfixturevalue(kind)
    clock = Clock(monkeypatch, Batch, "push")
    found = _call_s(model, 3, 7)
    hops = model.contract.window // model.contract.hop
    assert len(clock.took) == 7 + (before or hops - 1)
    assert found == pytest.approx(median(clock.took[-7:]))


def test_a_live_stream_is_fed_at_the_pace_of_a_microphone(tiny: Path) -> None:
    start = time.monotonic()
    busy = live_rtf(load(tiny), seconds=1.0)
    assert time.monotonic() - start > 1.0
    assert 0 < busy < 1


def test_streams_per_core_is_the_largest_in_real_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def takes(fixed: float, each: float) -> int:
        asked.clear()

        def call_s(_: Model, streams: int, calls: int) -> float:
            asked.append(streams)
            return fixed + each * streams

        monkeypatch.setattr("confit_runtime.bench._call_s", call_s)
        return streams_per_core(model)

    hop_s = model.contract.hop / model.contract.sample_rate
    assert takes(0.0, 2 * hop_s) == 0
    assert takes(0.0, hop_s / 3.5) == 3
    for fixed, streams in ((0.0, 600), (hop_s / 3, 600), (hop_s / 2, 50), (0.0, 1999)):
        found = takes(fixed, (hop_s - fixed) / (streams + 0.5))
        assert 0.98 * streams <= found <= streams
        assert len(asked) <= 12
    assert takes(0.0, 1e-9) == 2048
    for streams in range(1, 60):  # what a model cannot carry is not tried at twice the number: it would fill a memory
        assert takes(0.0, hop_s / (streams + 0.01)) == streams
        assert max(asked) <= 2 * streams


def test_streams_are_counted_on_the_real_model(windowed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confit_runtime.bench.MAX_STREAMS", 8)
    assert 0 < streams_per_core(windowed, calls=2) <= 8


def test_a_fresh_process_scores_and_tells_its_memory(tiny: Path, tmp_path: Path) -> None:
    ballast = np.ones(60 << 20, np.uint8)  # a child's own peak must not begin with ours
    fresh = fresh_process(tiny, seconds=0.5)
    assert fresh.first_score_s > 0
    if fresh.peak_mb is not None:
        assert 20 < fresh.peak_mb < (peak_bytes() or np.inf) / 2**20
    assert ballast.sum() > 0
    with pytest.raises(ConfitError, match="no such model file"):
        fresh_process(tmp_path / "none.onnx")


def test_files_in_the_current_folder_are_not_executed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('random.py was run')\n")  # numpy imports random
    monkeypatch.chdir(tmp_path)
    assert fresh_process(tiny.absolute(), seconds=0.5).first_score_s > 0


def test_the_verb_prints_json_lines_and_a_table(tiny: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, "bench", str(tiny), "--seconds", "0.05", *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=environment(),
        )
        assert "measuring tiny: one call\n" in done.stderr
        assert "measuring tiny: streams per core\n" in done.stderr
        return done.stdout

    machine, one, summary = (json.loads(line) for line in run("--json").splitlines())
    assert summary == {"type": "summary", "models": 1}
    assert machine["type"] == "machine"
    assert machine["int8_macs_per_s"] > 0
    assert (one["type"], one["model"], one["streaming"], one["hop_ms"]) == ("bench", "tiny", True, 20.0)
    assert one["macs_per_second"] is one["of_limit"] is None  # the tiny model does not say what it costs
    assert one["streams_per_core"] >= 1
    header, row, *_ = run().splitlines()
    assert header.split()[0] == "model"
    assert row.split()[:2] == ["tiny", "fp32"]
    assert len(header) == len(row)


def test_the_verb_rejects_invalid_models(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "bench", "none.onnx"], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment()
    )
    assert done.returncode == 2
    assert "none.onnx: no such model file" in done.stderr
