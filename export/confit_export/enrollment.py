"""What enrollment on a device starts from: a cohort of sounds that are not enrolled, and a prior for the threshold."""

from __future__ import annotations

import numpy as np

from confit_edge.data.corpus import Corpus
from confit_edge.runs import Run
from confit_runtime.arrays import Floats, Targets
from confit_runtime.enrollment import Kind
from confit_runtime.matcher import DEFAULT_MARGIN, DEFAULT_THRESHOLD, Levels, Matcher, likeness

PRINTS_PER_CLASS, PRINTS_OF_UNKNOWN = 4, 40
FALSE_ACCEPT_RATE = 0.01
ENROLLED = 3
SPEAKER_COLUMNS = ("speaker", "group")  # a model that was labelled by one of these tells voices apart


def kind_of_run(run: Run) -> Kind:
    """Whether its model tells voices apart or sounds: voices by the encoder made for them, or by the column it was labelled."""
    labelled = run.recipe.label_column in SPEAKER_COLUMNS
    return "speaker" if labelled or run.encoder.family == "ge2e" else "sound"


def cohort_rows(corpus: Corpus, seed: int) -> list[int]:
    """Which training clips stand in the cohort: a few of each class, as indices into `corpus.training_clips()`.

    More of the unknown class, and of clips without a class, which are of many things: what is to be enrolled will lie among
    them, and so will what is taken for it.
    """
    rng = np.random.default_rng([seed, 4])
    targets = corpus.training_clips().targets
    chosen: list[int] = []
    for label, clips in [*zip(corpus.classes, targets.T, strict=True), (corpus.unknown, ~targets.any(axis=1))]:
        members = np.flatnonzero(clips)
        most = PRINTS_OF_UNKNOWN if label == corpus.unknown else PRINTS_PER_CLASS
        chosen += sorted(int(row) for row in rng.choice(members, min(most, len(members)), replace=False))
    return list(dict.fromkeys(chosen))


def strangers(kind: Kind, cohort: Floats, targets: Targets, quiet: Floats) -> tuple[Floats, Targets]:
    """What a gallery of that kind compares with, and of which classes it is: beside sounds, quiet rooms too, of none."""
    if kind == "speaker":
        return cohort, targets
    return np.concatenate([cohort, quiet]), np.pad(targets, ((0, len(quiet)), (0, 0)))


def enrollment_prior(
    val: Floats,
    val_targets: Targets,
    cohort: Floats,
    cohort_targets: Targets,
    seed: int,
    *,
    nobody: int | None = None,
) -> dict[str, float]:
    """The similarity that only one stranger in a hundred reaches, among validation clips, and how alike prints are.

    Each validation class in turn is enrolled from three clips, and clips without it try to pass for it, with all that the
    two are taken out of the cohort, as if nothing of it had been known at training. `val [clips, dim]` and `cohort [n, dim]`
    are of unit length, `val_targets` and `cohort_targets` `[.., classes]` 0/1: a clip may have several classes, or none.
    Class `nobody`, which is no name but all the rest, is not enrolled; its clips are strangers. A
    stranger who is nearer to the cohort than to the prints is refused whatever the threshold, and counts as 0.
    """
    rng = np.random.default_rng([seed, 5])
    passed: list[float] = []
    alike: list[float] = []
    for enrolled in np.flatnonzero(val_targets.any(axis=0)):
        if enrolled == nobody:
            continue
        members = np.flatnonzero(val_targets[:, enrolled])
        prints = val[rng.choice(members, min(ENROLLED, len(members)), replace=False)]
        others = np.flatnonzero(val_targets[:, enrolled] == 0)
        alike += [likeness(prints)] if len(prints) > 1 else []
        for row in rng.choice(others, min(60, len(others)), replace=False):
            both = val_targets[row].astype(bool)
            both[enrolled] = True
            rest = cohort[~cohort_targets[:, both].any(axis=1)]
            passed.append(_passes(prints, rest, val[row]))
    return _levels(passed, alike)


def speaker_prior(voices: dict[str, Floats], cohort: Floats) -> dict[str, float]:
    """The same from `voices`: a name's utterances `[n, dim]`, of people who are in no cohort.

    Each voice in turn is enrolled from its first three, and the later ones of everybody else try to pass for it.
    """
    strangers = [
        _passes(utterances[:ENROLLED], cohort, row)
        for name, utterances in voices.items()
        for other, rows in voices.items()
        if other != name
        for row in rows[ENROLLED:]
    ]
    return _levels(strangers, [likeness(utterances[:ENROLLED]) for utterances in voices.values()])


def _passes(prints: Floats, cohort: Floats, stranger: Floats) -> float:
    """What a stranger scores for a name with these prints; 0 where no threshold would let it pass."""
    matcher = Matcher(["enrolled"], [0] * len(prints), prints, cohort, levels=Levels(threshold=-1.0, margin=0.0))
    match = matcher.match(stranger)
    return match.score if match.name else 0.0


def _levels(strangers: list[float], alike: list[float]) -> dict[str, float]:
    threshold = float(np.quantile(strangers, 1 - FALSE_ACCEPT_RATE)) if strangers else DEFAULT_THRESHOLD
    return {
        "threshold": round(max(0.2, threshold), 4),
        "margin": DEFAULT_MARGIN,
        **({"genuine": round(float(np.mean(alike)), 4)} if alike else {}),
        "false_accept_rate": FALSE_ACCEPT_RATE,
        "trials": len(strangers),
    }
