"""Measures the figures of docs/enrollment.md: how level, length and material affect enrolled names, and the cost of listening.

    python -m benchmarks.enrollment [--cache DIR] [--sections levels words]

Needs `python -m benchmarks.fetch`; writes benchmarks/results/enrollment.json. A section that is not measured stays as it is.

cost    processor time of the shipped models per second of sound
levels  real voices (`benchmarks.voices`, split test), enrolled at full scale or softer, and identified at other levels
flaws   the same voices, enrolled clean at -23 dBFS (root mean square) and identified at other levels, and at -30 dBFS with a DC
        offset, mains hum or hiss
words   the demo's test voices, four of them enrolled from four sentences each: whom `listen --speaker-model` names when somebody
        says a single digit, and the effect of also enrolling other digits, or of setting the names' level to 0.5
alike   music, drums and voices: how many prints `enroll` reports as more like a hum or a knock than a voice
sounds  samples of instruments, each enrolled with `digits` from one clip: how many other instruments are taken for it, and for
        how many `enroll` warns that the model can hardly distinguish them from any beep; compared with words
few     models trained on two to ten words of the demo's training voices: how many of fifteen other words, each enrolled from
        three test voices, are found in the other test voices, and how often another of these words is taken for it; with the
        threshold from the trained words alone, and from altered clips as well (as `export` does)
streams words that `digits` has no label for, enrolled from one clip of each of three voices: how many of the other test voices
        a stream finds (each word between two silences), and how often it fires in hours of speech and music, at the level of
        clips, at the default level (also of nine voices), and calibrated on every second recording (judged on the others)
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import handover, negatives
from benchmarks.fetch import CACHE
from benchmarks.report import RESULTS, machine, write_json
from benchmarks.sources import RATE, drums, instruments
from benchmarks.voices import Draw, draw, voices
from confit_edge import runs
from confit_edge.data.manifest import read_manifest
from confit_edge.demo import DATA
from confit_edge.pairtune.session import train
from confit_edge.recipe import Recipe
from confit_export.enrollment import cohort_rows, enrollment_prior, gallery_cohort
from confit_export.export import export_run
from confit_runtime import Detection, Gallery, Listener, load
from confit_runtime.arrays import Floats
from confit_runtime.audio import load_clip
from confit_runtime.bench import call_latency, stream_rtf
from confit_runtime.calibration import choose_operating_point, count_false_accepts
from confit_runtime.contract import Contract
from confit_runtime.detect import Detector, seconds_to_hops
from confit_runtime.enrollment import embed_query, extract_prints
from confit_runtime.errors import AudioError
from confit_runtime.intervals import grouped_share_interval
from confit_runtime.matcher import Levels, Matcher
from confit_runtime.model import Model
from confit_runtime.name_calibration import name_recordings, name_rows, names_contract
from confit_runtime.recordings import Recording, RowCache, clip_rows, score_recordings
from confit_runtime.speaker import SpeakerTap
from confit_runtime.voice_activity import remove_pauses

OUT = RESULTS / "enrollment.json"
ENROLLED_DB, ASKED_DB = (0.0, -25.0), (0.0, -5.0, -10.0, -15.0, -20.0, -25.0)  # peak level relative to full scale
CLEAN_DB, LEVELS_DB, FLAWED_DB = -23.0, (-15.0, -23.0, -30.0, -40.0, -50.0), -30.0  # root mean square, of full scale
DRAWS, ENROLLED = 5, 4
SPEAKERS = ("am_santa", "bm_george", "zf_xiaoyi")  # of the clips that words are enrolled from
STREAM_TARGET = 2.0  # false accepts per hour that half of the hours can promise
TEN = ("bed", "cat", "five", "house", "marvin", "no", "right", "sheila", "tree", "up")
FEW = (("down", "up"), ("no", "yes"), ("go", "on", "stop"), ("cat", "house", "right", "sheila", "tree"), TEN)
# the words that the rule of `export` was not chosen on
UNHEARD = (
    "bird",
    "dog",
    "eight",
    "four",
    "happy",
    "left",
    "nine",
    "off",
    "one",
    "seven",
    "six",
    "three",
    "two",
    "wow",
    "zero",
)
BY_HAND = 0.5  # a name's level set with --threshold
PIECE_S, PIECES = 10.0, 20
VOICES = {"prompts, four languages": ("prompts",), "actors": ("actors",), "volunteers": ("klettres", "ktuberling")}
MUSIC = ("moh-", "wesnoth-", "singularity-")  # recordings of `benchmarks.negatives`


def cost(cache: Path) -> dict[str, Any]:
    models = {name: load(name) for name in ("digits", "speakers")}
    return {
        name: {"graph": round(call_latency(model).cpu_rtf, 4), "stream": round(stream_rtf(model), 4)}
        for name, model in models.items()
    }


def levels(cache: Path) -> list[dict[str, Any]]:
    draws, rows = test_voices(cache), []
    for enrolled_db in ENROLLED_DB:
        with gallery_of(model := load("speakers")) as gallery:
            enroll_voices(gallery, model, draws, partial(at_level, db=enrolled_db))
            for asked_db in ASKED_DB:
                counts = named_voices(gallery, model, draws, partial(at_level, db=asked_db))
                rows.append({"enrolled_db": enrolled_db, "asked_db": asked_db, **counts})
                print(rows[-1], flush=True)
    return rows


def flaws(cache: Path) -> list[dict[str, Any]]:
    draws, rows = test_voices(cache), []
    with gallery_of(model := load("speakers")) as gallery:
        enroll_voices(gallery, model, draws, partial(at_rms, db=CLEAN_DB))
        conditions: list[tuple[float, str | None, Callable[[Floats], Floats]]]
        conditions = [(db, None, partial(at_rms, db=db)) for db in LEVELS_DB]
        conditions += [(FLAWED_DB, flaw, partial(add_flaw, added=added)) for flaw, added in FLAWS.items()]
        for level_db, flaw, degrade in conditions:
            rows.append({"asked_dbfs": level_db, "flaw": flaw, **named_voices(gallery, model, draws, degrade)})
            print(rows[-1], flush=True)
    return rows


def test_voices(cache: Path) -> dict[str, Draw]:
    return {voice.name: draw(voice, 0) for voice in voices(cache) if voice.split == "test"}


def enroll_voices(gallery: Gallery, model: Model, draws: dict[str, Draw], degrade: Callable[[Floats], Floats]) -> None:
    """Enroll every voice from its clips as a microphone has `degrade` them."""
    for name, voice_draw in draws.items():
        takes = [extract_prints(model, degrade(clip), "speaker", name) for clip in voice_draw.enroll]
        enroll(
            gallery,
            name,
            [row for taken_clip in takes for row in taken_clip.embeddings],
            sum(taken.seconds for taken in takes),
        )


def named_voices(
    gallery: Gallery, model: Model, draws: dict[str, Draw], degrade: Callable[[Floats], Floats]
) -> dict[str, Any]:
    """Return the share of utterances that get their own name, and the number that get another."""
    answers = [
        (answer(gallery, model, degrade(clip)), name) for name, voice_draw in draws.items() for clip in voice_draw.ask
    ]
    return {
        **share([(answered == name, name) for answered, name in answers]),
        "as_another": sum(answered not in (None, name) for answered, name in answers),
    }


def add_flaw(pcm: Floats, added: Callable[[int], Floats]) -> Floats:
    mixed: Floats = at_rms(pcm, FLAWED_DB) + added(len(pcm))
    return mixed


def offset(samples: int, by: float) -> Floats:
    return np.full(samples, by, np.float32)


def hum(samples: int, hertz: float, db: float) -> Floats:
    wave = np.sqrt(2) * 10 ** (db / 20) * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)
    return wave.astype(np.float32)


def hiss(samples: int, db: float) -> Floats:
    return (10 ** (db / 20) * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


def at_level(pcm: Floats, db: float) -> Floats:
    return pcm * np.float32(10 ** (db / 20) / np.abs(pcm).max())


def at_rms(pcm: Floats, db: float) -> Floats:
    return pcm * np.float32(10 ** (db / 20) / np.sqrt(np.square(pcm).mean()))


def answer(gallery: Gallery, model: Model, pcm: Floats) -> str | None:
    try:
        return gallery.match(embed_query(model, pcm, "speaker", "an utterance")).name
    except AudioError:  # too little voice: nobody is named
        return None


def words(cache: Path) -> list[dict[str, Any]]:
    """Ask about half of the digits; the other half is enrolled in the arm that also enrolls words."""
    spoken, model, digits = handover.Voices(), load("speakers"), load("digits")
    answers_by_arm: dict[str, list[tuple[str, str | None, bool]]] = defaultdict(
        list
    )  # who said a word, who was named, is enrolled
    nearest: dict[str, list[bool]] = defaultdict(list)  # whether an own word is nearest to its name
    for number in range(DRAWS):
        rng = np.random.default_rng(number)
        names = [str(name) for name in rng.permutation(spoken.names)[:ENROLLED]]
        order = [str(word) for word in rng.permutation(spoken.digits)]
        enrolled_words, query_words = order[: len(order) // 2], order[len(order) // 2 :]
        for arm in ("sentences", "sentences and words", "sentences, level 0.5"):
            own = dict.fromkeys(names, BY_HAND) if arm.endswith("0.5") else {}
            with gallery_of(model, own) as gallery:
                handover.enroll(gallery, model, spoken, names)
                if arm == "sentences and words":
                    enroll_words(gallery, model, spoken, names, enrolled_words)
                tap = SpeakerTap(model, gallery)
                for voice in spoken.names:
                    for word in query_words:
                        clip = spoken.clips[voice][word]
                        answers_by_arm[arm] += [(voice, name, voice in names) for name in named(digits, tap, clip)]
                        if voice in names:
                            match = gallery.match(model.embed(remove_pauses(clip, RATE), RATE))
                            nearest[arm].append(match.nearest == voice)
        print(f"draw {number + 1} of {DRAWS}", flush=True)
    rows = []
    for arm, answers in answers_by_arm.items():
        rows.append(
            {
                "enrolled": arm,
                "own_words": share([(name == voice, voice) for voice, name, known in answers if known]),
                "own_words_as_another": sum(name not in (None, voice) for voice, name, known in answers if known),
                "strangers_words_named": share(
                    [(name is not None, voice) for voice, name, known in answers if not known]
                ),
                "own_words_nearest_to_their_name": round(sum(nearest[arm]) / len(nearest[arm]), 4),
            }
        )
        print(rows[-1], flush=True)
    return rows


def enroll_words(
    gallery: Gallery, model: Model, spoken: handover.Voices, names: list[str], word_list: list[str]
) -> None:
    """Enroll each word by itself, as it will be said, if it is long enough for a print."""
    for name in names:
        for word in word_list:
            with suppress(AudioError):
                taken = extract_prints(model, spoken.clips[name][word], "speaker", word)
                enroll(gallery, name, list(taken.embeddings), taken.seconds)


def named(digits: Model, tap: SpeakerTap, clip: Floats) -> list[str | None]:
    """Return the name given to each digit detected in `clip`, played in a quiet room."""
    audio = 1e-3 * np.random.default_rng(0).standard_normal(len(clip) + 3 * RATE)
    audio[3 * RATE // 2 :][: len(clip)] += clip
    listener = Listener([digits.stream()], "clip", RATE, taps=[tap])
    events = [*listener.take((audio.astype(np.float32), RATE)), *listener.finish()]
    return [event.speaker for event in events if isinstance(event, Detection)]


def alike(cache: Path) -> list[dict[str, Any]]:
    model = load("speakers")
    beeps, people = model.plain, model.cohort
    rows = []
    categories = [("music", music(cache)), ("drums", drumming(cache))]
    categories += [(f"voices: {origin}", speech(cache, origins)) for origin, origins in VOICES.items()]
    for category, recordings in categories:
        found = []
        for source, pcm in recordings:
            with suppress(AudioError):  # silent, or nothing like a voice, so `enroll` refuses it
                for row in extract_prints(model, pcm, "speaker", source).embeddings:
                    found.append((bool((beeps @ row).max() > (people @ row).max()), source))
        rows.append({"of": category, **share(found), "sources": len({source for _, source in found})})
        print(rows[-1], flush=True)
    return rows


def music(cache: Path) -> Iterator[tuple[str, Floats]]:
    """Yield the middle of each piece of music."""
    for path in negatives.join(cache):
        if path.name.startswith(MUSIC):
            pcm = load_clip(path, RATE)
            first = max(0, len(pcm) // 2 - round(PIECE_S * RATE) // 2)
            yield path.stem, pcm[first : first + round(PIECE_S * RATE)]


def drumming(cache: Path) -> Iterator[tuple[str, Floats]]:
    """Yield the samples of each kit, one after another."""
    kits: dict[str, list[Path]] = defaultdict(list)
    for sound in drums(cache):
        kits[sound.group].append(sound.path)
    for kit, paths in sorted(kits.items()):
        order = np.random.default_rng(0).permutation(len(paths))
        joined = np.concatenate([load_clip(sorted(paths)[at], RATE)[:RATE] for at in order[:PIECES]])
        yield kit, joined[: round(PIECE_S * RATE)]


def speech(cache: Path, origins: tuple[str, ...]) -> Iterator[tuple[str, Floats]]:
    """Yield the utterances of 3 s that test voices of some origins are enrolled and asked with."""
    for voice in voices(cache):
        if voice.split == "test" and voice.origin in origins:
            voice_draw = draw(voice, 0)
            yield from ((voice.name, clip) for clip in [*voice_draw.enroll, *voice_draw.ask])


def sounds(cache: Path) -> dict[str, Any]:
    model = load("digits")
    first_samples: dict[str, Path] = {}
    for sound in instruments(cache):
        first_samples.setdefault(sound.group, sound.path)  # one sample per instrument
    prints = {
        name: list(extract_prints(model, load_clip(path, RATE), "sound", name).embeddings)
        for name, path in first_samples.items()
    }
    queries = {name: embed_query(model, load_clip(path, RATE), "sound", name) for name, path in first_samples.items()}
    matched_others = []
    for name, rows in prints.items():
        with gallery_of(model) as gallery:
            enroll(gallery, name, rows, 1.0)
            matched_others += [
                (gallery.match(query).name == name, other) for other, query in queries.items() if other != name
            ]
    speech_voices = handover.Voices()
    word_embeddings = [model.embed(clip, RATE) for clips in speech_voices.clips.values() for clip in clips.values()]
    warning_level = (1 + Levels.of(model.contract, None, None).threshold) / 2
    return {
        "instruments": len(prints),
        "others_told_as_it": share(matched_others),
        "warned_of_instruments": like_a_beep([row for rows in prints.values() for row in rows], model, warning_level),
        "warned_of_words": like_a_beep(word_embeddings, model, warning_level),
    }


def like_a_beep(rows: list[Floats], model: Model, level: float) -> dict[str, Any]:
    similar = (np.stack(rows) @ model.plain.T).max(axis=1) >= level
    return {"share": round(float(similar.mean()), 4), "n": len(rows)}


def few(cache: Path) -> list[dict[str, Any]]:
    spoken = read_manifest(DATA / "words" / "manifest.csv").clips
    voices = sorted({clip.group for clip in spoken if clip.split == "test"})
    rows = []
    for seed, classes in enumerate(FEW):
        with tempfile.TemporaryDirectory() as folder:
            lines = [f"{clip.path},{clip.label},{clip.group},{clip.split}" for clip in spoken if clip.label in classes]
            manifest = Path(folder) / "words.csv"
            manifest.write_text("\n".join(["path,label,group,split", *lines]))
            train(
                manifest,
                Path(folder) / "run",
                Recipe(epochs=4, soup=1, probe_views=1, frozen_baseline=False, seed=seed),
            )
            run = runs.read_run(Path(folder) / "run")
            corpus = runs.run_corpus(run)
            exported = export_run(run, corpus, Path(folder) / "few.onnx", quantize=False, force=True, say=print)
            model = load(exported.path)
        chosen = cohort_rows(corpus, seed)
        cohort, targets = gallery_cohort("sound", model.cohort, corpus.training_clips().targets[chosen], model.quiet)
        val = np.stack([model.embed(clip, RATE) for clip in corpus.val.pcm])
        of_trained = enrollment_prior(val, corpus.val.targets, cohort, targets, seed)
        heard = {
            word: np.stack(
                [model.embed(load_clip(DATA / "words" / word / f"{voice}.ogg", RATE), RATE) for voice in voices]
            )
            for word in UNHEARD
        }
        enroll = exported.contract.calibration["enroll"]
        rows.append(
            {
                "trained": list(classes),
                "trained_words_only": name_unheard(heard, cohort, of_trained, seed),
                "with_altered_clips": name_unheard(heard, cohort, enroll, seed),
            }
        )
        print(rows[-1], flush=True)
    return rows


def name_unheard(heard: dict[str, Floats], cohort: Floats, prior: dict[str, Any], seed: int) -> dict[str, Any]:
    """Enroll each word of `heard` (`[voices, dim]` each) from three voices; return what gets its name at a prior."""
    levels = Levels(prior["threshold"], prior["margin"], prior["genuine"])
    own, strangers = [], []
    for word, rows in heard.items():
        order = np.random.default_rng(seed).permutation(len(rows))
        matcher = Matcher([word], [0] * 3, rows[order[:3]], cohort, levels=levels)
        own += [(matcher.match(row).name is not None, word) for row in rows[order[3:]]]
        strangers += [
            (matcher.match(row).name is not None, word) for other in heard if other != word for row in heard[other]
        ]
    return {"threshold": prior["threshold"], "own_found": share(own), "strangers_named": share(strangers)}


def streams(cache: Path) -> dict[str, Any]:
    model = load("digits")
    clips_of_words = read_manifest(DATA / "words" / "manifest.csv").clips
    voices = sorted({clip.group for clip in clips_of_words if clip.split == "test"})
    rest = [voice for voice in voices if voice not in SPEAKERS]
    words = sorted({path.name for path in (DATA / "words").iterdir() if path.is_dir()} - set(model.labels))
    nine = [*SPEAKERS, *sorted({clip.group for clip in clips_of_words if clip.split == "val"})]
    paths, kept = negatives.join(cache), RowCache(cache / "tasks" / "enrollment", "embedding")
    recordings = score_recordings(model, paths, kept, lambda *done: None)
    rows: list[dict[str, Any]] = []
    for word in words:
        clips = {voice: load_clip(DATA / "words" / word / f"{voice}.ogg", RATE) for voice in [*nine, *rest]}
        own = [row for voice in SPEAKERS for row in extract_prints(model, clips[voice], "sound", word).embeddings]
        more = [row for voice in nine for row in extract_prints(model, clips[voice], "sound", word).embeddings]
        hidden = [clip_rows(model, clips[voice], "embedding") for voice in rest]
        contract, of_clips, heard, found = hear_name(model, word, own, recordings, hidden)
        of_many, _, heard_by_many, found_by_many = hear_name(model, word, more, recordings, hidden)
        level, level_of_many = (one.thresholds[word]["on"] for one in (contract, of_many))
        rows.append(
            {
                "word": word,
                "clip": at_stream_level(contract, of_clips, heard, found),
                "default": at_stream_level(contract, level, heard, found),
                "default_of_nine": at_stream_level(of_many, level_of_many, heard_by_many, found_by_many),
            }
        )
        halves = [calibrated_half(contract, heard[half::2], heard[1 - half :: 2], found) for half in (0, 1)]
        rows[-1]["calibrated"] = {
            "threshold": round(float(np.mean([one["threshold"] for one in halves])), 4),
            "false_accepts": sum(one["false_accepts"] for one in halves),
            "found": round(float(np.mean([one["found"] for one in halves])), 4),
        }
        print(rows[-1], flush=True)
    hours = sum(recording.seconds for recording in recordings) / 3600
    return {
        "voices": len(rest),
        "hours": round(hours, 3),
        "calibrated_for_fa_per_hour": STREAM_TARGET,
        "all_words": {
            level: {
                "found": round(float(np.mean([row[level]["found"] for row in rows])), 4),
                "fa_per_hour": round(float(np.mean([row[level]["false_accepts"] for row in rows])) / hours, 3),
                "most_fa_per_hour": round(max(row[level]["false_accepts"] for row in rows) / hours, 3),
            }
            for level in ("clip", "default", "default_of_nine", "calibrated")
        },
        "words": rows,
    }


def hear_name(
    model: Model, word: str, prints: list[Floats], recordings: list[Recording], clips: list[Floats]
) -> tuple[Contract, float, list[Recording], list[Floats]]:
    """Enroll `prints`; return the contract of the name, its threshold for clips, and its scores of recordings and clips."""
    with gallery_of(model) as gallery:
        enroll(gallery, word, prints, 1.0)
        of_clips = gallery.matcher.match(prints[0]).threshold
        contract = names_contract(model.contract, gallery.matcher)
        with Gallery.open(gallery.path, model, threshold=-1.0) as unlimited:
            heard = name_recordings(recordings, unlimited.matcher)
            found = [name_rows(rows, unlimited.matcher) for rows in clips]
    return contract, of_clips, heard, found


def at_stream_level(
    contract: Contract, level: float, negative: list[Recording], positive: list[Floats]
) -> dict[str, Any]:
    """Return the hits of the one name of `contract` at a level: false ones, and the share of clips that are found."""

    def hits(rows: Floats) -> int:
        detector = Detector(
            [level],
            [level],
            smoothing_hops=1,
            min_hops=contract.min_hops,
            refractory_hops=seconds_to_hops(contract, contract.refractory_s),
        )
        return len(detector.push(rows))

    return {
        "threshold": round(level, 4),
        "false_accepts": sum(hits(piece) for recording in negative for piece in recording.pieces),
        "found": round(float(np.mean([hits(rows) > 0 for rows in positive])), 4),
    }


def calibrated_half(
    contract: Contract, half: list[Recording], judged: list[Recording], positive: list[Floats]
) -> dict[str, Any]:
    """Return what `calibrate` sets the name's level to by half of the recordings, judged on the other half."""
    chosen = choose_operating_point(count_false_accepts(contract, half, release=1.0), STREAM_TARGET)
    level = max(float(chosen.thresholds[0]), contract.thresholds[contract.labels[0]]["on"])
    return at_stream_level(contract, level, judged, positive)


