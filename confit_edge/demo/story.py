"""The demo, step by step. Each step does what a command of the command line does; nothing is precomputed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from shlex import quote
from textwrap import fill
from typing import Any

import numpy as np
import soundfile

from confit_edge.data.compose import compose
from confit_edge.data.manifest import Clip, read_manifest, write_manifest
from confit_edge.data.tables import check_utf8
from confit_edge.demo import DATA
from confit_edge.demo.report import time_and_memory, write_report
from confit_edge.demo.side_by_side import train_all
from confit_edge.demo.steps import Demo, program, recipe, seconds_in, settings
from confit_edge.demo.voices import recognise_voices
from confit_edge.files import write_text
from confit_edge.geometry import plots
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.session import Trained
from confit_edge.pairtune.validation import head_probe
from confit_edge.probes.metrics import correct, paired_difference
from confit_edge.runs import read_run, run_corpus
from confit_export.export import Exported, export_run
from confit_runtime.audio import Pcm, load_clip
from confit_runtime.errors import UsageError
from confit_runtime.files import make_folder
from confit_runtime.formatting import format_interval, format_percent
from confit_runtime.gallery import Gallery
from confit_runtime.memory import peak_bytes
from confit_runtime.model import Model, load
from confit_runtime.scoring import Score, SoundEvent, score_detections

HELD_OUT = "marvin"  # no model sees this word until it is enrolled
STREAM_SECONDS, STREAM_SNR = 300, 10.0
LEARNING_RATES = (5e-4, 2e-3)  # for the baseline, which takes the best on validation


def run_demo(demo: Demo) -> dict[str, Any]:
    """Run the demo into its folder; return what `summary.json` holds. Raises UsageError unless the folder is new or empty."""
    out = demo.out
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(f"{out}: is not empty; choose another --out, or remove it")
    check_utf8(out.resolve())
    make_folder(out)
    started = time.monotonic()
    demo.say(
        "This takes five to six minutes on two idle cores with bf16, and longer without. Nothing that follows is precomputed."
    )
    words = word_manifest(demo)
    pairtune, finetune, memory = train_words(demo, words)
    summary: dict[str, Any] = {"seed": demo.seed, "accuracy": accuracy_table(demo, pairtune, finetune)}
    exported = export_words(demo)
    summary["model"] = {
        "path": str(exported.path),
        "bytes": exported.bytes,
        "precision": exported.contract.precision,
        "fp32_accuracy": exported.fp32["test"]["accuracy"],
        "int8_accuracy": exported.shipped["test"]["accuracy"],
        "stream_max_abs_diff": exported.stream_max_abs_diff,
    }
    summary["real_digits"] = real_digits(demo, exported.path)
    summary["stream"] = listen_to_stream(demo, exported.path)
    summary["enroll_word"] = enroll_word(demo, exported.path)
    summary["identify"] = recognise_voices(demo)
    draw(demo, pairtune, finetune)
    summary["seconds"] = round(time.monotonic() - started, 1)
    own = peak_bytes()
    summary["peak_rss_mb"] = None if memory is None or own is None else round(max(memory, own) / 1e6)
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(out, summary)
    demo.print_step(
        "Done",
        f"It took {time_and_memory(summary)}. The report is in {out / 'report.html'}. Now try:",
    )
    command, model, stream = program(), quote(str(exported.path)), quote(str(out / "stream.flac"))
    demo.say(f"  {command} listen {model} --source {stream}")
    demo.say(f"  {command} evaluate {model} {stream}    (which words it missed, and how loud the noise was)")
    demo.say(f"  {command} listen {model}            (your microphone)")
    return summary


def word_manifest(demo: Demo) -> Path:
    """Write the manifest of all words but the one kept back, and return its path."""
    every = read_manifest(demo.data / "words" / "manifest.csv")
    kept = tuple(clip for clip in every.clips if clip.label != HELD_OUT)
    path = demo.out / "words.csv"
    write_manifest(replace(every, clips=kept, source=path), path)
    voices = {split: len({clip.group for clip in kept if clip.split == split}) for split in ("train", "val", "test")}
    demo.print_step(
        "1. The clips",
        f"{len(kept)} clips of {len({clip.label for clip in kept})} English words, spoken by synthetic voices: {voices['train']}"
        f" voices to train on, {voices['val']} for validation and {voices['test']} to test on. No voice is in two splits. The"
        f" word {HELD_OUT!r} is kept back, to be enrolled later. The background in training is music and speech in French and"
        " Russian; the background in the test is other music, and speech in Italian.",
    )
    return path


def train_words(demo: Demo, words: Path) -> tuple[Trained, Trained, int | None]:
    """Train PairTune and the baseline on the same batches, epochs and augmentation; also return the memory taken."""
    background = str(demo.data / "background" / "train")
    demo.print_step(
        "2. PairTune",
        f"PairTune fine-tunes the encoder, Google's speech_embedding (0.33 M parameters), in {demo.soup} trainings of"
        f" {demo.epochs} epochs. It moves clips of the same word together and clips of different words apart (supervised"
        " contrastive learning that gives hard negatives more weight). The weights of the trainings are averaged. Two probes then"
        " judge the frozen encoder. You can do the same with:",
    )
    options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in settings(demo).items())
    demo.say(f"  {program()} train {quote(str(words))} -o pairtune --background {quote(background)} {options}")
    demo.print_step(
        "3. The baseline",
        "Vanilla fine-tuning: the same encoder, batches, epochs and augmentation, with a linear head and cross-entropy."
        f" Its learning rate is the best of {', '.join(f'{lr:g}' for lr in LEARNING_RATES)} on validation. Both train at the same"
        " time.",
    )
    rates: dict[str, Any] = {"lr": list(LEARNING_RATES), "search_epochs": 2}
    recipes = {
        "pairtune": recipe(demo, background=background),
        "finetune": recipe(demo, background=background, objective="finetune", frozen_baseline=False, **rates),
    }
    trained, memory = train_all(words, demo.out / "runs", recipes, demo.watch)
    return trained["pairtune"], trained["finetune"], memory


def accuracy_table(demo: Demo, pairtune: Trained, finetune: Trained) -> dict[str, Any]:
    """Print and return the test accuracy of each encoder and probe, with intervals, and the paired difference."""
    assert pairtune.baseline is not None
    assert isinstance(finetune.fitted.objective, FineTune)
    results = {
        "frozen": pairtune.metrics["frozen"],
        "finetune": {**finetune.metrics["probes"], "head": finetune.metrics["head"]},
        "pairtune": pairtune.metrics["probes"],
    }
    table: dict[str, Any] = {}
    lines = [f"{'':<24}{'own head':>22}{'linear probe':>22}{'kNN probe':>22}"]
    names = {"frozen": "frozen encoder", "finetune": "vanilla fine-tuning", "pairtune": "PairTune"}
    for key, name in names.items():
        found = {probe: results[key][probe]["test"] for probe in ("head", "linear", "knn") if probe in results[key]}
        table[key] = {probe: result["accuracy"] for probe, result in found.items()}
        table[key]["intervals"] = {probe: [result["low"], result["high"]] for probe, result in found.items()}
        shown = [_cell(found.get(probe)) for probe in ("head", "linear", "knn")]
        lines.append(f"{name:<24}" + "".join(f"{cell:>22}" for cell in shown))
    test = run_corpus(read_run(demo.out / "runs" / "pairtune")).test
    ours = correct(pairtune.probes.linear.scores(pairtune.probes.test_embeddings), test.targets)
    head = correct(head_probe(finetune.fitted.objective).scores(finetune.probes.test_embeddings), test.targets)
    gain = paired_difference(ours, head, test.groups, demo.seed)
    table["pairtune_linear_minus_finetune_head"] = gain.to_dict()
    table["n"], table["voices"] = len(test), len(set(test.groups))
    demo.print_step("4. The two probes")
    demo.say("\n".join(lines))
    chance = " The difference may be chance." if gain.low <= 0 <= gain.high else ""
    demo.say(
        fill(
            f"Accuracy in % on {len(test)} test clips of {table['voices']} voices that are not in training. The 95 % intervals"
            " are over voices, because clips of one voice are alike. PairTune's linear probe minus vanilla's own head:"
            f" {100 * gain.difference:+.1f} points, interval {format_interval(100 * gain.low, 100 * gain.high, '+.1f')}.{chance}",
            100,
        )
    )
    return table


def _cell(result: dict[str, float] | None) -> str:
    if result is None:
        return "-"
    return format_percent(result["accuracy"], result["low"], result["high"], unit="")


def export_words(demo: Demo) -> Exported:
    """Export the PairTune run to one int8 file."""
    demo.print_step(
        "5. Export",
        "Front end, encoder, pooling, head and streaming state go into one ONNX file with int8 weights. The quantisation scales"
        " come from training clips, the thresholds from a stream of validation voices. A model that fails a check is not"
        " written.",
    )
    run = read_run(demo.out / "runs" / "pairtune")
    exported = export_run(run, run_corpus(run), demo.out / "words.onnx", license="Apache-2.0", say=demo.say)
    fp32, int8 = exported.fp32["test"]["accuracy"], exported.shipped["test"]["accuracy"]
    demo.say(
        f"{exported.path}: {exported.bytes / 1e6:.2f} MB; on test voices {100 * int8:.1f} % in int8, {100 * fp32:.1f} % in fp32"
    )
    return exported


def real_digits(demo: Demo, model_path: Path) -> dict[str, Any]:
    """Classify ten digits spoken by a real person; all other voices are synthetic."""
    model = load(model_path)
    files = sorted((DATA / "digits-real").glob("*.ogg"))
    heard = {file.stem: model.classify(file).label for file in files}
    wrong = [f"{said} heard as {label}" for said, label in heard.items() if said != label]
    right = len(heard) - len(wrong)
    demo.print_step(
        "6. A real person",
        f"Ten digits spoken by a real person; every voice in training is synthetic. {right} of {len(heard)} are right"
        + (f" ({', '.join(wrong)})." if wrong else "."),
    )
    return {"correct": right, "n": len(heard), "wrong": wrong}


def listen_to_stream(demo: Demo, model_path: Path) -> dict[str, Any]:
    """Compose five minutes of sound and listen to them block by block, as to a microphone."""
    clips = [clip for clip in read_manifest(demo.out / "words.csv").clips if clip.split == "test"]
    stream, truth = noisy_stream(clips, np.random.default_rng([demo.seed, 20]))
    path = demo.out / "stream.flac"
    soundfile.write(path, stream, 16_000, subtype="PCM_16")
    detections = detect(load(model_path), soundfile.blocks(path, blocksize=1_600, dtype="float32"))
    score = score_detections(truth, detections)
    _write_timeline(demo.out, truth, score, detections)
    share = sum(score.found) / len(truth)
    demo.print_step(
        "7. Listening",
        f"The model listens to {STREAM_SECONDS / 60:g} minutes with {len(truth)} words by the test voices, {STREAM_SNR:g} dB"
        f" above music and foreign speech that are not in training. It finds {sum(score.found)} words with the right label"
        f" ({100 * share:.1f} %). False accepts, wrong words included: {len(score.false_accepts)}.",
    )
    return {
        "expected": len(truth),
        "detected": sum(score.found),
        "false_accepts": len(score.false_accepts),
        "seconds": STREAM_SECONDS,
        "snr_db": STREAM_SNR,
        "false_accept_labels": [f"{heard.label} at {heard.end_s:.1f} s" for heard in score.false_accepts],
    }


def noisy_stream(clips: list[Clip], rng: np.random.Generator) -> tuple[Pcm, list[SoundEvent]]:
    """Mix `clips` over background that is not in training: the sound `[STREAM_SECONDS * 16000]`, and which word is where."""
    background = [load_clip(path, 16_000) for path in sorted((DATA / "background" / "test").glob("*.ogg"))]
    stream, spoken = compose(
        [load_clip(clip.path, 16_000) for clip in clips],
        [clip.label for clip in clips],
        background,
        samples=STREAM_SECONDS * 16_000,
        rate=16_000,
        snr=(STREAM_SNR, STREAM_SNR),
        rng=rng,
    )
    return stream, [SoundEvent(word.label, word.start / 16_000, word.end / 16_000) for word in spoken]


def detect(model: Model, blocks: Iterable[Pcm]) -> list[SoundEvent]:
    """Return what the model detects, at its own thresholds, in 16 kHz sound given block by block."""
    stream, found = model.stream(lead_in=True), []
    for block in blocks:
        found += stream.accept(block, 16_000)
    found += stream.finish()
    return [SoundEvent(event.label, event.start_s, event.end_s) for event in found]


def _write_timeline(out: Path, truth: list[SoundEvent], score: Score, detections: list[SoundEvent]) -> None:
    rows = ["kind,label,start_s,end_s,found"]
    rows += [
        f"said,{heard.label},{heard.start_s:.3f},{heard.end_s:.3f},{str(found).lower()}"
        for heard, found in zip(truth, score.found, strict=True)
    ]
    rows += [f"heard,{heard.label},{heard.start_s:.3f},{heard.end_s:.3f}," for heard in detections]
    write_text(out / "stream.csv", "\n".join(rows) + "\n")
    # labels as Audacity writes them, which `evaluate` reads from next to the sound
    labels = [f"{heard.start_s:.6f}\t{heard.end_s:.6f}\t{heard.label}" for heard in truth]
    write_text(out / "stream.txt", "\n".join(labels) + "\n")


def enroll_word(demo: Demo, model_path: Path) -> dict[str, Any]:
    """Enroll the word kept back from three clips, then ask for it and for the words the model was trained on."""
    model = load(model_path)
    rng = np.random.default_rng([demo.seed, 21])
    test = [clip for clip in read_manifest(demo.data / "words" / "manifest.csv").clips if clip.split == "test"]
    own = [clip for clip in test if clip.label == HELD_OUT]
    order = rng.permutation(len(own))
    enrolled, rest = [own[index] for index in order[:3]], [own[index] for index in order[3:]]
    voices = {clip.group for clip in rest}
    others = [clip for clip in test if clip.label != HELD_OUT and clip.group in voices]
    with Gallery.open(demo.out / "words.db", model, create=True) as gallery:
        embeddings = np.stack([model.embed(clip.path) for clip in enrolled])
        gallery.enroll(
            HELD_OUT, embeddings, sources=[clip.path.name for clip in enrolled], voiced_s=seconds_in(enrolled)
        )
        right = sum(gallery.match(model.embed(clip.path)).name == HELD_OUT for clip in rest)
        refused = sum(gallery.match(model.embed(clip.path)).name is None for clip in others)
    demo.print_step(
        "8. A new word, without training",
        f"{HELD_OUT!r} is enrolled from three clips. Recognised: {right} of {len(rest)} clips by {len(voices)} other voices."
        f" Answered 'unknown', as they should be: {refused} of {len(others)} clips of other words.",
    )
    return {
        "word": HELD_OUT,
        "correct": right,
        "n": len(rest),
        "others_unknown": refused,
        "others_n": len(others),
    }


def draw(demo: Demo, pairtune: Trained, finetune: Trained) -> None:
    """Write the plots of the report."""
    folder = demo.out / "plots"
    folder.mkdir()
    histories = {"pairtune": pairtune.fitted.history, "finetune": finetune.fitted.history}
    plots.learning_curves(histories, folder / "learning.png")
    test = run_corpus(read_run(demo.out / "runs" / "pairtune")).test
    predicted = pairtune.probes.linear.scores(pairtune.probes.test_embeddings).argmax(axis=1)
    plots.confusion_matrix(test.labels, predicted, pairtune.info.classes, folder / "confusion.png")
    assert pairtune.baseline is not None
    maps = {
        "before: frozen encoder": pairtune.baseline.test_embeddings,
        "after PairTune": pairtune.probes.test_embeddings,
    }
    plots.embedding_maps(maps, test.labels, pairtune.info.classes, folder / "map.png", demo.seed)
