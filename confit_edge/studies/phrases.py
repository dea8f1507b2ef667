"""Turns numbers into sentences of a conclusion, by rules that claim no more than the numbers support.

A difference is claimed only where its interval leaves out zero; otherwise the sentence says "no significant difference".
The best setting is chosen on validation clips and reported on test clips. Where several sentences compare the same things
in different settings, their intervals are widened for all of these sentences.
"""

from __future__ import annotations

import math

from confit_edge.studies.results import Estimate, Results, Side
from confit_edge.studies.trial import Arm
from confit_runtime import formatting

VANILLA_PROBES = {"head": "vanilla's own head", "linear": "a linear probe on vanilla's features"}


def percent(share: Estimate) -> str:
    """Format a share 0..1 as `93.1 % [91.0, 95.2]`."""
    return "not measured" if math.isnan(share.value) else formatting.format_percent(share.value, share.low, share.high)


def plain(number: Estimate, digits: int = 3) -> str:
    """Format a number as `0.123 [0.100, 0.146]`."""
    return "not measured" if math.isnan(number.value) else f"{number.value:.{digits}f}{_bounds(number, 1, digits)}"


def points(difference: Estimate) -> str:
    """Format a difference of two shares as `+2.1 points [0.3, 3.9]`."""
    return f"{100 * difference.value:+.1f} points{_bounds(difference, 100, 1)}"


def versus(one: str, other: str, difference: Estimate, where: str = "") -> str:
    """Return a sentence on the difference of two shares: above, below or not significant. `where` comes first."""
    by = points(difference)
    if math.isnan(difference.value):
        text = f"{one} and {other} were not both measured."
    elif math.isnan(difference.low):
        text = f"{one} against {other}: {by}; one seed and one test group give no interval."
    elif difference.significant:
        text = f"{one} is {'above' if difference.value > 0 else 'below'} {other} ({by})."
    else:
        text = f"no significant difference between {one} and {other} ({by})."
    return f"{where}: {text}" if where else text[0].upper() + text[1:]


def ranking(results: Results, arms: list[Arm], column: str) -> list[str]:
    """Name the arm that is best on validation, and list which others are worse, better or not different on test.

    `column` names the arms; it may be several columns, joined by a space.
    """
    measured = [arm for arm in arms if results.select(arm)]
    if len(measured) < 2:
        return [f"Fewer than two settings of {column} were measured."]
    names = {id(arm): _name(arm, column) for arm in measured}
    best = results.best(measured)
    others = [arm for arm in measured if arm is not best]
    by_result: dict[str, list[str]] = {"worse": [], "better": [], "same": []}
    for arm in others:
        gap = results.difference(Side("linear", best), Side("linear", arm), comparisons=len(others))
        by_result["worse" if gap.low > 0 else "better" if gap.high < 0 else "same"].append(names[id(arm)])
    lines = [
        f"Best on validation is {names[id(best)]}{_of_seeds(results, best, measured)}:"
        f" {percent(results.share('linear', **best))} on test (linear)."
    ]
    if by_result["worse"]:
        lines.append(f"Significantly worse on test: {'; '.join(by_result['worse'])}.")
    if by_result["better"]:
        lines.append(f"Significantly better on test, though not on validation: {'; '.join(by_result['better'])}.")
    if by_result["same"]:
        lines.append(f"No significant difference from: {'; '.join(by_result['same'])}.")
    return lines + widened(len(others))


def against_vanilla(
    results: Results, name: str, ours: Side, arm: Arm | None = None, comparisons: int = 1, where: str = ""
) -> list[str]:
    """Compare `ours`, called `name`, with vanilla's own head and with a linear probe on vanilla's features."""
    vanilla: Arm = {"objective": "finetune", **(arm or {})}
    return [
        versus(name, rival, results.difference(ours, Side(metric, vanilla), comparisons), where)
        for metric, rival in VANILLA_PROBES.items()
    ]


def widened(comparisons: int) -> list[str]:
    """Return a note that intervals were widened, if they were."""
    return [f"(Intervals widened for {comparisons} comparisons.)"] if comparisons > 1 else []


def words(arm: Arm) -> str:
    """Describe an arm: `pairtune, temperature 0.1`."""
    return ", ".join(str(value) if key == "objective" else f"{key} {value}" for key, value in arm.items())


def _name(arm: Arm, column: str) -> str:
    return ", ".join(f"{key} {arm[key]}" for key in column.split())


def _of_seeds(results: Results, best: Arm, arms: list[Arm]) -> str:
    """Where some arms lack seeds: how many seeds the best arm, and those it was chosen from, have."""
    planned = len({outcome.seed for outcome in results.outcomes})
    if all(results.seeds(arm) == planned for arm in arms):
        return ""
    return f" (of those with {results.seeds(best)} of {planned} seeds)"


def _bounds(estimate: Estimate, factor: float, digits: int) -> str:
    if math.isnan(estimate.low):
        return ""
    return f" {formatting.format_interval(factor * estimate.low, factor * estimate.high, f'.{digits}f')}"
