"""How good an encoder is between epochs: a quick linear probe on validation, and the objective's own head."""

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

QUICK_CLIPS, QUICK_TOTAL = 10, 300  # of each class, and of all, for the probe after each epoch
QUICK_KINDS = 3  # the unknown class, and clips of no class, are of many kinds: so many times the clips of another


class Validation:
    """The check after each epoch. An encoder that is `still` (wholly frozen) is embedded once."""

    def __init__(self, corpus: Corpus, device: torch.device, still: bool) -> None:
        self.corpus, self.device, self.still = corpus, device, still
        self.rows = quick_sample(corpus.train.targets, corpus.unknown_column)
        self._held: tuple[Floats, Floats] | None = None

    def __call__(self, encoder: Encoder, objective: Objective) -> dict[str, float] | None:
        """`val_linear`, and `val_head` for vanilla fine-tuning; None when an embedding is no finite number."""
        train, val = self._embeddings(encoder)
        if not (np.isfinite(train).all() and np.isfinite(val).all()):
            return None
        corpus = self.corpus
        known = corpus.train.targets.any(axis=0)  # the unknown class has background only, which is not probed here
        targets, truth = corpus.train.targets[self.rows][:, known], corpus.val.targets[:, known]
        probe = LinearProbe.fit(train, targets, val, truth, multi_label=corpus.multi_label, strengths=(0.1,))
        row = {"val_linear": merit(probe.scores(val), truth, multi_label=corpus.multi_label)}
        if isinstance(objective, FineTune):
            scores = head_probe(objective).scores(val)
            row["val_head"] = merit(scores, corpus.val.targets, multi_label=corpus.multi_label)
        return row

    def _embeddings(self, encoder: Encoder) -> tuple[Floats, Floats]:
        if self._held is None or not self.still:
            train = embed_clips(encoder, [self.corpus.train.pcm[row] for row in self.rows], self.device)
            self._held = train, embed_clips(encoder, self.corpus.val.pcm, self.device)
        return self._held


def quality(row: dict[str, float]) -> float:
    """What an epoch is chosen by: vanilla fine-tuning by its own head, PairTune by the linear probe."""
    return row.get("val_head", row["val_linear"])


def standard_error(share: float, clips: int) -> float:
    """Of a share of right answers among `clips` (or of a mAP, as if it were one).

    Not zero where all are right: one more of each is counted.
    """
    share = (share * clips + 1) / (clips + 2)
    return math.sqrt(share * (1 - share) / clips)


def quick_sample(targets: npt.NDArray[np.int8], unknown: int | None = None) -> list[int]:
    """Some clips of each class, at most `QUICK_CLIPS`, fewer where there are many classes (but three).

    Of `unknown` more, and of clips of no class: without these a label that all the others have is told from nothing.
    They are spread over the class as it is listed, by what its clips are and by who made them: the first ten of the unknown
    class would all be one word. It is enough for the probe that watches a training, at a fraction of its cost. From four
    clips of a class such a probe calls an encoder worse as it gets better: it trusts what the training clips have been
    pulled together by.
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
    """Start the head as the linear probe of the encoder as it is, on the clips that are trained on.

    Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): a random head would first pull the
    pre-trained features out of shape.
    """
    train, held_out = (embed_clips(encoder, part.pcm, device) for part in (clips, val))
    probe = LinearProbe.fit(train, clips.targets, held_out, val.targets, multi_label=objective.multi_label)
    objective.head.weight.copy_(torch.from_numpy(probe.weight / np.float32(encoder.dim**0.5)))
    objective.head.bias.copy_(torch.from_numpy(probe.bias))
