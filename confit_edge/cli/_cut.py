"""How `data cut` cuts the labelled recordings of a table, and what it reports."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from confit_edge.cli._console import Bar, emit_failed, say
from confit_edge.data.clips import MIN_S
from confit_edge.data.cut import (
    MANIFEST,
    Part,
    UniqueNames,
    UnwrittenError,
    atomic_folder,
    extract,
    safe_name,
    write_table,
)
from confit_edge.data.manifest import UNKNOWN, Clip
from confit_edge.data.pieces import Piece, Pieces, pieces_of, rest_of
from confit_edge.data.tables import relative
from confit_runtime.errors import AudioError, UsageError
from confit_runtime.formatting import format_count, format_duration, format_list
from confit_runtime.labels import LabelledRecording

LONG_S = 3.0  # a longer clip spans several windows, which are 1 to 1.3 s by default


@dataclass
class CutResult:
    """What was cut: the clips, their lengths, the lengths of the rest, and the errors of damaged recordings."""

    clips: list[Clip] = field(default_factory=list)
    lengths_s: list[float] = field(default_factory=list)
    rest_s: list[float] = field(default_factory=list)
    errors: list[AudioError] = field(default_factory=list)


def cut_recordings(
    table: Path,
    recordings: Sequence[LabelledRecording],
    out: Path,
    margin_s: float,
    alone: bool,
    rest: Path | None,
    json_lines: bool,
) -> tuple[dict[str, Any], Sequence[AudioError]]:
    """Write the clips, their manifest and the rest, all or nothing; return a report and the errors of damaged recordings.

    Raises UsageError, before anything is written, if there is nothing to cut, if a sound has no length, or if a recording
    belongs to two groups.
    """
    _check_places(out, rest)
    groups = [_group(table, recording) for recording in recordings]
    pieces = [pieces_of(recording, margin_s, alone=alone) for recording in recordings]
    _check_lengths(table, recordings, pieces)
    _check_any_clip(table, pieces)
    with ExitStack() as made, Bar(json_lines, before="hours") as bar:
        folder = made.enter_context(atomic_folder(out, "-o"))
        beside = made.enter_context(atomic_folder(rest, "--rest")) if rest else None
        try:
            written = _cut_each(recordings, groups, pieces, folder, beside, margin_s, bar)
        except UnwrittenError as error:  # its file is hidden, and gone by now
            where = rest if rest and beside in error.file.parents else out
            raise UnwrittenError(where, error.reason) from error
        several = write_table(written.clips, folder / MANIFEST)
    labels = Counter(label for clip in written.clips for label in clip.labels or (UNKNOWN,))
    lengths, rest_s = written.lengths_s, written.rest_s
    report = {
        "out": str(out / MANIFEST),
        "clips": len(written.clips),
        "seconds": round(sum(lengths), 3),
        "by_label": dict(sorted(labels.items())),
        "recordings": len(recordings) - len(written.errors),
        "groups": len({clip.group for clip in written.clips}),
        "column": "labels" if several else "label",
        "joined": sum(len(clip.labels) > 1 for clip in written.clips),
        "overlapped": sum(found.overlapping for found in pieces),
        "unknown_with_others": sum(found.dropped_unknown for found in pieces),
        "short": sum(length < MIN_S for length in lengths),
        "long": sum(length > LONG_S for length in lengths),
        "shortest_s": round(min(lengths), 3),
        "longest_s": round(max(lengths), 3),
        "rest": {"out": str(rest), "files": len(rest_s), "seconds": round(sum(rest_s), 3)} if rest else None,
        "failed": len(written.errors),
    }
    return report, written.errors


def _cut_each(
    recordings: Sequence[LabelledRecording],
    groups: Sequence[str],
    pieces: Sequence[Pieces],
    folder: Path,
    beside: Path | None,
    margin_s: float,
    bar: Bar,
) -> CutResult:
    """Cut one recording after another. Raises AudioError if none can be read to its end."""
    written, names = CutResult(), UniqueNames()
    several = any(len(piece.labels) > 1 for found in pieces for piece in found.kept)
    whole, done = sum(recording.seconds for recording in recordings), 0.0
    for recording, group, found in zip(recordings, groups, pieces, strict=True):
        path = recording.path
        parts = [
            _clip_part(names, folder, "+".join(piece.labels) or UNKNOWN, group, path.stem, piece, several)
            for piece in found.kept
        ]
        between = rest_of(recording, margin_s) if beside else []
        parts += [names.part(beside / safe_name(group), [path.stem], span) for span in between if beside]
        try:
            files = extract(path, parts, partial(bar.show_hours, path.name, whole, done))
        except AudioError as error:
            emit_failed(str(path), error, bar.json_lines)
            written.errors.append(error)
        else:
            of_clips = zip(files[: len(found.kept)], found.kept, strict=True)
            written.clips += [Clip(file, piece.labels, group, None) for file, piece in of_clips]
            written.lengths_s += [piece.end_s - piece.start_s for piece in found.kept]
            written.rest_s += [end - start for start, end in between]
        done += recording.seconds
    if not written.clips:
        raise written.errors[0]
    return written


def _clip_part(
    names: UniqueNames, folder: Path, label: str, group: str, recording: str, piece: Piece, several: bool
) -> Part:
    """A clip's place: FOLDER/LABEL/GROUP/`RECORDING SECONDS`, a folder that `train` also reads without the manifest.

    If any clip has several labels, all clips lie in FOLDER itself, which is read only with the manifest.
    """
    span = (piece.start_s, piece.end_s)
    if several:
        return names.part(folder, [label, recording], span)
    return names.part(folder / safe_name(label) / safe_name(group), [recording], span)


def print_report(report: dict[str, Any], errors: Sequence[AudioError]) -> None:
    """Print the report for a person."""
    print(
        f"{report['out']}: {format_count(report['clips'], 'clip')}, {format_duration(report['seconds'])}, from"
        f" {format_count(report['recordings'], 'recording')} ({format_count(report['groups'], 'group')})"
    )
    width = max(map(len, report["by_label"]))
    for label, clips in report["by_label"].items():
        print(f"  {label:<{width}}{clips:>6}")
    if report["rest"]:
        between = format_count(report["rest"]["files"], "stretch", "stretches")
        print(f"{report['rest']['out']}: {between} between the sounds, {format_duration(report['rest']['seconds'])}")
        say("listen to the rest before you train with it: sounds in it that nobody labelled are learnt as background")
    for text in _remarks(report):
        say(text)
    for error in errors:
        say(f"left out: {error}")
    say(f"Next: confit-edge data check {quote(report['out'])}")


def _remarks(report: dict[str, Any]) -> Iterator[str]:
    if report["joined"]:
        yield (
            f"several sounds are heard in {format_count(report['joined'], 'clip')}: the column labels holds all labels of each,"
            " and a model learns to detect each independently. --alone leaves such clips out"
        )
    if report["overlapped"]:
        yield f"left out because of --alone: {format_count(report['overlapped'], 'overlapping sound')}"
    if report["unknown_with_others"]:
        yield f"left out because of a labelled sound in it: {format_count(report['unknown_with_others'], f'{UNKNOWN} sound')}"
    if report["short"]:
        yield (
            f"warning: {format_count(report['short'], 'clip')} shorter than {MIN_S:g} s (the shortest"
            f" {report['shortest_s']:.3f} s),"
            " which training leaves out. --margin 0.3 also keeps what is heard around each sound"
        )
    if report["long"]:
        yield (
            f"warning: {format_count(report['long'], 'clip')} longer than {LONG_S:g} s (the longest {report['longest_s']:.1f} s):"
            " training cuts windows of 1 to 1.3 s from them (--window) and learns each as the label, even a pause. Label single"
            " sounds, or choose a longer window"
        )


def _check_places(out: Path, rest: Path | None) -> None:
    if rest is None:
        return
    inner, outer = (Path(os.path.abspath(place)) for place in (rest, out))
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise UsageError(
            f"--rest {rest}: is inside -o {out} or contains it, so it would be read as a class; name another folder"
        )


def _group(table: Path, recording: LabelledRecording) -> str:
    if len(recording.groups) > 1:
        raise UsageError(
            f"{table}: {recording.path} has several groups ({format_list(sorted(recording.groups))}), but a recording must stay"
            " in one split; give it one group"
        )
    name = relative(recording.path.with_suffix(""), table if table.is_dir() else table.parent)
    return next(iter(recording.groups), name.encode(errors="backslashreplace").decode())


def _check_any_clip(table: Path, pieces: Sequence[Pieces]) -> None:
    """Raise UsageError if there is nothing to cut."""
    if any(found.kept for found in pieces):
        return
    overlapping = sum(found.overlapping for found in pieces)
    overlap = f"every sound in it ({overlapping}) overlaps another, and --alone leaves such sounds out"
    raise UsageError(f"{table}: {overlap if overlapping else 'it labels no sound'}, so there is no clip to cut")


def _check_lengths(table: Path, recordings: Sequence[LabelledRecording], pieces: Sequence[Pieces]) -> None:
    """Raise UsageError on sounds without length."""
    points = [
        f"{sound.label} at {sound.start_s:g} s of {recording.path}"
        for recording, found in zip(recordings, pieces, strict=True)
        for sound in found.zero_length
    ]
    if points:
        raise UsageError(
            f"{table}: {format_list(points, 1)} has no length; give it an end (in Audacity drag the label's edge over the"
            " sound), or use --margin 0.5, which adds half a second before and after it"
        )
