"""Summarise judged recordings: rates with intervals, by label and by noise, and where errors happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_runtime.contract import Contract
from confit_runtime.evaluation import SNR_STEPS, EvaluatedRecording, label_during, snr_band
from confit_runtime.intervals import clustered_rate_interval, grouped_share_interval
from confit_runtime.recordings import MAX_UNIT_S
from confit_runtime.scoring import SoundEvent


def summarise(judged: Sequence[EvaluatedRecording], contract: Contract, confidence: float) -> dict[str, Any]:
    """The report on all recordings together; `never_fire` counts the sounds of labels that are set never to fire.

    Without recordings, the rate and its interval are None.
    """
    heard = [
        (sound.label, found, one.group, snr_band(snr))
        for one in judged
        for sound, found, snr in zip(one.sounds, one.score.found, one.snr_db, strict=True)
    ]
    from_end, from_start = _latencies(judged, contract.window / contract.sample_rate)
    fired = Counter((accept.label, label_during(accept, one)) for one in judged for accept in one.score.false_accepts)
    never = contract.silenced
    silenced = Counter(sound.label for one in judged for sound in one.others if sound.label in never)
    bands: dict[str, list[tuple[str, bool, str, str]]] = defaultdict(list)
    labels: dict[str, list[tuple[str, bool, str, str]]] = defaultdict(list)
    for row in heard:
        labels[row[0]].append(row)
        bands[row[3]].append(row)
    return {
        "recordings": len(judged),
        "hours": sum(one.seconds for one in judged) / 3600,
        **false_accept_rate(judged, confidence),
        "false_rejects": _false_rejects(heard, confidence),
        "by_label": {label: _false_rejects(rows, confidence) for label, rows in sorted(labels.items())},
        "never_fire": dict(sorted(silenced.items())),
        "snr": {band: _false_rejects(rows, confidence) for band, rows in sorted(bands.items(), key=_snr_order)},
        "latency_s": _quantiles(from_end),
        "latency_from_start_s": _quantiles(from_start),
        "fired_for": [
            {"heard": label, "was": was, "times": times}
            for (label, was), times in sorted(fired.items(), key=_count_order)
        ],
        "heard_falsely": [
            {**_location(one, accept), "score": accept.score, "was": label_during(accept, one)}
            for one in judged
            for accept in one.score.false_accepts
        ],
        "not_heard": [
            _location(one, sound)
            for one in judged
            for sound, found in zip(one.sounds, one.score.found, strict=True)
            if not found
        ],
    }


def false_accept_rate(
    judged: Sequence[EvaluatedRecording], confidence: float, label: str | None = None
) -> dict[str, Any]:
    """The false accepts of one label, or of all, and their rate per hour with its interval (None without recordings)."""
    accepts, hours = _false_accepts(judged, label)
    total, total_hours = int(accepts.sum()), float(hours.sum())
    low, high = clustered_rate_interval(accepts, hours, confidence)
    return {
        "false_accepts": total,
        "fa_per_hour": total / total_hours if judged else None,
        "fa_per_hour_interval": [low, high] if judged else None,
    }


def _false_accepts(
    judged: Sequence[EvaluatedRecording], label: str | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The false accepts and hours of each group; of a single one, those of each recording, a long one cut as in `calibrate`."""
    groups, member = np.unique([one.group for one in judged], return_inverse=True)
    counts, hours = list[npt.NDArray[np.int64]](), list[npt.NDArray[np.float64]]()
    for one in judged:
        parts = max(1, round(one.seconds / MAX_UNIT_S)) if len(groups) == 1 else 1
        ends_s = np.array([accept.end_s for accept in one.score.false_accepts if label in (None, accept.label)])
        counts.append(np.histogram(ends_s.clip(0, one.seconds), parts, (0, one.seconds))[0])
        hours.append(np.full(parts, one.seconds / 3600 / parts))
    if len(groups) == 1:
        return np.concatenate(counts), np.concatenate(hours)
    of_group = np.zeros(len(groups), np.int64), np.zeros(len(groups))
    for index, found, length in zip(member, counts, hours, strict=True):
        of_group[0][index] += found.sum()
        of_group[1][index] += length.sum()
    return of_group


def _location(recording: EvaluatedRecording, heard: SoundEvent) -> dict[str, Any]:
    return {"file": recording.name, "start_s": heard.start_s, "end_s": heard.end_s, "label": heard.label}


def _snr_order(item: tuple[str, Any]) -> int:
    """Sort bands from the noisiest to the quietest, then sounds without an estimate."""
    return [snr_band(ratio) for ratio in (float("-inf"), *SNR_STEPS, float("nan"))].index(item[0])


def _count_order(item: tuple[tuple[str, str], int]) -> tuple[int, str, str]:
    return -item[1], *item[0]


def _false_rejects(rows: Sequence[tuple[str, bool, str, str]], confidence: float) -> dict[str, Any]:
    if not rows:
        return {"sounds": 0}
    missed = [not found for _, found, _, _ in rows]
    low, high = grouped_share_interval(missed, [name for _, _, name, _ in rows], confidence)
    return {"sounds": len(rows), "missed": sum(missed), "frr": sum(missed) / len(rows), "frr_interval": [low, high]}


def _latencies(judged: Sequence[EvaluatedRecording], window_s: float) -> tuple[list[float], list[float]]:
    """When found sounds were reported, in seconds: (from their ends, from their starts).

    The second list is for sounds longer than the model's window.

    The model detects long sounds, such as an engine that runs for minutes, long before they end.
    """
    from_end, from_start = list[float](), list[float]()
    for one in judged:
        for sound, latency in zip(one.sounds, one.latency_s, strict=True):
            if latency is not None and sound.end_s - sound.start_s > window_s:
                from_start.append(latency + sound.end_s - sound.start_s)
            elif latency is not None:
                from_end.append(latency)
    return from_end, from_start


def _quantiles(latencies: Sequence[float]) -> dict[str, float]:
    if not latencies:
        return {}
    return {name: float(np.quantile(latencies, at)) for name, at in (("median", 0.5), ("p90", 0.9), ("most", 1.0))}
