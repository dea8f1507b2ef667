"""The plots of the studies: accuracies with their intervals against what was varied."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from confit_edge.geometry.plots import COLOURS, INK, drawing_settings
from confit_edge.studies.phrases import words
from confit_edge.studies.results import Estimate, Results
from confit_edge.studies.study import Chart
from confit_edge.studies.trial import Arm, Scalar
from confit_runtime.files import name_file_in_errors

Colour = str | tuple[float, ...]

MARKERS = "os^Dv"


@drawing_settings()
def draw(results: Results, chart: Chart, title: str, path: Path, split: str = "test") -> None:
    """Write the plot of a chart. Where `x` is not a number, points of the same value are placed side by side."""
    figure = Figure(figsize=(8, 4.8))
    axes = figure.subplots()
    ticks = results.values(chart.x)
    numeric = all(isinstance(tick, int | float) for tick in ticks)
    places = {tick: float(tick) if numeric else float(index) for index, tick in enumerate(ticks)}
    looks = _looks(results, chart)
    for number, (line, (colour, marker)) in enumerate(looks.items()):
        arm = dict(line)
        aside = 0.0 if numeric else 0.7 * ((number + 0.5) / len(looks) - 0.5)
        for metric, style in zip(chart.metrics, ("-", "--"), strict=False):
            points = {places[tick] + aside: _percent(results, metric, {**arm, chart.x: tick}) for tick in ticks}
            points = {place: estimate for place, estimate in points.items() if not math.isnan(estimate.value)}
            label = f"{words(arm)}, {metric}".removeprefix(", ")
            if points:
                axes.errorbar(
                    list(points),
                    [estimate.value for estimate in points.values()],
                    yerr=[[_reach(estimate)[side] for estimate in points.values()] for side in (0, 1)],
                    color=colour,
                    mfc=colour if style == "-" else "white",
                    ls=style if numeric else "",
                    marker=marker,
                    ms=4,
                    lw=1.2,
                    capsize=2,
                    label=label,
                )
            elif not math.isnan(level := _percent(results, metric, arm).value):
                axes.axhline(level, color=colour, ls=style, lw=1, label=label)
    if numeric and chart.log:
        axes.set_xscale("log")
    if not numeric or chart.log:
        axes.set_xticks(list(places.values()), [str(tick) for tick in places], rotation=0 if numeric else 15)
        axes.minorticks_off()
    axes.set(xlabel=chart.x, ylabel=f"{results.figure} on {split} (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    if axes.has_data():
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure."""
    with name_file_in_errors(path):
        figure.savefig(path, dpi=130, bbox_inches="tight")


def colour_of(objective: Scalar, number: int = 0) -> Colour:
    """Return the colour of an objective; for one without its own, the colour with this `number`."""
    if objective == "frozen":
        return INK
    fallback: Colour = matplotlib.colormaps["tab10"]((number + 4) % 10)
    return COLOURS.get(str(objective), fallback)


def _looks(results: Results, chart: Chart) -> dict[tuple[tuple[str, Scalar], ...], tuple[Colour, str]]:
    """Return the colour and marker of each line of the plot, by the items of its columns.

    The objective sets the colour and the other columns set the marker. Where many lines share one objective, each gets
    its own colour.
    """
    keys = list(dict.fromkeys(tuple((key, arm[key]) for key in chart.by if key in arm) for arm in results.arms()))
    objectives = list(dict.fromkeys(dict(key).get("objective", "") for key in keys))
    rests = list(dict.fromkeys(tuple(item for item in key if item[0] != "objective") for key in keys))
    looks: dict[tuple[tuple[str, Scalar], ...], tuple[Colour, str]] = {}
    for key in keys:
        objective = dict(key).get("objective", "")
        rest = rests.index(tuple(item for item in key if item[0] != "objective"))
        repeated = sum(dict(other).get("objective", "") == objective for other in keys) > len(MARKERS)
        colour: Colour = (
            matplotlib.colormaps["tab20"](rest % 20) if repeated else colour_of(objective, objectives.index(objective))
        )
        looks[key] = (colour, MARKERS[rest % len(MARKERS)])
    return looks


def _percent(results: Results, metric: str, arm: Arm) -> Estimate:
    """Return a share of test clips, or if there is none of that name, a number 0..1; in per cent."""
    found = results.share(metric, **arm)
    if math.isnan(found.value):
        found = results.number(metric, **arm)
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high)


def _reach(estimate: Estimate) -> tuple[float, float]:
    """Return how far the interval extends below and above the value; zeros if there is no interval."""
    if math.isnan(estimate.low):
        return 0.0, 0.0
    return max(0.0, estimate.value - estimate.low), max(0.0, estimate.high - estimate.value)
