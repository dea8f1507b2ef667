"""`confit-edge probe`: judge what a run learnt by fresh probes on its frozen encoder, beside what it started from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from confit_edge.cli._console import Json, emit, say
from confit_edge.cli._runs import Background, Beginning, Others
from confit_edge.cli._training import TrainingBar


def probe(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `confit-edge train` wrote.")],
    baseline: Annotated[
        list[Path] | None,
        typer.Option(help="Another run to set beside it, such as vanilla fine-tuning; may be repeated."),
    ] = None,
    split: Annotated[
        Literal["test", "val"], typer.Option(help="Report on test, once; look at val while you still choose.")
    ] = "test",
    manifest: Annotated[
        Path | None, typer.Option(help="Other clips to probe with, or the run's own where they have moved.")
    ] = None,
    background: Background = None,
    others: Others = None,
    encoder: Beginning = None,
    trials: Annotated[
        Path | None,
        typer.Option(
            help="Pairs for the equal error rate, lines `1 CLIP CLIP` or `0 CLIP CLIP` (a name that holds a space in double"
            " quotes, or the line parted by tabs) [all pairs]."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A folder for tables, plots and JSON.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    json_lines: Json = False,
) -> None:
    """Fit a linear and a kNN probe to the frozen encoder, and judge them on clips of unseen groups.

    The pre-trained encoder as it was, each --baseline and RUN are probed alike, on the same clips. Training clips fit the
    probes; validation chooses regularisation, k and the kNN's metric. Where a clip has one label: accuracy, balanced
    accuracy, macro F1. Where it has several: mAP, macro and micro F1. For pairs of clips (of speakers, for instance): the
    equal error rate of the cosine. Intervals (95 %) are of groups: clips of one group count as alike. Those of differences
    are paired, and resample groups.

    Example: `confit-edge probe runs/pairtune --baseline runs/finetune -o probe`
    """
    from confit_edge.judging.probe import side_by_side
    from confit_edge.pairtune.machine import pick_device
    from confit_edge.probes.tables import known
    from confit_edge.runs import moved, read_run
    from confit_runtime.files import make_folder

    if out:
        make_folder(out)  # what is wrong with it is said before anything is measured
    runs = moved(
        [read_run(path) for path in [*(baseline or []), run]], background=background, others=others, encoder=encoder
    )
    with TrainingBar(json_lines) as bar:
        report = side_by_side(runs, split=split, manifest=manifest, trials=trials, device=pick_device(device), tell=bar)
    if out:
        report.write(out, say)
        say(f"wrote {out}")
    if not json_lines:
        print(report.text())
        return
    for row in report.probe_rows():
        emit("probe", **known(row))
    for row in report.verification_rows():
        emit("equal_error", **known(row))
    for row in report.difference_rows():
        emit("difference", **known(row))
    for row in report.class_rows():
        emit("class", **known(row))
    emit("summary", run=str(run), **report.summary)
