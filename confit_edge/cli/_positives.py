"""Clips of a model's sounds, for `calibrate --positives` and `evaluate`, and what the model hears in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote

from confit_edge.cli._console import Bar, say
from confit_edge.data.manifest import Clip, read_manifest
from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm, load_clip, sound_seconds
from confit_runtime.calibration import Positive, firing_label_indices, score_positive
from confit_runtime.contract import Contract
from confit_runtime.errors import UsageError, clip_errors
from confit_runtime.formatting import format_count, format_list
from confit_runtime.labels import LabelledRecording, csv_columns, has_label_file
from confit_runtime.scoring import SoundEvent
from confit_runtime.sources.files import find_sound_files

TABLE_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".pq")  # of manifests that are not CSV


def read_positives(
    source: Path, contract: Contract, label_column: str | None = None, group_column: str | None = None
) -> list[Clip]:
    """The clips with a label that can fire; only those of test if there are any.

    Clips with several labels are kept only for a model that detects several. Raises as `read_manifest`, whose columns these
    are, and AudioError on a clip that cannot be opened as sound, before the hours of work.
    """
    wanted = [contract.labels[place] for place in firing_label_indices(contract)]
    found, several, others = list[Clip](), 0, Counter[str]()
    read = read_manifest(
        source, label_column=label_column or "label", group_column=group_column or "group", min_classes=0
    )
    for clip in read.clips:
        if len(clip.labels) > 1 and not contract.multi_label:
            several += 1
        elif set(clip.labels).isdisjoint(wanted):
            others["|".join(clip.labels) or "no label"] += 1
        else:
            found.append(clip)
    if several:
        say(
            f"{source}: left out {format_count(several, 'clip')} with several labels, because {contract.name}"
            " gives a clip one label"
        )
    if others:
        named = format_list([f"{label} ({clips})" for label, clips in sorted(others.items())])
        say(f"{source}: left out clips without a label that can fire: {named}")
    if not found:
        raise UsageError(f"{source}: holds none of the labels that can fire ({format_list(wanted)})")
    asked = "".join(
        f" --{option} {quote(name)}"
        for option, name in (("label-column", label_column), ("group-column", group_column))
        if name
    )
    found = _select_test_clips(source, found, wanted, asked)
    for clip in found:
        sound_seconds(clip.path)
    _warn_without_groups(source, found, ", or name one with --group-column")
    return found


def _warn_without_groups(source: Path, clips: list[Clip], or_else: str) -> None:
    if len(clips) > 1 and all(clip.has_no_group for clip in clips):
        say(
            f"warning: {source}: has no groups, so the interval of missed clips treats each clip as independent and is too"
            f" narrow if a speaker or recording gave several; add a column `group`{or_else}"
        )


def holds_clips(source: Path) -> bool:
    """Whether `source` holds labelled clips, as a manifest does, rather than recordings in which sounds are labelled.

    A folder holds clips if it has sub-folders with sound, and no recording has a label file next to it.
    """
    if source.is_dir():
        sounds = find_sound_files(source)
        return any(sound.parent != source for sound in sounds) and not any(map(has_label_file, sounds))
    if source.suffix.lower() != ".csv" or not source.is_file():
        return source.suffix.lower() in TABLE_SUFFIXES
    columns = csv_columns(source)  # a start by another name is a mistake in a table of recordings, not a manifest
    return ("label" in columns or "labels" in columns) and not any(name.startswith("start") for name in columns)


def clips_as_recordings(source: Path, contract: Contract, names: Sequence[str] = ()) -> list[LabelledRecording]:
    """The clips of a manifest or of a class folder as recordings of one sound each, from their beginning to their end.

    If there are clips of test, only those. Raises as `read_manifest`, and AudioError on a clip that cannot be opened as sound.
    """
    wanted = [*contract.can_fire, *names]
    clips, recordings = list(read_manifest(source, min_classes=0).clips), list[LabelledRecording]()
    manifests = sorted(source.glob("manifest.*"))  # of a folder
    if manifests and _labels(clips).isdisjoint(wanted):
        raise UsageError(
            f"{source}: none of its sub-folders is a label of the model; to use its manifest, give {manifests[0]}"
        )
    clips = _select_test_clips(source, clips, wanted, "")
    _warn_without_groups(source, clips, "")
    for clip in clips:
        seconds = sound_seconds(clip.path)
        sounds = [SoundEvent(label, 0.0, seconds) for label in clip.labels]
        recordings.append(LabelledRecording(clip.path, seconds, sounds, {clip.group}))
    return recordings


def _select_test_clips(source: Path, clips: list[Clip], wanted: Sequence[str], asked: str) -> list[Clip]:
    """The clips of test, or all clips, with a warning, if none is known to be: a model misses fewer of its training clips.

    `asked` are the options by which `source` was read, for a command in the warning.
    """
    test = [clip for clip in clips if clip.split == "test"]
    if test and len(test) < len(clips):
        say(
            f"{source}: left out {format_count(len(clips) - len(test), 'clip')} of other splits than test, because a model misses"
            " fewer of the clips it was trained on (without the column `split`, all clips count)"
        )
        if missing := sorted({label for clip in clips for label in clip.labels if label in wanted} - _labels(test)):
            say(f"warning: {source}: has no test clip of {', '.join(missing)}, so its misses are not measured")
    elif not test and any(clip.split for clip in clips):
        say(
            f"warning: {source}: has splits, but none of these clips is in test; if the model was trained on them, it will miss"
            " more of other clips"
        )
    elif not test:
        say(
            f"warning: {source}: has no splits, so all of it counts ({format_count(len(clips), 'clip')}); if the model was"
            " trained on some of them, it will miss more of other clips. `confit-edge data split"
            f" {quote(str(source))} -o OUT.csv{asked}`"
            " makes the splits that `train` made of the same clips. Give it the training's --seed, --label-column,"
            " --group-column and --split-by, or its test will hold training clips"
        )
    return test or clips


def _labels(clips: list[Clip]) -> set[str]:
    return {label for clip in clips for label in clip.labels}


def hear(
    contract: Contract, clips: Sequence[Clip], score_clip: Callable[[Pcm], Floats], json_lines: bool
) -> list[Positive]:
    """What is heard of each label that can fire in each clip, which `score_clip` turns into score rows."""
    wanted, heard = {contract.labels[place] for place in firing_label_indices(contract)}, []
    with Bar(json_lines, before="clips") as bar:
        for done, clip in enumerate(clips, start=1):
            with clip_errors(clip.path):
                rows = score_clip(load_clip(clip.path, contract.sample_rate))
            for label in clip.labels:
                if label in wanted:
                    heard.append(score_positive(contract, label, clip.group, rows, clip.labels))
            bar.show("clips", len(clips), done, clips=f"{done} of {len(clips)}")
    return heard
