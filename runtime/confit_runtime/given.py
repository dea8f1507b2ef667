"""Check the models or streams and the source that a program passes to `listen`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from confit_runtime.audio import check_rate
from confit_runtime.errors import UsageError
from confit_runtime.sources import Given, GivenSource, open_source
from confit_runtime.sources.base import Mixed
from confit_runtime.wording import listed

if TYPE_CHECKING:
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

_OF_A_SOURCE = ("name", "rate", "live", "__enter__", "__exit__", "__iter__")


def streams_of(models: Model | Stream | Iterable[Model | Stream]) -> list[Stream]:
    """Return one stream per model, which hears a recording from its first sample; streams are returned as they are.

    Raises UsageError if an item is neither a model nor a stream, if there is none, and for a stream made with
    `ends=True`, because `listen` does not report ends.
    """
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

    several = list(models) if isinstance(models, Iterable) and not isinstance(models, str) else [models]
    for one in several:
        if not isinstance(one, Model | Stream):
            raise UsageError(f"expected a loaded model or a stream, got {one!r}: load(...) returns a model")
        if isinstance(one, Stream) and one.ends:
            raise UsageError(
                f"a stream of {one.model.name} was made with ends=True, but listen yields detections only: iterate over"
                " Listener([stream], ...).follow(source), or follow_async(source), which also yield ends, gaps and notices"
            )
    if not several:
        raise UsageError("there is no model to listen with: pass at least one, as load(...) returns it")
    return [one if isinstance(one, Stream) else one.stream(lead_in=None) for one in several]


def source_of(source: str | Path | GivenSource, *, stopped: bool = False) -> GivenSource:
    """Return the source that is passed, or open the one that is named.

    Raises UsageError if it is not a source or, with `stopped`, has no `stop`; also what `open_source` raises.
    """
    if isinstance(source, str | Path):
        return open_source(source)
    check_source(source, stopped=stopped)
    return source


def check_source(source: object, *, stopped: bool) -> None:
    """Raise UsageError if `source` is not a source, or if it must be `stopped` and has no `stop` method."""
    if lacks := [part for part in (*_OF_A_SOURCE, *(["stop"] if stopped else [])) if not hasattr(source, part)]:
        raise UsageError(
            f"expected a source, got {type(source).__name__}, which lacks {listed(lacks, 8)}: open_source(...)"
            " opens one by name"
        )


def chunk_of(item: object) -> Given:
    """Return the chunk that a source yielded.

    Raises UsageError if it is not a `(pcm, rate)` tuple or the rate is invalid.
    """
    if not isinstance(item, tuple) or len(item) != 2:
        what = f"a tuple of {len(item)}" if isinstance(item, tuple) else type(item).__name__
        raise UsageError(f"a source yields (pcm, rate) tuples, Gap, Notice and Pause; this one yielded {what}")
    pcm, rate = item
    return item if isinstance(item, Mixed) else (pcm, check_rate(rate))
