"""How much does the temperature of the contrastive loss matter?"""

from __future__ import annotations

from dataclasses import replace

from confit_edge.data.corpus import Corpus
from confit_edge.recipe import Recipe, check_no_idle_keys
from confit_edge.studies.bench import pairtuned, rivals
from confit_edge.studies.phrases import against_vanilla, ranking
from confit_edge.studies.results import Results, Side
from confit_edge.studies.study import Chart, Study
from confit_edge.studies.trial import Trial

TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def plan(corpus: Corpus, recipe: Recipe) -> list[Trial]:
    """Plan PairTune at each temperature, plus the frozen encoder and vanilla fine-tuning.

    Raises UsageError if the recipe's loss has no temperature.
    """
    check_no_idle_keys(pairtuned(recipe), ["temperature"])
    frozen, finetune, pairtune = rivals(Trial({}, recipe))
    return [
        frozen,
        finetune,
        *(
            replace(
                pairtune, arm={**pairtune.arm, "temperature": value}, recipe=replace(pairtune.recipe, temperature=value)
            )
            for value in TEMPERATURES
        ),
    ]


def conclude(results: Results) -> list[str]:
    """State the best temperature and those no worse, and whether the best beats vanilla fine-tuning."""
    arms = [arm for arm in results.arms(objective="pairtune") if "temperature" in arm]
    if not arms:
        return ["PairTune was not measured at any temperature."]
    best = results.best(arms)
    return [
        *ranking(results, arms, "temperature"),
        *against_vanilla(results, f"PairTune at {best['temperature']}", Side("linear", best)),
    ]


STUDY = Study(
    name="temperature",
    question="How much does the temperature of the contrastive loss matter, from 0.01 to 1?",
    plan=plan,
    conclude=conclude,
    chart=Chart("temperature", log=True),
)
