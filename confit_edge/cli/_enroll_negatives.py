"""What negative prints that are about to be enrolled would silence: the name's own prints, the label's true sounds."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np

from confit_edge.cli._console import say
from confit_runtime.errors import UsageError
from confit_runtime.matcher import Levels, negatives_win, print_score

if TYPE_CHECKING:
    from confit_runtime.arrays import Floats
    from confit_runtime.audio import Pcm
    from confit_runtime.gallery import Gallery
    from confit_runtime.model import Model


def check_negatives(
    name: str, sounds: Sequence[Pcm], added: Floats, model: Model, gallery: Gallery | None, *, force: bool
) -> None:
    """Warn if negative prints `added [n, dim]` of `sounds`, with those of before, would withhold true sounds of `name`.

    Raises UsageError if they would withhold most of these, unless `force`.
    """
    prints = gallery.prints(name) if gallery is not None and any(gallery.counts_of(name)) else []
    own = [one.embedding for one in prints if not one.negative]
    negatives = np.concatenate([*(one.embedding[None] for one in prints if one.negative), added])
    if len(own) > 1:  # a single print does not show how near another would be
        lost = sum(negatives_win(negatives, one, score) for one, score in zip(own, _leave_one_out(own), strict=True))
        finding = (
            f"{lost} of the {len(own)} prints of {name} are nearer to its negative prints than to its other prints"
        )
        _report(name, lost, len(own), finding, "enroll more clips of it or ", force=force)
    if name in model.contract.target_labels:
        rate = model.contract.sample_rate
        mistaken = [name in model.classify(sound, rate).labels for sound in sounds]
        lost, near = _count_withheld(negatives, added[mistaken], model)
        finding = (
            f"{lost} of the {near} sounds in {model.name}'s cohort that these clips are most like would be withheld"
            f" if {name} fired for them"
        )
        _report(name, lost, near, finding, "", force=force)


def _leave_one_out(prints: list[Floats]) -> list[float]:
    """The score of each print `[dim]` against the others."""
    return [print_score(np.stack(prints[:at] + prints[at + 1 :]), print_) for at, print_ in enumerate(prints)]


def _count_withheld(negatives: Floats, mistaken: Floats, model: Model) -> tuple[int, int]:
    """How many sounds of the cohort `negatives [n, dim]` would withhold, of those near `mistaken [m, dim]`, and of how many.

    The cohort holds true sounds of every label but does not say which they are: those of a label are among those near
    what the model mistakes for it: as near as a match must be or, where none is, as near as negative prints must be.
    """
    levels = Levels.of(model.contract, None, None)
    scores = _leave_one_out([*model.cohort, *model.quiet])[: len(model.cohort)]
    for nearness in (levels.threshold, levels.veto_threshold):
        near = [
            (sound, max(levels.veto_threshold, score))
            for sound, score in zip(model.cohort, scores, strict=True)
            if negatives_win(mistaken, sound, nearness)
        ]
        if near:
            break
    return sum(negatives_win(negatives, sound, score) for sound, score in near), len(near)


def _report(name: str, lost: int, of: int, finding: str, cure: str, *, force: bool) -> None:
    if 2 * lost > of and not force:
        raise UsageError(
            f"{name}: {finding}, so {name} may no longer be recognised; leave out clips that are {name}, {cure}raise"
            f" its threshold instead (`listen --threshold {quote(name)}=...`), or give --force; nothing was written"
        )
    if lost:
        say(f"warning: {finding}; sounds like these may no longer be recognised as {name}")
