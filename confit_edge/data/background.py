"""Which of the background is learnt, and which is kept for thresholds."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from confit_edge.data.clips import is_silent
from confit_runtime.audio import Pcm
from confit_runtime.errors import UsageError

VAL_SHARE = 0.3  # kept from training, for thresholds
NEAR = (0.15, 0.5)  # what whole recordings may come to in place of it; else each is cut
FEWEST_WHOLE = 5  # recordings, to keep whole ones apart
FEWEST_OF_KIND, MOST_KINDS = 3, 4  # recordings of one name, to be a kind; more kinds than that are voices or places


@dataclass(frozen=True)
class Background:
    """Recordings to learn from and others for thresholds; `kept` names the files of these, none where each was cut."""

    train: list[Pcm]
    val: list[Pcm]
    kept: tuple[str, ...] = ()  # as they are called in the folder
    unlearnt: tuple[str, ...] = ()  # folders, or words that names begin with, of which every recording is kept


def split_background(place: Path, recordings: dict[Path, Pcm]) -> Background:
    """By recording where there are enough, else each in time: the beginning to train, the end for thresholds.

    Of each kind (`_by_kind`) the last by name are kept, so that neither side lacks speech or music, and a voice or a concert
    that goes on over some files is on one side. Each is cut in time where lengths differ so much that those kept would be a
    small share of the sound, or most of it. Of a recording whose end is silent, or its beginning, that part is left out.
    Raises UsageError where nothing is heard on one side.
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
                f"--background {place}: its {which} tenths, which are {use}, are silent: was the microphone muted? Cut the"
                " silence off"
            )
    return Background(train, val)


def _by_name(paths: list[Path]) -> dict[str, list[Path]]:
    """The recordings of each folder (`music/`), or of each word that names of loose files begin with, in the folder of all."""
    top = os.path.commonpath([path.parent for path in paths])
    names: dict[str, list[Path]] = {}
    for path in paths:
        folders = path.relative_to(top).parts[:-1]
        word = re.match(r"[^\W\d_]*", path.stem)
        names.setdefault(f"{folders[0]}/" if folders else word.group().casefold() if word else "", []).append(path)
    return names


def _by_kind(names: dict[str, list[Path]], paths: list[Path]) -> list[list[Path]]:
    """The recordings of each kind in their order, and those of none: as far as names tell, `music` and `speech`, say.

    A kind has three recordings or more. There are at most four: more are not kinds of sound but voices or places, of which
    whole ones are to be kept.
    """
    kinds = [some for some in names.values() if len(some) >= FEWEST_OF_KIND]
    if len(kinds) > MOST_KINDS:
        return [paths]
    of_a_kind = {path for some in kinds for path in some}
    return [*kinds, [path for path in paths if path not in of_a_kind]]
