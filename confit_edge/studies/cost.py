"""Estimate the cost of a study on this machine: time a short training for each kind of encoder in the plan."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from confit_edge.encoders.base import Encoder
from confit_edge.pairtune.trainer import fit
from confit_edge.probes.dual import dual_probe, probed_clips
from confit_edge.probes.hard import embed_background
from confit_edge.recipe import Recipe
from confit_edge.studies.bench import Bench
from confit_edge.studies.study import Study
from confit_edge.studies.subset import cut
from confit_edge.studies.trial import Subset, Trial

TIMED_CLIPS = 64


@dataclass(frozen=True)
class Pace:
    """CPU seconds per clip for one training epoch (with its validation), and for one pass through the probes.

    `background` is the time in which the probes hear all of the background; it does not depend on the number of clips.
    """

    train: float
    probe: float
    background: float


def measure_pace(bench: Bench, recipe: Recipe, encoder: Encoder) -> Pace:
    """Time one epoch and one dual probe of `encoder` on about `TIMED_CLIPS` clips; the second of two passes counts.

    The learning rates are too small to diverge and take as long as any other.
    """
    recipe, corpus = replace(recipe, head_lr=1e-9), bench.corpus()
    corpus = cut(corpus, Subset(shots=max(2, TIMED_CLIPS // len(corpus.classes))), recipe.seed)
    encoder.to(bench.device)
    for _ in range(2):  # the first pass imports, allocates and compiles
        start = time.process_time()
        fit(encoder, corpus, replace(recipe, soup=1), lr=1e-9, epochs=1)
        middle = time.process_time()
        dual_probe(encoder, corpus, recipe, bench.device)
        end = time.process_time()
    if corpus.background_train:
        embed_background(encoder, corpus.background_train, bench.device, recipe.seed)
    background = time.process_time() - end
    probe = max(0.0, end - middle - background) / probed_clips(corpus, recipe)
    return Pace((middle - start) / len(corpus.train), probe, background)


def expected(study: Study, trial: Trial, bench: Bench, pace: Pace) -> float:
    """Return the CPU seconds a trial should take."""
    corpus, recipe = bench.data(trial), trial.recipe
    searched = len(recipe.lr) * (recipe.search_epochs or recipe.epochs) if len(recipe.lr) > 1 else 0
    epochs = recipe.epochs * recipe.trainings + searched if trial.train else 0
    clips = probed_clips(corpus, recipe) + (study.extra_clips(bench, trial) if study.extra_clips else 0)
    background = pace.background if study.probes_background else 0.0
    return pace.train * len(corpus.train) * epochs + pace.probe * clips + background
