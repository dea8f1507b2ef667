"""How good an exported model is on the clips of its run: told right, ranked, and fired, as recorded and from afar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.pairtune.items import gain_db
from confit_edge.probes.metrics import accuracy
from confit_edge.runs import Run
from confit_export.gate import Heard
from confit_runtime.calibration import hear_positive
from confit_runtime.model import Model
from confit_runtime.recordings import clip_rows

SOFTER_DB, FEWER = 20.0, 0.1  # as from afar; the share of sounds lost there that is told


def share_that_fires(model: Model, corpus: Corpus, seed: int) -> dict[str, Any] | None:
    """The share of sounds that fire with their own label at the contract's thresholds; of test clips, where there are some."""
    found, groups = _fires(model, corpus.test if len(corpus.test) else corpus.val, corpus)
    return accuracy(np.array(found), groups, seed).to_dict() if found else None


def softer(model: Model, corpus: Corpus, run: Run, say: Callable[[str], None]) -> dict[str, Any] | None:
    """How many validation sounds fire as recorded, and as from afar; what that costs is told."""
    as_recorded, _ = _fires(model, corpus.val, corpus)
    if not as_recorded:
        return None
    soft, _ = _fires(model, corpus.val, corpus, softer_db=SOFTER_DB)
    missed, gain = sum(as_recorded) - sum(soft), gain_db(run.encoder, run.recipe)
    still = run.recipe.freeze == "all" and corpus.background_train  # then nothing is learnt from clips of other levels
    cure = "add clips that are as soft" if still else f"train with `--gain` above {gain:g} (dB, softer and louder)"
    if missed >= max(2, FEWER * len(soft)):
        say(
            f"beware: {SOFTER_DB:g} dB softer, as from the next room, {sum(soft)} of {len(soft)} validation sounds fire, as"
            f" recorded {sum(as_recorded)}: {cure} where it is to hear as far"
        )
    return {"db": SOFTER_DB, "fired": sum(soft), "as_recorded": sum(as_recorded), "n": len(soft)}


def _fires(model: Model, clips: Clips, corpus: Corpus, softer_db: float = 0.0) -> tuple[list[bool], list[str]]:
    """Of each sound whether it fires, heard alone, at its level or so much softer; and its group.

    A clip of several labels holds as many sounds. A clip may be told right and not fire: its best label need not reach a
    threshold.
    """
    contract, gain = model.contract, np.float32(10 ** (-softer_db / 20))
    found: list[bool] = []
    groups: list[str] = []
    for pcm, target, group in zip(clips.pcm, clips.targets, clips.groups, strict=True):
        rows = clip_rows(model, gain * pcm)
        for label in sorted({corpus.classes[column] for column in np.flatnonzero(target)} & set(contract.can_fire)):
            level = hear_positive(contract, label, group, rows).level
            found.append(level >= contract.thresholds[label]["on"])
            groups.append(group)
    return found, groups


def accuracies(model: Model, val: Heard, corpus: Corpus, seed: int) -> dict[str, Any]:
    """How good it is on validation, as heard already, and on test where a label is: the only time test is looked at."""
    found = {"val": val.measured(seed)}
    if corpus.test.targets[:, corpus.answers].any():
        found["test"] = Heard.by(model, corpus.test, corpus).measured(seed)
    return found
