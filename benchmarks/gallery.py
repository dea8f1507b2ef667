"""Measures how long identification takes with many prints: exact search in 100 000, and an index of a million.

    python -m benchmarks.gallery
    python -m benchmarks.gallery --sections exact

Writes benchmarks/results/gallery.json; a section that is not measured stays as it is. Building the index of a million takes an
hour.

Prints are random, with the distribution of the shipped speaker model: the covariances of its cohort between voices and within a
voice, and three prints per name. Queries are new draws of enrolled names. The time is that of `Matcher.match` on one thread: by
the clock, and of the thread alone, which excludes the time of other programs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import machine, write_json
from confit_runtime import load
from confit_runtime.matcher import NEIGHBOUR_PRINTS, Levels, Matcher, l2_normalise
from confit_runtime.search import SEARCH_EFFORT, ExactSearch, IndexSearch, build_index

OUT = Path(__file__).with_name("results") / "gallery.json"
PRINTS_A_NAME = 3
QUESTIONS = 500
EFFORTS = (256, 512, SEARCH_EFFORT, 1024)  # candidates that an index search keeps
SEED = 0

Floats = npt.NDArray[np.float32]


def prints_like(cohort: Floats, names: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return prints `[names * 3, dim]` in order of name, and one query for each of `QUESTIONS` names."""
    voices = l2_normalise(cohort).reshape(-1, PRINTS_A_NAME, cohort.shape[1])
    centres = voices.mean(axis=1)
    mean = centres.mean(axis=0)
    _, between, axes = np.linalg.svd(centres - mean, full_matrices=False)
    inside = (voices - centres[:, None]).reshape(-1, cohort.shape[1])
    spread = between / np.sqrt(len(centres))
    # the cohort spans few directions, so half of a voice's variance goes into the others
    elsewhere = float(np.sqrt(np.square(spread).sum() / cohort.shape[1]))
    noise = float(np.sqrt(np.square(inside).sum(axis=1).mean() * PRINTS_A_NAME / (PRINTS_A_NAME - 1) / cohort.shape[1]))

    def say(voice: Floats) -> Floats:
        return l2_normalise(voice + noise * rng.standard_normal(voice.shape, np.float32))

    made = np.empty((names * PRINTS_A_NAME, cohort.shape[1]), np.float32)
    asked = []
    ask = set(rng.choice(names, QUESTIONS, replace=False).tolist())
    for start in range(0, names, 10_000):
        count = min(10_000, names - start)
        voice = (rng.standard_normal((count, len(spread)), np.float32) * spread.astype(np.float32)) @ axes + mean
        voice += elsewhere * rng.standard_normal(voice.shape, np.float32)
        made[start * PRINTS_A_NAME : (start + count) * PRINTS_A_NAME] = say(np.repeat(voice, PRINTS_A_NAME, axis=0))
        asked += [say(voice[at - start]) for at in range(start, start + count) if at in ask]
    return made, np.stack(asked)


def timed(matcher: Matcher, asked: Floats) -> tuple[dict[str, float], list[str | None]]:
    """Return the milliseconds of a query, by the clock and of this thread alone, and the best name for each query."""
    for query in asked[:20]:
        matcher.match(query)
    took: dict[str, list[float]] = {"": [], "cpu_": []}
    for query in asked:
        clock, cpu = time.perf_counter(), time.thread_time()
        matcher.match(query)
        took["cpu_"].append(1000 * (time.thread_time() - cpu))
        took[""].append(1000 * (time.perf_counter() - clock))
    found = {
        f"{kind}p{share}_ms": round(float(np.quantile(values, share / 100)), 3)
        for kind, values in took.items()
        for share in (50, 99)
    }
    return found, [matcher.match(query).nearest for query in asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gallery-benchmark"), help="folder for the index")
    parser.add_argument("--prints", type=int, default=1_000_000, help="number of prints in the large gallery")
    parser.add_argument("--sections", nargs="+", default=["exact", "index"], choices=["exact", "index"])
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    model = load("speakers")
    levels = Levels.of(model.contract, None, None)
    result = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    result |= {
        "command": "python -m benchmarks.gallery",
        "seed": SEED,
        "questions": QUESTIONS,
        "dim": model.contract.embedding_dim,
        "prints_a_name": PRINTS_A_NAME,
        **machine(),
    }
    for label in given.sections:
        size = 100_000 if label == "exact" else given.prints
        names = size // PRINTS_A_NAME
        prints, asked = prints_like(model.cohort, names, np.random.default_rng(SEED))
        owners = np.repeat(np.arange(names), PRINTS_A_NAME)
        said = [str(name) for name in range(names)]
        exact = Matcher(said, owners, prints, model.cohort, levels=levels)
        found, best = timed(exact, asked)
        row: dict[str, Any] = {**machine(), "prints": len(prints), "exact": found}
        if label == "index":
            ids, path = np.arange(1, len(prints) + 1), given.work / "large.index"
            start = time.perf_counter()
            digest = build_index(path, ids, prints)
            row["build_s"] = round(time.perf_counter() - start, 1)
            row["bytes"] = path.stat().st_size
            whole = ExactSearch(prints)
            near = {
                count: [set(whole.nearest(query, count).tolist()) for query in asked]
                for count in (10, NEIGHBOUR_PRINTS)
            }
            for effort in EFFORTS:
                search = IndexSearch(path, ids, prints, digest, effort)
                indexed = Matcher(said, owners, prints, model.cohort, levels=levels, search=search)
                times, answers = timed(indexed, asked)
                same = float(np.mean([one == other for one, other in zip(best, answers, strict=True)]))
                row[f"effort {effort}"] = {**times, "same_best_name": same, **_recall(near, search, asked)}
            path.unlink()
        result[label] = {**row, "load_average": round(os.getloadavg()[0], 1)}
        print(label, row, flush=True)
        write_json(given.out, result)


def _recall(near: dict[int, list[set[int]]], search: IndexSearch, asked: Floats) -> dict[str, float]:
    """Return the share of each query's nearest prints that are among those the matcher would look at."""
    found = [set(search.nearest(query, NEIGHBOUR_PRINTS).tolist()) for query in asked]
    return {
        f"recall_at_{count}": round(float(np.mean([len(a & b) / count for a, b in zip(sets, found, strict=True)])), 4)
        for count, sets in near.items()
    }


if __name__ == "__main__":
    main()
