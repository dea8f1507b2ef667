"""What `data cut` does with the labelled recordings of a table, and what it tells of the clips."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from confit_edge.cli._console import Bar, emit_failed, say
from confit_edge.data.clips import MIN_S
from confit_edge.data.cut import MANIFEST, Names, Part, UnwrittenError, extract, made_whole, safe, write_table
from confit_edge.data.manifest import UNKNOWN, Clip
from confit_edge.data.pieces import Piece, Pieces, pieces_of, rest_of
from confit_edge.data.tables import relative
from confit_runtime.errors import AudioError, UsageError
from confit_runtime.labels import Labelled
from confit_runtime.wording import counted, lasting, listed

LONG_S = 3.0  # from here on a clip is some windows long: those that train by default are of 1 to 1.3 s


@dataclass
class Written:
    """What was cut: the clips, how long each is, and the stretches of the rest; and the recordings that are damaged."""

    clips: list[Clip] = field(default_factory=list)
    lengths_s: list[float] = field(default_factory=list)
    rest_s: list[float] = field(default_factory=list)
    errors: list[AudioError] = field(default_factory=list)


def cut_out(
    table: Path,
    recordings: Sequence[Labelled],
    out: Path,
    margin_s: float,
    alone: bool,
    rest: Path | None,
    json_lines: bool,
) -> tuple[dict[str, Any], Sequence[AudioError]]:
    """Write the clips, their manifest and the rest, all of it or nothing; what there is to tell, and what failed.

    Raises UsageError, before anything is written, where there is nothing to cut, where a sound has no length, and where a
    recording is said to be of two groups.
    """
    _check_places(out, rest)
    groups = [_group(table, recording) for recording in recordings]
    pieces = [pieces_of(recording, margin_s, alone=alone) for recording in recordings]
    _refuse_pointless(table, recordings, pieces)
    _refuse_none(table, pieces)
    with ExitStack() as made, Bar(json_lines, before="hours") as bar:
        folder = made.enter_context(made_whole(out, "-o"))
        beside = made.enter_context(made_whole(rest, "--rest")) if rest else None
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
        "overlapped": sum(found.crossed for found in pieces),
        "unknown_with_others": sum(found.none_of_them for found in pieces),
        "short": sum(length < MIN_S for length in lengths),
        "long": sum(length > LONG_S for length in lengths),
        "shortest_s": round(min(lengths), 3),
        "longest_s": round(max(lengths), 3),
        "rest": {"out": str(rest), "files": len(rest_s), "seconds": round(sum(rest_s), 3)} if rest else None,
        "failed": len(written.errors),
    }
    return report, written.errors


def _cut_each(
    recordings: Sequence[Labelled],
    groups: Sequence[str],
    pieces: Sequence[Pieces],
    folder: Path,
    beside: Path | None,
    margin_s: float,
    bar: Bar,
) -> Written:
    """Cut one recording after the other. Raises AudioError where none can be read to its end."""
    written, names = Written(), Names()
    several = any(len(piece.labels) > 1 for found in pieces for piece in found.kept)
    whole, done = sum(recording.seconds for recording in recordings), 0.0
    for recording, group, found in zip(recordings, groups, pieces, strict=True):
        before, path = done, recording.path

        def show(seconds: float, before: float = before, name: str = path.name) -> None:
            bar.show(name, whole, before + seconds, hours=f"{(before + seconds) / 3600:.1f} h")

        parts = [
            _named(names, folder, "+".join(piece.labels) or UNKNOWN, group, path.stem, piece, several)
            for piece in found.kept
        ]
        between = rest_of(recording, margin_s) if beside else []
        parts += [names.part(beside / safe(group), [path.stem], span) for span in between if beside]
        try:
            files = extract(path, parts, show)
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


def _named(names: Names, folder: Path, label: str, group: str, recording: str, piece: Piece, several: bool) -> Part:
    """FOLDER/LABEL/GROUP/`RECORDING SECONDS`, which is read without the manifest as with it; where a clip has several labels
    all lie in FOLDER itself, which is not read without it."""
    span = (piece.start_s, piece.end_s)
    if several:
        return names.part(folder, [label, recording], span)
    return names.part(folder / safe(label) / safe(group), [recording], span)


def tell(report: dict[str, Any], errors: Sequence[AudioError]) -> None:
    """The clips in words."""
    print(
        f"{report['out']}: {counted(report['clips'], 'clip')}, {lasting(report['seconds'])}, of"
        f" {counted(report['recordings'], 'recording')} ({counted(report['groups'], 'group')})"
    )
    width = max(map(len, report["by_label"]))
    for label, clips in report["by_label"].items():
        print(f"  {label:<{width}}{clips:>6}")
    if report["rest"]:
        between = counted(report["rest"]["files"], "stretch", "stretches")
        print(f"{report['rest']['out']}: {between} between them, {lasting(report['rest']['seconds'])}")
        say("listen to the rest before you train with it: what nobody labelled there is learnt as nothing")
    for text in _remarks(report):
        say(text)
    for error in errors:
        say(f"left out: {error}")
    say(f"Next: confit-edge data check {quote(report['out'])}")


def _remarks(report: dict[str, Any]) -> Iterator[str]:
    if report["joined"]:
        yield (
            f"several sounds are heard in {counted(report['joined'], 'clip')}, which have the labels of all, in the column"
            " labels: a model is trained to tell each by itself. --alone leaves them out"
        )
    if report["overlapped"]:
        yield f"left out for --alone: {counted(report['overlapped'], 'sound')} that another overlaps"
    if report["unknown_with_others"]:
        yield f"left out: {counted(report['unknown_with_others'], 'sound')} of {UNKNOWN} in which a labelled one is heard"
    if report["short"]:
        yield (
            f"beware: shorter than {MIN_S:g} s, which training leaves out: {counted(report['short'], 'clip')} (the shortest"
            f" {report['shortest_s']:.3f} s). --margin 0.3 keeps the sound around them"
        )
    if report["long"]:
        yield (
            f"beware: longer than {LONG_S:g} s: {counted(report['long'], 'clip')} (the longest {report['longest_s']:.1f} s)."
            " Training cuts windows of 1 to 1.3 s from them (--window), and each is learnt as the label, pauses too: label single"
            " sounds, or choose a longer window"
        )


def _check_places(out: Path, rest: Path | None) -> None:
    if rest is None:
        return
    inner, outer = (Path(os.path.abspath(place)) for place in (rest, out))
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise UsageError(
            f"--rest {rest}: lies in -o {out} or around it, where it would be taken for a class; name another folder"
        )


def _group(table: Path, recording: Labelled) -> str:
    if len(recording.groups) > 1:
        raise UsageError(
            f"{table}: {recording.path} is of several groups ({listed(sorted(recording.groups))}), and no recording may be in two"
            " splits: give it one"
        )
    name = relative(recording.path.with_suffix(""), table if table.is_dir() else table.parent)
    return next(iter(recording.groups), name.encode(errors="backslashreplace").decode())


def _refuse_none(table: Path, pieces: Sequence[Pieces]) -> None:
    """Raise UsageError where there is nothing to cut."""
    if any(found.kept for found in pieces):
        return
    crossed = sum(found.crossed for found in pieces)
    overlap = f"all its sounds ({crossed}) are overlapped by others, which --alone leaves out"
    raise UsageError(f"{table}: {overlap if crossed else 'no sound is labelled in it'}, so there is no clip to cut")


def _refuse_pointless(table: Path, recordings: Sequence[Labelled], pieces: Sequence[Pieces]) -> None:
    """Raise UsageError on sounds without length."""
    points = [
        f"{sound.label} at {sound.start_s:g} s of {recording.path}"
        for recording, found in zip(recordings, pieces, strict=True)
        for sound in found.pointless
    ]
    if points:
        raise UsageError(
            f"{table}: {listed(points, 1)} has no length: give it an end (in Audacity drag the label's edge over the sound), or"
            " --margin 0.5, which takes so many seconds before and after it"
        )
