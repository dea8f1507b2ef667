"""Writes a study's table.csv, table.md, plot.png, conclusions.md and results.json, from its results alone."""

from __future__ import annotations

import json

from confit_edge.files import write_text
from confit_edge.probes.tables import escaped, markdown, write_csv
from confit_edge.runs import versions
from confit_edge.studies.chart import draw
from confit_edge.studies.engine import Planned
from confit_edge.studies.phrases import words
from confit_edge.studies.results import Estimate, Results
from confit_edge.studies.trial import Arm, Scalar
from confit_runtime.formatting import format_count, format_interval

SHOWN = ("isoscore", "top1", "anisotropy", "epochs_linear", "epochs_head")  # in table.md; table.csv has all


def write_report(planned: Planned, results: Results, command: str) -> list[str]:
    """Write the report into the study's folder and return the sentences of the conclusion."""
    out, study = planned.journal.path, planned.study
    table = tabulate(results)
    write_csv(out / "table.csv", table)
    write_text(out / "table.md", to_markdown(results))
    conclusions = [facts(results), *study.conclude(results)]
    write_text(out / "conclusions.md", "\n".join(conclusions) + "\n")
    whole = {
        "study": study.name,
        "question": study.question,
        "command": command,
        **{key: planned.journal.header[key] for key in ("recipe", "train_groups", "manifest", "fingerprint")},
        "figure": results.figure,
        "seeds": sorted({outcome.seed for outcome in results.outcomes}),
        "trials": len(results.outcomes),
        "diverged": [{**outcome.arm, "seed": outcome.seed, "why": outcome.diverged} for outcome in results.diverged],
        "cpu_seconds": round(sum(outcome.cpu_seconds for outcome in results.outcomes), 1),
        "versions": versions(),
        "conclusions": conclusions,
        "rows": table,
    }
    write_text(out / "results.json", json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if study.draw:
        study.draw(results, out / "plot.png")
    else:
        draw(results, study.chart, study.question, out / "plot.png")
    return conclusions


def facts(results: Results) -> str:
    """Describe what the conclusions are based on: trials, seeds, test clips and groups, and what diverged."""
    seeds = {outcome.seed for outcome in results.outcomes}
    tallies = [tally for row in results.rows for tally in row.shares.values()]
    groups = {group for tally in tallies for group in tally}
    clips = max((sum(clips for _, clips in tally.values()) for tally in tallies), default=0)
    text = (
        f"{format_count(len(results.outcomes), 'trial')} with {format_count(len(seeds), 'seed')},"
        f" tested on {format_count(len(groups), 'group')}"
        f" (at most {format_count(round(clips), 'answer')} per cell of the table)."
    )
    if results.diverged:
        named = sorted({words(outcome.arm) for outcome in results.diverged})
        text += f" Diverged and left out: {format_count(len(results.diverged), 'trial')} ({'; '.join(named)})."
    if results.figure != "accuracy":
        text += f" Clips may have several labels: linear, knn and head are {results.figure}."
    if len(seeds) == 1 != len(groups):
        text += " With one seed, the intervals cover the test groups only."
    if len(groups) == 1 != len(seeds):
        text += " With one test group, the intervals cover the seeds only."
    return text


def tabulate(results: Results) -> list[dict[str, Scalar | None]]:
    """Return a row per arm: its seeds, how many diverged, and each share and number with its interval (None if missing)."""
    table = []
    for arm in arms(results):
        row: dict[str, Scalar | None] = {**arm, **seeds_of(results, arm)}
        of_arm = results.exactly(arm)
        for metric in _names(results, "shares"):
            row |= _cells(metric, of_arm.share(metric))
        for number in _names(results, "numbers"):
            row |= _cells(number, of_arm.number(number))
        table.append(row)
    columns = list(dict.fromkeys(key for row in table for key in row))
    return [{key: row.get(key) for key in columns} for row in table]


def arms(results: Results) -> list[Arm]:
    """Return the arms that were measured, followed by those whose trials all diverged."""
    found = results.arms()
    for outcome in results.diverged:
        if outcome.arm not in found and not results.select(outcome.arm):
            found.append(outcome.arm)
    return found


def seeds_of(results: Results, arm: Arm) -> dict[str, int]:
    """Return how many seeds of an arm were measured, and how many of its trials diverged."""
    exact = [row for row in results.rows if row.arm == arm]
    diverged = [outcome for outcome in results.diverged if outcome.arm.items() <= arm.items()]
    return {"seeds": len({row.seed for row in exact}), "diverged": len(diverged)}


def to_markdown(results: Results) -> str:
    """Return the table as Markdown: accuracies (or mAP) on test in per cent with intervals, and some of the geometry.

    Arms with validation figures only, such as epochs, are left out; `table.csv` has them.
    """
    table = arms(results)
    columns = list(dict.fromkeys(key for arm in table for key in arm))
    metrics = _names(results, "shares")
    numbers = [name for name in _names(results, "numbers") if name in SHOWN or not metrics]
    rows = []
    for arm in table:
        counts = seeds_of(results, arm)
        seeds = f"{counts['seeds']} ({counts['diverged']} diverged)" if counts["diverged"] else str(counts["seeds"])
        of_arm = results.exactly(arm)
        shares = [_shown(of_arm.share(metric), 100, 1) for metric in metrics]
        rest = [_shown(of_arm.number(number), 1, 3) for number in numbers]
        if not any(shares + rest) and not counts["diverged"]:
            continue
        rows.append([*(escaped(str(arm.get(column, ""))) for column in columns), seeds, *shares, *rest])
    return markdown([*columns, "seeds", *metrics, *numbers], rows) + "\n"


def _names(results: Results, kind: str) -> list[str]:
    return list(dict.fromkeys(name for row in results.rows for name in getattr(row, kind)))


def _cells(name: str, estimate: Estimate) -> dict[str, Scalar | None]:
    values = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {key: round(value, 6) if value == value else None for key, value in values.items()}


def _shown(estimate: Estimate, factor: float, digits: int) -> str:
    if estimate.value != estimate.value:
        return ""
    text = f"{factor * estimate.value:.{digits}f}"
    if estimate.low == estimate.low:
        text += f" {format_interval(factor * estimate.low, factor * estimate.high, f'.{digits}f')}"
    return text
