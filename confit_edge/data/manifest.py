"""Manifests: which clips there are, what each contains, and which belong together.

A manifest is a CSV, JSONL or Parquet table with the columns

    path    the sound file, relative to the manifest (or absolute)
    label   what the clip contains; or `labels`, joined by a vertical bar, where a clip can contain several sounds at once
            or none of interest (then it is empty, or `unknown`)
    group   clips that must stay in the same split: one speaker, one recording, one kit (empty: the clip alone)
    split   train, val or test (empty, or no such column: splits are made when they are needed)

or a folder with one sub-folder per class: CLASS/clip.wav, or CLASS/GROUP/clip.wav.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from confit_edge.data.tables import ManifestError, check_utf8, csv_text, is_unicode, read_table, relative
from confit_runtime.audio import SOUND_SUFFIXES
from confit_runtime.errors import UsageError
from confit_runtime.files import write_atomic
from confit_runtime.formatting import format_list
from confit_runtime.names import closest_name, escape_controls, normalise
from confit_runtime.sources.files import find_sound_files

SPLITS = ("train", "val", "test")
UNKNOWN = "unknown"  # the label, in any spelling, of sound that is none of the other classes; it never fires

# labels that people often give to what should be `unknown`
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

TIMES = ("start_s", "end_s")  # columns of a table of sounds within recordings, which is not a manifest


@dataclass(frozen=True)
class Clip:
    """One sound file (absolute path), its labels, and the group that it shares with other clips."""

    path: Path
    labels: tuple[str, ...]
    group: str
    split: str | None

    @property
    def label(self) -> str:
        """The first label; empty for a clip of a multi-label manifest that has no label."""
        return self.labels[0] if self.labels else ""

    @property
    def has_no_group(self) -> bool:
        """Whether nobody gave it a group: its group is then its own path, relative to a manifest that may be elsewhere."""
        return f"/{normalise(self.path.as_posix())}".endswith(f"/{self.group.rpartition('../')[2]}")

    @property
    def is_named_by_group(self) -> bool:
        """Whether its group is its own file name without the suffix, and not the name of the folder it is in."""
        name = normalise(self.path.with_suffix("").as_posix())
        return f"/{name}".endswith(f"/{self.group}") and normalise(self.path.parent.name) != self.group


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
        """The classes, other than `unknown`, most of whose clips have no group that names a speaker or a recording.

        A group of a single clip counts as a group, unless it is the clip's own file name. (Clips named after their speaker,
        one for each word, share that name and so form a group of several clips.)
        """
        shared = Counter(clip.group for clip in self.clips)
        alone = [
            clip for clip in self.clips if clip.has_no_group or (shared[clip.group] == 1 and clip.is_named_by_group)
        ]
        all_of, alone_of = (Counter(label for clip in some for label in clip.labels) for some in (self.clips, alone))
        return [label for label in self.classes if label != UNKNOWN and 2 * alone_of[label] > all_of[label]]

    @property
    def grouped(self) -> bool:
        """Whether every class that fires is grouped, even if single clips are not."""
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
        """The sha256 (hex) of the sounds and of their labels, groups and splits.

        It reads every file. Where the files are, what they are called and the order of the rows make no difference. A file
        that cannot be read counts as an empty one.
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
    min_classes: int = 2,
) -> Manifest:
    """Read a manifest: a `.csv`, `.jsonl` or `.parquet` file, or a folder with one sub-folder per class.

    `label_column` names the column of classes, and `group_column` the column whose clips a split keeps together. Where
    the label is the group itself (as when the classes are voices), `split_by` names the column to keep together instead,
    such as the spoken word; the file's own `split` column was made for another grouping and is then ignored. A column
    called `labels` holds several labels joined by a vertical bar (or a list, in JSONL and Parquet); `label` takes
    precedence where both are present.

    Labels and groups are stripped and normalised to Unicode NFC. Files are not opened here: see `load_clips`. When
    reading a folder, hidden files, files that are not sound and sub-folders without sound are skipped; the clips of
    CLASS/GROUP/... form one group whatever their class, and any other clip is a group of its own.

    Raises UsageError for a missing file or column and for a table of times, and ManifestError for everything else: text that
    cannot be parsed, an empty label, an unknown split, fewer than `min_classes` classes, or a path listed
    twice (even with equal rows: one of them is a mistake, and only its author knows which).
    """
    source = Path(os.path.abspath(path))
    columns, rows = read_table(source, {"path", label_column, "labels", group_column, split_by, "split"})
    if label_column == "label" and "label" not in columns and "labels" in columns:
        label_column = "labels"
    _check_not_times(source, columns)
    _check_columns(source, columns, label_column, group_column, split_by)
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
                cure = f"or are the columns path and {label_column} swapped?"
            raise ManifestError(f"{where}: {relative(file, folder)} is listed {what} (first at {first}); {cure}")
        seen[file] = place, clip
        clips.append(clip)

    manifest = Manifest(tuple(clips), source, multi_label=label_column == "labels")
    if manifest.multi_label:
        _check_label_separators(source, seen.values())
    if not clips:
        raise ManifestError(f"{source}: lists no clips")
    if source.is_dir() and set(manifest.classes) <= set(SPLITS):
        raise ManifestError(
            f"{source}: its sub-folders are splits ({', '.join(manifest.classes)}), not classes; write a CSV with the columns"
            " path, label, group and split instead"
        )
    kinds = len(manifest.classes) + any(not clip.labels for clip in clips)  # no label counts as a kind
    if kinds < min_classes or (min_classes and not manifest.classes):
        only = ", ".join(manifest.classes) or "none"
        inside = _folders_of_groups(clips, source) if source.is_dir() else []
        give = (
            f"if {format_list(inside, 3)} are the classes, give {source / only}; otherwise " if len(inside) > 1 else ""
        )
        raise ManifestError(
            f"{source}: has only one class ({only}); a classifier needs at least two: {give}add clips of other sounds, in"
            " all splits, labelled unknown, or train with --others FOLDER (for a word: --others words); --background alone is"
            " not enough"
        )
    return manifest


