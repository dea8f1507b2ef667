"""The arrays that all parts pass to each other, by what they hold; and what a program gives, as arrays, counts and seconds."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from confit_runtime.errors import UsageError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
Targets = npt.NDArray[np.int8]  # 0/1 `[clips, classes]`

LARGEST_TABLE = 4_000_000  # numbers that are made at once, where a table can be made in parts


def floats(values: npt.ArrayLike, what: str) -> Floats:
    """`values` as float32. Raises UsageError, saying `what` was expected, where they are no numbers."""
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # the last of tensors with a gradient
        raise UsageError(f"{what}: numbers are expected ({error})") from error


def is_number(value: object) -> TypeGuard[float]:
    """Whether a program gave a number: Python's or numpy's, and not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def whole(count: float, what: str, least: int) -> int:
    """`count` as an int. Raises UsageError, saying `what` takes one, where it is no whole number of `least` or more."""
    if not isinstance(count, Real) or not least <= count < math.inf or int(count) != count:
        raise UsageError(f"{what}: a whole number is expected, {least} or more, got {count!r}")
    return int(count)


def duration(seconds: float, what: str, least_s: float = 0.0) -> float:
    """`seconds` as a float. Raises UsageError, saying `what` takes them, where they are no number of `least_s` or more."""
    if not isinstance(seconds, Real) or not least_s <= seconds < math.inf:
        raise UsageError(f"{what}: a number of seconds is expected, {least_s:g} or more, got {seconds!r}")
    return float(seconds)
