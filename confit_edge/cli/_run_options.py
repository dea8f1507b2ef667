"""Arguments of the verbs that read a run: where it, its training sound and its encoder lie now, and where to compute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `confit-edge train` wrote.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Background = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PLACE",
        help="The run's --background, if it has moved since training; may be repeated. Give all, in the same order.",
    ),
]
EncoderFolder = Annotated[
    Path | None,
    typer.Option(
        "--encoder", metavar="PLACE", help="The folder of the run's --encoder, if it has moved since training."
    ),
]
Others = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PLACE",
        help="The run's --others, if they have moved since training; may be repeated. Give all, in the same order.",
    ),
]
