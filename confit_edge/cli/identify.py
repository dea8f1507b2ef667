"""`confit-edge identify`: the enrolled name of a clip, or that it is unknown."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from confit_edge.cli._arguments import ClipsArgument, GalleryModelArgument
from confit_edge.cli._console import Json, emit, print_line, say_failed
from confit_edge.cli._gallery_options import GALLERY, GalleryFile, KindOption, Threshold, refusal_reason
from confit_edge.cli._sources import clip_error_text, warn_about_narrow_clips
from confit_runtime.errors import ConfitError, UsageError

if TYPE_CHECKING:
    from confit_runtime.matcher import Match


def identify(
    model: GalleryModelArgument,
    clips: ClipsArgument,
    gallery: GalleryFile = GALLERY,
    kind: KindOption = None,
    threshold: Threshold = None,
    json: Json = False,
) -> None:
    """Print which enrolled name each clip belongs to.

    Each line shows the name with its score and the runner-up, or that the clip is unknown and why: the best score is too
    low, two names are too close to decide, or the clip is nearer to a stranger or to the name's negative prints.

    A clip that cannot be read or is longer than an hour is reported (with --json as a line `failed`), the others are still
    identified, and the exit status is 1.

    Examples:

        confit-edge identify speakers visitor.wav
        confit-edge identify mymodel.onnx recordings/ --gallery house.db --json

    Next: `confit-edge listen MODEL --gallery FILE` reports enrolled names live.
    """
    from confit_runtime import load
    from confit_runtime.audio import load_clip
    from confit_runtime.enrollment import embed_query
    from confit_runtime.gallery import Gallery
    from confit_runtime.sources import find_clips

    paths = find_clips(clips)
    loaded = load(model)
    rate = loaded.contract.sample_rate
    known = failed = 0
    with Gallery.open(gallery, loaded, threshold=threshold) as opened:
        settled = kind or opened.kind
        if not opened.names():
            raise UsageError(f"{gallery}: nobody is enrolled; start with `confit-edge enroll {model} NAME CLIP...`")
        warn_about_narrow_clips(paths, loaded)
        for path in paths:
            clip = str(path)
            try:
                match = opened.match(embed_query(loaded, load_clip(path, rate), settled, str(path)))
            except ConfitError as error:
                failed += 1
                say_failed(clip, clip_error_text(error, model, clip, "--gallery", str(gallery)), json)
                continue
            known += match.name is not None
            if json:
                emit("match", clip=clip, **dataclasses.asdict(match))
            else:
                print_line(f"{clip}  {_describe_match(match)}")
    if json:
        emit("summary", clips=len(paths), known=known, unknown=len(paths) - known - failed, failed=failed)
    if failed:
        raise typer.Exit(1)


def _describe_match(match: Match) -> str:
    """The answer with its score, the reason if it is unknown, and the runner-up."""
    then = f"then {match.runner_up} {match.runner_up_score:.2f}" if match.runner_up else ""
    if match.name is not None:
        return f"{match.name}  {match.score:.2f}" + (f"  ({then})" if then else "")
    why = refusal_reason(match, match.nearest or "")
    return f"unknown  (nearest {match.nearest} {match.score:.2f}, {why}{f'; {then}' if then else ''})"
