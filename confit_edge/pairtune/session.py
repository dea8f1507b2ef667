"""`train`: from a manifest to a run directory. Stage 1 (one objective), then stage 2 (the dual probe) on the result."""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from confit_edge import files, runs
from confit_edge.data.clips import ClipProblem
from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.data.effects import SYNTHETIC
from confit_edge.data.manifest import advice_on_background, sound_files
from confit_edge.data.names import joined, misspelt
from confit_edge.data.others import WORDS
from confit_edge.data.splits import told_from_nothing, untested
from confit_edge.data.tables import check_utf8
from confit_edge.encoders import is_folder, pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import embed_clips
from confit_edge.encoders.own import check_encoder, copy_of
from confit_edge.pairtune.curves import Curves
from confit_edge.pairtune.distill import TeachingRun
from confit_edge.pairtune.distributed import Ranks, join
from confit_edge.pairtune.machine import enough_memory, freed_memory_kept, own_draws, pick_precision, remarks_on_machine
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.rates import choose_lr, leave_nothing
from confit_edge.pairtune.resuming import (
    alone,
    begun_alike,
    check_out,
    going_on_elsewhere,
    refuse_apart,
    refuse_other_training,
)
from confit_edge.pairtune.trainer import Fitted, fit, prepared
from confit_edge.pairtune.validation import head_probe
from confit_edge.probes.dual import DualProbe, dual_probe, score
from confit_edge.probes.metrics import merit_name
from confit_edge.recipe import Recipe
from confit_edge.watching import Watcher, tell_of_probe, unwatched
from confit_runtime.cautions import cautions
from confit_runtime.files import make_folder
from confit_runtime.wording import counted, lasting, listed, some

FEW, SOUP_OF_FEW = 100, 4  # training clips of what fires; trainings that are averaged where there are fewer


@dataclass
class Trained:
    """A finished training in memory; `baseline` is the dual probe on the encoder before it (None where not asked)."""

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
    """Train and write the run `out`; None when `resume` finds it finished already.

    A training that is killed loses at most the epoch it was in: the same call with `resume=True` ends with the same
    weights as an undisturbed one. Where a launcher started several processes, all of them train and probe, and the first
    writes and tells `watch`. `tensorboard` also writes curves into the run. With `teaching` the encoder is its student.
    Raises UsageError when `out` holds something else, or another process trains there.
    """
    # what is needed after hours only: where it is missing it fails here, and nothing is written
    import sklearn.linear_model  # noqa: F401

    from confit_edge.geometry import plots  # noqa: F401

    manifest, out = Path(manifest), Path(out)
    ranks = join(recipe.device)
    ranks.refuse_other_command("distill" if teaching else "train", resume)
    tell = watch if watch and ranks.main else unwatched
    recipe = settled(recipe, ranks.device)
    check_utf8(manifest.resolve())  # which the run is to tell, after hours
    with alone(out, ranks), own_draws(ranks.device):
        with ranks.together():
            check_out(out, resume)
        return _train(
            manifest, out, recipe, ranks=ranks, resume=resume, tensorboard=tensorboard, tell=tell, teaching=teaching
        )


def _train(
    manifest: Path,
    out: Path,
    recipe: Recipe,
    *,
    ranks: Ranks,
    resume: bool,
    tensorboard: bool,
    tell: Watcher,
    teaching: TeachingRun | None,
) -> Trained | None:
    """The training in a folder that no other process trains in."""
    with ranks.together():
        if recipe.rooms and recipe.rooms != SYNTHETIC:
            sound_files(Path(recipe.rooms), "--rooms")  # before anything is decoded and probed
        encoder = pretrained(recipe.encoder, recipe.window, **recipe.encoder_options())
        _tell_of_window(encoder, recipe, tell)
        corpus = read_corpus(
            manifest,
            rate=encoder.sample_rate,
            strict=recipe.strict,
            progress=lambda done, total: tell({"stage": "decode", "done": done, "total": total}),
            **recipe.corpus_options(),
        )
    data = describe_data(manifest, corpus, encoder.sample_rate)
    tell_left_out(corpus.problems, ranks, tell)
    for text in [*remarks(corpus, data), *remarks_on_machine(recipe.precision, ranks.device)]:
        _note(tell, text)
    if teaching:
        with ranks.together():
            teaching.refuse_other(corpus)
        _tell_of_unlabelled(corpus, teaching, tell)
    elif recipe.soup is None:
        recipe = replace(recipe, soup=trainings(recipe, corpus))
        if recipe.trainings > 1:
            _note(tell, f"of so few clips {recipe.trainings} trainings are averaged (--soup 1: one)")
    started = {
        "recipe": recipe.to_dict(),
        "fingerprint": corpus.fingerprint,
        "distilled": teaching.about if teaching else None,
        "chosen_by": merit_name(multi_label=corpus.multi_label),
        "processes": ranks.count,
        "device": ranks.device.type,
        "encoder_sha256": runs.weights_sha256(encoder),
    }
    refuse_apart(ranks, started, corpus)
    finished = ranks.everywhere(out / "run.json")
    if resume:
        if before := begun_alike(out, ranks):
            refuse_other_training(out, before, started)
            if elsewhere := going_on_elsewhere(before, started):
                _note(tell, elsewhere)
        else:
            _note(tell, f"{out}: no training was begun there; this one begins")
    if finished:
        return None
    _refuse_what_cannot_begin(encoder, corpus, recipe, teaching)
    beginning = out / "started.json"
    curves = Curves(out / "tensorboard", tell) if tensorboard and ranks.main else None
    with ranks.together():  # each process has looked into `out` before the first writes there
        check_out(out, resume)  # where nothing can be locked, another may have begun meanwhile
    with ranks.together():
        if ranks.main:
            make_folder(out)
            files.write_text(beginning, json.dumps(started, indent=2))
    # before the frozen encoder is probed, which gains by it too
    with enough_memory(), freed_memory_kept(), contextlib.closing(curves) if curves else contextlib.nullcontext():
        trained = _learn(
            encoder,
            corpus,
            recipe,
            data=data,
            device=ranks.device,
            checkpoint=out / runs.CHECKPOINT,
            name=out.name,
            watch=curves or tell,
            teaching=teaching,
        )
    if ranks.main:
        save(trained, corpus, out, tell)
        files.remove(out / runs.CHECKPOINT)
        leave_nothing(out)
        beginning.unlink()
    return trained


