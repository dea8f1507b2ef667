"""Speakers nobody trained on: closed and open set, and verification, beside Resemblyzer as published.

    python -m benchmarks.speakers --peer PYTHON

PYTHON is that of an environment with Resemblyzer 0.1.4; without it only our side is measured. Each voice is enrolled from
three utterances of 3 s, and asked about by six of 3 s, of other recordings (`benchmarks.voices`). The levels of the
shipped model are used as they are: nothing is chosen on these voices.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.fetch import CACHE
from benchmarks.report import machine, write_json
from benchmarks.voices import Draw, draw, voices
from confit_edge.probes.metrics import equal_error_rate
from confit_runtime import load
from confit_runtime.enrollment import embed_query
from confit_runtime.errors import AudioError
from confit_runtime.matcher import Levels, Matcher, unit

OUT = Path(__file__).with_name("results") / "speakers.json"
SEEDS = 5
DRAWS = 1000  # of voices, for the intervals
CONFIDENT = 0.75  # Resemblyzer's own demonstrations call a cosine above this the same speaker

Floats = npt.NDArray[np.float32]
PEER = """
import sys, types
import numpy as np
import scipy.ndimage
morphology = types.ModuleType("scipy.ndimage.morphology")  # where Resemblyzer 0.1.4 looks for it
morphology.binary_dilation = scipy.ndimage.binary_dilation
sys.modules["scipy.ndimage.morphology"] = morphology
import torch
from resemblyzer import VoiceEncoder, preprocess_wav
torch.set_num_threads(1)
encoder = VoiceEncoder("cpu", verbose=False)
clips = np.load(sys.argv[1])
np.save(sys.argv[2], np.stack([encoder.embed_utterance(preprocess_wav(clip, 16000)) for clip in clips]))
"""


@dataclass(frozen=True)
class Asked:
    """The question of one utterance: what every enrolled voice scored, what each needed, and who was named."""

    seed: int
    voice: str
    scores: dict[str, float]
    named: str | None  # all voices enrolled
    named_of_half: str | None  # only half of them
    stranger: bool  # whether the voice was not in that half


Answer = Callable[[dict[str, Floats], Floats], tuple[dict[str, float], str | None]]


def questions(drawn: dict[tuple[int, str], Draw], embeddings: dict[int, Floats | None], answer: Answer) -> list[Asked]:
    """Every utterance asked of all voices of its seed, and of a random half of them."""
    asked = []
    for seed in sorted({seed for seed, _ in drawn}):
        here = {name: one for (number, name), one in drawn.items() if number == seed}
        prints = {
            name: np.stack([found for clip in one.enroll if (found := embeddings[id(clip)]) is not None])
            for name, one in here.items()
        }
        half = set(np.random.default_rng([seed, 1]).permutation(sorted(here))[: len(here) // 2])
        few = {name: rows for name, rows in prints.items() if name in half}
        for name, one in here.items():
            for clip in one.ask:
                query = embeddings[id(clip)]
                if query is None:  # too little voice: refused, so nobody is named
                    scores, named, of_half = dict.fromkeys(here, -1.0), None, None
                else:
                    scores, named = answer(prints, query)
                    _, of_half = answer(few, query)
                asked.append(Asked(seed, name, scores, named, of_half, name not in half))
    return asked


def ours(cohort: Floats, levels: Levels) -> Answer:
    """As `identify` and `verify` answer."""

    def answer(prints: dict[str, Floats], query: Floats) -> tuple[dict[str, float], str | None]:
        names = list(prints)
        owners = np.repeat(np.arange(len(names)), [len(rows) for rows in prints.values()])
        matcher = Matcher(names, owners, np.concatenate(list(prints.values())), cohort, levels=levels)
        # how far above what was needed: what `verify` decides by
        matches = {name: matcher.verify(name, query) for name in names}
        return {name: match.score - match.threshold for name, match in matches.items()}, matcher.match(query).name

    return answer


def resemblyzer(threshold: float) -> Answer:
    """Cosine with the mean of a speaker's embeddings; the nearest, where that is above the threshold."""

    def answer(prints: dict[str, Floats], query: Floats) -> tuple[dict[str, float], str | None]:
        scores = {name: float(unit(rows.mean(axis=0)) @ query) for name, rows in prints.items()}
        best = max(scores, key=lambda name: scores[name])
        return scores, best if scores[best] >= threshold else None

    return answer


def measures(asked: list[Asked]) -> dict[str, float]:
    """`closed_accuracy`: the best score is the right voice's, nobody being refused. `open_error`: half of the voices are
    enrolled; the mean of the share of theirs that are not named rightly, and of the strangers that are named. `eer`: each
    utterance against each voice.
    """
    genuine = np.array([one.scores[one.voice] for one in asked])
    others = np.concatenate([[score for name, score in one.scores.items() if name != one.voice] for one in asked])
    right = [max(one.scores, key=lambda name, one=one: one.scores[name]) == one.voice for one in asked]  # type: ignore[misc]
    missed = [one.named_of_half != one.voice for one in asked if not one.stranger]
    taken = [one.named_of_half is not None for one in asked if one.stranger]
    return {
        "closed_accuracy": float(np.mean(right)),
        "open_error": float(np.mean(missed) + np.mean(taken)) / 2,
        "open_missed": float(np.mean(missed)),
        "open_taken": float(np.mean(taken)),
        "eer": _eer(genuine, others),
    }


