"""What the verbs that read a run share: where the sound that it was trained on lies now, and the encoder it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Background = Annotated[
    Path | None, typer.Option(metavar="PLACE", help="The run's --background, where it has moved since training.")
]
Beginning = Annotated[
    Path | None,
    typer.Option(
        "--encoder", metavar="PLACE", help="The folder of the run's --encoder, where it has moved since training."
    ),
]
Others = Annotated[
    Path | None, typer.Option(metavar="PLACE", help="The run's --others, where they have moved since training.")
]
