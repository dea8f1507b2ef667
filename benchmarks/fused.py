"""Measures the cost of replaced activations: exports each run as it is and with --fuse-activations, both in int8.

    python -m benchmarks.fused --seeds 0 9 10

Writes benchmarks/results/fused.json. For each seed: the test accuracy and its paired difference, the cosine between the
embeddings and those of the run, what the gate of the export says of it, and what each file finds, at the thresholds from its
export, in five-minute streams composed like the demo's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection import clips_of, train_model
from benchmarks.report import RESULTS, machine, write_json
from confit_edge.demo.story import STREAM_SECONDS, STREAM_SNR, detect, noisy_stream
from confit_edge.probes.metrics import paired_difference
from confit_edge.runs import read_run, run_corpus
from confit_export.export import export_run
from confit_export.gate import Predictions
from confit_runtime.audio import Pcm
from confit_runtime.model import Model, load
from confit_runtime.scoring import SoundEvent, score_detections

STREAMS = 6


def listen(model: Model, streams: list[tuple[Pcm, list[SoundEvent]]]) -> dict[str, int]:
    """Count the words that the model finds, and its false accepts, over all streams."""
    found = {"expected": 0, "detected": 0, "false_accepts": 0}
    for sound, truth in streams:
        score = score_detections(truth, detect(model, [sound]))
        found["expected"] += len(truth)
        found["detected"] += sum(score.found)
        found["false_accepts"] += len(score.false_accepts)
    return found


def measure(seed: int, folder: Path) -> dict[str, Any]:
    """Measure the row of one seed."""
    exact, fused = train_model(folder / "exact.onnx", seed), folder / "fused.onnx"
    run = read_run(folder / "words")
    corpus = run_corpus(run)
    export_run(run, corpus, fused, fuse=True, force=True, say=print)
    clips = clips_of("test")
    streams = [noisy_stream(clips, np.random.default_rng([seed, 20, number])) for number in range(STREAMS)]
    row: dict[str, Any] = {"seed": seed}
    heard = {}
    for name, path in (("exact", exact), ("fused", fused)):
        model = load(path)
        heard[name] = Predictions.of(model, corpus.test, corpus)
        row[name] = {
            "test": heard[name].metrics(),
            "cosine": round(model.contract.parity["cosine"], 4),
            "gate_failures": model.contract.metrics["gate"]["failures"],
            "streams": listen(model, streams),
        }
        print(seed, name, row[name])
    difference = paired_difference(heard["exact"].correct, heard["fused"].correct, heard["exact"].groups, seed)
    return {**row, "test_lost": difference.to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 9, 10])
    seeds = parser.parse_args().seeds
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(seed, Path(folder)))
        result = {
            "command": f"python -m benchmarks.fused --seeds {' '.join(str(row['seed']) for row in rows)}",
            "stream_seconds": STREAMS * STREAM_SECONDS,
            "snr_db": STREAM_SNR,
            **machine(),
            "rows": rows,
        }
        write_json(RESULTS / "fused.json", result)


if __name__ == "__main__":
    main()
