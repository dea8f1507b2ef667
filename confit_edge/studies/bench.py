"""Where trials are done: the decoded corpus and the pre-trained encoder, read once a process, and the usual measurement."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.encoders import pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.geometry.measures import describe, label_sets
from confit_edge.pairtune.machine import pick_device
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.rates import choose_lr
from confit_edge.pairtune.session import absolute, settled
from confit_edge.pairtune.trainer import Fitted, fit
from confit_edge.pairtune.validation import head_probe
from confit_edge.probes.dual import dual_probe
from confit_edge.probes.knn import KnnProbe
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.metrics import correct, mean_average_precision, merit, precision_gains
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run
from confit_edge.studies.subset import cut
from confit_edge.studies.trial import Point, Tally, Trial
from confit_runtime.arrays import Bools, Doubles, Floats, Targets
from confit_runtime.errors import UsageError


@dataclass(frozen=True)
class Source:
    """Where a study's data come from: a manifest, and the keys of `recipe` that say how to read it."""

    manifest: Path
    recipe: Recipe


def source_of(manifest: Path, recipe: Recipe) -> Source:
    """A source that means the same in any folder and on any day. Raises UsageError where a path is not UTF-8."""
    return Source(Path(absolute(manifest)), settled(recipe, pick_device(recipe.device)))


class Bench:
    """One process's copy of the data and of the encoder before training, each read when it is first asked for."""

    def __init__(self, source: Source, progress: Callable[[int, int], None] | None = None) -> None:
        self.source, self.progress = source, progress
        self._corpora: dict[int, Corpus] = {}
        self._encoders: dict[tuple[Any, ...], Encoder] = {}

    @property
    def device(self) -> torch.device:
        return pick_device(self.source.recipe.device)

    def corpus(self, rate: int | None = None) -> Corpus:
        """All clips at `rate` Hz (the study's own encoder's where None). Raises UsageError where there are none to test on."""
        recipe = self.source.recipe
        rate = rate or self.encoder(recipe).sample_rate
        if rate not in self._corpora:
            self._corpora[rate] = read_corpus(
                self.source.manifest,
                rate=rate,
                strict=recipe.strict,
                progress=self.progress,
                **recipe.corpus_options(),
            )
            if not len(self._corpora[rate].test):
                raise UsageError(f"{self.source.manifest}: no clip is in test, which is what a study reports on")
            if not self._corpora[rate].test.targets.any():
                raise UsageError(
                    f"{self.source.manifest}: no clip in test has a label, so a study could report nothing"
                )
        return self._corpora[rate]

    def encoder(self, recipe: Recipe) -> Encoder:
        """A new copy of the pre-trained encoder."""
        options = recipe.encoder_options()
        key = (recipe.encoder, recipe.window, *options.items())
        if key not in self._encoders:
            self._encoders[key] = pretrained(recipe.encoder, recipe.window, **options)
        return copy.deepcopy(self._encoders[key])

    def begins_with(self, trial: Trial) -> Encoder:
        """What a trial trains or judges: the encoder of a run, which is in its folder, or the pre-trained one."""
        run = trial.options.get("run")
        return read_run(Path(str(run))).encoder if run else self.encoder(trial.recipe)

    def data(self, trial: Trial) -> Corpus:
        """What the trial trains, validates and tests on."""
        return cut(self.corpus(), trial.subset, trial.recipe.seed)


def trained(bench: Bench, trial: Trial, corpus: Corpus) -> tuple[Encoder, Fitted | None]:
    """The trial's encoder on the bench's device, and its training (None where it is taken as it is)."""
    encoder = bench.encoder(trial.recipe).to(bench.device)
    if not trial.train:
        return encoder, None
    lr = choose_lr(encoder, corpus, trial.recipe)
    return encoder, fit(encoder, corpus, trial.recipe, lr=lr, epochs=trial.recipe.epochs)


def train_and_probe(bench: Bench, trial: Trial) -> list[Point]:
    """What most studies measure: one point, see `probed`."""
    corpus = bench.data(trial)
    encoder, fitted = trained(bench, trial, corpus)
    return [probed(encoder, fitted, corpus, trial.recipe, bench.device)]


