"""`confit-edge probe`: judge a run by fresh probes on its frozen encoder, compared with the encoder it started from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from confit_edge.cli._console import Json, emit, say
from confit_edge.cli._run_options import Background, DeviceOption, EncoderFolder, Others, RunArgument
from confit_edge.cli._training import TrainingBar


def probe(
    run: RunArgument,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(help="Another run to compare with, such as vanilla fine-tuning; may be repeated."),
    ] = None,
    split: Annotated[
        Literal["test", "val"],
        typer.Option(help="Clips to report on. Use val while you still make choices, and test once at the end."),
    ] = "test",
    manifest: Annotated[
        Path | None, typer.Option(help="Other clips to probe with, or the run's own if they have moved.")
    ] = None,
    background: Background = None,
    others: Others = None,
    encoder: EncoderFolder = None,
    trials: Annotated[
        Path | None,
        typer.Option(
            help="File of pairs for the equal error rate, one per line: `1 CLIP CLIP` if they match, else `0 CLIP CLIP` [all"
            " pairs]. If a name holds a space, put it in double quotes or separate the line by tabs."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write tables, plots and JSON to.")] = None,
    device: DeviceOption = "auto",
    json_lines: Json = False,
) -> None:
    """Score a run's frozen encoder with linear and kNN probes.

    RUN, each --baseline and the pre-trained encoder are probed in the same way on the same clips. Training clips fit the
    probes; validation chooses the regularisation, k and the kNN's metric; the report is on clips of unseen groups:

    - if clips have one label: accuracy, balanced accuracy and macro F1
    - if clips have several labels: mAP, macro F1 and micro F1
    - for pairs of clips, for instance of speakers: the equal error rate of the cosine

    The 95 % intervals are over groups, because clips of one group resemble each other. Intervals of differences are paired
    and resample groups. The tables are printed; with -o they are also written, with plots and JSON.

    Example:

        confit-edge probe runs/pairtune --baseline runs/finetune -o probe

    Next: `confit-edge export`, or `confit-edge analyze` to see how the embeddings changed.
    """
    from confit_edge.judging.probe import side_by_side
    from confit_edge.pairtune.machine import pick_device
    from confit_edge.probes.tables import nan_to_none
    from confit_edge.runs import read_run, with_current_paths
    from confit_runtime.files import make_folder

    if out:
        make_folder(out)  # so that a folder that cannot be written fails before anything is measured
    runs = with_current_paths(
        [read_run(path) for path in [*(baseline or []), run]],
        background=background or [],
        others=others or [],
        encoder=encoder,
    )
    with TrainingBar(json_lines) as bar:
        report = side_by_side(
            runs, split=split, manifest=manifest, trials=trials, device=pick_device(device), notify=bar
        )
    if out:
        report.write(out, say)
        say(f"wrote {out}")
    if not json_lines:
        print(report.text())
        return
    for row in report.probe_rows():
        emit("probe", **nan_to_none(row))
    for row in report.verification_rows():
        emit("equal_error", **nan_to_none(row))
    for row in report.difference_rows():
        emit("difference", **nan_to_none(row))
    for row in report.class_rows():
        emit("class", **nan_to_none(row))
    emit("summary", run=str(run), **report.summary)