def _eer(genuine: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    return equal_error_rate(np.concatenate([genuine, others]), np.repeat([True, False], [len(genuine), len(others)]))


def with_intervals(asked: list[Asked]) -> dict[str, Any]:
    """The measures, each with a 95 % interval: voices are resampled, and with them the utterances they are asked by."""
    rng, names = np.random.default_rng(0), sorted({one.voice for one in asked})
    by_voice = {name: [one for one in asked if one.voice == name] for name in names}
    found = []
    for _ in range(DRAWS):
        drawn = [one for name in rng.choice(names, len(names)) for one in by_voice[name]]
        if len({one.stranger for one in drawn}) == 2:
            found.append(measures(drawn))
    points = measures(asked)
    spread = {key: np.quantile([one[key] for one in found], [0.025, 0.975]) for key in points}
    return {
        **{key: round(value, 4) for key, value in points.items()},
        "intervals": {key: [round(float(bound), 4) for bound in spread[key]] for key in points},
        "n": {"utterances": len(asked), "voices": len(names)},
    }


def within(asked: list[Asked], names: set[str]) -> dict[str, float]:
    """Closed accuracy and EER among some voices only: of one language and studio, or of one kind of recording."""
    kept = [
        Asked(
            one.seed, one.voice, {name: score for name, score in one.scores.items() if name in names}, None, None, False
        )
        for one in asked
        if one.voice in names
    ]
    genuine = np.array([one.scores[one.voice] for one in kept])
    others = np.concatenate([[score for name, score in one.scores.items() if name != one.voice] for one in kept])
    right = [max(one.scores, key=lambda name, one=one: one.scores[name]) == one.voice for one in kept]  # type: ignore[misc]
    return {
        "voices": len(names),
        "utterances": len(kept),
        "closed_accuracy": round(float(np.mean(right)), 4),
        "eer": round(_eer(genuine, others), 4),
    }


def peer_embeddings(python: str, clips: list[npt.NDArray[np.float32]]) -> Floats:
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "clips.npy", np.stack(clips))
        given, made = str(Path(folder) / "clips.npy"), str(Path(folder) / "embeddings.npy")
        subprocess.run([python, "-c", PEER, given, made], check=True)
        return np.load(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--peer", metavar="PYTHON", help="a Python with Resemblyzer 0.1.4")
    parser.add_argument("--split", default="test", choices=("dev", "test"), help="dev: what scoring was chosen on")
    parser.add_argument("--model", default="speakers")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    chosen = [voice for voice in voices(given.cache) if voice.split == given.split]
    drawn = {(seed, voice.name): draw(voice, seed) for voice in chosen for seed in range(SEEDS)}
    clips = [clip for one in drawn.values() for clip in [*one.enroll, *one.ask]]
    model = load(given.model)
    levels = Levels.of(model.contract, None, None)
    embeddings: dict[int, Floats | None] = {}
    refused = 0
    for number, clip in enumerate(clips):
        try:
            embeddings[id(clip)] = embed_query(model, clip, "speaker", "an utterance")
        except AudioError:
            embeddings[id(clip)], refused = None, refused + 1
        if number % 100 == 0:
            print(f"{number} of {len(clips)}", file=sys.stderr, flush=True)
    families = {
        "actors, one language and studio": {voice.name for voice in chosen if voice.origin == "actors"},
        "prompts, four languages": {voice.name for voice in chosen if voice.origin == "prompts"},
        "volunteers, a language each": {v.name for v in chosen if v.origin in ("klettres", "ktuberling")},
    }
    sides: dict[str, list[Asked]] = {"confit-edge": questions(drawn, embeddings, ours(model.cohort, levels))}
    if given.peer:
        theirs = dict(zip(map(id, clips), peer_embeddings(given.peer, clips), strict=True))
        sides["resemblyzer"] = questions(drawn, dict(theirs), resemblyzer(CONFIDENT))
        best = min(
            np.arange(0.5, 0.95, 0.01),
            key=lambda level: measures(questions(drawn, dict(theirs), resemblyzer(float(level))))["open_error"],
        )
        sides["resemblyzer, at the threshold best for these very voices"] = questions(
            drawn, dict(theirs), resemblyzer(float(best))
        )
    result = {
        "command": f"python -m benchmarks.speakers{' --peer PYTHON' if given.peer else ''}"
        + ("" if given.split == "test" else f" --split {given.split}"),
        "split": given.split,
        "seeds": SEEDS,
        "enrolled": "3 utterances of 3 s a voice; asked by 6 of 3 s, of other recordings",
        "voices": [voice.name for voice in chosen],
        "model": {
            "name": model.name,
            "bytes": model.path.stat().st_size,
            "enroll": model.contract.calibration["enroll"],
        },
        "refused_for_too_little_voice": refused,
        **{
            name: {
                **with_intervals(asked),
                "within": {of: within(asked, names) for of, names in families.items() if len(names) > 1},
            }
            for name, asked in sides.items()
        },
        **({"resemblyzer_best_threshold": round(float(best), 2)} if given.peer else {}),
        **machine(),
    }
    write_json(given.out, result)
    for name in sides:
        print(
            name,
            {key: result[name][key] for key in ("closed_accuracy", "open_error", "open_missed", "open_taken", "eer")},
        )


if __name__ == "__main__":
    main()
