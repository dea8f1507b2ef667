"""The clips of a model's sounds that `calibrate` is given, and what is heard in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from confit_edge.cli._console import Bar, say
from confit_edge.data.manifest import Clip, check_columns, labels_of, refuse_times
from confit_edge.data.tables import read_table
from confit_runtime.audio import load_clip, sound_seconds
from confit_runtime.calibration import Positive, hear_positive, may_fire
from confit_runtime.contract import Contract
from confit_runtime.errors import UsageError, of_clip
from confit_runtime.model import Model
from confit_runtime.recordings import clip_rows
from confit_runtime.wording import counted, listed


def read_positives(
    source: Path, contract: Contract, label_column: str | None = None, group_column: str | None = None
) -> list[Clip]:
    """The clips that hold a label that can fire; of several labels where the model tells several; only those of test
    where it has such.

    The columns are those of `read_manifest`. Raises UsageError, and AudioError on a clip that cannot be opened as sound:
    before anything takes hours.
    """
    wanted = [contract.labels[place] for place in may_fire(contract)]
    column, group_by = label_column or "label", group_column or "group"
    columns, rows = read_table(source, {"path", column, "labels", group_by, "split"})
    refuse_times(source, columns)
    if column == "label" and "label" not in columns and "labels" in columns:
        column = "labels"
    check_columns(source, columns, column, group_by)
    folder, found = source if source.is_dir() else source.parent, list[Clip]()
    several, others = 0, Counter[str]()
    for where, row in rows:
        labels = labels_of(row[column], column, f"{source}, {where}")
        if len(labels) > 1 and not contract.multi_label:
            several += 1
        elif set(labels).isdisjoint(wanted):
            others["|".join(labels) or "no label"] += 1
        else:
            group, split = str(row.get(group_by) or row["path"]), str(row.get("split") or "").strip() or None
            found.append(Clip((folder / str(row["path"])).absolute(), labels, group, split))
    if several:
        say(f"{source}: left out {counted(several, 'clip')} of several labels, for {contract.name} tells one of a clip")
    if others:
        named = listed([f"{label} ({clips})" for label, clips in sorted(others.items())])
        say(f"{source}: left out, being none of the labels that can fire: {named}")
    if not found:
        raise UsageError(f"{source}: holds none of the labels that can fire ({listed(wanted)})")
    asked = "".join(
        f" --{option} {quote(name)}"
        for option, name in (("label-column", label_column), ("group-column", group_column))
        if name
    )
    found = _of_test(source, found, wanted, asked)
    for clip in found:
        sound_seconds(clip.path)
    if len(found) > 1 and all(clip.alone for clip in found):
        say(
            f"beware: {source}: does not tell which clips are of one speaker or one recording, so the interval of what is"
            " missed takes each as independent and is too narrow where one gave several: a column `group` tells, or name it"
            " with --group-column"
        )
    return found


def _of_test(source: Path, clips: list[Clip], wanted: Sequence[str], asked: str) -> list[Clip]:
    """The clips of test, or all where none is known to be, which is told: what a model was learnt from it misses less of.

    `asked` are the options that say how `source` is read, for a command on it.
    """
    test = [clip for clip in clips if clip.split == "test"]
    if test and len(test) < len(clips):
        say(
            f"{source}: left out {counted(len(clips) - len(test), 'clip')} of other splits than test, for what the model was"
            " learnt from it misses less of (without the column `split` all are heard)"
        )
        if untold := sorted({label for clip in clips for label in clip.labels if label in wanted} - _labels(test)):
            say(f"beware: {source}: has no clip of test of {', '.join(untold)}: what is missed of it is not known")
    elif not test and any(clip.split for clip in clips):
        say(
            f"beware: {source}: has splits, and none of these clips is of test: if the model was learnt from them, it misses more"
            " of others"
        )
    elif not test:
        say(
            f"beware: {source}: does not tell which clips are of test, so all of it counts ({counted(len(clips), 'clip')}): if"
            " the model was learnt from some, it misses more of others. `confit-edge data split"
            f" {quote(str(source))} -o OUT.csv{asked}` tells them apart, as `train` did of the same clips: give it the --seed,"
            " --label-column, --group-column and --split-by that the training was given, or clips it learnt from are among"
            " those of test"
        )
    return test or clips


def _labels(clips: list[Clip]) -> set[str]:
    return {label for clip in clips for label in clip.labels}


def hear(loaded: Model, contract: Contract, clips: Sequence[Clip], json_lines: bool) -> list[Positive]:
    """What is heard of each label of each clip that can fire."""
    wanted, heard = {contract.labels[place] for place in may_fire(contract)}, []
    with Bar(json_lines, before="clips") as bar:
        for done, clip in enumerate(clips, start=1):
            with of_clip(clip.path):
                rows = clip_rows(loaded, load_clip(clip.path, contract.sample_rate))
            for label in clip.labels:
                if label in wanted:
                    heard.append(hear_positive(contract, label, clip.group, rows, clip.labels))
            bar.show("clips", len(clips), done, clips=f"{done} of {len(clips)}")
    return heard
