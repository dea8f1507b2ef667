"""Outcomes of trials, made by hand, for the tests of the studies."""

from __future__ import annotations

from confit_edge.studies.trial import Arm, Outcome, Point, Subset


def outcome(arm: Arm, seed: int, shares: dict[str, list[float]] | None = None, **numbers: float) -> Outcome:
    """Of ten clips in each group, `shares[metric][group]` right."""
    tallies = {
        metric: {f"g{group}": (10 * share, 10.0) for group, share in enumerate(by_group)}
        for metric, by_group in (shares or {}).items()
    }
    return Outcome(f"{arm}{seed}", arm, seed, Subset(), [Point(tallies, numbers)], 0.0)
