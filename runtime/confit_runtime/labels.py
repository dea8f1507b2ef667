"""Labelled recordings: which sounds a long recording contains and when, from a table or from Audacity label files."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from confit_runtime.audio import sound_seconds
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.names import normalise
from confit_runtime.scoring import SoundEvent
from confit_runtime.sources import find_clips

COLUMNS = ("path", "start_s", "end_s", "label")
LABELS_COLUMN = "labels"  # replaces the last column in manifests of overlapping sounds
GROUP_COLUMN = "group"  # optional: keeps recordings together, for example those of one day or one place

_SLACK_S = 0.1  # by which a label may end after the sound does: lengths may be estimates

log = logging.getLogger(__name__)


class LabelError(ConfitError):
    """A label file or table cannot be read; the message names the file and the line."""


@dataclass
class LabelledRecording:
    """A sound file, its length, the sounds in it ordered by time, and the groups that its rows name."""

    path: Path
    seconds: float
    sounds: list[SoundEvent] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)


def read_labelled(source: Path) -> list[LabelledRecording]:
    """Read labelled recordings from a CSV, a folder, or one sound file.

    A CSV has the columns path (relative to the CSV), start_s, end_s and label (or labels). A recording without any
    sounds is a row whose other columns are empty; if no recording has any, the CSV may consist of the column path.
    Labels joined with a vertical bar count as one sound each, as in manifests.

    For a folder or a single sound file, the labels of `name.wav` are in `name.txt` as Audacity exports them: start,
    end and label separated by tabs, in seconds. A recording without such a file is treated as containing no sounds; a
    warning logs how many there are.

    Raises UsageError if there is nothing to read or two recordings share a label file, AudioError if a file is not
    sound, and LabelError, naming the line, if a line cannot be read, lies past the end of its recording, or repeats
    another.
    """
    if not source.exists():
        raise UsageError(f"{source}: no such label table, folder or sound file")
    if source.suffix.lower() == ".csv":
        found = _read_csv(source)
    else:
        found = [_read_audacity(path) for path in find_clips([source])]
        _check_unshared_label_files(found)
        if not any(recording.sounds for recording in found):
            tables = [table for table in sorted(source.glob("*.csv")) if COLUMNS[1] in csv_columns(table)]
            hint = f"; to use a CSV, pass the file itself: {tables[0]}" if tables else ""
            raise UsageError(
                f"{source}: no label files found (name.txt next to name.wav, as Audacity exports them){hint}"
            )
        if bare := [recording.path for recording in found if not has_label_file(recording.path)]:
            log.warning(
                "%s: %d of %d recordings have no label file (first: %s); treating them as having none of the sounds",
                *(source, len(bare), len(found), bare[0].with_suffix(".txt").name),
            )
    for recording in found:
        recording.sounds.sort(key=lambda heard: (heard.start_s, heard.end_s, heard.label))
        for one, other in pairwise(recording.sounds):
            if one == other:
                raise LabelError(
                    f"{source}: {one.label} from {one.start_s:g} s to {one.end_s:g} s of {recording.path} is listed"
                    " twice: keep one of the two"
                )
    return found


def csv_columns(source: Path) -> list[str]:
    """The column names of a CSV."""
    text = source.read_text(encoding="utf-8-sig", errors="replace")
    return [cell.strip() for cell in next(csv.reader(text.splitlines()), [])]


def _read_csv(source: Path) -> list[LabelledRecording]:
    rows = csv.reader(io.StringIO(read_utf8(source), newline=""))
    header = [cell.strip() for cell in next(rows, [])]
    columns = (*COLUMNS[:-1], LABELS_COLUMN) if LABELS_COLUMN in header and COLUMNS[-1] not in header else COLUMNS
    only_paths = set(header) - {GROUP_COLUMN} == {"path"}  # of recordings without sounds
    if not only_paths and (missing := [name for name in columns if name not in header]):
        hint = (
            "; columns must be separated by commas"
            if len(header) == 1 and any(mark in header[0] for mark in ";\t")
            else ""
        )
        raise UsageError(
            f"{source}: has no column {missing[0]} (needed: {', '.join(COLUMNS)}; found:"
            f" {', '.join(header) or 'none'}){hint}"
        )
    at = {name: header.index(name) for name in columns if name in header}
    group_at = header.index(GROUP_COLUMN) if GROUP_COLUMN in header else None
    found: dict[str, LabelledRecording] = {}
    for cells in rows:
        where = f"{source}, line {rows.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            raise LabelError(f"{where}: has {len(cells)} cells, but the header has {len(header)}")
        cells += [""] * (len(header) - len(cells))  # for a recording without sounds, spreadsheets write only the path
        name, start, end, label = (cells[at[name]].strip() if name in at else "" for name in columns)
        if not name:
            raise LabelError(f"{where}: path is empty")
        path = source.parent / name
        real = os.path.realpath(path)  # one file may be spelt in several ways
        sounds = _parse_sounds(start, end, label, where) if start or end or label else []
        if real not in found:
            found[real] = LabelledRecording(path, sound_seconds(path))
        _add_sounds(found[real], sounds, where)
        if group_at is not None and (group := normalise(cells[group_at])):
            found[real].groups.add(group)
    if not found:
        raise LabelError(f"{source}: lists no recordings")
    return list(found.values())


def _read_audacity(sound: Path) -> LabelledRecording:
    recording, labels = LabelledRecording(sound, sound_seconds(sound)), _audacity_label_file(sound)
    if labels.is_file():
        for number, line in enumerate(read_utf8(labels).splitlines(), start=1):
            if not line.strip() or line.startswith("\\"):  # a frequency range, on a line of its own
                continue
            cells = line.split("\t", 2)
            if len(cells) < 3:
                raise LabelError(f"{labels}, line {number}: expected start, end and label, separated by tabs")
            start, end, label = (cell.strip() for cell in cells)
            where = f"{labels}, line {number}"
            _add_sounds(recording, _parse_sounds(start, end, label, where), where)
    return recording


def _check_unshared_label_files(found: Sequence[LabelledRecording]) -> None:
    """Raise UsageError if two recordings share one label file, such as kitchen.wav and kitchen.flac."""
    first: dict[Path, Path] = {}
    for path in (recording.path for recording in found):
        labels = _audacity_label_file(path)
        if labels.is_file() and labels in first:
            raise UsageError(
                f"{first[labels]} and {path} share the label file {labels}: keep only one of them, so that it"
                " counts once"
            )
        first[labels] = path


def has_label_file(sound: Path) -> bool:
    """Whether labels as Audacity exports them are next to a sound file."""
    return _audacity_label_file(sound).is_file()


def _audacity_label_file(sound: Path) -> Path:
    return sound.with_suffix(".txt")


def _parse_sounds(start: str, end: str, joined: str, where: str) -> list[SoundEvent]:
    """Return one sound for each label of a row; at least one."""
    try:
        start_s, end_s = float(start), float(end)
    except ValueError as error:
        raise LabelError(f"{where}: start and end must be in seconds; they are {start!r} and {end!r}") from error
    if not (0 <= start_s <= end_s and math.isfinite(end_s)):
        raise LabelError(f"{where}: a sound cannot last from {start} s to {end} s")
    labels = dict.fromkeys(label for part in joined.split("|") if (label := normalise(part)))  # as in a manifest
    if not labels:
        raise LabelError(f"{where}: label is empty")
    return [SoundEvent(label, start_s, end_s) for label in labels]


def _add_sounds(recording: LabelledRecording, sounds: Sequence[SoundEvent], where: str) -> None:
    for heard in sounds:
        if heard.end_s > recording.seconds + _SLACK_S:
            raise LabelError(
                f"{where}: ends at {heard.end_s:g} s, past the end of {recording.path}, which lasts {recording.seconds:.2f} s"
            )
    recording.sounds += sounds


def read_utf8(source: Path, fault: type[ConfitError] = LabelError) -> str:
    """The text of a file that a person wrote. Raises `fault` where it is not UTF-8."""
    try:
        return source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fault(f"{source}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
