"""Compares audiosetfit 0.1.0 with PairTune: same splits, same Whisper encoder and window, same number of clips learnt from.

    python -m benchmarks.audiosetfit --encoder DIR/whisper-tiny.en-encoder

Writes benchmarks/results/audiosetfit.json. audiosetfit is installed into the cache without its dependencies: the version of
torch must not change, and it gets decoded clips, so it needs no others. Unmodified, it hears 30 seconds whatever the length of
the clip (`--seconds 30`). By default its body is loaded from a copy of the checkpoint whose position table is cut to PairTune's
window, which makes it some fifteen times faster.

The budget is the number of clips learnt from, where a clip counts each time. PairTune is also measured with a third of the
budget (`confit_edge_third`), because it checks validation after each epoch, which takes time; audiosetfit does not. Both choose
their learning rate on validation, with the whole budget for each rate. The time is that of the chosen rate: training, fitting
the head or the probes, and embedding validation and test. Both compute in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.command import run_main, say
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, encoder_argument, machine, write_json
from benchmarks.tasks import TASKS, build
from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.encoders import encoder_label, pretrained
from confit_edge.pairtune.items import epoch_batches
from confit_edge.pairtune.trainer import fit
from confit_edge.probes.dual import dual_probe
from confit_edge.probes.metrics import accuracy, correct, paired_difference
from confit_edge.recipe import Recipe
from confit_edge.torchaudio_pure import skip_native_library
from confit_runtime.errors import ConfitError

VERSION = "0.1.0"
WINDOW_S = 2  # of PairTune, in whole seconds, as audiosetfit's feature extractor requires
PAIRS = 16  # its default batch, of two clips each
THEIR_RATES = (2e-5, 1e-4, 3e-4)  # the default comes first
OUR_RATES = (4e-5, 1e-4, 2.4e-4)
CPU = torch.device("cpu")

Bools = npt.NDArray[np.bool_]


class Columns(dict[str, list[Any]]):
    """The part of a data set's interface that audiosetfit uses."""

    @property
    def column_names(self) -> list[str]:
        return list(self)


def columns(clips: Clips) -> Columns:
    return Columns(audio=[np.array(pcm) for pcm in clips.pcm], label=[f"{label:03d}" for label in clips.labels])


def install(cache: Path) -> None:
    """Install audiosetfit into a folder of the cache, and put that on the path."""
    folder = cache / "audiosetfit"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, f"audiosetfit=={VERSION}"], check=True)
    sys.path.append(str(folder))


def short_copy(checkpoint: Path, target: Path, seconds: int) -> Path:
    """Write a copy of the checkpoint with its position table and feature extractor cut to `seconds`."""
    from safetensors.torch import load_file, save_file

    target.mkdir(parents=True, exist_ok=True)
    positions = seconds * 50
    weights = {
        name: tensor[:positions].contiguous()
        if name.endswith("embed_positions.weight") and "encoder" in name
        else tensor
        for name, tensor in load_file(checkpoint / "model.safetensors").items()
    }
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "max_source_positions": positions}))
    extractor = json.loads((checkpoint / "preprocessor_config.json").read_text())
    extractor |= {"chunk_length": seconds, "n_samples": seconds * 16_000, "nb_max_frames": seconds * 100}
    (target / "preprocessor_config.json").write_text(json.dumps(extractor))
    return target


def assert_loaded(encoder: torch.nn.Module, directory: Path) -> int:
    """Return the number of weights of the encoder. Raises ConfitError if any differs from the directory or is missing there."""
    from safetensors.torch import load_file

    stored = {
        name.partition("encoder.")[2]: tensor for name, tensor in load_file(directory / "model.safetensors").items()
    }
    for name, weight in encoder.state_dict().items():
        if name not in stored or not torch.equal(weight, stored[name].to(weight.dtype)):
            raise ConfitError(f"{directory}: audiosetfit's body does not hold the weight {name} from there")
    return len(encoder.state_dict())


def run_audiosetfit(directory: Path, corpus: Corpus, steps: int, seed: int) -> dict[str, Any]:
    """Run audiosetfit's own trainer and head at each rate; return the result of the rate that is best on validation."""
    from audiosetfit import AudioSetFitModel, Trainer, TrainingArguments  # type: ignore[import-not-found]

    results = []
    for rate in THEIR_RATES:
        torch.manual_seed(seed)
        model = AudioSetFitModel.from_pretrained(str(directory), device="cpu")
        weights = assert_loaded(model.model_body.encoder, directory)
        arguments = TrainingArguments(
            seed=seed, embedding_batch_size=PAIRS, embedding_num_epochs=1, max_steps=steps, body_learning_rate=rate,
            show_progress_bar=False,
        )  # fmt: skip
        clock = Clock()
        Trainer(model, arguments, train_dataset=columns(corpus.train)).train()
        correct_by_split = {
            name: is_correct(model, clips) for name, clips in (("val", corpus.val), ("test", corpus.test))
        }
        results.append({"lr": rate, "weights_asserted": weights, **clock.read(), **correct_by_split})
    return max(results, key=lambda result: float(result["val"].mean()))


def is_correct(model: Any, clips: Clips) -> Bools:
    """Return whether the prediction for each clip is right."""
    predicted = model.predict([np.array(pcm) for pcm in clips.pcm], use_labels=False)
    labels = sorted({f"{label:03d}" for label in clips.labels})
    if len(model.labels) != len(labels):
        raise ConfitError("audiosetfit was trained on different classes from those it is tested on")
    return np.equal([model.labels[index] for index in predicted], [f"{label:03d}" for label in clips.labels])


