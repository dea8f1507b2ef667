"""Arguments that mean the same in several verbs."""

from __future__ import annotations

from typing import Annotated

import typer

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model file, or the name of a shipped model.")]
ModelsArgument = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Model files, or names of shipped models.")
]
GalleryModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The model the gallery was enrolled with.")]
ClipsArgument = Annotated[list[str], typer.Argument(metavar="CLIP...", help="Sound files, folders or glob patterns.")]
