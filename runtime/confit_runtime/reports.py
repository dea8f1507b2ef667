"""The form of a contract's `data` and `calibration`: which keys are allowed, and the kind of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from confit_runtime.errors import ModelError

SPLITS = ("train", "val", "test")
ALWAYS = ("fingerprint", "clips", "groups")  # required in `data`, unless it is empty
Check = Callable[[object], bool]


def check_data(data: Mapping[str, Any]) -> None:
    """Raise ModelError unless `data` is empty, or gives the clips and groups behind a model by split."""
    _check("data", data, _DATA)
    if data and (missing := [key for key in ALWAYS if key not in data]):
        raise ModelError(f"contract key 'data' lacks {', '.join(missing)}")


def check_calibration(calibration: Mapping[str, Any]) -> None:
    """Raise ModelError unless `calibration` contains valid settings for enrollment and reports on thresholds."""
    _check("calibration", calibration, _CALIBRATION)
    if (enroll := calibration.get("enroll")) is not None:
        _check("calibration.enroll", enroll, _ENROLL)
        if "kind" not in enroll:
            raise ModelError("contract key 'calibration.enroll' lacks kind")


def _check(where: str, values: Mapping[str, Any], known: Mapping[str, tuple[str, Check]]) -> None:
    if extra := sorted(values.keys() - known):
        raise ModelError(f"contract key '{where}' has unknown keys: {', '.join(map(str, extra))[:60]}")
    for key, value in values.items():
        kind, good = known[key]
        if not good(value):
            raise ModelError(f"contract key '{where}.{key}' must be {kind}; it is {str(value)[:60]!r}")


def _text(value: object) -> bool:
    return isinstance(value, str)


def _truth(value: object) -> bool:
    return isinstance(value, bool)


def _object(value: object) -> bool:
    return isinstance(value, Mapping)


def _count(value: object) -> bool:
    return type(value) is int and value >= 0


def _from_to(low: float, high: float, slack: float = 0.0) -> tuple[str, Check]:
    def within(value: object) -> bool:
        return type(value) in (int, float) and low - slack <= value <= high + slack  # type: ignore[operator]

    return f"a number from {low:g} to {high:g}", within


def _kind(value: object) -> bool:
    return value in ("speaker", "sound")


def _by_split(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) == set(SPLITS) and all(map(_count, value.values()))


def _of_some_splits(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) <= set(SPLITS) and all(map(_count, value.values()))


def _own(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == set(SPLITS)
        and all(isinstance(row, Mapping) and set(row) == {"clips", "groups"} for row in value.values())
        and all(_count(count) for row in value.values() for count in row.values())
    )


_DATA: dict[str, tuple[str, Check]] = {
    "fingerprint": ("text", _text),
    "clips": ("a count for train, val and test", _by_split),
    "groups": ("a count for train, val and test", _by_split),
    "own": ("clips and groups for train, val and test", _own),
    "grouped": ("true or false", _truth),
    "repeated": ("a count for val and test", _of_some_splits),
    "multi_label": ("true or false", _truth),
}
_CALIBRATION: dict[str, tuple[str, Check]] = dict.fromkeys(("enroll", "detection", "device"), ("an object", _object))
_SIMILARITY = _from_to(-1, 1, slack=1e-6)  # a mean of cosines in float32 may be slightly more
_ENROLL: dict[str, tuple[str, Check]] = {
    "kind": ("speaker or sound", _kind),
    "threshold": _SIMILARITY,
    "margin": _from_to(0, 2),
    "genuine": _SIMILARITY,
    "false_accept_rate": _from_to(0, 1),
    "trials": ("a count", _count),
}
