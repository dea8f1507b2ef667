"""How verbs end in good order: on Ctrl-C, on SIGTERM, which stops a service, and where the terminal goes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from confit_runtime.sources import Chunk, Gap, Notice, Pause, Source


def stop_as_ctrl_c_does() -> None:
    """From here on these signals end the process as Ctrl-C does, so that what it has begun is removed."""
    _on_others(_interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a terminal that goes may send it twice, and removing would stop
    raise KeyboardInterrupt


def _on_others(stop: Callable[[int, FrameType | None], None]) -> None:
    """Call `stop` on those that are not Ctrl-C."""
    signal.signal(signal.SIGTERM, stop)
    # Windows has no SIGHUP, and who ignores it, as `nohup` does, goes on
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)


class UntilStopped:
    """A block that such a signal ends: at once where sound is waited for, else when the piece that came last has been heard.

    So what is detected in that is told, and kept where it is to be kept, as is a clip that it completes. A second signal
    ends it at once.
    """

    def __init__(self) -> None:
        self._hearing = self._wanted = False

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, self._stop)  # a job in a script's background is started with it ignored
        _on_others(self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._hearing = False
        return isinstance(error, KeyboardInterrupt)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._hearing or self._wanted:
            raise KeyboardInterrupt
        self._wanted = True

    def between_pieces(self, source: Source) -> Source:
        """The source, which is left between two of its pieces."""
        return _BetweenPieces(source, self)

    def pieces(self, source: Source) -> Iterator[Chunk | Gap | Notice | Pause]:
        """What the source gives; raises KeyboardInterrupt in place of the next piece when a signal came meanwhile."""
        pieces = iter(source)
        while True:
            self._hearing = False
            if self._wanted:
                raise KeyboardInterrupt
            piece = next(pieces, None)
            self._hearing = True
            if piece is None:
                return
            yield piece


class _BetweenPieces:
    """A source that is open, and is left as `UntilStopped` says."""

    def __init__(self, source: Source, until: UntilStopped) -> None:
        self._source, self._until = source, until
        self.name, self.rate, self.live = source.name, source.rate, source.live

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whoever opened the source closes it."""

    def __iter__(self) -> Iterator[Chunk | Gap | Notice | Pause]:
        return self._until.pieces(self._source)

    def stop(self) -> None:
        self._source.stop()
