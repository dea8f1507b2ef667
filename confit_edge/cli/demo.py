"""`confit-edge demo`: the whole toolchain, on the sound that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json, emit, say


def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    json_lines: Json = False,
) -> None:
    """Run the whole toolchain once on clips that ship.

    The demo trains PairTune and vanilla fine-tuning on 29 spoken words, compares them on unseen voices, exports one int8
    file, listens to five noisy minutes, and enrolls a word and two voices. Nothing is precomputed. It takes five to six
    minutes on two idle cores with bf16, and longer without. It needs the export extra: pip install 'confit-edge[export]'.

    It writes the model, the runs, plots, report.html and summary.json to --out.

    Example:

        confit-edge demo --out demo-out

    Next: open demo-out/report.html, then record clips of your own with `confit-edge record`.
    """
    from confit_edge.cli._training import TrainingBar
    from confit_edge.launcher import check_single_process

    check_single_process("demo", "")
    from confit_edge.demo.steps import Demo
    from confit_edge.demo.story import run_demo

    def print_text(text: str) -> None:
        say(text) if json_lines else print(text, flush=True)

    with TrainingBar(json_lines) as progress:
        summary = run_demo(Demo(out, seed, print_text, progress))
    if json_lines:
        emit("summary", out=str(out), report=summary)
