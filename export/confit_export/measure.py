"""How good an exported model is on the clips of its run: accuracy, ranking, and clips that fire, near and far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from confit_edge.data.corpus import Clips, Corpus
from confit_edge.probes.metrics import accuracy
from confit_edge.runs import Run
from confit_edge.windows import gain_db
from confit_export import gate
from confit_export.gate import Predictions
from confit_runtime.arrays import Bools
from confit_runtime.calibration import Positive, score_positive
from confit_runtime.describe import format_accuracy, format_map
from confit_runtime.model import Model
from confit_runtime.recordings import clip_rows

SOFTER_DB, LOST_SHARE_WARNED = 20.0, 0.1  # as from far away; the share of sounds lost there that is worth a warning


def share_fired(model: Model, corpus: Corpus) -> dict[str, Any] | None:
    """The share of sounds that fire with their own label at the contract's thresholds, on test or else on validation."""
    positives = isolated_positives(model, corpus.test if len(corpus.test) else corpus.val, corpus)
    return (
        accuracy(_fired(model, positives), [positive.group for positive in positives]).to_dict() if positives else None
    )


def count_softer(model: Model, corpus: Corpus, run: Run, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Count the validation sounds that fire as recorded and as from far away, and warn if many are lost."""
    as_recorded, softer = (
        _fired(model, isolated_positives(model, corpus.val, corpus, softer_db)) for softer_db in (0.0, SOFTER_DB)
    )
    if not len(softer):
        return None
    lost, gain = int(as_recorded.sum() - softer.sum()), gain_db(run.encoder, run.recipe)
    levels_fixed = run.recipe.freeze == "all" and corpus.background_train  # then nothing is learnt from other levels
    remedy = (
        "add clips that are as soft" if levels_fixed else f"train with `--gain` above {gain:g} (dB, softer and louder)"
    )
    if lost >= max(2, LOST_SHARE_WARNED * len(softer)):
        say(
            f"warning: {SOFTER_DB:g} dB softer, as from the next room, {softer.sum()} of {len(softer)} validation sounds fire,"
            f" compared with {as_recorded.sum()} as recorded. If the device is to hear that far, {remedy}"
        )
    return {"db": SOFTER_DB, "fired": int(softer.sum()), "as_recorded": int(as_recorded.sum()), "n": len(softer)}


def isolated_positives(model: Model, clips: Clips, corpus: Corpus, softer_db: float = 0.0) -> list[Positive]:
    """Hear each sound alone, `softer_db` below its own level, from the whole file as a device and `calibrate` would.

    A clip with several labels counts as that many sounds. A clip may be classified correctly and still not fire, because
    its best label need not reach the threshold.
    """
    contract, gain = model.contract, np.float32(10 ** (-softer_db / 20))
    positives: list[Positive] = []
    for pcm, target, group in zip(clips.uncut or clips.pcm, clips.targets, clips.groups, strict=True):
        rows = clip_rows(model, gain * pcm)
        for label in sorted({corpus.classes[column] for column in np.flatnonzero(target)} & set(contract.can_fire)):
            positives.append(score_positive(contract, label, group, rows))
    return positives


def _fired(model: Model, positives: list[Positive]) -> Bools:
    """Whether each sound reaches the contract's threshold for its label, `[sounds]`."""
    return np.array([positive.level >= model.contract.thresholds[positive.label]["on"] for positive in positives], bool)


def accuracies(model: Model, val: Predictions, corpus: Corpus) -> dict[str, Any]:
    """Return the results on validation (`val`, heard already) and, if test has labels, on test.

    Test is used only here and in `share_fired`, after everything was chosen.
    """
    results = {"val": val.metrics()}
    if corpus.test.targets[:, corpus.answers].any():
        results["test"] = Predictions.of(model, corpus.test, corpus).metrics()
    return results


def compare_on_test(fp32: dict[str, Any], shipped: dict[str, Any], precision: str, say: Callable[[str], None]) -> None:
    """Report the result on test next to that of fp32, and warn if test loses more than the gate allows on validation."""
    clips, lost = shipped["n"], fp32["accuracy"] - shipped["accuracy"]
    if "map" in shipped:
        say(f"mAP on test: {precision} {format_map(shipped)}, fp32 {format_map(fp32)}")
    else:
        say(f"accuracy on test: {precision} {format_accuracy(shipped)} of {clips} clips, fp32 {format_accuracy(fp32)}")
    losses = []
    if lost > gate.ACCURACY + 1e-9 and round(lost * clips) > 1:  # a single clip proves nothing
        losses.append(f"{100 * lost:.2f} points of accuracy, {round(lost * clips)} of {clips} clips")
    if "map" in fp32 and fp32["map"] - shipped["map"] > gate.MAP + 1e-9:
        losses.append(f"{100 * (fp32['map'] - shipped['map']):.2f} points of mAP")
    if losses:
        say(
            f"warning: on test, quantising to {precision} loses {' and '.join(losses)}: more than the gate allows on"
            " validation. Export with --no-quantize, or keep layers in fp32 with --keep-fp32 NAME"
        )
