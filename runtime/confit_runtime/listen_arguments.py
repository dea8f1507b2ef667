"""Check the models or streams and the source that a program passes to `listen`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from confit_runtime.audio import check_rate
from confit_runtime.errors import UsageError
from confit_runtime.formatting import format_list
from confit_runtime.sources import InputChunk, InputSource, open_source
from confit_runtime.sources.base import DownmixedChunk

if TYPE_CHECKING:
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

_SOURCE_ATTRIBUTES = ("name", "rate", "live", "__enter__", "__exit__", "__iter__")


def make_streams(models: Model | Stream | Iterable[Model | Stream]) -> list[Stream]:
    """Return one stream per model, which hears a recording from its first sample; streams are returned as they are.

    Raises UsageError if an item is neither a model nor a stream, if there is none, and for a stream made with
    `ends=True`, because `listen` does not report ends.
    """
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

    items = list(models) if isinstance(models, Iterable) and not isinstance(models, str) else [models]
    for one in items:
        if not isinstance(one, Model | Stream):
            raise UsageError(f"expected a loaded model or a stream, got {one!r}: load(...) returns a model")
        if isinstance(one, Stream) and one.ends:
            raise UsageError(
                f"a stream of {one.model.name} was made with ends=True, but listen yields detections only: iterate over"
                " Listener([stream], ...).follow(source), or follow_async(source), which also yield ends, gaps and notices"
            )
    if not items:
        raise UsageError("there is no model to listen with: pass at least one, as load(...) returns it")
    return [one if isinstance(one, Stream) else one.stream(lead_in=None) for one in items]


def resolve_source(source: str | Path | InputSource, *, stopped: bool = False) -> InputSource:
    """Return the source that is passed, or open the one that is named.

    Raises UsageError if it is not a source or, with `stopped`, has no `stop`; also what `open_source` raises.
    """
    if isinstance(source, str | Path):
        return open_source(source)
    check_source(source, stopped=stopped)
    return source


def check_source(source: object, *, stopped: bool) -> None:
    """Raise UsageError if `source` is not a source, or if it must be `stopped` and has no `stop` method."""
    if lacks := [part for part in (*_SOURCE_ATTRIBUTES, *(["stop"] if stopped else [])) if not hasattr(source, part)]:
        raise UsageError(
            f"expected a source, got {type(source).__name__}, which lacks {format_list(lacks, 8)}: open_source(...)"
            " opens one by name"
        )


def check_chunk(item: object) -> InputChunk:
    """Return the chunk that a source yielded.

    Raises UsageError if it is not a `(pcm, rate)` tuple or the rate is invalid.
    """
    if not isinstance(item, tuple) or len(item) != 2:
        what = f"a tuple of {len(item)}" if isinstance(item, tuple) else type(item).__name__
        raise UsageError(f"a source yields (pcm, rate) tuples, Gap, Notice and Pause; this one yielded {what}")
    pcm, rate = item
    return item if isinstance(item, DownmixedChunk) else (pcm, check_rate(rate))
