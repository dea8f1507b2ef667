"""Check a manifest: what it holds, and what would spoil training on it, such as damaged clips, leaks and missing classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from confit_edge.data.clips import (
    ClipProblem,
    ClipStore,
    count_kinds,
    decode,
    quiet_clips_warning,
    sound_digest,
)
from confit_edge.data.manifest import SPLITS, Clip, Manifest, advice_on_background
from confit_edge.data.names import joined_labels_warning, misspelt_warnings
from confit_edge.data.splits import (
    classes_have,
    groups_across_splits,
    members,
    missing_classes,
    single_label_warning,
    ungrouped_warning,
    untested_warning,
    with_splits,
)
from confit_edge.data.tables import ManifestError, relative
from confit_edge.progress import Progress
from confit_runtime.formatting import format_count, format_quoted_list, format_table
from confit_runtime.frames import loudest_db

IMBALANCE = 10.0  # warn when the largest class has this many times the clips of the smallest
OVERLOAD = 2.0  # full scale is 1; resampling and lossy codecs overshoot it slightly, forgotten scaling by a lot
FEW_CLIPS = 5  # clips of a class in a split: fewer tell little about the class
SHOWN = 10  # names listed in the text of a report; `to_dict` lists all of them


@dataclass(frozen=True)
class ClassStats:
    """The usable clips of one class."""

    clips: int
    seconds: float
    groups: int
    splits: dict[str, int]  # clips in train, val and test


@dataclass(frozen=True)
class Duplicate:
    """Files (relative to the manifest) that decode to exactly the same samples."""

    paths: list[str]
    across_splits: bool  # the manifest's own splits, or those that `train` would make
    across_labels: bool


@dataclass(frozen=True)
class Report:
    """What `check` found. Durations are in seconds; all but `clips`, `problems` and `torn_groups` count usable clips only."""

    source: Path
    clips: int  # listed clips, usable or not
    classes: dict[str, ClassStats]
    without_label: int  # clips without a label, which only a multi-label manifest can have
    groups: int
    durations: dict[str, float]  # min, median, max and total; empty when no clip is usable
    levels_db: dict[str, float]  # dBFS of each clip's loudest 20 ms: min, median and max; empty when no clip is usable
    sample_rates: dict[int, int]  # Hz -> clips, before resampling
    channels: dict[int, int]  # channel count -> clips, before mixing down
    imbalance: float  # clips of the largest class divided by clips of the smallest
    problems: list[ClipProblem]
    duplicates: list[Duplicate]
    torn_groups: dict[str, list[str]]  # group -> the splits it is in
    missing: dict[str, list[str]]  # split -> the classes with no clip in it; empty when there are no splits
    warnings: list[str]  # a sentence each: what is wrong, and what to do about it
    trainable: bool  # whether `train` could split the usable clips, and every class still has a usable clip

    @property
    def leaks(self) -> bool:
        """Whether the data would make results look too good, or labels contradict each other."""
        return bool(self.torn_groups) or any(copy.across_splits or copy.across_labels for copy in self.duplicates)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain data for JSON; paths are relative to the manifest."""
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
        """The report as lines of text for a person to read."""
        usable = self.clips - len(self.problems)
        lines = [
            f"{self.source}",
            f"{format_count(usable, 'usable clip')}, {format_count(len(self.classes), 'class', 'classes')},"
            f" {format_count(self.groups, 'group')}, {self.durations.get('total', 0) / 60:.1f} min",
            "",
            *self._table(),
            "",
        ]
        if self.without_label:
            lines.append(f"no label    {format_count(self.without_label, 'clip')}, as counterexamples of the classes")
        if self.durations:
            spans = (f"{self.durations[key]:.2f} s {key}" for key in ("min", "median", "max"))
            lines.append(f"duration    {', '.join(spans)}")
            loudest = (f"{self.levels_db[key]:.0f} dBFS {key}" for key in ("min", "median", "max"))
            lines.append(f"level       {', '.join(loudest)} (the loudest 20 ms of each clip)")
            lines.append("rate        " + ", ".join(f"{rate} Hz ({n})" for rate, n in self.sample_rates.items()))
            lines.append("channels    " + ", ".join(f"{channels} ({n})" for channels, n in self.channels.items()))
            lines.append(
                f"imbalance   {self.imbalance:.1f} times as many clips in the largest class as in the smallest"
            )
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
        return format_table(rows)


def check(manifest: Manifest, store: ClipStore, *, progress: Progress | None = None) -> Report:
    """Decode every clip of a manifest and report on it. Faults it finds go into the report; it raises nothing for them."""
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
    of_splits = _warn_about_splits(manifest, rest, made)
    quiet = filter(None, [quiet_clips_warning(levels_db, manifest.folder)])
    return replace(
        report,
        warnings=[*_warn_about_clips(report, dealt=not has_splits), *of_splits, *quiet, *_warn_about_levels(loud)],
    )


def class_stats(classes: list[str], manifest: Manifest, seconds: dict[Path, float]) -> dict[str, ClassStats]:
    """The statistics of each class, zeros for a class without clips; `seconds` is the duration of each clip."""
    return {label: _stats(clips, seconds) for label, clips in members(classes, manifest).items()}


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

    with open(path, "rb") as file:  # soundfile does not accept a name that is not UTF-8
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


