"""What a training learns from: the clips, the sound around them, and how they form batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from confit_edge.data.compose import compose, fragments
from confit_edge.data.corpus import Clips, Corpus, balanced_batches
from confit_edge.encoders.base import Encoder
from confit_edge.recipe import Recipe
from confit_edge.windows import STREAM_S, gaps_s, off_samples

BATCH, LEAST_PER_CLASS = 64, 4  # clips in a batch, and at least of each class in it, where the recipe leaves it open
Item = TypeVar("Item")


def training_items(encoder: Encoder, corpus: Corpus, recipe: Recipe) -> Clips:
    """The training clips and, as the unknown class, the background and fragments of a stream composed from both."""
    clips = corpus.training_clips()
    if corpus.unknown is None or not corpus.background_train:
        return clips
    stream, spoken = compose(
        corpus.train.pcm,
        [""] * len(corpus.train),
        corpus.background_train,
        samples=min(
            sum(map(len, corpus.train.pcm)) + int(gaps_s(encoder)[1] * encoder.sample_rate * len(corpus.train)),
            STREAM_S * encoder.sample_rate,
        ),
        rate=encoder.sample_rate,
        snr=(recipe.snr_low, recipe.snr_high),
        rng=np.random.default_rng([recipe.seed, 9]),
        gap_s=gaps_s(encoder),
    )
    found = fragments(stream, spoken, window=encoder.window, off=off_samples(encoder))
    return corpus.with_unknown(clips, found)


def epoch_batches(clips: Clips, corpus: Corpus, recipe: Recipe, epoch: int) -> Iterator[list[int]]:
    """Batches of P classes x K clips; if there is an unknown class, each batch also has 2 K clips of it.

    An epoch has enough batches to use each clip of the classes once on average. Where the recipe leaves K open, few classes
    give more clips each (see `default_clips_per_class`), in the number of steps that K = 4 would take. With a single class
    (a wake word), the unknown class is the second of the P. The length of an epoch then depends on labelled clips only, as
    background and fragments are many times as many.
    """
    order, rng = np.random.default_rng([recipe.seed, 0]), np.random.default_rng([recipe.seed, epoch, 0])
    known, strange, negatives = clips.targets, np.zeros(0, np.int64), np.flatnonzero(~clips.targets.any(axis=1))
    own = None  # clips of the single class, if there is only one
    if corpus.unknown is not None:
        column = corpus.classes.index(corpus.unknown)
        others = np.delete(known, column, axis=1)
        if np.count_nonzero(others.any(axis=0)) > 1:
            strange, known = np.flatnonzero(known[:, column]), others
        else:
            own = int(others.any(axis=1).sum())
    per_class = recipe.clips_per_class or default_clips_per_class(known, recipe.classes_per_batch)
    shape, paced = (recipe.classes_per_batch, per_class), recipe.clips_per_class or LEAST_PER_CLASS
    steps = None if own is None else max(1, round(max(own / paced, len(corpus.train) / (2 * per_class))))
    drawn = balanced_batches(known, *shape, order, epoch=epoch, negatives=negatives, paced=paced, steps=steps)
    for batch in drawn:
        beside = rng.choice(strange, 2 * per_class if len(strange) else 0)
        yield batch + [int(row) for row in beside]


def batch_size(clips: Clips, corpus: Corpus, recipe: Recipe) -> int:
    """The number of clips in each of `epoch_batches`."""
    return len(next(epoch_batches(clips, corpus, recipe, 0)))


def default_clips_per_class(targets: npt.NDArray[np.int8], classes_per_batch: int) -> int:
    """The clips per class that make a batch of about 64: at least 4, at most as many as the median class has.

    An anchor is contrasted only with its own batch, so a few classes with 4 clips each would show it too little.
    `targets` is `[clips, classes]` of 0 and 1.
    """
    sizes = np.sort(targets.sum(axis=0))[::-1]
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return LEAST_PER_CLASS
    return max(LEAST_PER_CLASS, min(BATCH // min(classes_per_batch, len(sizes)), int(sizes[len(sizes) // 2])))


def prefetched(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, each prepared while the one before it is in use: augmentation runs alongside the encoder."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(lambda: next(items, None))
        while (item := coming.result()) is not None:
            coming = worker.submit(lambda: next(items, None))
            yield item
