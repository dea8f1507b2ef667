"""Pushes a day of sound through the shipped model as fast as possible, and checks memory, the clock and the last scores.

    python -m benchmarks.soak

Writes benchmarks/results/soak.json. A scene of spoken digits, music and speech is pushed again and again, in blocks of 20 ms,
through the same `Listener` as in `confit-edge listen`: 24 hours at the model's own 16 kHz, and in a separate process 3 hours at
44.1 kHz. The scene is a whole number of hops long. So every pass must give the same detections, moved by exactly one length,
and the last pass must give the same score rows as a stream that has heard just one pass before it.

At 44.1 kHz the resampler's rounding depends on the position in the stream, by some 2e-7, which an int8 model can turn into
another step of its scores. There the difference is reported, and not expected to be zero.
"""

from __future__ import annotations

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confit_edge.demo import DATA
from confit_runtime import Detection, Listener, Model, load
from confit_runtime.audio import Pcm, load_clip

HOURS = {16_000: 24.0, 44_100: 3.0}  # by sample rate
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Rows = npt.NDArray[np.float32]


def scene(model: Model, rate: int) -> Pcm:
    """Return ten digits by a person, a minute of music and a minute of speech: a whole number of hops and of blocks."""
    parts = []
    for word in WORDS:
        parts += [load_clip(DATA / "digits-real" / f"{word}.ogg", rate), np.zeros(rate, np.float32)]
    for name in ("music-system", "speech-it-2"):
        parts.append(load_clip(DATA / "background" / "test" / f"{name}.ogg", rate)[: 60 * rate])
    audio = np.concatenate(parts)
    contract = model.contract
    unit = math.lcm(contract.hop * rate // math.gcd(contract.sample_rate, contract.hop * rate), rate // 50)
    return audio[: len(audio) // unit * unit]


class PassListener:
    """A listener with one stream that counts the score rows and keeps those of the latest passes."""

    def __init__(self, model: Model, pcm: Pcm, rate: int) -> None:
        self.listener = Listener([model.stream()], "soak", rate)
        self._pcm, self._rate, self._stream = pcm, rate, self.listener.streams[0]
        self._hops = len(pcm) * model.contract.sample_rate // rate // model.contract.hop
        self._row, self._latest_scores = 0, self._stream.scores
        self._passes = 0
        self.rows: dict[int, Rows] = {}  # by position in the scene, from the last pass that reached it

    def run_pass(self) -> list[Detection]:
        """Hear one more pass, and return its detections."""
        detections = []
        block = self._rate // 50
        for start in range(0, len(self._pcm), block):
            for event in self.listener.take((self._pcm[start : start + block], self._rate)):
                assert isinstance(event, Detection)
                detections.append(event)
            scores = self._stream.scores  # a block is shorter than a hop: no row is missed
            if scores is not None and scores is not self._latest_scores:
                self._latest_scores = self.rows[self._row % self._hops] = scores
                self._row += 1
        self._passes += 1
        return detections


def soak(rate: int, hours: float) -> dict[str, Any]:
    """Push `hours` of sound at `rate` Hz, and compare the last pass with that of a fresh run."""
    model = load("digits")
    pcm = scene(model, rate)
    passes = max(3, round(hours * 3600 * rate / len(pcm)))
    passes_per_hour = max(1, round(3600 * rate / len(pcm)))
    listener = PassListener(model, pcm, rate)
    started, memory, reference, drift = time.process_time(), [], [], 0
    for index in range(passes):
        detections = listener.run_pass()
        relative = [
            (detection.label, detection.start_sample - index * len(pcm), detection.end_sample - index * len(pcm))
            for detection in detections
        ]
        # the first pass begins in silence, and the second is the first that follows another
        if index == 1:
            reference = relative
        elif index > 1:
            drift = max(drift, _drift(reference, relative))
        if index % passes_per_hour == 0:
            memory.append(resident_mb())
            print(f"{rate} Hz  {index * len(pcm) / rate / 3600:5.1f} h  {memory[-1]:.1f} MB", flush=True)
    memory.append(resident_mb())
    elapsed = time.process_time() - started

    fresh_listener = PassListener(model, pcm, rate)
    fresh_listener.run_pass()
    fresh_detections = fresh_listener.run_pass()
    compared = sorted(listener.rows.keys() & fresh_listener.rows.keys())
    difference = max(float(np.abs(listener.rows[at] - fresh_listener.rows[at]).max()) for at in compared)
    seconds = passes * len(pcm) / rate
    return {
        "hours": round(seconds / 3600, 3),
        "passes": passes,
        "samples": listener.listener.samples,
        "detections_a_pass": len(reference),
        "detections_a_fresh_pass": len(fresh_detections),
        "timestamp_drift_samples": drift,
        "rows_compared": len(compared),
        "max_abs_score_difference": difference,
        "memory_mb_after_the_first_pass": round(memory[0], 2),
        "memory_mb_each_hour": [round(detection, 2) for detection in memory],
        "memory_growth_mb": round(max(memory) - memory[0], 2),
        "real_time_factor": round(elapsed / seconds, 5),
    }


def _drift(reference: list[tuple[str, int, int]], relative: list[tuple[str, int, int]]) -> int:
    """Return by how many samples detections moved between two passes. Raises ValueError if the labels differ."""
    return max(
        (
            abs(before - after)
            for (label, *reference_bounds), (other_label, *bounds) in zip(reference, relative, strict=True)
            for before, after in zip(reference_bounds, bounds, strict=True)
            if label == other_label or _raise_labels_differ(label, other_label)
        ),
        default=0,
    )


def _raise_labels_differ(label: str, other: str) -> bool:
    raise ValueError(f"a later pass heard {other} where an earlier one heard {label}")


def resident_mb() -> float:
    """Return the resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the hours to run, for a quick trial")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/soak.json")
    options = parser.parse_args()
    with ProcessPoolExecutor(max_workers=len(HOURS)) as pool:
        parts = pool.map(soak, HOURS, [hours * options.share for hours in HOURS.values()])
        result = {f"at_{rate}_hz": part for rate, part in zip(HOURS, parts, strict=True)}

    from benchmarks.report import RESULTS, machine, write_json  # imports torch, whose memory should not be measured

    command = "python -m benchmarks.soak" + ("" if options.share == 1.0 else f" --share {options.share:g}")
    write_json(options.out or RESULTS / "soak.json", {"command": command, "model": "digits", **result, **machine()})


if __name__ == "__main__":
    main()
