"""The fields of a dataclass, read from a JSON object of a certain schema."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from confit_runtime.errors import ModelError
from confit_runtime.names import escape_controls

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "float": (int, float),
    "str | None": (str, type(None)),
}


def read_fields(kind: type, text: str | bytes, what: str, schema: int, remake_hint: str) -> dict[str, Any]:
    """The fields of the dataclass `kind` from JSON that has all of them and no others. Their types are not checked.

    `what` begins the sentence of an error; `remake_hint` says how to make a damaged or an older file again. Raises
    ModelError.
    """
    try:
        raw = json.loads(text)
        # rejects NaN, infinity and half surrogate pairs
        json.dumps(raw, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is not JSON ({error}): {remake_hint}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{what} is not a JSON object: {remake_hint}")
    if type(raw.get("schema")) is int:  # checked before the keys, which may differ by schema
        check_schema(f"{what} schema", raw["schema"], schema, raw.get("version"), remake_hint)
    known = {field.name for field in dataclasses.fields(kind)}
    if extra := sorted(raw.keys() - known):
        raise ModelError(f"{what} has unknown keys ({', '.join(extra)}): {_newer_version_hint(raw.get('version'))}")
    if missing := sorted(known - raw.keys()):
        raise ModelError(f"{what} lacks {', '.join(missing)}: {remake_hint}")
    return raw


def check_schema(what: str, schema: int, known: int, version: object, remake_hint: str) -> None:
    """Raise ModelError if a file was written with a `schema` other than the `known` one.

    `version` is the confit-edge version that wrote it; `remake_hint` says how to make an older file again.
    """
    if schema < known:
        raise ModelError(f"{what} {schema} is from an older confit-edge; this one reads {known}: {remake_hint}")
    if schema > known:
        raise ModelError(
            f"{what} {schema} is newer than {known}, the one this version reads: {_newer_version_hint(version)}"
        )


def _newer_version_hint(version: object) -> str:
    """The hint for a file that a newer `version` wrote."""
    from confit_runtime import __version__

    return f"written by confit-edge {escape_controls(str(version))[:40]}; this is {__version__}: update confit-edge"


def check_type(what: str, annotation: str, value: object) -> None:
    """Raise ModelError unless a value is what the annotation of its field says."""
    if annotation in _TYPES:
        good = isinstance(value, _TYPES[annotation]) and (annotation == "bool" or not isinstance(value, bool))
        good = good and value == value and value not in (float("inf"), float("-inf"))
    elif annotation == "tuple[str, ...]":
        good = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    elif annotation == "dict[str, list[int]]":
        good = isinstance(value, dict) and all(
            isinstance(shape, list) and all(type(size) is int for size in shape) for shape in value.values()
        )
    elif annotation == "dict[str, dict[str, float]]":
        good = isinstance(value, dict) and all(
            isinstance(levels, dict)
            and all(type(level) in (int, float) and level == level for level in levels.values())
            for levels in value.values()
        )
    else:
        good = isinstance(value, dict)
    if not good:
        kind = annotation.replace("tuple[str, ...]", "list[str]")  # as it is called in JSON
        raise ModelError(f"{what} must be {kind}; it is {str(value)[:60]!r}")
