"""The last stage of an export: cohort, quiet rooms, thresholds, and the prior for names that a device enrolls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from confit_edge.data.corpus import Corpus
from confit_edge.runs import Run
from confit_export import thresholds
from confit_export.enrollment import (
    FALSE_ACCEPT_RATE,
    MIN_CLASSES,
    MIN_TRIALS,
    altered,
    enrollment_prior,
    gallery_cohort,
    stream_threshold,
)
from confit_export.measure import isolated_positives
from confit_export.model_file import load_provisional, replace_embeddings
from confit_export.rooms import embed_rooms
from confit_export.search import Say
from confit_export.thresholds import LOWEST_LEVEL, SNR_DB, Setting
from confit_runtime.contract import Contract
from confit_runtime.describe import clip_noun
from confit_runtime.enrollment import Kind
from confit_runtime.formatting import format_count
from confit_runtime.matcher import refuses_own_sounds
from confit_runtime.model import Model


def finish(
    run: Run,
    corpus: Corpus,
    out: Path,
    graph: onnx.ModelProto,
    contract: Contract,
    windows: np.ndarray,
    rows: list[int],
    kind: Kind,
    say: Say,
) -> Contract:
    """Put the cohort and the quiet rooms into the graph; return the contract with thresholds and the prior for names.

    Both are chosen on validation.
    """
    seed = run.recipe.seed
    # they are compared with embeddings that this very file computes, so it computes them too
    embedder = load_provisional(out, graph, contract)
    cohort = np.stack([embedder.embed(window, contract.sample_rate) for window in windows])
    quiet = embed_rooms(embedder)
    replace_embeddings(graph, "cohort", cohort)
    replace_embeddings(graph, "quiet", quiet)
    chosen = thresholds.choose(load_provisional(out, graph, contract), corpus, seed=seed)
    say(
        f"thresholds from a validation stream of {chosen.report['seconds'] / 60:.1f} minutes: "
        f"{chosen.report['found']} of {chosen.report['words']} found,"
        f" {format_count(chosen.report['false_accepts'], 'false accept')}"
    )
    if not finds_half(chosen.report):
        # with the chosen detection settings, so that sounds heard alone are smoothed as in the stream
        smoothed = replace(contract, smoothing_hops=chosen.smoothing_hops, min_hops=thresholds.MIN_HOPS[0])
        reason = _explain_low_recall(chosen, load_provisional(out, graph, smoothed), corpus)
        say(
            f"warning: a device would hear {reason}. Train with"
            f" {'' if corpus.background_train else '--background, or with '}more clips from more voices (or machines, or rooms),"
            " cut to their sound. For enrolled names the model may be good enough as it is"
        )
    val = np.stack([embedder.embed(clip, contract.sample_rate) for clip in corpus.val.pcm])
    cohort_and_targets = gallery_cohort(kind, cohort, corpus.training_clips().targets[rows], quiet)

    def embed_altered(row: int) -> np.ndarray:
        return np.stack([embedder.embed(sound, contract.sample_rate) for sound in altered(corpus.val.pcm[row])])

    prior = enrollment_prior(
        val,
        corpus.val.targets,
        *cohort_and_targets,
        seed,
        unknown_column=corpus.unknown_column,
        embed_altered=embed_altered if kind == "sound" else None,
    )
    if "false_accept_rate" not in prior:
        say(
            f"enrolled names: {format_count(int(prior['trials']), 'trial')} with validation clips of"
            f" {format_count(int(prior['classes']), 'class', 'classes')} do not show how many strangers pass for a name"
            f" (that takes {MIN_TRIALS} trials with {MIN_CLASSES} classes), so the similarity that names need,"
            f" {prior['threshold']:.2f}, is a guess: more strangers may pass than {100 * FALSE_ACCEPT_RATE:g} %"
        )
    elif refuses_own_sounds(prior):
        say(
            "warning: enrolled names will mostly be answered 'unknown': one stranger in a hundred is as similar to the prints of"
            f" a name as {prior['threshold']:.4f}, and these are to each other only {prior['genuine']:.4f}. Train with more"
            " epochs or classes, or on longer sounds"
            + ("; to recognise people, enroll them with the model that ships, `speakers`" if kind == "speaker" else "")
        )
    in_streams = None
    if kind == "sound":
        listener = load_provisional(out, graph, replace(contract, min_hops=chosen.min_hops))
        of_clips = np.array(rows) < len(corpus.train.pcm)  # the others are from the background
        in_streams = stream_threshold(listener, cohort[of_clips], corpus.background_train + corpus.background_val)
    return replace(
        contract,
        thresholds=chosen.thresholds,
        smoothing_hops=chosen.smoothing_hops,
        min_hops=chosen.min_hops,
        calibration={
            "enroll": {
                "kind": kind,
                **prior,
                **({} if in_streams is None else {"stream_threshold": in_streams}),
            },
            "detection": chosen.report,
        },
    )


def _explain_low_recall(chosen: Setting, model: Model, corpus: Corpus) -> str:
    """Say how many sounds were found, and why the lowest threshold tried would not help: false accepts, or none more found."""
    report, lowest = chosen.report, chosen.loosest
    found_of_all, found = f"{report['found']} of {report['words']} sounds", sum(lowest.found)
    if found > report["found"]:
        false_accepts = format_count(len(lowest.false_accepts), "false accept")
        return (
            f"{found_of_all}. Lower thresholds let too much else through: at {LOWEST_LEVEL:g} it would hear {found},"
            f" with {false_accepts}"
        )
    positives = isolated_positives(model, corpus.val, corpus)
    would_fire = sum(positive.level >= LOWEST_LEVEL for positive in positives)
    noise = "the validation part of the background" if corpus.background_val else "coloured noise"
    return (
        f"{found_of_all}, and no more with lower thresholds: over {noise}, {SNR_DB:g} dB softer than the sounds, the others"
        f" do not fire even at {LOWEST_LEVEL:g}. Heard alone, {would_fire} of {len(positives)} validation"
        f" {clip_noun(model.contract)} would"
    )


def finds_half(detection: Mapping[str, Any]) -> bool:
    """Whether the model found at least half of the sounds of the validation stream; `detection` is from `calibration`."""
    return bool(2 * detection["found"] >= detection["words"])