def _refuse_what_cannot_begin(encoder: Encoder, corpus: Corpus, recipe: Recipe, teaching: TeachingRun | None) -> None:
    """Raise UsageError where encoder or batches cannot do what the recipe says: before anything is written or probed."""
    lr, epochs = encoder.learning_rate, recipe.epochs
    with enough_memory(), prepared(copy.deepcopy(encoder), corpus, recipe, lr=lr, epochs=epochs, teaching=teaching):
        pass  # made, and not run


def _note(tell: Watcher, text: str) -> None:
    tell({"stage": "note", "text": text})


def _tell_of_window(encoder: Encoder, recipe: Recipe, tell: Watcher) -> None:
    """Say so where an encoder cannot make an embedding from what --window asks for."""
    lasts_s = encoder.window / encoder.sample_rate
    if recipe.window != Recipe.window and abs(lasts_s - recipe.window) > 0.05 * recipe.window:
        nearest = f"{recipe.encoder} makes an embedding from {lasts_s:.2f} s, the nearest that it can"
        _note(tell, f"--window {recipe.window:g}: {nearest}")


def tell_left_out(problems: list[ClipProblem], ranks: Ranks, tell: Watcher) -> None:
    """Tell what was left out, on whichever process: one alone may have a clip that is damaged."""
    told: list[dict[str, Any]] = []
    for index, events in enumerate(ranks.each("clips left out", list(map(left_out, problems)))):
        new = [event for event in events if event not in told]
        told += new
        for event in new:
            tell({**event, "detail": f"on process {index}: {event['detail']}"} if index else event)


def _tell_of_unlabelled(corpus: Corpus, teaching: TeachingRun, tell: Watcher) -> None:
    """Say so where a student learns what its thresholds are set on."""
    if heard := teaching.chosen_by(corpus):
        _note(
            tell,
            f"beware: --unlabelled: background in {some(list(map(str, heard)))} is what thresholds are set on, and a"
            " student that has learnt it is too good there; give other sound",
        )


def remarks(corpus: Corpus, data: dict[str, Any]) -> Iterator[str]:
    """What a user is told of the clips before they are learnt; `data` describes them."""
    parts = (_counted(data, name) for name in ("train", "val", "test"))
    named = f"{counted(len(corpus.classes), 'class', 'classes')} ({some(corpus.classes)})"
    yield "{}: {} to train, {} to choose by, {} to test".format(named, *parts)
    if corpus.background_train:
        learnt, kept = (lasting(data[key]) for key in ("background_train_s", "background_val_s"))
        which = listed(corpus.background_kept, 4) or "the end of each recording"
        yield f"background: {learnt} to learn from, {kept} for thresholds ({which})"
    labels = Counter(label for clip in corpus.manifest.clips for label in clip.labels)
    everywhere = None if corpus.background_train else told_from_nothing(corpus.manifest)
    for suspect in [*misspelt(labels), *filter(None, [joined(labels), untested(corpus.manifest), everywhere])]:
        yield f"beware: {suspect}"
    yield from corpus.notes
    for caution in [*cautions(data), *filter(None, [advice_on_background(corpus.classes)])]:
        yield f"beware: {caution}"
    for one, other in corpus.contradictions():
        yield f"beware: {one} and {other} are the same sound with different labels; remove the wrong one"


