"""Options of the verbs that read a run: where its training sound and its encoder lie now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
