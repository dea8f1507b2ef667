"""`--threshold`, of the verbs that listen."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from confit_runtime.errors import UsageError

if TYPE_CHECKING:
    from confit_runtime.model import Model

FIRE_AT = "Fire at this score, for all labels or for one, in whatever order they are given"


def levels(options: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """`--threshold` as it was given: what a bare VALUE says for all labels, and what `LABEL=VALUE` says for one."""
    general, own = None, {}
    for option in options:
        label, equals, value = option.rpartition("=")
        try:
            level = float(value)
        except ValueError as error:
            raise UsageError(
                f"--threshold {option}: expected LABEL=VALUE or VALUE, a number (of a label from 0 to 1, of a name from -1 to 1)"
            ) from error
        if equals:
            own[plain(label)] = level
        else:
            general = level
    return general, own


def with_thresholds(model: Model, general: float | None, own: dict[str, float]) -> Model:
    """The model, firing at what was given."""
    found = {} if general is None else dict.fromkeys(model.labels, general)
    named = {label: own[plain(label)] for label in model.contract.firing_labels if plain(label) in own}
    return model.with_thresholds(found | named)


def check_fire(own: dict[str, float], models: Sequence[Model], names: Sequence[str] = ()) -> None:
    """Raise UsageError on a threshold for what never fires: no label, or the one for everything else, and no name."""
    labels = list(dict.fromkeys(label for model in models for label in model.contract.firing_labels))
    for label, level in own.items():
        if label not in map(plain, [*labels, *names]):
            enrolled = f"; enrolled: {', '.join(names)}" if names else ""
            raise UsageError(
                f"--threshold {label}={level:g}: {label!r} never fires (what does: {', '.join(labels) or 'no label'}{enrolled})"
            )


def plain(name: str) -> str:
    """A label or a name, however its accents are spelt."""
    return unicodedata.normalize("NFC", name).strip()
