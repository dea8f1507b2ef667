"""The mechanism behind every corpus by name: find its tree, read its rows, compare them with the published counts.

A corpus defines where its clips are, their labels, and which belong together. It downloads nothing: most corpora require
a licence to be accepted, which only a person can do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from confit_edge.data.manifest import SPLITS, Clip, Manifest
from confit_edge.data.splits import without_leaks
from confit_runtime.audio import read_audio
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.formatting import format_count

DEPTH = 2  # how many levels below the named folder a tree is searched for


@dataclass(frozen=True)
class Wanted:
    """The user's choice: the fold to test on, and a folder for clips that a corpus has to make."""

    fold: int
    made: Path


@dataclass(frozen=True)
class KnownCorpus:
    """A published corpus.

    `marks` are the globs that identify its tree, each with its alternatives; `rows` yields the clips of a tree. `clips`,
    `classes` and `splits` are the published counts (0, or no entry: not published, or it depends). If a corpus is
    `drawn_from` another one in the same tree, that other corpus must be complete.
    """

    name: str
    task: str  # what the classes are, and how the corpus is split
    home: str  # where to get it
    layout: str  # what the tree looks like, for messages
    marks: tuple[tuple[str, ...], ...]
    rows: Callable[[Path, Wanted], Iterable[Clip]]
    clips: int = 0
    classes: int = 0
    folds: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    drawn_from: KnownCorpus | None = None
    damaged: tuple[str, ...] = ()  # names of files that cannot be read in a widespread copy


@dataclass(frozen=True)
class Fetched:
    """The manifest of a corpus, where its tree was found, and warnings about it, a sentence each."""

    manifest: Manifest
    tree: Path
    warnings: list[str]


def fetch(
    corpus: KnownCorpus,
    under: Path,
    out: Path,
    *,
    fold: int | None = None,
    top: int | None = None,
    partial: bool = False,
) -> Fetched:
    """The manifest (to be written to `out`) of the corpus whose tree is `under`, or up to two folders below it.

    Every clip has a split and no group is in two splits. The splits are the published ones, or `fold` as test and the next
    fold as validation. `top` keeps that many classes, those with most clips. Raises UsageError if there is no such tree or
    fold, and ConfitError if clips are missing, unless `partial` accepts an incomplete tree.
    """
    if fold is not None and not 1 <= fold <= corpus.folds:
        folds = f"has folds 1 to {corpus.folds}" if corpus.folds else "has one split and no folds"
        raise UsageError(f"--fold {fold}: {corpus.name} {folds}")
    tree = find_tree(corpus, under)
    wanted = Wanted(fold or 1, out.with_suffix(""))
    warnings: list[str] = []
    if whole := corpus.drawn_from:
        warnings = [f"{whole.name}: {warning}" for warning in _take(whole, tree, wanted, None, partial)[1]]
    present, found = _take(corpus, tree, wanted, top, partial)
    warnings += [*found, *_damaged(corpus, present)]
    manifest, changed = without_leaks(Manifest(tuple(present), out, multi_label=False))
    return Fetched(manifest, tree, warnings + changed)


def find_tree(corpus: KnownCorpus, under: Path) -> Path:
    """The folder that has all of the corpus's marks. Raises UsageError saying what was expected, and where to get it."""
    if not under.is_dir():
        raise UsageError(f"--root {under}: no such folder")
    level = [under]
    for _ in range(DEPTH + 1):
        for folder in level:
            if all(any(_any(visible(folder, glob)) for glob in mark) for mark in corpus.marks):
                return folder
        level = sorted(child for folder in level for child in folder.iterdir() if child.is_dir())
    raise UsageError(
        f"--root {under}: {corpus.name} is neither there nor up to {DEPTH} folders below; expected {corpus.layout};"
        f" get it from {corpus.home}"
    )


def visible(folder: Path, glob: str) -> Iterator[Path]:
    """The glob's matches in a folder that are not hidden: macOS archives put `._a.wav`, which is not sound, next to a.wav."""
    return (path for path in folder.glob(glob) if not path.name.startswith("."))


def fold_split(fold: int, wanted: Wanted, folds: int) -> str:
    """The split of a clip of `fold` (from 1): the wanted fold is test, the next one val, the others train."""
    if fold == wanted.fold:
        return "test"
    return "val" if fold == wanted.fold % folds + 1 else "train"


def _take(
    corpus: KnownCorpus, tree: Path, wanted: Wanted, top: int | None, partial: bool
) -> tuple[list[Clip], list[str]]:
    """The existing clips, and how they differ from the published counts. Raises ConfitError as `fetch` does."""
    chosen: set[str] | None = None
    if top is not None:
        counts = Counter(clip.label for clip in corpus.rows(tree, wanted))
        chosen = {label for label, _ in counts.most_common(top)}
    present: list[Clip] = []
    absent: list[Path] = []
    for clip in corpus.rows(tree, wanted):
        if chosen is not None and clip.label not in chosen:
            continue
        if clip.path.is_file():
            present.append(clip)
        else:
            absent.append(clip.path)
    if not present:
        raise ConfitError(f"{tree}: none of the clips of {corpus.name} exists; expected {corpus.layout}")
    read_audio(present[0].path, None)  # so that a tree in an unreadable encoding fails here

    differing = [] if top is not None else _differences(corpus, present)
    warnings = [
        f"{found} {what}, {'fewer' if found < published else 'more'} than the {published} published"
        for what, found, published in differing
    ]
    if absent:
        warnings.append(
            f"{format_count(len(absent), 'listed clip is', 'listed clips are')} missing, such as {absent[0]}"
        )
    if (absent or any(found < published for _, found, published in differing)) and not partial:
        raise ConfitError(f"{tree}, {corpus.name}: {'; '.join(warnings)} (--partial uses the clips that exist)")
    return present, warnings


def _damaged(corpus: KnownCorpus, clips: list[Clip]) -> Iterator[str]:
    """A sentence for each clip that is damaged in some copies of the corpus, and in this one."""
    for clip in clips:
        if clip.path.name in corpus.damaged:
            try:
                read_audio(clip.path, None)
            except ConfitError:
                yield (
                    f"{clip.path} cannot be read, as in a widespread copy of {corpus.name}: replace it by the file of another"
                    " copy, or training leaves the clip out"
                )


def _any(paths: Iterator[Path]) -> bool:
    return next(paths, None) is not None


def _differences(corpus: KnownCorpus, clips: list[Clip]) -> list[tuple[str, int, int]]:
    """The counts that differ from the published ones: name, count found, count published."""
    counts = [
        ("clips", len(clips), corpus.clips),
        ("classes", len({clip.label for clip in clips}), corpus.classes),
    ]
    for split in SPLITS:
        counts.append((f"clips in {split}", sum(clip.split == split for clip in clips), corpus.splits.get(split, 0)))
    return [(what, found, published) for what, found, published in counts if published and found != published]
