"""Measures what negative prints, and what higher thresholds, do to false accepts and to the sounds that should be found.

    python -m benchmarks.negative_prints [--cache DIR]

Writes benchmarks/results/negative_prints.json. Four words that `digits` does not know are enrolled, each from three of the demo's
test voices (three draws), and listened for in the clips of the other test voices and in recordings without the word (every second
of `benchmarks.negatives`, half of them "taught", half "other"). What fires in the taught recordings, at the default threshold or
at a lower one, is enrolled as negative prints: all of it, or some. The same for "eight", a label of `digits`. Streams see the
rows that `listen` would see. The lowest share found is that of one draw, of what is found at the lower threshold.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.fetch import CACHE
from benchmarks.negatives import folder
from benchmarks.report import RESULTS, machine, write_json
from benchmarks.sources import DEMO
from confit_runtime import load
from confit_runtime.audio import load_clip
from confit_runtime.chunk_scorer import ChunkScorer
from confit_runtime.detect import Detector, NameDetector
from confit_runtime.enrollment import extract_prints
from confit_runtime.matcher import Levels, Matcher
from confit_runtime.model import Model

WORDS, LABEL = ("bird", "happy", "marvin", "sheila"), "eight"
VOICES = (
    ("bm_george", "am_santa", "zf_xiaoyi"),
    ("af_kore", "hm_omega", "jf_alpha"),
    ("pm_alex", "ef_dora", "af_nova"),
)
TAUGHT: tuple[int | None, ...] = (1, 3, 10, 30, 100, None)  # None: all
LOWERED = 0.8  # far below the default
THRESHOLDS = (0.86, 0.88, 0.9, 0.93)
LABEL_THRESHOLDS = (0.62, 0.67, 0.72)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Heard:
    """Rows of one source: scores `[rows, labels]`, embeddings `[rows, dim]`."""

    scores: Floats
    embeddings: Floats


@dataclass(frozen=True)
class Sounds:
    """What is listened to: clips of a word, and recordings without it."""

    clips: list[Heard]
    taught: list[Heard]
    other: list[Heard]

    def restrict(self, matcher: Matcher) -> Sounds:
        """The same with NaN, which matches nobody, for the embeddings that do not match anyway: they take long."""
        return Sounds(*([_restrict(one, matcher) for one in part] for part in (self.clips, self.taught, self.other)))


def hear(model: Model, pcm: Floats) -> Heard:
    contract = model.contract
    tail = contract.latency_samples + contract.smoothing_hops * contract.hop
    pcm = np.concatenate([np.zeros(contract.window, np.float32), pcm, np.zeros(tail, np.float32)])
    return Heard(*map(np.concatenate, zip(*ChunkScorer(model).push(pcm, last=True), strict=True)))


def _restrict(heard: Heard, matcher: Matcher) -> Heard:
    matches = np.array([matcher.match(embedding).name is not None for embedding in heard.embeddings])
    return replace(heard, embeddings=np.where(matches[:, None], heard.embeddings, np.float32(np.nan)))


def make_matcher(
    model: Model, prints: Floats, negatives: Floats | None = None, threshold: float | None = None
) -> Matcher:
    vetoes = np.zeros((0, model.contract.embedding_dim), np.float32) if negatives is None else negatives
    return Matcher(
        ["it"],
        [0] * len(prints),
        prints,
        np.concatenate([model.cohort, model.quiet]),
        levels=Levels.of(model.contract, None, None, {} if threshold is None else {"it": threshold}),
        vetoed=[0] * len(vetoes),
        vetoes=vetoes,
    )


def name_hits(model: Model, heard: Heard, matcher: Matcher) -> list[Floats]:
    """The embeddings of the rows at which the name fires."""
    return [heard.embeddings[hit.row] for hit in NameDetector(model.contract, matcher).push(heard.embeddings)]


def label_hits(model: Model, heard: Heard, threshold: float | None, matcher: Matcher | None) -> list[Floats]:
    """The embeddings of the rows at which the label fires and is not vetoed."""
    contract = model.contract
    if threshold is not None:
        own = {**contract.thresholds[LABEL], "on": threshold, "off": 0.6 * threshold}
        contract = replace(contract, thresholds={**contract.thresholds, LABEL: own})
    place = contract.labels.index(LABEL)
    hits = [hit for hit in Detector.from_contract(contract).push(heard.scores) if hit.label == place]
    embeddings = [heard.embeddings[hit.row] for hit in hits]
    return [one for one in embeddings if matcher is None or not matcher.vetoes("it", one)]


def count(hits: Iterable[list[Floats]]) -> int:
    return sum(len(of_one) for of_one in hits)


def read_clips(rate: int) -> dict[str, dict[str, Floats]]:
    """The demo's test clips of the words and of the label, by word and voice."""
    with (DEMO / "manifest.csv").open(newline="", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["split"] == "test" and row["label"] in (*WORDS, LABEL)]
    clips: dict[str, dict[str, Floats]] = defaultdict(dict)
    for row in rows:
        clips[row["label"]][row["group"]] = load_clip(DEMO / row["path"], rate)
    return clips


