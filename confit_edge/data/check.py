"""What a manifest holds, and what would spoil a training on it: damaged clips, leaks, missing classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from confit_edge.data.clips import ClipProblem, ClipStore, Progress, count_kinds, decode, hardly_heard, sound_digest
from confit_edge.data.manifest import SPLITS, Clip, Manifest, advice_on_background
from confit_edge.data.names import joined, misspelt
from confit_edge.data.splits import (
    groups_across_splits,
    having,
    missing_classes,
    told_from_nothing,
    ungrouped,
    untested,
    with_splits,
)
from confit_edge.data.tables import ManifestError, relative
from confit_runtime.frames import loudest_db
from confit_runtime.wording import counted, some

IMBALANCE = 10.0  # from here on the largest class is worth a warning
OVERLOAD = 2.0  # full scale is 1; resampling and lossy codecs overshoot it by a little, forgotten scaling by a lot
FEW_CLIPS = 5  # of a class in a split: fewer say little
SHOWN = 10  # names listed in the text of a report; `to_dict` has them all


@dataclass(frozen=True)
class ClassStats:
    """The usable clips of one class."""

    clips: int
    seconds: float
    groups: int
    splits: dict[str, int]  # clips in train, val and test


@dataclass(frozen=True)
class Duplicate:
    """Files (relative to the manifest) that decode to the very same samples."""

    paths: list[str]
    across_splits: bool  # of the manifest's own, or of those that `train` makes
    across_labels: bool


@dataclass(frozen=True)
class Report:
    """What `check` found. Durations are in seconds; everything but `problems` and `torn_groups` is of usable clips."""

    source: Path
    clips: int  # listed, usable or not
    classes: dict[str, ClassStats]
    without_label: int  # clips, of a manifest where they may have several labels or none
    groups: int
    durations: dict[str, float]  # min, median, max and total; empty when no clip is usable
    levels_db: dict[str, float]  # of the loudest 20 ms of a clip, of full scale: min, median and max; likewise
    sample_rates: dict[int, int]  # Hz -> clips, before resampling
    channels: dict[int, int]  # channel count -> clips, before mixing down
    imbalance: float  # clips of the largest class for each of the smallest
    problems: list[ClipProblem]
    duplicates: list[Duplicate]
    torn_groups: dict[str, list[str]]  # group -> the splits it is in
    missing: dict[str, list[str]]  # split -> the classes that have no clip there; empty when there are no splits
    warnings: list[str]  # a sentence each: what is wrong, and what to do about it
    trainable: bool  # whether `train` could split the usable clips, and no class has lost all of its own

    @property
    def leaks(self) -> bool:
        """Whether results would be flattered, or labels contradict each other."""
        return bool(self.torn_groups) or any(copy.across_splits or copy.across_labels for copy in self.duplicates)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data for JSON; paths are relative to the manifest."""
        problems = [{"path": _name(p, self.source), "kind": p.kind, "detail": p.detail} for p in self.problems]
        return {
            **vars(self),
            "source": str(self.source),
            "classes": len(self.classes),
            "by_label": {label: vars(stats) for label, stats in self.classes.items()},
            "problems": problems,
            "duplicates": [vars(copy) for copy in self.duplicates],
            "leaks": self.leaks,
        }

    def text(self) -> str:
        """The report for a person, in lines."""
        usable = self.clips - len(self.problems)
        lines = [
            f"{self.source}",
            f"{counted(usable, 'usable clip')}, {counted(len(self.classes), 'class', 'classes')},"
            f" {counted(self.groups, 'group')}, {self.durations.get('total', 0) / 60:.1f} min",
            "",
            *self._table(),
            "",
        ]
        if self.without_label:
            lines.append(f"no label    {counted(self.without_label, 'clip')}, which the others are told from")
        if self.durations:
            spans = (f"{self.durations[key]:.2f} s {key}" for key in ("min", "median", "max"))
            lines.append(f"duration    {', '.join(spans)}")
            loudest = (f"{self.levels_db[key]:.0f} dBFS {key}" for key in ("min", "median", "max"))
            lines.append(f"level       {', '.join(loudest)} (the loudest 20 ms of each clip)")
            lines.append("rate        " + ", ".join(f"{rate} Hz ({n})" for rate, n in self.sample_rates.items()))
            lines.append("channels    " + ", ".join(f"{channels} ({n})" for channels, n in self.channels.items()))
            lines.append(f"imbalance   {self.imbalance:.1f} clips of the largest class for one of the smallest")
        problems = [f"{_name(problem, self.source)}: {problem.detail}" for problem in self.problems]
        lines += _listing("problems", problems)
        lines += _listing("duplicates", [" = ".join(copy.paths) for copy in self.duplicates])
        lines += ["", *(f"warning: {warning}" for warning in self.warnings)] if self.warnings else ["", "no warnings"]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        splits = SPLITS if self.missing else ()
        rows = [["class", "clips", "seconds", "groups", *splits]]
        for label, stats in self.classes.items():
            numbers = [stats.clips, f"{stats.seconds:.1f}", stats.groups, *(stats.splits[split] for split in splits)]
            rows.append([label, *map(str, numbers)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def check(manifest: Manifest, store: ClipStore, *, progress: Progress | None = None) -> Report:
    """Decode every clip of a manifest and report on it. Raises nothing for what it finds: that is in the report."""
    usable: list[Clip] = []
    problems: list[ClipProblem] = []
    seconds: dict[Path, float] = {}
    copies: dict[bytes, list[Clip]] = {}
    formats: Counter[tuple[int, int]] = Counter()
    levels_db: dict[Clip, float] = {}
    loud: list[str] = []
    for clip, outcome in decode(manifest, store, progress=progress):
        if isinstance(outcome, ClipProblem):
            problems.append(outcome)
            continue
        usable.append(clip)
        seconds[clip.path] = len(outcome) / store.rate
        levels_db[clip] = loudest_db(outcome, store.rate)
        copies.setdefault(sound_digest(outcome), []).append(clip)
        formats[_format(clip.path)] += 1
        if float(np.abs(outcome).max()) > OVERLOAD:
            loud.append(relative(clip.path, manifest.folder))

    rest = replace(manifest, clips=tuple(usable))
    classes = class_stats(manifest.classes, rest, seconds)
    sizes = [stats.clips for stats in classes.values() if stats.clips]
    spans = sorted(round(span, 3) for span in seconds.values())
    levels = sorted(round(level, 1) for level in levels_db.values())
    has_splits = any(clip.split for clip in manifest.clips)
    try:
        made: Manifest | ManifestError = with_splits(rest, seed=0)
    except ManifestError as error:
        made = error
    split_of = {clip.path: clip.split for clip in (made if isinstance(made, Manifest) else rest).clips}
    report = Report(
        source=manifest.source,
        clips=len(manifest),
        classes=classes,
        without_label=sum(not clip.labels for clip in usable),
        groups=len({clip.group for clip in usable}),
        durations={"min": spans[0], "median": median(spans), "max": spans[-1], "total": round(sum(spans), 3)}
        if spans
        else {},
        levels_db={"min": levels[0], "median": median(levels), "max": levels[-1]} if levels else {},
        sample_rates=_tally((rate, n) for (rate, _), n in formats.items()),
        channels=_tally((channels, n) for (_, channels), n in formats.items()),
        imbalance=max(sizes) / min(sizes) if sizes else 1.0,
        problems=problems,
        duplicates=[_duplicate(clips, split_of, manifest.folder) for clips in copies.values() if len(clips) > 1],
        torn_groups=groups_across_splits(manifest),
        missing=missing_classes(rest) if has_splits else {},
        warnings=[],
        trainable=isinstance(made, Manifest) and all(stats.clips for stats in classes.values()),
    )
    of_splits = _warn_of_splits(manifest, rest, made)
    soft = filter(None, [hardly_heard(levels_db, manifest.folder)])
    return replace(report, warnings=[*_warn(report, dealt=not has_splits), *of_splits, *soft, *_warn_of_levels(loud)])


def class_stats(classes: list[str], manifest: Manifest, seconds: dict[Path, float]) -> dict[str, ClassStats]:
    """Of each class what its clips are, zeros where it has none; `seconds` is how long each clip lasts."""
    clips: dict[str, list[Clip]] = {label: [] for label in classes}
    for clip in manifest.clips:
        for label in clip.labels:
            clips[label].append(clip)
    return {label: _stats(of, seconds) for label, of in clips.items()}


def _stats(clips: list[Clip], seconds: dict[Path, float]) -> ClassStats:
    splits = Counter(clip.split for clip in clips)
    return ClassStats(
        clips=len(clips),
        seconds=round(sum(seconds[clip.path] for clip in clips), 3),
        groups=len({clip.group for clip in clips}),
        splits={split: splits[split] for split in SPLITS},
    )


def _format(path: Path) -> tuple[int, int]:
    import soundfile

    with open(path, "rb") as file:  # soundfile takes no name that is not UTF-8
        info = soundfile.info(file)
    return int(info.samplerate), int(info.channels)


def _tally(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for key, n in pairs:
        total[key] += n
    return dict(sorted(total.items()))


def _duplicate(clips: list[Clip], split_of: dict[Path, str | None], folder: Path) -> Duplicate:
    return Duplicate(
        paths=[relative(clip.path, folder) for clip in clips],
        across_splits=len({split_of[clip.path] for clip in clips}) > 1,
        across_labels=len({frozenset(clip.labels) for clip in clips}) > 1,
    )


def _warn(report: Report, *, dealt: bool) -> list[str]:
    """What is wrong with the clips; `dealt`: the manifest has no splits of its own, and `train` makes them."""
    warnings = []
    if report.problems:
        kinds = ", ".join(f"{n} {kind}" for kind, n in count_kinds(report.problems).items())
        warnings.append(f"{counted(len(report.problems), 'clip')} cannot be used ({kinds}): mend or remove them")
    lost = [label for label, stats in report.classes.items() if not stats.clips]
    if lost:
        warnings.append(f"no clip of class {some(lost)} can be used: mend them, or take the class out of the manifest")
    if report.torn_groups:
        warnings.append(
            f"leak: group {some(list(report.torn_groups))} is in several splits: keep all clips of a group in one"
            " split, or make new splits with `confit-edge data split --anew`"
        )
    mislabelled = [copy for copy in report.duplicates if copy.across_labels]
    leaking = [copy for copy in report.duplicates if copy.across_splits and not copy.across_labels]
    warnings += _each(mislabelled, "leak: the same sound has different labels", "remove the wrong ones")
    stands, or_else = (
        ("comes to stand", ", or give them one `group`, which stays in one split") if dealt else ("is", "")
    )
    warnings += _each(leaking, f"leak: the same sound {stands} in several splits", f"keep one of them{or_else}")
    harmless = [copy for copy in report.duplicates if not (copy.across_labels or copy.across_splits)]
    if harmless:
        warnings.append(
            f"{counted(len(harmless), 'sound')} listed more than once (such as {some(harmless[0].paths)}): keep one of"
            " each, or they weigh double and may come to stand in two splits"
        )
    if len(report.classes) == 1 and not report.without_label:
        warnings.append(
            f"there is one class only, {some(list(report.classes))}: train it with --others, what it is to be told from"
        )
    if report.imbalance >= IMBALANCE:
        used = {label: stats.clips for label, stats in report.classes.items() if stats.clips}
        small = min(used, key=used.__getitem__)
        warnings.append(
            f"the largest class has {report.imbalance:.0f} clips for each of {small!r}: collect more of small classes"
        )
    if len(report.sample_rates) > 1:
        warnings.append(
            "the clips have several sample rates, and all are resampled to one: see that no class has a rate of its"
            " own, or the model learns the recorder in place of the sound"
        )
    warnings += misspelt({label: stats.clips for label, stats in report.classes.items()})
    return [*warnings, *filter(None, [joined(report.classes), advice_on_background(report.classes)])]


def _each(copies: list[Duplicate], fault: str, cure: str) -> list[str]:
    """A line for each of the first, and one for the rest."""
    lines = [f"{fault} ({some(copy.paths)}): {cure}" for copy in copies[:SHOWN]]
    more = len(copies) - SHOWN
    return [*lines, f"{fault}: {counted(more, 'more sound')}, which --json lists: {cure}"] if more > 0 else lines


def _warn_of_splits(manifest: Manifest, usable: Manifest, made: Manifest | ManifestError) -> list[str]:
    """What stands in the way of splits, or of trusting them; `made` is what `train` would make of the usable clips."""
    warnings = []
    if alone := ungrouped(manifest):
        warnings.append(f"{alone}: {_without_groups(manifest)}")
    if groups_across_splits(usable):
        return warnings  # told already, and the first thing with_splits would say
    if isinstance(made, ManifestError):
        return [*warnings, f"cannot be trained on: {str(made).removeprefix(f'{manifest.source}: ')}"]
    warnings += filter(None, [untested(made), told_from_nothing(made)])
    for split, use in (("train", "learned from"), ("val", "that epochs and thresholds are chosen by")):
        clips = Counter(label for clip in made.select(split).clips for label in clip.labels)
        if few := [label for label in made.classes if clips[label] < FEW_CLIPS]:
            warnings.append(f"{having(few)} fewer than {FEW_CLIPS} clips {use} ({split}): collect more, of more groups")
    return warnings


def _without_groups(manifest: Manifest) -> str:
    if any(clip.split for clip in manifest.clips):  # whether they were published or dealt out is not written down
        return (
            "whether one speaker or one recording is in two splits cannot be checked. A published split may keep them apart;"
            " one that was made without groups does not, and results are too good: a `group` column tells"
        )
    tables = sorted(manifest.folder.glob("manifest.*")) if manifest.source.is_dir() else []
    cure = f"read {tables[0].name} in that folder" if tables else "add a `group` column or CLASS/GROUP/ folders"
    if any(clip.called_by_group for clip in manifest.clips):
        cure = "unless each gave one, name it as their `group`: one that is the name of its only file says nothing"
    return (
        "where one speaker or one recording gave several clips they end up in train and test both, and results are too"
        f" good; {cure}"
    )


def _warn_of_levels(loud: list[str]) -> list[str]:
    if not loud:
        return []
    return [f"{counted(len(loud), 'clip')} far beyond full scale ({some(loud)}): scale float files to -1..1"]


def _listing(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  ... and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return ["", f"{title} ({len(entries)})", *(f"  {entry}" for entry in entries[:SHOWN]), *more]


def _name(problem: ClipProblem, source: Path) -> str:
    return relative(problem.path, source if source.is_dir() else source.parent)
