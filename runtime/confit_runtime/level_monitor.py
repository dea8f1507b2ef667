"""Detect, while sound arrives, that it is only digital silence, or clipped, or that its channels cancel each other."""

from __future__ import annotations

from confit_runtime.audio import Pcm
from confit_runtime.channels import ONE_CHANNEL, Clipping, Mixing
from confit_runtime.sources.base import Notice

SILENT_S = 30.0  # of nothing but zeros, before the first notice
MAX_SILENT_S = 3600.0  # upper limit of the doubling
PERIOD_S = 60.0  # over which clipping is judged
LOUD_S = 5.0  # of loud sound, by which it is judged whether channels cancel
CLIPPED_SHARE = 0.1  # share of a spell that lies in chunks with clipped samples


class LevelMonitor:
    """Hears the source `name` and issues notices when silence or clipping begins and ends.

    After each silence, the next notice needs a silence twice as long, up to an hour: a microphone with a noise gate
    delivers zeros whenever the room is quiet.
    """

    def __init__(self, name: str) -> None:
        self._name, self._silent, self._clipped = name, False, False
        self._silence_limit_s = SILENT_S
        self._silent_s = self._period_s = 0.0
        self._clipping = Clipping()

    def hear(self, channels: Pcm, rate: int) -> Notice | None:
        """The notice to issue after a chunk `[samples, channels]`, at most half a second long; None if there is none."""
        any_sound, seconds = bool(channels.any()), len(channels) / rate
        self._silent_s = 0.0 if any_sound else self._silent_s + seconds
        if self._silent:
            self._silent = not any_sound
            return Notice("fine", f"{self._name}: has sound again") if any_sound else None
        self._period_s += seconds
        self._clipping.hear(channels)
        if self._silent_s >= self._silence_limit_s:
            self._silent, self._clipped, self._period_s, self._clipping = True, False, 0.0, Clipping()
            self._silence_limit_s = min(2 * self._silence_limit_s, MAX_SILENT_S)
            return Notice(
                "silent",
                f"{self._name}: nothing but digital silence for {self._silent_s:.0f} s: it is muted, or this is the"
                " wrong source",
            )
        return self._judge_period(rate) if self._period_s >= PERIOD_S else None

    def _judge_period(self, rate: int) -> Notice | None:
        clipped_s, spell_s, was_clipped = self._clipping.spread / rate, self._period_s, self._clipped
        self._period_s, self._clipping = 0.0, Clipping()
        self._clipped = clipped_s >= CLIPPED_SHARE * spell_s
        if self._clipped and not was_clipped:
            return Notice(
                "clipped",
                f"{self._name}: clipped in {clipped_s:.0f} of the last {spell_s:.0f} s: turn its gain down, or move"
                " it away from the loud source",
            )
        if was_clipped and not self._clipped:
            return Notice("fine", f"{self._name}: is no longer clipped")
        return None


class CancellationMonitor:
    """Hears the channels of the source `name` and issues notices when they begin and cease to cancel each other."""

    def __init__(self, name: str) -> None:
        self._name, self._cancelled, self._mixing = name, False, Mixing()

    def hear(self, channels: Pcm, rate: int) -> Notice | None:
        """The notice to issue after a chunk `[samples, channels]`; None if there is none."""
        self._mixing.hear(channels, rate)
        if self._mixing.loud_s < LOUD_S:
            return None
        was_cancelled, self._cancelled = self._cancelled, self._mixing.cancels
        self._mixing = Mixing()
        if self._cancelled and not was_cancelled:
            return Notice(
                "cancelled",
                f"{self._name}: its channels cancel each other where they are averaged, so little is heard: {ONE_CHANNEL}",
            )
        if was_cancelled and not self._cancelled:
            return Notice("fine", f"{self._name}: its channels no longer cancel each other")
        return None
