"""Manifests: which clips there are, what is heard in each, and which belong together.

A manifest is a CSV, JSONL or Parquet table with the columns

    path    the sound file, relative to the manifest (or absolute)
    label   what is heard in it; or `labels`, joined by a vertical bar, where several things can be heard at once (or nothing
            of interest: empty, or `unknown`)
    group   clips that must not be torn apart by a split: one speaker, one recording, one kit (empty: the clip alone)
    split   train, val or test (empty, or no such column: splits are made when they are needed)

or a folder with one sub-folder per class: CLASS/clip.wav, or CLASS/GROUP/clip.wav.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from confit_edge.data.tables import ManifestError, check_utf8, is_unicode, read_table, relative
from confit_runtime.errors import UsageError
from confit_runtime.files import write_whole
from confit_runtime.names import plain, shown
from confit_runtime.sources.files import SOUND_SUFFIXES, sounds_below

SPLITS = ("train", "val", "test")
UNKNOWN = "unknown"  # the label of what is none of the others, which never fires; however it is spelt

# labels by which the same is often meant
_BACKGROUND = frozenset(
    (
        "ambient",
        "background",
        "background noise",
        "negative",
        "noise",
        "none",
        "nothing",
        "other",
        "others",
        "rest",
        "silence",
    )
)

TIMES = ("start_s", "end_s")  # of a table of sounds within recordings, which is no manifest


@dataclass(frozen=True)
class Clip:
    """One sound file (absolute path), what is heard in it, and the group that holds it together with others."""

    path: Path
    labels: tuple[str, ...]
    group: str
    split: str | None

    @property
    def label(self) -> str:
        """The first label; empty for the clip of a multi-label manifest in which nothing of interest is heard."""
        return self.labels[0] if self.labels else ""

    @property
    def alone(self) -> bool:
        """Whether nobody said what it belongs to: its group is its own path then, from a manifest that may lie elsewhere."""
        return f"/{plain(self.path.as_posix())}".endswith(f"/{self.group.rpartition('../')[2]}")

    @property
    def called_by_group(self) -> bool:
        """Whether its group is its own name, without the ending, and not that of the folder it lies in."""
        name = plain(self.path.with_suffix("").as_posix())
        return f"/{name}".endswith(f"/{self.group}") and plain(self.path.parent.name) != self.group


@dataclass(frozen=True)
class Manifest:
    """Clips in the order of the file they were read from."""

    clips: tuple[Clip, ...]
    source: Path
    multi_label: bool

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def classes(self) -> list[str]:
        """All labels, sorted: index `i` of a score vector is `classes[i]`."""
        return sorted({label for clip in self.clips for label in clip.labels})

    @property
    def ungrouped(self) -> list[str]:
        """The classes that fire of most of whose clips nobody said what they belong to: a speaker, a recording.

        A group of one clip is one, too, but not where it is the clip's own name: a voice gives its name to a clip of each word.
        """
        shared = Counter(clip.group for clip in self.clips)
        alone = [clip for clip in self.clips if clip.alone or (shared[clip.group] == 1 and clip.called_by_group)]
        all_of, alone_of = (Counter(label for clip in some for label in clip.labels) for some in (self.clips, alone))
        return [label for label in self.classes if label != UNKNOWN and 2 * alone_of[label] > all_of[label]]

    @property
    def grouped(self) -> bool:
        """Whether of all that fires somebody said what it belongs to, if not of each clip."""
        return not self.ungrouped

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.source if self.source.is_dir() else self.source.parent

    def select(self, split: str) -> Manifest:
        """Only the clips of `train`, `val` or `test`; possibly none."""
        if split not in SPLITS:
            raise UsageError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        return replace(self, clips=tuple(clip for clip in self.clips if clip.split == split))

    def fingerprint(self) -> str:
        """The sha256 (hex) of which sounds there are, how they are labelled, grouped and split.

        It reads every file, and says the same wherever the files lie, whatever they are called and however the rows are
        ordered. A file that cannot be read counts as one without content.
        """
        rows = sorted(
            json.dumps([_content(clip.path), sorted(clip.labels), clip.group, clip.split]) for clip in self.clips
        )
        return hashlib.sha256("\n".join([f"multi_label={self.multi_label}", *rows]).encode()).hexdigest()


def read_manifest(
    path: str | Path,
    *,
    label_column: str = "label",
    group_column: str = "group",
    split_by: str | None = None,
    alone: bool = False,
) -> Manifest:
    """Read a manifest: a `.csv`, `.jsonl` or `.parquet` file, or a folder with one sub-folder per class.

    `label_column` chooses what is to be told apart and `group_column` what a split keeps together. Where the label is
    the group itself (telling voices apart), `split_by` names the column to keep together instead, such as the word that
    was said; the file's own `split` column, made for another grouping, is then not used. A column called `labels` holds
    several labels joined by a vertical bar (or a list, in JSONL and Parquet); `label` wins where both are there.

    Labels and groups are stripped and brought to Unicode NFC. Files are not opened here: see `load_clips`. A folder
    leaves out hidden files, files that are not sound, and sub-folders with no sound in them; the clips of
    CLASS/GROUP/... are one group whatever their class, and any other clip is a group of its own.

    Raises UsageError for a missing file or column and for a table of times, and ManifestError for everything else: text that
    cannot be parsed, an empty label, an unknown split, fewer than two classes (unless one may stand `alone`), a path listed
    twice (even with equal rows: one of them is a mistake, and nobody but its author can say which).
    """
    source = Path(os.path.abspath(path))
    columns, rows = read_table(source, {"path", label_column, "labels", group_column, split_by, "split"})
    if label_column == "label" and "label" not in columns and "labels" in columns:
        label_column = "labels"
    refuse_times(source, columns)
    check_columns(source, columns, label_column, group_column, split_by)
    keep_together = split_by or (group_column if group_column in columns else None)
    folder = source if source.is_dir() else source.parent

    clips: list[Clip] = []
    seen: dict[Path, tuple[str, Clip]] = {}
    for place, row in rows:
        where = f"{source}, {place}"
        file = Path(os.path.abspath(folder / _path(row.get("path"), where)))
        labels = labels_of(row.get(label_column), label_column, where)
        group = _text(row.get(keep_together), "group", where) if keep_together else ""
        split = None if split_by else _text(row.get("split"), "split", where) or None
        if split is not None and split not in SPLITS:
            raise ManifestError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
        clip = Clip(file, labels, group or _text(relative(file, folder), "path", where), split)
        if file in seen:
            first, other = seen[file]
            what = "twice" if other.labels == labels else f"as {'|'.join(other.labels)!r} and as {'|'.join(labels)!r}"
            cure = "keep one row"
            if not file.exists() and (folder / "|".join(labels)).is_file():
                cure = f"or are the columns path and {label_column} exchanged?"
            raise ManifestError(f"{where}: {relative(file, folder)} is listed {what} (first at {first}); {cure}")
        seen[file] = place, clip
        clips.append(clip)

    manifest = Manifest(tuple(clips), source, multi_label=label_column == "labels")
    if manifest.multi_label:
        _refuse_joined_otherwise(source, seen.values())
    if not clips:
        raise ManifestError(f"{source}: lists no clips")
    if source.is_dir() and set(manifest.classes) <= set(SPLITS):
        raise ManifestError(
            f"{source}: its sub-folders are splits ({', '.join(manifest.classes)}), not classes; write a CSV with the columns"
            " path, label, group and split instead"
        )
    kinds = len(manifest.classes) + any(not clip.labels for clip in clips)  # one label can be told from clips of none
    if not manifest.classes or kinds < (1 if alone else 2):
        only = ", ".join(manifest.classes) or "none"
        raise ManifestError(
            f"{source}: holds one class only ({only}); a classifier needs at least two: add clips of what it is to be"
            " told from, in all splits, with the label unknown, or train with --others FOLDER, of a word with --others words"
            " (--background comes on top)"
        )
    return manifest


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a CSV that `read_manifest` reads back, with paths relative to its folder; all of it, or none of it.

    Raises UsageError on a clip whose path is not UTF-8, and ManifestError where the file cannot be written.
    """
    target = Path(os.path.abspath(path))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_written_columns(manifest.multi_label))
    for clip in manifest.clips:
        name = relative(clip.path, target.parent)
        if not is_unicode(name):
            check_utf8(clip.path)
        table.writerow([name, "|".join(clip.labels), clip.group, clip.split or ""])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text.getvalue().encode())
    except OSError as error:
        raise ManifestError(f"{target}: cannot be written ({error.strerror or error})") from error


