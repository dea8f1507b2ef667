"""`confit-edge analyze`: what training did to the geometry of an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from confit_edge.cli._console import Json, emit, say
from confit_edge.cli._runs import Background, Beginning, Others
from confit_edge.cli._training import TrainingBar


def analyze(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders that `confit-edge train` wrote.")],
    split: Annotated[Literal["test", "val"], typer.Option(help="Whose clips to look at.")] = "test",
    manifest: Annotated[
        Path | None, typer.Option(help="Other clips to look at, or the runs' own where they have moved.")
    ] = None,
    background: Background = None,
    others: Others = None,
    encoder: Beginning = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A folder for tables, JSON, maps, spectra and contributions.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    json_lines: Json = False,
) -> None:
    """Measure how embeddings fill their space, and how classes lie in it: before training, and after each run.

    The first table has the paper's columns: accuracy of a linear probe, the share of the one, three and five strongest
    dimensions in the cosine of pairs, and IsoScore. The second has every measure; docs/geometry.md says what each is, and
    what may be concluded from it. The third sets each run beside the encoder it started from. Intervals (95 %) leave
    groups out in turn.

    Example: `confit-edge analyze runs/pairtune runs/finetune -o geometry`
    """
    from confit_edge.judging.geometry import analyse
    from confit_edge.pairtune.machine import pick_device
    from confit_edge.probes.tables import known
    from confit_edge.runs import moved, read_run
    from confit_runtime.files import make_folder

    if out:
        make_folder(out)  # what is wrong with it is said before anything is measured
    read = moved([read_run(path) for path in runs], background=background, others=others, encoder=encoder)
    with TrainingBar(json_lines) as bar:
        report = analyse(read, split=split, manifest=manifest, device=pick_device(device), tell=bar)
    if out:
        method = report.write(out, say)
        say(f"wrote {out} (maps by {method})")
    if not json_lines:
        print(report.text())
        return
    for row in report.paper_rows():
        emit("paper", **known(row))
    for row in report.measure_rows():
        emit("measure", **known(row))
    for row in report.change_rows():
        emit("change", **known(row))
    emit("summary", runs=[str(path) for path in runs], **report.summary)
