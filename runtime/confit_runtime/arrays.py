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
Indices = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Targets = npt.NDArray[np.int8]  # 0/1 `[clips, classes]`

MAX_NUMBER = 2**53  # up to which a float64 holds every whole number
MAX_TABLE_SIZE = 4_000_000  # numbers computed at once, where a table can be computed in parts


def as_floats(values: npt.ArrayLike, what: str) -> Floats:
    """`values` as float32. Raises UsageError, saying that `what` was expected, if they are not numbers."""
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError comes from tensors with a gradient
        raise UsageError(f"{what}: must be numbers ({error})") from error


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number, Python's or numpy's, but not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_count(count: float, what: str, minimum: int) -> int:
    """`count` as an int.

    Raises UsageError, naming `what` it is, unless it is a whole number of at least `minimum` and at most `MAX_NUMBER`.
    """
    if not isinstance(count, Real) or not minimum <= count < math.inf or int(count) != count:
        raise UsageError(f"{what}: must be a whole number, {minimum} or more; it is {count!r}")
    return int(_not_too_large(count, what))


def check_duration(seconds: float, what: str, minimum_s: float = 0.0) -> float:
    """`seconds` as a float.

    Raises UsageError, naming `what` they are, unless they are a number of at least `minimum_s` and at most `MAX_NUMBER`.
    """
    if not isinstance(seconds, Real) or not minimum_s <= seconds < math.inf:
        raise UsageError(f"{what}: must be a number of seconds, {minimum_s:g} or more; it is {seconds!r}")
    return float(_not_too_large(seconds, what))


def _not_too_large(number: float, what: str) -> float:
    if number > MAX_NUMBER:
        raise UsageError(f"{what}: must be at most {MAX_NUMBER:,}")
    return number
