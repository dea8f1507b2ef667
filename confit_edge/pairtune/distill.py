"""Distillation: a student encoder learns to embed as a trained teacher does, from labelled clips and from any sound.

A large attention encoder that was PairTuned knows more than a small streaming one can learn from the same few labels,
but it cannot listen all day on a small device. The student hears the same windows as the teacher. That needs no labels,
so unlabelled sound teaches too.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor, nn
from torch.nn import functional

from confit_edge.data.augment import Augmenter
from confit_edge.data.clips import ClipStore, sound_digest
from confit_edge.data.corpus import Corpus
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import embed_clips
from confit_edge.pairtune.losses import ABSENT
from confit_edge.pairtune.machine import mixed_precision
from confit_edge.pairtune.objectives import Objective, make_objective
from confit_edge.recipe import Recipe, check_type
from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm
from confit_runtime.errors import UsageError


@dataclass(frozen=True)
class Lesson:
    """How a student is taught: the recipe keys that `confit-edge distill` has in addition to those of training.

    The weights belong to the three parts of the loss; `supervised_weight` is that of the recipe's own contrastive loss
    on the labelled clips of a batch. A batch also has `unlabelled_per_batch` windows of unlabelled sound.
    """

    embedding_weight: float = 1.0
    similarity_weight: float = 1.0
    similarity_temperature: float = 0.1
    supervised_weight: float = 1.0
    unlabelled_per_batch: int = 64

    def __post_init__(self) -> None:
        for key, hint in typing.get_type_hints(Lesson).items():
            value = getattr(self, key)
            check_type(key, hint, value)
            if value < 0:
                raise UsageError(f"recipe key '{key}' must not be negative; it is {value}")
        if self.similarity_temperature == 0:
            raise UsageError("recipe key 'similarity_temperature' must be above 0; it is 0")
        if self.unlabelled_per_batch < 1:
            raise UsageError("recipe key 'unlabelled_per_batch' must be at least 1; it is 0")
        if self.embedding_weight == self.similarity_weight == 0:
            raise UsageError(
                "recipe key 'embedding_weight' and recipe key 'similarity_weight' are both 0: the teacher would teach nothing"
            )


KEYS = tuple(field.name for field in fields(Lesson))


def embedding_loss(mapped: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos between the student's embeddings, mapped into the teacher's space, and the teacher's; both `[n, dim]`.

    The mean over rows. This is feature distillation (Romero et al. 2015, arXiv 1412.6550) with a cosine distance.
    """
    return 1 - functional.cosine_similarity(mapped, teacher, dim=1).mean()


