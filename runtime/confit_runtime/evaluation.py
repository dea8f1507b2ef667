"""How a model does on long labelled recordings: false accepts, false rejects, latency and confusions, heard as `listen` hears."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from confit_runtime.audio import Pcm
from confit_runtime.labels import Labelled
from confit_runtime.scoring import EARLY_S, LATE_S, Heard, Score, score_detections
from confit_runtime.sources import FileSource

if TYPE_CHECKING:
    from confit_runtime.model import Model

NEARBY_S = 1.0  # of sound before and after a label, which its noise is estimated from
SNR_STEPS = (0.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Judged:
    """One recording: its sounds that the model should find, whether it did, and what it heard falsely.

    `snr_db` is estimated for each sound; `latency_s` is the time from a found sound's end to the moment it was told, None
    where it was not found; `others` are the labelled sounds that are none of the model's.
    """

    name: str
    seconds: float
    sounds: list[Heard]
    others: list[Heard]
    score: Score
    snr_db: list[float]
    latency_s: list[float | None]


def judge(model: Model, recording: Labelled, tell: Callable[[float], None] = lambda seconds: None) -> Judged:
    """Stream a labelled recording through the model, hop by hop. Raises UsageError, AudioError."""
    named = model.contract.firing_labels
    sounds = [heard for heard in recording.sounds if heard.label in named]
    others = [heard for heard in recording.sounds if heard.label not in named]
    stream, taken, found, pcm = model.stream(lead_in=True), 0, [], []
    with FileSource(recording.path) as source:
        hop = max(1, round(model.contract.hop * source.rate / model.contract.sample_rate))
        for block, rate in source:
            pcm.append(block)
            for start in range(0, len(block), hop):
                chunk = block[start : start + hop]
                taken += len(chunk)
                found += [(detection, taken / rate) for detection in stream.accept(chunk, rate)]
            tell(taken / rate)
        found += [(detection, taken / source.rate) for detection in stream.finish()]
        rate = source.rate
    detections = [Heard(detection.label, detection.start_s, detection.end_s) for detection, _ in found]
    score = score_detections(sounds, detections)
    snr = local_snr_db(np.concatenate([np.zeros(0, np.float32), *pcm]), rate, recording.sounds)
    return Judged(
        str(recording.path),
        taken / rate,
        sounds,
        others,
        score,
        [snr[recording.sounds.index(heard)] for heard in sounds],
        [
            _latency(heard, [(one, told) for one, (_, told) in zip(detections, found, strict=True)]) if hit else None
            for heard, hit in zip(sounds, score.found, strict=True)
        ],
    )


def local_snr_db(pcm: Pcm, rate: int, sounds: Sequence[Heard]) -> list[float]:
    """The signal-to-noise ratio of each sound in dB, from its own power and that of up to 1 s on each side of it.

    What lies within another labelled sound is no noise. Infinite where there is no sound around it, minus infinity where
    it is no louder than what is around it; NaN where nothing around it is free of labels.
    """
    labelled = np.zeros(len(pcm), bool)
    for heard in sounds:
        labelled[_span(heard.start_s, heard.end_s, rate)] = True
    found = []
    for heard in sounds:
        inside = _power(pcm[_span(heard.start_s, heard.end_s, rate)])
        around = _span(max(0.0, heard.start_s - NEARBY_S), heard.end_s + NEARBY_S, rate)
        outside = pcm[around][~labelled[around]]
        noise = _power(outside)
        if len(outside) < 0.1 * rate:
            found.append(math.nan)
        elif inside <= noise:
            found.append(-math.inf)
        else:
            found.append(math.inf if noise == 0 else 10 * math.log10((inside - noise) / noise))
    return found


def snr_band(snr_db: float) -> str:
    """The band that a ratio is reported in."""
    if math.isnan(snr_db):
        return "unknown"
    below = [step for step in SNR_STEPS if snr_db >= step]
    if not below:
        return f"below {SNR_STEPS[0]:g} dB"
    place = SNR_STEPS.index(below[-1])
    return (
        f"{below[-1]:g} to {SNR_STEPS[place + 1]:g} dB" if place + 1 < len(SNR_STEPS) else f"{below[-1]:g} dB and more"
    )


def what_was_there(accept: Heard, judged: Judged) -> str:
    """The label of the sound in which a false accept was heard, or `nothing`."""
    near = [
        heard
        for heard in [*judged.sounds, *judged.others]
        if heard.start_s - EARLY_S <= accept.end_s <= heard.end_s + LATE_S
    ]
    return min(near, key=lambda heard: abs(heard.end_s - accept.end_s)).label if near else "nothing"


def _latency(heard: Heard, detections: list[tuple[Heard, float]]) -> float:
    """From the end of a sound to the first moment one of its detections was told."""
    return min(
        told - heard.end_s
        for one, told in detections
        if one.label == heard.label and heard.start_s - EARLY_S <= one.end_s <= heard.end_s + LATE_S
    )


def _span(start_s: float, end_s: float, rate: int) -> slice:
    return slice(round(start_s * rate), round(end_s * rate))


def _power(pcm: Pcm) -> float:
    return float(np.mean(np.square(pcm, dtype=np.float64))) if len(pcm) else 0.0
