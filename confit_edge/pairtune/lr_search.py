"""The search for a learning rate: each candidate is tried in a training of its own and judged on validation."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from confit_edge import files
from confit_edge.data.corpus import Corpus
from confit_edge.encoders.base import Encoder
from confit_edge.pairtune.distill import Teaching
from confit_edge.pairtune.distributed import Ranks, join
from confit_edge.pairtune.trainer import DivergedError, fit
from confit_edge.pairtune.validation import quality
from confit_edge.probes.metrics import merit_name
from confit_edge.progress import Watcher
from confit_edge.recipe import Recipe
from confit_runtime.errors import ConfitError

RESULTS_FILE, TRIAL_PREFIX = "rates.json", "trial-"  # files of a search, in the folder of an unfinished training


def choose_lr(
    encoder: Encoder,
    corpus: Corpus,
    recipe: Recipe,
    watch: Watcher | None = None,
    teaching: Teaching | None = None,
    folder: Path | None = None,
) -> float:
    """The learning rate of the encoder: the one in the recipe, or the best of several, or without any the encoder's own.

    Each of several is tried for `search_epochs`; a short trial may mislead, since PairTune gets worse on validation before
    it gets better. With a `folder`, results are kept in its `rates.json`, so that a killed search can resume. Rates that
    diverge are left out. Raises DivergedError when all of them do.
    """
    if len(recipe.lr) <= 1:
        return recipe.lr[0] if recipe.lr else encoder.learning_rate
    kept, ranks = folder / RESULTS_FILE if folder else None, join(recipe.device)
    found = _read_results(kept, ranks) if kept else {}
    one, epochs = replace(recipe, soup=1), recipe.search_epochs or recipe.epochs
    for lr in recipe.lr:
        if str(lr) in found:
            continue
        path = folder / f"{TRIAL_PREFIX}{lr}.safetensors" if folder else None
        notify = _trial_watcher(lr, watch) if watch else None
        try:
            fitted = fit(
                copy.deepcopy(encoder),
                corpus,
                one,
                lr=lr,
                epochs=epochs,
                checkpoint_path=path,
                watch=notify,
                teaching=teaching,
            )
            found[str(lr)] = quality(fitted.history[fitted.kept_epoch])
        except DivergedError:
            found[str(lr)] = None
            if all(found.get(str(each), 0.0) is None for each in recipe.lr):
                raise
        if watch and found[str(lr)] is not None:
            merit = merit_name(multi_label=corpus.multi_label)
            watch({"stage": "search", "lr": lr, "validation": found[str(lr)], "merit": merit})
        if kept and path and ranks.main:
            files.write_text(kept, json.dumps(found))
            files.remove(path)
    reached = {lr: value for lr in recipe.lr if (value := found[str(lr)]) is not None}
    return max(reached, key=lambda lr: reached[lr])


def _read_results(kept: Path, ranks: Ranks) -> dict[str, float | None]:
    """The validation results of the rates tried so far (None: diverged), as the first process reads them."""
    found: dict[str, float | None] = {}
    with ranks.share_errors():
        if ranks.main and kept.is_file():
            try:
                found = json.loads(kept.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfitError(f"{kept}: is damaged ({error}); remove it to try the rates again") from error
    agreed: dict[str, float | None] = ranks.agree(found)
    return agreed


def _trial_watcher(lr: float, watch: Watcher) -> Watcher:
    """A watcher that passes on the steps of a trial only: its epochs are not those of the training."""

    def notify(event: dict[str, Any]) -> None:
        if event["stage"] == "step":
            watch({**event, "stage": "trying", "lr": lr})

    return notify


def remove_search_files(folder: Path) -> None:
    """Remove the files that a search keeps in the `folder` of its training in order to resume."""
    for path in (folder / RESULTS_FILE, *folder.glob(f"{TRIAL_PREFIX}*")):
        files.remove(path)
