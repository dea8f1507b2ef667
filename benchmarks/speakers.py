"""Measures identification (closed and open set) and verification of unseen speakers, compared with Resemblyzer as published.

    python -m benchmarks.speakers --peer PYTHON

PYTHON is the interpreter of an environment with Resemblyzer 0.1.4; without it only our side is measured. Each voice is enrolled
from three utterances of 3 s, and identified from six of 3 s, of other recordings (`benchmarks.voices`). The levels of the
shipped model are used as they are: nothing is chosen on these voices.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.command import say
from benchmarks.fetch import CACHE
from benchmarks.report import machine, write_json
from benchmarks.voices import Draw, draw, voices
from confit_edge.probes.judge import Bootstrapped
from confit_edge.probes.metrics import Resamples, equal_error_rate, worth_of_classes
from confit_edge.probes.verification import Trials, error_rate
from confit_runtime import load
from confit_runtime.enrollment import embed_query
from confit_runtime.errors import AudioError
from confit_runtime.intervals import grouped_share_interval
from confit_runtime.matcher import Levels, Matcher, l2_normalise
from confit_runtime.model import Model

OUT = Path(__file__).with_name("results") / "speakers.json"
SEEDS = 5
CONFIDENT = 0.75  # above this cosine, Resemblyzer's own demonstrations report the same speaker

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
class QueryResult:
    """One utterance as a query: the score of every enrolled voice, and who was named."""

    seed: int
    voice: str
    scores: dict[str, float]
    named: str | None  # with all voices enrolled
    named_of_half: str | None  # with only half of them enrolled
    stranger: bool  # whether the voice is not in that half


Draws = dict[tuple[int, str], Draw]  # by seed and voice
Answer = Callable[[dict[str, Floats], Floats], tuple[dict[str, float], str | None]]


def run_queries(draws: Draws, embeddings: dict[int, Floats | None], answer: Answer) -> list[QueryResult]:
    """Ask every utterance of all voices of its seed, and of a random half of them."""
    results = []
    for seed in sorted({seed for seed, _ in draws}):
        seed_draws = {name: seed_draw for (number, name), seed_draw in draws.items() if number == seed}
        prints = {
            name: np.stack([embedding for clip in seed_draw.enroll if (embedding := embeddings[id(clip)]) is not None])
            for name, seed_draw in seed_draws.items()
        }
        half = set(np.random.default_rng([seed, 1]).permutation(sorted(seed_draws))[: len(seed_draws) // 2])
        half_prints = {name: rows for name, rows in prints.items() if name in half}
        for name, seed_draw in seed_draws.items():
            for clip in seed_draw.ask:
                query = embeddings[id(clip)]
                if query is None:  # too little voice: the query is refused, so nobody is named
                    scores, named, of_half = dict.fromkeys(seed_draws, -1.0), None, None
                else:
                    scores, named = answer(prints, query)
                    _, of_half = answer(half_prints, query)
                results.append(QueryResult(seed, name, scores, named, of_half, name not in half))
    return results


def confit_edge_answer(cohort: Floats, levels: Levels) -> Answer:
    """Answer as `identify` and `verify` do."""

    def answer(prints: dict[str, Floats], query: Floats) -> tuple[dict[str, float], str | None]:
        names = list(prints)
        owners = np.repeat(np.arange(len(names)), [len(rows) for rows in prints.values()])
        matcher = Matcher(names, owners, np.concatenate(list(prints.values())), cohort, levels=levels)
        # `verify` decides by how far the score is above the threshold
        matches = {name: matcher.verify(name, query) for name in names}
        return {name: match.score - match.threshold for name, match in matches.items()}, matcher.match(query).name

    return answer


def resemblyzer_answer(threshold: float) -> Answer:
    """Answer by cosine with the mean of a speaker's embeddings: the nearest, if it is above the threshold."""

    def answer(prints: dict[str, Floats], query: Floats) -> tuple[dict[str, float], str | None]:
        scores = {name: float(l2_normalise(rows.mean(axis=0)) @ query) for name, rows in prints.items()}
        best = max(scores, key=lambda name: scores[name])
        return scores, best if scores[best] >= threshold else None

    return answer


