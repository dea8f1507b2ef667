"""Where trials run: the decoded corpus and the pre-trained encoder, read once per process, and the usual measurement."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.encoders import pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import OnEmbedded, counted
from confit_edge.geometry.measures import describe, label_sets
from confit_edge.pairtune.lr_search import choose_lr
from confit_edge.pairtune.machine import pick_device
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.session import absolute, resolved_recipe
from confit_edge.pairtune.trainer import Fitted, fit
from confit_edge.pairtune.validation import head_probe
from confit_edge.probes.dual import dual_probe
from confit_edge.probes.knn import KnnProbe
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.metrics import correct, mean_average_precision, merit, precision_gains
from confit_edge.progress import Progress, Watcher, ignore_event, report_probe_progress
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run
from confit_edge.studies.subset import cut
from confit_edge.studies.trial import Point, Tally, Trial
from confit_runtime.arrays import Bools, Doubles, Floats, Targets
from confit_runtime.errors import UsageError


@dataclass(frozen=True)
class Source:
    """Where a study's data come from: a manifest, and the keys of `recipe` that define how to read it."""

    manifest: Path
    recipe: Recipe


def source_of(manifest: Path, recipe: Recipe) -> Source:
    """Return a source with absolute paths, which works from any folder. Raises UsageError where a path is not UTF-8."""
    return Source(Path(absolute(manifest)), resolved_recipe(recipe, pick_device(recipe.device)))


class Bench:
    """One process's copy of the data and of the untrained encoder, each read on first use.

    `notify` is called with the events of the trial that it measures, `progress` with those of reading the data.
    """

    def __init__(self, source: Source, progress: Progress | None = None) -> None:
        self.source, self.progress = source, progress
        self.notify: Watcher = ignore_event
        self._corpora: dict[int, Corpus] = {}
        self._encoders: dict[tuple[Any, ...], Encoder] = {}

    @property
    def device(self) -> torch.device:
        return pick_device(self.source.recipe.device)

    def corpus(self, rate: int | None = None) -> Corpus:
        """Return all clips at `rate` Hz (None: the rate of the study's encoder). Raises UsageError if none can be tested on."""
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
                raise UsageError(
                    f"{self.source.manifest}: no clip is in test, and a study reports on test clips; add some"
                )
            if not self._corpora[rate].test.targets.any():
                raise UsageError(
                    f"{self.source.manifest}: no clip in test has a label, so a study has nothing to report; label some"
                )
        return self._corpora[rate]

    def encoder(self, recipe: Recipe) -> Encoder:
        """Return a new copy of the pre-trained encoder."""
        options = recipe.encoder_options()
        key = (recipe.encoder, recipe.window, *options.items())
        if key not in self._encoders:
            self._encoders[key] = pretrained(recipe.encoder, recipe.window, **options)
        return copy.deepcopy(self._encoders[key])

    def starting_encoder(self, trial: Trial) -> Encoder:
        """Return the encoder that a trial trains or judges: that of a run (from its folder), or the pre-trained one."""
        run = trial.options.get("run")
        return read_run(Path(str(run))).encoder if run else self.encoder(trial.recipe)

    def report_embedded(self, done: int, total: int) -> None:
        """Report that `done` of the `total` sounds that a trial embeds have been embedded."""
        report_probe_progress(self.notify, "the encoder", done, total)

    def count_embedded(self, total: int) -> OnEmbedded:
        """A callback that reports how many of the `total` sounds that a trial embeds have been embedded."""
        return counted(self.report_embedded, total)

    def data(self, trial: Trial) -> Corpus:
        """Return the clips the trial trains, validates and tests on."""
        return cut(self.corpus(), trial.subset, trial.recipe.seed)


def trained(bench: Bench, trial: Trial, corpus: Corpus) -> tuple[Encoder, Fitted | None]:
    """Return the trial's encoder on the bench's device, and its training (None if the encoder is not trained)."""
    encoder = bench.encoder(trial.recipe).to(bench.device)
    if not trial.train:
        return encoder, None
    lr = choose_lr(encoder, corpus, trial.recipe, bench.notify)
    return encoder, fit(encoder, corpus, trial.recipe, lr=lr, epochs=trial.recipe.epochs, watch=bench.notify)


