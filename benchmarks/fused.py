"""What do exchanged activations cost? Each run exported as it is and with --fuse-activations, both in int8.

    python -m benchmarks.fused --seeds 0 9 10

writes benchmarks/results/fused.json: for each seed test accuracy and its paired difference, the cosine of embeddings to those of
the run, and what each file finds, by the thresholds that export gave it, in five-minute streams composed as the demo's is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import RESULTS, machine, write_json
from confit_edge.data.compose import compose
from confit_edge.data.manifest import read_manifest
from confit_edge.demo import DATA
from confit_edge.demo.story import STREAM_SECONDS, STREAM_SNR, WORDS
from confit_edge.pairtune.config import Recipe
from confit_edge.pairtune.session import train
from confit_edge.probes.metrics import paired_difference
from confit_edge.runs import read_run, run_corpus
from confit_export.export import export_run
from confit_export.gate import Heard as Judged
from confit_runtime.audio import load_clip
from confit_runtime.model import load
from confit_runtime.scoring import Heard, score_detections

RATE, STREAMS = 16_000, 6
MANIFEST = DATA / "words" / "manifest.csv"


def streams(seed: int) -> list[tuple[np.ndarray, list[Heard]]]:
    """Words of the test voices over sound that nothing was trained on, each with what was said when."""
    clips = [clip for clip in read_manifest(MANIFEST).clips if clip.split == "test"]
    sounds, labels = [load_clip(clip.path, RATE) for clip in clips], [clip.label for clip in clips]
    background = [load_clip(path, RATE) for path in sorted((DATA / "background" / "test").glob("*.ogg"))]
    made = []
    for number in range(STREAMS):
        stream, spoken = compose(
            sounds,
            labels,
            background,
            samples=STREAM_SECONDS * RATE,
            rate=RATE,
            snr=(STREAM_SNR, STREAM_SNR),
            rng=np.random.default_rng([seed, 20, number]),
        )
        made.append((stream, [Heard(word.label, word.start / RATE, word.end / RATE) for word in spoken]))
    return made


def listen(path: Path, composed: list[tuple[np.ndarray, list[Heard]]]) -> dict[str, int]:
    """How many of the words the file finds, and its false accepts, over all streams."""
    found = {"expected": 0, "detected": 0, "false_accepts": 0}
    for sound, truth in composed:
        stream, events = load(path).stream(lead_in=True), []
        for start in range(0, len(sound), RATE // 10):
            events += stream.accept(sound[start : start + RATE // 10], RATE)
        events += stream.finish()
        score = score_detections(truth, [Heard(event.label, event.start_s, event.end_s) for event in events])
        found["expected"] += len(truth)
        found["detected"] += sum(score.found)
        found["false_accepts"] += len(score.false_accepts)
    return found


def measure(seed: int, folder: Path) -> dict[str, Any]:
    """The row of one seed."""
    keys = {**WORDS, "seed": seed, "frozen_baseline": False, "background": str(DATA / "background" / "train")}
    train(MANIFEST, folder / "run", Recipe.from_dict(keys, "the benchmark"))
    run = read_run(folder / "run")
    corpus, composed = run_corpus(run), streams(seed)
    row: dict[str, Any] = {"seed": seed}
    heard = {}
    for name, fuse in (("exact", False), ("fused", True)):
        made = export_run(run, corpus, folder / f"{name}.onnx", fuse=fuse, say=print)
        heard[name] = Judged.by(load(made.path), corpus.test, corpus)
        row[name] = {
            "test": made.shipped["test"],
            "cosine": round(made.contract.parity["cosine"], 4),
            "streams": listen(made.path, composed),
        }
        print(seed, name, row[name])
    difference = paired_difference(heard["exact"].right, heard["fused"].right, heard["exact"].groups, seed)
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
