"""The card of a run in the Hugging Face format: what it is, what it was trained on and how well it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confit_edge.encoders import encoder_name
from confit_edge.probes.metrics import Merit, merit_name, named_probes
from confit_edge.probes.tables import escaped, escaped_sentence
from confit_runtime.data_warnings import data_warnings
from confit_runtime.formatting import format_count, format_list

if TYPE_CHECKING:
    from confit_edge.runs import RunInfo

NAMED = 50  # classes listed in a card; run.json lists all


def run_card(info: RunInfo, metrics: dict[str, Any]) -> str:
    """The card as Markdown with a YAML header."""
    recipe, data = info.recipe, info.data
    lines = [
        "---",
        "library_name: confit-edge",
        "tags: [audio-classification, contrastive-learning]",
        "---",
        f"# {escaped(info.name)}",
        "",
        f"{escaped(encoder_name(recipe['encoder'], info.encoder['family']))} {_training_text(info)}"
        f" on {data['clips']['train']} clips of {format_count(len(info.classes), 'class', 'classes')}"
        f" ({data['groups']['train']} groups), {_weights_text(info)}, seed {recipe['seed']}.",
        "",
        "Classes: " + format_list([*map(escaped, info.classes)], NAMED),
        "",
        f"| probe | split | {merit_name(multi_label=info.multi_label)} | 95 % interval | clips | groups |",
        "|---|---|---|---|---|---|",
        *_rows(metrics),
        "",
        f"Intervals are computed over groups (speakers, recordings), since clips of one group are alike; {_grouping_text(data)}.",
        "The test split served for this report only; epoch, learning rate and probe settings were chosen on validation.",
        "",
        *(f"**Warning:** {escaped_sentence(caution)}.\n" for caution in data_warnings(data)),
        "![learning curves](plots/learning.png)",
        "",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in info.versions.items()),
        "",
    ]
    return "\n".join(lines)


def _grouping_text(data: dict[str, Any]) -> str:
    return "no group is in two splits" if data["grouped"] else "here every clip without a group counts as its own"


def _weights_text(info: RunInfo) -> str:
    recipe = info.recipe
    if (recipe["soup"] or 1) > 1:
        return f"weights averaged over {recipe['soup']} trainings of {recipe['epochs']} epochs"
    return f"weights kept from epoch {info.kept_epoch} of {recipe['epochs']}"


def _training_text(info: RunInfo) -> str:
    if info.distilled is None:
        return f"trained with `{info.recipe['objective']}`"
    sound = info.distilled["unlabelled"]
    return (
        f"distilled from another run's encoder (weights {info.distilled['teacher_weights_sha256'][:12]}), with"
        f" {sound['seconds'] / 60:.1f} min of unlabelled sound,"
    )


def _rows(metrics: dict[str, Any]) -> list[str]:
    return [
        f"| {_label(whose, probe)} | {split} | {100 * merit.value:.1f} % | {100 * merit.low:.1f}..{100 * merit.high:.1f}"
        f" | {merit.clips} | {merit.groups} |"
        for whose, probe, result in named_probes(metrics)
        for split, found in result.items()
        if found
        for merit in [Merit.of(found)]
    ]


def _label(whose: str, probe: str) -> str:
    return probe if whose in ("", "trained") else f"{whose}, {probe}"
