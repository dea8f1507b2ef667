"""What a model's numbers do not prove: warnings about thresholds and accuracies that rest on few clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confit_runtime.formatting import format_count

# of the validation split: with fewer of either, a common error may not have shown up once
FEW_CLIPS, FEW_GROUPS = 30, 5
CONFIDENCE = 0.95


def data_warnings(data: Mapping[str, Any]) -> list[str]:
    """Warnings about a model, from the clips and groups of its `data` (in a contract or in `run.json`) by split.

    With `n` clips and no error among them, the share of new clips that fail may still be as high as
    1 - (1 - CONFIDENCE)^(1 / n), the exact upper bound of a binomial (Clopper and Pearson, 1934).
    """
    if not data:
        return []
    clips, groups = ({split: data["own"][split][key] for split in data["clips"]} for key in ("clips", "groups"))
    found = []
    judged = () if data.get("multi_label") else (("test", "test"), ("val", "validation"))
    for split, name in judged:
        if clips[split] and (unknown := data["clips"][split] - clips[split]) > clips[split]:
            found.append(
                f"{unknown} of {format_count(data['clips'][split], f'{name} clip')} are of the unknown class, so a model"
                f" that always gave that answer would be right {100 * unknown / data['clips'][split]:.1f} % of the"
                " time: look at the results of the other classes"
            )
            break
    if not data["grouped"]:  # in at least one class nobody said which clips belong together
        own_groups = "every clip is a group of its own"
        alone = own_groups if clips == groups else "in at least one class most clips are each a group of their own"
        found.append(
            f"{alone}: clips of one speaker or one recording may then be in train, validation and test at once, and"
            " the accuracy is too high; add a `group` column, or use folders CLASS/GROUP/"
        )
    for split, name in (("val", "validation"), ("test", "test")):
        if many := data.get("repeated", {}).get(split, 0):
            found.append(
                f"{many} of {format_count(data['clips'][split], f'{name} clip')} {'has' if many == 1 else 'have'} the"
                " same audio as a training clip, so the accuracy is too high: see `confit-edge data check`"
            )
    if clips["val"] < FEW_CLIPS or groups["val"] < FEW_GROUPS:
        share = 1 - (1 - CONFIDENCE) ** (1 / max(1, min(clips["val"], groups["val"])))
        found.append(
            f"the thresholds, the chosen epoch and the gate rest on {format_count(clips['val'], 'validation clip')} from"
            f" {format_count(groups['val'], 'group')}: even with no error among them, up to {100 * share:.0f} % of new"
            " groups might still be missed. Test with voices (or machines, kits) and rooms that are not in the"
            " training data; set thresholds with `--threshold LABEL=0.4` or with `confit-edge calibrate`"
        )
    return found


def has_enough_clips(data: Mapping[str, Any], split: str) -> bool:
    """Whether a split has enough clips and groups of the labels that fire for its accuracy to be published."""
    own = data["own"][split]
    return own["clips"] >= FEW_CLIPS and own["groups"] >= FEW_GROUPS
