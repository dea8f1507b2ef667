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
    _, singular_values, axes = np.linalg.svd(centres - mean, full_matrices=False)
    deviations = (voices - centres[:, None]).reshape(-1, cohort.shape[1])
    spread = singular_values / np.sqrt(len(centres))
    # the cohort spans few directions, so half of a voice's variance goes into the others
    residual = float(np.sqrt(np.square(spread).sum() / cohort.shape[1]))
    noise = float(
        np.sqrt(np.square(deviations).sum(axis=1).mean() * PRINTS_A_NAME / (PRINTS_A_NAME - 1) / cohort.shape[1])
    )

    def utter(voice: Floats) -> Floats:
        return l2_normalise(voice + noise * rng.standard_normal(voice.shape, np.float32))

    prints = np.empty((names * PRINTS_A_NAME, cohort.shape[1]), np.float32)
    queries = []
    queried_names = set(rng.choice(names, QUESTIONS, replace=False).tolist())
    for start in range(0, names, 10_000):
        count = min(10_000, names - start)
        voice = (rng.standard_normal((count, len(spread)), np.float32) * spread.astype(np.float32)) @ axes + mean
        voice += residual * rng.standard_normal(voice.shape, np.float32)
        prints[start * PRINTS_A_NAME : (start + count) * PRINTS_A_NAME] = utter(np.repeat(voice, PRINTS_A_NAME, axis=0))
        queries += [utter(voice[at - start]) for at in range(start, start + count) if at in queried_names]
    return prints, np.stack(queries)


def timed(matcher: Matcher, queries: Floats) -> tuple[dict[str, float], list[str | None]]:
    """Return the milliseconds of a query, by the clock and of this thread alone, and the best name for each query."""
    for query in queries[:20]:
        matcher.match(query)
    elapsed: dict[str, list[float]] = {"": [], "cpu_": []}
    for query in queries:
        clock, cpu = time.perf_counter(), time.thread_time()
        matcher.match(query)
        elapsed["cpu_"].append(1000 * (time.thread_time() - cpu))
        elapsed[""].append(1000 * (time.perf_counter() - clock))
    latencies = {
        f"{kind}p{share}_ms": round(float(np.quantile(values, share / 100)), 3)
        for kind, values in elapsed.items()
        for share in (50, 99)
    }
    return latencies, [matcher.match(query).nearest for query in queries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gallery-benchmark"), help="folder for the index")
    parser.add_argument("--prints", type=int, default=1_000_000, help="number of prints in the large gallery")
    parser.add_argument("--sections", nargs="+", default=["exact", "index"], choices=["exact", "index"])
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    model = load("speakers")
    levels = Levels.of(model.contract, None, None)
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    result |= {
        "command": "python -m benchmarks.gallery",
        "seed": SEED,
        "questions": QUESTIONS,
        "dim": model.contract.embedding_dim,
        "prints_a_name": PRINTS_A_NAME,
        **machine(),
    }
    for label in args.sections:
        size = 100_000 if label == "exact" else args.prints
        names = size // PRINTS_A_NAME
        prints, queries = prints_like(model.cohort, names, np.random.default_rng(SEED))
        owners = np.repeat(np.arange(names), PRINTS_A_NAME)
        name_labels = [str(name) for name in range(names)]
        exact = Matcher(name_labels, owners, prints, model.cohort, levels=levels)
        latencies, best = timed(exact, queries)
        row: dict[str, Any] = {**machine(), "prints": len(prints), "exact": latencies}
        if label == "index":
            ids, path = np.arange(1, len(prints) + 1), args.work / "large.index"
            start = time.perf_counter()
            digest = build_index(path, ids, prints)
            row["build_s"] = round(time.perf_counter() - start, 1)
            row["bytes"] = path.stat().st_size
            exact_search = ExactSearch(prints)
            nearest = {
                count: [set(exact_search.nearest(query, count).tolist()) for query in queries]
                for count in (10, NEIGHBOUR_PRINTS)
            }
            for effort in EFFORTS:
                search = IndexSearch(path, ids, prints, digest, effort)
                indexed = Matcher(name_labels, owners, prints, model.cohort, levels=levels, search=search)
                times, answers = timed(indexed, queries)
                same = float(np.mean([one == other for one, other in zip(best, answers, strict=True)]))
                row[f"effort {effort}"] = {**times, "same_best_name": same, **_recall(nearest, search, queries)}
            path.unlink()
        result[label] = {**row, "load_average": round(os.getloadavg()[0], 1)}
        print(label, row, flush=True)
        write_json(args.out, result)


def _recall(nearest: dict[int, list[set[int]]], search: IndexSearch, queries: Floats) -> dict[str, float]:
    """Return the share of each query's nearest prints that are among those the matcher would look at."""
    candidates = [set(search.nearest(query, NEIGHBOUR_PRINTS).tolist()) for query in queries]
    return {
        f"recall_at_{count}": round(
            float(np.mean([len(a & b) / count for a, b in zip(sets, candidates, strict=True)])), 4
        )
        for count, sets in nearest.items()
    }


if __name__ == "__main__":
    main()
