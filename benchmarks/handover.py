"""Measures whom `listen --speaker-model` names when one voice has been speaking and another says the word.

    python -m benchmarks.handover

Writes benchmarks/results/handover.json. All voices are test voices of the demo, which nobody trained on. Each draw enrolls three
of them, each from four sentences of five words. One enrolled voice says five words, and after a pause a digit follows: by the
same voice, by another enrolled voice, or by one that is not enrolled. `digits` detects the digit, and `speakers` names the
speaker. Noise at -60 dBFS lies under everything. Intervals resample the draws.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.report import RESULTS, machine, write_json
from benchmarks.sources import DEMO
from confit_runtime import Detection, Gallery, Listener, load
from confit_runtime.audio import load_clip
from confit_runtime.enrollment import extract_prints
from confit_runtime.intervals import grouped_share_interval
from confit_runtime.model import Model
from confit_runtime.speaker import SpeakerTap

RATE, DRAWS, ENROLLED, TIMES = 16_000, 20, 3, 4
PAUSES_S = (0.3, 0.8, 1.5)
SPEAKERS = ("the same voice", "another that is enrolled", "one that is not")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SENTENCE, SENTENCES = 5, 4

Floats = npt.NDArray[np.float32]


class Voices:
    """The words of the demo's test voices."""

    def __init__(self) -> None:
        with (DEMO / "manifest.csv").open(newline="", encoding="utf-8") as table:
            rows = [row for row in csv.DictReader(table) if row["split"] == "test"]
        self.clips: dict[str, dict[str, Floats]] = defaultdict(dict)
        for row in rows:
            self.clips[row["group"]][row["label"]] = load_clip(DEMO / row["path"], RATE)
        self.names = sorted(self.clips)
        common = set.intersection(*(set(words) for words in self.clips.values()))
        self.others = sorted(common - set(DIGITS))
        self.digits = sorted(common & set(DIGITS))

    def sentence(self, voice: str, words: list[str]) -> Floats:
        pause = np.zeros(RATE // 10, np.float32)
        return np.concatenate([part for word in words for part in (self.clips[voice][word], pause)])


def enroll(gallery: Gallery, model: Model, voices: Voices, names: list[str]) -> None:
    sentences = [voices.others[at * SENTENCE : (at + 1) * SENTENCE] for at in range(SENTENCES)]
    for name in names:
        takes = [extract_prints(model, voices.sentence(name, words), "speaker", name) for words in sentences]
        embeddings = np.concatenate([take_.embeddings for take_ in takes])
        seconds = sum(take_.seconds for take_ in takes)
        gallery.enroll(name, embeddings, sources=[name] * len(embeddings), voiced_s=seconds)


def spoken(voices: Voices, first: str, second: str, pause_s: float, rng: np.random.Generator) -> tuple[Floats, float]:
    """Return a sentence of one voice followed by a digit of another, and the time at which the digit begins."""
    words = [str(word) for word in rng.choice(voices.others, SENTENCE, replace=False)]
    before = [
        np.zeros(3 * RATE // 2, np.float32),
        voices.sentence(first, words),
        np.zeros(round(pause_s * RATE), np.float32),
    ]
    digit = voices.clips[second][str(rng.choice(voices.digits))]
    clip = np.concatenate([*before, digit, np.zeros(3 * RATE // 2, np.float32)])
    noise = 1e-3 * rng.standard_normal(len(clip))
    return (clip + noise).astype(np.float32), sum(map(len, before)) / RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "handover.json")
    args = parser.parse_args()
    voices, words, model = Voices(), load("digits"), load("speakers")
    outcomes: dict[tuple[str, float], list[list[tuple[bool, bool]]]] = defaultdict(list)
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        order = [str(name) for name in rng.permutation(voices.names)]
        enrolled, strangers = order[:ENROLLED], order[ENROLLED:]
        with (
            tempfile.TemporaryDirectory() as folder,
            Gallery.open(Path(folder) / "voices.db", model, create=True) as gallery,
        ):
            enroll(gallery, model, voices, enrolled)
            stream, tap = words.stream(), SpeakerTap(model, gallery)
            for speaker in SPEAKERS:
                for pause_s in PAUSES_S:
                    attributions = []
                    for _ in range(TIMES):
                        first, another = (str(name) for name in rng.permutation(enrolled)[:2])
                        second = {SPEAKERS[0]: first, SPEAKERS[1]: another, SPEAKERS[2]: str(rng.choice(strangers))}[
                            speaker
                        ]
                        clip, begins = spoken(voices, first, second, pause_s, rng)
                        listener = Listener([stream], "clip", RATE, taps=[tap])
                        events = [*listener.take((clip, RATE)), *listener.finish()]
                        attributions += [
                            (event.speaker == first, event.speaker == second)
                            for event in events
                            if isinstance(event, Detection) and event.end_s > begins
                        ]
                    outcomes[speaker, pause_s].append(attributions)
        print(f"draw {draw + 1} of {DRAWS}", flush=True)
    rows = [row(speaker, pause_s, draws) for (speaker, pause_s), draws in outcomes.items()]
    result = {
        "command": "python -m benchmarks.handover",
        "voices": voices.names,
        "draws": DRAWS,
        "enrolled": ENROLLED,
        "rows": rows,
        **machine(),
    }
    write_json(args.out, result)
    for entry in rows:
        print(entry)


def row(speaker: str, pause_s: float, draws: list[list[tuple[bool, bool]]]) -> dict[str, object]:
    """Return the shares of detected words attributed to the voice before the pause, and to the voice that spoke."""
    draw_of = [str(number) for number, attributions in enumerate(draws) for _ in attributions]
    entry: dict[str, object] = {"who": speaker, "pause_s": pause_s, "words": len(draw_of)}
    for column, name in enumerate(("named_first", "named_who_spoke")):
        attributed = [word[column] for attributions in draws for word in attributions]
        entry[name] = round(sum(attributed) / len(attributed), 4)
        entry[f"{name}_interval"] = [round(bound, 4) for bound in grouped_share_interval(attributed, draw_of, 0.95)]
    return entry


if __name__ == "__main__":
    main()