def compute_measures(results: list[QueryResult]) -> dict[str, float]:
    """Return the measures of the queries.

    `closed_accuracy` is the share whose best score is the right voice's, with no query refused. `open_error` has half of the
    voices enrolled: the mean of the share of their utterances not named rightly (`open_missed`), and the share of strangers'
    utterances that get a name (`open_taken`). `eer` compares each utterance with each voice.
    """
    genuine = np.array([result.scores[result.voice] for result in results])
    impostor = np.concatenate(
        [[score for name, score in result.scores.items() if name != result.voice] for result in results]
    )
    missed = float(np.mean([_is_missed(result) for result in results if not result.stranger]))
    taken = float(np.mean([_is_false_accept(result) for result in results if result.stranger]))
    return {
        "closed_accuracy": float(np.mean([_is_nearest(result) for result in results])),
        "open_error": (missed + taken) / 2,
        "open_missed": missed,
        "open_taken": taken,
        "eer": _eer(genuine, impostor),
    }


def _is_nearest(result: QueryResult) -> bool:
    return max(result.scores, key=lambda name: result.scores[name]) == result.voice


def _is_missed(result: QueryResult) -> bool:
    return result.named_of_half != result.voice


def _is_false_accept(result: QueryResult) -> bool:
    return result.named_of_half is not None


def _eer(genuine: npt.NDArray[np.float64], impostor: npt.NDArray[np.float64]) -> float:
    return equal_error_rate(
        np.concatenate([genuine, impostor]), np.repeat([True, False], [len(genuine), len(impostor)])
    )


def with_intervals(results: list[QueryResult]) -> dict[str, Any]:
    """Return the measures, each with a 95 % interval over voices, since utterances of one voice resemble each other."""
    bounds_by_measure = intervals(results)
    return {
        **{key: round(value, 4) for key, value in compute_measures(results).items()},
        "intervals": {key: [round(bound, 4) for bound in bounds] for key, bounds in bounds_by_measure.items()},
        "n": {"utterances": len(results), "voices": len({result.voice for result in results})},
    }


def intervals(results: list[QueryResult]) -> dict[str, tuple[float, float]]:
    """Return the intervals of the measures.

    Those of shares are exact, for an effective number of utterances. `open_error` and `eer` are not shares of utterances, so
    their intervals come from resampling voices.
    """
    enrolled, strangers = ([result for result in results if result.stranger is stranger] for stranger in (False, True))
    error, rate = _open_error(results), _verification_error(results)
    return {
        "closed_accuracy": _share_interval(_is_nearest, results),
        "open_error": (error.low, error.high),
        "open_missed": _share_interval(_is_missed, enrolled),
        "open_taken": _share_interval(_is_false_accept, strangers),
        "eer": (rate.low, rate.high),
    }


def _share_interval(predicate: Callable[[QueryResult], bool], results: list[QueryResult]) -> tuple[float, float]:
    return grouped_share_interval([predicate(result) for result in results], [result.voice for result in results])


def _open_error(results: list[QueryResult]) -> Bootstrapped:
    resamples = Resamples.of([result.voice for result in results])
    rows = [
        (0, 0, _is_false_accept(result), 1) if result.stranger else (_is_missed(result), 1, 0, 0) for result in results
    ]
    missed, enrolled, taken, strangers = resamples.totals(np.array(rows, np.float64)).T
    with np.errstate(invalid="ignore"):  # a draw without strangers, or with no one else, is NaN and left out
        drawn = (missed / enrolled + taken / strangers) / 2
    worth = worth_of_classes(np.bincount([result.stranger for result in results], minlength=2))
    return Bootstrapped.of(compute_measures(results)["open_error"], drawn, resamples.sizes, worth)


def _verification_error(results: list[QueryResult]) -> Bootstrapped:
    """Compare each utterance with each voice, represented by the first utterance of that voice."""
    owners = [result.voice for result in results]
    pairs = [
        (row, owners.index(name), score) for row, result in enumerate(results) for name, score in result.scores.items()
    ]
    query_rows, voice_rows, scores = (np.array(column) for column in zip(*pairs, strict=True))
    same = np.array([owners[row] == owners[first] for row, first, _ in pairs])
    return error_rate(scores, Trials(query_rows, voice_rows, same), owners)


