"""`confit-edge inspect`: what a model file holds, how accurate it was, and how fast it is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._arguments import ModelArgument
from confit_edge.cli._console import Json, emit, print_line
from confit_runtime.errors import ConfitError


def inspect(
    model: ModelArgument,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Also measure speed and memory on this machine (takes seconds)."),
    ] = True,
    json_lines: Json = False,
) -> None:
    """Show what a model file holds and how fast it runs here.

    It prints size, parameters, multiply-adds, layers by precision, accuracy and thresholds, all from the contract inside the
    file, so the device install is enough. It also measures latency, processor time per second of audio and peak memory on
    this machine, on one thread. If measuring fails, the rest is still printed and the exit status is 1.

    The thresholds are those that `listen` uses: if `calibrate` left a MODEL.device.json next to the model (or next to the
    file that the model links to), they come from there.

    Examples:

        confit-edge inspect words.onnx
        confit-edge inspect digits --no-measure --json

    Next: `confit-edge bench` to compare models, or `confit-edge listen`.
    """
    from dataclasses import asdict

    from confit_runtime.bench import call_latency, fresh_process
    from confit_runtime.describe import facts
    from confit_runtime.model import load

    loaded = load(model)
    size, contract = Path(loaded.path).stat().st_size, loaded.contract
    rows = facts(contract, size)
    measured: dict[str, object] = {}
    failure = None
    if measure:
        latency = call_latency(loaded)
        measured |= asdict(latency)
        rows += [
            ("latency per call here, p50 / p99", f"{latency.p50_ms:.2f} / {latency.p99_ms:.2f} ms"),
            ("processor time per second of audio", f"{latency.cpu_rtf:.4f} s"),
        ]
        try:
            fresh = fresh_process(loaded.path)
        except ConfitError as error:
            failure = error
        else:
            measured |= asdict(fresh)
            rows += [
                ("peak memory of a process", "unknown" if fresh.peak_mb is None else f"{fresh.peak_mb:.0f} MB"),
                ("start to first score", f"{fresh.first_score_s:.2f} s"),
            ]
    if json_lines:
        emit(
            "model",
            model=loaded.name,
            path=str(loaded.path),
            bytes=size,
            contract=asdict(contract),
            device_file=contract.calibration.get("device", {}).get("file"),
            measured=measured,
        )
    else:
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print_line(f"{name:{width}}  {value}")
    if failure is not None:
        raise failure
