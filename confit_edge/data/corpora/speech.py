"""Corpora of speakers and of emotions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from confit_edge.data.corpora.base import KnownCorpus, Wanted, fold_split, visible
from confit_edge.data.manifest import Clip
from confit_runtime.errors import ConfitError

_EMODB_EMOTIONS = {
    "W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness", "N": "neutral",
}  # fmt: skip
# each a man and a woman, so that every emotion is in every fold (speaker 08 has no clip of disgust)
_EMODB_FOLDS = (("03", "08"), ("10", "09"), ("11", "13"), ("12", "14"), ("15", "16"))

_RAVDESS_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
# by actor, as in Luna-Jimenez et al. 2021 (Sensors 21, 7665)
_RAVDESS_FOLDS = ((2, 5, 14, 15, 16), (3, 6, 7, 13, 18), (10, 11, 12, 19, 20), (8, 17, 21, 23, 24), (1, 4, 9, 22))
SX_VAL, SX_TEST = (
    273,
    363,
)  # the first sentences of the fourth and the fifth block of 90; sentences are numbered from 3 to 452


def _timit(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """Each utterance, labelled with its speaker; the group is the sentence read.

    The 450 SX sentences, SX3 to SX452, form five blocks of 90, and each speaker read one sentence of each block: blocks
    1 to 3 are train, 4 is val, 5 is test. The SI sentences, each read by one speaker, are train. All speakers read the two
    SA sentences: one is val and one is test. So each speaker has 6, 2 and 2 clips, and no sentence is in two splits.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(visible(tree, "[Tt][RrEe][AaSs]*/[Dd][Rr][1-8]/*/*")):
        if path.name.lower().endswith(".wav"):
            found.setdefault((path.parent.name.upper(), path.name.upper().split(".")[0]), path)
    for (speaker, sentence), path in found.items():
        kind, number = sentence[:2], sentence[2:]
        if kind not in ("SA", "SX", "SI") or not number.isdigit():
            raise ConfitError(f"{path}: is not named like a TIMIT sentence (SA1, SX127, SI1027)")
        split = "train"
        if kind == "SX" and int(number) >= SX_VAL:
            split = "val" if int(number) < SX_TEST else "test"
        elif kind == "SA":
            split = "val" if number == "1" else "test"
        yield Clip(path, (speaker,), sentence, split)


def _voxceleb1(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """The identification task. A line is `1 id10003/na8-QEFmj44/00003.wav`: the number is the split, the group the video."""
    splits = {"1": "train", "2": "val", "3": "test"}
    listing = tree / "iden_split.txt"
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if len(parts) != 2 or parts[0] not in splits or parts[1].count("/") != 2:
            raise ConfitError(f"{listing}, line {number}: expected `1 SPEAKER/VIDEO/CLIP.wav`, got {line:.60}")
        speaker, video, _ = parts[1].split("/")
        yield Clip(tree / "wav" / parts[1], (speaker,), f"{speaker}/{video}", splits[parts[0]])


def _emodb(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """`03a01Fa.wav`: speaker 03, text a01, F for Freude (happiness), version a."""
    fold_of = {speaker: fold for fold, pair in enumerate(_EMODB_FOLDS, start=1) for speaker in pair}
    for path in sorted(visible(tree / "wav" if (tree / "wav").is_dir() else tree, "[01][0-9][ab][01]*.wav")):
        speaker, emotion = path.name[:2], path.name[5]
        if speaker not in fold_of or emotion not in _EMODB_EMOTIONS:
            raise ConfitError(f"{path}: is not named like an EmoDB clip (03a01Fa.wav)")
        split = fold_split(fold_of[speaker], wanted, len(_EMODB_FOLDS))
        yield Clip(path, (_EMODB_EMOTIONS[emotion],), speaker, split)


def _ravdess(tree: Path, wanted: Wanted) -> Iterator[Clip]:
    """`03-01-06-01-02-01-12.wav`: sound only, speech, emotion 06, intensity, statement, repetition, actor 12."""
    fold_of = {actor: fold for fold, actors in enumerate(_RAVDESS_FOLDS, start=1) for actor in actors}
    for path in sorted(visible(tree, "Actor_*/03-01-*.wav")):
        codes = path.stem.split("-")
        known = len(codes) == 7 and all(code.isdigit() for code in codes)
        if not known or int(codes[6]) not in fold_of or not 1 <= int(codes[2]) <= len(_RAVDESS_EMOTIONS):
            raise ConfitError(f"{path}: is not named like a RAVDESS clip (03-01-06-01-02-01-12.wav)")
        split = fold_split(fold_of[int(codes[6])], wanted, len(_RAVDESS_FOLDS))
        yield Clip(path, (_RAVDESS_EMOTIONS[int(codes[2]) - 1],), codes[6], split)


TIMIT = KnownCorpus(
    "timit",
    "speakers (630, ten sentences each): six sentences for train, two for val, two for test; no sentence in two splits",
    "https://catalog.ldc.upenn.edu/LDC93S1 (licence from the LDC)",
    "TRAIN/DR1/FCJF0/SA1.WAV (NIST SPHERE or RIFF) and TEST/...",
    (
        ("[Tt][Rr][Aa][Ii][Nn]/[Dd][Rr]*/*/[Ss][Aa]1.[Ww][Aa][Vv]*",),
        ("[Tt][Ee][Ss][Tt]/[Dd][Rr]*/*/[Ss][Aa]1.[Ww][Aa][Vv]*",),
    ),
    _timit,
    clips=6300,
    classes=630,
    splits={"train": 3780, "val": 1260, "test": 1260},
)
VOXCELEB1 = KnownCorpus(
    "voxceleb1",
    "speakers (1,251), the published identification split; groups are videos",
    "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html (put iden_split.txt next to wav/)",
    "wav/id10001/VIDEO/00001.wav and iden_split.txt",
    (("wav/id1*",), ("iden_split.txt",)),
    _voxceleb1,
    clips=153_516,
    classes=1251,
    splits={"test": 8251},
)
EMODB = KnownCorpus(
    "emodb",
    "seven emotions, five folds of two speakers each (our own folds: a man and a woman)",
    "http://emodb.bilderbar.info/download/",
    "wav/03a01Fa.wav",
    (("wav/[01][0-9][ab][01]*.wav", "[01][0-9][ab][01]*.wav"),),
    _emodb,
    clips=535,
    classes=7,
    folds=len(_EMODB_FOLDS),
)
RAVDESS = KnownCorpus(
    "ravdess",
    "eight emotions of speech, five folds by actor (Luna-Jimenez et al. 2021)",
    "https://zenodo.org/record/1188976 (Audio_Speech_Actors_01-24.zip)",
    "Actor_01/03-01-06-01-02-01-01.wav",
    (("Actor_*/03-01-*.wav",),),
    _ravdess,
    clips=1440,
    classes=8,
    folds=len(_RAVDESS_FOLDS),
)
