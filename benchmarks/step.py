"""Measures the cost of a PairTune training step compared with a vanilla step, and the cost of an epoch on a CPU.

    python -m benchmarks.step

Writes benchmarks/results/training.json: the ratio of processor time for the same batch (one thread, steps of the two
objectives in turn, medians), and the seconds of an epoch over 1,000 one-second clips of the words that ship with the project.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.report import RESULTS, encoder_argument, machine, write_json
from benchmarks.sources import DEMO
from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.encoders import encoder_label, pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.pairtune.items import epoch_batches
from confit_edge.pairtune.objectives import make_objective
from confit_edge.pairtune.optimiser import make_optimiser
from confit_edge.pairtune.trainer import fit
from confit_edge.recipe import Recipe
from confit_edge.windows import make_augmenter

CLIPS, SECOND = 1000, 16_000
TURNS = 7


def step_ratio(encoder: Encoder, corpus: Corpus, recipe: Recipe) -> float:
    """Return the processor time of a PairTune step divided by that of a vanilla step, medians of steps in turn.

    Both take the same batch. A step is forward, loss, backward and optimiser; the encoder's weights change. Set torch to one
    thread first.
    """
    batch = next(epoch_batches(corpus.train, corpus, recipe, 0))
    augment = make_augmenter(encoder, corpus, recipe)
    pcm = torch.from_numpy(augment([corpus.train.pcm[row] for row in batch], np.random.default_rng(recipe.seed)))
    targets = torch.from_numpy(corpus.train.targets[batch])
    encoder.train()
    steps = {}
    for name in ("finetune", "pairtune"):
        objective_recipe = replace(recipe, objective=name)
        objective = make_objective(objective_recipe, encoder.dim, len(corpus.classes), corpus.multi_label)
        steps[name] = objective, make_optimiser(encoder, objective, objective_recipe, 1e-6)
    elapsed: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(TURNS + 1):
        for name in sorted(steps, reverse=bool(turn % 2)):
            objective, optimiser = steps[name]
            start = time.process_time()
            loss, _ = objective(encoder(pcm), targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            loss.item()
            optimiser.step()
            if turn:  # the first turn warms up
                elapsed[name].append(time.process_time() - start)
    return median(elapsed["pairtune"]) / median(elapsed["finetune"])


def epoch_seconds(encoder: Encoder, corpus: Corpus, recipe: Recipe) -> dict[str, float]:
    """Return the wall seconds of the fastest epoch after the first: of its steps alone, and with the check on validation."""
    timestamps: dict[int, dict[str, float]] = {}

    def watch(event: dict[str, Any]) -> None:
        now = time.perf_counter()
        if event["stage"] == "step":
            timestamps.setdefault(event["epoch"], {"first": now})["last"] = now
        elif event["stage"] == "epoch":
            timestamps[int(event["epoch"]) - 1]["end"] = now

    start = time.perf_counter()
    fit(encoder, corpus, recipe, lr=encoder.learning_rate, epochs=recipe.epochs, watch=watch)
    epoch_starts = [start] + [timestamps[epoch]["end"] for epoch in range(recipe.epochs - 1)]
    steps_only = [timestamps[epoch]["last"] - epoch_starts[epoch] for epoch in range(1, recipe.epochs)]
    with_validation = [timestamps[epoch]["end"] - epoch_starts[epoch] for epoch in range(1, recipe.epochs)]
    return {"steps": round(min(steps_only), 2), "with_validation": round(min(with_validation), 2)}


def one_second_clips(corpus: Corpus) -> Corpus:
    """Return the corpus with 1,000 training clips of one second each, made from all its training clips in turn."""
    rows = np.arange(CLIPS) % len(corpus.train)
    pcm = [np.pad(corpus.train.pcm[row], (0, SECOND))[:SECOND] for row in rows]
    train = corpus.train
    repeated = Clips(pcm, train.targets[rows], [train.groups[row] for row in rows], [train.paths[row] for row in rows])
    return replace(corpus, train=repeated)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["speech-embedding"], help="names or local directories")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS / "training.json")
    args = parser.parse_args()
    rows = []
    for name in args.encoders:
        encoder = pretrained(name, 1.28)
        recipe = Recipe(epochs=args.epochs)
        corpus = one_second_clips(read_corpus(DEMO / "manifest.csv", rate=encoder.sample_rate, seed=0))
        torch.set_num_threads(1)
        ratio = step_ratio(encoder, corpus, recipe)
        torch.set_num_threads(2)
        seconds = epoch_seconds(pretrained(name, 1.28), corpus, recipe)
        rows.append({"encoder": encoder_label(name), "step_ratio": round(ratio, 3), "epoch_seconds": seconds})
        print(rows[-1])
    command = f"python -m benchmarks.step --encoders {' '.join(encoder_argument(encoder_label(name)) for name in args.encoders)}"
    write_json(
        args.out,
        {"command": command, "clips": CLIPS, "clip_seconds": 1.0, "threads": 2, **machine(), "rows": rows},
    )


if __name__ == "__main__":
    main()
