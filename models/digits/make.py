"""Trains and exports models/digits.onnx, the shipped model of ten English digits, from the demo's clips.

    python models/digits/make.py WORK_FOLDER
    python models/digits/make.py --stream-threshold
    python models/digits/make.py --card

Every other word is `unknown`, except the one that the demo keeps back for enrollment. The recipe is next to this file. The
first command also writes the card, models/digits.md. With --stream-threshold, the script measures
`calibration.enroll.stream_threshold` of the existing model again, as `export` does, and changes nothing else in the file. With
--card, it writes only the card of the existing model.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from confit_edge.data.corpus import read_corpus
from confit_edge.data.manifest import read_manifest, write_manifest
from confit_edge.demo import DATA
from confit_edge.demo.story import HELD_OUT
from confit_edge.files import write_text
from confit_edge.pairtune.session import train
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run, run_corpus
from confit_export.enrollment import cohort_rows, stream_threshold
from confit_export.export import export_run
from confit_export.model_card import render_card
from confit_runtime import load
from confit_runtime.contract import read_sealed, seal
from confit_runtime.files import write_atomic

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OUT = Path(__file__).parents[1] / "digits.onnx"


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    train(
        write_clips(work),
        work / "digits",
        recipe(),
        watch=lambda event: print(event) if event["stage"] == "epoch" else None,
    )
    run = read_run(work / "digits")
    print(export_run(run, run_corpus(run), OUT, license="Apache-2.0", say=print).shipped)


def recipe() -> Recipe:
    return Recipe.from_file(Path(__file__).with_name("recipe.yaml"), background=str(DATA / "background"))


def write_clips(work: Path) -> Path:
    """Write the manifest of the clips that the model is trained on; return its path."""
    words = read_manifest(DATA / "words" / "manifest.csv")
    clips = tuple(
        replace(clip, labels=(clip.label if clip.label in DIGITS else "unknown",))
        for clip in words.clips
        if clip.label != HELD_OUT
    )
    manifest = work / "digits.csv"
    write_manifest(replace(words, clips=clips, source=manifest), manifest)
    return manifest


def measure_stream_threshold() -> None:
    model, made = load(OUT, calibrated=False), recipe()
    with tempfile.TemporaryDirectory() as work:
        corpus = read_corpus(write_clips(Path(work)), rate=model.contract.sample_rate, **made.corpus_options())
    of_clips = np.array(cohort_rows(corpus, made.seed)) < len(corpus.train.pcm)
    level = stream_threshold(model, model.cohort[of_clips], corpus.background_train + corpus.background_val)
    calibration = model.contract.calibration
    calibration = {**calibration, "enroll": {**calibration["enroll"], "stream_threshold": level}}
    written = OUT.read_bytes()
    graph = written[: read_sealed(written).graph_size]
    write_atomic(OUT, seal(graph, replace(model.contract, calibration=calibration)))
    print(f"stream_threshold {level}")


def card() -> str:
    """Return the text of digits.md, from the file's contract and from the real digits that the model detects."""
    model = load(OUT)
    heard = [digit for digit in DIGITS if digit in fires(DATA / "digits-real" / f"{digit}.ogg")]
    missed = ", ".join(digit for digit in DIGITS if digit not in heard) or "none"
    sections = [
        "## Training data",
        "",
        "The model is trained on the demo's clips (`confit_edge/demo/data/words`, Apache-2.0): English words, each spoken once by"
        " 54 synthetic voices, and split by voice. The digits are the labels; the other words are `unknown`. Music and French"
        " speech (CC-BY-SA-3.0) and Russian speech (CC-BY-3.0), credited in `confit_edge/demo/data/background`, are the"
        " background. `models/digits/make.py` trains it with the recipe next to that script, starting"
        " from Google's speech_embedding (Apache-2.0, `models/speech-embedding/NOTICE`). The accuracies above are for synthetic"
        " voices that it was not trained on.",
        "",
        "## Real speech",
        "",
        f"Of ten digits spoken by one person (`confit_edge/demo/data/digits-real`), it detects {len(heard)} at its own"
        f" thresholds. Missed: {missed}. To set thresholds for your room, use `confit-edge calibrate` or `--threshold`.",
        "",
    ]
    return render_card(model.contract, OUT.stat().st_size, "digits", sections=sections)


def fires(clip: Path) -> set[str]:
    """Return the labels that fire in a recording when `listen --source` plays it."""
    pcm, rate = soundfile.read(clip, dtype="float32")
    stream = load(OUT).stream(lead_in=True)
    return {event.label for event in [*stream.accept(pcm, rate), *stream.finish()]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("work", type=Path, nargs="?", help="a new folder, for the manifest and the run")
    what.add_argument("--stream-threshold", action="store_true", help="measure this again, in the existing model")
    what.add_argument("--card", action="store_true", help="write only the card")
    args = parser.parse_args()
    if args.work:
        main(args.work)
    elif args.stream_threshold:
        measure_stream_threshold()
    write_text(OUT.with_suffix(".md"), card())
