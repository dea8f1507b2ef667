"""`confit-edge identify`: which enrolled name a clip is nearest to, or that it is nobody's."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json, emit, say
from confit_runtime.errors import ConfitError, UsageError


def identify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model the gallery was enrolled with.")],
    clips: Annotated[list[str], typer.Argument(metavar="CLIP", help="Sound files, folders or glob patterns.")],
    gallery: Annotated[Path, typer.Option(metavar="FILE", help="Where enrolled names are kept.")] = Path("gallery.db"),
    json: Json = False,
) -> None:
    """Say for each clip which enrolled name it is, with its score and the runner-up; or that it is unknown.

    A clip is unknown when its best score is too low, or two names are too close to tell. One that cannot be read is
    reported and the others go on; the exit status is then 1.

    Examples:

        confit-edge identify digits visitor.wav

        confit-edge identify mymodel.onnx recordings/ --gallery house.db --json
    """
    from confit_runtime import load
    from confit_runtime.gallery import Gallery
    from confit_runtime.sources import find_clips

    paths = find_clips(clips)
    loaded = load(model)
    known = failed = 0
    with Gallery.open(gallery, loaded) as opened:
        if not opened.names():
            raise UsageError(f"{gallery}: nobody is enrolled; begin with `confit-edge enroll {model} NAME CLIP...`")
        for path in paths:
            clip = os.fsencode(path).decode(errors="replace")
            try:
                match = opened.match(loaded.embed(path))
            except ConfitError as error:
                failed += 1
                say(f"confit-edge: {error}")
                continue
            known += match.name is not None
            if json:
                emit("match", clip=clip, **dataclasses.asdict(match))
            else:
                other = f"  (then {match.runner_up} {match.runner_up_score:.2f})" if match.runner_up else ""
                print(f"{clip}  {match.name or 'unknown'}  {match.score:.2f}{other}", flush=True)
    if json:
        emit("summary", clips=len(paths), known=known, unknown=len(paths) - known - failed, failed=failed)
    if failed:
        raise typer.Exit(1)
