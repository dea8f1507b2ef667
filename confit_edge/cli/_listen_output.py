"""What `listen` prints: a line for each detection, lost sound, and a summary at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Self

from confit_edge.cli._console import emit, print_line, say, say_failed, stderr_is_terminal
from confit_runtime.errors import AudioError
from confit_runtime.event_json import event_to_json
from confit_runtime.events import Detection, Ended
from confit_runtime.sources import Gap, Notice

if TYPE_CHECKING:
    from confit_edge.cli._live import LiveView
    from confit_runtime.listener import Listener, Tap
    from confit_runtime.sources import Source
    from confit_runtime.stream import Stream


class ListenPrinter:
    """Prints what listeners hear as they hear it, and a summary when the block ends, however it ends.

    If the source is a folder, `name` is its name and `clips` is true. Each line then names its clip, and each clip also gets a
    line `heard` of its own (without --json: a line if nothing was heard in it).
    """

    def __init__(self, name: str, streams: Sequence[Stream], *, json: bool, clips: bool = False) -> None:
        self._name, self._streams, self._json, self._clips = name, streams, json, clips
        self._counts: Counter[tuple[str, str]] = Counter()  # (model, label)
        self._withheld: Counter[tuple[str, str]] = Counter()
        self._seconds, self._dropped = 0.0, 0
        self._heard = self._failed = 0  # clips
        self._began = False
        self._narrow: set[tuple[str, ...]] = set()  # models for which it was reported what the source lacks
        self._view: LiveView | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view is not None:
            self._view.stop()
        # if it failed before any sound came, a person needs only the error
        has_summary = self._json or self._seconds or not (error or self._failed)
        if self._began and has_summary and not isinstance(error, BrokenPipeError):
            self._print_summary()

    def taps(self, source: Source) -> list[Tap]:
        """The taps for `source`: the live view if it is live and stderr is a terminal, else none."""
        if not (source.live and stderr_is_terminal()):
            return []
        from confit_edge.cli._live import LiveView

        self._view = LiveView(self._streams)
        return [self._view]

    def print_all(self, listener: Listener, source: Source) -> None:
        """Print all that the listener hears, until the source ends. Raises AudioError if that gave no sound at all."""
        self._began, before = True, self._counts.copy()
        if not self._clips:
            self._name = source.name  # a URL is shown without its secrets
        try:
            for item in listener.follow(source):
                with self._view_paused():
                    self._print_item(item, listener, source)
        except KeyboardInterrupt:
            self._heard += 1  # in part
            raise
        finally:
            self._seconds += listener.samples / source.rate
            self._dropped += listener.dropped_samples
            self._withheld += listener.withheld
        if not (listener.samples or listener.full):
            raise AudioError(f"{source.name}: ended without any sound; check what should produce it")
        if self._clips:
            self._heard += 1
            self._print_clip(source.name, self._counts - before, listener)

    def print_failed(self, clip: str, error: object) -> None:
        """Report a clip of a folder that cannot be heard; the others are still heard."""
        self._began = True
        self._failed += 1
        say_failed(clip, error, self._json)

    def _view_paused(self) -> AbstractContextManager[None]:
        return self._view.paused() if self._view is not None else nullcontext()

    def _print_item(self, item: Detection | Ended | Gap | Notice, listener: Listener, source: Source) -> None:
        if isinstance(item, Notice):
            if item.models not in self._narrow:  # for a folder, the notice names only the first clip
                say(item.text)
            if item.state == "narrow":
                self._narrow.add(item.models)
        elif isinstance(item, Gap):
            say(f"lost {item.samples / source.rate:.2f} s of sound: {item.reason}")
        elif isinstance(item, Detection):
            self._counts[item.model, item.label] += 1
        if self._json:
            fields = event_to_json(item, listener) | {"source": self._name}
            emit(fields.pop("type"), **fields, **({"clip": source.name} if self._clips else {}))
        elif isinstance(item, Detection):
            speaker = f"  by {item.speaker}" if item.speaker is not None else ""
            self._print_line(item, f"{item.score:.2f}{speaker}", source)
        elif isinstance(item, Ended):
            self._print_line(item, f"ended at {item.end_s:.2f} s", source)

    def _print_line(self, item: Detection | Ended, what: str, source: Source) -> None:
        clip = f"{source.name}: " if self._clips else ""
        model = f"  ({item.model})" if len(self._streams) > 1 else ""
        print_line(f"{clip}{item.start_s:8.2f} s  {item.label}  {what}{model}")

    def _print_clip(self, clip: str, counts: Counter[tuple[str, str]], listener: Listener) -> None:
        if self._json:
            seconds = listener.samples / listener.rate
            self._emit_counts("heard", counts, listener.withheld, seconds, listener.dropped_samples, clip=clip)
        elif not counts:
            print_line(f"{clip}: nothing")

    def _print_summary(self) -> None:
        """Print how often each model heard each label."""
        if self._json:
            of_all = {"clips": self._heard + self._failed, "failed": self._failed} if self._clips else {}
            self._emit_counts("summary", self._counts, self._withheld, self._seconds, self._dropped, **of_all)
            return
        for name in [stream.model.name for stream in self._streams]:
            heard = _format_counts(_counts_of_model(name, self._counts)) or "nothing"
            withheld = _format_counts(_counts_of_model(name, self._withheld))
            more = f"; withheld: {withheld}" if withheld else ""
            say(f"{name}: {heard} in {self._seconds:.1f} s{more}")

    def _emit_counts(
        self,
        kind: str,
        counts: Counter[tuple[str, str]],
        withheld: Counter[tuple[str, str]],
        seconds: float,
        dropped: int,
        **of_clips: str | int,
    ) -> None:
        by_model = {
            name: {
                "detections": dict(_counts_of_model(name, counts)),
                "withheld": dict(_counts_of_model(name, withheld)),
            }
            for name in [stream.model.name for stream in self._streams]
        }
        emit(
            kind,
            source=self._name,
            **of_clips,
            seconds=round(seconds, 3),
            dropped_samples=dropped,
            by_model=by_model,
        )


def _format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{label} {count}" for label, count in counts.most_common())


def _counts_of_model(name: str, counts: Counter[tuple[str, str]]) -> Counter[str]:
    """The counts of the model of that name, by label."""
    return Counter({label: count for (model, label), count in counts.items() if model == name})
