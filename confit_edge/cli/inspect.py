"""`confit-edge inspect`: what a model file is, how it measured, and how fast it is here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json, emit, tell
from confit_runtime.errors import ConfitError


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file, or the name of one that ships.")],
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Also measure speed and memory on this machine (seconds).")
    ] = True,
    json_lines: Json = False,
) -> None:
    """Tell what a model file holds: size, parameters, multiply-adds, layers by precision, accuracy, thresholds.

    Works where only the device install is: everything comes from the contract inside the file. Latency, processor time
    per second of audio and peak memory are measured here and now, on one thread; where that fails, the rest is told all the
    same, and the exit status is 1. The thresholds are those that `listen` uses: of MODEL.device.json, where `calibrate` left
    one beside the model (or beside the file it is a link to).

    Examples:

    `confit-edge inspect words.onnx`

    `confit-edge inspect digits --no-measure --json`
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
            ("latency of a call here, p50 / p99", f"{latency.p50_ms:.2f} / {latency.p99_ms:.2f} ms"),
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
            tell(f"{name:{width}}  {value}")
    if failure is not None:
        raise failure
