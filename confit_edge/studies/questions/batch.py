"""How do the size of the batch, the length of the window and the hardness of the mining act together?"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from confit_edge.data.corpus import Corpus
from confit_edge.encoders import BUILT_IN, pretrained
from confit_edge.pairtune.items import batch_size
from confit_edge.recipe import Recipe
from confit_edge.studies.phrases import ranking, versus, widened
from confit_edge.studies.results import Estimate, Results, Side
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.trial import Arm, Scalar, Trial

# classes x clips of each; the unknown class adds twice as many clips
BATCHES = ((4, 4), (16, 4), (32, 4))
WINDOWS = (0.75, 1.0)  # of the recipe's
HARDNESS = (0.0, 1.0, 4.0)
FACTORS = ("batch", "window", "hardness")


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Plan PairTune at every combination. A batch holds no more classes than there are; duplicates are planned once."""
    trials = []
    for (size, batch), window, hardness in product(_batches(corpus, recipe).items(), _windows(recipe), HARDNESS):
        changed = replace(batch, window=window, hardness=hardness)
        arm: Arm = {"batch": size, "window": changed.window, "hardness": hardness}
        trials.append(Trial({"objective": "pairtune", **arm}, changed))
    return trials


def _batches(corpus: Corpus, recipe: Recipe) -> dict[int, Recipe]:
    """Return the recipe of each batch to try, by its number of clips, including those of the unknown class."""
    clips, found = corpus.training_clips(), dict[int, Recipe]()
    for wide, each in BATCHES:
        tried = replace(
            recipe,
            objective="pairtune",
            mining="hardness",
            classes_per_batch=min(wide, len(corpus.classes)),
            clips_per_class=each,
        )
        found.setdefault(batch_size(clips, corpus, tried), tried)
    return found


def _windows(recipe: Recipe) -> list[float]:
    """Return the windows to try, in seconds, without duplicates: some encoders have a fixed length or round it to steps."""
    asked = [round(share * recipe.window, 3) for share in WINDOWS]
    if recipe.encoder.replace("_", "-") not in BUILT_IN:
        return asked
    lengths = {pretrained(recipe.encoder, window).window: window for window in asked}
    return list(lengths.values())


def conclude(results: Results) -> list[str]:
    """State the best combination, and the effect of each factor averaged over the others."""
    lines = ranking(results, results.arms(), " ".join(FACTORS))
    for factor in FACTORS:
        levels = results.values(factor)
        base = levels[-1]
        for level in levels[:-1]:
            effect = main_effect(results, factor, base, level, comparisons=len(levels) - 1)
            lines.append(versus(f"{factor} {base}, averaged over the rest,", f"{factor} {level}", effect))
        lines += widened(len(levels) - 1)
    return [*lines, "All trials have the same epochs, so larger batches take fewer steps."]


def main_effect(results: Results, factor: str, one: Scalar, other: Scalar, comparisons: int = 1) -> Estimate:
    """Return the share at one level of a factor minus that at another, over the combinations that both have."""
    rest = [{key: value for key, value in arm.items() if key != factor} for arm in results.arms(**{factor: one})]
    both = [arm for arm in rest if results.select({**arm, factor: other})]
    if not both:  # diverged trials have no row
        return Estimate(np.nan, np.nan, np.nan)
    terms = [
        (sign / len(both), Side("linear", {**arm, factor: level}))
        for sign, level in ((1, one), (-1, other))
        for arm in both
    ]
    return results.contrast(terms, comparisons)


STUDY = Study(
    name="batch",
    question="How do the size of the batch, the length of the window and the hardness of the mining act together?",
    plan=plan,
    conclude=conclude,
    chart=Chart("batch", by=("window", "hardness"), metrics=("linear",), log=True),
)
