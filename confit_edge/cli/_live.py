"""What a terminal shows during listening and recording: the level, the best recent scores, and the last detections."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from confit_edge.cli._console import say, stderr_is_terminal
from confit_edge.cli._gallery_options import refusal_reason
from confit_runtime.frames import to_db
from confit_runtime.listener import Tap
from confit_runtime.names import escape_controls

if TYPE_CHECKING:
    from confit_runtime.arrays import Floats
    from confit_runtime.audio import Pcm
    from confit_runtime.events import Detection
    from confit_runtime.matcher import Match
    from confit_runtime.stream import Stream

FLOOR_DB = -60
WIDTH = 30

_REFRESH_S = 0.1
HOLD_S = 1.5  # how long the mark of the loudest moment stays, and a score
_SHOWN_LABELS = 4


class LiveView(Tap):
    """A few lines at the bottom of the terminal on stderr, redrawn ten times a second until stopped."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._readings = [Reading(stream) for stream in streams]
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._last: deque[str] = deque(maxlen=3)

    def begin(self, name: str, rate: int) -> None:
        self._name, self._rate = escape_controls(name), rate
        self._samples = self._dropped = 0
        self._peak = self._held = 0.0
        self._held_at = self._shown = -math.inf
        self._note = ""
        self._live.start()

    def hear(self, pcm: Pcm, rate: int) -> None:
        self._samples += len(pcm)
        self._note = ""
        self._peak = max(self._peak, float(np.abs(pcm).max(initial=0.0)))
        self._show()

    def skip(self, samples: int) -> None:
        self._samples += samples
        self._dropped += samples
        self._note = "  no sound"
        self._show()

    def judge(self, detection: Detection) -> Detection:
        self._last.appendleft(f"{detection.label} {detection.score:.2f} at {clock(detection.start_s)}")
        return detection

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the view while a line is printed on this terminal."""
        began = self._live.is_started
        self._live.stop()
        yield
        if began:
            self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown < _REFRESH_S:
            return
        if self._peak >= self._held or now - self._held_at > HOLD_S:
            self._held, self._held_at = self._peak, now
        self._live.update(Group(*self._lines()), refresh=True)
        self._peak, self._shown = 0.0, now

    def _lines(self) -> Iterator[Text]:
        lost = f"  {self._dropped / self._rate:.1f} s lost" if self._dropped else ""
        colour = "red" if self._held >= 0.99 else "green"
        yield Text.assemble(
            (meter(self._peak, self._held), colour),
            f" {to_db(self._peak, FLOOR_DB):4.0f} dB  {clock(self._samples / self._rate)}  {self._name}{lost}{self._note}",
            overflow="ellipsis",
            no_wrap=True,
        )
        for reading in self._readings:
            for line in reading.lines():
                yield Text(escape_controls(line), overflow="ellipsis", no_wrap=True)
        if self._last:
            yield Text(escape_controls("heard: " + ", ".join(self._last)), overflow="ellipsis", no_wrap=True)


class Reading:
    """The highest scores of a stream in the last `HOLD_S`, and the best match of its gallery, each with what it needs to fire."""

    def __init__(self, stream: Stream) -> None:
        contract = stream.model.contract
        fires = set(contract.can_fire)
        self._needs = [
            f"/{contract.thresholds[label]['on']:.2f}" if label in fires else "" for label in contract.labels
        ]
        self._name, self._labels = stream.model.name, contract.labels
        self._scores = np.zeros(len(contract.labels), np.float32)
        self._scored_at = np.full(len(contract.labels), -math.inf)
        self._match: Match | None = None
        self._matched_at = -math.inf
        stream.on_row = self.take

    def take(self, scores: Floats, match: Match | None) -> None:
        """Take a row: its smoothed scores `[classes]`, and what it matches."""
        now = time.monotonic()
        newer = (scores >= self._scores) | (now - self._scored_at > HOLD_S)
        self._scores, self._scored_at = np.where(newer, scores, self._scores), np.where(newer, now, self._scored_at)
        if match is not None and (
            self._match is None or _excess(match) >= _excess(self._match) or now - self._matched_at > HOLD_S
        ):
            self._match, self._matched_at = match, now

    def lines(self) -> Iterator[str]:
        now = time.monotonic()
        recent = np.flatnonzero(now - self._scored_at <= HOLD_S)
        if len(recent):
            best = recent[np.argsort(-self._scores[recent])][:_SHOWN_LABELS]
            scores = "  ".join(f"{self._labels[at]} {self._scores[at]:.2f}{self._needs[at]}" for at in best)
            yield f"{self._name}: {scores}"
        match = self._match if now - self._matched_at <= HOLD_S else None
        if match is not None and match.nearest is not None:
            why = f" ({refusal_reason(match, match.nearest)})" if match.reason else ""
            yield f"{self._name}: {match.nearest} {match.score:.2f}{why}"


def _excess(match: Match) -> float:
    return match.score - match.threshold


def meter(peak: float, held: float = 0.0) -> str:
    """A level 0..1 as a bar from -60 dB to 0 dB, with a mark at the loudest recent moment."""
    bar = list("#" * round(WIDTH * (1 - to_db(peak, FLOOR_DB) / FLOOR_DB)))
    bar += "-" * (WIDTH - len(bar))
    if held > 0:
        bar[min(WIDTH - 1, round(WIDTH * (1 - to_db(held, FLOOR_DB) / FLOOR_DB)))] = "|"
    return f"[{''.join(bar)}]"


def say_alone(text: str) -> None:
    """Print a line for a person, erasing the line of `level_line` first."""
    if stderr_is_terminal():
        _clear_line()
    say(text)


def level_line() -> Callable[[float, Pcm], None]:
    """A callback that shows the countdown, the time left and the level on one line of the terminal, ten times a second."""
    peak, shown = 0.0, 0.0

    def show(to_go: float, pcm: Pcm) -> None:
        nonlocal peak, shown
        peak = max(peak, float(abs(pcm).max(initial=0.0)))
        if time.monotonic() - shown >= 0.1:
            what = f"NOW {to_go:4.1f} s" if to_go >= 0.0 else f"in {-to_go:5.1f} s"
            print(f"\r  {what} {meter(peak)} \x1b[K", end="", file=sys.stderr, flush=True)
            peak, shown = 0.0, time.monotonic()
        if to_go == 0.0:
            _clear_line()

    return show


def _clear_line() -> None:
    """Erase the current line of the terminal. Printed here because `say` would escape the control codes."""
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS, or M:SS below one hour."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
