"""What is said on stderr never costs the work: its reader may be gone, its disk full, or its terminal away.

So it is of a job that outlives the ssh session it was begun in. A stdout that breaks is another thing: it bears results.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO, cast


class Heedless:
    """A stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def speak_heedlessly() -> None:
    """Make stderr such a stream, whoever writes to it: a verb, a bar, a warning, a library."""
    if sys.stderr is not None and not isinstance(sys.stderr, Heedless):
        sys.stderr = cast(TextIO, Heedless(sys.stderr))
