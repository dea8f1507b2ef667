"""What is odd about clips that are to be enrolled: said before they are, for it spoils answers later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from confit_edge.cli._console import say

if TYPE_CHECKING:
    from confit_runtime.arrays import Floats
    from confit_runtime.enrollment import Kind, Taken
    from confit_runtime.gallery import Gallery
    from confit_runtime.model import Model

MANY_SOUNDS = 5  # in one clip: more look like a recording that holds other sounds, too


def tell_odd(
    name: str, taken: list[tuple[str, Taken]], model: Model, gallery: Gallery | None, kind: Kind, *, negative: bool
) -> None:
    """Say of what was taken for `name`, or as `negative` of it, what would spoil answers."""
    if kind == "sound":
        _tell_quiet(model, taken)
        _tell_many(taken)
    if negative:
        _tell_deaf(name, taken, gallery)
        return
    if kind == "sound":
        _tell_plain(model, taken)
        _tell_known(model, name, taken)
    if gallery is not None and set(gallery.names()) - {name}:
        _tell_taken_for_others(name, taken, gallery)
    if kind == "speaker":
        _tell_no_voice(model, taken)
        _tell_unlike_the_rest(name, taken, model, gallery)


def _tell_known(model: Model, name: str, taken: list[tuple[str, Taken]]) -> None:
    """Say so where most of the sounds are what the model has a label for: that fires, and the cohort holds such sounds."""
    sounds = [sound for _, one in taken for sound in one.sounds]
    labels = Counter(label for sound in sounds for label in model.classify(sound, model.contract.sample_rate).labels)
    label, count = (labels.most_common(1) or [("", 0)])[0]
    if own := [one for one in model.contract.target_labels if one.casefold() == name.casefold()]:
        say(
            f"beware: {own[0]!r} is a label of {model.name} too, so where both fire one sound is told twice; take another name"
        )
    elif 2 * count > len(sounds) and label in model.contract.target_labels:
        say(
            f"beware: most of these sound like {label!r}, which {model.name} knows and fires for; as {name!r} they will often"
            " be answered as a stranger"
        )


def _tell_quiet(model: Model, taken: list[tuple[str, Taken]]) -> None:
    """Say which clips are to the model hardly more than a quiet room: what is enrolled of them would fire in one."""
    from confit_runtime.enrollment import QUIET_ALIKE

    for clip, alike in _alike(taken, model.quiet):
        if alike >= QUIET_ALIKE:
            say(
                f"beware: {clip}: is to {model.name} hardly more than a quiet room ({alike:.2f} alike), and may be told in any:"
                " record it louder, or nearer"
            )


def _alike(taken: list[tuple[str, Taken]], others: Floats) -> Iterator[tuple[str, float]]:
    """Of each clip the highest cosine of one of its prints with one of `others [n, dim]`."""
    for clip, one in taken:
        yield clip, float((one.embeddings @ others.T).max(initial=-1.0))


def _prints(name: str, gallery: Gallery | None) -> tuple[list[Floats], list[Floats]]:
    """The prints of a name, each `[dim]`, and its negative ones; none of a name that is not enrolled."""
    prints = gallery.prints(name) if gallery is not None and gallery.counts_of(name).prints else []
    own, negative = ([one.embedding for one in prints if one.negative == wanted] for wanted in (False, True))
    return own, negative


def _tell_many(taken: list[tuple[str, Taken]]) -> None:
    """Say which clips hold many sounds: each becomes a print, and what is no such sound is then told as one."""
    for clip, one in taken:
        if len(one.sounds) > MANY_SOUNDS:
            say(
                f"beware: {clip}: holds {len(one.sounds)} sounds, parted by pauses, and each becomes a print: if some are"
                " something else, cut it"
            )


def _tell_plain(model: Model, taken: list[tuple[str, Taken]]) -> None:
    """Say which clips the model can hardly tell from any beep, hum or knock: a name of them is told in all of those."""
    from confit_runtime.matcher import Levels

    threshold = Levels.of(model.contract, None, None).threshold
    for clip, alike in _alike(taken, model.plain):
        if alike >= (1.0 + threshold) / 2:
            say(
                f"beware: {clip}: is to {model.name} much like any beep, hum or knock ({alike:.2f} alike to one that was made"
                " up), and may be told of any: enroll it with a model that was trained on such sounds, and on more than a few"
            )


def _tell_no_voice(model: Model, taken: list[tuple[str, Taken]]) -> None:
    """Say which clips are nearer to beeps and knocks than to any voice of the model's: music, or a machine."""
    if not len(model.cohort):
        return
    for clip, one in taken:
        if ((one.embeddings @ model.plain.T).max(axis=1) > (one.embeddings @ model.cohort.T).max(axis=1)).any():
            say(
                f"beware: {clip}: is to {model.name} in part more like a hum or a knock than like any voice (music? a machine?):"
                " enroll somebody who speaks alone"
            )


def _tell_deaf(name: str, taken: list[tuple[str, Taken]], gallery: Gallery | None) -> None:
    """Say how many of a name's own prints are nearer to what is negative of it, now or before, than to the name's others."""
    import numpy as np

    from confit_runtime.matcher import print_score

    own, before = _prints(name, gallery)
    if len(own) < 2:  # of one alone nothing tells how near another would be
        return
    negatives = np.concatenate([*(row[None] for row in before), *(one.embeddings for _, one in taken)])
    lost = sum(
        float((negatives @ one).max()) >= print_score(np.stack(own[:at] + own[at + 1 :]), one)
        for at, one in enumerate(own)
    )
    if lost:
        say(
            f"beware: of the {len(own)} prints of {name} {lost} are nearer to what is not {name} than to its others: such sounds"
            " will not be told as it any more"
        )


def _tell_taken_for_others(name: str, taken: list[tuple[str, Taken]], gallery: Gallery) -> None:
    matcher = gallery.matcher
    others = Counter(match.name for _, one in taken for match in map(matcher.match, one.embeddings))
    for other in (enrolled for enrolled in others if enrolled not in (None, name)):
        say(
            f"beware: {others[other]} of {others.total()} prints are answered as {other!r}, who is enrolled: is it the"
            " same? Of two names that are equally near the answer is unknown"
        )


def _tell_unlike_the_rest(name: str, taken: list[tuple[str, Taken]], model: Model, gallery: Gallery | None) -> None:
    import numpy as np

    from confit_runtime.matcher import Levels, print_score

    known, _ = _prints(name, gallery)
    clips = [clip for clip, one in taken for _ in one.embeddings]
    every = np.concatenate([*(row[None] for row in known), *(one.embeddings for _, one in taken)])
    if len(every) <= 2:  # of two, neither is the odd one
        return
    needed = Levels.of(model.contract, None, None).threshold
    for at, clip in enumerate(clips, start=len(known)):
        score = print_score(np.delete(every, at, axis=0), every[at])
        if score < needed:
            say(
                f"beware: {clip}: is unlike the rest of {name} ({score:.2f}, and {needed:.2f} is needed to be known by"
                " it): noise, or somebody else? One such print lets others pass for the name; `confit-edge gallery show`"
                " tells how alike they are"
            )
