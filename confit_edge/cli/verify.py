"""`confit-edge verify`: is a clip who it is said to be?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json, emit, tell, with_failed
from confit_edge.cli._enrolled import GALLERY, GalleryFile, KindOption, Threshold, why_not
from confit_edge.cli._sources import tell_narrow
from confit_runtime.errors import ConfitError, UsageError, of_clip


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model the gallery was enrolled with.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who the clip is said to be: a name that is enrolled.")],
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A sound file.")],
    gallery: GalleryFile = GALLERY,
    kind: KindOption = None,
    threshold: Threshold = None,
    json: Json = False,
) -> None:
    """Say whether a clip is NAME. The exit status tells it too: 0 yes, 1 no, 2 it could not be told.

    It is when its score for NAME reaches what is needed and neither anybody else who is enrolled, nor a stranger, nor a
    negative print is nearer; where it is not, which of these it was is said. It need not be clearly nearer than others: of two
    names that are too close to tell `identify` answers unknown, and the nearer of them is still verified. A voice is no
    password: a recording of it passes just as well.

    Examples:

        confit-edge verify speakers ada visitor.wav

        confit-edge verify mymodel.onnx doorbell clip.flac --gallery house.db --json
    """
    from confit_runtime import load
    from confit_runtime.audio import load_clip
    from confit_runtime.enrollment import embed_query
    from confit_runtime.gallery import Gallery
    from confit_runtime.names import clean_name

    try:
        name, loaded = clean_name(name), load(model)
        with Gallery.open(gallery, loaded, threshold=threshold) as opened:
            matcher, settled = opened.matcher, kind or opened.kind
        tell_narrow([clip], loaded)
        with with_failed(json), of_clip(clip):
            embedding = embed_query(loaded, load_clip(clip, loaded.contract.sample_rate), settled, str(clip))
        match = matcher.verify(name, embedding)
    except ConfitError as error:
        raise UsageError(str(error)) from error  # whose exit status is another than that of a no
    if json:
        fields = {key: value for key, value in dataclasses.asdict(match).items() if key != "name"}
        emit("verification", clip=str(clip), name=name, verified=match.name is not None, **fields)
    else:
        yes = f"is {name}  {match.score:.2f}  (needs {match.threshold:.2f})"
        no = f"is not {name}  {match.score:.2f}  ({why_not(match, name)})"
        tell(f"{clip}  {yes if match.name else no}")
    if match.name is None:
        raise typer.Exit(1)