def similarity_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's similarities within a batch are from the teacher's.

    For each row i of a batch, p_i is the softmax over the other rows j of cos(i, j) / `temperature`; the loss is the mean
    over rows of KL(p_i of the teacher || p_i of the student). `student [n, dim]` and `teacher [n, other dim]` are
    embeddings. This is similarity-preserving distillation (Tung and Mori 2019, arXiv 1907.09682), a case of relational
    distillation (Park et al. 2019, arXiv 1904.05068), with the similarities as distributions as in SEED (Fang et al.
    2021, arXiv 2101.04731).
    """
    near, wanted = (_log_shares(embeddings, temperature) for embeddings in (student, teacher))
    return functional.kl_div(near, wanted, reduction="batchmean", log_target=True)


def _centred(teacher: Tensor) -> Tensor:
    """A batch of embeddings without the one large direction that all share, which teaches nothing."""
    return functional.normalize(teacher - teacher.mean(dim=0), dim=1)


def _log_shares(embeddings: Tensor, temperature: float) -> Tensor:
    unit = functional.normalize(embeddings, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T / temperature).masked_fill(itself, ABSENT).log_softmax(dim=1)


class Distil(Objective):
    """The three parts of a student's loss, weighted by the lesson.

    The mean over the batch is subtracted from the teacher's embeddings. The linear map into the teacher's space and the
    projection of the supervised part are discarded after training. `targets` hold more than labels: each row has the
    classes, whether it is labelled, and the teacher's embedding, as `Teaching` arranges them. Unlabelled rows take no
    part in the supervised loss, not even as negatives, since they may be of any class.
    """

    def __init__(self, dim: int, teacher_dim: int, classes: int, supervised: Objective, lesson: Lesson) -> None:
        super().__init__()
        self.widths = (classes, 1, teacher_dim)
        self.lesson, self.dim = lesson, dim
        self.map = nn.Linear(dim, teacher_dim)
        self.supervised = supervised if lesson.supervised_weight else None

    @torch.no_grad()
    def start(self, encoder: Encoder, windows: Tensor, targets: Tensor, ridge: float = 1.0) -> None:
        """Initialise the map by ridge regression from the untrained student, on `windows [n, samples]` with `targets`.

        A random map would at first distort the student's features, as a random head does (Kumar et al. 2022, arXiv
        2202.10054).
        """
        encoder.eval()
        heard = torch.cat([encoder(part) for part in windows.split(64)]) * self.dim**0.5
        wanted = _centred(targets.split(self.widths, dim=1)[2])
        mean, aim = heard.mean(dim=0), wanted.mean(dim=0)
        spread = (heard - mean).T @ (heard - mean) + ridge * len(heard) * torch.eye(self.dim, device=heard.device)
        weight = torch.linalg.solve(spread, (heard - mean).T @ (wanted - aim)).T
        self.map.weight.copy_(weight)
        self.map.bias.copy_(aim - weight @ mean)

    def project(self, embeddings: Tensor) -> Tensor:
        """The embeddings, their images under the map, and the projections of the supervised part, concatenated."""
        parts = [embeddings, self.map(embeddings * self.dim**0.5)]
        if self.supervised is not None:
            parts.append(self.supervised.project(embeddings))
        return torch.cat([part.float() for part in parts], dim=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        labels, labelled, teacher = targets.split(self.widths, dim=1)
        teacher = _centred(teacher)
        student, mapped, projections = outputs.tensor_split((self.dim, self.dim + self.widths[2]), dim=1)
        with torch.autocast(outputs.device.type, enabled=False):
            apart = embedding_loss(mapped, teacher)
            unlike = similarity_loss(student, teacher, self.lesson.similarity_temperature)
        total = self.lesson.embedding_weight * apart + self.lesson.similarity_weight * unlike
        statistics = {"teacher_cosine": 1 - apart.item(), "similarity_loss": unlike.item()}
        if self.supervised is not None:
            rows = labelled[:, 0] > 0
            contrast, mined = self.supervised.loss(projections[rows], labels[rows])
            total = total + self.lesson.supervised_weight * contrast
            statistics |= {"supervised_loss": contrast.item(), **mined}
        return total, statistics


@dataclass(frozen=True)
class Teaching:
    """A teacher and the unlabelled sound that it teaches with, in addition to the labelled clips.

    `unlabelled` are recordings at the student's sample rate, `student_rate`.
    """

    teacher: Encoder
    unlabelled: list[Pcm]
    student_rate: int
    lesson: Lesson

    def objective(self, recipe: Recipe, dim: int, classes: int, multi_label: bool) -> Distil:
        """The loss of a student whose embeddings have size `dim`."""
        supervised = make_objective(recipe, dim, classes, multi_label)
        return Distil(dim, self.teacher.dim, classes, supervised, self.lesson)

    def extend(
        self,
        pcm: Pcm,
        labels: npt.NDArray[np.int8],
        augment: Augmenter,
        recipe: Recipe,
        device: torch.device,
        rng: np.random.Generator,
    ) -> tuple[Pcm, Floats]:
        """The windows `[n, window]` of a batch with `labels [n, classes]`, followed by unlabelled windows; and targets.

        The targets are those of `Distil`. A recording is drawn from in proportion to the windows that fit in it. The
        teacher hears each window exactly as the student does, augmentation included.
        """
        more = augment(self._draw_unlabelled(augment.window, rng), rng) if self.unlabelled else pcm[:0]
        windows = np.concatenate([pcm, more])
        known = np.zeros((len(windows), labels.shape[1] + 1), np.float32)
        known[: len(pcm)] = np.concatenate([labels, np.ones((len(pcm), 1))], axis=1)
        with mixed_precision(device, recipe.precision):
            taught = self.embed(windows, device)
        return windows, np.concatenate([known, taught], axis=1)

    def embed(self, windows: Pcm, device: torch.device) -> Floats:
        """The teacher's embeddings `[n, dim]` of the student's `windows [n, samples]`, as a device would make them.

        The windows are resampled to the teacher's rate. A window shorter than the teacher's is centred in it; a longer one
        gives the mean over the teacher's windows.
        """
        if self.teacher.sample_rate != self.student_rate:
            windows = soxr.resample(windows.T, self.student_rate, self.teacher.sample_rate).T
        return embed_clips(self.teacher.to(device), list(np.ascontiguousarray(windows)), device)

    def _draw_unlabelled(self, window: int, rng: np.random.Generator) -> list[Pcm]:
        held = np.array([max(1, len(recording) // window) for recording in self.unlabelled])
        rows = rng.choice(len(held), self.lesson.unlabelled_per_batch, p=held / held.sum())
        return [self.unlabelled[row] for row in rows]


@dataclass(frozen=True)
class TeachingRun(Teaching):
    """Teaching by the encoder of a run, with the run's `name`, `classes`, data `fingerprint` and probes' `metrics`.

    `paths` are the files of the unlabelled recordings; `about` describes all this in the student's `run.json`.
    """

    name: str
    classes: list[str]
    fingerprint: str
    metrics: dict[str, Any]
    paths: list[Path]
    about: dict[str, Any]

    def check_corpus(self, corpus: Corpus) -> None:
        """Raise UsageError where `corpus` is not the teacher's data, or a val or test clip is among the unlabelled sound."""
        source = corpus.manifest.source
        if corpus.classes != self.classes:
            odd = ", ".join(sorted(set(corpus.classes) ^ set(self.classes)))
            raise UsageError(f"{source}: has other classes than {self.name} (only one of the two has {odd})")
        if corpus.fingerprint != self.fingerprint:
            raise UsageError(
                f"{source}: not the data that {self.name} was trained on (clips, labels, splits or background differ)"
            )
        store, judged = ClipStore(self.student_rate), dict[bytes, str]()
        for part, clips in (("val", corpus.val), ("test", corpus.test)):
            whole = map(store.get, clips.paths)  # the corpus has trimmed the silence around long clips
            judged |= {sound_digest(pcm): part for pair in zip(clips.pcm, whole, strict=True) for pcm in pair}
        for path, pcm in zip(self.paths, self.unlabelled, strict=True):
            if split := judged.get(sound_digest(pcm)):
                raise UsageError(f"--unlabelled: {path} is a {split} clip of {source}; leave val and test clips out")

    def recordings_of_thresholds(self, corpus: Corpus) -> list[Path]:
        """The unlabelled recordings that end with the validation background, on which thresholds are set."""
        return [
            path
            for path, pcm in zip(self.paths, self.unlabelled, strict=True)
            if any(len(part) and np.array_equal(pcm[-len(part) :], part) for part in corpus.background_val)
        ]
