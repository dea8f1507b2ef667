"""Builds the real tasks of the benchmarks from the cache of `benchmarks.fetch`: one manifest per task and seed.

    python -m benchmarks.tasks --list
    python -m benchmarks.tasks letters drums --seed 1

Each task splits by group (speaker, phrase, level, kit, preset, locale, section). Duplicates are dropped by hash first.
Validation and test are the same for every seed; the seed draws the training clips from the other groups.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.command import run_main
from benchmarks.fetch import CACHE
from benchmarks.sources import (
    Sound,
    drums,
    fillets,
    instruments,
    letters,
    noisy_words,
    speakers,
    tracks,
    words,
)
from confit_edge.data.manifest import SPLITS, Clip, Manifest, write_manifest
from confit_runtime.errors import ConfitError, UsageError


@dataclass(frozen=True)
class Task:
    """A task: where its clips come from, how many are drawn, and how long an encoder trains on them."""

    name: str
    about: str
    gather: Callable[[Path], list[Sound]]
    clips: tuple[int, int, int]  # at most, per class in train, val and test
    epochs: int
    groups: int | None = None  # number of training groups to draw; None: all


TASKS = {
    task.name: task
    for task in (
        Task("speakers", "35 speakers and languages, by phrases never heard in training", speakers, (10, 4, 12), 10),
        Task("actors", "two actors of one studio and language, by levels", fillets, (10, 40, 150), 20),
        Task("drums", "drums across kits", drums, (20, 12, 24), 15),
        Task("instruments", "families of instruments, by presets never heard in training", instruments, (12, 12, 24), 15),
        Task("letters", "letters of the alphabet across locales and speakers", letters, (7, 2, 5), 15),
        Task("words", "30 words, learnt from 4 voices", words, (4, 3, 18), 20, groups=4),
        Task("noisy-words", "30 words at 0 dB over music, learnt from 6 voices; other music in test", noisy_words,
             (6, 3, 18), 15, groups=6),
        Task("tracks", "pieces of music, by sections later than those of training", tracks, (8, 4, 12), 15),
    )
}  # fmt: skip


def build(task: Task, cache: Path, seed: int) -> Path:
    """Write the task's manifest for a seed and return its path. Raises ConfitError if splits share a group or a file."""
    if not (cache / "packages.json").is_file():
        raise UsageError(f"{cache}: holds no sounds; run python -m benchmarks.fetch --cache {cache}")
    chosen = draw(unique(task.gather(cache)), task, seed)
    check(chosen)
    manifest = cache / "tasks" / f"{task.name}-{seed}.csv"
    clips = tuple(Clip(Path(os.path.abspath(sound.path)), (sound.label,), sound.group, sound.split) for sound in chosen)
    write_manifest(Manifest(clips, manifest, multi_label=False), manifest)
    return manifest


def unique(sounds: list[Sound]) -> list[Sound]:
    """Drop duplicate files: one of them stays if all agree on label, group and split, and none if they do not."""
    same: dict[str, list[Sound]] = defaultdict(list)
    for sound in sounds:
        same[hashlib.sha256(sound.path.read_bytes()).hexdigest()].append(sound)
    return [
        group[0]
        for group in same.values()
        if len({(member.label, member.group, member.split) for member in group}) == 1
    ]


def draw(sounds: list[Sound], task: Task, seed: int) -> list[Sound]:
    """Draw at most `task.clips` per class and split; a class needs two training clips and one in each other split."""
    chosen: list[Sound] = []
    for split, count in zip(SPLITS, task.clips, strict=True):
        rng = np.random.default_rng([seed if split == "train" else 0, SPLITS.index(split)])
        split_sounds = sorted(
            (sound for sound in sounds if sound.split == split), key=lambda sound: (sound.label, str(sound.path))
        )
        if split == "train" and task.groups:
            names = sorted({sound.group for sound in split_sounds})
            kept = {names[index] for index in rng.permutation(len(names))[: task.groups]}
            split_sounds = [sound for sound in split_sounds if sound.group in kept]
        for label in sorted({sound.label for sound in split_sounds}):
            of_class = [sound for sound in split_sounds if sound.label == label]
            chosen += [of_class[index] for index in sorted(rng.permutation(len(of_class))[:count])]
    counts = Counter((sound.label, sound.split) for sound in chosen)
    least = {"train": 2, "val": 1, "test": 1}
    return [sound for sound in chosen if all(counts[sound.label, split] >= least[split] for split in SPLITS)]


def check(sounds: list[Sound]) -> None:
    """Raise ConfitError if two splits share a group or the bytes of a file."""
    groups: dict[str, set[str]] = defaultdict(set)
    for sound in sounds:
        groups[sound.group].add(sound.split)
        groups[hashlib.sha256(sound.path.read_bytes()).hexdigest()].add(sound.split)
    if shared := [name for name, splits in groups.items() if len(splits) > 1]:
        raise ConfitError(f"splits share {shared[0]}")


def summary(sounds: list[Sound]) -> str:
    parts = [f"{len({sound.label for sound in sounds}):3d} classes"]
    for split in SPLITS:
        split_sounds = [sound for sound in sounds if sound.split == split]
        parts.append(f"{split} {len(split_sounds)} clips of {len({sound.group for sound in split_sounds})} groups")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"tasks to build: {', '.join(TASKS)} (default: all)")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="only list what each task holds, without writing manifests")
    args = parser.parse_args()
    if unknown := set(args.tasks) - set(TASKS):
        parser.error(f"unknown task {', '.join(sorted(unknown))}; choose from {', '.join(TASKS)}")
    for name in args.tasks or TASKS:
        task = TASKS[name]
        if args.list:
            print(f"{name:12s} {summary(draw(unique(task.gather(args.cache)), task, args.seed))}; {task.about}")
        else:
            print(build(task, args.cache, args.seed))


if __name__ == "__main__":
    run_main(main)
