"""What a training records about its clips, and the notes and warnings about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from confit_edge import runs
from confit_edge.data.clips import ClipProblem
from confit_edge.data.corpus import Clips, Corpus
from confit_edge.data.manifest import advice_on_background
from confit_edge.data.names import joined_labels_warning, misspelt_warnings
from confit_edge.data.splits import single_label_warning, untested_warning
from confit_edge.encoders.base import Encoder
from confit_edge.pairtune.distill import TeachingRun
from confit_edge.pairtune.distributed import Ranks
from confit_edge.progress import Watcher
from confit_edge.recipe import Recipe
from confit_runtime.data_warnings import data_warnings
from confit_runtime.formatting import format_count, format_duration, format_list, format_quoted_list


def note(notify: Watcher, text: str) -> None:
    notify({"stage": "note", "text": text})


def note_other_window(encoder: Encoder, recipe: Recipe, notify: Watcher) -> None:
    """Note where the encoder's window differs from what --window asks for."""
    lasts_s = encoder.window / encoder.sample_rate
    if recipe.window != Recipe.window and abs(lasts_s - recipe.window) > 0.05 * recipe.window:
        nearest = f"{recipe.encoder} makes an embedding from {lasts_s:.2f} s, the nearest length that it supports"
        note(notify, f"--window {recipe.window:g}: {nearest}")


def report_left_out(problems: list[ClipProblem], ranks: Ranks, notify: Watcher) -> None:
    """Report the clips that any process left out: a clip may be damaged on one machine only."""
    reported: list[dict[str, Any]] = []
    for index, events in enumerate(ranks.gather_plain("clips left out", list(map(left_out_event, problems)))):
        new = [event for event in events if event not in reported]
        reported += new
        for event in new:
            notify({**event, "detail": f"on process {index}: {event['detail']}"} if index else event)


def warn_about_unlabelled(corpus: Corpus, teaching: TeachingRun, notify: Watcher) -> None:
    """Warn where a student learns from the background that its thresholds are set on."""
    if heard := teaching.recordings_of_thresholds(corpus):
        note(
            notify,
            f"warning: --unlabelled: thresholds are set on background in {format_quoted_list(list(map(str, heard)))}, and a"
            " student that has learnt it looks too good there; give other sound",
        )


def remarks(corpus: Corpus, data: dict[str, Any]) -> Iterator[str]:
    """Notes and warnings about the clips, for the user before training begins; `data` describes the clips."""
    parts = (_counted(data, name) for name in ("train", "val", "test"))
    named = f"{format_count(len(corpus.classes), 'class', 'classes')} ({format_quoted_list(corpus.classes)})"
    yield "{}: {} for training, {} for validation, {} for testing".format(named, *parts)
    if corpus.background_train:
        learnt, kept = (format_duration(data[key]) for key in ("background_train_s", "background_val_s"))
        which = format_list(corpus.background_kept, 4) or "the end of each recording"
        yield f"background: {learnt} for training, {kept} for thresholds ({which})"
    labels = Counter(label for clip in corpus.manifest.clips for label in clip.labels)
    single_label = None if corpus.background_train else single_label_warning(corpus.manifest)
    suspects = [joined_labels_warning(labels), untested_warning(corpus.manifest), single_label]
    for suspect in [*misspelt_warnings(labels), *filter(None, suspects)]:
        yield f"warning: {suspect}"
    yield from corpus.notes
    for caution in [*data_warnings(data), *filter(None, [advice_on_background(corpus.classes)])]:
        yield f"warning: {caution}"
    for one, other in corpus.contradictions():
        yield f"warning: {one} and {other} are the same sound with different labels; remove the wrong one"


def left_out_event(problem: ClipProblem) -> dict[str, Any]:
    """The event that reports a clip or recording as left out."""
    return {"stage": "problem", "path": str(problem.path), "kind": problem.kind, "detail": problem.detail}


def describe_data(manifest: Path, corpus: Corpus, rate: int) -> dict[str, Any]:
    """The description of the training data for `run.json`."""
    splits = {"train": corpus.train, "val": corpus.val, "test": corpus.test}
    return {
        "manifest": str(manifest.resolve()),
        "fingerprint": corpus.fingerprint,
        **runs.sizes(corpus, rate),
        "own": {name: count_firing(clips, corpus) for name, clips in splits.items()},
        "grouped": corpus.manifest.grouped,
        "problems": dict(Counter(problem.kind for problem in corpus.problems)),
        "repeated": corpus.repeated(),
        "multi_label": corpus.multi_label,
    }


def _counted(data: dict[str, Any], split: str) -> str:
    clips, groups, own = data["clips"][split], data["groups"][split], data["own"][split]
    of_them = f" ({own['clips']} of classes that fire)" if own["clips"] < clips else ""
    return f"{format_count(clips, 'clip')} of {format_count(groups, 'group')}{of_them}"


def count_firing(clips: Clips, corpus: Corpus) -> dict[str, int]:
    """The number of clips, and of their groups, whose label fires: any label but the unknown class."""
    unknown = corpus.unknown_column
    fires = clips.targets if unknown is None else np.delete(clips.targets, unknown, axis=1)
    rows = np.flatnonzero(fires.any(axis=1))
    return {"clips": len(rows), "groups": len({clips.groups[row] for row in rows})}