def run_pairtune(checkpoint: Path, corpus: Corpus, epochs: int, seed: int) -> dict[str, Any]:
    """Run PairTune and its probes at each rate; return the result of the rate that is best on validation."""
    encoder = pretrained(str(checkpoint), WINDOW_S)
    recipe = Recipe(seed=seed, epochs=epochs, window=float(WINDOW_S), device="cpu")
    results = []
    for rate in OUR_RATES:
        tuned = copy.deepcopy(encoder)
        clock = Clock()
        fit(tuned, corpus, replace(recipe, lr=(rate,)), lr=rate, epochs=epochs)
        probes = dual_probe(tuned, corpus, recipe, CPU)
        elapsed = clock.read()
        val = correct(probes.linear.scores(probes.val_embeddings), corpus.val.targets)
        test = {
            name: correct(probe.scores(probes.test_embeddings), corpus.test.targets)
            for name, probe in (("test", probes.linear), ("test_knn", probes.knn))
        }
        results.append({"lr": rate, **elapsed, "val": val, **test})
    return max(results, key=lambda result: float(result["val"].mean()))


class Clock:
    """Measures wall and processor seconds since its creation."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": round(time.perf_counter() - self.wall, 1),
            "processor_seconds": round(time.process_time() - self.processor, 1),
        }


def compare(task: str, checkpoint: Path, cache: Path, seed: int, epochs: int, seconds: int) -> dict[str, Any]:
    """Measure one row, with the same number of clips learnt from on both sides."""
    corpus = read_corpus(build(TASKS[task], cache, seed), rate=16_000, seed=seed)
    clip_count = clips_learnt_from(corpus, epochs, seed)
    directory = short_copy(checkpoint, cache / "tasks" / f"audiosetfit-body-{seconds}", seconds)
    audiosetfit_result = run_audiosetfit(directory, corpus, max(1, round(clip_count / (2 * PAIRS))), seed)
    confit_edge_results = {"confit_edge": run_pairtune(checkpoint, corpus, epochs, seed)}
    confit_edge_results["confit_edge_third"] = run_pairtune(checkpoint, corpus, epochs // 3, seed)
    groups = corpus.test.groups
    return {
        "task": task,
        "encoder": encoder_label(str(checkpoint)),
        "seed": seed,
        "classes": len(corpus.classes),
        "train_n": len(corpus.train),
        "test_n": len(corpus.test),
        "epochs": epochs,
        "clips_learnt_from": clip_count,
        "audiosetfit": {**row_of(audiosetfit_result), "interval": interval(audiosetfit_result["test"], groups)},
        **{
            method: {
                **row_of(result),
                "interval": interval(result["test"], groups),
                "accuracy_knn": round(float(result["test_knn"].mean()), 4),
                "ahead": paired_difference(result["test"], audiosetfit_result["test"], groups, seed).to_dict(),
            }
            for method, result in confit_edge_results.items()
        },
    }


def clips_learnt_from(corpus: Corpus, epochs: int, seed: int) -> int:
    """Count the clips in all batches of PairTune, each time; with few classes a clip is used several times per epoch."""
    clips, recipe = corpus.training_clips(), Recipe(seed=seed)
    return sum(len(batch) for epoch in range(epochs) for batch in epoch_batches(clips, corpus, recipe, epoch))


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    scalars = {key: value for key, value in result.items() if not isinstance(value, np.ndarray)}
    return {
        "accuracy": round(float(result["test"].mean()), 4),
        "accuracy_val": round(float(result["val"].mean()), 4),
        **scalars,
    }


def interval(hits: Bools, groups: list[str]) -> list[float]:
    found = accuracy(hits, groups)
    return [round(found.low, 4), round(found.high, 4)]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over the rows of each task."""
    tasks = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        task_rows = [row for row in rows if row["task"] == task]
        tasks[task] = {
            f"{method}_{metric}": round(mean(row[method][metric] for row in task_rows), 4)
            for method in ("audiosetfit", "confit_edge", "confit_edge_third")
            for metric in ("accuracy", "processor_seconds")
        }
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="local directory of a Whisper checkpoint")
    parser.add_argument("--tasks", nargs="+", default=["words", "actors"], choices=TASKS, metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--seconds", type=int, default=WINDOW_S, help="seconds of a clip that audiosetfit hears (30: unmodified)"
    )
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=RESULTS / "audiosetfit.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    label = encoder_label(str(args.encoder))
    skip_native_library()
    import transformers

    transformers.logging.set_verbosity_error()  # it warns that there is no decoder; the encoder is asserted
    install(args.cache)
    for seed in args.seeds:
        for task in args.tasks:
            rows.append(compare(task, args.encoder, args.cache, seed, args.epochs, args.seconds))
            command = (
                f"python -m benchmarks.audiosetfit --encoder {encoder_argument(label)} --epochs {args.epochs}"
                f" --seconds {args.seconds}"
            )
            result = {
                "command": command,
                "audiosetfit": VERSION,
                "window_seconds": {"confit_edge": WINDOW_S, "audiosetfit": args.seconds},
                **machine(),
            }
            write_json(args.out, {**result, "rows": rows, "summary": summary(rows)})
            say(json.dumps(rows[-1]))
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    run_main(main)
