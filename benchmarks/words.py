"""Measures how accurate the demo is over several seeds: runs `confit-edge demo` for each and gathers the summaries.

    python -m benchmarks.words --seeds 0 1 2

Writes benchmarks/results/words.json: one row per seed, and the mean, least and most of each figure. Existing rows are kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from benchmarks.report import RESULTS, machine, write_json


def figures(summary: dict) -> dict[str, float]:
    accuracy, stream, word, voices = (summary[key] for key in ("accuracy", "stream", "enroll_word", "identify"))
    return {
        "frozen_linear": accuracy["frozen"]["linear"],
        "frozen_knn": accuracy["frozen"]["knn"],
        "finetune_head": accuracy["finetune"]["head"],
        "finetune_linear": accuracy["finetune"]["linear"],
        "finetune_knn": accuracy["finetune"]["knn"],
        "pairtune_linear": accuracy["pairtune"]["linear"],
        "pairtune_knn": accuracy["pairtune"]["knn"],
        "pairtune_minus_finetune_head": accuracy["pairtune_linear_minus_finetune_head"]["difference"],
        "int8": summary["model"]["int8_accuracy"],
        "real_digits": summary["real_digits"]["correct"] / summary["real_digits"]["n"],
        "stream_found": stream["detected"] / stream["expected"],
        "stream_false_accepts": stream["false_accepts"],
        "enrolled_word_found": word["correct"] / word["n"],
        "enrolled_word_others_unknown": word["others_unknown"] / word["others_n"],
        "voices_named": voices["correct"] / voices["n"],
        "voices_nearer": voices["nearer_correct"] / voices["n"],
        "strangers_unknown": voices["unknown_correct"] / voices["unknown_n"],
        "model_bytes": summary["model"]["bytes"],
        "stream_max_abs_diff": summary["model"]["stream_max_abs_diff"],
        "seconds": summary["seconds"],
        "peak_rss_mb": summary["peak_rss_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    existing = RESULTS / "words.json"
    rows = json.loads(existing.read_text(encoding="utf-8"))["rows"] if existing.is_file() else []
    seeds = [seed for seed in seeds if seed not in [row["seed"] for row in rows]]
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            out = Path(folder) / f"seed{seed}"
            command = [str(Path(sys.executable).parent / "confit-edge"), "demo", "--out", str(out), "--seed", str(seed)]
            subprocess.run(command, check=True)
            summary = json.loads((out / "summary.json").read_text())
            load = round(os.getloadavg()[0], 1)  # seconds mean little on a busy machine
            rows.append({"seed": seed, **figures(summary), "load_average": load, "intervals": intervals(summary)})
            write(rows, summary)  # after each seed, so that a benchmark that is stopped keeps its results
    print(json.dumps(json.loads((RESULTS / "words.json").read_text())["mean"], indent=2))


def write(rows: list[dict], summary: dict) -> None:
    shares = [key for key in rows[0] if key not in ("seed", "intervals", "load_average")]
    result = {
        "command": f"python -m benchmarks.words --seeds {' '.join(str(row['seed']) for row in rows)}",
        "n": {
            "clips": summary["accuracy"]["n"],
            "voices": summary["accuracy"]["voices"],
            "stream_words": "about 140 a seed",
        },
        **machine(),
        "mean": {key: float(f"{mean(row[key] for row in rows):.4g}") for key in shares},
        "least": {key: min(row[key] for row in rows) for key in shares},
        "most": {key: max(row[key] for row in rows) for key in shares},
        "rows": rows,
    }
    write_json(RESULTS / "words.json", result)


def intervals(summary: dict) -> dict:
    accuracy = summary["accuracy"]
    found = {
        f"{key}_{probe}": pair
        for key in ("frozen", "finetune", "pairtune")
        for probe, pair in accuracy[key]["intervals"].items()
    }
    gain = accuracy["pairtune_linear_minus_finetune_head"]
    return {**found, "pairtune_minus_finetune_head": [gain["low"], gain["high"]]}


if __name__ == "__main__":
    main()
