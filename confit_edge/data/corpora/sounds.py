"""Corpora of music and of everyday sounds."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from confit_edge.data.corpora.base import KnownCorpus, Wanted, fold_split
from confit_edge.data.manifest import Clip
from confit_runtime.errors import ConfitError

_GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")


def _gtzan(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """The 930 recordings of the fault-filtered split, where no artist is in two parts and no recording occurs twice.

    Kereliuk, Sturm and Larsen 2015 (IEEE Trans. Multimedia 17, 2059), after Sturm's list of the faults of GTZAN.
    """
    listing = files("confit_edge.data.corpora").joinpath("gtzan_filtered.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(listing.splitlines()):
        for number in row["recordings"].split():
            stem = f"{row['genre']}.{int(number):05d}"
            folder = tree / row["genre"]
            path = next(
                (folder / f"{stem}{end}" for end in (".wav", ".au") if (folder / f"{stem}{end}").is_file()), None
            )
            yield Clip(path or folder / f"{stem}.wav", (row["genre"],), stem, row["split"])


def _esc50(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """Groups are the recordings that clips were cut from (`src_file`); the folds keep them whole."""
    for row in _table(tree / "meta" / "esc50.csv", ("filename", "fold", "category", "src_file")):
        yield Clip(
            tree / "audio" / row["filename"],
            (row["category"],),
            row["src_file"],
            fold_split(int(row["fold"]), wanted, 5),
        )


def _urbansound8k(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """Groups are the recordings that clips were cut from (`fsID`); the folds keep them whole.

    On Kaggle the table and the folders of folds are side by side, without `metadata/` and `audio/`.
    """
    audio = tree / "audio" if (tree / "audio" / "fold1").is_dir() else tree
    listing = tree / "metadata" / "UrbanSound8K.csv"
    listing = listing if listing.is_file() else tree / listing.name
    for row in _table(listing, ("slice_file_name", "fsID", "fold", "class")):
        path = audio / f"fold{row['fold']}" / row["slice_file_name"]
        yield Clip(path, (row["class"],), row["fsID"], fold_split(int(row["fold"]), wanted, 10))


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if absent := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ConfitError(
                f"{path}: there is no column {absent[0]!r} (columns: {', '.join(reader.fieldnames or ())})"
            )
        for row in reader:
            if not row["fold"].isdigit():
                raise ConfitError(f"{path}, line {reader.line_num}: fold {row['fold']!r} is not a number")
            yield row


GTZAN = KnownCorpus(
    "gtzan",
    "ten genres of music, the fault-filtered split (930 of the 1,000 recordings)",
    "https://www.kaggle.com/datasets/andradaolteanu/gtzan-dataset-music-genre-classification",
    "genres/blues/blues.00000.wav (or .au)",
    tuple((f"{genre}/{genre}.000*",) for genre in _GENRES),
    _gtzan,
    clips=930,
    classes=10,
    splits={"train": 443, "val": 197, "test": 290},
    damaged=("jazz.00054.wav",),
)
ESC50 = KnownCorpus(
    "esc50",
    "fifty sounds, the published five folds",
    "https://github.com/karolpiczak/ESC-50",
    "meta/esc50.csv and audio/1-100032-A-0.wav",
    (("meta/esc50.csv",), ("audio",)),
    _esc50,
    clips=2000,
    classes=50,
    folds=5,
)
URBANSOUND8K = KnownCorpus(
    "urbansound8k",
    "ten street sounds, the published ten folds",
    "https://urbansounddataset.weebly.com/urbansound8k.html",
    "metadata/UrbanSound8K.csv and audio/fold1/7061-6-0-0.wav (metadata/ and audio/ may be left out, as on Kaggle)",
    (("metadata/UrbanSound8K.csv", "UrbanSound8K.csv"), ("audio/fold1", "fold1")),
    _urbansound8k,
    clips=8732,
    classes=10,
    folds=10,
)
