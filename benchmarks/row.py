"""Measures one row of the matrix: every method on one task with one encoder and one seed, on the same decoded clips."""

from __future__ import annotations

import contextlib
import copy
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.step import step_ratio
from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.encoders import BUILT_IN, encoder_label, pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.geometry.measures import describe
from confit_edge.pairtune.machine import pick_precision
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.trainer import DivergedError, Fitted, fit
from confit_edge.pairtune.validation import head_probe, quality
from confit_edge.probes.dual import DualProbe, dual_probe
from confit_edge.probes.metrics import accuracy, correct
from confit_edge.recipe import Recipe
from confit_edge.studies.questions.convergence import epochs_to
from confit_runtime.errors import ConfitError

Bools = npt.NDArray[np.bool_]
CPU = torch.device("cpu")
MEASURES = ("top1", "top1_rotated", "top3", "anisotropy", "isoscore", "effective_rank")


@dataclass(frozen=True)
class Plan:
    """How long to train, and at which rates: PairTune at its defaults, its rivals at the best on validation after `epochs`.

    `longest` is the number of epochs at convergence. Each of the encoder's rates `lrs` is tried. Vanilla fine-tuning also
    tries the rates `head_lrs` of its head, with the middle rate of the encoder.
    """

    epochs: int
    longest: int
    lrs: tuple[float, ...]
    head_lrs: tuple[float, ...] = (1e-2, 2e-3)
    window: float = 1.28

    @classmethod
    def of(cls, encoder: str, epochs: int, long: int = 3) -> Plan:
        """Plan rates from below the recipe's own to well above it for convolutions, and a tenth of them for attention."""
        scale = 1.0 if encoder in BUILT_IN else 0.1
        return cls(epochs, long * epochs, (3e-4 * scale, 1e-3 * scale, 2.5e-3 * scale))

    def rates(self) -> list[tuple[float, float]]:
        """Return pairs of an encoder rate and a head rate for vanilla fine-tuning to choose from."""
        middle = self.lrs[len(self.lrs) // 2]
        return [(lr, self.head_lrs[0]) for lr in self.lrs] + [(middle, rate) for rate in self.head_lrs[1:]]

    def epochs_in_all(self) -> int:
        """The epochs of all trainings of a row. About one of the rivals' two long ones is repeated at the encoder's own rate."""
        return (1 + len(self.rates()) + len(self.lrs)) * self.epochs + 4 * self.longest


@dataclass(frozen=True)
class Best:
    """The training that was best on validation, and its rates."""

    lr: float
    head_lr: float
    encoder: Encoder
    fitted: Fitted


@dataclass
class Bench:
    """The corpus and the encoder of a row, and the results so far: whether each clip is right, by method.

    `done` holds the trainings by name and rates, and `probed` the results of the probes by the training's id, so that nothing
    is computed twice.
    """

    corpus: Corpus
    encoder: Encoder
    recipe: Recipe
    done: dict[tuple[str, float, float], Best | None] = field(default_factory=dict)
    probed: dict[int, DualProbe] = field(default_factory=dict)
    right: dict[str, Bools] = field(default_factory=dict)
    val: dict[str, float] = field(default_factory=dict)
    geometry: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    history: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def train(self, name: str, recipe: Recipe, rates: list[tuple[float, float]]) -> Best:
        """Train a copy of the encoder at each pair of rates; return the best on validation, or the first of equals."""
        start = time.perf_counter()
        trained = [result for rate in rates if (result := self.train_at(name, recipe, *rate)) is not None]
        self.seconds[name] = round(time.perf_counter() - start, 1)
        if not trained:
            raise ConfitError(f"{name}: every training diverged")
        best = max(trained, key=lambda result: _validation_quality(result.fitted))
        self.history[name] = {
            key: [round(row[key], 4) for row in best.fitted.history]
            for key in ("val_linear", "val_head")
            if key in best.fitted.history[0]
        }
        return best

    def train_at(self, name: str, recipe: Recipe, lr: float, head_lr: float) -> Best | None:
        """Return a copy of the encoder trained at these rates; None if it diverged."""
        key = (name, lr, head_lr)
        if key not in self.done:
            encoder = copy.deepcopy(self.encoder)
            self.done[key] = None
            with contextlib.suppress(DivergedError):
                fitted = fit(encoder, self.corpus, replace(recipe, head_lr=head_lr), lr=lr, epochs=recipe.epochs)
                self.done[key] = Best(lr, head_lr, encoder, fitted)
        return self.done[key]

    def judge(self, name: str, best: Best | None, suffix: str = "") -> None:
        """Judge `NAME_linear`, `NAME_knn` and, if it has a head, `NAME_head`; None stands for the untrained encoder."""
        if id(best) not in self.probed:
            self.probed[id(best)] = dual_probe(best.encoder if best else self.encoder, self.corpus, self.recipe, CPU)
        probes = self.probed[id(best)]
        scores: dict[str, Any] = {"linear": probes.linear, "knn": probes.knn}
        if best and isinstance(best.fitted.objective, FineTune):
            scores["head"] = head_probe(best.fitted.objective)
        for probe, judge in scores.items():
            key = f"{name}_{probe}{suffix}"
            self.right[key] = correct(judge.scores(probes.test_embeddings), self.corpus.test.targets)
            self.val[key] = round(
                float(correct(judge.scores(probes.val_embeddings), self.corpus.val.targets).mean()), 4
            )
        self.geometry[name + suffix] = _geometry(probes, self.corpus)


def measure(
    task: str, manifest: Path, encoder_name: str, seed: int, plan: Plan, previous: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measure a row. Set torch to one thread first: two processes of one thread do more than one of two.

    Given the row from `previous`, only PairTune is measured again, and the results of its rivals are kept. Raises ConfitError,
    before any training, if the frozen encoder is not judged as it was then: the data or the arithmetic have changed.
    """
    start = time.perf_counter()
    encoder = pretrained(encoder_name, plan.window)
    corpus = read_corpus(manifest, rate=encoder.sample_rate, seed=seed)
    recipe = Recipe(
        seed=seed, epochs=plan.epochs, window=plan.window, device="cpu", precision=pick_precision("auto", CPU)
    )
    bench = Bench(corpus, encoder, recipe)
    row = {
        "task": task,
        "encoder": encoder_label(encoder_name),
        "seed": seed,
        "classes": len(corpus.classes),
        "train_n": len(corpus.train),
        "val_n": len(corpus.val),
        "test_n": len(corpus.test),
        "epochs": plan.epochs,
        "epochs_converged": plan.longest,
        "precision": recipe.precision,
    }
    bench.judge("frozen", None)
    if previous is not None:
        check_same_row({**row, **_columns(bench, seed)}, previous)
    rates = {"pairtune": _pairtune(bench, plan)}
    if previous is None:
        rates |= _rivals(bench, plan)
        row["step_ratio"] = round(step_ratio(copy.deepcopy(encoder), corpus, recipe), 3)
    result = {
        **row,
        **_columns(bench, seed),
        "lr": rates,
        "seconds": {**bench.seconds, "row": round(time.perf_counter() - start, 1)},
    }
    return merged(previous or {}, result)


def _pairtune(bench: Bench, plan: Plan) -> float:
    """Measure PairTune with the default recipe, at both lengths; return the encoder's rate."""
    rates = [(bench.encoder.learning_rate, bench.recipe.head_lr)]
    bench.judge("pairtune", bench.train("pairtune", bench.recipe, rates))
    long = bench.train("pairtune_converged", replace(bench.recipe, epochs=plan.longest), rates)
    bench.judge("pairtune", long, "_converged")
    return bench.encoder.learning_rate


def _rivals(bench: Bench, plan: Plan) -> dict[str, float]:
    """Measure vanilla fine-tuning at both lengths, and linear probing before it; return the rates best on validation.

    Each is also judged at the encoder's own rate (`_own`), which PairTune uses, because choosing by few clips is luck.
    """
    own = (bench.encoder.learning_rate, plan.head_lrs[0])
    finetune = replace(bench.recipe, objective="finetune")
    vanilla = bench.train("finetune", finetune, plan.rates())
    bench.judge("finetune", vanilla)
    _judge_own(bench, "finetune", finetune, own)
    lpft = replace(finetune, head_init="probe")
    probed = bench.train("lpft_short", lpft, [(lr, vanilla.head_lr) for lr in plan.lrs])
    for name, one, best, suffix in (("finetune", finetune, vanilla, "_converged"), ("lpft", lpft, probed, "")):
        long = bench.train(name + suffix, replace(one, epochs=plan.longest), [(best.lr, best.head_lr)])
        bench.judge(name, long, suffix)
        _judge_own(bench, name, replace(one, epochs=plan.longest), own, suffix)
    return {"finetune": vanilla.lr, "head": vanilla.head_lr, "lpft": probed.lr}


def _judge_own(bench: Bench, name: str, recipe: Recipe, own: tuple[float, float], suffix: str = "") -> None:
    best = bench.train_at(name + suffix, recipe, *own)
    if best is None:
        raise ConfitError(f"{name}{suffix}: the training at the encoder's own rate diverged")
    bench.judge(name, best, f"_own{suffix}")


def _columns(bench: Bench, seed: int) -> dict[str, Any]:
    """Return all results of `bench`, by their names in a row."""
    groups = bench.corpus.test.groups
    shares = {key: accuracy(right, groups) for key, right in bench.right.items()}
    columns: dict[str, Any] = {key: round(share.accuracy, 4) for key, share in shares.items()}
    for method, probes in {"finetune": ("linear", "head"), "pairtune": ("linear",)}.items():
        history = bench.history.get(f"{method}_converged", {})
        for probe in probes if history else ():
            name = probe if probe == "head" else method
            columns[f"epochs_to_95_{name}"] = epochs_to(history[f"val_{probe}"])
    for method in ("finetune", "pairtune"):
        for measure in ("top1", "isoscore") if method in bench.geometry else ():
            columns[f"{measure}_{method}"] = bench.geometry[method][measure]
    return {
        **columns,
        "intervals": {key: [round(share.low, 4), round(share.high, 4)] for key, share in shares.items()},
        "val": bench.val,
        "geometry": bench.geometry,
        "history": bench.history,
        "test_groups": by_group(bench.right, groups),
    }


def check_same_row(row: dict[str, Any], previous: dict[str, Any]) -> None:
    """Raise ConfitError if the two rows differ in a value that every row must share."""
    for key in ("classes", "train_n", "val_n", "test_n", "precision", "frozen_linear", "frozen_knn"):
        if row[key] != previous[key]:
            raise ConfitError(
                f"{' '.join(str(row[name]) for name in ('task', 'encoder', 'seed'))}: {key} was {previous[key]} and is"
                f" {row[key]}; measure the whole row, with another --out"
            )


def merged(previous: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """Return `previous` updated with `update`; nested dictionaries are merged in the same way."""
    combined = {
        key: merged(previous[key], value) if isinstance(value, dict) and key in previous else value
        for key, value in update.items()
    }
    return {**previous, **combined}


def _validation_quality(fitted: Fitted) -> float:
    return quality(fitted.history[fitted.kept_epoch])


def by_group(right: dict[str, Bools], groups: list[str]) -> dict[str, Any]:
    """Return the clips of each test group, and the right ones by method: enough to resample groups later."""
    names, member = np.unique(groups, return_inverse=True)
    count = [int(number) for number in np.bincount(member)]
    hits = {key: [int(number) for number in np.bincount(member, weights=value)] for key, value in right.items()}
    return {"names": [str(name) for name in names], "n": count, "right": hits}


def _geometry(probes: DualProbe, corpus: Corpus) -> dict[str, float | None]:
    measures = describe(probes.test_embeddings, corpus.test.labels)
    return {key: round(measures[key], 5) if np.isfinite(measures[key]) else None for key in MEASURES}
