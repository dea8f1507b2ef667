"""Divide background recordings into those to learn from and those kept for setting thresholds."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from confit_edge.data.clips import is_silent
from confit_runtime.audio import Pcm
from confit_runtime.errors import UsageError

VAL_SHARE = 0.3  # kept out of training, to set thresholds
NEAR = (0.15, 0.5)  # the share that whole recordings may make up instead; outside it, each recording is cut
FEWEST_WHOLE = 5  # with fewer recordings than this, each is cut
FEWEST_OF_KIND, MOST_KINDS = 3, 4  # recordings of a name that make a kind; with more kinds, names are voices or places


@dataclass(frozen=True)
class Background:
    """Recordings to learn from (`train`) and to set thresholds with (`val`)."""

    train: list[Pcm]
    val: list[Pcm]
    kept: tuple[str, ...] = ()  # the files of `val`, relative to the folder; empty where each recording was cut
    unlearnt: tuple[str, ...] = ()  # folders, or first words of file names, whose every recording is kept


def split_background(place: Path, recordings: dict[Path, Pcm]) -> Background:
    """Split by whole recordings where there are enough; else cut each: its beginning to train, its end for thresholds.

    Of each kind (`_by_kind`) the last recordings by name are kept for thresholds. So neither side lacks speech or music,
    and a voice or a concert that continues over several files stays on one side. If lengths differ so much that the kept
    recordings would be a small share of the sound, or most of it, each recording is cut instead. A silent beginning or
    end of a cut recording is left out. Raises UsageError where one side is silent altogether.
    """
    if len(recordings) >= FEWEST_WHOLE:
        paths = list(recordings)
        names = _by_name(paths)
        kept = {path for some in _by_kind(names, paths) for path in some[len(some) - round(VAL_SHARE * len(some)) :]}
        whole = Background(
            [pcm for path, pcm in recordings.items() if path not in kept],
            [pcm for path, pcm in recordings.items() if path in kept],
            tuple(str(path.relative_to(place)) for path in paths if path in kept),
            tuple(name for name, some in names.items() if len(some) >= FEWEST_OF_KIND and kept.issuperset(some)),
        )
        if NEAR[0] <= sum(map(len, whole.val)) / sum(map(len, recordings.values())) <= NEAR[1]:
            return whole
    cuts = [(pcm, int(len(pcm) * (1 - VAL_SHARE))) for pcm in recordings.values()]
    parts = [pcm[:cut] for pcm, cut in cuts], [pcm[cut:] for pcm, cut in cuts]
    train, val = ([part for part in some if not is_silent(part)] for some in parts)
    for part, which, use in ((train, "first seven", "learnt"), (val, "last three", "kept for thresholds")):
        if not part:
            raise UsageError(
                f"--background {place}: the {which} tenths of each recording, which are {use}, are silent: was the microphone"
                " muted? Cut the silence off"
            )
    return Background(train, val)


def _by_name(paths: list[Path]) -> dict[str, list[Path]]:
    """The recordings by sub-folder (`music/`) of their common folder; loose files by the first word of their name."""
    top = os.path.commonpath([path.parent for path in paths])
    names: dict[str, list[Path]] = {}
    for path in paths:
        folders = path.relative_to(top).parts[:-1]
        word = re.match(r"[^\W\d_]*", path.stem)
        names.setdefault(f"{folders[0]}/" if folders else word.group().casefold() if word else "", []).append(path)
    return names


def _by_kind(names: dict[str, list[Path]], paths: list[Path]) -> list[list[Path]]:
    """The recordings of each kind, such as `music` and `speech`, as far as names tell, and last those of no kind.

    A kind has at least three recordings, and there are at most four kinds. More names than that stand for voices or
    places rather than kinds of sound; all recordings then form one list, so that whole voices or places are kept.
    """
    kinds = [some for some in names.values() if len(some) >= FEWEST_OF_KIND]
    if len(kinds) > MOST_KINDS:
        return [paths]
    of_a_kind = {path for some in kinds for path in some}
    return [*kinds, [path for path in paths if path not in of_a_kind]]
