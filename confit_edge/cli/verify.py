"""`confit-edge verify`: is a clip who it is said to be?"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json, emit
from confit_edge.cli.enroll import KindOption


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model the gallery was enrolled with.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who the clip is said to be: a name that is enrolled.")],
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A sound file.")],
    gallery: Annotated[Path, typer.Option(metavar="FILE", help="Where enrolled names are kept.")] = Path("gallery.db"),
    kind: KindOption = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="SIMILARITY", help="Needed for a yes, instead of what is calibrated.")
    ] = None,
    json: Json = False,
) -> None:
    """Say whether a clip is NAME. The exit status tells it too: 0 yes, 1 no (or it could not be told).

    It is when its score for NAME reaches what is needed and nobody else who is enrolled is nearer. A voice is no
    password: a recording of it passes just as well.

    Examples:

        confit-edge verify speakers ada visitor.wav

        confit-edge verify mymodel.onnx doorbell clip.flac --gallery house.db --json
    """
    from confit_runtime import load
    from confit_runtime.audio import load_clip
    from confit_runtime.enrollment import embed_query, kind_of
    from confit_runtime.gallery import Gallery, clean_name

    name, loaded = clean_name(name), load(model)
    with Gallery.open(gallery, loaded, threshold=threshold) as opened:
        matcher = opened.matcher
    embedding = embed_query(
        loaded, load_clip(clip, loaded.contract.sample_rate), kind or kind_of(loaded.contract), str(clip)
    )
    match = matcher.verify(name, embedding)
    if json:
        fields = {key: value for key, value in dataclasses.asdict(match).items() if key != "name"}
        said = os.fsencode(clip).decode(errors="replace")
        emit("verification", clip=said, name=name, verified=match.name is not None, **fields)
    else:
        answer = f"is {name}" if match.name else f"is not {name}"
        print(f"{clip}  {answer}  {match.score:.2f}  (needs {match.threshold:.2f})")
    if match.name is None:
        raise typer.Exit(1)
