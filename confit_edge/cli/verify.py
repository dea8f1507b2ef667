"""`confit-edge verify`: whether a clip is the name it is claimed to be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._arguments import GalleryModelArgument
from confit_edge.cli._console import Json, emit, failed_clip_reported, print_line
from confit_edge.cli._gallery_options import GALLERY, GalleryFile, KindOption, Threshold, refusal_reason
from confit_edge.cli._sources import warn_about_narrow_clips
from confit_runtime.errors import ConfitError, UsageError, clip_errors


def verify(
    model: GalleryModelArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The enrolled name that the clip is claimed to be.")],
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A sound file.")],
    gallery: GalleryFile = GALLERY,
    kind: KindOption = None,
    threshold: Threshold = None,
    json: Json = False,
) -> None:
    """Check whether a clip belongs to an enrolled name.

    The exit status is 0 for yes, 1 for no, and 2 if it could not be decided.

    The answer is yes if the clip's score for NAME reaches the threshold and no other enrolled name, stranger or NAME's
    negative prints are nearer. Otherwise the reason is printed. NAME need not be clearly nearer than others: if two names are
    too close to decide, `identify` answers unknown, but the nearer of them is still verified.

    A voice is no password: a recording of it passes just as well.

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
        warn_about_narrow_clips([clip], loaded)
        with failed_clip_reported(json), clip_errors(clip):
            embedding = embed_query(loaded, load_clip(clip, loaded.contract.sample_rate), settled, str(clip))
        match = matcher.verify(name, embedding)
    except ConfitError as error:
        raise UsageError(str(error)) from error  # so that its exit status differs from that of a no
    if json:
        fields = {key: value for key, value in dataclasses.asdict(match).items() if key != "name"}
        emit("verification", clip=str(clip), name=name, verified=match.name is not None, **fields)
    else:
        yes = f"is {name}  {match.score:.2f}  (needs {match.threshold:.2f})"
        no = f"is not {name}  {match.score:.2f}  ({refusal_reason(match, name)})"
        print_line(f"{clip}  {yes if match.name else no}")
    if match.name is None:
        raise typer.Exit(1)
