"""`confit-edge gallery`: look at and change who is enrolled. Needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confit_edge.cli._console import Json, emit, say
from confit_edge.cli.enroll import prints_text

app = typer.Typer(
    help="Look at and change who is enrolled. `confit-edge enroll` adds to it.",
    no_args_is_help=True,
    add_completion=False,
)

File = Annotated[Path, typer.Option("--gallery", metavar="FILE", help="Where enrolled names are kept.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that is enrolled.")]
DEFAULT = Path("gallery.db")


@app.command("list")
def list_(gallery: File = DEFAULT, json: Json = False) -> None:
    """List the enrolled names, how many prints each has, and from how much sound.

    Example: confit-edge gallery list --gallery house.db
    """
    from confit_runtime.gallery import Gallery

    with Gallery.open(gallery) as opened:
        names = opened.names()
        for name, prints in names.items():
            voiced_s = opened.voiced_s(name)
            if json:
                emit("name", name=name, prints=prints, voiced_s=round(voiced_s, 3))
            else:
                print(f"{name}  {prints_text(prints)}  {voiced_s:.1f} s")
    if json:
        emit("summary", gallery=str(gallery), names=len(names), prints=sum(names.values()))
    elif not names:
        say(f"{gallery}: nobody is enrolled")


@app.command()
def show(name: Name, gallery: File = DEFAULT, json: Json = False) -> None:
    """Show a name's prints: where each came from, and how alike it is to the others (their mean cosine).

    A print much less alike than the rest is worth listening to again: it may be noise, or somebody else.

    Example: confit-edge gallery show ada
    """
    import numpy as np

    from confit_runtime.gallery import Gallery, clean_name

    name = clean_name(name)
    with Gallery.open(gallery) as opened:
        prints = opened.prints(name)
    embeddings = np.stack([one.embedding for one in prints])
    others = max(1, len(prints) - 1)
    for one, cosines in zip(prints, embeddings @ embeddings.T, strict=True):
        alike = float((cosines.sum() - 1.0) / others) if len(prints) > 1 else None
        if json:
            emit("print", name=name, source=one.source, similarity=alike)
        else:
            print(one.source if alike is None else f"{one.source}  {alike:.2f}")
    if json:
        emit("summary", gallery=str(gallery), name=name, prints=len(prints))


@app.command()
def rename(
    old: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="A name that is not enrolled yet.")],
    gallery: File = DEFAULT,
    json: Json = False,
) -> None:
    """Give a name's prints another name.

    Example: confit-edge gallery rename ada "Ada Lovelace"
    """
    from confit_runtime.gallery import Gallery, clean_name

    with Gallery.open(gallery) as opened:
        opened.rename(old, new)
    old, new = clean_name(old), clean_name(new)
    if json:
        emit("renamed", name=new, old=old)
    else:
        print(f"{old} is now {new}")


@app.command()
def remove(name: Name, gallery: File = DEFAULT, json: Json = False) -> None:
    """Forget a name; nothing of it stays in the file.

    Example: confit-edge gallery remove ada
    """
    from confit_runtime.gallery import Gallery, clean_name

    with Gallery.open(gallery) as opened:
        prints = opened.remove(name)
    name = clean_name(name)
    if json:
        emit("removed", name=name, prints=prints)
    else:
        print(f"{name} is forgotten, with {prints_text(prints)}")
