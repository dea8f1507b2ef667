"""Array types by what they contain, and checks of arrays, counts and seconds that a program passes."""

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

LARGEST = 2**53  # up to which a float64 holds every whole number
LARGEST_TABLE = 4_000_000  # numbers computed at once, where a table can be computed in parts


def floats(values: npt.ArrayLike, what: str) -> Floats:
    """`values` as float32. Raises UsageError, saying that `what` was expected, if they are not numbers."""
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError comes from tensors with a gradient
        raise UsageError(f"{what}: must be numbers ({error})") from error


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number, Python's or numpy's, but not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def whole(count: float, what: str, least: int) -> int:
    """`count` as an int.

    Raises UsageError, naming `what` it is, unless it is a whole number of at least `least` and at most `LARGEST`.
    """
    if not isinstance(count, Real) or not least <= count < math.inf or int(count) != count:
        raise UsageError(f"{what}: must be a whole number, {least} or more; it is {count!r}")
    return int(_not_too_large(count, what))


def duration(seconds: float, what: str, least_s: float = 0.0) -> float:
    """`seconds` as a float.

    Raises UsageError, naming `what` they are, unless they are a number of at least `least_s` and at most `LARGEST`.
    """
    if not isinstance(seconds, Real) or not least_s <= seconds < math.inf:
        raise UsageError(f"{what}: must be a number of seconds, {least_s:g} or more; it is {seconds!r}")
    return float(_not_too_large(seconds, what))


def _not_too_large(number: float, what: str) -> float:
    if number > LARGEST:
        raise UsageError(f"{what}: must be at most {LARGEST:,}")
    return number
