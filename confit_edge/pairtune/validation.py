"""How good an encoder is after an epoch: a quick linear probe on validation, and the objective's own head."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import embed_clips
from confit_edge.pairtune.objectives import FineTune, Objective
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.metrics import merit
from confit_runtime.arrays import Floats

QUICK_CLIPS, QUICK_TOTAL = 10, 300  # clips per class, and in all, for the probe after each epoch
QUICK_KINDS = 3  # times as many clips of the unknown class, and of no class: these contain many kinds of sound


class Validation:
    """The check after each epoch. With `encoder_frozen`, embeddings are computed once."""

    def __init__(self, corpus: Corpus, device: torch.device, encoder_frozen: bool) -> None:
        self.corpus, self.device, self.encoder_frozen = corpus, device, encoder_frozen
        self.rows = quick_sample(corpus.train.targets, corpus.unknown_column)
        self._held: tuple[Floats, Floats] | None = None

    def __call__(self, encoder: Encoder, objective: Objective) -> dict[str, float] | None:
        """`val_linear`, and `val_head` for vanilla fine-tuning; None when an embedding is not finite."""
        train, val = self._embeddings(encoder)
        if not (np.isfinite(train).all() and np.isfinite(val).all()):
            return None
        corpus = self.corpus
        known = corpus.train.targets.any(axis=0)  # an unknown class may have only background, which is not probed here
        targets, truth = corpus.train.targets[self.rows][:, known], corpus.val.targets[:, known]
        probe = LinearProbe.fit(train, targets, val, truth, multi_label=corpus.multi_label, strengths=(0.1,))
        row = {"val_linear": merit(probe.scores(val), truth, multi_label=corpus.multi_label)}
        if isinstance(objective, FineTune):
            scores = head_probe(objective).scores(val)
            row["val_head"] = merit(scores, corpus.val.targets, multi_label=corpus.multi_label)
        return row

    def _embeddings(self, encoder: Encoder) -> tuple[Floats, Floats]:
        if self._held is None or not self.encoder_frozen:
            train = embed_clips(encoder, [self.corpus.train.pcm[row] for row in self.rows], self.device)
            self._held = train, embed_clips(encoder, self.corpus.val.pcm, self.device)
        return self._held


def quality(row: dict[str, float]) -> float:
    """The measure that epochs are chosen by: vanilla fine-tuning's own head, or the linear probe for PairTune."""
    return row.get("val_head", row["val_linear"])


def standard_error(share: float, clips: int) -> float:
    """The standard error of a `share` of right answers among `clips`; a mAP is treated like such a share.

    One right and one wrong answer are added first, so the result is not zero where all answers are right.
    """
    share = (share * clips + 1) / (clips + 2)
    return math.sqrt(share * (1 - share) / clips)


def quick_sample(targets: npt.NDArray[np.int8], unknown: int | None = None) -> list[int]:
    """The indices of some clips of each class: at most `QUICK_CLIPS`, fewer with many classes, but at least three.

    There are more of the `unknown` class and of clips of no class: without those, a label that all other clips have would
    have no counterexample. The clips are spread evenly over a class's list, which is in order of content and speaker: the
    first ten of the unknown class could all be one word. The sample is enough for the probe that watches a training, at a
    fraction of the cost. With four clips per class, such a probe rates an encoder worse as it improves, because it relies
    on whatever pulled the training clips together.
    """
    each = min(QUICK_CLIPS, max(3, QUICK_TOTAL // targets.shape[1]))
    rows: set[int] = set()
    nothing = targets.shape[1]
    for column, clips in enumerate([*targets.T, ~targets.any(axis=1)]):
        members = np.flatnonzero(clips)
        taken = min(each * (QUICK_KINDS if column in (unknown, nothing) else 1), len(members))
        rows.update(members[np.arange(taken) * len(members) // max(1, taken)].tolist())
    return sorted(rows)


def head_probe(objective: FineTune) -> LinearProbe:
    """Vanilla fine-tuning's own head, as a probe on the embedding."""
    weight, bias = objective.head.weight.detach().cpu().numpy(), objective.head.bias.detach().cpu().numpy()
    return LinearProbe(weight * np.float32(weight.shape[1] ** 0.5), bias, objective.multi_label)


@torch.no_grad()
def head_from_probe(objective: FineTune, encoder: Encoder, clips: Clips, val: Clips, device: torch.device) -> None:
    """Initialise the head as the linear probe of the untrained encoder, fitted on the training clips.

    This is linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): a random head would at first distort
    the pre-trained features.
    """
    train, held_out = (embed_clips(encoder, part.pcm, device) for part in (clips, val))
    probe = LinearProbe.fit(train, clips.targets, held_out, val.targets, multi_label=objective.multi_label)
    objective.head.weight.copy_(torch.from_numpy(probe.weight / np.float32(encoder.dim**0.5)))
    objective.head.bias.copy_(torch.from_numpy(probe.bias))
