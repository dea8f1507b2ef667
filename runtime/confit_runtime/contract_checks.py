"""The form of a contract's `data` and `calibration`: which keys are allowed, and the kind of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from confit_runtime.errors import ModelError

SPLITS = ("train", "val", "test")
REQUIRED = ("fingerprint", "clips", "groups", "own", "grouped")  # required in `data`, unless it is empty
Check = Callable[[object], bool]


def check_data(data: Mapping[str, Any]) -> None:
    """Raise ModelError unless `data` is empty, or gives the clips and groups behind a model by split."""
    _check_keys("data", data, _DATA)
    if data and (missing := [key for key in REQUIRED if key not in data]):
        raise ModelError(f"contract key 'data' lacks {', '.join(missing)}")


def check_calibration(calibration: Mapping[str, Any]) -> None:
    """Raise ModelError unless `calibration` contains valid settings for enrollment and reports on thresholds."""
    _check_keys("calibration", calibration, _CALIBRATION)
    if (enroll := calibration.get("enroll")) is not None:
        _check_keys("calibration.enroll", enroll, _ENROLL)
        if "kind" not in enroll:
            raise ModelError("contract key 'calibration.enroll' lacks kind")


def _check_keys(where: str, values: Mapping[str, Any], known: Mapping[str, tuple[str, Check]]) -> None:
    if extra := sorted(values.keys() - known):
        raise ModelError(f"contract key '{where}' has unknown keys: {', '.join(map(str, extra))[:60]}")
    for key, value in values.items():
        kind, good = known[key]
        if not good(value):
            raise ModelError(f"contract key '{where}.{key}' must be {kind}; it is {str(value)[:60]!r}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _in_range(low: float, high: float, slack: float = 0.0) -> tuple[str, Check]:
    def within(value: object) -> bool:
        return type(value) in (int, float) and low - slack <= value <= high + slack  # type: ignore[operator]

    return f"a number from {low:g} to {high:g}", within


def _is_kind(value: object) -> bool:
    return value in ("speaker", "sound")


def _is_count_per_split(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) == set(SPLITS) and all(map(_is_count, value.values()))


def _is_count_per_some_splits(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) <= set(SPLITS) and all(map(_is_count, value.values()))


def _is_clips_and_groups_per_split(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == set(SPLITS)
        and all(isinstance(row, Mapping) and set(row) == {"clips", "groups"} for row in value.values())
        and all(_is_count(count) for row in value.values() for count in row.values())
    )


_DATA: dict[str, tuple[str, Check]] = {
    "fingerprint": ("text", _is_text),
    "clips": ("a count for train, val and test", _is_count_per_split),
    "groups": ("a count for train, val and test", _is_count_per_split),
    "own": ("clips and groups for train, val and test", _is_clips_and_groups_per_split),
    "grouped": ("true or false", _is_bool),
    "repeated": ("a count for val and test", _is_count_per_some_splits),
    "multi_label": ("true or false", _is_bool),
}
_CALIBRATION: dict[str, tuple[str, Check]] = dict.fromkeys(("enroll", "detection", "device"), ("an object", _is_object))
_SIMILARITY = _in_range(-1, 1, slack=1e-6)  # a mean of cosines in float32 may be slightly more
_ENROLL: dict[str, tuple[str, Check]] = {
    "kind": ("speaker or sound", _is_kind),
    "threshold": _SIMILARITY,
    "margin": _in_range(0, 2),
    "genuine": _SIMILARITY,
    "stream_threshold": _SIMILARITY,
    "false_accept_rate": _in_range(0, 1),
    "trials": ("a count", _is_count),
    "classes": ("a count", _is_count),
}