def probed(
    encoder: Encoder,
    fitted: Fitted | None,
    corpus: Corpus,
    recipe: Recipe,
    device: torch.device,
    parts: dict[str, list[str]] | None = None,
) -> Point:
    """The dual probe (and vanilla fine-tuning's own head, `head`) on test clips, and the geometry of their embedding.

    Of what a clip may be (`Corpus.answers`), see `judged`. Each of `parts` (a name, and classes) adds what is told of those
    classes alone, as `linear_NAME`. Among the numbers, `val_linear`, `val_knn` and `val_head` are the `merit` on validation
    clips: what to choose by.
    """
    probes = dual_probe(encoder, corpus, recipe, device)
    judges: dict[str, LinearProbe | KnnProbe] = {"linear": probes.linear, "knn": probes.knn}
    if fitted is not None and isinstance(fitted.objective, FineTune):
        judges["head"] = head_probe(fitted.objective)
    shares, numbers, answers, several = {}, {}, corpus.answers, corpus.multi_label
    truth, test = (clips.targets[:, answers] for clips in (corpus.val, corpus.test))
    names = [corpus.classes[at] for at in answers]
    of = {f"_{part}": [names.index(name) for name in some] for part, some in (parts or {}).items()}
    for name, probe in judges.items():
        scores = probe.scores(probes.test_embeddings)[:, answers]
        for part, columns in {"": None, **of}.items():
            shares[f"{name}{part}"] = judged(scores, test, corpus.test.groups, columns, multi_label=several)
        numbers[f"val_{name}"] = merit(probe.scores(probes.val_embeddings)[:, answers], truth, multi_label=several)
    geometry = describe(probes.test_embeddings, label_sets(corpus.test.targets), recipe.seed)
    return Point(shares, numbers | geometry)


def judged(
    scores: Floats, targets: Targets, groups: list[str], columns: list[int] | None = None, *, multi_label: bool
) -> Tally:
    """The tally whose share is the `merit` of `scores [clips, classes]`: how many clips of the classes are right.

    Of several labels it is the mAP over the classes, see `precision_tally`. Of all classes, or of those in `columns`.
    """
    columns = list(range(targets.shape[1])) if columns is None else columns
    asked = targets[:, columns]
    if multi_label:
        return precision_tally(scores[:, columns], asked, groups)
    return tally(correct(scores, targets), groups, asked.sum(axis=1) > 0)


def precision_tally(scores: Floats, targets: Targets, groups: list[str]) -> Tally:
    """mAP as a tally: by group what its clips add to the sum whose share is mAP, and how many clips it has.

    Each clip adds mAP, and by how much mAP rises as the clip gains weight. The latter sums to zero over all clips, and in a
    resample of groups it moves the share as mAP would move, to first order (the infinitesimal jackknife, Jaeckel 1972).
    Empty where no clip has a label.
    """
    if not targets.any():
        return {}
    gains = np.nanmean(precision_gains(scores, targets), axis=1)
    return tally(mean_average_precision(scores, targets) + len(gains) * gains, groups)


def tally(right: Bools | Doubles, groups: list[str], rows: Bools | None = None) -> Tally:
    """By group: how many of its clips are right, and how many it has. Of all clips, or of those in `rows [clips]`."""
    found: Tally = {}
    for index in range(len(right)) if rows is None else np.flatnonzero(rows):
        hits, clips = found.get(groups[index], (0.0, 0.0))
        found[groups[index]] = (hits + float(right[index]), clips + 1.0)
    return found


def rivals(trial: Trial) -> list[Trial]:
    """The trial by each of three ways: the encoder as it is, vanilla fine-tuning, and PairTune (column `objective`)."""

    def arm(objective: str) -> dict[str, str | int | float]:
        return {"objective": objective, **trial.arm}

    headless = replace(trial.recipe, head_init="random")
    return [
        replace(trial, arm=arm("frozen"), recipe=headless, train=False),
        replace(trial, arm=arm("finetune"), recipe=replace(trial.recipe, objective="finetune")),
        replace(trial, arm=arm("pairtune"), recipe=pairtuned(trial.recipe)),
    ]


def pairtuned(recipe: Recipe) -> Recipe:
    """The recipe with PairTune for its objective, which has no head to begin anyhow."""
    return replace(recipe, objective="pairtune", head_init="random")
