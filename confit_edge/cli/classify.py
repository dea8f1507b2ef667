"""`confit-edge classify`: the label of whole clips, whether or not it would fire."""

from __future__ import annotations

from collections import Counter

import typer

from confit_edge.cli._arguments import ClipsArgument, ModelArgument
from confit_edge.cli._console import Json, emit, print_line, say_failed
from confit_edge.cli._sources import clip_error_text, warn_about_narrow_clips
from confit_runtime.errors import ConfitError

SHOWN = 3  # labels of a clip, for a person


def classify(
    model: ModelArgument,
    clips: ClipsArgument,
    json: Json = False,
) -> None:
    """Print the best label of each whole clip, with scores.

    A score is the mean over the clip, and thresholds play no part: `confit-edge listen MODEL --source CLIP` shows what would
    fire while the clip is heard. A model with several labels per clip is different: every label that reaches its threshold
    is named, possibly none. With --json, `labels` lists them, and `nothing` in the summary counts the clips without any.

    A clip that cannot be read or is longer than an hour is reported (with --json as a line `failed`), the others are still
    classified, and the exit status is 1.

    Examples:

        confit-edge classify digits recordings/
        confit-edge classify mymodel.onnx clip.wav --json

    Next: `confit-edge evaluate` measures a model on labelled recordings.
    """
    from dataclasses import asdict

    from confit_runtime import load
    from confit_runtime.model import check_labels
    from confit_runtime.sources import find_clips

    paths, loaded = find_clips(clips), load(model)
    check_labels(model, loaded.contract.target_labels, "nothing to classify")
    warn_about_narrow_clips(paths, loaded)
    heard: Counter[str] = Counter()
    failed = nothing = 0
    silent = loaded.contract.unknown_label if loaded.contract.multi_label else None
    for path in paths:
        clip = str(path)
        try:
            found = loaded.classify(path)
        except ConfitError as error:
            failed += 1
            say_failed(clip, clip_error_text(error, model, clip), json)
            continue
        heard.update(found.labels)
        nothing += not found.labels
        if json:
            emit("classification", clip=clip, **asdict(found))
        else:
            named = "".join(f"  {label}  {found.scores[label]:.2f}" for label in found.labels) or "  nothing"
            ranked = sorted(found.scores.items(), key=lambda pair: -pair[1])
            others = [pair for pair in ranked if pair[0] not in found.labels and pair[0] != silent]
            print_line(f"{clip}{named}{_runner_ups(others[: max(0, SHOWN - len(found.labels))])}")
    if json:
        emit("summary", clips=len(paths), by_label=dict(heard.most_common()), nothing=nothing, failed=failed)
    if failed:
        raise typer.Exit(1)


def _runner_ups(others: list[tuple[str, float]]) -> str:
    listed = ", ".join(f"{label} {score:.2f}" for label, score in others)
    return f"  (then {listed})" if listed else ""
