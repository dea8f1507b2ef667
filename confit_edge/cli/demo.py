"""`confit-edge demo`: all of it, on the sound that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json, emit, say


def demo(
    out: Annotated[
        Path, typer.Option(help="The folder to write: model, runs, plots, report.html, summary.json.")
    ] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="All randomness comes from it.")] = 0,
    json_lines: Json = False,
) -> None:
    """Clips in, a listening model out: the whole toolchain on real input, in five to six minutes on two cores.

    Trains PairTune and vanilla fine-tuning on 29 spoken words, compares them on unseen voices, exports one int8 file,
    listens to five noisy minutes, enrolls a word and two voices. Nothing is precomputed. Needs the export extra.
    """
    from confit_edge.cli._training import TrainingBar
    from confit_edge.launched import refuse_several

    refuse_several("demo", "")
    from confit_edge.demo.story import run_demo

    def tell(text: str) -> None:
        say(text) if json_lines else print(text, flush=True)

    with TrainingBar(json_lines) as progress:
        summary = run_demo(out, seed=seed, say=tell, watch=progress)
    if json_lines:
        emit("summary", out=str(out), report=summary)
