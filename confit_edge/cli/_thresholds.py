"""The options `--threshold`, `--hold` and `--confidence` of verbs that listen and evaluate; where thresholds come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from confit_runtime.describe import format_by_hand
from confit_runtime.errors import UsageError
from confit_runtime.names import closest_name, format_known_names, normalise

if TYPE_CHECKING:
    from confit_runtime.contract import Contract
    from confit_runtime.detect import Hold
    from confit_runtime.model import Model

FIRE_AT = (
    "Score to fire at: VALUE for all labels except those set never to fire, LABEL=VALUE for one label, which overrides VALUE in"
    " any order."
)


def check_confidence(confidence: float) -> None:
    """Raise UsageError if no bound can have this confidence."""
    if not 0.5 <= confidence < 1:
        raise UsageError(f"--confidence must be from 0.5 to below 1; it is {confidence:g}")


def parse_thresholds(options: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """The values of `--threshold`: the bare VALUE for all labels that can fire, and those of `LABEL=VALUE` by label."""
    return _numbers(
        "--threshold", options, "VALUE, a number (for a label above 0 and at most 1, for a name from -1 to 1)"
    )


def parse_holds(options: Sequence[str]) -> Hold:
    """The values of `--hold`. Raises UsageError."""
    from confit_runtime.detect import Hold

    general, own = _numbers("--hold", options, "SECONDS, a number")
    try:
        return Hold(general or 0.0, own)
    except UsageError as error:
        raise UsageError(f"--hold: {error}") from error


def threshold_origin(contract: Contract) -> dict[str, Any]:
    """Where the thresholds come from: for a calibration its file, date, target and bound, and what was set by hand.

    `calibrated` is about the calibration that the labels not set by hand come from, if it was made before.
    """
    if "device" not in contract.calibration:
        return {"from": "export"}
    report = contract.calibration["device"]
    keys = ("file", "made", "target_fa_per_hour", "fa_per_hour_bound", "by_hand", "calibrated")
    known = {key: report[key] for key in keys if key in report}
    return {"from": "device file" if "file" in report else "calibrated copy", **known}


def threshold_source(thresholds: dict[str, Any]) -> str:
    """What `threshold_origin` found, in words."""
    if thresholds["from"] == "export":
        return "the export"
    target = (
        f", for {thresholds['target_fa_per_hour']:g} false accepts per hour"
        if "target_fa_per_hour" in thresholds
        else ""
    )
    if by_hand := format_by_hand(thresholds):
        target += f", {by_hand}"
    if "file" in thresholds:
        return f"{thresholds['file']}, made on {thresholds['made']}{target}"
    return f"a calibration baked into the model{target}"


def _numbers(name: str, options: Sequence[str], expected: str) -> tuple[float | None, dict[str, float]]:
    general, own = None, {}
    for option in options:
        label, equals, value = option.rpartition("=")
        try:
            level = float(value)
        except ValueError as error:
            kind = expected.split(",")[0]
            raise UsageError(f"{name} {option}: expected LABEL={kind} or {expected}") from error
        if equals:
            own[normalise(label)] = level
        else:
            general = level
    return general, own


def with_thresholds(model: Model, general: float | None, own: dict[str, float]) -> Model:
    """The model with the given thresholds; a label set never to fire fires only if it is named."""
    found = {} if general is None else dict.fromkeys(model.contract.can_fire, general)
    named = {label: own[normalise(label)] for label in model.contract.target_labels if normalise(label) in own}
    return model.with_thresholds(found | named)


def check_fire(
    own: Mapping[str, float], models: Sequence[Model], names: Sequence[str] = (), option: str = "--threshold"
) -> None:
    """Raise UsageError if `option` names neither a label that can fire nor an enrolled name."""
    labels = list(dict.fromkeys(label for model in models for label in model.contract.target_labels))
    silent = {normalise(label) for model in models for label in model.labels} - set(map(normalise, labels))
    known = set(map(normalise, [*labels, *names]))
    for label, level in own.items():
        if label not in known:
            enrolled = f"; enrolled: {format_known_names(label, names)}" if names else ""
            fires = f"(labels that fire: {format_known_names(label, labels) or 'none'}{enrolled})"
            near = closest_name(label, [*labels, *names])
            hint = f"; did you mean {near!r}?" if near else ""
            unknown = "is neither a label nor an enrolled name" if names else "is not a label"
            what = "never fires" if label in silent else unknown
            raise UsageError(f"{option} {label}={level:g}: {label!r} {what} {fires}{hint}")
