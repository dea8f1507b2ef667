"""Makes models/digits.onnx, the model that ships: ten English digits, from the demo's clips.

    python models/digits/make.py WORK_FOLDER

Every other word is `unknown`, but for the one the demo keeps back for enrollment. The recipe is beside this file.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from confit_edge.data.manifest import read_manifest, write_manifest
from confit_edge.demo import DATA
from confit_edge.demo.story import KEPT_BACK
from confit_edge.pairtune.config import Recipe
from confit_edge.pairtune.session import train
from confit_edge.runs import read_run, run_corpus
from confit_export.export import export_run

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


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
    out = Path(__file__).parents[1] / "digits.onnx"
    print(export_run(run, run_corpus(run), out, license="Apache-2.0", say=print).shipped)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a new folder, for the manifest and the run")
    main(parser.parse_args().work)
