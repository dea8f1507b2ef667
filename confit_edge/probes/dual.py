"""Stage 2, the dual probe: freeze an encoder, and judge its embedding by a linear layer and by nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import counted, embed_clips
from confit_edge.probes.hard import embed_background, learn_hard, pieces
from confit_edge.probes.knn import KnnProbe
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.metrics import accuracy, correct, mean_average_precision, ranked
from confit_edge.probes.typicality import Typicality
from confit_edge.probes.views import augmented_views, stream_views
from confit_edge.progress import Progress
from confit_edge.recipe import Recipe
from confit_edge.windows import training_background
from confit_runtime.arrays import Floats, Targets


@dataclass(frozen=True)
class DualProbe:
    """Both probes of one frozen encoder, and the embeddings they were judged on.

    A device weights the linear probe's probabilities by `typicality`; `map_weighed` is the mAP of the result. It may be lower
    than `map`: typicality separates sound that resembles no label from all labels, but does not rank the labels better.
    """

    linear: LinearProbe
    knn: KnnProbe
    typicality: Typicality
    metrics: dict[str, Any]  # {"linear" | "knn": {"val" | "test": what `score` gives}, "k": int, "metric": str}
    val_embeddings: Floats
    test_embeddings: Floats


def dual_probe(
    encoder: Encoder,
    corpus: Corpus,
    recipe: Recipe,
    device: torch.device,
    *,
    progress: Progress = lambda done, total: None,
) -> DualProbe:
    """Fit both probes on the training clips, choose by the validation clips, and report on the test clips.

    The linear probe sees each training clip unchanged, and `probe_views` times more as a device will hear it: in streams
    over the background if there is one, else augmented. With background it also learns the unknown class, and in particular
    the background that it mistakes for another class. The kNN probe sees the clips unchanged. `progress` receives the number
    of sounds heard so far; the probes are fitted once all have been heard. Raises UsageError if the corpus was read at a
    different sample rate from the encoder's.
    """
    corpus.check_rate(encoder.sample_rate)
    on_embedded = counted(progress, count_sounds(encoder, corpus, recipe))
    clean = embed_clips(encoder, corpus.train.pcm, device, on_embedded=on_embedded)
    val, test = (
        embed_clips(encoder, clips.pcm, device, on_embedded=on_embedded) for clips in (corpus.val, corpus.test)
    )
    fitting, choosing = (clean, corpus.train.targets), (val, corpus.val.targets)
    if corpus.unknown is not None and corpus.background_train:
        views = partial(stream_views, encoder, corpus, recipe=recipe, device=device, on_embedded=on_embedded)
        fitting = _concatenate(
            fitting, views(corpus.train, training_background(encoder, corpus, recipe), views=recipe.probe_views, salt=2)
        )
        choosing = _concatenate(choosing, views(corpus.val, corpus.background_val, views=1, salt=8))
    else:
        fitting = _concatenate(fitting, augmented_views(encoder, corpus, recipe, device, on_embedded=on_embedded))
    linear = LinearProbe.fit(*fitting, *choosing, multi_label=corpus.multi_label)
    if corpus.unknown_column is not None and corpus.background_train:
        background = embed_background(encoder, corpus.background_train, device, recipe.seed, on_embedded=on_embedded)
        linear = learn_hard(linear, fitting, choosing, background, unknown=corpus.unknown_column)
    typicality = Typicality.fit(*fitting, *choosing, unknown=corpus.unknown_column)
    knn = KnnProbe.fit(clean, corpus.train.targets, val, corpus.val.targets, multi_label=corpus.multi_label)
    metrics: dict[str, Any] = {"k": knn.k, "metric": knn.metric}
    judged = {"val": (val, corpus.val), "test": (test, corpus.test)}
    for name, probe in (("linear", linear), ("knn", knn)):
        metrics[name] = {
            split: score(probe.scores(embeddings), clips, corpus, recipe.seed)
            for split, (embeddings, clips) in judged.items()
        }
    for split, (embeddings, clips) in judged.items():
        if corpus.multi_label and metrics["linear"][split]:
            metrics["linear"][split]["map_weighed"] = mean_average_precision(
                (linear.scores(embeddings) * typicality.factors(embeddings))[:, corpus.answers],
                clips.targets[:, corpus.answers],
            )
    return DualProbe(linear, knn, typicality, metrics, val, test)


def probed_clips(corpus: Corpus, recipe: Recipe) -> int:
    """How many clips `dual_probe` hears, each view counted as one."""
    return len(corpus.train) * (1 + recipe.probe_views) + len(corpus.val) + len(corpus.test)


def count_sounds(encoder: Encoder, corpus: Corpus, recipe: Recipe) -> int:
    """How many sounds `dual_probe` hears: clips, the views of them, and pieces of the background."""
    clips = probed_clips(corpus, recipe)
    if corpus.unknown is None or not corpus.background_train:
        return clips
    return clips + len(corpus.val) + pieces(encoder, corpus.background_train)


def _concatenate(one: tuple[Floats, Targets], other: tuple[Floats, Targets]) -> tuple[Floats, Targets]:
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])


def score(scores: Floats, clips: Clips, corpus: Corpus, seed: int) -> dict[str, Any] | None:
    """The accuracy of `scores [clips, classes]` with its interval, or None if the split has no labelled clips.

    For multi-label clips it is the share of labelled clips whose best class is one of their own, which says little; so
    `map`, over all labels and all clips, is reported as well. If some, but not all, of the clips are of the unknown class,
    `own` counts how many of the others are answered correctly.
    """
    scores, every = scores[:, corpus.answers], clips.targets[:, corpus.answers]
    labelled = np.flatnonzero(every.any(axis=1))
    if not len(labelled):
        return None
    targets = every[labelled]
    right = correct(scores[labelled], targets)
    found = accuracy(right, [clips.groups[row] for row in labelled]).to_dict()
    if corpus.multi_label:
        found |= ranked(scores, every, clips.groups, seed)
    elif corpus.unknown_column is not None and 0 < len(own := right[targets[:, corpus.unknown_column] == 0]) < len(
        right
    ):
        found["own"] = {"right": int(own.sum()), "n": len(own)}
    return found