def left_out(problem: ClipProblem) -> dict[str, Any]:
    """The event of a clip or a recording that is left out."""
    return {"stage": "problem", "path": str(problem.path), "kind": problem.kind, "detail": problem.detail}


def settled(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe as it means the same in any folder: paths absolute, as a run's manifest is, and the precision chosen.

    Raises UsageError where a path is not UTF-8.
    """
    return replace(
        recipe,
        encoder=absolute(recipe.encoder) if is_folder(recipe.encoder) else recipe.encoder,
        precision=pick_precision(recipe.precision, device),
        background=absolute(recipe.background) if recipe.background else None,
        others=absolute(recipe.others) if recipe.others and recipe.others != WORDS else recipe.others,
        rooms=absolute(recipe.rooms) if recipe.rooms and recipe.rooms != SYNTHETIC else recipe.rooms,
    )


def absolute(place: str | Path) -> str:
    """A path as a run tells it. Raises UsageError where it is not UTF-8."""
    path = Path(place).resolve()
    check_utf8(path)
    return str(path)


def trainings(recipe: Recipe, corpus: Corpus) -> int:
    """How many trainings are averaged where the recipe leaves it open: several of few clips, else one.

    Not with `patience` or adapters, which have no mean, and of an encoder that stays as it is. Of twelve clips four fired
    falsely less often than one as exported; as strict as it they found fewer at 10 dB (benchmarks/results/fewclips.json).
    """
    able = recipe.freeze != "all" and not recipe.lora_rank and not recipe.patience
    return SOUP_OF_FEW if able and _own(corpus.train, corpus)["clips"] < FEW else 1


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
    """The same on a corpus in memory, writing nothing but the checkpoint. `encoder` stays as it is: a copy is trained.

    Raises UsageError where the encoder is not as its protocol says, and where the corpus was read at another sample rate than
    the encoder's, is not finite, or lacks training clips of a class.
    """
    check_encoder(encoder)
    encoder = copy_of(encoder)
    corpus.refuse_other_rate(encoder.sample_rate)
    corpus.refuse_untaught()
    corpus.refuse_not_finite()
    data = describe_data(Path(manifest), corpus, encoder.sample_rate)
    with freed_memory_kept(), own_draws(device):
        return _learn(
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


def _learn(
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
    """Train `encoder` in place, of a corpus that `data` describes, and probe it."""
    began = runs.weights_sha256(encoder)
    encoder.to(device)
    tell = watch or unwatched
    probing = partial(dual_probe, encoder, corpus, recipe, device)
    baseline = probing(progress=partial(tell_of_probe, tell, "the frozen encoder")) if recipe.frozen_baseline else None
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
    probes = probing(progress=partial(tell_of_probe, tell, "the trained encoder"))
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
        encoder_sha256=began,
        versions=runs.versions(),
    )
    return Trained(info, encoder, fitted, probes, baseline, metrics)


def save(trained: Trained, corpus: Corpus, out: str | Path, tell: Watcher) -> None:
    """Write the run directory with its card, and then its plots: one that cannot be drawn is told, and costs no run."""
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
    with plots.spared(learning, partial(_note, tell)):
        learning.parent.mkdir(exist_ok=True)
        plots.learning_curves({trained.info.recipe["objective"]: trained.fitted.history}, learning)
    if len(corpus.test) and not corpus.multi_label:
        predicted = trained.probes.linear.scores(trained.probes.test_embeddings).argmax(axis=1)
        with plots.spared(confusion, partial(_note, tell)):
            plots.confusion_matrix(corpus.test.labels, predicted, corpus.classes, confusion)


def describe_data(manifest: Path, corpus: Corpus, rate: int) -> dict[str, Any]:
    """What the run was trained on, for `run.json`."""
    splits = {"train": corpus.train, "val": corpus.val, "test": corpus.test}
    return {
        "manifest": str(manifest.resolve()),
        "fingerprint": corpus.fingerprint,
        **runs.sizes(corpus, rate),
        "own": {name: _own(clips, corpus) for name, clips in splits.items()},
        "grouped": corpus.manifest.grouped,
        "problems": dict(Counter(problem.kind for problem in corpus.problems)),
        "repeated": corpus.repeated(),
        "multi_label": corpus.multi_label,
    }


def _counted(data: dict[str, Any], split: str) -> str:
    clips, groups, own = data["clips"][split], data["groups"][split], data["own"][split]
    of_them = f" ({own['clips']} of what fires)" if own["clips"] < clips else ""
    return f"{counted(clips, 'clip')} of {counted(groups, 'group')}{of_them}"


def _own(clips: Clips, corpus: Corpus) -> dict[str, int]:
    """How many clips of how many groups are of something that fires: a label that is not the unknown class."""
    unknown = corpus.unknown_column
    fires = clips.targets if unknown is None else np.delete(clips.targets, unknown, axis=1)
    rows = np.flatnonzero(fires.any(axis=1))
    return {"clips": len(rows), "groups": len({clips.groups[row] for row in rows})}
