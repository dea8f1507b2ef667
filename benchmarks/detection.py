"""Is a promised rate of false accepts kept, and how many misses does it cost? Compares confit-edge with two peers.

    python -m benchmarks.detection [--cache DIR] [--seeds N...]

Needs `python -m benchmarks.fetch`; writes benchmarks/results/detection.json. The models learn the words that ship with
confit-edge, as the demo does. Then every method is calibrated by the same rules, for the same rate of false accepts, on the same
hours of speech and music (`benchmarks.negatives`). It is judged on the test voices: as recorded, and at 10 dB over sound that
neither training nor calibration has heard. The peers:

- a head: logistic regression on the embedding of the frozen encoder, as in openWakeWord, with the same augmented clips,
  background, smoothing and hysteresis as ours;
- dynamic time warping: the method that local-wake 0.1.2 publishes (frames of the same frozen encoder, cosine distance
  normalised by both lengths, the nearest of four references per word). It is evaluated at every hop, where local-wake does so
  every 0.25 s, and with whichever of three buffer lengths is best on the validation voices.

The comparison also includes two models that each lack one part of ours: one without the typicality that weights the scores,
and one without PairTune.

Each rate is measured on recordings that did not calibrate it: every recording, with the thresholds from all the others. Coverage
is the share of splits in which the promise made on one part held on the other, with one recording left out, and with random
halves.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import negatives
from benchmarks.command import say
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, machine, write_json
from confit_edge.data.augment import crop, noise_gain
from confit_edge.data.corpus import Corpus
from confit_edge.data.manifest import Clip, read_manifest
from confit_edge.demo import DATA
from confit_edge.demo.steps import WORDS
from confit_edge.pairtune.session import train
from confit_edge.probes.typicality import Typicality
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run, run_corpus
from confit_export.export import export_run
from confit_runtime import Model, load
from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm, load_clip
from confit_runtime.calibration import (
    NEVER,
    FalseAcceptCounts,
    OperatingPoint,
    Positive,
    choose_operating_point,
    count_false_accepts,
    det_curve,
    restrict_to_labels,
    score_positive,
    thresholds,
)
from confit_runtime.contract import Contract
from confit_runtime.intervals import grouped_share_interval, poisson_interval
from confit_runtime.recordings import Recording, RowCache, clip_rows, score_recordings

RATE, SNR_DB = 16_000, 10.0
TARGET, CONFIDENCE = 0.5, 0.95
OTHER_TARGETS = (1.0, 2.0, 5.0)
FEWER_WORDS = (1, 3, 10)
HALVES = 100
REFERENCES = 4
OURS = "confit-edge"
BUFFERS = (2, 4, 7)  # frames: 0.86, 1.02 and 1.26 s of sound


@dataclass(frozen=True)
class Method:
    """The score rows of a method for every recording, and for every clip in every condition."""

    contract: Contract
    recordings: list[Recording]
    clips: dict[str, list[tuple[Clip, Floats]]]


def measure(method: Method, seed: int) -> dict[str, Any]:
    """Return everything that is reported for one method."""
    counts = count_false_accepts(method.contract, method.recordings)
    chosen = choose_operating_point(counts, TARGET, CONFIDENCE)
    hours, held_out = float(counts.hours.sum()), _leave_one_out(counts)
    events = int(sum(found for found, _ in held_out))
    rates = np.array([found for found, _ in held_out]) / counts.hours
    halves = _split_halves(counts, seed)
    contract = dataclasses.replace(method.contract, thresholds=thresholds(method.contract, chosen.thresholds))
    positives = {
        condition: [score_positive(contract, clip.label, clip.group, rows) for clip, rows in clips]
        for condition, clips in method.clips.items()
        if condition != "validation"
    }
    return {
        "target_fa_per_hour": TARGET,
        "met": chosen.met,
        "promised_fa_per_hour": chosen.bound,
        "measured_fa_per_hour": events / hours,
        "interval": list(poisson_interval(events, hours, CONFIDENCE)),
        "hours": hours,
        "recordings": len(counts.hours),
        "coverage": float(np.mean([rate <= bound for rate, (_, bound) in zip(rates, held_out, strict=True)])),
        "coverage_of_halves": float(np.mean([rate <= bound for rate, bound in halves])),
        "half_hours": hours / 2,
        "halves": len(halves),
        **{
            f"frr_{condition}": _miss_rate(contract, condition_positives)["frr"]
            for condition, condition_positives in positives.items()
        },
        **{
            f"frr_{condition}_interval": _miss_rate(contract, condition_positives)["interval"]
            for condition, condition_positives in positives.items()
        },
        "clips": {condition: len(condition_positives) for condition, condition_positives in positives.items()},
        "confusions": {
            condition: sum(bool(positive.others) for positive in condition_positives)
            for condition, condition_positives in positives.items()
        },
        "never": [
            label
            for label, level in contract.thresholds.items()
            if level["on"] >= NEVER and label != contract.unknown_label
        ],
        "labels": {
            label: {
                "threshold": level["on"],
                **{
                    f"missed_{condition}": sum(
                        condition_positives.level < level["on"]
                        for condition_positives in positives[condition]
                        if condition_positives.label == label
                    )
                    for condition in positives
                },
            }
            for label, level in contract.thresholds.items()
            if label != contract.unknown_label
        },
        "at_other_targets": [_measure_at_target(target, counts, method) for target in OTHER_TARGETS],
        "with_fewer_words": [_measure_with_fewer_words(count, chosen, method, counts) for count in FEWER_WORDS],
        "det": {
            condition: det_curve(counts, chosen, contract, condition_positives)[::10]
            for condition, condition_positives in positives.items()
        },
    }


def _measure_at_target(target: float, counts: FalseAcceptCounts, method: Method) -> dict[str, Any]:
    chosen = choose_operating_point(counts, target, CONFIDENCE)
    contract = dataclasses.replace(method.contract, thresholds=thresholds(method.contract, chosen.thresholds))
    row: dict[str, Any] = {"target_fa_per_hour": target, "promised_fa_per_hour": chosen.bound}
    for condition, clips in method.clips.items():
        if condition == "validation":
            continue
        positives = [score_positive(contract, clip.label, clip.group, rows) for clip, rows in clips]
        row[f"frr_{condition}"] = _miss_rate(contract, positives)["frr"]
    return row


def _measure_with_fewer_words(
    count: int, chosen: OperatingPoint, method: Method, counts: FalseAcceptCounts
) -> dict[str, Any]:
    """Calibrate for only `count` words: those missed least on the validation voices, for which nothing is reported."""
    contract = dataclasses.replace(method.contract, thresholds=thresholds(method.contract, chosen.thresholds))
    missed = Counter[str]()
    for clip, rows in method.clips["validation"]:
        level = contract.thresholds[clip.label]["on"]
        missed[clip.label] += score_positive(contract, clip.label, clip.group, rows).level < level
    words = sorted(missed, key=lambda word: (missed[word], word))[:count]
    contract = restrict_to_labels(method.contract, words)
    restricted = Method(
        contract,
        method.recordings,
        {
            condition: [(clip, rows) for clip, rows in clips if clip.label in words]
            for condition, clips in method.clips.items()
        },
    )
    events = counts.events.copy()
    events[[place for place, label in enumerate(contract.labels) if label not in words]] = 0
    return {"words": words, **_measure_at_target(TARGET, FalseAcceptCounts(events, counts.hours), restricted)}


def _miss_rate(contract: Contract, positives: list[Positive]) -> dict[str, Any]:
    missed = [positive.level < contract.thresholds[positive.label]["on"] for positive in positives]
    low, high = grouped_share_interval(missed, [positive.group for positive in positives], CONFIDENCE)
    return {"frr": sum(missed) / len(missed), "interval": [low, high]}


def _leave_one_out(counts: FalseAcceptCounts) -> list[tuple[int, float]]:
    """Return the false accepts in each recording at the thresholds from all the others, and the rate these promise."""
    recordings = np.arange(len(counts.hours))
    results = []
    for recording in recordings:
        chosen = choose_operating_point(
            _select_recordings(counts, recordings[recordings != recording]), TARGET, CONFIDENCE
        )
        results.append((_count_events(counts, chosen, recordings[recordings == recording]), chosen.bound))
    return results


def _split_halves(counts: FalseAcceptCounts, seed: int) -> list[tuple[float, float]]:
    """Return the rate in one half of the recordings at the thresholds of the other half, and the rate that half promised."""
    rng, results = np.random.default_rng([seed, 30]), []
    for _ in range(HALVES):
        order = rng.permutation(len(counts.hours))
        half = int(np.searchsorted(counts.hours[order].cumsum(), counts.hours.sum() / 2)) + 1
        chosen = choose_operating_point(_select_recordings(counts, order[:half]), TARGET, CONFIDENCE)
        results.append(
            (_count_events(counts, chosen, order[half:]) / float(counts.hours[order[half:]].sum()), chosen.bound)
        )
    return results


def _select_recordings(counts: FalseAcceptCounts, recordings: npt.NDArray[np.int64]) -> FalseAcceptCounts:
    return FalseAcceptCounts(counts.events[:, recordings], counts.hours[recordings])


def _count_events(counts: FalseAcceptCounts, chosen: OperatingPoint, recordings: npt.NDArray[np.int64]) -> int:
    by_level = counts.events[:, recordings].sum(axis=1)
    return int(np.take_along_axis(by_level, chosen.levels[:, None], axis=1).sum())


# the sound


def clips_of(split: str) -> list[Clip]:
    return [clip for clip in read_manifest(DATA / "words" / "manifest.csv").clips if clip.split == split]


def conditions(clips: list[Clip], seed: int) -> dict[str, list[tuple[Clip, Pcm]]]:
    """Return each clip as recorded, and in the middle of background that is 10 dB softer."""
    rng = np.random.default_rng([seed, 31])
    background = [load_clip(path, RATE) for path in sorted((DATA / "background" / "test").glob("*.ogg"))]
    clean = [(clip, load_clip(clip.path, RATE)) for clip in clips]
    noisy = []
    for clip, pcm in clean:
        side = 2 * RATE
        noise = crop(background[int(rng.integers(len(background)))], len(pcm) + 2 * side, rng)
        mixed = noise * noise_gain(pcm, noise[side : side + len(pcm)], SNR_DB)
        mixed[side : side + len(pcm)] += pcm
        noisy.append((clip, (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)))
    return {"clean": clean, "10db": noisy}


# the methods


def model_method(model: Model, paths: list[Path], clips: dict[str, list[tuple[Clip, Pcm]]], cache: Path) -> Method:
    """Return a model file as a method, with its rows."""
    reported: set[str] = set()

    def report_progress(name: str, done: float, total: float) -> None:
        if name not in reported:  # one line per recording, not per block
            reported.add(name)
            say(f"{name} {done / total:.0%}")

    recordings = score_recordings(model, paths, RowCache(cache / "tasks" / "detection"), report_progress)
    rows = {
        condition: [(clip, clip_rows(model, pcm)) for clip, pcm in condition_clips]
        for condition, condition_clips in clips.items()
    }
    return Method(model.contract, recordings, rows)


class Warping:
    """Dynamic time warping on frames of the frozen encoder, with the nearest of a word's references."""

    def __init__(self, seed: int) -> None:
        import torch

        from confit_edge.encoders.speech_embedding import SpeechEmbedding

        torch.set_num_threads(1)
        self.encoder = SpeechEmbedding.pretrained(pool_hops=1).eval()
        rng = np.random.default_rng([seed, 32])
        clips = clips_of("train")
        self.words = sorted({clip.label for clip in clips})
        self.references: list[tuple[int, Floats]] = []
        for place, word in enumerate(self.words):
            own = [clip for clip in clips if clip.label == word]
            for chosen in rng.choice(len(own), REFERENCES, replace=False):
                self.references.append((place, self.frames(_trimmed(load_clip(own[chosen].path, RATE)))))

    def frames(self, pcm: Pcm) -> Floats:
        """Return frames `[hops, 96]` of unit length; the first ends with the last sample of the window."""
        import torch

        short = max(0, self.encoder.window - len(pcm))
        padded = np.pad(pcm, (short // 2, short - short // 2))
        rows: Floats = self.encoder.rows(torch.from_numpy(padded)).numpy()
        return rows

    def rows(self, frames: Floats, buffer: int) -> Floats:
        """Return scores `[hops, words]`: 0.5 at a distance of 0.3, and closer to 1 the closer a reference is."""
        nearest = np.full((max(0, len(frames) - buffer + 1), len(self.words)), np.inf, np.float32)
        if len(nearest):
            for place, reference in self.references:
                np.minimum(nearest[:, place], dtw_distances(frames, reference, buffer), out=nearest[:, place])
        scores: Floats = (1 / (1 + np.exp(40 * (nearest - 0.3)))).astype(np.float32)
        return scores

    def method(
        self,
        frames: list[tuple[str, Floats, float]],
        clips: dict[str, list[tuple[Clip, Floats]]],
        base_contract: Contract,
        buffer: int,
    ) -> Method:
        contract = dataclasses.replace(
            base_contract,
            labels=tuple(self.words),
            unknown_label=None,
            thresholds={word: {"on": 0.5, "off": 0.3} for word in self.words},
            smoothing_hops=1,
            min_hops=1,
        )
        recordings = [
            Recording(name, [self.rows(features, buffer)], seconds, [(name, 0.0)]) for name, features, seconds in frames
        ]
        rows = {
            condition: [(clip, self.rows(features, buffer)) for clip, features in condition_clips]
            for condition, condition_clips in clips.items()
        }
        return Method(contract, recordings, rows)


def dtw_distances(frames: Floats, reference: Floats, buffer: int) -> npt.NDArray[np.float32]:
    """Return the distance of every `buffer` consecutive frames to a reference.

    It is the lowest cost of an alignment of all frames of both, in steps of one in either or both, divided by the sum of
    their lengths.
    """
    distances = 1 - frames @ reference.T
    count, length = len(frames) - buffer + 1, len(reference)
    row = np.full((length, count), np.inf, np.float32)
    for frame in range(buffer):
        cost, previous = distances[frame : frame + count].T, row
        row = np.empty_like(previous)
        for step in range(length):
            least = np.zeros(count, np.float32) if frame == step == 0 else previous[step]
            if step:
                least = np.minimum(np.minimum(least, previous[step - 1]), row[step - 1])
            row[step] = cost[step] + least
    return row[-1] / (buffer + length)


def _trimmed(pcm: Pcm) -> Pcm:
    """Return a clip without the 0.1 s of silence that every shipped clip has on each side."""
    return pcm[RATE // 10 : -RATE // 10]


def train_model(out: Path, seed: int, *, frozen: bool = False, typical: bool = True) -> Path:
    """Make a model file of the words with the demo's background: PairTuned as in the demo, or a head on the frozen encoder.

    Its scores are probabilities times typicality or, without `typical`, plain probabilities.
    """
    keys: dict[str, Any] = {**WORDS, "frozen_baseline": False, "seed": seed}
    if frozen:
        keys |= {"objective": "finetune", "freeze": "all", "epochs": 1, "soup": 1, "averaging": 0.0}
    recipe = Recipe.from_dict({**keys, "background": str(DATA / "background" / "train")}, "the benchmark")
    run = out.with_name("head" if frozen else "words")
    make_file(DATA / "words" / "manifest.csv", run, recipe, out, quantize=not frozen, typical=typical)
    return out


def make_file(
    manifest: Path, run: Path, recipe: Recipe, out: Path, *, quantize: bool = True, typical: bool = True
) -> Corpus:
    """Train `run` and export it to `out`, each only if it does not exist yet; return the training corpus.

    The model's scores are probabilities times typicality or, without `typical`, plain probabilities.
    """
    if not (run / "run.json").is_file():
        train(manifest, run, recipe)
    trained = read_run(run)
    if not typical:
        found = trained.typicality
        trained = dataclasses.replace(trained, typicality=Typicality(0 * found.slope, 0 * found.offset, found.axes[:0]))
    corpus = run_corpus(trained)
    if not out.is_file():
        export_run(trained, corpus, out, quantize=quantize, say=say)
    return corpus


def dtw(
    paths: list[Path],
    clips: dict[str, list[tuple[Clip, Pcm]]],
    base_contract: Contract,
    seed: int,
    cache: Path,
) -> tuple[Method, int]:
    """Return the warping method with the buffer that misses the fewest words of the validation voices, and that buffer."""
    warping, frames_folder = Warping(seed), cache / "tasks" / "detection" / "frames"
    frames = []
    for path in paths:
        file = frames_folder / f"{path.stem}.npy"
        if not file.is_file():
            frames_folder.mkdir(parents=True, exist_ok=True)
            np.save(file, warping.frames(load_clip(path, RATE)))
        rows = np.load(file)
        frames.append((path.stem, rows, len(rows) * warping.encoder.hop / RATE))
        say(f"frames of {path.stem}")

    def embed_clips(condition_clips: list[tuple[Clip, Pcm]]) -> list[tuple[Clip, Floats]]:
        quiet = np.zeros(RATE, np.float32)
        return [(clip, warping.frames(np.concatenate([quiet, pcm, quiet]))) for clip, pcm in condition_clips]

    framed_clips = {name: embed_clips(condition_clips) for name, condition_clips in clips.items()}
    missed = {}
    for buffer in BUFFERS:
        method = warping.method(frames, {"of validation": framed_clips["validation"]}, base_contract, buffer)
        missed[buffer] = _measure_at_target(TARGET, count_false_accepts(method.contract, method.recordings), method)[
            "frr_of validation"
        ]
        say(f"buffer of {buffer} frames: {missed[buffer]:.1%} of the validation words missed")
    best = min(missed, key=lambda buffer: missed[buffer])
    return warping.method(frames, framed_clips, base_contract, best), best


def row(seed: int, cache: Path) -> dict[str, Any]:
    """Train every method once, with `seed`, and measure it."""
    work = cache / "tasks" / "detection" / f"seed{seed}"
    work.mkdir(parents=True, exist_ok=True)
    pairtune = load(train_model(work / "words.onnx", seed), calibrated=False)
    head = load(train_model(work / "head.onnx", seed, frozen=True, typical=False), calibrated=False)
    typical_head = load(train_model(work / "typical-head.onnx", seed, frozen=True), calibrated=False)
    plain = load(train_model(work / "plain.onnx", seed, typical=False), calibrated=False)
    paths, clips = negatives.join(cache), conditions(clips_of("test"), seed)
    clips["validation"] = conditions(clips_of("val"), seed)["clean"]
    methods: dict[str, dict[str, Any]] = {
        OURS: {
            **measure(model_method(pairtune, paths, clips, cache), seed),
            "detection": {"smoothing_hops": pairtune.contract.smoothing_hops, "min_hops": pairtune.contract.min_hops},
        }
    }
    for name, model in (
        ("without typicality", plain),
        ("without PairTune", typical_head),
        ("logistic regression on the frozen embedding (as openWakeWord)", head),
    ):
        methods[name] = measure(model_method(model, paths, clips, cache), seed)
    warping, buffer = dtw(paths, clips, head.contract, seed, cache)
    methods["dynamic time warping (the method of local-wake 0.1.2)"] = {
        "references": REFERENCES,
        "buffer_frames": buffer,
        **measure(warping, seed),
    }
    for name, result in methods.items():
        say(f"seed {seed}, {name}: {result['frr_clean']:.1%} missed, {result['frr_10db']:.1%} at 10 dB")
    return {"seed": seed, "methods": methods}


def shares_missed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares missed by each method (mean, least and most over trainings) by target, and by fewer words at `TARGET`."""

    def mean_and_range(values: list[float]) -> list[float]:
        return [mean(values), min(values), max(values)]

    table: dict[str, Any] = {}
    for name in rows[0]["methods"]:
        method_rows = [row["methods"][name] for row in rows]
        table[name] = {
            condition: {
                f"{TARGET:g}": mean_and_range([method_row[f"frr_{condition}"] for method_row in method_rows]),
                **{
                    f"{target:g}": mean_and_range(
                        [method_row["at_other_targets"][index][f"frr_{condition}"] for method_row in method_rows]
                    )
                    for index, target in enumerate(OTHER_TARGETS)
                },
                **{
                    f"{TARGET:g}, {count} words": mean_and_range(
                        [method_row["with_fewer_words"][index][f"frr_{condition}"] for method_row in method_rows]
                    )
                    for index, count in enumerate(FEWER_WORDS)
                },
            }
            for condition in ("clean", "10db")
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()

    rows = [row(seed, options.cache) for seed in options.seeds]
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.detection --seeds {' '.join(map(str, options.seeds))}",
        "confidence": CONFIDENCE,
        "n": {
            "words": len({clip.label for clip in clips_of("test")}),
            "voices": len({clip.group for clip in clips_of("test")}),
        },
        **machine(),
        "missed": shares_missed(rows),
        "rows": rows,
    }
    write_json(RESULTS / "detection.json", result)


if __name__ == "__main__":
    main()