def within(results: list[QueryResult], names: set[str]) -> dict[str, float]:
    """Return closed accuracy and EER among some voices only, of one language and studio or one kind of recording."""
    kept = [
        QueryResult(
            result.seed,
            result.voice,
            {name: score for name, score in result.scores.items() if name in names},
            None,
            None,
            False,
        )
        for result in results
        if result.voice in names
    ]
    genuine = np.array([result.scores[result.voice] for result in kept])
    impostor = np.concatenate(
        [[score for name, score in result.scores.items() if name != result.voice] for result in kept]
    )
    return {
        "voices": len(names),
        "utterances": len(kept),
        "closed_accuracy": round(float(np.mean([_is_nearest(result) for result in kept])), 4),
        "eer": round(_eer(genuine, impostor), 4),
    }


def peer_embeddings(python: str, clips: list[npt.NDArray[np.float32]]) -> Floats:
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "clips.npy", np.stack(clips))
        clips_path, embeddings_path = str(Path(folder) / "clips.npy"), str(Path(folder) / "embeddings.npy")
        subprocess.run([python, "-c", PEER, clips_path, embeddings_path], check=True)
        return np.load(embeddings_path)


def embed(model: Model, clips: list[Floats]) -> dict[int, Floats | None]:
    """The embedding of each clip by its id; None where it has too little voice."""
    embeddings: dict[int, Floats | None] = {}
    for number, clip in enumerate(clips):
        try:
            embeddings[id(clip)] = embed_query(model, clip, "speaker", "an utterance")
        except AudioError:
            embeddings[id(clip)] = None
        if number % 100 == 0:
            say(f"{number} of {len(clips)}")
    return embeddings


def peer_queries(draws: Draws, embeddings: dict[int, Floats]) -> tuple[float, dict[str, list[QueryResult]]]:
    """Resemblyzer's answers at its usual threshold and at the one best for these voices, and that threshold."""

    def answers(level: float) -> list[QueryResult]:
        return run_queries(draws, dict(embeddings), resemblyzer_answer(level))

    best = min(map(float, np.arange(0.5, 0.95, 0.01)), key=lambda level: compute_measures(answers(level))["open_error"])
    return best, {
        "resemblyzer": answers(CONFIDENT),
        "resemblyzer, at the threshold best for these very voices": answers(best),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--peer", metavar="PYTHON", help="a Python with Resemblyzer 0.1.4")
    parser.add_argument(
        "--split", default="test", choices=("dev", "test"), help="dev: the voices that scoring was chosen on"
    )
    parser.add_argument("--model", default="speakers")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    chosen = [voice for voice in voices(args.cache) if voice.split == args.split]
    draws = {(seed, voice.name): draw(voice, seed) for voice in chosen for seed in range(SEEDS)}
    clips = [clip for voice_draw in draws.values() for clip in [*voice_draw.enroll, *voice_draw.ask]]
    model = load(args.model)
    levels = Levels.of(model.contract, None, None)
    embeddings = embed(model, clips)
    families = {
        "actors, one language and studio": {voice.name for voice in chosen if voice.origin == "actors"},
        "prompts, four languages": {voice.name for voice in chosen if voice.origin == "prompts"},
        "volunteers, a language each": {v.name for v in chosen if v.origin in ("klettres", "ktuberling")},
    }
    sides = {"confit-edge": run_queries(draws, embeddings, confit_edge_answer(model.cohort, levels))}
    best = None
    if args.peer:
        best, of_peer = peer_queries(draws, dict(zip(map(id, clips), peer_embeddings(args.peer, clips), strict=True)))
        sides |= of_peer
    result = {
        "command": f"python -m benchmarks.speakers{' --peer PYTHON' if args.peer else ''}"
        + ("" if args.split == "test" else f" --split {args.split}"),
        "split": args.split,
        "seeds": SEEDS,
        "enrolled": "3 utterances of 3 s and identified from 6 of 3 s, of other recordings",
        "voices": [voice.name for voice in chosen],
        "model": {
            "name": model.name,
            "bytes": model.path.stat().st_size,
            "enroll": model.contract.calibration["enroll"],
        },
        "refused_for_too_little_voice": sum(one is None for one in embeddings.values()),
        **{
            name: {
                **with_intervals(results),
                "within": {of: within(results, names) for of, names in families.items() if len(names) > 1},
            }
            for name, results in sides.items()
        },
        **({"resemblyzer_best_threshold": round(best, 2)} if best is not None else {}),
        **machine(),
    }
    write_json(args.out, result)
    for name in sides:
        print(
            name,
            {key: result[name][key] for key in ("closed_accuracy", "open_error", "open_missed", "open_taken", "eer")},
        )


if __name__ == "__main__":
    main()
