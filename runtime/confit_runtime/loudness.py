"""Detect, while live sound arrives, that it is only digital silence, or clipped."""

from __future__ import annotations

from confit_runtime.audio import Pcm
from confit_runtime.soundcheck import FULL, clipped_share
from confit_runtime.sources.base import Notice

SILENT_S = 30.0  # of nothing but zeros, before the first notice
LONGEST_SILENT_S = 3600.0  # upper limit of the doubling
SPELL_S = 60.0  # over which clipping is judged
CLIPPED_SHARE = 0.1  # share of a spell that lies in chunks with clipped samples


class Loudness:
    """Hears the source `name` and issues notices when silence or clipping begins and ends.

    After each silence, the next notice needs a silence twice as long, up to an hour: a microphone with a noise gate
    delivers zeros whenever the room is quiet.
    """

    def __init__(self, name: str) -> None:
        self._name, self._silent, self._clipped = name, False, False
        self._patience_s = SILENT_S
        self._silent_s = self._spell_s = self._clipped_s = 0.0

    def hear(self, pcm: Pcm, rate: int) -> Notice | None:
        """The notice to issue after a chunk `[samples]` at `rate`, at most half a second long; None if there is none."""
        peak, seconds = max(pcm.max(), -pcm.min()), len(pcm) / rate
        self._silent_s = 0.0 if peak else self._silent_s + seconds
        if self._silent:
            self._silent = not peak
            return Notice("fine", f"{self._name}: has sound again") if peak else None
        self._spell_s += seconds
        if peak >= FULL and clipped_share(pcm):
            self._clipped_s += seconds
        if self._silent_s >= self._patience_s:
            self._silent, self._clipped, self._spell_s, self._clipped_s = True, False, 0.0, 0.0
            self._patience_s = min(2 * self._patience_s, LONGEST_SILENT_S)
            return Notice(
                "silent",
                f"{self._name}: nothing but digital silence for {self._silent_s:.0f} s: it is muted, or this is the"
                " wrong source",
            )
        return self._judge_spell() if self._spell_s >= SPELL_S else None

    def _judge_spell(self) -> Notice | None:
        clipped_s, spell_s, before = self._clipped_s, self._spell_s, self._clipped
        self._clipped_s = self._spell_s = 0.0
        self._clipped = clipped_s >= CLIPPED_SHARE * spell_s
        if self._clipped and not before:
            return Notice(
                "clipped",
                f"{self._name}: clipped in {clipped_s:.0f} of the last {spell_s:.0f} s: turn its gain down, or move"
                " it away from the loud source",
            )
        if before and not self._clipped:
            return Notice("fine", f"{self._name}: is no longer clipped")
        return None
