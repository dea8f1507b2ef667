"""`confit-edge bench`: how fast models run on this machine, and how close that is to the machine's limit."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confit_edge.cli._arguments import ModelsArgument
from confit_edge.cli._console import Json, emit, say
from confit_runtime.formatting import format_table
from confit_runtime.names import escape_controls

if TYPE_CHECKING:
    from confit_runtime.gemm import Rates
    from confit_runtime.model import Model

HEADS = (
    "model",
    "precision",
    "p50 ms",
    "p99 ms",
    "graph",
    "stream",
    "live",
    "of limit",
    "MB",
    "streams",
    "first score s",
)


def bench(
    models: ModelsArgument,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="N",
            min=0.05,
            help="Processor time in seconds to spend on each figure; `live` takes 4 N of wall time.",
        ),
    ] = 2.0,
    json: Json = False,
) -> None:
    """Measure the speed and memory of models on this machine.

    It prints one row per model. Everything runs on one thread.

    - p50, p99: wall time in ms of one call, which advances the audio by one hop
    - graph: processor time per second of audio, in the model alone
    - stream: the same, including resampling from 48 kHz and detection
    - live: the same again, at a microphone's pace: between two blocks the processor is idle and its caches get cold
    - of limit: how close the graph comes to the time its multiply-adds need at the rates measured on this machine with the
      same onnxruntime
    - MB: peak memory of a new process that listens
    - streams: how many streams one core carries in real time
    - first score s: time from the start of a process to its first score, with the sound already there

    Other busy programs make every figure worse, so measure on an idle machine.

    Examples:

        confit-edge bench digits
        confit-edge bench mymodel.onnx mymodel-int8.onnx --json
    """
    from confit_runtime import load
    from confit_runtime.gemm import measure_rates

    loaded = [load(model) for model in models]
    say("measuring this machine")
    rates = measure_rates(seconds / 4)
    if json:
        emit("machine", **_machine(), threads=1, fp32_macs_per_s=rates.fp32, int8_macs_per_s=rates.int8)
    rows = []
    for model in loaded:
        row = measure(model, rates, seconds)
        rows.append(row)
        if json:
            emit("bench", **row)
    if json:
        emit("summary", models=len(rows))
    else:
        print("\n".join(format_table([HEADS, *map(_cells, rows)], left=2)))
        print(
            f"\nThis machine on one thread: {rates.fp32 / 1e9:.0f} G multiply-adds per second in fp32,"
            f" {rates.int8 / 1e9:.0f} G in int8"
        )


def measure(model: Model, rates: Rates, seconds: float) -> dict[str, Any]:
    """Measure one model; return the fields of its JSON line."""
    from confit_runtime.bench import (
        call_latency,
        fresh_process,
        live_rtf,
        lowest_rtf,
        stream_rtf,
        streams_per_core,
    )

    contract = model.contract
    say(f"measuring {model.name}: one call")
    latency = call_latency(model, seconds)
    macs = contract.cost.get("macs_per_second")
    lowest = lowest_rtf(macs, rates) if macs else None
    say(f"measuring {model.name}: a stream")
    stream = stream_rtf(model, seconds)
    say(f"measuring {model.name}: a stream at a microphone's pace")
    live = live_rtf(model, 4 * seconds)
    say(f"measuring {model.name}: streams per core")
    streams = streams_per_core(model)
    say(f"measuring {model.name}: a new process")
    fresh = fresh_process(model.path)
    return {
        "model": model.name,
        "precision": contract.precision,
        "streaming": contract.streaming,
        "hop_ms": 1e3 * contract.hop / contract.sample_rate,
        **asdict(latency),
        "stream_cpu_rtf": stream,
        "live_cpu_rtf": live,
        "macs_per_second": macs,
        "lowest_cpu_rtf": lowest,
        "of_limit": lowest and lowest / latency.cpu_rtf,
        "streams_per_core": streams,
        **asdict(fresh),
    }


def _machine() -> dict[str, str]:
    import onnxruntime

    from confit_runtime.gemm import processor

    return {"processor": processor(), "onnxruntime": onnxruntime.__version__}


def _cells(row: dict[str, Any]) -> list[str]:
    share, peak = row["of_limit"], row["peak_mb"]
    return [
        escape_controls(row["model"]),
        row["precision"],
        f"{row['p50_ms']:.2f}",
        f"{row['p99_ms']:.2f}",
        f"{row['cpu_rtf']:.4f}",
        f"{row['stream_cpu_rtf']:.4f}",
        f"{row['live_cpu_rtf']:.4f}",
        "-" if share is None else f"{100 * share:.0f} %",
        "-" if peak is None else f"{peak:.0f}",
        str(row["streams_per_core"]),
        f"{row['first_score_s']:.2f}",
    ]