def is_written(path: Path) -> bool:
    """Whether a file begins as one that `write_manifest` wrote."""
    with open(path, "rb") as file:
        first = file.readline(100).strip()
    return first in [",".join(_written_columns(several)).encode() for several in (False, True)]


def _written_columns(multi_label: bool) -> list[str]:
    return ["path", "labels" if multi_label else "label", "group", "split"]


def sound_files(place: Path, option: str) -> list[Path]:
    """The sound files of a folder and of those below it, or the one file. Raises UsageError when there are none."""
    if place.is_file():
        return [place]
    if not place.exists():
        raise UsageError(f"{place}: no such file or folder, for {option}")
    files = sounds_below(place)
    if not files:
        raise UsageError(f"{place}: no sound files for {option} there")
    return files


def _content(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def refuse_times(source: Path, columns: Collection[str]) -> None:
    """Raise UsageError on a table of sounds within recordings: each row would stand for all of its recording."""
    if found := [name for name in TIMES if name in columns]:
        as_csv = "" if source.suffix.lower() == ".csv" else ", once it is saved as CSV"
        raise UsageError(
            f"{source}: has the column {found[0]}, as a table of sounds within recordings: `confit-edge data cut"
            f" {quote(str(source.with_suffix('.csv')))} -o FOLDER` makes a clip of each{as_csv} (where each row is a clip"
            " already, take the column out)"
        )


def check_columns(
    source: Path, columns: list[str], label_column: str, group_column: str, split_by: str | None = None
) -> None:
    """Raise UsageError where a column that is named is not there, or is named for two things."""
    present = f"columns: {', '.join(columns)}"
    if label_column == split_by:
        raise UsageError(f"{source}: column {split_by!r} is the label, splits cannot be kept apart by it ({present})")
    if split_by is None and label_column == group_column:
        raise UsageError(
            f"{source}: column {label_column!r} is both label and group, so no class could be in two splits;"
            f" name the column that splits are kept apart by with --split-by ({present})"
        )
    needed = ["path", label_column]
    if split_by is not None or group_column != "group":  # with no `group` column every clip is a group of its own
        needed.append(split_by or group_column)
    option_of = {label_column: "--label-column", group_column: "--group-column", split_by: "--split-by"}
    for name in needed:
        if name not in columns:
            hint = " (or 'labels')" if name == "label" else ""
            cure = f"; name it with {option_of[name]}" if name in option_of else ""
            if len(columns) == 1 and any(mark in columns[0] for mark in ";\t"):
                cure = "; a CSV is parted by commas"
            elif any(Path(column).suffix.lower() in SOUND_SUFFIXES for column in columns):
                cure = "; its first line is a clip: put a line of names above it, such as path,label"
            raise UsageError(f"{source}: there is no column {name!r}{hint} ({present}){cure}")


def _path(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ManifestError(f"{where}: path is {'empty' if value in (None, '') else repr(value)}, expected a file")
    _check_characters(value, "path", where)
    return value


def labels_of(value: object, column: str, where: str) -> tuple[str, ...]:
    """The labels in a cell: one, or in a column called `labels` several, or none, as where `unknown` stands alone.

    Raises ManifestError, with `where` it stands.
    """
    if column != "labels":
        label = _label(value, column, where)
        if not label:
            raise ManifestError(f"{where}: {column} is empty; label the clip or remove the row")
        if "|" in label:
            raise ManifestError(
                f"{where}: {column} {label!r} holds a vertical bar, which joins several labels: call the column `labels`, or"
                " name the class otherwise"
            )
        return (_reserved(label),)
    parts = value if isinstance(value, list) else _text(value, column, where).split("|")
    labels = [_label(part, column, where) for part in parts]
    if any("|" in label for label in labels):
        raise ManifestError(f"{where}: a label holds the vertical bar that joins labels: {labels}")
    several = tuple(dict.fromkeys(_reserved(label) for label in labels if label))
    if UNKNOWN in several and len(several) > 1:
        raise ManifestError(
            f"{where}: {column} {'|'.join(several)!r} holds {UNKNOWN} beside another label, which says that there is none:"
            " take one of them out"
        )
    return () if several == (UNKNOWN,) else several


def _refuse_joined_otherwise(source: Path, rows: Collection[tuple[str, Clip]]) -> None:
    """Raise ManifestError where labels that stand alone elsewhere are joined by commas or semicolons, none by a bar.

    Each set of them would be a class. A comma in a name (`Speech, male`) does not join labels.
    """
    if any(len(clip.labels) > 1 for _, clip in rows):
        return
    alone = {clip.label for _, clip in rows}
    for place, clip in rows:
        for mark in ",;":
            parts = [part.strip() for part in clip.label.split(mark) if part.strip()]
            if len(parts) > 1 and alone.issuperset(parts):
                raise ManifestError(
                    f"{source}, {place}: labels {clip.label!r} is one class, though its parts are labels elsewhere: join"
                    f" labels by a vertical bar ({'|'.join(parts)}), or name the class otherwise"
                )


def _reserved(label: str) -> str:
    return UNKNOWN if label.casefold().strip("_") == UNKNOWN else label


def advice_on_background(classes: Collection[str]) -> str | None:
    """What to say where classes have names by which `unknown` may be meant: they fire like any other. None without any."""
    found = [label for label in classes if label.casefold().replace("_", " ").strip() in _BACKGROUND]
    if not found:
        return None
    fire = "is a class and will fire" if len(found) == 1 else "are classes and will fire"
    return (
        f"{', '.join(map(repr, found))} {fire} as any other does: label what is to stay silent {UNKNOWN!r}, or give its"
        " sound as --background"
    )


def _text(value: object, what: str, where: str) -> str:
    """A cell as text; nothing is empty, and a whole number is written out."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ManifestError(f"{where}: {what} must be text, got {value!r:.60}")
    text = plain(str(value))
    _check_characters(text, what, where)
    return text


def _label(value: object, column: str, where: str) -> str:
    """A label as text, which a model must be able to hold: it is told as it stands, in lines of its own."""
    label = _text(value, column, where)
    if shown(label) != label:
        raise ManifestError(
            f"{where}: {column} {label!r:.60} holds marks that break a line or turn its direction, which are not seen;"
            " rename it"
        )
    return label


def _check_characters(text: str, what: str, where: str) -> None:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ManifestError(f"{where}: {what} {text!r:.60} holds a control character or is not Unicode; rename it")