def _warn_about_clips(report: Report, *, dealt: bool) -> list[str]:
    """Warnings about the clips. `dealt` means that the manifest has no splits of its own, so `train` makes them."""
    warnings = []
    if report.problems:
        kinds = ", ".join(f"{n} {kind}" for kind, n in count_kinds(report.problems).items())
        warnings.append(f"{format_count(len(report.problems), 'clip')} cannot be used ({kinds}): repair or remove them")
    lost = [label for label, stats in report.classes.items() if not stats.clips]
    if lost:
        warnings.append(f"{classes_have(lost)} no usable clip: repair the clips, or remove the class from the manifest")
    if report.torn_groups:
        torn = list(report.torn_groups)
        groups_are = (
            f"group {format_quoted_list(torn)} is" if len(torn) == 1 else f"groups {format_quoted_list(torn)} are"
        )
        warnings.append(
            f"leak: {groups_are} in several splits: keep all clips of a group in one split, or make new splits with"
            " `confit-edge data split --anew`"
        )
    mislabelled = [copy for copy in report.duplicates if copy.across_labels]
    leaking = [copy for copy in report.duplicates if copy.across_splits and not copy.across_labels]
    warnings += _each(mislabelled, "leak: the same sound has different labels", "remove the wrong ones")
    stands, or_else = (
        ("ends up", ", or give the copies the same `group`, which stays in one split") if dealt else ("is", "")
    )
    warnings += _each(leaking, f"leak: the same sound {stands} in several splits", f"keep one copy{or_else}")
    harmless = [copy for copy in report.duplicates if not (copy.across_labels or copy.across_splits)]
    if harmless:
        warnings.append(
            f"{format_count(len(harmless), 'sound is', 'sounds are')} listed more than once (such as"
            f" {format_quoted_list(harmless[0].paths)}):"
            " keep one copy of each, or they count twice and may end up in two splits"
        )
    if len(report.classes) == 1 and not report.without_label:
        warnings.append(
            f"there is only one class, {format_quoted_list(list(report.classes))}: to train, give clips of other"
            " sounds with --others"
        )
    if report.imbalance >= IMBALANCE:
        used = {label: stats.clips for label, stats in report.classes.items() if stats.clips}
        small = min(used, key=used.__getitem__)
        warnings.append(
            f"the largest class has {report.imbalance:.0f} times as many clips as {small!r}: collect more clips of the small"
            " classes"
        )
    if len(report.sample_rates) > 1:
        warnings.append(
            "the clips have several sample rates, and training resamples them all to one: make sure that no class has a"
            " rate of its own, or the model learns the recorder instead of the sound"
        )
    warnings += misspelt_warnings({label: stats.clips for label, stats in report.classes.items()})
    return [*warnings, *filter(None, [joined_labels_warning(report.classes), advice_on_background(report.classes)])]


def _each(copies: list[Duplicate], fault: str, cure: str) -> list[str]:
    """A line for each of the first `SHOWN` sounds, and one line for the rest."""
    lines = [f"{fault} ({format_quoted_list(copy.paths)}): {cure}" for copy in copies[:SHOWN]]
    more = len(copies) - SHOWN
    return [*lines, f"{fault}: {format_count(more, 'more sound')} (--json lists them): {cure}"] if more > 0 else lines


def _warn_about_splits(manifest: Manifest, usable: Manifest, made: Manifest | ManifestError) -> list[str]:
    """Warnings about the splits: why they cannot be made or trusted. `made` is what `train` would make of the usable clips."""
    warnings = []
    if ungrouped_text := ungrouped_warning(manifest):
        warnings.append(f"{ungrouped_text}: {_without_groups(manifest)}")
    if groups_across_splits(usable):
        return warnings  # `_warn_about_clips` has reported it already, and with_splits would raise it first
    if isinstance(made, ManifestError):
        return [*warnings, f"cannot be used for training: {str(made).removeprefix(f'{manifest.source}: ')}"]
    warnings += filter(None, [untested_warning(made), single_label_warning(made)])
    for split, use in (("train", "to learn from"), ("val", "to choose epochs and thresholds by")):
        clips = Counter(label for clip in made.select(split).clips for label in clip.labels)
        if few := [label for label in made.classes if clips[label] < FEW_CLIPS]:
            warnings.append(
                f"{classes_have(few)} fewer than {FEW_CLIPS} clips {use} ({split}): collect more, from more groups"
            )
    return warnings


def _without_groups(manifest: Manifest) -> str:
    if any(clip.split for clip in manifest.clips):  # the manifest does not record whether a split was published or made
        return (
            "the check cannot tell whether a speaker or recording is in two splits. A published split may keep them apart; a"
            " split made without groups does not, and its results are too good. Add a `group` column to find out"
        )
    tables = sorted(manifest.folder.glob("manifest.*")) if manifest.source.is_dir() else []
    cure = f"use {tables[0].name} in that folder instead" if tables else "add a `group` column or CLASS/GROUP/ folders"
    if any(clip.is_named_by_group for clip in manifest.clips):
        cure = "set their `group` to that speaker or recording (a group named after its only file says nothing)"
    return (
        "if a speaker or recording gave several clips, they end up in both train and test, and results are too good;"
        f" {cure}"
    )


def _warn_about_levels(loud: list[str]) -> list[str]:
    if not loud:
        return []
    return [
        f"{format_count(len(loud), 'clip goes', 'clips go')} far beyond full scale ({format_quoted_list(loud)}):"
        " scale float files to -1..1"
    ]


def _listing(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  ... and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return ["", f"{title} ({len(entries)})", *(f"  {entry}" for entry in entries[:SHOWN]), *more]


def _name(problem: ClipProblem, source: Path) -> str:
    return relative(problem.path, source if source.is_dir() else source.parent)
