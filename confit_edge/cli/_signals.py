"""How verbs end in good order: on Ctrl-C, on SIGTERM (which stops a service), and when the terminal closes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from confit_runtime.sources import Chunk, Gap, Notice, Pause, Source


def treat_signals_as_ctrl_c() -> None:
    """From now on SIGTERM and SIGHUP end the process as Ctrl-C does, so that unfinished files are removed."""
    _on_termination_signals(_interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a closing terminal may send it twice, which would stop the removal
    raise KeyboardInterrupt


def _on_termination_signals(stop: Callable[[int, FrameType | None], None]) -> None:
    """Call `stop` on SIGTERM and SIGHUP."""
    signal.signal(signal.SIGTERM, stop)
    # Windows has no SIGHUP; a process that ignores it, as under `nohup`, keeps running
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)


class StopOnSignal:
    """A block that Ctrl-C, SIGTERM or SIGHUP ends: at once while it waits for sound, else after the current piece.

    So a detection in that piece is still reported and saved, and a clip that it completes is kept. A second signal ends the
    block at once.
    """

    def __init__(self) -> None:
        self._processing = self._stop_requested = False

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, self._stop)  # a background job of a script starts with SIGINT ignored
        _on_termination_signals(self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._processing = False
        return isinstance(error, KeyboardInterrupt)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._processing or self._stop_requested:
            raise KeyboardInterrupt
        self._stop_requested = True

    def stoppable(self, source: Source) -> Source:
        """The source, ended by a signal only between two pieces."""
        return _StoppableSource(source, self)

    def pieces(self, source: Source) -> Iterator[Chunk | Gap | Notice | Pause]:
        """The pieces of the source. Raises KeyboardInterrupt instead of the next piece if a signal came meanwhile."""
        pieces = iter(source)
        while True:
            self._processing = False
            if self._stop_requested:
                raise KeyboardInterrupt
            piece = next(pieces, None)
            self._processing = True
            if piece is None:
                return
            yield piece


class _StoppableSource:
    """An open source that ends as `StopOnSignal` describes."""

    def __init__(self, source: Source, stopper: StopOnSignal) -> None:
        self._source, self._stopper = source, stopper
        self.name, self.rate, self.live = source.name, source.rate, source.live

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: whoever opened the source closes it."""

    def __iter__(self) -> Iterator[Chunk | Gap | Notice | Pause]:
        return self._stopper.pieces(self._source)

    def stop(self) -> None:
        self._source.stop()
