"""What a program gives to be listened to: models or streams, and a source. What is none of these is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from confit_runtime.audio import check_rate
from confit_runtime.errors import UsageError
from confit_runtime.sources import Given, GivenSource, open_source
from confit_runtime.wording import listed

if TYPE_CHECKING:
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

_OF_A_SOURCE = ("name", "rate", "live", "__enter__", "__exit__", "__iter__")


def streams_of(models: Model | Stream | Iterable[Model | Stream]) -> list[Stream]:
    """A stream for each model, which hears a recording from its very beginning; streams are taken as they are.

    Raises UsageError on what is neither, on a stream that tells of ends, which nobody would hear of, and where there is none.
    """
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

    several = list(models) if isinstance(models, Iterable) and not isinstance(models, str) else [models]
    for one in several:
        if not isinstance(one, Model | Stream):
            raise UsageError(f"a loaded model or a stream listens, not {one!r}: load(...) gives a model")
        if isinstance(one, Stream) and one.ends:
            raise UsageError(
                f"a stream of {one.model.name} was made with ends=True, and listen gives detections only: iterate over"
                " Listener([stream], ...).follow(source), or follow_async(source), which give ends, gaps and notices as well"
            )
    if not several:
        raise UsageError("there is no model to listen with: give one, as load(...) does, or more")
    return [one if isinstance(one, Stream) else one.stream(lead_in=None) for one in several]


def source_of(source: str | Path | GivenSource, *, stopped: bool = False) -> GivenSource:
    """A source, opened where it is named, that can be `stopped`. Raises UsageError on what is none, and as `open_source`."""
    if isinstance(source, str | Path):
        return open_source(source)
    check_source(source, stopped=stopped)
    return source


def check_source(source: object, *, stopped: bool) -> None:
    """Raise UsageError on what is no source, or cannot be `stopped` and is to be."""
    if lacks := [part for part in (*_OF_A_SOURCE, *(["stop"] if stopped else [])) if not hasattr(source, part)]:
        raise UsageError(
            f"a source is listened to, not {type(source).__name__}, which lacks {listed(lacks, 8)}: open_source(...) gives one,"
            " of its name"
        )


def chunk_of(item: object) -> Given:
    """The chunk that a source gave. Raises UsageError on what is no `(pcm, rate)`, and on a rate that is none."""
    if not isinstance(item, tuple) or len(item) != 2:
        what = f"{len(item)} things" if isinstance(item, tuple) else type(item).__name__
        raise UsageError(f"a source gives (pcm, rate) tuples, Gap, Notice and Pause, and this one gave {what}")
    pcm, rate = item
    return pcm, check_rate(rate)
