"""`confit-edge record`: record clips of one class from the microphone and check each at once."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confit_edge.cli._console import Json, emit, say, stderr_is_terminal
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.formatting import format_count

if TYPE_CHECKING:
    from confit_runtime.recording import Take
    from confit_runtime.sources import Source

MANIFEST = "manifest.csv"
COLUMNS = ("path", "label", "group")
MOST_REFUSED_IN_A_ROW = 5  # in succession: then something is wrong that trying again does not fix


def record(
    label: Annotated[str, typer.Argument(metavar="LABEL", help="The class of the clips: what is heard in them.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write to: clips go to DIR/LABEL/GROUP/.")
    ],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Number of clips to record.")] = 10,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=0.2, max=60.0, help="Length of each clip in seconds.")
    ] = 2.0,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Who speaks, or where; clips of one group are never in two splits [date and time].",
        ),
    ] = None,
    source: Annotated[
        str, typer.Option(metavar="SOURCE", help="mic, mic:INDEX, mic:NAME (append #N for channel N) or a URL.")
    ] = "mic",
    countdown: Annotated[
        float, typer.Option(metavar="S", min=0.0, help="Seconds to get ready before each clip.")
    ] = 1.5,
    form: Annotated[Literal["flac", "wav"], typer.Option("--format", help="Format of the clip files.")] = "flac",
    trim: Annotated[
        bool,
        typer.Option(
            help="Cut the quiet before and after the sound. --no-trim also keeps clips that are quiet throughout."
        ),
    ] = True,
    json: Json = False,
) -> None:
    """Record clips of one class, to train on or to enroll.

    Each clip is checked as soon as it is recorded; a clip that is clipped or silent, has gaps, or whose channels cancel each
    other is refused and recorded again. Clips go to DIR/LABEL/GROUP/, and each gets a row in DIR/manifest.csv. You can train
    on the folder or on the manifest.

    Record every class with the same microphone, in at least three groups (people, rooms, days). Also record a class called
    unknown, which never fires, with the other sounds of the place.

    Examples:

        confit-edge record yes -o clips --count 10 --group ada
        confit-edge record unknown -o clips --count 20 --seconds 5 --no-trim

    Next: `confit-edge data check clips`, then `confit-edge train clips -o run`.
    """
    from confit_edge.cli._signals import StopOnSignal
    from confit_runtime.files import make_folder
    from confit_runtime.recording import check_live
    from confit_runtime.sources import open_source, without_secrets

    if source == "-":
        raise UsageError("--source -: record takes a microphone or a stream, not a pipe")
    group = _folder_name("--group", group or time.strftime("%Y%m%d-%H%M%S"))
    label = _folder_name("LABEL", label)
    folder = out / label / group
    if (out / MANIFEST).exists():  # so that a faulty manifest or folder fails before anything is recorded
        _rows(out / MANIFEST, (out / MANIFEST).read_bytes())
    with open_source(source) as opened:
        check_live(opened)
        for place in (out, folder):
            make_folder(place)
        say(f"{label}: recording {format_count(count, 'clip')} of {seconds:g} s from {opened.name}; Ctrl-C stops")
        kept = refused = in_succession = 0
        try:
            with StopOnSignal() as stopped:
                live = stopped.stoppable(opened)
                while kept < count:
                    take = _take(live, seconds, countdown, not trim, f"{kept + 1} of {count}")
                    if take.fault is None:
                        path = keep(take, out, label, group, form, trim)
                        kept, in_succession = kept + 1, 0
                        _print_kept(json, path, label, group, take)
                        continue
                    refused, in_succession = refused + 1, in_succession + 1
                    say(f"  not kept: {take.fault}")
                    if json:
                        emit("refused", label=label, reason=take.fault, peak_db=round(take.check.peak_db, 1))
                    if in_succession == MOST_REFUSED_IN_A_ROW:
                        raise ConfitError(
                            f"{MOST_REFUSED_IN_A_ROW} clips in a row could not be used ({take.fault}); see `confit-edge doctor"
                            f" --source {without_secrets(source)}`"
                        )
            if kept < count:
                say()  # a new line below the level that was drawn last
        finally:
            say(f"{label}: {format_count(kept, 'clip')} kept, {refused} refused, in {folder}")
            if json:
                emit("summary", label=label, group=group, clips=kept, refused=refused, folder=str(folder))


def _print_kept(json: bool, path: Path, label: str, group: str, take: Take) -> None:
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
    show = level_line() if stderr_is_terminal() else None
    return record_clip(source, seconds, countdown_s=countdown, quiet=quiet, show=show, notify=say_alone)


def _folder_name(what: str, text: str) -> str:
    """A label or group as the name of a folder. Raises UsageError if it cannot be one."""
    from confit_runtime.names import is_safe_in_filename, normalise

    name = normalise(text)
    if not name or name.startswith(".") or not all(map(is_safe_in_filename, name)):
        raise UsageError(f"{what} {text!r} cannot be the name of a folder: use letters, digits, spaces, - and _")
    return name


def keep(take: Take, out: Path, label: str, group: str, form: str, trim: bool) -> Path:
    """Write a clip under the next free number and its row in the manifest, or neither. Other recorders may use the folder too."""
    import soundfile

    from confit_runtime.files import locked, write_atomic
    from confit_runtime.voice_activity import trim_silence

    sound = io.BytesIO()
    soundfile.write(
        sound, trim_silence(take.pcm, take.rate) if trim else take.pcm, take.rate, format=form, subtype="PCM_16"
    )
    folder, manifest = out / label / group, out / MANIFEST
    with locked(out, wait=True):  # so that no two recorders take the same number and no row is lost
        former = manifest.read_bytes() if manifest.exists() else b""
        path = folder / f"{max(map(_number, folder.iterdir()), default=0) + 1:04}.{form}"
        write_atomic(path, sound.getvalue())
        try:
            row = [path.relative_to(out).as_posix(), label, group]
            write_atomic(manifest.resolve(), _with_row(manifest, former, row))  # of a link, the file that it leads to
        except BaseException:  # for instance a full disk
            path.unlink(missing_ok=True)
            raise
    return path


def _number(file: Path) -> int:
    """The number of a clip, 0 for any other file."""
    return int(file.stem) if file.stem.isdecimal() else 0


def _rows(manifest: Path, data: bytes) -> list[list[str]]:
    """The rows of a manifest, including its header. Raises UsageError."""
    try:
        text = data.decode("utf-8-sig")  # Excel writes a byte order mark
    except UnicodeDecodeError as error:
        raise UsageError(f"{manifest}: is not UTF-8; save it as UTF-8, or record to another folder") from error
    rows = list(csv.reader(io.StringIO(text)))
    if rows and tuple(rows[0]) != COLUMNS:
        raise UsageError(f"{manifest}: its columns are not {', '.join(COLUMNS)}; record to another folder")
    return rows


def _with_row(manifest: Path, former: bytes, row: Sequence[str]) -> bytes:
    """The content of a manifest with a row added; an empty one also gets its header."""
    rows = [row] if _rows(manifest, former) else [COLUMNS, row]
    return former + (b"" if former[-1:] in (b"", b"\n") else b"\n") + b"".join(map(_line, rows))


def _line(cells: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()
