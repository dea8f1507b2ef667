"""Options that describe PCM on stdin, and messages about clips that are too long or lack high frequencies."""

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

_SOURCE = "Source"  # a panel of --help
Rate = Annotated[
    int | None,
    typer.Option("--rate", metavar="HZ", help="Sample rate of the PCM on stdin.", rich_help_panel=_SOURCE),
]
Channels = Annotated[
    int,
    typer.Option("--channels", metavar="N", help="Number of channels of the PCM on stdin.", rich_help_panel=_SOURCE),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="Sample format of the PCM on stdin: s16le or f32le.",
        rich_help_panel=_SOURCE,
    ),
]


def clip_error_text(error: ConfitError, model: str, clip: str, *options: str) -> str:
    """What is wrong with a clip; for one that is too long, also the `listen` command that can hear it."""
    if not isinstance(error, TooLongError):
        return str(error)
    listen = ["confit-edge", "listen", model, "--source", clip, *options]
    return f"{error}, or run `{join(listen)}`"


def warn_about_narrow_clips(clips: Sequence[Path], model: Model) -> None:
    """Warn about the first clip whose rate lacks frequencies that the model hears; clips that cannot be opened are skipped."""
    from confit_runtime.audio import bandwidth_warning, open_sound

    for clip in clips:
        with suppress(ConfitError), open_sound(clip) as sound:
            text = bandwidth_warning(str(clip), int(sound.samplerate), model.name, model.contract.highest_hz)
            if text is not None:
                say(text)
                return