def share(hits: list[tuple[bool, str]]) -> dict[str, Any]:
    """Return the share of hits, with an interval that accounts for differences between groups."""
    correct, groups = zip(*hits, strict=True)
    low, high = grouped_share_interval(correct, groups)
    return {
        "share": round(sum(correct) / len(correct), 4),
        "hits": sum(correct),
        "n": len(correct),
        "interval": [round(low, 4), round(high, 4)],
    }


@contextmanager
def gallery_of(model: Model, thresholds: dict[str, float] | None = None) -> Iterator[Gallery]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Gallery.open(Path(folder) / "names.db", model, create=True, thresholds=thresholds) as gallery,
    ):
        yield gallery


def enroll(gallery: Gallery, name: str, rows: list[Floats], seconds: float) -> None:
    """Enroll even a voice with less than 4 s, because some volunteers speak little."""
    gallery.enroll(name, np.stack(rows), sources=[name] * len(rows), voiced_s=seconds, carried=True)


FLAWS: dict[str, Callable[[int], Floats]] = {
    **{f"DC offset {by}": partial(offset, by=by) for by in (0.005, 0.02, 0.05)},
    **{
        f"hum of {hertz} Hz at {db} dBFS": partial(hum, hertz=hertz, db=db)
        for hertz, db in ((50, -50), (50, -40), (60, -40), (50, -30), (100, -40))
    },
    "hiss at -60 dBFS": partial(hiss, db=-60.0),
}
SECTIONS: dict[str, Callable[[Path], Any]] = {
    section.__name__: section for section in (cost, levels, flaws, words, alike, sounds, few, streams)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    args = parser.parse_args()
    result = json.loads(OUT.read_text()) if OUT.is_file() else {}
    for section in args.sections:
        result[section] = SECTIONS[section](args.cache)
        sections = {name: result[name] for name in SECTIONS if name in result}
        write_json(OUT, {"command": "python -m benchmarks.enrollment", **sections, **machine()})
        print(section, json.dumps(result[section]), flush=True)


if __name__ == "__main__":
    main()
