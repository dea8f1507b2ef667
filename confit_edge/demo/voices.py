"""The demo's step on voices: recognise enrolled voices and refuse strangers, with a word encoder and the speaker model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from confit_edge.data.manifest import Clip, Manifest, read_manifest, write_manifest
from confit_edge.demo.steps import Demo, recipe, seconds_in
from confit_edge.pairtune.session import train
from confit_edge.probes.metrics import accuracy
from confit_edge.runs import read_run, run_corpus
from confit_export.export import export_run
from confit_runtime.audio import Pcm, load_clip
from confit_runtime.enrollment import embed_query, extract_prints
from confit_runtime.gallery import Gallery
from confit_runtime.model import load


def recognise_voices(demo: Demo) -> dict[str, Any]:
    """PairTune an encoder on voices, enroll two voices with it, and ask it for them and for strangers."""
    demo.print_step(
        "9. Voices",
        "The same encoder, PairTuned to distinguish the training voices instead of the words (--label-column group --split-by"
        " label). Two voices that are not in training are then enrolled from ten words each, and tested with other words.",
    )
    every = read_manifest(demo.data / "words" / "manifest.csv")
    path = demo.out / "voices.csv"
    kept = tuple(clip for clip in every.clips if clip.split == "train")
    write_manifest(replace(every, clips=kept, source=path), path)
    settings = recipe(
        demo,
        epochs=min(3, demo.epochs),
        soup=1,
        speed=0.0,  # another speed would be another voice
        label_column="group",
        split_by="label",
        frozen_baseline=False,
        probe_views=1,
        classes_per_batch=30,
    )
    train(path, demo.out / "runs" / "voices", settings, watch=demo.watch)
    run = read_run(demo.out / "runs" / "voices")
    # only its embeddings are used, not its scores: no gate to pass, no thresholds worth printing
    exported = export_run(
        run, run_corpus(run), demo.out / "voices.onnx", quantize=False, license="Apache-2.0", say=lambda _: None
    )
    return ask_for_voices(demo, every, exported.path)


def ask_for_voices(demo: Demo, every: Manifest, model_path: Path) -> dict[str, Any]:
    """Enroll two random test voices, then ask with words that were not enrolled, spoken by them and by all other test voices."""
    model = load(model_path)
    rng = np.random.default_rng([demo.seed, 22])
    test = [clip for clip in every.clips if clip.split == "test"]
    voices = sorted({clip.group for clip in test})
    pair = [voices[index] for index in sorted(rng.choice(len(voices), 2, replace=False))]
    words = rng.permutation(sorted({clip.label for clip in test}))
    # ten, because five words hold less than the 4 s that a gallery of voices needs for a name
    heard, asked = set(words[:10]), set(words[10:])
    with Gallery.open(demo.out / "voices.db", model, create=True) as gallery:
        for voice in pair:
            clips = [clip for clip in test if clip.group == voice and clip.label in heard]
            embeddings = np.stack([model.embed(clip.path) for clip in clips])
            gallery.enroll(voice, embeddings, sources=[clip.path.name for clip in clips], voiced_s=seconds_in(clips))
        queries = [clip for clip in test if clip.label in asked]
        matches = {clip: gallery.match(model.embed(clip.path)) for clip in queries}
    own = [clip for clip in queries if clip.group in pair]
    strangers = [clip for clip in queries if clip.group not in pair]
    named = sum(matches[clip].name == clip.group for clip in own)
    mistaken = sum(matches[clip].name not in (None, clip.group) for clip in own)
    refused = sum(matches[clip].name is None for clip in strangers)
    nearer = np.array([matches[clip].nearest == clip.group for clip in own])
    forced = accuracy(nearer, [clip.label for clip in own])
    accepted, let_in = named / len(own), 1 - refused / len(strangers)
    verdict = "better than chance" if forced.low > 0.5 else "no better than chance"
    informed = "carries information" if accepted > let_in + 0.1 else "is no better than chance"
    for paragraph in (
        f"{pair[0]} and {pair[1]}: {named} of {len(own)} clips named correctly, {mistaken} mistaken for the other, the rest"
        " 'unknown'.",
        f"Asked only which of the two is nearer: {forced} right ({verdict}; chance is 50 %).",
        f"Strangers: {refused} of {len(strangers)} clips of {len(voices) - 2} other voices answered 'unknown'. The answer"
        f" 'unknown' {informed}: {100 * accepted:.0f} % of the enrolled voices' clips are accepted under their own name,"
        f" and {100 * let_in:.0f} % of the strangers' clips under either name.",
        "One word of 0.7 s is very little to recognise a voice by, and this encoder was made for words.",
    ):
        demo.say(fill(paragraph, 100))
    return {
        "speaker_model": ask_speaker_model(demo, test, pair),
        "voices": pair,
        "correct": named,
        "n": len(own),
        "mistaken": mistaken,
        "nearer_correct": int(nearer.sum()),
        "nearer_interval": [forced.low, forced.high],
        "better_than_chance": forced.low > 0.5,
        "unknown_correct": refused,
        "unknown_n": len(strangers),
    }


def ask_speaker_model(demo: Demo, test: list[Clip], pair: list[str]) -> dict[str, int]:
    """Do the same with the `speakers` model that ships: enroll from fifteen words, ask with three others at a time."""
    model = load("speakers")
    rate, rng = model.contract.sample_rate, np.random.default_rng([demo.seed, 23])
    said = {(clip.group, clip.label): clip for clip in test}
    words = rng.permutation(sorted({label for _, label in said}))
    threes = [words[at : at + 3] for at in range(15, len(words) - 2, 3)]

    def sentence(voice: str, labels: Iterable[str]) -> Pcm:
        return np.concatenate([load_clip(said[voice, label].path, rate) for label in labels])

    with Gallery.open(demo.out / "speakers.db", model, create=True) as gallery:
        for voice in pair:
            # ten words of some voices are less than 4 s
            prints = extract_prints(model, sentence(voice, words[:15]), "speaker", voice)
            gallery.enroll(voice, prints.embeddings, sources=[voice] * len(prints.embeddings), voiced_s=prints.seconds)
        answers = [
            (voice, gallery.match(embed_query(model, sentence(voice, three), "speaker", voice)).name)
            for voice in sorted({clip.group for clip in test})
            for three in threes
        ]
    own = [name == voice for voice, name in answers if voice in pair]
    strangers = [name is None for voice, name in answers if voice not in pair]
    mistaken = sum(name not in (None, voice) for voice, name in answers if voice in pair)
    demo.say(
        fill(
            "The speaker model that ships (`speakers`), enrolled from fifteen words of each voice and tested with three other"
            f" words at a time: {sum(own)} of {len(own)} such sentences named correctly, {mistaken} mistaken for the other;"
            f" {sum(strangers)} of {len(strangers)} by strangers answered 'unknown'. To recognise people, use this model.",
            100,
        )
    )
    return {
        "correct": sum(own),
        "n": len(own),
        "mistaken": mistaken,
        "unknown_correct": sum(strangers),
        "unknown_n": len(strangers),
    }
