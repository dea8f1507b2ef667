"""Data sets in the forms of the Hugging Face `datasets` library: on the hub, from `save_to_disk`, and audio folders.

`datasets` never decodes sound here (that would need torchcodec): the bytes are written out unchanged, and soundfile reads
them like any other clip. An audio folder is a table and files, which are read here without the library.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from confit_edge.data.corpora.base import Fetched
from confit_edge.data.cut import atomic_folder, is_taken
from confit_edge.data.manifest import Clip, Manifest, labels_of, sound_files
from confit_edge.data.splits import ungrouped_warning, without_leaks
from confit_edge.data.tables import read_table, relative
from confit_runtime.audio import SOUND_SUFFIXES
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import name_file_in_errors
from confit_runtime.formatting import format_count

_SPLIT_OF = {
    "train": "train",
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "eval", "evaluation"), "test"),
}


def fetch_hub(
    source: str,
    out: Path,
    *,
    subset: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> Fetched:
    """The manifest (to be written to `out`) of a data set on the hub, by name, or in a local folder.

    Clips stored as bytes are written, all or none, to a new folder next to the manifest and named like it; clips stored as
    files stay where they are. The label is the column `label` or `labels`, or else the only ClassLabel column; a column of
    lists gives a multi-label manifest. Splits with names other than train, validation or test are left out, and so are
    files that an audio folder lists but does not contain. If the set has only train, splits are made when they are needed.
    Raises UsageError if a local folder or a column is missing or the new folder is not empty, and ConfitError if the set
    cannot be loaded.
    """
    folder = Path(source)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    notes: list[str] = []
    if folder.is_dir() and not saved:
        clips, multi_label = _audio_folder(folder, label_column, group_column)
        within = [clip for clip in clips if clip.split is not None]
        if within and len(within) < len(clips):
            notes.append(
                f"{format_count(len(clips) - len(within), 'clip is', 'clips are')} left out: not in a folder train, validation or"
                " test"
            )
            clips = within
        if absent := [clip.path for clip in clips if not clip.path.is_file()]:
            if len(absent) == len(clips):
                raise ConfitError(f"hf:{source}: none of the listed clips exists, such as {absent[0]}")
            clips_are = format_count(len(absent), "listed clip is", "listed clips are")
            notes.append(f"{clips_are} missing and left out, such as {absent[0]}")
            clips = [clip for clip in clips if clip.path.is_file()]
    else:
        if not folder.is_dir():  # on the hub, whose sets store clips as bytes
            if source.startswith((".", "/", "~")):  # no name on the hub begins like this
                raise UsageError(f"hf:{source}: no such folder")
            _check_free(out.with_suffix(""))
        parts = _load(source, subset)
        notes = [
            f"split {name!r} is left out: it is not train, validation or test" for name in parts.keys() - _SPLIT_OF
        ]
        kept = {name: part for name, part in parts.items() if name in _SPLIT_OF}
        if not kept:
            raise ConfitError(f"hf:{source}: none of its splits ({', '.join(parts)}) is train, validation or test")
        columns = _columns(source, next(iter(kept.values())).features, label_column, group_column)
        clips = []
        with ExitStack() as at_the_end:
            written = _Written(out, at_the_end)
            for name, part in kept.items():
                found = list(_clips(source, name, part, columns, written, split=len(kept) > 1))
                if missing := len(part) - len(found):
                    notes.append(f"split {name!r}: {missing} of {len(part)} clips left out, because they have no label")
                clips += found
            if not clips:
                raise ConfitError(f"hf:{source}: no clip has a label in the column {columns[1]!r}")
        multi_label = _inner(next(iter(kept.values())).features[columns[1]]) is not None
    manifest = Manifest(tuple(clips), out, multi_label)
    if ungrouped_text := ungrouped_warning(manifest):
        notes.append(f"{ungrouped_text}: name the column of speakers or recordings with --group-column")
    if any(clip.split for clip in clips):
        manifest, changed = without_leaks(manifest)
        notes += changed
    return Fetched(manifest, folder, notes)


class _Written:
    """The folder for clips that a set stores as bytes, named like the manifest `out`.

    It is made for the first such clip, whole or not at all, and must not exist or be empty.
    """

    def __init__(self, out: Path, at_the_end: ExitStack) -> None:
        self.folder = out.with_suffix("")
        self._whole = atomic_folder(self.folder, f"-o {out}: the folder for its clips")
        self._at_the_end = at_the_end
        self._made: Path | None = None

    def add(self, name: str, data: bytes) -> Path:
        """Write a clip and return its final path. Raises UsageError if the folder is not empty."""
        if self._made is None:
            _check_free(self.folder)
            self._made = self._at_the_end.enter_context(self._whole)
        path = self._made / name
        path.parent.mkdir(exist_ok=True)
        with name_file_in_errors(path):
            path.write_bytes(data)
        return self.folder / name


def _check_free(folder: Path) -> None:
    """Raise UsageError if `folder` cannot become a new folder of clips because it is not empty."""
    if is_taken(folder):
        raise UsageError(
            f"{folder}: is not empty, but the clips are written there; remove it if it holds the clips of an earlier fetch,"
            " or write another manifest with -o"
        )


def _audio_folder(folder: Path, label_column: str | None, group_column: str | None) -> tuple[list[Clip], bool]:
    """The clips of a folder with metadata.csv, .jsonl or .parquet (in it, or in each split), or of SPLIT/CLASS/."""
    tables = [
        path
        for path in sorted([*folder.glob("metadata.*"), *folder.glob("*/metadata.*")])
        if path.suffix.lower() in (".csv", ".jsonl", ".parquet")
    ]
    if not tables:
        return [_by_folder(path, folder) for path in sound_files(folder, "hf:")], False
    clips: list[Clip] = []
    for table in tables:
        columns, rows = read_table(table, {"file_name", "label", "labels", label_column, group_column or "group"})
        label = label_column or next((name for name in ("label", "labels") if name in columns), None)
        if label is None:
            raise UsageError(f"{table}: which column holds the label? Name it with --label-column ({_list(columns)})")
        for name in ("file_name", label, *([group_column] if group_column else [])):
            if name not in columns:
                raise UsageError(f"{table}: there is no column {name!r} ({_list(columns)})")
        for place, row in rows:
            path = (table.parent / str(row["file_name"])).resolve()
            group = str(row.get(group_column or "group") or relative(path, folder))
            clips.append(Clip(path, labels_of(row[label], label, f"{table}, {place}"), group, _split(path, folder)))
    return clips, label == "labels"


def _by_folder(path: Path, folder: Path) -> Clip:
    """The clip at SPLIT/CLASS/clip.wav or SPLIT/CLASS/GROUP/clip.wav."""
    name, split = relative(path, folder), _split(path.resolve(), folder)
    parts = name.split("/")
    if split is None or len(parts) < 3:
        raise UsageError(
            f"{path}: has no split; expected SPLIT/CLASS/clip.wav or a metadata.csv (a folder of CLASS/clip.wav needs no"
            " fetch: give it in place of a manifest)"
        )
    return Clip(path.resolve(), (parts[1],), parts[2] if len(parts) > 3 else name, split)


def _split(path: Path, folder: Path) -> str | None:
    return _SPLIT_OF.get(relative(path, folder.resolve()).split("/")[0])


def _load(source: str, subset: str | None) -> dict[str, Any]:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError as error:
        raise UsageError(f"hf:{source}: needs {error.name}: pip install 'confit-edge[hub]'") from error

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_from_disk(source) if Path(source).is_dir() else datasets.load_dataset(source, subset)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ConfitError(f"hf:{source}: cannot be loaded ({str(error).splitlines()[0]})") from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _columns(source: str, features: Any, label: str | None, group: str | None) -> tuple[str, str, str | None]:
    """The names of the sound, label and group columns (group: None if there is none). Raises UsageError."""
    from datasets import Audio

    audio = next((name for name, feature in features.items() if isinstance(feature, Audio)), None)
    if audio is None:
        raise UsageError(f"hf:{source}: has no audio column ({_list(features)})")
    for name in (label, group):
        if name is not None and name not in features:
            raise UsageError(f"hf:{source}: there is no column {name!r} ({_list(features)})")
    return audio, label or _label_column(source, features), group or ("group" if "group" in features else None)


def _clips(
    source: str, name: str, part: Any, columns: tuple[str, str, str | None], written: _Written, *, split: bool
) -> Iterator[Clip]:
    """The labelled clips of the part `name`, with its split if `split`; a clip without a group is its own group."""
    from datasets import Audio

    audio, label, group = columns
    needed = list(
        dict.fromkeys(column for column in columns if column is not None)
    )  # any other audio column would be decoded
    for number, row in enumerate(part.select_columns(needed).cast_column(audio, Audio(decode=False))):
        if (names := _label_names(row[label], part.features[label])) is not None:
            grouped = group is not None and row[group] not in (None, "")
            path = _sound(row[audio], written, f"{name}/{number:06d}", source)
            yield Clip(
                path,
                names,
                str(row[group]) if grouped else relative(path, written.folder),
                _SPLIT_OF[name] if split else None,
            )


def _label_column(source: str, features: Any) -> str:
    from datasets import ClassLabel

    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    named = [name for name in ("label", "labels") if name in features]
    if not named and len(classes) != 1:
        raise UsageError(f"hf:{source}: which column holds the label? Name it with --label-column ({_list(features)})")
    return [*named, *classes][0]


def _list(columns: Any) -> str:
    return f"columns: {', '.join(columns)}"


def _inner(feature: Any) -> Any:
    """The feature of the items in a column of lists; None for a column of single values."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)


