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

Places = dict[str, list[str]]


@dataclass(frozen=True)
class Chart:
    """The plot of a study: a metric (or number) against column `x`, with a line for each distinct value of the columns `by`.

    Arms without the column `x`, such as the frozen encoder, are drawn as horizontal lines.
    """

    x: str
    by: tuple[str, ...] = ("objective",)
    metrics: tuple[str, ...] = ("linear", "head")
    log: bool = False


@dataclass(frozen=True)
class Study:
    """One question that can be answered on any corpus.

    - `plan` returns the trials of one seed, the recipe's.
    - `measure` runs a trial in a worker process. It must be a module-level function, because the worker finds it by name.
    - `conclude` returns the sentences of the conclusion.
    - `draw`, if given, replaces the plot of `chart`.
    - `plan_from` replaces `plan` to read finished runs and studies: it gets their folders, and the present locations of a
      run's `background` and `others`.
    - `extra_clips` and `probes_background` are for the cost: how many clips a trial embeds in addition to the usual
      measurement, and whether its probes hear the background.
    """

    name: str
    question: str
    plan: Callable[[Corpus, Recipe], list[Trial]]
    conclude: Callable[[Results], list[str]]
    chart: Chart
    measure: Callable[[Bench, Trial], list[Point]] = train_and_probe
    draw: Callable[[Results, Path], None] | None = None
    plan_from: Callable[[list[Path], Corpus, Recipe, Places], list[Trial]] | None = None
    extra_clips: Callable[[Bench, Trial], int] | None = None
    probes_background: bool = True