def train_and_probe(bench: Bench, trial: Trial) -> list[Point]:
    """Train and measure one point, as most studies do; see `probed`."""
    corpus = bench.data(trial)
    encoder, fitted = trained(bench, trial, corpus)
    return [probed(bench, encoder, fitted, corpus, trial.recipe)]


def probed(
    bench: Bench,
    encoder: Encoder,
    fitted: Fitted | None,
    corpus: Corpus,
    recipe: Recipe,
    parts: dict[str, list[str]] | None = None,
) -> Point:
    """Measure the dual probe (and vanilla's own head, `head`) on test clips, and the geometry of their embedding.

    Only the classes a clip may have (`Corpus.answers`) count; see `merit_tally`. Each of `parts` (a name and its classes) adds
    the shares of those classes alone, as `linear_NAME`. Among the numbers, `val_linear`, `val_knn` and `val_head` are the
    `merit` on validation clips, which choices are based on.
    """
    probes = dual_probe(encoder, corpus, recipe, bench.device, progress=bench.report_embedded)
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
            shares[f"{name}{part}"] = merit_tally(scores, test, corpus.test.groups, columns, multi_label=several)
        numbers[f"val_{name}"] = merit(probe.scores(probes.val_embeddings)[:, answers], truth, multi_label=several)
    geometry = describe(probes.test_embeddings, label_sets(corpus.test.targets), recipe.seed)
    return Point(shares, numbers | geometry)


def merit_tally(
    scores: Floats, targets: Targets, groups: list[str], columns: list[int] | None = None, *, multi_label: bool
) -> Tally:
    """Return the tally whose share is the `merit` of `scores [clips, classes]`: how many clips of the classes are right.

    With several labels per clip, the share is the mAP over the classes; see `precision_tally`. `columns` limits it to some
    classes (None: all).
    """
    columns = list(range(targets.shape[1])) if columns is None else columns
    asked = targets[:, columns]
    if multi_label:
        return precision_tally(scores[:, columns], asked, groups)
    return tally(correct(scores, targets), groups, asked.sum(axis=1) > 0)


def precision_tally(scores: Floats, targets: Targets, groups: list[str]) -> Tally:
    """Return mAP as a tally: per group, what its clips add to the sum whose share is mAP, and how many clips it has.

    Each clip adds mAP plus the rate at which mAP rises as the clip gains weight. These rates sum to zero over all clips. In
    a resample of groups they move the share as mAP would move, to first order (the infinitesimal jackknife, Jaeckel 1972).
    Empty where no clip has a label.
    """
    if not targets.any():
        return {}
    gains = np.nanmean(precision_gains(scores, targets), axis=1)
    return tally(mean_average_precision(scores, targets) + len(gains) * gains, groups)


def tally(right: Bools | Doubles, groups: list[str], rows: Bools | None = None) -> Tally:
    """Return, per group, how many of its clips are right and how many it has: of all clips, or of `rows [clips]`."""
    found: Tally = {}
    for index in range(len(right)) if rows is None else np.flatnonzero(rows):
        hits, clips = found.get(groups[index], (0.0, 0.0))
        found[groups[index]] = (hits + float(right[index]), clips + 1.0)
    return found


def rivals(trial: Trial) -> list[Trial]:
    """Return the trial with each of three objectives: the frozen encoder, vanilla fine-tuning and PairTune."""

    def arm(objective: str) -> dict[str, str | int | float]:
        return {"objective": objective, **trial.arm}

    headless = replace(trial.recipe, head_init="random")
    return [
        replace(trial, arm=arm("frozen"), recipe=headless, train=False),
        replace(trial, arm=arm("finetune"), recipe=replace(trial.recipe, objective="finetune")),
        replace(trial, arm=arm("pairtune"), recipe=pairtuned(trial.recipe)),
    ]


def pairtuned(recipe: Recipe) -> Recipe:
    """Return the recipe with PairTune as its objective, which has no head to initialise."""
    return replace(recipe, objective="pairtune", head_init="random")
