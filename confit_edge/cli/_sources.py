"""How verbs are told of the PCM on stdin, where that is the source, and how they tell of clips that hold too little."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._console import say
from confit_runtime.errors import ConfitError, TooLongError

if TYPE_CHECKING:
    from confit_runtime.model import Model

Rate = Annotated[int | None, typer.Option("--rate", metavar="HZ", help="Sample rate of the PCM on stdin.")]
Channels = Annotated[int, typer.Option("--channels", metavar="N", help="Channels of the PCM on stdin.")]
Format = Annotated[str, typer.Option("--format", metavar="FORMAT", help="Samples of the PCM on stdin: s16le or f32le.")]


def told_of(error: ConfitError, model: str, clip: str, *options: str) -> str:
    """What is wrong with a clip, and of one that is too long how it is heard all the same."""
    if not isinstance(error, TooLongError):
        return str(error)
    listen = ["confit-edge", "listen", model, "--source", clip, *options]
    return f"{error}, or hear it with `{join(listen)}`"


def tell_narrow(clips: Sequence[Path], model: Model) -> None:
    """Say of the first clip that holds less than the model hears what it lacks. Others refuse those that cannot be opened."""
    from confit_runtime.audio import narrow, open_sound

    for clip in clips:
        with suppress(ConfitError), open_sound(clip) as sound:
            text = narrow(str(clip), int(sound.samplerate), model.name, model.contract.highest_hz)
            if text is not None:
                say(text)
                return
