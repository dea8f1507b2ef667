"""`confit-edge export`: a run becomes one ONNX file for a device, if it passes the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json, emit, say


def export(
    run: Annotated[Path, typer.Argument(help="A run folder that `confit-edge train` wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The model file to write (.onnx).")],
    quantize: Annotated[bool, typer.Option("--quantize/--no-quantize", help="int8 with fixed scales, or fp32.")] = True,
    data: Annotated[Path | None, typer.Option(help="The run's manifest, where it has moved since training.")] = None,
    license: Annotated[str, typer.Option(help="The licence that goes into the model's contract.")] = "unspecified",
    json_lines: Json = False,
) -> None:
    """Write one model file: front end, encoder, pooling, head and state in one graph, with its contract inside.

    Ranges for int8 come from training clips, thresholds from a stream composed of validation clips. When int8 loses more than
    one point of validation accuracy, or streaming differs from offline, no file is written.

    Example: `confit-edge export runs/words -o words.onnx`
    """
    from confit_edge.runs import read_run, run_corpus
    from confit_export.export import export_run

    loaded = read_run(run)
    corpus = run_corpus(loaded, data)
    made = export_run(loaded, corpus, out, quantize=quantize, license=license, say=say)
    contract = made.contract
    if json_lines:
        emit(
            "summary",
            model=str(out),
            bytes=made.bytes,
            precision=contract.precision,
            fp32=made.fp32,
            shipped=made.shipped,
            stream_max_abs_diff=made.stream_max_abs_diff,
            thresholds=contract.thresholds,
            calibration=contract.calibration,
        )
        return
    say(f"wrote {out}: {made.bytes / 1e6:.2f} MB, {contract.precision}. Next: confit-edge listen {out}")
