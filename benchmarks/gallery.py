"""Measures how long identification takes with many prints: 100 000, and a million.

    python -m benchmarks.gallery

Writes benchmarks/results/gallery.json. A million prints take 4 GB of memory.

Prints are random, with the distribution of the shipped speaker model: the covariances of its cohort between voices and within a
voice, and three prints per name. Queries are new draws of enrolled names. The time is that of `Matcher.match` on one thread: by
the clock, and of the thread alone, which excludes the time of other programs.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import machine, write_json
from confit_runtime import load
from confit_runtime.matcher import Levels, Matcher, l2_normalise

OUT = Path(__file__).with_name("results") / "gallery.json"
PRINTS_A_NAME = 3
QUESTIONS = 500
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


def timed(matcher: Matcher, queries: Floats) -> dict[str, float]:
    """Return the milliseconds of a query, by the clock and of this thread alone."""
    for query in queries[:20]:
        matcher.match(query)
    elapsed: dict[str, list[float]] = {"": [], "cpu_": []}
    for query in queries:
        clock, cpu = time.perf_counter(), time.thread_time()
        matcher.match(query)
        elapsed["cpu_"].append(1000 * (time.thread_time() - cpu))
        elapsed[""].append(1000 * (time.perf_counter() - clock))
    return {
        f"{kind}p{share}_ms": round(float(np.quantile(values, share / 100)), 3)
        for kind, values in elapsed.items()
        for share in (50, 99)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prints", nargs="+", type=int, default=[100_000, 1_000_000], help="sizes of galleries")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    model = load("speakers")
    levels = Levels.of(model.contract, None, None)
    rows: list[dict[str, Any]] = []
    for size in args.prints:
        names = size // PRINTS_A_NAME
        prints, queries = prints_like(model.cohort, names, np.random.default_rng(SEED))
        owners = np.repeat(np.arange(names), PRINTS_A_NAME)
        matcher = Matcher([str(name) for name in range(names)], owners, prints, model.cohort, levels=levels)
        load_average = round(os.getloadavg()[0], 1)
        rows.append({**machine(), "prints": len(prints), **timed(matcher, queries), "load_average": load_average})
        print(rows[-1], flush=True)
    result = {
        "command": "python -m benchmarks.gallery",
        "seed": SEED,
        "questions": QUESTIONS,
        "dim": model.contract.embedding_dim,
        "prints_a_name": PRINTS_A_NAME,
        "rows": rows,
    }
    write_json(args.out, result)


if __name__ == "__main__":
    main()
