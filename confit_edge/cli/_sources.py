"""How verbs are told of the PCM on stdin, where that is the source."""

from __future__ import annotations

from typing import Annotated

import typer

Rate = Annotated[int | None, typer.Option("--rate", metavar="HZ", help="Sample rate of the PCM on stdin.")]
Channels = Annotated[int, typer.Option("--channels", metavar="N", help="Channels of the PCM on stdin.")]
Format = Annotated[str, typer.Option("--format", metavar="FORMAT", help="Samples of the PCM on stdin: s16le or f32le.")]
