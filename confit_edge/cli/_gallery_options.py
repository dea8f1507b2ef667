"""What the verbs about enrolled names share: options, and the wording of prints and refusals."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confit_edge.cli._console import say
from confit_runtime.formatting import format_count, format_list

if TYPE_CHECKING:
    from confit_runtime.gallery import Gallery
    from confit_runtime.matcher import Match
    from confit_runtime.model import Model
    from confit_runtime.prints import PrintCounts

GALLERY = Path("gallery.db")  # the default of --gallery
GalleryFile = Annotated[
    Path, typer.Option("--gallery", metavar="FILE", help="The gallery: the file that holds the enrolled names.")
]
KindOption = Annotated[
    Literal["speaker", "sound"] | None,
    typer.Option(
        "--kind",
        help="What a name stands for: a speaker (only the voice counts, and long pauses are cut) or a sound [as the gallery"
        " says, or the model for a new gallery].",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="SIMILARITY", help="Similarity that a name needs, from -1 to 1, instead of the calibrated one."
    ),
]


@contextmanager
def open_names(gallery: Path | None, model: Model, thresholds: dict[str, float]) -> Iterator[Gallery | None]:
    """The gallery of `--gallery` if there is one; `thresholds` of labels, which are not enrolled, are left out."""
    if gallery is None:
        yield None
        return
    from confit_runtime.gallery import Gallery

    with Gallery.open(gallery) as unread:
        own = {name: level for name, level in thresholds.items() if name in unread.names()}
    with Gallery.open(gallery, model, thresholds=own) as opened:
        yield opened


def print_ended_calibrations(gallery: Gallery, before: Collection[str]) -> None:
    """Print for which names, of those that were calibrated `before`, the gallery no longer has a calibration."""
    if ended := [name for name in before if name not in gallery.calibrated()]:
        say(
            f"{gallery.path}: no longer calibrated, because other prints give other scores: {format_list(ended)}; run"
            " `confit-edge calibrate --gallery` again"
        )


def prints_text(count: int, negative: bool = False) -> str:
    return format_count(count, "negative print" if negative else "print")


def counts_text(counts: PrintCounts) -> str:
    """`2 prints and 1 negative print`; a kind that is absent is left out."""
    parts = [prints_text(number, negative) for number, negative in zip(counts, (False, True), strict=True) if number]
    return " and ".join(parts) or prints_text(0)


def refusal_reason(match: Match, name: str) -> str:
    """The rule that refused `name`, whose score is in the match."""
    score, needed = f"{match.score:.2f}", f"{match.threshold:.2f}"
    return {
        "too low": f"needs {needed}" if score != needed else f"just below the {needed} needed",
        "negative": f"but the negative prints of {name} are nearer",
        "stranger": "but strangers in the model's cohort are nearer",
        "other": f"but {match.runner_up} is nearer, {match.runner_up_score or 0.0:.2f}",
        "too close": "too close to the runner-up to decide",
        "nobody": "nobody is enrolled",
    }[match.reason or "nobody"]
