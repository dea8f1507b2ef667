"""`confit-edge gallery`: list, change and move enrolled names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confit_edge.cli._console import Bar, Json, Verb, Verbs, emit, print_line, say
from confit_edge.cli._gallery_options import GALLERY, GalleryFile, counts_text, print_ended_calibrations, prints_text
from confit_runtime.errors import UsageError
from confit_runtime.formatting import format_list

if TYPE_CHECKING:
    from confit_runtime.prints import PrintCounts

app = typer.Typer(
    cls=Verbs,
    help="List, change and move the enrolled names of a gallery.\n\n`confit-edge enroll` adds names.",
    no_args_is_help=True,
    add_completion=False,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="An enrolled name.")]


@app.command("list", cls=Verb)
def list_(gallery: GalleryFile = GALLERY, json: Json = False) -> None:
    """List the enrolled names.

    Each line shows a name, how many prints it has, and the seconds of sound they come from.

    Example:

        confit-edge gallery list --gallery house.db
    """
    from confit_runtime.gallery import Gallery

    with Gallery.open(gallery) as opened:
        names, calibrated = opened.counts(), opened.calibrated()
        for name, counts in names.items():
            voiced_s, against = opened.voiced_s(name), counts.negative_prints
            level = calibrated[name].threshold if name in calibrated else None
            if json:
                emit("name", name=name, **counts._asdict(), voiced_s=round(voiced_s, 3), calibrated_threshold=level)
            else:
                others = f"  {prints_text(against, True)}" if against else ""
                since = "" if level is None else f"  calibrated to {level:.2f}"
                print_line(f"{name}  {prints_text(counts.prints)}  {voiced_s:.1f} s{others}{since}")
    if json:
        _emit_summary(names, str(gallery))
    elif not names:
        say(f"{gallery}: nobody is enrolled")


@app.command(cls=Verb)
def show(name: Name, gallery: GalleryFile = GALLERY, json: Json = False) -> None:
    """Show the prints of a name and how alike they are.

    Each line shows where a print came from and its mean cosine with the name's other prints. If one print is much less alike
    than the rest, listen to its sound again: it may be noise, or somebody else.

    Example:

        confit-edge gallery show ada
    """
    from confit_runtime.gallery import Gallery
    from confit_runtime.names import clean_name

    name = clean_name(name)
    with Gallery.open(gallery) as opened:
        prints = opened.prints(name)
    positive = [one.embedding for one in prints if not one.negative]
    for one in prints:
        # a negative print is compared with all prints of the name, a print with all others
        cosines = [float(other @ one.embedding) for other in positive if other is not one.embedding]
        alike = sum(cosines) / len(cosines) if cosines else None
        if json:
            emit(
                "print",
                name=name,
                source=one.source,
                similarity=alike,
                negative=one.negative,
                audio_kept=one.audio is not None,
            )
        else:
            notes = f"{'' if alike is None else f'  {alike:.2f}'}{'  negative' if one.negative else ''}"
            print_line(f"{one.source}{notes}{'  audio kept' if one.audio is not None else ''}")
    if json:
        negatives = len(prints) - len(positive)
        emit("summary", gallery=str(gallery), name=name, prints=len(positive), negative_prints=negatives)


@app.command(cls=Verb)
def rename(
    old: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The new name, which must not be enrolled yet.")],
    gallery: GalleryFile = GALLERY,
    json: Json = False,
) -> None:
    """Rename an enrolled name.

    Example:

        confit-edge gallery rename ada "Ada Lovelace"
    """
    from confit_runtime.gallery import Gallery
    from confit_runtime.names import clean_name

    with Gallery.open(gallery) as opened:
        opened.rename(old, new)
    old, new = clean_name(old), clean_name(new)
    if json:
        emit("renamed", name=new, old=old)
    else:
        print_line(f"{old} is now {new}")


@app.command(cls=Verb)
def remove(name: Name, gallery: GalleryFile = GALLERY, json: Json = False) -> None:
    """Delete a name; nothing of it stays in the file.

    Example:

        confit-edge gallery remove ada
    """
    from confit_runtime.gallery import Gallery
    from confit_runtime.names import clean_name

    with Gallery.open(gallery) as opened:
        had = opened.remove(name)
    name = clean_name(name)
    if json:
        emit("removed", name=name, **had._asdict())
    else:
        print_line(f"removed {name}, with {counts_text(had)}")


@app.command(cls=Verb)
def uncalibrate(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Enrolled names [all].")] = None,
    gallery: GalleryFile = GALLERY,
    json: Json = False,
) -> None:
    """Undo `calibrate --gallery`: streams use the model's own thresholds for these names again.

    Example:

        confit-edge gallery uncalibrate --gallery words.db
    """
    from confit_runtime.gallery import Gallery

    with Gallery.open(gallery) as opened:
        undone = opened.uncalibrate(names or [])
    if json:
        for name in undone:
            emit("uncalibrated", name=name)
        emit("summary", gallery=str(gallery), names=len(undone))
    else:
        print_line(f"no longer calibrated: {format_list(undone)}" if undone else "no name was calibrated")


@app.command(cls=Verb)
def export(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The new gallery file to write.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="The names to export [all].")] = None,
    gallery: GalleryFile = GALLERY,
    json: Json = False,
) -> None:
    """Copy names to a new gallery file for another device.

    Example:

        confit-edge gallery export ada --out ada.db

    Next: `confit-edge gallery import ada.db` on the other device.
    """
    from confit_runtime.gallery import Gallery
    from confit_runtime.transfer import export_names

    with Gallery.open(gallery) as opened, Bar(json, before="names") as bar:
        written = export_names(opened, names or [], out, partial(_show, bar, "export"))
    _print_names("exported", written, str(out), f"written to {out}", json)


@app.command("import", cls=Verb)
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A gallery file, for instance from `gallery export`.")],
    gallery: GalleryFile = GALLERY,
    json: Json = False,
) -> None:
    """Add the names of another gallery file to this one.

    Prints that this gallery already has are left out.

    Example:

        confit-edge gallery import ada.db
    """
    from confit_runtime.gallery import Gallery
    from confit_runtime.transfer import export_names, import_names

    if not source.exists():
        raise UsageError(f"{source}: no such file")
    with Gallery.open(source) as given:
        if gallery.exists():
            with Gallery.open(gallery) as opened:
                calibrated = opened.calibrated()
                with Bar(json, before="names") as bar:
                    added = import_names(opened, given, partial(_show, bar, "import"))
                print_ended_calibrations(opened, calibrated)
        else:
            with Bar(json, before="names") as bar:
                added = export_names(given, [], gallery, partial(_show, bar, "import"))
        left_out = sum(map(sum, given.counts().values())) - sum(map(sum, added.values()))
    _print_names("imported", added, str(gallery), f"added to {gallery}", json, left_out=left_out)
    if left_out:
        say(f"{prints_text(left_out)} left out: already in {gallery}")


@app.command("re-enroll", cls=Verb)
def re_enroll(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The new model for the gallery.")],
    gallery: GalleryFile = GALLERY,
    kind: Annotated[
        Literal["speaker", "sound"] | None,
        typer.Option("--kind", help="What the names stand for, if the model is for the other kind."),
    ] = None,
    json: Json = False,
) -> None:
    """Recompute every print with another model.

    It uses the audio that `enroll --keep-audio` stored. A gallery of voices stays a gallery of voices: a model for sounds is
    refused unless you give --kind.

    Example:

        confit-edge gallery re-enroll newmodel.onnx
    """
    from confit_runtime import load
    from confit_runtime.gallery import Gallery
    from confit_runtime.transfer import re_enroll_prints

    loaded = load(model)
    with Gallery.open(gallery) as opened:
        calibrated = opened.calibrated()
        made = re_enroll_prints(opened, loaded, kind)
        print_ended_calibrations(opened, calibrated)
    _print_names("re-enrolled", made, str(gallery), f"recomputed with {loaded.name}", json)


def _show(bar: Bar, what: str, done: int, total: int) -> None:
    bar.show(what, total, done, names=f"{done} of {total}")


def _print_names(kind: str, names: dict[str, PrintCounts], path: str, what: str, json: bool, **more: int) -> None:
    for name, counts in names.items():
        if json:
            emit(kind, name=name, **counts._asdict())
        else:
            print_line(f"{name}: {counts_text(counts)} {what}")
    if json:
        _emit_summary(names, path, **more)


def _emit_summary(names: dict[str, PrintCounts], path: str, **more: int) -> None:
    """Emit how many names and prints there are; names without prints do not count."""
    counted = names.values()
    emit(
        "summary",
        gallery=path,
        names=sum(map(any, counted)),
        prints=sum(one.prints for one in counted),
        negative_prints=sum(one.negative_prints for one in counted),
        **more,
    )
