"""What `calibrate` found: its report, the table it prints, its curve, and its warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from confit_edge.cli._console import say
from confit_runtime.calibration import (
    LEVELS,
    NEVER,
    STEP,
    FalseAcceptCounts,
    OperatingPoint,
    Positive,
    limiting_false_accepts,
)
from confit_runtime.contract import Contract
from confit_runtime.describe import clip_noun
from confit_runtime.formatting import format_count, format_interval, format_list
from confit_runtime.intervals import MIN_GROUPS, clustered_rate_interval, grouped_share_interval
from confit_runtime.recordings import Recording

SHOWN = 5  # labels named in a warning
HIGH_THRESHOLD = 0.9  # a threshold from which on many clips are missed
CURVE_HEADER = "margin,fa_per_hour,"  # the start of the curve's CSV
HARDLY_FIRES = 0.9  # share of a label's clips that are missed
MOSTLY_MISSED = 0.5  # share of a label's clips, from which on the report shows what lower thresholds would find
MAX_LOWER = 4  # lower thresholds shown of a label
FAR_ABOVE = round(1.0 / STEP)  # levels in log odds of 1: this far above all scores, a threshold is too high


def report(
    contract: Contract,
    places: Sequence[int],
    counts: FalseAcceptCounts,
    chosen: OperatingPoint,
    heard: Sequence[Positive],
    confidence: float,
    came_with: Mapping[str, float],
) -> dict[str, Any]:
    """The report of the whole model, and of each label at `places`; `came_with` are the thresholds before."""
    hours, held_out = float(counts.hours.sum()), int(chosen.held_out.sum())
    on = {label: level["on"] for label, level in contract.thresholds.items()}
    fired = np.take_along_axis(counts.events.sum(axis=1), chosen.levels[:, None], axis=1)[:, 0]
    labels: dict[str, dict[str, Any]] = {}
    for place in places:
        label = contract.labels[place]
        level, own = on[label], [positive for positive in heard if positive.label == label]
        labels[label] = {
            "threshold": level,
            "fires": level < NEVER,
            "false_accepts": int(fired[place]),
            **_share(own, on, confidence),
        }
        if labels[label].get("frr", 0.0) >= MOSTLY_MISSED:
            lowest = LEVELS[0] if place in chosen.by_hand else min(came_with[label], chosen.bound_thresholds[place])
            labels[label]["lower_thresholds"] = [
                {
                    "threshold": lower,
                    "frr": frr,
                    "false_accepts": int(
                        counts.events[place, :, np.searchsorted(LEVELS, lower, side="right") - 1].sum()
                    ),
                }
                for lower in _round_thresholds(lowest, level)
                if (frr := sum(one.level < lower for one in own) / len(own)) < labels[label]["frr"]
            ]
    return {
        "model": contract.name,
        "hours": hours,
        "recordings": len(counts.hours),
        "fa_per_hour_bound": chosen.bound,
        "fa_per_hour": held_out / hours,
        "fa_per_hour_interval": list(clustered_rate_interval(chosen.held_out, counts.hours, confidence)),
        "false_accepts_held_out": held_out,
        "false_accepts": int(fired.sum()),
        **_share(heard, on, confidence),
        "confusions": sum(bool(positive.others) for positive in heard),
        "by_label": labels,
    }


def report_by_hand(
    contract: Contract, labels: Sequence[str], heard: Sequence[Positive], confidence: float
) -> dict[str, Any]:
    """The report on thresholds that were set by hand and measured on no recordings: what they miss of clips, if any."""
    on = {label: contract.thresholds[label]["on"] for label in contract.can_fire}
    rows = {label: [one for one in heard if one.label == label] for label in labels}
    return {
        "model": contract.name,
        **_share(heard, on, confidence),
        "by_label": {label: {"threshold": on[label], **_share(own, on, confidence)} for label, own in rows.items()},
    }


def _round_thresholds(lowest: float, below: float) -> list[float]:
    """At most `MAX_LOWER` round thresholds from just under `below` down to `lowest`."""
    tenths = [step / 10 for step in range(9, 0, -1) if lowest - 0.01 <= step / 10 < below]
    shown = np.linspace(0, len(tenths) - 1, min(MAX_LOWER, len(tenths)))
    return [tenths[at] for at in shown.round().astype(int)]


def _share(heard: Sequence[Positive], on: Mapping[str, float], confidence: float) -> dict[str, Any]:
    """The clips missed at thresholds `on`, with an interval that treats clips of one group as alike; empty without clips."""
    if not heard:
        return {}
    missed = [one.level < on[one.label] for one in heard]
    low, high = grouped_share_interval(missed, [one.group for one in heard], confidence)
    return {"clips": len(missed), "frr": sum(missed) / len(missed), "frr_interval": [low, high]}


def lowered_thresholds(contract: Contract, chosen: OperatingPoint) -> str:
    """The labels whose thresholds would fall 0.01 or more below those of `contract`, with both values, as text."""
    fallen = []
    for label in contract.can_fire:
        came_with, level = contract.thresholds[label]["on"], chosen.thresholds[contract.labels.index(label)]
        if (fall := came_with - level) >= 0.01:
            fallen.append((round(1e6 * fall), f"{label} ({came_with:.2f} instead of {level:.2f})"))
    return _list_largest(fallen)


def cautions(
    counts: FalseAcceptCounts, chosen: OperatingPoint, contract: Contract, recordings: Sequence[Recording], alone: str
) -> list[str]:
    """Warnings, judged by the thresholds that `contract` came with.

    They concern recordings that seem to hold the model's own sounds, labels raised because others fired, and too few files
    or recordings.
    """
    together, warnings = counts.events.sum(axis=1), []
    own_words, raised = [], []
    for label in contract.can_fire:
        place, on = contract.labels.index(label), contract.thresholds[label]["on"]
        at = int(np.searchsorted(LEVELS, on))
        level, fired = int(chosen.levels[place]), together[place]
        if fired[at] and LEVELS[chosen.own[place]] > on:  # it fired so often that its own level had to rise
            where = int(counts.events[place, :, at].argmax())
            most = f"{counts.events[place, where, at]} in {recordings[where].name}"
            own_words.append((int(fired[at]), f"{label} ({format_count(int(fired[at]), 'time')}, {most})"))
        heard = np.flatnonzero(fired)
        top = int(heard[-1]) if len(heard) else 0
        if HIGH_THRESHOLD <= LEVELS[level] < NEVER and level - top >= FAR_ABOVE:
            fired_at = f"fired up to {LEVELS[top]:.2f}" if len(heard) else "never fired"
            raised.append((level - top, f"{label} (to {LEVELS[level]:.3f}, {fired_at})"))
    if own_words:
        warnings.append(
            f"at the thresholds it came with, the model fires in these recordings: {_list_largest(own_words)}. Listen there: if a"
            " recording holds the sound itself, the new thresholds make the model deaf to it; leave such recordings out"
        )
    if raised or chosen.margin >= FAR_ABOVE:
        heard_at = "; ".join(
            f"{one.label} at {one.score:.3f} in {one.file} at {one.at_s:.1f} s"
            for one in limiting_false_accepts(counts, contract, recordings)
        )
        by = (
            f" These set the margin: {heard_at}. If one is the sound itself, leave its recording out."
            if heard_at
            else ""
        )
        what = f" far above every score they reached: {_list_largest(raised)}" if raised else ""
        warnings.append(f"the margin common to all labels raised their thresholds{what}.{by} {alone}")
    files = {file for recording in recordings for file, _ in recording.places}
    if len(files) < MIN_GROUPS:
        warnings.append(
            f"all hours come from {format_count(len(files), 'file')}. Each half hour counts as a recording, but they are more"
            " alike than recordings of several days and rooms, so the bound holds only for hours like these"
        )
    elif len(recordings) < MIN_GROUPS:
        warnings.append(
            f"all hours count as {format_count(len(recordings), 'recording')}, because the short files of a folder are"
            " taken to be made together. So few do not show how much recordings differ, so the bound holds only for"
            " hours like these"
        )
    return warnings


def _list_largest(found: list[tuple[int, str]]) -> str:
    """The texts with the greatest numbers, and how many more there are."""
    return format_list([text for _, text in sorted(found, key=lambda one: -one[0])], SHOWN)


def print_table(contract: Contract, report: dict[str, Any], noun: str) -> None:
    print(f"{noun:<16}{'threshold':>10}{'false accepts':>15}{'false rejects':>15}")
    for label, row in report["by_label"].items():
        threshold = f"{row['threshold']:.4f}" if row["fires"] else "never"
        print(f"{label:<16}{threshold:>10}{row['false_accepts']:>15}{_percent(row):>15}")
    print(
        f"at most {report['fa_per_hour_bound']:.2f} false accepts per hour for all {noun}s together"
        f" ({100 * report['confidence']:g} % confidence), from {report['hours']:.2f} hours in"
        f" {format_count(report['recordings'], 'recording')}"
    )
    if "frr" in report:
        low, high = report["frr_interval"]
        print(
            f"{100 * report['frr']:.1f} % of {report['clips']} {clip_noun(contract)} missed"
            f" {format_interval(100 * low, 100 * high)}, {report['confusions']} taken for another label"
        )
    if silent := [label for label, row in report["by_label"].items() if not row["fires"]]:
        say(f"no longer fires, because these recordings hold sounds like it: {format_list(silent)}")
    if deaf := [
        label for label, row in report["by_label"].items() if row["fires"] and row.get("frr", 0.0) >= HARDLY_FIRES
    ]:
        say(f"hardly fires any more ({100 * HARDLY_FIRES:g} % or more of its clips are missed): {format_list(deaf)}")


def print_lower_thresholds(report: dict[str, Any]) -> None:
    """Of each label whose clips are mostly missed, print what lower thresholds would miss, and how to set one."""
    for label, row in report["by_label"].items():
        if lower := row.get("lower_thresholds"):
            shown = format_list(
                [
                    f"{100 * one['frr']:.0f} % at {one['threshold']:.1f} ({format_count(one['false_accepts'], 'false accept')})"
                    for one in lower
                ]
            )
            best = min(lower, key=lambda one: one["frr"])  # of equal ones the first, the highest threshold
            option = quote(f"{label}={best['threshold']:.1f}")
            say(
                f"{label}: mostly missed. A lower threshold would miss fewer: {shown}. To set one by hand: --threshold {option}"
            )


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['frr']:.1f} % of {row['clips']}" if "frr" in row else "-"


def write_curve(plot: Path, curve: list[dict[str, float]], report: dict[str, Any]) -> None:
    """Write DET.csv, and DET.png next to it."""
    from confit_edge.data.tables import csv_text
    from confit_edge.geometry.plots import det, report_failed_plot
    from confit_runtime.files import write_atomic

    write_atomic(plot.with_suffix(".csv"), csv_text(curve).encode())
    with report_failed_plot(plot, say):
        det(curve, report, plot)
        say(f"wrote {plot} and {plot.with_suffix('.csv')}")
