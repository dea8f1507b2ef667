"""Cuts a corpus to fewer classes, groups or clips, and converts clips to another domain (noise, telephone)."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from confit_edge.data.augment import coloured_noise, noise_gain
from confit_edge.data.corpus import Clips, Corpus
from confit_edge.studies.trial import Subset
from confit_runtime.audio import Pcm
from confit_runtime.errors import UsageError

NOISE_DB = 5.0  # signal-to-noise ratio of the noisy domain
PHONE_RATE = 8_000


def cut(corpus: Corpus, subset: Subset, seed: int) -> Corpus:
    """Return the part of `corpus` that `subset` names. Raises UsageError if a class would have no training clips."""
    if subset.groups is not None:
        corpus = replace(corpus, train=_of_groups(corpus.train, subset.groups, seed, corpus))
    if subset.classes is not None:
        corpus = with_classes(corpus, draw_classes(corpus, subset.classes, seed))
    if subset.shots is None:
        return corpus
    even = dict.fromkeys(clips_per_class(corpus), subset.shots)
    return replace(
        corpus,
        train=_first_of_each(corpus.train, corpus.classes, _sizes(corpus, subset.shots, subset.tail, seed), seed),
        val=_first_of_each(corpus.val, corpus.classes, even, seed),
    )


def draw_classes(corpus: Corpus, count: int, seed: int) -> list[str]:
    """Draw `count` classes (never the unknown one), in the corpus's order; a smaller draw is part of a larger one."""
    known = _known(corpus)
    drawn = np.random.default_rng([seed, 20]).permutation(known)[:count]
    return [corpus.classes[column] for column in sorted(drawn)]


def tail_sizes(corpus: Corpus, shots: int, tail: float, seed: int) -> dict[str, int]:
    """Return the clips per class in a long tail: from `shots` down to `shots / tail`, in an order drawn with the seed."""
    order = np.random.default_rng([seed, 21]).permutation(_known(corpus))
    sizes = shots * tail ** -np.linspace(0, 1, len(order))
    return {corpus.classes[column]: max(1, round(size)) for column, size in zip(order, sizes, strict=True)}


def with_classes(corpus: Corpus, classes: list[str]) -> Corpus:
    """Keep only these classes and their clips in every split, plus any unknown class and clips without a label."""
    kept = [name for name in corpus.classes if name in classes or name == corpus.unknown]
    columns = [corpus.classes.index(name) for name in kept]

    def narrowed(clips: Clips) -> Clips:
        targets = clips.targets[:, columns]
        kept = targets.any(axis=1) | ~clips.targets.any(axis=1)
        return replace(_rows(clips, np.flatnonzero(kept)), targets=targets[kept])

    train, val, test = (narrowed(clips) for clips in (corpus.train, corpus.val, corpus.test))
    return replace(corpus, classes=kept, train=train, val=val, test=test)


def can_draw(corpus: Corpus, subset: Subset, seed: int) -> bool:
    """Return whether `subset` can draw its number of clips for every class, without losing a class in validation."""
    assert subset.shots is not None
    some = cut(corpus, subset, seed)
    there, left = (clips.targets.any(axis=0) for clips in (corpus.val, some.val))
    return clips_per_class(some) == _sizes(corpus, subset.shots, subset.tail, seed) and bool((there == left).all())


def clips_per_class(corpus: Corpus) -> dict[str, int]:
    """Return the number of training clips of each class, without the unknown one."""
    counts = corpus.train.targets.sum(axis=0)
    return {corpus.classes[column]: int(counts[column]) for column in _known(corpus)}


def check_all_tested(corpus: Corpus) -> None:
    """Raise UsageError if a class has no test clip, because a trial may draw only such classes."""
    without = [corpus.classes[column] for column in _known(corpus) if not corpus.test.targets[:, column].any()]
    if without:
        raise UsageError(
            f"class {', '.join(map(repr, without))} has no test clip, and this study reports on classes drawn at random; add test"
            " clips for it, or leave it out of the manifest"
        )


