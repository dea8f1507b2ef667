"""A stderr that cannot fail: messages must not end the work when their reader is gone or their disk is full.

That happens to a job that outlives the ssh session it was started in. A broken stdout is still an error, as stdout
carries results.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO, cast


class TolerantStream:
    """A stream that drops whatever cannot be written."""

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


def make_stderr_tolerant() -> None:
    """Make stderr such a stream for all who write to it: verbs, progress bars, warnings and libraries."""
    if sys.stderr is not None and not isinstance(sys.stderr, TolerantStream):
        sys.stderr = cast(TextIO, TolerantStream(sys.stderr))
