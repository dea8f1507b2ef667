"""What a study is: one question, a plan of trials, a measurement, and conclusions by rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from confit_edge.data.corpus import Corpus
from confit_edge.recipe import Recipe
from confit_edge.studies.bench import Bench, train_and_probe
from confit_edge.studies.results import Results
from confit_edge.studies.trial import Point, Trial

Places = dict[str, Path | None]


@dataclass(frozen=True)
class Chart:
    """The plot of a study: a metric (or number) against column `x`, a line for each different value of the columns `by`.

    Arms without the column `x` (the frozen encoder, say) are drawn as level lines.
    """

    x: str
    by: tuple[str, ...] = ("objective",)
    metrics: tuple[str, ...] = ("linear", "head")
    log: bool = False


@dataclass(frozen=True)
class Study:
    """One question, put to any corpus.

    `plan` gives the trials of one seed, which is its recipe's. `measure` does a trial, in a worker process; it is a
    function of a module, since it is found there by its name. `conclude` gives the sentences of the conclusion. `draw`,
    where it is given, replaces the plot of `chart`. `plan_from` makes trials of what was trained before in place of the
    plan: of folders of runs and of other studies, and of where a run's `background` and `others` are now. `beside` says how
    many clips a trial embeds beside those of the usual measurement, and `hears` whether its probes hear the background, for
    its cost.
    """

    name: str
    question: str
    plan: Callable[[Corpus, Recipe], list[Trial]]
    conclude: Callable[[Results], list[str]]
    chart: Chart
    measure: Callable[[Bench, Trial], list[Point]] = train_and_probe
    draw: Callable[[Results, Path], None] | None = None
    plan_from: Callable[[list[Path], Corpus, Recipe, Places], list[Trial]] | None = None
    beside: Callable[[Bench, Trial], int] | None = None
    hears: bool = True
