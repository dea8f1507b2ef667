"""`confit-edge enroll`: teach a model a new name on the device, from a few clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._console import Json, emit, say
from confit_runtime.errors import AudioError

if TYPE_CHECKING:
    from confit_runtime.gallery import Floats
    from confit_runtime.model import Model

SHORTEST_S = 0.1


def enroll(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file, or the name of a shipped model.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what the clips are.")],
    clips: Annotated[list[str], typer.Argument(metavar="CLIP", help="Sound files, folders or glob patterns.")],
    gallery: Annotated[
        Path, typer.Option(metavar="FILE", help="Where enrolled names are kept; made when it is not there.")
    ] = Path("gallery.db"),
    json: Json = False,
) -> None:
    """Enroll a name from a few clips: each becomes a print in the gallery, no training needed.

    All clips are enrolled or none is: one that is silent, too short or unreadable is named, and nothing is written.
    Three to ten clips, recorded as they will be heard later, are a good start; run it again to add more.

    Examples:

        confit-edge enroll digits ada ada-1.wav ada-2.wav ada-3.wav

        confit-edge enroll mymodel.onnx doorbell recordings/doorbell/ --gallery house.db
    """
    import numpy as np

    from confit_runtime import load
    from confit_runtime.gallery import Gallery, clean_name
    from confit_runtime.sources import find_clips

    name = clean_name(name)
    paths = find_clips(clips)
    loaded = load(model)
    embeddings, seconds = zip(*(_print_of(loaded, path) for path in paths), strict=True)
    with Gallery.open(gallery, loaded, create=True) as opened:
        total = opened.enroll(name, np.stack(embeddings), sources=[str(path) for path in paths], voiced_s=sum(seconds))
    if json:
        emit("enrolled", name=name, prints=len(paths), voiced_s=round(sum(seconds), 3))
    else:
        print(f"{name}: {prints_text(len(paths))} from {sum(seconds):.1f} s of sound")
    say(f"{gallery} holds {prints_text(total)} of {name}")


def prints_text(count: int) -> str:
    return f"{count} print" if count == 1 else f"{count} prints"


def _print_of(model: Model, path: Path) -> tuple[Floats, float]:
    """The embedding `[dim]` of a clip and its seconds of sound. Raises AudioError on a clip without enough."""
    from confit_runtime.audio import load_clip
    from confit_runtime.gallery import voiced_seconds

    rate = model.contract.sample_rate
    pcm = load_clip(path, rate)
    voiced_s = voiced_seconds(pcm, rate)
    if voiced_s == 0.0:
        raise AudioError(f"{path}: is silent; record it again")
    if voiced_s < SHORTEST_S:
        raise AudioError(f"{path}: holds {voiced_s:.2f} s of sound, enrolling needs at least {SHORTEST_S} s")
    return model.embed(pcm, rate), voiced_s