def _sizes(corpus: Corpus, shots: int, tail: float | None, seed: int) -> dict[str, int]:
    return dict.fromkeys(clips_per_class(corpus), shots) if tail is None else tail_sizes(corpus, shots, tail, seed)


def _known(corpus: Corpus) -> list[int]:
    return [column for column, name in enumerate(corpus.classes) if name != corpus.unknown]


def _rows(clips: Clips, rows: npt.NDArray[np.int64]) -> Clips:
    return Clips(
        [clips.pcm[row] for row in rows],
        clips.targets[rows],
        [clips.groups[row] for row in rows],
        [clips.paths[row] for row in rows],
    )


def _of_groups(clips: Clips, count: int, seed: int, corpus: Corpus) -> Clips:
    names = sorted(set(clips.groups))
    if count > len(names):
        raise UsageError(f"--train-groups {count}: there are only {len(names)} groups to train on")
    drawn = set(np.random.default_rng([seed, 22]).permutation(names)[:count])
    kept = _rows(clips, np.flatnonzero([group in drawn for group in clips.groups]))
    lost = [corpus.classes[column] for column in _known(corpus) if not kept.targets[:, column].any()]
    if lost:
        raise UsageError(
            f"--train-groups {count}: class {', '.join(map(repr, lost))} has no clip in the groups of seed {seed};"
            " use more groups"
        )
    return kept


def _first_of_each(clips: Clips, classes: list[str], sizes: dict[str, int], seed: int) -> Clips:
    """Keep the first `sizes` clips of each class, in an order drawn once, and all clips without a label.

    With one label per clip, a smaller draw is the beginning of a larger one. A clip with several labels counts for each of
    them: the rarest class is drawn first, and a clip that would give another class too many is left out. A class may then
    get too few.
    """
    counts = clips.targets.sum(axis=0)
    most = np.array([sizes.get(name, counts[column]) for column, name in enumerate(classes)])
    kept: npt.NDArray[np.bool_] = ~np.asarray(clips.targets.any(axis=1))
    so_far = np.zeros_like(counts)
    for column in np.argsort(counts, kind="stable"):
        members = np.flatnonzero(clips.targets[:, column])
        for row in np.random.default_rng([seed, 23, int(column)]).permutation(members):
            with_it = so_far + clips.targets[row]
            if not kept[row] and (with_it <= most).all():
                kept[row], so_far = True, with_it
    return _rows(clips, np.flatnonzero(kept))


def noisy(clip: Pcm, rate: int, rng: np.random.Generator) -> Pcm:
    """Add noise of a random colour, 5 dB below the clip."""
    noise = coloured_noise(len(clip), float(rng.uniform(0, 2)), rng)
    return clip + noise * noise_gain(clip, noise, NOISE_DB)


def phone(clip: Pcm, rate: int, rng: np.random.Generator) -> Pcm:
    """Pass the clip through a telephone line: 8 kHz and mu-law (ITU-T G.711)."""
    line = io.BytesIO()
    narrow = soxr.resample(clip, rate, PHONE_RATE, quality="HQ")
    soundfile.write(line, np.clip(narrow, -1, 1), PHONE_RATE, format="WAV", subtype="ULAW")
    line.seek(0)
    heard, _ = soundfile.read(line, dtype="float32")
    return soxr.resample(heard, PHONE_RATE, rate, quality="HQ").astype(np.float32, copy=False)


DOMAINS: dict[str, Callable[[Pcm, int, np.random.Generator], Pcm]] = {"noise": noisy, "phone": phone}


def shifted(clips: Clips, domain: str, rate: int, seed: int) -> Clips:
    """Return the clips, at `rate` Hz, in another domain: `noise` or `phone`."""
    rng = np.random.default_rng([seed, 24])
    return replace(clips, pcm=[DOMAINS[domain](clip, rate, rng) for clip in clips.pcm], uncut=None)
