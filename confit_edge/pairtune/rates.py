"""Of several learning rates the best one on validation, each tried by a training of its own."""

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
from confit_edge.recipe import Recipe
from confit_edge.watching import Watcher
from confit_runtime.errors import ConfitError

FOUND, TRIAL = "rates.json", "trial-"  # in the folder of a training that is not finished


def choose_lr(
    encoder: Encoder,
    corpus: Corpus,
    recipe: Recipe,
    watch: Watcher | None = None,
    teaching: Teaching | None = None,
    folder: Path | None = None,
) -> float:
    """The learning rate of the encoder: its own where the recipe names none, the one named, or of several the best on validation.

    Each is tried for `search_epochs`: a short trial may mislead, for PairTune loses on validation before it gains. Where
    there is a `folder`, what was found is kept in its `rates.json`, and a search that was killed goes on. One that
    diverges is left out. Raises DivergedError when all do.
    """
    if len(recipe.lr) <= 1:
        return recipe.lr[0] if recipe.lr else encoder.learning_rate
    kept, ranks = folder / FOUND if folder else None, join(recipe.device)
    found = _found(kept, ranks) if kept else {}
    one, epochs = replace(recipe, soup=1), recipe.search_epochs or recipe.epochs
    for lr in recipe.lr:
        if str(lr) in found:
            continue
        path = folder / f"{TRIAL}{lr}.safetensors" if folder else None
        tell = _trying(lr, watch) if watch else None
        try:
            fitted = fit(
                copy.deepcopy(encoder),
                corpus,
                one,
                lr=lr,
                epochs=epochs,
                checkpoint_path=path,
                watch=tell,
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


def _found(kept: Path, ranks: Ranks) -> dict[str, float | None]:
    """What each rate reached that was tried before, None where it diverged: as the first process reads it."""
    found: dict[str, float | None] = {}
    with ranks.together():
        if ranks.main and kept.is_file():
            try:
                found = json.loads(kept.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfitError(f"{kept}: is damaged ({error}); remove it, and the rates are tried again") from error
    agreed: dict[str, float | None] = ranks.agree(found)
    return agreed


def _trying(lr: float, watch: Watcher) -> Watcher:
    """Tells of the steps of a trial, and of nothing else: its epochs are not those of the training."""

    def tell(event: dict[str, Any]) -> None:
        if event["stage"] == "step":
            watch({**event, "stage": "trying", "lr": lr})

    return tell


def leave_nothing(folder: Path) -> None:
    """Remove what a search keeps in the `folder` of its training so that it can go on."""
    for path in (folder / FOUND, *folder.glob(f"{TRIAL}*")):
        files.remove(path)
