"""--others: clips to distinguish the classes from, learnt as `unknown`; val and test get other kinds than train."""

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
from confit_runtime.formatting import format_count

WORDS = "words"  # the name of the clips that ship with confit-edge: the demo's thirty words
SHIPPED = Path(__file__).parents[1] / "demo" / "data" / "words" / "manifest.csv"
MANY_LABELS = 6  # with at least this many labels, no label is in two splits
SHARES = (0.6, 0.2, 0.2)  # of train, val and test; val is large because it sets the thresholds


def read_others(places: Sequence[str], manifest: Manifest) -> tuple[list[Clip], list[str]]:
    """The clips of several places, each once, without clips of the `manifest`'s own classes; and notes.

    A place is a folder, a manifest or `words`. Raises what `_read_place` does.
    """
    clips: dict[Path, Clip] = {}
    notes: list[str] = []
    for place in places:
        found, of_place = _read_place(place, manifest)
        for clip in found:
            clips.setdefault(clip.path, clip)
        notes += of_place
    return list(clips.values()), notes


def _read_place(place: str, manifest: Manifest) -> tuple[list[Clip], list[str]]:
    """The clips of one place that are not of the `manifest`'s own classes, and notes.

    The notes name the labels that were left out, and labels that may be one of the classes under another name. In a
    folder, the first sub-folder of a clip is its label and the next one its group, if it has them. Raises UsageError if
    no clip is left, and whatever `read_manifest` raises.
    """
    source = SHIPPED if place == WORDS else Path(place)
    if source.is_dir() or not source.exists():
        clips = [_in_folder(path, source) for path in sound_files(source, "--others", [WORDS])]
    else:
        clips = list(read_manifest(source, min_classes=1).clips)
    listed = {clip.path for clip in manifest.clips}
    own = {label.casefold() for label in manifest.classes} - {UNKNOWN}
    others = [
        clip for clip in clips if clip.path not in listed and own.isdisjoint(label.casefold() for label in clip.labels)
    ]
    if not others:
        raise UsageError(f"--others {place}: all its clips are of your own classes; give clips of other sounds")
    labels, kept = ({label for clip in some for label in clip.labels} for some in (clips, others))
    notes = (
        [f"--others {place}: left out {', '.join(left)}, which your classes include"]
        if (left := sorted(labels - kept))
        else []
    )
    for name in sorted(set(manifest.classes) - {UNKNOWN}):
        if near := [label for label in sorted(kept) if alike(label, name)]:
            notes.append(
                f"warning: --others {place}: its clips of {', '.join(near)} are learnt as unknown; if your class {name} is the"
                f" same sound, rename the class to {near[0]}, and those clips are left out"
            )
    return others, notes


def with_others(manifest: Manifest, others: Sequence[Clip], *, places: Sequence[str], seed: int) -> Manifest:
    """The manifest, which must have splits, with `others` added as `unknown` (without a label, if it is multi-label).

    No group of the others is in two splits (a group that the manifest also has stays in its split there). If they have six
    or more labels, no label is in two splits either: thresholds set on words that were trained on are too low for other
    words. A clip whose group and label were assigned to different splits is left out. Raises UsageError if train or val
    gets no clip.
    """
    rng = np.random.default_rng([seed, len(others)])
    by_group = {clip.group: clip.split for clip in (*others, *manifest.clips) if clip.split is not None}
    kinds = {clip.path: "|".join(clip.labels) for clip in others}
    many = len(set(kinds.values())) >= MANY_LABELS
    by_kind = _deal(Counter(kinds.values()), {}, rng) if many else {}
    members = Counter(clip.group for clip in others)
    if many:  # a clip that is its own group goes where its label goes
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
            f"--others {' '.join(places)}: leaves no clip for {lacking[0]} ({format_count(len(others), 'clip')} in"
            f" {format_count(len(members), 'group')}); give more clips, from more groups (folders, speakers)"
        )
    return replace(manifest, clips=(*manifest.clips, *dealt))


def _in_folder(path: Path, folder: Path) -> Clip:
    name = relative(path.absolute(), folder.absolute())
    label, group = [*name.split("/")[:-1][:2], "", ""][:2]
    return Clip(path.absolute(), (label or name,), group or name, None)


def _deal(sizes: Counter[str], given: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """A split for each name. Names without one are taken in random order; each goes to the split furthest below its share."""
    dealt = dict(given)
    has = dict.fromkeys(SPLITS, 0)
    for name in sizes.keys() & given.keys():
        has[given[name]] += sizes[name]
    free = sorted(sizes.keys() - given.keys())
    for name in (free[at] for at in rng.permutation(len(free))):
        dealt[name] = min(SPLITS, key=lambda split: has[split] / SHARES[SPLITS.index(split)])
        has[dealt[name]] += sizes[name]
    return dealt
