"""`confit-edge record`: collect clips of one class from the microphone, one after another, and judge each at once."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confit_edge.cli._console import Json, emit, on_a_terminal, say
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.wording import counted

if TYPE_CHECKING:
    from confit_runtime.recording import Take
    from confit_runtime.sources import Source

MANIFEST = "manifest.csv"
COLUMNS = ("path", "label", "group")
MOST_REFUSED = 5  # in succession: then something is wrong that trying again does not mend


def record(
    label: Annotated[str, typer.Argument(metavar="LABEL", help="What is heard in the clips.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the clips go: DIR/LABEL/GROUP/.")],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="How many clips to record.")] = 10,
    seconds: Annotated[float, typer.Option(metavar="S", min=0.2, max=60.0, help="How long each is.")] = 2.0,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Who speaks, or where: splits keep a group together. Default: date and time."
        ),
    ] = None,
    source: Annotated[
        str, typer.Option(metavar="SOURCE", help="mic, mic:INDEX, mic:NAME (#N: its channel N) or a URL.")
    ] = "mic",
    countdown: Annotated[float, typer.Option(metavar="S", min=0.0, help="Seconds to get ready before each.")] = 1.5,
    form: Annotated[Literal["flac", "wav"], typer.Option("--format", help="How clips are written.")] = "flac",
    trim: Annotated[
        bool,
        typer.Option(help="Cut the quiet before and after the sound. --no-trim: also keep what is quiet throughout."),
    ] = True,
    json: Json = False,
) -> None:
    """Record clips of one class, to train on or to enroll.

    Each clip is judged when it was recorded: one that is clipped, silent or torn is refused and recorded again. Clips go
    to DIR/LABEL/GROUP/, and a row for each to DIR/manifest.csv: train on either. Record every class with the same
    microphone, in at least three groups (people, rooms, days), and one called unknown, which never fires, with what else is
    heard there.

    Examples:

        confit-edge record yes -o clips --count 10 --group ada

        confit-edge record unknown -o clips --count 20 --seconds 5 --no-trim

        confit-edge train clips -o run
    """
    from confit_edge.cli._stopped import UntilStopped
    from confit_runtime.files import make_folder
    from confit_runtime.recording import check_live
    from confit_runtime.sources import open_source

    if source == "-":
        raise UsageError("--source -: clips are recorded from a microphone or a stream, not from a pipe")
    group = _folder_name("--group", group or time.strftime("%Y%m%d-%H%M%S"))
    label = _folder_name("LABEL", label)
    folder = out / label / group
    _listed(out / MANIFEST)  # what is wrong with it, or with the folders, is said before anything is recorded
    with open_source(source) as opened:
        check_live(opened)
        for place in (out, folder):
            make_folder(place)
        say(f"{label}: {counted(count, 'clip')} of {seconds:g} s from {opened.name}; Ctrl-C ends it")
        kept = refused = in_succession = 0
        try:
            with UntilStopped() as stopped:
                live = stopped.between_pieces(opened)
                while kept < count:
                    take = _take(live, seconds, countdown, not trim, f"{kept + 1} of {count}")
                    if take.fault is None:
                        path = keep(take, out, label, group, form, trim)
                        kept, in_succession = kept + 1, 0
                        _tell_kept(json, path, label, group, take)
                        continue
                    refused, in_succession = refused + 1, in_succession + 1
                    say(f"  not kept: {take.fault}")
                    if json:
                        emit("refused", label=label, reason=take.fault, peak_db=round(take.check.peak_db, 1))
                    if in_succession == MOST_REFUSED:
                        raise ConfitError(
                            f"{MOST_REFUSED} clips in succession could not be used ({take.fault}); see `confit-edge doctor"
                            f" --source {source}`"
                        )
            if kept < count:
                say()  # below the level, as it was drawn last
        finally:
            say(f"{label}: {counted(kept, 'clip')} kept, {refused} refused, in {folder}")
            if json:
                emit("summary", label=label, group=group, clips=kept, refused=refused, folder=str(folder))


def _tell_kept(json: bool, path: Path, label: str, group: str, take: Take) -> None:
    say(f"  {path.name}  {take.check.loud_db:.0f} dB")
    if json:
        emit(
            "recorded",
            path=str(path),
            label=label,
            group=group,
            loud_db=round(take.check.loud_db, 1),
            peak_db=round(take.check.peak_db, 1),
            noise_db=round(take.check.noise_db, 1),
        )
    else:
        print(path, flush=True)


def _take(source: Source, seconds: float, countdown: float, quiet: bool, which: str) -> Take:
    from confit_edge.cli._live import level_line, say_alone
    from confit_runtime.recording import record_clip

    say(f"clip {which}: get ready")
    show = level_line() if on_a_terminal() else None
    return record_clip(source, seconds, countdown_s=countdown, quiet=quiet, show=show, tell=say_alone)


def _folder_name(what: str, text: str) -> str:
    """A label or group that can also be a folder's name. Raises UsageError on one that cannot."""
    from confit_runtime.names import fits_a_file_name, plain

    name = plain(text)
    if not name or name.startswith(".") or not all(map(fits_a_file_name, name)):
        raise UsageError(f"{what} {text!r} cannot be the name of a folder: use letters, digits, spaces, - and _")
    return name


def keep(take: Take, out: Path, label: str, group: str, form: str, trim: bool) -> Path:
    """Write a clip under the next free number, and its row of the manifest; others may record into the same folder."""
    import soundfile

    from confit_runtime.files import write_whole
    from confit_runtime.voiced import trimmed

    sound = io.BytesIO()
    soundfile.write(sound, trimmed(take.pcm, take.rate) if trim else take.pcm, take.rate, format=form, subtype="PCM_16")
    folder, manifest = out / label / group, out / MANIFEST
    with _alone(manifest):
        taken = [int(file.stem) for file in folder.iterdir() if file.stem.isdecimal()]
        path = folder / f"{max(taken, default=0) + 1:04}.{form}"
        write_whole(path, sound.getvalue())
        _list(manifest, path, label, group)
    return path


@contextmanager
def _alone(manifest: Path) -> Iterator[None]:
    """Wait until nobody else writes it: no two recorders take one number, and no row is lost."""
    with manifest.open("ab") as file:
        with suppress(ModuleNotFoundError):  # Windows
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _listed(manifest: Path) -> list[list[str]]:
    """The rows of a manifest, its columns among them; none where there is no such file. Raises UsageError."""
    try:
        text = manifest.read_text(encoding="utf-8-sig") if manifest.exists() else ""  # Excel writes a mark before it
    except UnicodeDecodeError as error:
        raise UsageError(f"{manifest}: is not UTF-8; save it as UTF-8, or record into another folder") from error
    rows = list(csv.reader(io.StringIO(text)))
    if rows and tuple(rows[0]) != COLUMNS:
        raise UsageError(f"{manifest}: its columns are not {', '.join(COLUMNS)}; record into another folder")
    return rows


def _list(manifest: Path, path: Path, label: str, group: str) -> None:
    """Add a clip to the manifest. Raises UsageError where that cannot be read, or has other columns."""
    from confit_runtime.files import naming

    rows = [] if _listed(manifest) else [list(COLUMNS)]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [*rows, [path.relative_to(manifest.parent).as_posix(), label, group]]
    )
    ended = manifest.read_bytes()[-1:] in (b"", b"\n")
    with naming(manifest), manifest.open("ab") as file:
        file.write(("" if ended else "\n").encode() + table.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())
