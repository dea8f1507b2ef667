"""What the verbs about enrolled names share: their options, and how prints and a refusal are told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confit_runtime.wording import counted

if TYPE_CHECKING:
    from confit_runtime.matcher import Match
    from confit_runtime.prints import Counts

GALLERY = Path("gallery.db")  # unless --gallery names another
GalleryFile = Annotated[Path, typer.Option("--gallery", metavar="FILE", help="Where enrolled names are kept.")]
KindOption = Annotated[
    Literal["speaker", "sound"] | None,
    typer.Option(
        "--kind",
        help="What a name is: a speaker (of whom only the voice is heard, long pauses cut) or a sound. If not you, the"
        " gallery says which, and of a new one the model.",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(metavar="SIMILARITY", help="Needed for a name, -1 to 1, instead of what is calibrated."),
]


def prints_text(count: int, negative: bool = False) -> str:
    return counted(count, "negative print" if negative else "print")


def counts_text(counts: Counts) -> str:
    """`2 prints and 1 negative print`; what there is none of is left out."""
    told = [prints_text(number, negative) for number, negative in zip(counts, (False, True), strict=True) if number]
    return " and ".join(told) or prints_text(0)


def why_not(match: Match, name: str) -> str:
    """Which rule refused `name`, whose score the match gives."""
    score, needed = f"{match.score:.2f}", f"{match.threshold:.2f}"
    return {
        "too low": f"needs {needed}" if score != needed else f"just below the {needed} needed",
        "negative": f"but a negative print of {name} is nearer",
        "stranger": "but strangers in the model's cohort are nearer",
        "other": f"but {match.runner_up} is nearer, {match.runner_up_score or 0.0:.2f}",
        "too close": "too close to the next to tell",
        "nobody": "nobody is enrolled",
    }[match.reason or "nobody"]
