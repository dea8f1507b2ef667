"""Warnings about clips that are about to be enrolled and would spoil answers later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from shlex import quote
from typing import TYPE_CHECKING

from confit_edge.cli._console import say
from confit_runtime.formatting import format_count, format_distinct

if TYPE_CHECKING:
    from confit_runtime.arrays import Floats
    from confit_runtime.enrollment import ClipPrints, Kind
    from confit_runtime.gallery import Gallery
    from confit_runtime.model import Model

MANY_SOUNDS = 5  # in one clip: more suggest a recording that also holds other sounds


def warn_about_prints(
    name: str, taken: list[tuple[str, ClipPrints]], model: Model, gallery: Gallery | None, kind: Kind, *, negative: bool
) -> None:
    """Warn about prints of `name`, or negative prints of it, that would spoil answers.

    What negative prints would silence is for `check_negatives`.
    """
    if kind == "sound":
        _warn_about_quiet_clips(model, taken)
        _warn_about_several_sounds(taken)
    if negative:
        return
    _warn_about_calibration(model, name, kind)
    if kind == "sound":
        _warn_about_generic_sounds(model, taken)
        _warn_about_known_label(model, name, taken)
    if gallery is not None and set(gallery.names()) - {name}:
        _warn_about_recognised_as_others(name, taken, gallery)
    if kind == "speaker":
        _warn_about_non_voices(model, taken)
        _warn_about_outliers(name, taken, model, gallery)


def _warn_about_calibration(model: Model, name: str, kind: Kind) -> None:
    """Warn if `export` could not measure how many strangers reach the threshold of names, or if names hardly reach it."""
    from confit_runtime.matcher import refuses_own_sounds

    measured = model.contract.calibration.get("enroll", {})
    if {"trials", "classes"} <= measured.keys() and "false_accept_rate" not in measured:
        trials = format_count(measured["trials"], "trial")
        say(
            f"warning: how many strangers pass for {name} is unknown: {model.name} was calibrated with {trials} of"
            f" {format_count(measured['classes'], 'class', 'classes')}, too few to tell, so its threshold is a guess; ask"
            f" `confit-edge identify` about sounds that are not {name}, or train with more classes"
        )
    elif refuses_own_sounds(measured):
        say(
            f"warning: most sounds of {name} will be answered 'unknown': to {model.name}, one stranger in a hundred is more like"
            f" a name ({measured['threshold']:.4f}) than its own prints are like each other ({measured['genuine']:.4f}); train"
            f" with more epochs or classes{', or enroll people with `speakers`' if kind == 'speaker' else ''}"
        )


def _warn_about_known_label(model: Model, name: str, taken: list[tuple[str, ClipPrints]]) -> None:
    """Warn if the model has a label for most of the sounds: the label fires too, and the cohort holds such sounds."""
    sounds = [sound for _, one in taken for sound in one.sounds]
    labels = Counter(label for sound in sounds for label in model.classify(sound, model.contract.sample_rate).labels)
    label, count = (labels.most_common(1) or [("", 0)])[0]
    if own := [one for one in model.contract.target_labels if one.casefold() == name.casefold()]:
        say(
            f"warning: {own[0]!r} is also a label of {model.name}, so a sound may be reported twice; choose another name"
        )
    elif 2 * count > len(sounds) and label in model.contract.target_labels:
        say(
            f"warning: most of these sounds are like {label!r}, a label of {model.name}, which will fire too; asked for {name!r},"
            " they will often be taken for a stranger"
        )


def _warn_about_quiet_clips(model: Model, taken: list[tuple[str, ClipPrints]]) -> None:
    """Warn about clips that to the model resemble a quiet room, where the name would then fire."""
    from confit_runtime.enrollment import QUIET_SIMILARITY

    for clip, alike in _similarities(taken, model.quiet):
        if alike >= QUIET_SIMILARITY:
            say(
                f"warning: {clip}: to {model.name} it is almost like a quiet room (similarity {alike:.2f}), so the name may fire"
                " in any; record it louder or nearer"
            )


def _similarities(taken: list[tuple[str, ClipPrints]], others: Floats) -> Iterator[tuple[str, float]]:
    """For each clip, the highest cosine between one of its prints and one of `others [n, dim]`."""
    for clip, one in taken:
        yield clip, float((one.embeddings @ others.T).max(initial=-1.0))


def _warn_about_several_sounds(taken: list[tuple[str, ClipPrints]]) -> None:
    """Warn about clips that hold many sounds: each becomes a print, and a wrong one makes the name fire for it."""
    for clip, one in taken:
        if len(one.sounds) > MANY_SOUNDS:
            say(
                f"warning: {clip}: holds {len(one.sounds)} sounds separated by pauses, and each becomes a print; if some are"
                " something else, cut them out"
            )


def _warn_about_generic_sounds(model: Model, taken: list[tuple[str, ClipPrints]]) -> None:
    """Warn about clips that the model can hardly tell from any beep, hum or knock, for which the name would then fire."""
    from confit_runtime.matcher import Levels

    threshold = Levels.of(model.contract, None, None).threshold
    for clip, alike in _similarities(taken, model.plain):
        if alike >= (1.0 + threshold) / 2:
            say(
                f"warning: {clip}: to {model.name} it is much like any beep, hum or knock (similarity {alike:.2f} to a synthetic"
                " one), so the name may fire for any; enroll it with a model that was trained on many such sounds"
            )


def _warn_about_non_voices(model: Model, taken: list[tuple[str, ClipPrints]]) -> None:
    """Warn about clips that are nearer to beeps and knocks than to any voice of the cohort: music, or a machine."""
    if not len(model.cohort):
        return
    for clip, one in taken:
        if ((one.embeddings @ model.plain.T).max(axis=1) > (one.embeddings @ model.cohort.T).max(axis=1)).any():
            say(
                f"warning: {clip}: to {model.name} it is partly more like a hum or a knock than like any voice (music? a"
                " machine?); enroll a voice that speaks alone"
            )


def _warn_about_recognised_as_others(name: str, taken: list[tuple[str, ClipPrints]], gallery: Gallery) -> None:
    matcher = gallery.matcher
    others = Counter(match.name for _, one in taken for match in map(matcher.match, one.embeddings))
    for other in (enrolled for enrolled in others if enrolled not in (None, name)):
        are = "is" if others[other] == 1 else "are"
        say(
            f"warning: {others[other]} of {format_count(others.total(), 'print')} {are} recognised as {other!r}, which is"
            " enrolled: is it the same? If two names are equally near, the answer is unknown"
        )


def _warn_about_outliers(name: str, taken: list[tuple[str, ClipPrints]], model: Model, gallery: Gallery | None) -> None:
    import numpy as np

    from confit_runtime.matcher import Levels, print_score

    prints = gallery.prints(name) if gallery is not None and gallery.counts_of(name).prints else []
    known = [one.embedding for one in prints if not one.negative]
    clips = [clip for clip, one in taken for _ in one.embeddings]
    every = np.concatenate([*(row[None] for row in known), *(one.embeddings for _, one in taken)])
    needed = Levels.of(model.contract, None, None).threshold
    if len(every) == 2:  # neither is the odd one
        if (score := print_score(every[:1], every[1])) < needed:
            has, needs = format_distinct(score, needed)
            say(
                f"warning: the two prints of {name} are unlike each other (similarity {has}; recognition needs {needs}): noise"
                " in one, or two people? A third clip shows which"
            )
        return
    if len(every) < 2:
        return
    lowest: dict[str, float] = {}  # a long clip gives many prints, but needs one warning
    for at, clip in enumerate(clips, start=len(known)):
        score = print_score(np.delete(every, at, axis=0), every[at])
        if score < needed:
            lowest[clip] = min(score, lowest.get(clip, score))
    for clip, score in lowest.items():
        has, needs = format_distinct(score, needed)
        say(
            f"warning: {clip}: is unlike the rest of {name} (similarity {has}; recognition needs {needs}): noise,"
            f" or somebody else? One such print lets others pass as {name}; `confit-edge gallery show {quote(name)}` shows how"
            " alike the prints are"
        )
