"""`train`: from a manifest to a run directory. Stage 1 (one objective), then stage 2 (the dual probe) on the result."""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from confit_edge import files, runs
from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.data.effects import SYNTHETIC
from confit_edge.data.manifest import sound_files
from confit_edge.data.others import WORDS
from confit_edge.data.tables import check_utf8
from confit_edge.encoders import is_folder, pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import embed_clips
from confit_edge.encoders.own import check_encoder, copy_of
from confit_edge.pairtune.curves import Curves
from confit_edge.pairtune.distill import TeachingRun
from confit_edge.pairtune.distributed import Ranks, join
from confit_edge.pairtune.lr_search import choose_lr, remove_search_files
from confit_edge.pairtune.machine import (
    keep_freed_memory,
    out_of_memory_explained,
    pick_precision,
    random_state_restored,
    remarks_on_machine,
)
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.remarks import (
    count_firing,
    describe_data,
    note,
    note_other_window,
    remarks,
    report_left_out,
    warn_about_unlabelled,
)
from confit_edge.pairtune.resuming import (
    agreed_started_training,
    check_out,
    check_same_on_all_processes,
    check_same_training,
    device_change_note,
    lock_run,
)
from confit_edge.pairtune.trainer import Fitted, fit, prepared_training
from confit_edge.pairtune.validation import head_probe
from confit_edge.probes.dual import DualProbe, dual_probe, score
from confit_edge.probes.metrics import merit_name
from confit_edge.progress import Watcher, ignore_event, report_probe_progress
from confit_edge.recipe import Recipe
from confit_runtime.files import make_folder
from confit_runtime.formatting import format_count

# with fewer than FEW training clips of classes that fire, SOUP_OF_FEW trainings are averaged
FEW, SOUP_OF_FEW = 100, 4


@dataclass
class Trained:
    """A finished training in memory; `baseline` is the dual probe on the untrained encoder (None if not requested)."""

    info: runs.RunInfo
    encoder: Encoder
    fitted: Fitted
    probes: DualProbe
    baseline: DualProbe | None
    metrics: dict[str, Any]


def train(
    manifest: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    watch: Watcher | None = None,
    teaching: TeachingRun | None = None,
) -> Trained | None:
    """Train and write the run `out`; returns None when `resume` finds it already finished.

    A killed training loses at most the epoch it was in: the same call with `resume=True` ends with the same weights as
    an uninterrupted one. If a launcher started several processes, all of them train and probe; only the first writes
    files and calls `watch`. `tensorboard` also writes curves into the run. With `teaching`, the encoder is the student.
    Raises UsageError when `out` holds something else, or another process trains there.
    """
    # needed only after hours of training: if one is missing, fail here, before anything is written
    import sklearn.linear_model  # noqa: F401

    from confit_edge.geometry import plots  # noqa: F401

    manifest, out = Path(manifest), Path(out)
    ranks = join(recipe.device)
    ranks.check_same_command("distill" if teaching else "train", resume)
    notify = watch if watch and ranks.main else ignore_event
    recipe = resolved_recipe(recipe, ranks.device)
    check_utf8(manifest.resolve())  # run.json names it, but is only written after hours
    with lock_run(out, ranks), random_state_restored(ranks.device):
        with ranks.share_errors():
            check_out(out, resume)
        return _train(
            manifest, out, recipe, ranks=ranks, resume=resume, tensorboard=tensorboard, notify=notify, teaching=teaching
        )


def _train(
    manifest: Path,
    out: Path,
    recipe: Recipe,
    *,
    ranks: Ranks,
    resume: bool,
    tensorboard: bool,
    notify: Watcher,
    teaching: TeachingRun | None,
) -> Trained | None:
    """Train in a folder that is locked for this training."""
    with ranks.share_errors():
        encoder, corpus = _read(manifest, recipe, notify)
    data = describe_data(manifest, corpus, encoder.sample_rate)
    report_left_out(corpus.problems, ranks, notify)
    for text in [*remarks(corpus, data), *remarks_on_machine(recipe.precision, ranks.device)]:
        note(notify, text)
    if teaching:
        with ranks.share_errors():
            teaching.check_corpus(corpus)
        warn_about_unlabelled(corpus, teaching, notify)
    elif recipe.soup is None:
        recipe = _with_soup(recipe, corpus, notify)
    started = {
        "recipe": recipe.to_dict(),
        "fingerprint": corpus.fingerprint,
        "order": corpus.order,
        "distilled": teaching.about if teaching else None,
        "chosen_by": merit_name(multi_label=corpus.multi_label),
        "processes": ranks.count,
        "device": ranks.device.type,
        "encoder_sha256": runs.weights_sha256(encoder),
    }
    check_same_on_all_processes(ranks, started, corpus)
    finished = ranks.exists_for_all(out / "run.json")
    if resume:
        _check_resumed(out, started, ranks, notify)
    if finished:
        return None
    _check_trainable(encoder, corpus, recipe, teaching)
    beginning = out / "started.json"
    curves = Curves(out / "tensorboard", notify) if tensorboard and ranks.main else None
    with ranks.share_errors():  # by now every process has looked into `out`, and the first may write there
        check_out(out, resume)  # without a lock (Windows), another training may have started meanwhile
    with ranks.share_errors():
        if ranks.main:
            make_folder(out)
            files.write_text(beginning, json.dumps(started, indent=2))
    # also around the probe of the frozen encoder, which benefits too
    with (
        out_of_memory_explained(),
        keep_freed_memory(),
        contextlib.closing(curves) if curves else contextlib.nullcontext(),
    ):
        trained = _train_and_probe(
            encoder,
            corpus,
            recipe,
            data=data,
            device=ranks.device,
            checkpoint=out / runs.CHECKPOINT,
            name=out.name,
            watch=curves or notify,
            teaching=teaching,
        )
    if ranks.main:
        save(trained, corpus, out, notify)
        files.remove(out / runs.CHECKPOINT)
        remove_search_files(out)
        beginning.unlink()
    return trained


