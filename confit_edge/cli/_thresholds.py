"""`--threshold`, `--hold` and `--confidence`, of the verbs that listen and judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from confit_runtime.errors import UsageError
from confit_runtime.names import known_names, nearest, plain

if TYPE_CHECKING:
    from confit_runtime.detect import Hold
    from confit_runtime.model import Model

FIRE_AT = (
    "Fire at this score: VALUE for all labels but those that are set never to fire, LABEL=VALUE for one, in whatever order they"
    " are given"
)


def check_confidence(confidence: float) -> None:
    """Raise UsageError where a --confidence is none that a bound can have."""
    if not 0.5 <= confidence < 1:
        raise UsageError(f"--confidence must be from 0.5 to below 1, is {confidence:g}")


def levels(options: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """`--threshold` as it was given: what a bare VALUE says for all labels that can fire, and what `LABEL=VALUE` says for one."""
    return _numbers(
        "--threshold", options, "VALUE, a number (of a label above 0 and at most 1, of a name from -1 to 1)"
    )


def held(options: Sequence[str]) -> Hold:
    """`--hold` as it was given. Raises UsageError."""
    from confit_runtime.detect import Hold

    general, own = _numbers("--hold", options, "SECONDS, a number")
    try:
        return Hold(general or 0.0, own)
    except UsageError as error:
        raise UsageError(f"--hold: {error}") from error


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
            own[plain(label)] = level
        else:
            general = level
    return general, own


def with_thresholds(model: Model, general: float | None, own: dict[str, float]) -> Model:
    """The model, firing at what was given; what was set never to fire, only where it is named."""
    found = {} if general is None else dict.fromkeys(model.contract.can_fire, general)
    named = {label: own[plain(label)] for label in model.contract.target_labels if plain(label) in own}
    return model.with_thresholds(found | named)


def check_fire(
    own: Mapping[str, float], models: Sequence[Model], names: Sequence[str] = (), option: str = "--threshold"
) -> None:
    """Raise UsageError on an option for what never fires: no label, or the one for everything else, and no name."""
    labels = list(dict.fromkeys(label for model in models for label in model.contract.target_labels))
    silent = {plain(label) for model in models for label in model.labels} - set(map(plain, labels))
    known = set(map(plain, [*labels, *names]))
    for label, level in own.items():
        if label not in known:
            enrolled = f"; enrolled: {known_names(label, names)}" if names else ""
            fires = f"(what fires: {known_names(label, labels) or 'no label'}{enrolled})"
            near = nearest(label, [*labels, *names])
            hint = f"; did you mean {near!r}?" if near else ""
            unknown = "is no label, and no name that is enrolled" if names else "is no label"
            what = "never fires" if label in silent else unknown
            raise UsageError(f"{option} {label}={level:g}: {label!r} {what} {fires}{hint}")