def make_matchers(model: Model, prints: Floats, taught: list[Heard], rng: np.random.Generator) -> dict[str, Matcher]:
    """The matchers compared: with negative prints of what fires in `taught` at two thresholds, and with higher thresholds."""
    matchers = {}
    for base, threshold in ((f"threshold: {LOWERED}", LOWERED), ("default", None)):
        matchers[base] = make_matcher(model, prints, None, threshold)
        alarms = [one for of_one in taught for one in name_hits(model, of_one, matchers[base])]
        for number in TAUGHT:
            chosen = [alarms[at] for at in rng.permutation(len(alarms))[:number]]
            matchers[f"{base}, negative prints: {number or 'all'}"] = make_matcher(
                model, prints, np.reshape(chosen, (-1, prints.shape[1])), threshold
            )
    for threshold in THRESHOLDS:
        matchers[f"threshold: {threshold}"] = make_matcher(model, prints, None, threshold)
    return matchers


def measure_names(
    model: Model,
    clips: dict[str, dict[str, Floats]],
    heard: dict[str, dict[str, Heard]],
    taught: list[Heard],
    other: list[Heard],
) -> dict[str, dict[str, float]]:
    """What each matcher finds and takes wrongly, over all words and draws."""
    rng = np.random.default_rng(0)
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    lowest: dict[str, float] = {}
    for word in WORDS:
        for voices in VOICES:
            prints = np.concatenate(
                [extract_prints(model, clips[word][one], "sound", one).embeddings for one in voices]
            )
            true = [one for voice, one in heard[word].items() if voice not in voices]
            sounds = Sounds(true, taught, other).restrict(make_matcher(model, prints, None, LOWERED))
            found = {}
            for name, matcher in make_matchers(model, prints, sounds.taught, rng).items():
                found[name] = sum(bool(name_hits(model, one, matcher)) for one in sounds.clips)
                totals[name]["clips"] += len(sounds.clips)
                totals[name]["found"] += found[name]
                totals[name]["taught"] += count(name_hits(model, one, matcher) for one in sounds.taught)
                totals[name]["other"] += count(name_hits(model, one, matcher) for one in sounds.other)
                share = found[name] / found[f"threshold: {LOWERED}"]
                lowest[name] = min(lowest.get(name, 1.0), share)
            print(word, voices, found, flush=True)
    return {
        name: {**{key: int(value) for key, value in of.items()}, "lowest_share_found": round(lowest[name], 3)}
        for name, of in totals.items()
    }


def measure_label(
    model: Model, clips: list[Heard], taught: list[Heard], other: list[Heard]
) -> dict[str, dict[str, int]]:
    """The same for the label: with nothing, with negative prints, and with higher thresholds."""
    alarms = [one for of_one in taught for one in label_hits(model, of_one, None, None)]
    dim = model.contract.embedding_dim
    with_negatives = make_matcher(model, np.zeros((0, dim), np.float32), np.reshape(alarms, (-1, dim)))
    label = {}
    for name, threshold, vetoing in (
        ("nothing", None, None),
        (f"negative prints: {len(alarms)}", None, with_negatives),
        *((f"threshold: {one}", one, None) for one in LABEL_THRESHOLDS),
    ):
        label[name] = {
            "clips": len(clips),
            "found": sum(bool(label_hits(model, one, threshold, vetoing)) for one in clips),
            "taught": count(label_hits(model, one, threshold, vetoing) for one in taught),
            "other": count(label_hits(model, one, threshold, vetoing) for one in other),
        }
    return label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    paths = sorted(folder(parser.parse_args().cache).glob("*.wav"))[::2]
    model = load("digits")
    rate = model.contract.sample_rate
    recordings = [hear(model, load_clip(path, rate)) for path in paths]
    other, taught = recordings[::2], recordings[1::2]
    clips = read_clips(rate)
    heard = {word: {voice: hear(model, pcm) for voice, pcm in said.items()} for word, said in clips.items()}
    names = measure_names(model, clips, heard, taught, other)
    label = measure_label(model, list(heard[LABEL].values()), taught, other)
    hours = [sum(len(one.scores) for one in part) * model.contract.hop / rate / 3600 for part in (taught, other)]
    result = {
        "command": "python -m benchmarks.negative_prints",
        **machine(),
        "hours": {"taught": round(hours[0], 3), "other": round(hours[1], 3)},
        "draws": len(WORDS) * len(VOICES),
        "names": names,
        "label": {"label": LABEL, **label},
    }
    write_json(RESULTS / "negative_prints.json", result)


if __name__ == "__main__":
    main()
