"""The JSON object of each event that a `Listener` yields, the same on the command line, over a network and in a page."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from confit_runtime.events import Detection, Ended
from confit_runtime.sources.base import Gap, Notice

if TYPE_CHECKING:
    from confit_runtime.listener import Listener


def event_to_json(event: Detection | Ended | Gap | Notice, listener: Listener) -> dict[str, Any]:
    """The keys and values of docs/json.md for an event, ready for `json.dumps`; call it as soon as `listener` yields it.

    `type` says which kind of event it is, and `source` is the listener's name. `at`, the time of day in UTC, is there if
    the sound is live and its time is known: of the start of a detection or gap, of an end, and of a notice now.
    """
    fields: dict[str, Any]
    match event:
        case Detection():
            kind, at, fields = "detection", listener.time_of(event.start_sample), dataclasses.asdict(event)
        case Ended():
            kind, at, fields = "ended", listener.time_of(event.end_sample), dataclasses.asdict(event)
        case Gap():
            kind, at = "gap", listener.time_of(listener.samples - event.samples)
            seconds = round(event.samples / listener.rate, 3)
            fields = {"samples": event.samples, "seconds": seconds, "reason": event.reason}
        case Notice():
            kind, at = "notice", None if listener.time_of(listener.samples) is None else time.time()
            fields = {"state": event.state, "text": event.text}
    time_of_day = {} if at is None else {"at": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")}
    return {"type": kind, **fields, "source": listener.name, **time_of_day}