def _folders_of_groups(clips: Collection[Clip], source: Path) -> list[str]:
    """The names of the folders within the class folders of `source`, sorted."""
    return sorted({parts[1] for clip in clips if len(parts := clip.path.relative_to(source).parts) > 2})


def write_manifest(manifest: Manifest, path: str | Path, *, overwrite: bool = True) -> None:
    """Write a CSV that `read_manifest` can read back, with paths relative to its folder. It is written whole or not at all.

    Raises UsageError for a clip whose path is not UTF-8 and, without `overwrite`, if the file exists with other contents;
    ManifestError if it cannot be written.
    """
    target = Path(os.path.abspath(path))
    column = "labels" if manifest.multi_label else "label"
    rows = []
    for clip in manifest.clips:
        name = relative(clip.path, target.parent)
        if not is_unicode(name):
            check_utf8(clip.path)
        rows.append({"path": name, column: "|".join(clip.labels), "group": clip.group, "split": clip.split})
    data = csv_text(rows).encode()
    if not overwrite and target.is_file() and target.read_bytes() != data:
        raise UsageError(f"{path}: already exists, with other contents; choose another -o, or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data)
    except OSError as error:
        raise ManifestError(f"{target}: cannot be written ({error.strerror or error})") from error


def sound_files(place: Path, option: str, names: Sequence[str] = ()) -> list[Path]:
    """The sound files in a folder and its sub-folders, or the one file.

    Raises UsageError when there are none, with the nearest name among its neighbours and the `names` that `option` also takes.
    """
    if place.is_file():
        return [place]
    if not place.exists():
        there = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
        near = closest_name(place.name, [*names, *sorted(there)])
        hint = "" if near is None else f"; did you mean {near if near in names else place.with_name(near)}?"
        raise UsageError(f"{place}: no such file or folder (for {option}){hint}")
    files = find_sound_files(place)
    if not files:
        raise UsageError(f"{place}: has no sound files for {option}")
    return files


def _content(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _check_not_times(source: Path, columns: Collection[str]) -> None:
    """Raise UsageError for a table of sounds within recordings: each row would be read as its whole recording."""
    if found := [name for name in TIMES if name in columns]:
        as_csv = "" if source.suffix.lower() == ".csv" else "save it as CSV; then "
        raise UsageError(
            f"{source}: has the column {found[0]}, like a table of sounds within recordings: {as_csv}`confit-edge data cut"
            f" {quote(str(source.with_suffix('.csv')))} -o FOLDER` makes a clip of each sound (if each row is already a clip,"
            " remove the column)"
        )


def _check_columns(
    source: Path, columns: list[str], label_column: str, group_column: str, split_by: str | None
) -> None:
    """Raise UsageError where a named column is missing, or is named for two purposes."""
    present = f"columns: {', '.join(columns)}"
    if label_column == split_by:
        raise UsageError(f"{source}: column {split_by!r} is the label, so --split-by cannot use it too ({present})")
    if split_by is None and label_column == group_column:
        raise UsageError(
            f"{source}: column {label_column!r} is both label and group, so no class could be in two splits;"
            f" name the column to split by with --split-by ({present})"
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
                cure = "; separate the cells of a CSV by commas"
            elif any(Path(column).suffix.lower() in SOUND_SUFFIXES for column in columns):
                cure = "; its first line is a clip: add a header line above it, such as path,label"
            raise UsageError(f"{source}: there is no column {name!r}{hint} ({present}){cure}")


def _path(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ManifestError(f"{where}: path is {'empty' if value in (None, '') else repr(value)}, expected a file")
    _check_characters(value, "path", where)
    return value


def labels_of(value: object, column: str, where: str) -> tuple[str, ...]:
    """The labels in a cell: exactly one, but any number in a column called `labels` (`unknown` alone counts as none).

    Raises ManifestError, which names the place of the cell (`where`).
    """
    if column != "labels":
        label = _label(value, column, where)
        if not label:
            raise ManifestError(f"{where}: {column} is empty; label the clip or remove the row")
        if "|" in label:
            raise ManifestError(
                f"{where}: {column} {label!r} contains a vertical bar, which joins several labels: call the column `labels`, or"
                " rename the class"
            )
        return (_normalise_unknown(label),)
    parts = value if isinstance(value, list) else _text(value, column, where).split("|")
    labels = [_label(part, column, where) for part in parts]
    if any("|" in label for label in labels):
        raise ManifestError(f"{where}: a label contains a vertical bar, which joins labels: {labels}")
    several = tuple(dict.fromkeys(_normalise_unknown(label) for label in labels if label))
    if UNKNOWN in several and len(several) > 1:
        raise ManifestError(
            f"{where}: {column} {'|'.join(several)!r} combines {UNKNOWN}, which means no label, with another label: remove one of"
            " them"
        )
    return () if several == (UNKNOWN,) else several


def _check_label_separators(source: Path, rows: Collection[tuple[str, Clip]]) -> None:
    """Raise ManifestError where commas or semicolons join labels that also occur alone, and no row uses the vertical bar.

    Each such combination would become a class. A comma within a name (`Speech, male`) does not join labels.
    """
    if any(len(clip.labels) > 1 for _, clip in rows):
        return
    alone = {clip.label for _, clip in rows}
    for place, clip in rows:
        for mark in ",;":
            parts = [part.strip() for part in clip.label.split(mark) if part.strip()]
            if len(parts) > 1 and alone.issuperset(parts):
                raise ManifestError(
                    f"{source}, {place}: labels {clip.label!r} is read as one class, but its parts are labels elsewhere: join"
                    f" labels by a vertical bar ({'|'.join(parts)}), or rename the class"
                )


def _normalise_unknown(label: str) -> str:
    return UNKNOWN if label.casefold().strip("_") == UNKNOWN else label


def advice_on_background(classes: Collection[str]) -> str | None:
    """Advice about classes whose names suggest that `unknown` was meant: they fire like any other. None if there are none."""
    found = [label for label in classes if label.casefold().replace("_", " ").strip() in _BACKGROUND]
    if not found:
        return None
    fire = "is a class and will fire" if len(found) == 1 else "are classes and will fire"
    return (
        f"{', '.join(map(repr, found))} {fire} like any other: label sounds that should not fire {UNKNOWN!r}, or give them as"
        " --background"
    )


def _text(value: object, what: str, where: str) -> str:
    """A cell as text: an absent value becomes the empty string, and a whole number is written out."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ManifestError(f"{where}: {what} must be text, got {value!r:.60}")
    text = normalise(str(value))
    _check_characters(text, what, where)
    return text


def _label(value: object, column: str, where: str) -> str:
    """A label as text. A model stores it and prints it as it is, on its own lines, so hidden marks are refused."""
    label = _text(value, column, where)
    if escape_controls(label) != label:
        raise ManifestError(
            f"{where}: {column} {label!r:.60} contains invisible marks that break a line or change its direction;"
            " rename it"
        )
    return label


def _check_characters(text: str, what: str, where: str) -> None:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ManifestError(f"{where}: {what} {text!r:.60} contains a control character or is not Unicode; rename it")
