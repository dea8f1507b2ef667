"""Corpora of spoken words."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from confit_edge.data.corpora.base import KnownCorpus, Wanted, visible
from confit_edge.data.manifest import SPLITS, UNKNOWN, Clip
from confit_runtime.audio import read_audio
from confit_runtime.errors import ConfitError

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
_NOISE = "_background_noise_"
# the noise recordings, of six, that are kept out of training: silence is split by recording, as words are by speaker
_HELD_NOISE = {"exercise_bike": "val", "running_tap": "test"}


def _speech_commands(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """All 35 words. The part of a clip's name before `_nohash_` is its speaker; the published lists never split a speaker."""
    split_of = {
        name: split
        for split, listing in (("val", "validation_list.txt"), ("test", "testing_list.txt"))
        for name in (tree / listing).read_text(encoding="utf-8").split()
    }
    there = [f"{path.parent.name}/{path.name}" for path in sorted(visible(tree, "[a-z]*/*.wav"))]
    for name in dict.fromkeys([*there, *split_of]):
        path = tree / name
        yield Clip(path, (path.parent.name,), path.name.split("_nohash_")[0], split_of.get(name, "train"))


def _twelve_commands(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """Ten commands; `unknown`, drawn from the other 25 words; and `silence`, cut from the noise recordings.

    In each split, `unknown` and `silence` each have as many clips as a command has on average. The draw is always the same.
    """
    clips = [clip for clip in _speech_commands(tree, wanted) if clip.path.is_file()]
    yield from (clip for clip in clips if clip.label in COMMANDS)
    rng = np.random.default_rng(0)
    for split in SPLITS:
        others = [clip for clip in clips if clip.split == split and clip.label not in COMMANDS]
        count = round(sum(clip.split == split for clip in clips if clip.label in COMMANDS) / len(COMMANDS))
        for row in sorted(rng.permutation(len(others))[:count]):
            yield Clip(others[row].path, (UNKNOWN,), others[row].group, split)
        yield from _silence(tree, wanted.made / "silence", split, count, rng)


def _silence(tree: Path, folder: Path, split: str, count: int, rng: np.random.Generator) -> Iterator[Clip]:
    """`count` clips of one second from the split's noise recordings, each at a random level, written to `folder`."""
    import soundfile

    found = sorted(visible(tree / _NOISE, "*.wav"))
    recordings = [path for path in found if _HELD_NOISE.get(path.stem, "train") == split]
    if not recordings:
        raise ConfitError(f"{tree / _NOISE}: no noise recording for {split}; expected the six of Speech Commands v2")
    folder.mkdir(parents=True, exist_ok=True)
    sounds = [read_audio(path) for path in recordings]
    for number in range(count):
        which = number % len(recordings)
        pcm, rate = sounds[which]
        start = int(rng.integers(max(1, len(pcm) - rate)))
        path = folder / f"{recordings[which].stem}-{split}-{number}.wav"
        soundfile.write(path, pcm[start : start + rate] * rng.uniform(0.1, 1.0), rate, subtype="PCM_16")
        yield Clip(path, ("silence",), recordings[which].stem, split)


def _mswc(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """One language. `LANG_splits.csv` has SET, LINK (WORD/common_voice_en_1.opus), WORD, VALID, SPEAKER; groups are speakers."""
    splits = {"TRAIN": "train", "DEV": "val", "TEST": "test"}
    listing, sounds = _mswc_language(tree)
    with listing.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for name in ("SET", "LINK", "WORD", "VALID", "SPEAKER"):
            if name not in (reader.fieldnames or ()):
                raise ConfitError(
                    f"{listing}: there is no column {name!r} (columns: {', '.join(reader.fieldnames or ())})"
                )
        for row in reader:
            if row["SET"].upper() not in splits:
                raise ConfitError(f"{listing}, line {reader.line_num}: SET {row['SET']!r} is not TRAIN, DEV or TEST")
            if row["VALID"].lower() == "true":
                speaker = row["SPEAKER"] if row["SPEAKER"] not in ("", "NA") else Path(row["LINK"]).name
                yield Clip(sounds / row["LINK"], (row["WORD"],), speaker, splits[row["SET"].upper()])


def _mswc_language(tree: Path) -> tuple[Path, Path]:
    """The table of a language and its folder of clips. Raises ConfitError unless a tree of archives has one language."""
    tables = sorted(path for glob in _MSWC_TABLES for path in visible(tree, glob))
    if (tree / "clips").is_dir():
        return tables[0], tree / "clips"
    sounds = {table: tree / "audio" / table.name.removesuffix("_splits.csv") / "clips" for table in tables}
    both = {folder: table for table, folder in sounds.items() if folder.is_dir()}
    if len(both) != 1:
        found = ", ".join(folder.parent.name for folder in both) or "none"
        raise ConfitError(
            f"{tree}: expected one language with audio/LANG/clips and splits/LANG/LANG_splits.csv, found {found}; put the"
            " table of the language you want next to its clips/, and name that folder with --root"
        )
    ((folder, table),) = both.items()
    return table, folder


_HOME = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
_LAYOUT = "yes/0a7c2a8d_nohash_0.wav, validation_list.txt and testing_list.txt"
_MSWC_TABLES = ("*_splits.csv", "splits/*_splits.csv", "splits/*/*_splits.csv")
_MARKS = (("yes/*_nohash_*.wav",), ("validation_list.txt",), ("testing_list.txt",))

SPEECH_COMMANDS_35 = KnownCorpus(
    "speech-commands-35",
    "35 words (Speech Commands v2), the published split by speaker",
    _HOME,
    _LAYOUT,
    _MARKS,
    _speech_commands,
    clips=105_829,
    classes=35,
    splits={"train": 84_843, "val": 9_981, "test": 11_005},
)
SPEECH_COMMANDS_12 = KnownCorpus(
    "speech-commands-12",
    "ten commands, unknown and silence (Speech Commands v2; unknown and silence are our own draw, not the published test set)",
    _HOME,
    f"{_LAYOUT}, {_NOISE}/",
    (*_MARKS, (f"{_NOISE}/*.wav",)),
    _twelve_commands,
    classes=12,
    drawn_from=SPEECH_COMMANDS_35,
)
MSWC = KnownCorpus(
    "mswc",
    "spoken words of one of 50 languages, the published split; --top 100 for the hundred most frequent words",
    "https://mlcommons.org/datasets/multilingual-spoken-words/",
    "clips/WORD/common_voice_en_1.opus and en_splits.csv, for one language (or audio/en/clips/ and splits/en/en_splits.csv)",
    (("clips", "audio/*/clips"), _MSWC_TABLES),
    _mswc,
)
