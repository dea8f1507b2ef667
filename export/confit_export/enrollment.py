"""The starting point for enrollment on a device: a cohort of sounds that are not enrolled, and a prior for the threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from confit_edge.data.augment import change_speed
from confit_edge.data.corpus import Corpus
from confit_edge.runs import Run
from confit_runtime.arrays import Floats, Targets
from confit_runtime.audio import Pcm
from confit_runtime.calibration import held_levels
from confit_runtime.chunk_scorer import ChunkScorer
from confit_runtime.detect import name_hops, seconds_to_hops
from confit_runtime.enrollment import Kind
from confit_runtime.matcher import (
    DEFAULT_MARGIN,
    DEFAULT_THRESHOLD,
    Levels,
    Matcher,
    l2_normalise,
    mutual_similarity,
)
from confit_runtime.model import Model

PRINTS_PER_CLASS, PRINTS_OF_UNKNOWN = 4, 40
FALSE_ACCEPT_RATE = 0.01
# fewer do not show what one stranger in a hundred reaches: classes differ, and each gives many trials that are alike
MIN_TRIALS, MIN_CLASSES = 300, 10
ENROLLMENT_CLIPS = 3
# (speed, backwards) of the altered clips that stand for sounds which training never heard
ALTERATIONS = ((0.6, False), (1.0, True), (0.6, True))
ALTERED_CLIPS = 6  # per class at most
STREAM_FALSE_ACCEPTS_PER_HOUR = 5.0  # that a name not yet calibrated makes in background, on average over names
STREAM_S = 900.0  # of background that is streamed at most, in equal parts of its recordings
MIN_NAME_HOURS = 1.0  # of background times prints: with less, such a rate cannot be measured
SPEAKER_COLUMNS = ("speaker", "group")  # a model labelled by one of these distinguishes voices


def kind_of_run(run: Run) -> Kind:
    """Whether the run's model is for speakers or for sounds: for speakers with ge2e or a label column of speakers."""
    labelled = run.recipe.label_column in SPEAKER_COLUMNS
    return "speaker" if labelled or run.encoder.family == "ge2e" else "sound"


def cohort_rows(corpus: Corpus, seed: int) -> list[int]:
    """Choose the training clips for the cohort, a few per class, as indices into `corpus.training_clips()`.

    More come from the unknown class and from clips without a class. They hold many different sounds, and both the sounds to be
    enrolled and the sounds that could be mistaken for them will be like these.
    """
    rng = np.random.default_rng([seed, 4])
    targets = corpus.training_clips().targets
    chosen: list[int] = []
    for label, clips in [*zip(corpus.classes, targets.T, strict=True), (corpus.unknown, ~targets.any(axis=1))]:
        members = np.flatnonzero(clips)
        limit = PRINTS_OF_UNKNOWN if label == corpus.unknown else PRINTS_PER_CLASS
        chosen += sorted(int(row) for row in rng.choice(members, min(limit, len(members)), replace=False))
    return list(dict.fromkeys(chosen))


def gallery_cohort(kind: Kind, cohort: Floats, targets: Targets, quiet: Floats) -> tuple[Floats, Targets]:
    """The embeddings that a gallery of `kind` compares with, and their classes. For sounds this adds quiet rooms, of no class."""
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
    unknown_column: int | None = None,
    embed_altered: Callable[[int], Floats] | None = None,
) -> dict[str, float]:
    """Measure on validation clips the similarity that only one stranger in a hundred reaches, and how alike prints are.

    With few trials or classes the level is higher (`prior_of`). If `embed_altered` is given, which embeds the `altered` sounds
    of a row of `val` as `[alterations, dim]`, it is then at least the level that one altered stranger in a hundred reaches.

    Each validation class in turn is enrolled from three clips, and clips without it try to pass for it. Meanwhile both the
    enrolled class and the classes of the clip are taken out of the cohort, as if training had never known them.

    `val [clips, dim]` and `cohort [n, dim]` have unit length. `val_targets` and `cohort_targets` `[.., classes]` are 0/1: a
    clip may have several classes, or none. The class `unknown_column`, which stands for everything else, is not enrolled; its
    clips are strangers. A stranger closer to the cohort than to the prints is refused at any threshold, and counts as 0.
    """
    rng = np.random.default_rng([seed, 5])
    impostor_scores: list[float] = []
    likenesses: list[float] = []
    names = 0
    for enrolled in np.flatnonzero(val_targets.any(axis=0)):
        if enrolled == unknown_column:
            continue
        names += 1
        members = np.flatnonzero(val_targets[:, enrolled])
        prints = val[rng.choice(members, min(ENROLLMENT_CLIPS, len(members)), replace=False)]
        others = np.flatnonzero(val_targets[:, enrolled] == 0)
        likenesses += [mutual_similarity(prints)] if len(prints) > 1 else []
        for row in rng.choice(others, min(60, len(others)), replace=False):
            excluded = val_targets[row].astype(bool)
            excluded[enrolled] = True
            other_cohort = cohort[~cohort_targets[:, excluded].any(axis=1)]
            impostor_scores.append(impostor_score(prints, other_cohort, val[row]))
    prior = prior_of(impostor_scores, likenesses, names)
    if embed_altered is None or "false_accept_rate" in prior:
        return prior
    known = np.delete(val_targets, [] if unknown_column is None else [unknown_column], axis=1)
    scores, likenesses = _altered_trials(known, cohort, embed_altered, rng)
    if not likenesses:
        return prior
    threshold = max(prior["threshold"], float(np.quantile(scores, 1 - FALSE_ACCEPT_RATE)))
    genuine = max(threshold, float(np.mean(likenesses)))  # so that no name, however alike its prints, needs more than 1
    return {**prior, "threshold": round(threshold, 4), "genuine": round(genuine, 4)}


