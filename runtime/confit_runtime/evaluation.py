"""How a model performs on long labelled recordings: false accepts, false rejects, latency and confusions.

The recordings are heard as `listen` hears them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from confit_runtime.audio import Pcm
from confit_runtime.errors import AudioError
from confit_runtime.events import Detection
from confit_runtime.labels import LabelledRecording
from confit_runtime.listener import Listener
from confit_runtime.scoring import Score, SoundEvent, detection_window, score_detections
from confit_runtime.sources import FileSource
from confit_runtime.speaker import VetoTap

if TYPE_CHECKING:
    from confit_runtime.gallery import Gallery
    from confit_runtime.model import Model

NEARBY_S = 1.0  # seconds before and after a label from which its noise is estimated
SNR_STEPS = (0.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class EvaluatedRecording:
    """One recording: its sounds that the model should find, which of them it found, and its false accepts.

    `snr_db` is an estimate for each sound. `latency_s` is the time from a found sound's end until its detection was
    reported, None if it was not found. `others` are labelled sounds that the model does not know, or that are set
    never to fire. Recordings of one `group`, such as clips of one speaker, are not independent of each other.
    """

    name: str
    group: str
    seconds: float
    sounds: list[SoundEvent]
    others: list[SoundEvent]
    score: Score
    snr_db: list[float]
    latency_s: list[float | None]


def evaluate_recording(
    model: Model,
    recording: LabelledRecording,
    progress: Callable[[float], None] = lambda seconds: None,
    gallery: Gallery | None = None,
) -> EvaluatedRecording:
    """Stream a labelled recording through the model, hop by hop, with a gallery also its names and negative prints.

    Raises UsageError, AudioError, and GalleryError.
    """
    named = {*model.contract.can_fire, *(gallery.names() if gallery is not None else ())}
    sounds = [heard for heard in recording.sounds if heard.label in named]
    others = [heard for heard in recording.sounds if heard.label not in named]
    stream, found = model.stream(gallery, lead_in=True), []
    taps = () if gallery is None else (VetoTap(model, gallery),)
    with FileSource(recording.path) as source:
        listener = Listener([stream], source.name, source.rate, taps=taps)
        listener.live = stream.live = source.live  # of a recording it need not watch the level and the pace
        power = LocalPower(source.rate, recording.sounds)
        hop = max(1, round(model.contract.hop * source.rate / model.contract.sample_rate))
        for block, rate in source:
            power.hear(block)
            for start in range(0, len(block), hop):
                for event in listener.take((block[start : start + hop], rate)):
                    found.append((event, listener.samples / rate))
            progress(listener.samples / rate)
        found += [(event, listener.samples / source.rate) for event in listener.finish()]
    if not listener.samples:
        raise AudioError(f"{recording.path}: holds no samples")
    detected = [(event, taken_s) for event, taken_s in found if isinstance(event, Detection)]
    detections = [SoundEvent(one.label, one.start_s, one.end_s, one.score) for one, _ in detected]
    score = score_detections(sounds, detections)
    snr = [ratio for heard, ratio in zip(recording.sounds, power.snr_db(), strict=True) if heard.label in named]
    return EvaluatedRecording(
        str(recording.path),
        "|".join(sorted(recording.groups)) or str(recording.path),
        listener.samples / listener.rate,
        sounds,
        others,
        score,
        snr,
        [
            None if index is None else detected[index][1] - heard.end_s
            for heard, index in zip(sounds, score.found_by, strict=True)
        ],
    )


class LocalPower:
    """Estimates the signal-to-noise ratio of labelled sounds in a recording that is heard once, block by block.

    It stores the energy of each stretch between two points where a label, or the surroundings of one, begins or ends.
    """

    def __init__(self, rate: int, sounds: Sequence[SoundEvent]) -> None:
        self._rate = rate
        self._inside = _to_samples([(heard.start_s, heard.end_s) for heard in sounds], rate)
        near = [(max(0.0, heard.start_s - NEARBY_S), heard.end_s + NEARBY_S) for heard in sounds]
        self._near = _to_samples(near, rate)
        self._edges = np.unique(np.concatenate([[0], self._inside.ravel(), self._near.ravel()]))
        self._energy = np.zeros(len(self._edges))  # from each edge to the next
        self._samples = np.zeros(len(self._edges), np.int64)
        self._heard = 0

    def hear(self, block: Pcm) -> None:
        """Take the next samples."""
        if not len(block):
            return
        first, last = np.searchsorted(self._edges, [self._heard, self._heard + len(block)], side="right") - 1
        inner = self._edges[first + 1 : last + 1] - self._heard
        cuts = np.concatenate([[0], inner[inner < len(block)]]).astype(np.int64)
        stretches = slice(first, first + len(cuts))
        self._energy[stretches] += np.add.reduceat(np.square(block, dtype=np.float64), cuts)
        self._samples[stretches] += np.diff([*cuts, len(block)])
        self._heard += len(block)

    def snr_db(self) -> list[float]:
        """The ratio for each sound in dB, from its own power and that of up to 1 s on each side of it.

        Other labelled sounds do not count as noise. Infinite if its surroundings are digital silence, minus infinity
        if it is no louder than its surroundings; NaN if it has no length, or its surroundings are all labelled.
        """
        begun = np.searchsorted(np.sort(self._inside[:, 0]), self._edges, side="right")
        free = begun == np.searchsorted(np.sort(self._inside[:, 1]), self._edges, side="right")
        of_all, of_free = np.ones(len(free), bool), free
        found = []
        for inside, near in zip(self._inside, self._near, strict=True):
            signal, length = self._power(inside, of_all)
            noise, samples = self._power(near, of_free)
            if not length or samples < 0.1 * self._rate:
                found.append(math.nan)
            elif signal <= noise:
                found.append(-math.inf)
            else:
                found.append(math.inf if noise == 0 else 10 * math.log10((signal - noise) / noise))
        return found

    def _power(self, span: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_]) -> tuple[float, int]:
        """The mean power of the wanted stretches of a span, 0 if there are none, and how many samples they have."""
        stretches = slice(*np.searchsorted(self._edges, span))
        chosen = wanted[stretches]
        samples = int(self._samples[stretches][chosen].sum())
        return (float(self._energy[stretches][chosen].sum()) / samples if samples else 0.0), samples


def snr_band(snr_db: float) -> str:
    """The band in which a ratio is reported."""
    if math.isnan(snr_db):
        return "no estimate"
    below = [step for step in SNR_STEPS if snr_db >= step]
    if not below:
        return f"below {SNR_STEPS[0]:g} dB"
    index = SNR_STEPS.index(below[-1])
    return (
        f"{below[-1]:g} to {SNR_STEPS[index + 1]:g} dB" if index + 1 < len(SNR_STEPS) else f"{below[-1]:g} dB and more"
    )


def label_during(accept: SoundEvent, judged: EvaluatedRecording) -> str:
    """The label of the sound during which a false accept was heard, or `nothing`."""
    near = [
        heard
        for heard in [*judged.sounds, *judged.others]
        if detection_window(heard)[0] <= accept.end_s <= detection_window(heard)[1]
    ]
    return min(near, key=lambda heard: abs(heard.end_s - accept.end_s)).label if near else "nothing"


def _to_samples(spans_s: list[tuple[float, float]], rate: int) -> npt.NDArray[np.int64]:
    """Spans `[n, 2]` in samples."""
    return np.array([[round(start * rate), round(end * rate)] for start, end in spans_s], np.int64).reshape(-1, 2)
