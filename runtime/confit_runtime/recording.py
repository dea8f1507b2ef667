"""Recording a clip from a microphone, and checking it at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from confit_runtime.arrays import check_duration
from confit_runtime.audio import Pcm
from confit_runtime.channels import ChannelCheck
from confit_runtime.errors import DeviceError, UsageError
from confit_runtime.frames import FRAME_S
from confit_runtime.soundcheck import Soundcheck, find_fault, soundcheck
from confit_runtime.sources import Gap, Notice, Pause, Source

Show = Callable[[float, Pcm], None]  # seconds left (below 0: of the countdown), and the newest sound
Tell = Callable[[str], None]  # the text of a notice from the source


@dataclass(frozen=True)
class Take:
    """A recorded clip `[samples]` at `rate`, its measurements, and why it should be recorded again (None: it is good)."""

    pcm: Pcm
    rate: int
    check: Soundcheck
    fault: str | None


def record_clip(
    source: Source,
    seconds: float,
    *,
    countdown_s: float = 0.0,
    quiet: bool = False,
    show: Show | None = None,
    notify: Tell | None = None,
) -> Take:
    """Record `seconds` from a live source, inside its `with` block, after a countdown of `countdown_s`.

    Sound from the countdown and from the source's queue is discarded: the clip begins when the countdown ends. If the
    source goes away, it is waited for, and the countdown starts again. `show` is called with each chunk, and `notify`
    with the text of each notice. A clip softer than speech is a fault, unless it is meant to be `quiet`.

    Raises UsageError if the source is not live or a number of seconds is invalid, and DeviceError if the source ends
    before the clip does.
    """
    check_live(source)
    seconds = check_duration(seconds, "the length of a clip", FRAME_S)
    countdown_s = max(check_duration(countdown_s, "the countdown of a clip"), 2 * FRAME_S)
    begin = time.monotonic() + countdown_s
    wanted, parts, taken, lost = round(seconds * source.rate), [np.zeros(0, np.float32)], 0, 0
    channels = ChannelCheck()
    for item in source:
        if isinstance(item, Notice):
            if notify is not None:
                notify(item.text)
            begin = math.inf if item.state == "away" else time.monotonic() + countdown_s
            parts, taken, lost, channels = [np.zeros(0, np.float32)], 0, 0, ChannelCheck()
            continue
        if isinstance(item, Pause):
            continue
        pcm = np.zeros(item.samples, np.float32) if isinstance(item, Gap) else item[0]
        left = begin - time.monotonic()
        if not taken and left > 0.0:
            if show is not None and left < math.inf:
                show(-left, pcm)
            continue
        if isinstance(item, Gap):
            lost += 1
        else:
            channels.hear(item)
        parts.append(pcm)
        taken += len(pcm)
        if show is not None:
            show(max(0.0, (wanted - taken) / source.rate), pcm)
        if taken >= wanted:
            clip = np.concatenate(parts)[:wanted]
            check = soundcheck(clip, source.rate, channels)
            return Take(
                clip, source.rate, check, "some of its sound was lost" if lost else find_fault(check, quiet=quiet)
            )
    raise DeviceError(f"{source.name}: ended before the clip did")


def check_live(source: Source) -> None:
    """Raise UsageError if clips cannot be recorded from this source."""
    if not source.live:
        raise UsageError(f"{source.name}: is already a recording; record clips from a microphone or a stream")