def _read(manifest: Path, recipe: Recipe, notify: Watcher) -> tuple[Encoder, Corpus]:
    """The untrained encoder, and the clips at its rate."""
    if recipe.rooms and recipe.rooms != SYNTHETIC:
        sound_files(Path(recipe.rooms), "--rooms")  # before anything is decoded and probed
    encoder = pretrained(recipe.encoder, recipe.window, **recipe.encoder_options())
    note_other_window(encoder, recipe, notify)
    corpus = read_corpus(
        manifest,
        rate=encoder.sample_rate,
        strict=recipe.strict,
        progress=lambda done, total: notify({"stage": "decode", "done": done, "total": total}),
        **recipe.corpus_options(),
    )
    return encoder, corpus


def _with_soup(recipe: Recipe, corpus: Corpus, notify: Watcher) -> Recipe:
    """The recipe with `soup` decided; says so where several trainings are averaged."""
    recipe = replace(recipe, soup=trainings(recipe, corpus))
    if recipe.trainings > 1:
        note(
            notify,
            f"few training clips: averaging {recipe.trainings} trainings of {format_count(recipe.epochs, 'epoch')} each"
            " (--soup 1 for a single one)",
        )
    return recipe


def _check_resumed(out: Path, started: dict[str, Any], ranks: Ranks, notify: Watcher) -> None:
    """Raise UsageError where `out` holds a training that is not this one; says where it holds none."""
    if before := agreed_started_training(out, ranks):
        check_same_training(out, before, started)
        if elsewhere := device_change_note(before, started):
            note(notify, elsewhere)
    else:
        note(notify, f"{out}: no training to resume there; starting a new one")


def _check_trainable(encoder: Encoder, corpus: Corpus, recipe: Recipe, teaching: TeachingRun | None) -> None:
    """Raise UsageError, before anything is written or probed, where the encoder or batches do not suit the recipe."""
    lr, epochs = encoder.learning_rate, recipe.epochs
    with (
        out_of_memory_explained(),
        prepared_training(copy.deepcopy(encoder), corpus, recipe, lr=lr, epochs=epochs, teaching=teaching),
    ):
        pass  # prepare the training without running it