def altered(pcm: Pcm) -> list[Pcm]:
    """A sound `[samples]` changed by each of `ALTERATIONS`: slowed down (and so lowered), backwards, and both."""
    return [change_speed(pcm, speed)[:: -1 if backwards else 1].copy() for speed, backwards in ALTERATIONS]


def _altered_trials(
    targets: Targets, cohort: Floats, embed_altered: Callable[[int], Floats], rng: np.random.Generator
) -> tuple[list[float], list[float]]:
    """The scores of strangers, and how alike prints are, among altered clips: sounds that training never heard.

    Training moves its own classes apart, but few classes teach it little about other sounds, and a device enrolls those. In
    turn the clips of each class of `targets [clips, classes]`, altered in one way, are enrolled next to the whole cohort.
    Strangers are altered clips without that class, and those with it at another speed. (Backwards alone makes no stranger:
    a hum is the same either way.)
    """
    rows_by_class = {
        int(label): [int(row) for row in rng.permutation(np.flatnonzero(targets[:, label]))[:ALTERED_CLIPS]]
        for label in np.flatnonzero(targets.any(axis=0))
    }
    embeddings = {row: embed_altered(row) for row in sorted({row for rows in rows_by_class.values() for row in rows})}
    scores: list[float] = []
    likenesses: list[float] = []
    for label, rows in rows_by_class.items():
        for way, (speed, _) in enumerate(ALTERATIONS):
            prints = np.stack([embeddings[row][way] for row in rows[:ENROLLMENT_CLIPS]])
            likenesses += [mutual_similarity(prints)] if len(prints) > 1 else []
            scores += [
                impostor_score(prints, cohort, stranger)
                for row, strangers in embeddings.items()
                for stranger, (other_speed, _) in zip(strangers, ALTERATIONS, strict=True)
                if other_speed != speed or not targets[row, label]
            ]
    return scores, likenesses


def stream_threshold(model: Model, prints: Floats, recordings: Sequence[Pcm]) -> float | None:
    """Measure the similarity that a stream of background reaches `STREAM_FALSE_ACCEPTS_PER_HOUR` times for one print.

    Each of `prints [n, dim]`, which must not come from the recordings, is a name of its own: whatever a device enrolls, its
    prints are sounds like these. A name fires at most once per refractory time, so the stream is cut into stretches of that
    length, and the highest level at which a name would fire counts in each. None if there is too little background to tell.
    """
    contract = model.contract
    share = round(STREAM_S * contract.sample_rate / max(1, len(recordings)))
    stretch = max(1, seconds_to_hops(contract, contract.refractory_s))
    peaks = [np.zeros(0, np.float32)]
    for recording in recordings:
        parts = [rows for _, rows in ChunkScorer(model).push(recording[:share], last=True)]
        if not parts:  # shorter than a window
            continue
        scores = l2_normalise(np.concatenate(parts)) @ prints.T
        firing = held_levels(scores, name_hops(contract))
        whole = len(firing) // stretch * stretch
        peaks.append(firing[:whole].reshape(-1, stretch, len(prints)).max(axis=1).ravel())
    reached = np.concatenate(peaks)
    stretch_hours = stretch * contract.hop / contract.sample_rate / 3600
    if len(reached) * stretch_hours < MIN_NAME_HOURS:
        return None
    return round(float(np.quantile(reached, 1 - STREAM_FALSE_ACCEPTS_PER_HOUR * stretch_hours)), 4)


def impostor_score(prints: Floats, cohort: Floats, stranger: Floats) -> float:
    """The score of a stranger for a name with these prints; 0 if it is refused at any threshold."""
    matcher = Matcher(["enrolled"], [0] * len(prints), prints, cohort, levels=Levels(threshold=-1.0, margin=0.0))
    match = matcher.match(stranger)
    return match.score if match.name else 0.0


def prior_of(impostor_scores: list[float], likenesses: list[float], names: int) -> dict[str, float]:
    """The prior from the scores of strangers, and how alike the prints of each of the `names` enrolled are.

    Too few trials or names leave `false_accept_rate` out: the threshold is then a guess. Of few classes, strangers happen to
    score low: in simulations, 6 to 20 % of strangers passed the quantile of 2 or 3 classes. So the threshold then lies
    halfway from it to the similarity of a name's own prints. That does for embeddings that training did not move; where it
    moved the classes apart, see `_altered_trials`.
    """
    enough = len(impostor_scores) >= MIN_TRIALS and names >= MIN_CLASSES
    threshold = float(np.quantile(impostor_scores, 1 - FALSE_ACCEPT_RATE)) if impostor_scores else DEFAULT_THRESHOLD
    genuine = float(np.mean(likenesses)) if likenesses else None
    if not enough:
        threshold = max(threshold, DEFAULT_THRESHOLD if genuine is None else (threshold + genuine) / 2)
    return {
        "threshold": round(max(0.2, threshold), 4),
        "margin": DEFAULT_MARGIN,
        **({} if genuine is None else {"genuine": round(genuine, 4)}),
        **({"false_accept_rate": FALSE_ACCEPT_RATE} if enough else {}),
        "trials": len(impostor_scores),
        "classes": names,
    }
