"""How often is a single wake word, trained as the README says, missed, and how often does something else fire it?

    python -m benchmarks.wakeword [--cache DIR] [--seed N]

Needs `python -m benchmarks.fetch`; writes benchmarks/results/wakeword.json. Each shipped word of two syllables or more is learnt
alone, from the training and validation voices, with `--others words` and the demo's background. Each model is judged on:

- the word by voices never heard, as recorded and at 10 dB over sound that no training used;
- all other words by those voices, separately for words that training used as negatives and words that it did not;
- the hours of speech and music of `benchmarks.negatives`.

The false accepts are counted at the exported thresholds, and also after calibration for a rate on these hours, each recording
with the thresholds from all the others. The comparison is logistic regression on the embedding of the frozen encoder, as in
openWakeWord, with the same clips, background, smoothing and hysteresis, and with plain probabilities.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import negatives
from benchmarks.command import say
from benchmarks.detection import CONFIDENCE, RATE, TARGET, clips_of, conditions, make_file, measure, model_method
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, machine, write_json
from confit_edge.data.manifest import Manifest, read_manifest, write_manifest
from confit_edge.demo import DATA
from confit_edge.recipe import Recipe
from confit_runtime import load
from confit_runtime.arrays import Floats
from confit_runtime.audio import load_clip
from confit_runtime.calibration import score_positive
from confit_runtime.contract import Contract
from confit_runtime.detect import Detector, Hit
from confit_runtime.intervals import grouped_share_interval
from confit_runtime.recordings import clip_rows

WORDS = ("happy", "marvin", "seven", "sheila", "zero")
METHODS: dict[str, dict[str, Any]] = {
    "confit-edge": {},  # with so few clips `train` averages four trainings by itself
    "one-training": {"soup": 1},
    "head": {"objective": "finetune", "freeze": "all", "epochs": 1},  # only the probe is trained
}


def train_word_model(word: str, method: str, out: Path, seed: int) -> tuple[Path, set[str]]:
    """Return a model file of one word, and the words that training used as negatives."""
    manifest = read_manifest(DATA / "words" / "manifest.csv")
    clips = tuple(clip for clip in manifest.clips if clip.label == word)
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(Manifest(clips, manifest.source, multi_label=False), out / "own.csv")
    background, run = str(DATA / "background" / "train"), out / f"{method}-run"
    recipe = Recipe(seed=seed, others=("words",), background=(background,), frozen_baseline=False, **METHODS[method])
    model, is_pairtune = out / f"{method}.onnx", method != "head"
    corpus = make_file(out / "own.csv", run, recipe, model, quantize=is_pairtune, typical=is_pairtune)
    label_of = {clip.path: clip.label for clip in manifest.clips}
    return model, {label_of[path] for path in corpus.train.paths} - {word}


def evaluate_model(
    path: Path, words: tuple[str, ...], known: set[str], negatives_paths: list[Path], cache: Path, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row of a model of `words`, and whether it found each clip, to be pooled.

    `known` are the words that training used as negatives. False accepts are counted in
    the recordings `negatives_paths`, which do not contain the words.
    """
    model = load(path, calibrated=False)
    test, val = ([clip for clip in clips_of(split) if clip.label in words] for split in ("test", "val"))
    clips_by_condition = conditions(test, seed)
    clips_by_condition["validation"] = conditions(val, seed)["clean"]
    rows = model_method(model, negatives_paths, clips_by_condition, cache)
    contract = model.contract
    on_thresholds = {word: contract.thresholds[word]["on"] for word in words}
    hours = sum(recording.seconds for recording in rows.recordings) / 3600
    found = {
        name: [
            (
                score_positive(contract, clip.label, clip.group, clip_scores).level >= on_thresholds[clip.label],
                clip.group,
            )
            for clip, clip_scores in rows.clips[name]
        ]
        for name in ("clean", "10db")
    }
    others = [clip for clip in clips_of("test") if clip.label not in words]
    fired_by_word = [
        (clip.label in known, bool(hits(contract, clip_rows(model, load_clip(clip.path, RATE))))) for clip in others
    ]
    seen, unseen = ([hit for trained, hit in fired_by_word if trained == is_seen] for is_seen in (True, False))
    calibrated = measure(rows, seed)
    row = {
        "thresholds": on_thresholds,
        "found_clean": sum(hit for hit, _ in found["clean"]),
        "found_10db": sum(hit for hit, _ in found["10db"]),
        "n": len(test),
        "other_words_seen": [sum(seen), len(seen)],
        "other_words_unseen": [sum(unseen), len(unseen)],
        "false_accepts": sum(len(hits(contract, piece)) for one in rows.recordings for piece in one.pieces),
        "hours": hours,
        "calibrated": {
            key: calibrated[key]
            for key in ("target_fa_per_hour", "promised_fa_per_hour", "measured_fa_per_hour", "frr_clean", "frr_10db")
        },
    }
    return row, found


def hits(contract: Contract, rows: Floats) -> list[Hit]:
    """Return what fires in `rows` at the contract's thresholds."""
    return Detector.from_contract(contract).push(rows)


def pool_results(results: list[tuple[dict[str, Any], dict[str, list[tuple[bool, str]]]]]) -> dict[str, Any]:
    """Pool all models: shares found, with intervals that account for differences between voices, and false accepts per hour.

    False accepts have no interval; the rate of each model is listed instead. All models heard the same hours, so pooling
    adds no evidence.
    """
    rows = [row for row, _ in results]
    pooled: dict[str, Any] = {}
    for condition in ("clean", "10db"):
        clips = [clip for _, found in results for clip in found[condition]]
        found, groups = zip(*clips, strict=True)
        low, high = grouped_share_interval(list(found), list(groups), CONFIDENCE)
        pooled[f"found_{condition}"] = {"share": sum(found) / len(found), "n": len(found), "interval": [low, high]}
    accepts, hours = sum(row["false_accepts"] for row in rows), sum(row["hours"] for row in rows)
    pooled["fa_per_hour"] = {"rate": accepts / hours, "by_model": [row["false_accepts"] / row["hours"] for row in rows]}
    for kind in ("other_words_seen", "other_words_unseen"):
        pooled[kind] = [sum(row[kind][index] for row in rows) for index in (0, 1)]
    for key in ("frr_clean", "frr_10db", "measured_fa_per_hour", "promised_fa_per_hour"):
        pooled[f"calibrated_{key}"] = mean(row["calibrated"][key] for row in rows)
    return pooled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    work = options.cache / "tasks" / "wakeword" / f"seed{options.seed}"
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.wakeword --seed {options.seed}",
        "seed": options.seed,
        "confidence": CONFIDENCE,
        "target_fa_per_hour": TARGET,
        **machine(),
        "methods": {},
    }
    for method in METHODS:
        results = []
        for word in WORDS:
            path, known = train_word_model(word, method, work / word, options.seed)
            negatives_paths = negatives.join(options.cache)
            results.append(evaluate_model(path, (word,), known, negatives_paths, options.cache, options.seed))
        rows = [row for row, _ in results]
        result["methods"][method] = {**pool_results(results), "rows": rows}
        for row in rows:
            say(f"{method}: {row}")
    write_json(RESULTS / "wakeword.json", result)


if __name__ == "__main__":
    main()
