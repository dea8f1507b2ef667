"""Three words from twelve clips each: is one training luck, and does it help to average four, or to add background?

    python -m benchmarks.fewclips [--cache DIR] [--seeds 0 1 2 3 4 5]

Needs `python -m benchmarks.fetch`; writes benchmarks/results/fewclips.json. Each seed draws three of the words of
`benchmarks.wakeword` and twelve of the 36 training and validation voices: one clip of each word by each voice, without splits,
as a user has them. The negatives are the other words by the other 24 voices (`--others`) and the demo's background. Methods:

- one: a single training;
- four: four trainings from the same start with averaged weights, which is what `train` does with so few clips;
- hour: the same four with one more hour of background (the Czech dialogue of a game, and the music of another);
- frozen: only the probe, on the frozen encoder.

Each is exported in fp32, because a single one of 36 validation clips would fail the gate of int8. Each is judged like a word in
`benchmarks.wakeword`, on the hours from neither game. `better` counts the seeds in which four trainings did better than one, and
in which the hour did better than four without it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile

from benchmarks import negatives
from benchmarks.command import say
from benchmarks.detection import CONFIDENCE, TARGET, clips_of, make_file
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, machine, write_json
from benchmarks.wakeword import WORDS, evaluate_model, pool_results
from confit_edge.data.manifest import Clip, Manifest, write_manifest
from confit_edge.demo import DATA
from confit_edge.recipe import Recipe

SEEDS, VOICES, AT_ONCE = (0, 1, 2, 3, 4, 5), 12, 3
METHODS: dict[str, dict[str, Any]] = {
    "four": {"soup": 4},
    "one": {"soup": 1},
    "hour": {"soup": 4},
    "frozen": {"objective": "finetune", "freeze": "all", "epochs": 1},
}
MINUTES = {"fillets": 40, "wesnoth": 20}  # of each game's recordings, in the hour; the rest is left out


def draw_words(seed: int, folder: Path) -> tuple[str, ...]:
    """Draw the words of a seed, and write their manifest and that of the others into `folder`."""
    rng = np.random.default_rng([77, seed])
    words = tuple(sorted(str(word) for word in rng.choice(WORDS, AT_ONCE, replace=False)))
    clips = [replace(clip, split=None) for split in ("train", "val") for clip in clips_of(split)]
    own = {str(voice) for voice in rng.choice(sorted({clip.group for clip in clips}), VOICES, replace=False)}
    folder.mkdir(parents=True, exist_ok=True)
    write([clip for clip in clips if clip.label in words and clip.group in own], folder / "own.csv")
    write([clip for clip in clips if clip.label not in words and clip.group not in own], folder / "others.csv")
    return words


def write(clips: list[Clip], path: Path) -> None:
    write_manifest(Manifest(tuple(clips), path, multi_label=False), path)


def background_with_extra_hour(cache: Path) -> Path:
    """Return a folder with the demo's background and one more hour."""
    folder = cache / "tasks" / "fewclips" / "hour"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = list((DATA / "background" / "train").iterdir())
    for game, minutes in MINUTES.items():
        paths = sorted(path for path in negatives.join(cache) if path.name.startswith(game))
        order = np.random.default_rng(5).permutation(len(paths))
        ends = np.cumsum([soundfile.info(paths[at]).duration for at in order])
        chosen += [paths[at] for at in order[: int((ends < 60 * minutes).sum()) + 1]]
    for path in chosen:
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder


def evaluate_seed(method: str, seed: int, cache: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row of a method and a seed, and whether each clip was found."""
    folder = cache / "tasks" / "fewclips" / f"seed{seed}"
    words, others = draw_words(seed, folder), folder / "others.csv"
    recipe = Recipe(
        seed=seed,
        others=(str(others),),
        background=(str(background_with_extra_hour(cache) if method == "hour" else DATA / "background" / "train"),),
        frozen_baseline=False,
        **METHODS[method],
    )
    path = folder / f"{method}.onnx"
    corpus = make_file(folder / "own.csv", folder / f"{method}-run", recipe, path, quantize=False)
    label_of = {clip.path: clip.label for split in ("train", "val") for clip in clips_of(split)}
    known = {label_of[clip] for clip in corpus.train.paths} - set(words)
    negatives_paths = [path for path in negatives.join(cache) if not path.name.startswith(tuple(MINUTES))]
    row, found = evaluate_model(path, words, known, negatives_paths, cache, seed)
    return {"seed": seed, **row}, found


def count_wins(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Count, for each measure, the seeds in which `rows` did better than `others`, equally well, and worse."""
    measures = {
        "false_accepts": lambda row: -row["false_accepts"],
        "found_clean": lambda row: row["found_clean"],
        "found_10db": lambda row: row["found_10db"],
        "calibrated_found_clean": lambda row: -row["calibrated"]["frr_clean"],
        "calibrated_found_10db": lambda row: -row["calibrated"]["frr_10db"],
    }
    wins = {}
    for name, measure in measures.items():
        pairs = [(measure(row), measure(other)) for row, other in zip(rows, others, strict=True)]
        wins[name] = [sum(a > b for a, b in pairs), sum(a == b for a, b in pairs), sum(a < b for a, b in pairs)]
    return wins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args()

    result: dict[str, Any] = {
        "command": f"python -m benchmarks.fewclips --seeds {' '.join(map(str, options.seeds))}",
        "seeds": options.seeds,
        "confidence": CONFIDENCE,
        "target_fa_per_hour": TARGET,
        **machine(),
        "methods": {},
    }
    rows = {}
    for method in METHODS:
        results = [evaluate_seed(method, seed, options.cache) for seed in options.seeds]
        rows[method] = [row for row, _ in results]
        rates = [row["false_accepts"] / row["hours"] for row in rows[method]]
        rates_summary = {"median_fa_per_hour": median(rates), "most_fa_per_hour": max(rates)}
        result["methods"][method] = {**pool_results(results), **rates_summary, "rows": rows[method]}
        for row in rows[method]:
            say(f"{method}: {row}")
    result["better"] = {
        "four_than_one": count_wins(rows["four"], rows["one"]),
        "hour_than_four": count_wins(rows["hour"], rows["four"]),
    }
    write_json(RESULTS / "fewclips.json", result)


if __name__ == "__main__":
    main()
