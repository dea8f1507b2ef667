"""What a model's numbers do not prove: sentences for whoever trusts a threshold or an accuracy that few clips stand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confit_runtime.wording import counted

FEW_CLIPS, FEW_GROUPS = 30, 5  # of validation: below either, an error that is common may not have happened once
SURE = 0.95


def cautions(data: Mapping[str, Any]) -> list[str]:
    """What to beware of in a model trained on `data` (a contract's, or that of `run.json`): its clips and groups by split.

    With `n` clips and no error among them, the share of new clips that fail may still be 1 - (1 - SURE)^(1 / n), the exact
    upper bound of a binomial (Clopper and Pearson, 1934).
    """
    if not data:
        return []
    clips, groups = ({split: _held(data, split)[key] for split in data["clips"]} for key in ("clips", "groups"))
    found = []
    judged = () if data.get("multi_label") else (("test", "test"), ("val", "validation"))
    for split, name in judged:
        if clips[split] and (unknown := data["clips"][split] - clips[split]) > clips[split]:
            found.append(
                f"of {counted(data['clips'][split], f'{name} clip')} {unknown} are of the unknown class, and whoever always"
                f" answered that would be right {100 * unknown / data['clips'][split]:.1f} % of the time: look at what is found"
                " of the others"
            )
            break
    if ungrouped(data):
        every = "every clip is a group of its own"
        alone = every if clips == groups else "most clips, of a class at least, are each a group of their own"
        found.append(
            f"{alone}: where one speaker or one recording gave several clips, they stand in train, validation and test alike,"
            " and accuracy is too good; give a `group` column, or folders CLASS/GROUP/"
        )
    for split, name in (("val", "validation"), ("test", "test")):
        if many := data.get("repeated", {}).get(split, 0):
            found.append(
                f"{many} of {counted(data['clips'][split], f'{name} clip')} {'is' if many == 1 else 'are'} the very sound of a"
                " training clip, so accuracy is too good: see `confit-edge data check`"
            )
    if clips["val"] < FEW_CLIPS or groups["val"] < FEW_GROUPS:
        share = 1 - (1 - SURE) ** (1 / max(1, min(clips["val"], groups["val"])))
        found.append(
            f"thresholds, the chosen epoch and the gate stand on {counted(clips['val'], 'validation clip')} of"
            f" {counted(groups['val'], 'group')}: were every one of them right, up to {100 * share:.0f} % of new groups might"
            " still be missed. Try it with voices (or machines, kits) and rooms it was not trained on, move thresholds with"
            " `--threshold LABEL=0.4`, or set them by `confit-edge calibrate`"
        )
    return found


def ungrouped(data: Mapping[str, Any]) -> bool:
    """Whether nobody said which clips belong together, of a class at least.

    In files of older versions, whether no two share a group.
    """
    if "grouped" in data:
        return not data["grouped"]
    if own := data.get("own"):
        return all(row["clips"] == row["groups"] for row in own.values())
    return bool(data["clips"] == data["groups"])


def enough(data: Mapping[str, Any], split: str) -> bool:
    """Whether so many clips and groups of what fires stand behind the accuracy on a split that it may be published."""
    own = _held(data, split)
    return own["clips"] >= FEW_CLIPS and own["groups"] >= FEW_GROUPS


def _held(data: Mapping[str, Any], split: str) -> Mapping[str, int]:
    """The `clips` and `groups` of what fires in a split; in files of older versions, of all."""
    own: Mapping[str, int] = data.get("own", {}).get(split) or {key: data[key][split] for key in ("clips", "groups")}
    return own
