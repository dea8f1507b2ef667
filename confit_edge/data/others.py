"""Clips of what a model is to be told from: learnt as `unknown`, and chosen by where none like them was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from confit_edge.data.manifest import SPLITS, UNKNOWN, Clip, Manifest, read_manifest, sound_files
from confit_edge.data.names import alike
from confit_edge.data.tables import relative
from confit_runtime.errors import UsageError

WORDS = "words"  # the name of those that ship: the demo's thirty words
SHIPPED = Path(__file__).parents[1] / "demo" / "data" / "words" / "manifest.csv"
MANY_LABELS = 6  # from here on no label is in two splits
SHARES = (0.6, 0.2, 0.2)  # of train, val and test: thresholds stand on those of val


def read_others(place: str, manifest: Manifest) -> tuple[list[Clip], list[str]]:
    """The clips of a folder, of a manifest, or of `words`, but for those of the `manifest`'s own classes, by their names;
    and what is to be told of it: labels that were left out, and labels that may be a class by another name.

    In a folder the first folder of a clip is its label and the next one its group, if there are any. Raises UsageError
    where nothing is left, and as `read_manifest` does.
    """
    source = SHIPPED if place == WORDS else Path(place)
    if source.is_dir() or not source.exists():
        clips = [_in_folder(path, source) for path in sound_files(source, "--others")]
    else:
        clips = list(read_manifest(source, alone=True).clips)
    listed = {clip.path for clip in manifest.clips}
    own = {label.casefold() for label in manifest.classes} - {UNKNOWN}
    others = [
        clip for clip in clips if clip.path not in listed and own.isdisjoint(label.casefold() for label in clip.labels)
    ]
    if not others:
        raise UsageError(f"--others {place}: all its clips are of the classes that are to be learnt: give others")
    labels, kept = ({label for clip in some for label in clip.labels} for some in (clips, others))
    notes = (
        [f"--others {place}: {', '.join(left)} left out: a class of yours"] if (left := sorted(labels - kept)) else []
    )
    for name in sorted(set(manifest.classes) - {UNKNOWN}):
        if near := [label for label in sorted(kept) if alike(label, name)]:
            notes.append(
                f"beware: --others {place}: {', '.join(near)} in it is learnt as unknown; where your class {name} is the"
                f" same sound, name it so ({near[0]}), and it is left out"
            )
    return others, notes


def with_others(manifest: Manifest, others: Sequence[Clip], *, place: str, seed: int) -> Manifest:
    """A manifest that has its splits, with `others` after its clips as `unknown` (as clips of nothing, if it is multi-label).

    No group of the others is in two splits (one that the manifest has, too, is in its split), and none of their labels
    where there are six or more: thresholds that are set on words that were trained on are too low for words that were
    not. A clip whose group and label fell to different splits is left out. Raises UsageError where train or val gets none.
    """
    rng = np.random.default_rng([seed, len(others)])
    by_group = {clip.group: clip.split for clip in (*others, *manifest.clips) if clip.split is not None}
    kinds = {clip.path: "|".join(clip.labels) for clip in others}
    many = len(set(kinds.values())) >= MANY_LABELS
    by_kind = _deal(Counter(kinds.values()), {}, rng) if many else {}
    members = Counter(clip.group for clip in others)
    if many:  # a clip that is a group of its own goes where its label does
        alone = {clip.group: by_kind[kinds[clip.path]] for clip in others if members[clip.group] == 1}
        by_group = {**alone, **by_group}
    by_group = _deal(members, by_group, rng)
    dealt = [
        replace(clip, labels=() if manifest.multi_label else (UNKNOWN,), split=by_group[clip.group])
        for clip in others
        if not many or by_kind[kinds[clip.path]] == by_group[clip.group]
    ]
    if lacking := [split for split in ("train", "val") if all(clip.split != split for clip in dealt)]:
        raise UsageError(
            f"--others {place}: leaves no clip for {lacking[0]} ({len(others)} in all, groups: {len(members)}): give more, of"
            " more groups (folders, speakers)"
        )
    return replace(manifest, clips=(*manifest.clips, *dealt))


def _in_folder(path: Path, folder: Path) -> Clip:
    name = relative(path.absolute(), folder.absolute())
    label, group = [*name.split("/")[:-1][:2], "", ""][:2]
    return Clip(path.absolute(), (label or name,), group or name, None)


def _deal(sizes: Counter[str], given: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """A split for each name, where it has none: at random, to that which has least of its share of the clips so far."""
    dealt = dict(given)
    has = dict.fromkeys(SPLITS, 0)
    for name in sizes.keys() & given.keys():
        has[given[name]] += sizes[name]
    free = sorted(sizes.keys() - given.keys())
    for name in (free[at] for at in rng.permutation(len(free))):
        dealt[name] = min(SPLITS, key=lambda split: has[split] / SHARES[SPLITS.index(split)])
        has[dealt[name]] += sizes[name]
    return dealt
