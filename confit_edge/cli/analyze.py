"""`confit-edge analyze`: how training changed the geometry of an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from confit_edge.cli._console import Json, emit, say
from confit_edge.cli._run_options import Background, DeviceOption, EncoderFolder, Others
from confit_edge.cli._training import TrainingBar


def analyze(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders that `confit-edge train` wrote.")],
    split: Annotated[Literal["test", "val"], typer.Option(help="Split whose clips to analyse.")] = "test",
    manifest: Annotated[
        Path | None, typer.Option(help="Other clips to analyse, or the runs' own if they have moved.")
    ] = None,
    background: Background = None,
    others: Others = None,
    encoder: EncoderFolder = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder to write tables, JSON, maps, spectra and contributions to."),
    ] = None,
    device: DeviceOption = "auto",
    json_lines: Json = False,
) -> None:
    """Measure the geometry of embeddings before and after training.

    It measures how embeddings fill their space and how classes lie in it, and prints three tables:

    - the paper's columns: accuracy of a linear probe, the share that the one, three and five strongest dimensions have in
      the cosine of pairs, and IsoScore
    - every measure; docs/geometry.md explains each one and what you may conclude from it
    - each run compared with the encoder it started from

    The 95 % intervals leave out one group after another. With -o the tables are also written, with maps, spectra and JSON.

    Example:

        confit-edge analyze runs/pairtune runs/finetune -o geometry

    Next: `confit-edge probe` for accuracy, or `confit-edge export`.
    """
    from confit_edge.judging.geometry import analyse
    from confit_edge.pairtune.machine import pick_device
    from confit_edge.probes.tables import nan_to_none
    from confit_edge.runs import read_run, with_current_paths
    from confit_runtime.files import make_folder

    if out:
        make_folder(out)  # so that a folder that cannot be written fails before anything is measured
    read = with_current_paths(
        [read_run(path) for path in runs], background=background or [], others=others or [], encoder=encoder
    )
    with TrainingBar(json_lines) as bar:
        report = analyse(read, split=split, manifest=manifest, device=pick_device(device), notify=bar)
    if out:
        method = report.write(out, say)
        say(f"wrote {out} (maps by {method})")
    if not json_lines:
        print(report.text())
        return
    for row in report.paper_rows():
        emit("paper", **nan_to_none(row))
    for row in report.measure_rows():
        emit("measure", **nan_to_none(row))
    for row in report.change_rows():
        emit("change", **nan_to_none(row))
    emit("summary", runs=[str(path) for path in runs], **report.summary)
