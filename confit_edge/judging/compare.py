"""Compare encoders: the pre-trained one as it was and the one of each run, probed alike on the same clips."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.data.tables import relative
from confit_edge.encoders import pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.pairtune.objectives import FineTune
from confit_edge.pairtune.validation import head_probe
from confit_edge.probes.dual import DualProbe, dual_probe
from confit_edge.probes.judge import Bootstrapped, Judgement, judge
from confit_edge.probes.knn import KnnProbe
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.verification import Trials, verify
from confit_edge.progress import Watcher, report_probe_progress
from confit_edge.recipe import Recipe
from confit_edge.runs import Run, damaged, run_corpus, weights_sha256
from confit_runtime.arrays import Floats
from confit_runtime.errors import ConfitError, UsageError

log = logging.getLogger(__name__)

Split = Literal["val", "test"]


@dataclass(frozen=True)
class Subject:
    """An encoder to judge: that of a run, or the frozen one from before its training."""

    name: str
    objective: str  # "frozen", "pairtune", "finetune" or "distill"
    encoder: Encoder
    start: str | None = None  # for a run: the name of the subject that it started from
    head: LinearProbe | None = None  # the head that vanilla fine-tuning trained


@dataclass(frozen=True)
class Probed:
    """A subject with its probes, fitted to the training clips of its corpus."""

    subject: Subject
    corpus: Corpus
    probes: DualProbe

    def embeddings(self, split: Split) -> Floats:
        """`[clips, dim]`, each of length 1."""
        return self.probes.test_embeddings if split == "test" else self.probes.val_embeddings


@dataclass(frozen=True)
class JudgedSubject:
    """A probed subject on one split: the judgement of each probe by name, and the equal error rate in verification."""

    probed: Probed
    probes: dict[str, Judgement]  # "head" if the subject has its own head, "linear", "knn"
    verification: Bootstrapped | None


def shared_corpora(runs: list[Run], recipe: Recipe, split: Split, manifest: Path | None = None) -> dict[int, Corpus]:
    """The corpus to judge the runs on, for each sample rate they need: their own clips, or `manifest`, read by `recipe`.

    Raises UsageError if the runs differ in clips, labels or splits, or if a run was trained on clips of `manifest` that it
    would be judged on.
    """
    corpora: dict[int, Corpus] = {}
    first: Corpus | None = None
    for run in runs:
        rate = run.encoder.sample_rate
        if manifest is None:
            corpus = run_corpus(run)
            first = first or corpus
            if corpus.manifest.fingerprint() != first.manifest.fingerprint():
                raise UsageError(
                    f"{run.path}: was trained on different clips, labels or splits from {runs[0].path};"
                    " compare them on clips that neither has seen (--manifest)"
                )
            corpora.setdefault(rate, corpus)
        else:
            if rate not in corpora:
                corpora[rate] = read_corpus(manifest, rate=rate, **recipe.corpus_options())
            _check_not_trained_on(run, corpora[rate], split)
    return corpora


def _check_not_trained_on(run: Run, corpus: Corpus, split: Split) -> None:
    """Raise UsageError if the run was trained on clips of the split it is judged on; log a warning if that is unknown."""
    if corpus.fingerprint == run.info.data["fingerprint"]:
        return
    try:
        own = run_corpus(run)
    except ConfitError as error:
        log.warning("%s: cannot check whether it was trained on the clips it is judged on (%s)", run.path, error)
        return
    trained, judged = set(own.train.digests), split_of(corpus, split)
    if seen := [path for digest, path in zip(judged.digests, judged.paths, strict=True) if digest in trained]:
        shown = ", ".join(relative(path, corpus.manifest.folder) for path in seen[:3])
        raise UsageError(
            f"{run.path}: was trained on the sound of {len(seen)} of the {len(judged)} {split} clips of"
            f" {corpus.manifest.source} ({shown}{', ...' if len(seen) > 3 else ''}); judge on clips that no run has seen"
        )


def split_of(corpus: Corpus, split: Split) -> Clips:
    """The clips of a split. Raises UsageError if there are none."""
    clips = corpus.test if split == "test" else corpus.val
    if not len(clips):
        raise UsageError(f"{corpus.manifest.source}: has no {split} clips to judge on; try --split val")
    return clips


def subjects(runs: list[Run], corpora: dict[int, Corpus]) -> list[Subject]:
    """The subjects to judge: each distinct encoder that the runs started from, as it was, followed by the runs.

    An encoder that is no longer available is left out, with a warning in the log.
    """
    starts: dict[str, Subject] = {}
    trained = []
    for run, name, start in zip(runs, _names([run.path for run in runs]), _start_names(runs), strict=True):
        try:
            starts[start] = starts.get(start) or Subject(start, "frozen", starting_encoder(run))
        except ConfitError as error:
            log.warning("%s: is not compared with the encoder it was trained from: %s", run.path, error)
        own = corpora[run.encoder.sample_rate].classes == run.info.classes
        objective = "distill" if run.info.distilled else run.recipe.objective
        before = start if start in starts else None
        trained.append(Subject(name, objective, run.encoder, before, own_head(run) if own else None))
    return [*starts.values(), *trained]


def starting_encoder(run: Run) -> Encoder:
    """The encoder that a run started from, as it was. Raises UsageError if it is missing or has changed since."""
    name = run.recipe.encoder
    encoder = pretrained(name, run.recipe.window, **run.recipe.encoder_options())
    if run.info.encoder_sha256 != weights_sha256(encoder):
        raise UsageError(f"--encoder {name}: has different weights from those that the run was trained from")
    return encoder.eval()


def own_head(run: Run) -> LinearProbe | None:
    """The head that vanilla fine-tuning trained; None if the run trained none. Raises ConfitError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if run.recipe.objective != "finetune":
        return None
    objective = FineTune(run.encoder.dim, len(run.info.classes), run.info.multi_label)
    path = run.path / "projection.safetensors"
    try:
        objective.load_state_dict(load_file(path), strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConfitError(damaged(path, error)) from error
    return head_probe(objective)


def _names(paths: list[Path]) -> list[str]:
    """The last part of each path, or the whole path where different paths end in the same name."""
    ends = {path: path.resolve().name for path in paths}
    return [str(path) if list(ends.values()).count(ends[path]) > 1 else ends[path] for path in paths]


def _start_names(runs: list[Run]) -> list[str]:
    """A name for the encoder that each run started from, with those of its options in which the runs differ."""
    made = [{"window": run.recipe.window, **run.recipe.encoder_options()} for run in runs]
    for options in made:
        if options["initialise"] == "pretrained":
            del options["seed"]  # the seed was not used
    keys = dict.fromkeys(key for options in made for key in options)
    differing_keys = [key for key in keys if len({str(options.get(key)) for options in made}) > 1]
    names = _names([Path(run.recipe.encoder) for run in runs])
    return [
        " ".join(["frozen", name, *(f"{key}={options[key]}" for key in differing_keys if key in options)])
        for name, options in zip(names, made, strict=True)
    ]


def probe_subject(subject: Subject, corpus: Corpus, recipe: Recipe, device: torch.device, notify: Watcher) -> Probed:
    """Fit both probes on the frozen encoder of `subject`, as `recipe` says; `notify` receives the progress."""
    progress = partial(report_probe_progress, notify, subject.name)
    return Probed(subject, corpus, dual_probe(subject.encoder.to(device), corpus, recipe, device, progress=progress))


def judge_subject(probed: Probed, split: Split, trials: Trials, seed: int) -> JudgedSubject:
    """Every metric of each probe of a subject, and its equal error rate on `trials`."""
    corpus, embeddings = probed.corpus, probed.embeddings(split)
    clips, answers = split_of(corpus, split), corpus.answers
    probes: dict[str, LinearProbe | KnnProbe] = {"linear": probed.probes.linear, "knn": probed.probes.knn}
    if probed.subject.head is not None:
        probes = {"head": probed.subject.head, **probes}
    judgements = {
        name: judge(
            probe.scores(embeddings)[:, answers],
            clips.targets[:, answers],
            clips.groups,
            [corpus.classes[at] for at in answers],
            multi_label=corpus.multi_label,
            seed=seed,
        )
        for name, probe in probes.items()
    }
    return JudgedSubject(probed, judgements, verify(embeddings, trials, clips.groups, seed))


def differences(one: JudgedSubject, other: JudgedSubject) -> list[dict[str, Any]]:
    """How far `one` is above `other` on the same clips, in a row for each pair of probes and metric.

    Equal probes are compared, and the linear probe of `one` with the head of `other`, if that has one. Given the same
    subject twice, only its linear probe is compared with its own head.
    """
    pairs = [("linear", "linear"), ("knn", "knn"), ("linear", "head")]
    if one is other:
        pairs = [("linear", "head")]
    return [
        {
            "encoder": one.probed.subject.name,
            "probe": mine,
            "over": other.probed.subject.name,
            "over_probe": theirs,
            "metric": metric,
            **estimate.minus(other.probes[theirs].metrics[metric]).to_dict(),
        }
        for mine, theirs in pairs
        if theirs in other.probes
        for metric, estimate in one.probes[mine].metrics.items()
    ]
