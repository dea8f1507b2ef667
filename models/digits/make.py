"""Makes models/digits.onnx, the model that ships: ten English digits, from the demo's clips.

    python models/digits/make.py WORK_FOLDER
    python models/digits/make.py --card

Every other word is `unknown`, but for the one the demo keeps back for enrollment. The recipe is beside this file. The
second writes models/digits.md alone, the card of the file that is there.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import soundfile

from confit_edge.data.manifest import read_manifest, write_manifest
from confit_edge.demo import DATA
from confit_edge.demo.story import KEPT_BACK
from confit_edge.files import write_text
from confit_edge.pairtune.session import train
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run, run_corpus
from confit_export.export import export_run
from confit_export.model_card import card_of
from confit_runtime import load

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OUT = Path(__file__).parents[1] / "digits.onnx"


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    words = read_manifest(DATA / "words" / "manifest.csv")
    clips = tuple(
        replace(clip, labels=(clip.label if clip.label in DIGITS else "unknown",))
        for clip in words.clips
        if clip.label != KEPT_BACK
    )
    manifest = work / "digits.csv"
    write_manifest(replace(words, clips=clips, source=manifest), manifest)
    recipe = Recipe.from_file(Path(__file__).with_name("recipe.yaml"), background=str(DATA / "background"))
    train(manifest, work / "digits", recipe, watch=lambda event: print(event) if event["stage"] == "epoch" else None)
    run = read_run(work / "digits")
    print(export_run(run, run_corpus(run), OUT, license="Apache-2.0", say=print).shipped)


def card() -> str:
    """What stands in digits.md: of the file's contract, and of the real digits that it hears."""
    model = load(OUT)
    heard = [digit for digit in DIGITS if digit in fires(DATA / "digits-real" / f"{digit}.ogg")]
    missed = ", ".join(digit for digit in DIGITS if digit not in heard) or "none"
    sections = [
        "## What it learnt from",
        "",
        "The demo's clips (`confit_edge/demo/data/words`, Apache-2.0): English words spoken once each by 54 synthetic voices,"
        " split by voice. The digits are its labels and the other words `unknown`, with music and with French and Russian speech"
        " as background. `models/digits/make.py` makes it, by the recipe beside that script, from Google's speech_embedding"
        " (Apache-2.0, `models/speech-embedding/NOTICE`). Accuracies above are of synthetic voices that it never heard.",
        "",
        "## Real speech",
        "",
        f"Of ten digits spoken by one person (`confit_edge/demo/data/digits-real`) it fires at {len(heard)}, by its own"
        f" thresholds. Missed: {missed}. Set thresholds for your room by `confit-edge calibrate`, or by `--threshold`.",
        "",
    ]
    return card_of(model.contract, OUT.stat().st_size, "digits", sections=sections)


def fires(clip: Path) -> set[str]:
    """The labels that fire in a recording, as `listen --source` hears it."""
    pcm, rate = soundfile.read(clip, dtype="float32")
    stream = load(OUT).stream(lead_in=True)
    return {event.label for event in [*stream.accept(pcm, rate), *stream.finish()]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("work", type=Path, nargs="?", help="a new folder, for the manifest and the run")
    what.add_argument("--card", action="store_true", help="write the card alone")
    if work := parser.parse_args().work:
        main(work)
    write_text(OUT.with_suffix(".md"), card())