def _label_names(value: Any, feature: Any) -> tuple[str, ...] | None:
    """The labels in a cell; None if it is not labelled, which a ClassLabel column marks by -1."""
    inner = _inner(feature)
    names = getattr(inner or feature, "names", None)
    values = [value] if inner is None else value
    if values is None or any(item in (None, "") or (names and item < 0) for item in values):
        return None
    return tuple(dict.fromkeys(names[item] if names else str(item) for item in values))


def _sound(cell: dict[str, Any], written: _Written, stem: str, source: str) -> Path:
    """The file of an audio cell: the one it names, or a new one with its bytes, called `stem` plus a suffix."""
    import soundfile

    name, data = cell["path"], cell["bytes"]
    if data is None:
        if not name or not Path(name).is_file():
            raise ConfitError(
                f"hf:{source}: the file of the clip {name} does not exist, and the set does not hold its sound"
            )
        return Path(name).resolve()
    suffix = Path(name or "").suffix.lower()
    if suffix not in SOUND_SUFFIXES:
        try:
            suffix = f".{soundfile.info(io.BytesIO(data)).format.lower()}"
        except RuntimeError as error:
            raise ConfitError(f"hf:{source}: a clip ({name}) cannot be read as sound ({error})") from error
    return written.add(f"{stem}{suffix}", data)