def resolved_recipe(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with absolute paths, so that it holds from any folder, and with `auto` precision decided.

    Raises UsageError where a path is not UTF-8.
    """
    return replace(
        recipe,
        encoder=absolute(recipe.encoder) if is_folder(recipe.encoder) else recipe.encoder,
        precision=pick_precision(recipe.precision, device),
        background=tuple(map(absolute, recipe.background)),
        others=tuple(place if place == WORDS else absolute(place) for place in recipe.others),
        rooms=absolute(recipe.rooms) if recipe.rooms and recipe.rooms != SYNTHETIC else recipe.rooms,
    )


def absolute(place: str | Path) -> str:
    """A path as run.json records it. Raises UsageError where it is not UTF-8."""
    path = Path(place).resolve()
    check_utf8(path)
    return str(path)


def trainings(recipe: Recipe, corpus: Corpus) -> int:
    """The number of trainings to average where the recipe leaves it open: several with few clips, else one.

    Always one with `patience`, with adapters (their mean is not the mean of the weights they make), and for a frozen
    encoder. With twelve clips a word, four averaged trainings found 88 % of the words and one 79 %, both with as many
    false accepts, at the exported thresholds; calibrated to the same rate of false accepts, they found fewer words at
    10 dB (benchmarks/results/fewclips.json).
    """
    able = recipe.freeze != "all" and not recipe.lora_rank and not recipe.patience
    return SOUP_OF_FEW if able and count_firing(corpus.train, corpus)["clips"] < FEW else 1


def train_corpus(
    encoder: Encoder,
    corpus: Corpus,
    recipe: Recipe,
    *,
    manifest: str | Path,
    device: torch.device,
    name: str,
    checkpoint: str | Path | None = None,
    watch: Watcher | None = None,
    teaching: TeachingRun | None = None,
) -> Trained:
    """Train a copy of `encoder` on a corpus in memory, as `train` does, writing nothing but the checkpoint.

    Raises UsageError where the encoder does not follow its protocol, and where the corpus has another sample rate than
    the encoder, is not finite, or lacks training clips of a class.
    """
    check_encoder(encoder)
    encoder = copy_of(encoder)
    corpus.check_rate(encoder.sample_rate)
    corpus.check_training_clips()
    corpus.check_finite()
    data = describe_data(Path(manifest), corpus, encoder.sample_rate)
    with keep_freed_memory(), random_state_restored(device):
        return _train_and_probe(
            encoder,
            corpus,
            recipe,
            data=data,
            device=device,
            name=name,
            checkpoint=Path(checkpoint) if checkpoint else None,
            watch=watch,
            teaching=teaching,
        )


def _train_and_probe(
    encoder: Encoder,
    corpus: Corpus,
    recipe: Recipe,
    *,
    data: dict[str, Any],
    device: torch.device,
    name: str,
    checkpoint: Path | None,
    watch: Watcher | None,
    teaching: TeachingRun | None,
) -> Trained:
    """Train `encoder` in place on a corpus that `data` describes, and probe it."""
    start_sha256 = runs.weights_sha256(encoder)
    encoder.to(device)
    notify = watch or ignore_event
    probing = partial(dual_probe, encoder, corpus, recipe, device)
    baseline = (
        probing(progress=partial(report_probe_progress, notify, "the frozen encoder"))
        if recipe.frozen_baseline
        else None
    )
    lr = choose_lr(encoder, corpus, recipe, watch, teaching, checkpoint.parent if checkpoint else None)
    fitted = fit(
        encoder,
        corpus,
        recipe,
        lr=lr,
        epochs=recipe.epochs,
        checkpoint_path=checkpoint,
        watch=watch,
        teaching=teaching,
    )
    probes = probing(progress=partial(report_probe_progress, notify, "the trained encoder"))
    epochs, planned = len(fitted.history), recipe.epochs * recipe.trainings
    metrics: dict[str, Any] = {
        "probes": probes.metrics,
        "training": {"epochs": epochs, "planned": planned, "ended_early": epochs < planned},
    }
    if baseline:
        metrics["frozen"] = baseline.metrics
    if teaching:
        metrics["teacher"] = teaching.metrics
    if isinstance(fitted.objective, FineTune):
        head, test = head_probe(fitted.objective), probes.test_embeddings
        val = embed_clips(encoder, corpus.val.pcm, device)
        metrics["head"] = {
            "val": score(head.scores(val), corpus.val, corpus, recipe.seed),
            "test": score(head.scores(test), corpus.test, corpus, recipe.seed),
        }
    info = runs.RunInfo(
        name=name,
        recipe=recipe.to_dict(),
        encoder=encoder.spec(),
        classes=corpus.classes,
        unknown=corpus.unknown,
        multi_label=corpus.multi_label,
        lr=lr,
        kept_epoch=fitted.kept_epoch + 1,
        data=data,
        distilled=teaching.about if teaching else None,
        encoder_sha256=start_sha256,
        versions=runs.versions(),
    )
    return Trained(info, encoder, fitted, probes, baseline, metrics)


def save(trained: Trained, corpus: Corpus, out: str | Path, notify: Watcher) -> None:
    """Write the run directory with its card, then its plots; a plot that fails only causes a warning."""
    from confit_edge.card import run_card
    from confit_edge.geometry import plots

    out = Path(out)
    runs.write_run(
        out,
        trained.info,
        encoder=trained.encoder,
        projection=trained.fitted.objective.state_dict(),
        linear=trained.probes.linear,
        knn=trained.probes.knn,
        typicality=trained.probes.typicality,
        metrics=trained.metrics,
        history=trained.fitted.history,
        card=run_card(trained.info, trained.metrics),
    )
    learning, confusion = (out / "plots" / f"{name}.png" for name in ("learning", "confusion"))
    with plots.report_failed_plot(learning, partial(note, notify)):
        learning.parent.mkdir(exist_ok=True)
        plots.learning_curves({trained.info.recipe["objective"]: trained.fitted.history}, learning)
    if len(corpus.test) and not corpus.multi_label:
        predicted = trained.probes.linear.scores(trained.probes.test_embeddings).argmax(axis=1)
        with plots.report_failed_plot(confusion, partial(note, notify)):
            plots.confusion_matrix(corpus.test.labels, predicted, corpus.classes, confusion)
