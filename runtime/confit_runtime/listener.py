"""The one loop that every listening program uses: streams that hear a source together, and taps that hear it too."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import ref

from confit_runtime.arrays import check_count, check_duration
from confit_runtime.audio import bandwidth_warning, check_rate, check_samples
from confit_runtime.channels import channels_of
from confit_runtime.errors import UsageError
from confit_runtime.events import Detection, Ended
from confit_runtime.level_monitor import CancellationMonitor, LevelMonitor
from confit_runtime.listen_arguments import check_chunk, make_streams, resolve_source
from confit_runtime.sources import Chunk, Gap, InputChunk, InputSource, Item, Notice, Pause
from confit_runtime.sources.base import chunk_or_gap, downmix
from confit_runtime.sources.clock import boottime
from confit_runtime.stream import GAP_S

if TYPE_CHECKING:
    from confit_runtime.audio import Pcm
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

log = logging.getLogger(__name__)

MAX_LEAD_S = 10.0  # seconds of sound that a network stream may deliver at once when it begins
DRIFT = 0.001  # by how much a sound card may run too fast
SETTLE_S, SLACK_S = 30.0, 0.5  # sound is live if it got no further ahead than SLACK_S within SETTLE_S
MAX_CHUNK_S = 0.5  # seconds of sound handed to the taps at once: they keep only the last seconds
PACE_S = 10.0  # seconds of sound over which it is judged whether hearing takes longer than the sound lasts
REMIND_INTERVAL_S = 60.0  # seconds of sound between two notices of that


class Tap:
    """Hears what the streams hear, and may name, keep or drop what they detect. Override the methods you need."""

    def begin(self, name: str, rate: int) -> None:
        """A source begins: its next sample is sample 0, and nothing was heard before."""

    def hear(self, pcm: Pcm, rate: int) -> None:
        """A chunk `[samples]` at `rate`, at most half a second long, before the streams hear it.

        It contains the end of each detection that the streams make from it. It is read-only and lent: copy what you
        keep.
        """

    def skip(self, samples: int) -> None:
        """The source lost `samples`; called before the streams hear silence in their place.

        A gap may come in several parts: a long one comes as its first second and the rest.
        """

    def judge(self, detection: Detection) -> Detection | None:
        """Return what to report instead of `detection`: the same one, a changed one, or None to drop it."""
        return detection


class Listener:
    """Feeds one source at `rate` Hz to the streams of one or more models, in step.

    Call `take` with each item the source yields, then `finish`; or iterate over `follow(source)`, which does both, or,
    in an asyncio program, over `follow_async(source)`. Until it has finished, no other listener may use its streams;
    close a listener that you abandon but keep.

    They yield:

    - detections in the order they complete, each after every tap has judged it. Within a chunk (half a second of a
      longer one), those of the first model come first.
    - gaps in the source, once sound is back; consecutive gaps are joined. The streams hear silence in their place, as
      `Stream.skip` says.
    - notices: at the beginning if a model hears higher frequencies than the source contains; if the source's channels
      cancel each other where they are averaged; for `live` sound also if hearing takes longer than the sound lasts (at
      most once a minute), and if the sound is silent or clipped.
    - for streams with `ends`, the end of each detection it yielded.

    A pause completes what is still pending. After `seconds` of the source's own time the listener is `full` and hears
    no more. `samples` and `dropped_samples` count the source's own samples; `withheld` counts the detections that taps
    dropped, by model name and label.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        name: str,
        rate: int,
        *,
        taps: Sequence[Tap] = (),
        seconds: float | None = None,
    ) -> None:
        """Check the arguments and reset the streams.

        Raises UsageError if an item is not a stream, if a stream is given twice (it would hear each sample twice) or still
        belongs to another listener, if two models have the same name, and if `rate` or `seconds` is invalid.
        """
        check_streams(streams)
        if len(set(map(id, streams))) < len(streams):
            raise UsageError("a stream is listed twice: give each model its own stream")
        check_distinct_names(stream.model for stream in streams)
        self.streams, self.name, self.rate, self.taps = streams, name, check_rate(rate), taps
        self.samples = self.dropped_samples = 0
        self._last_arrival = time.time(), 0  # when the last chunk arrived, and the sample at which it ended
        self._lead = _Lead()
        self.withheld: Counter[tuple[str, str]] = Counter()
        # for streams with `ends`: what was reported in place of each detection that is not over yet
        self._sounding: dict[tuple[str, bool, str, int], Detection] = {}
        self._end = None if seconds is None else round(check_duration(seconds, "the seconds to listen") * self.rate)
        self.live = True  # the sound is live and does not wait for a slow listener
        self._pace, self._loudness, self._cancellation = _Pace(), LevelMonitor(name), CancellationMonitor(name)
        self._started = False
        self._gap: Gap | None = None  # not reported yet
        self._claim()
        try:
            for stream in streams:
                stream.reset()
            for tap in taps:
                tap.begin(name, self.rate)
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        """Raise UsageError if a stream still belongs to another listener.

        Each of the two would hear the sounds of both and receive only some of the detections.
        """
        for stream in self.streams:
            other = stream.listener() if stream.listener else None
            if other is not None and other is not self:
                raise UsageError(
                    f"a stream of {stream.model.name} is still listening to {other.name}: give each listener its"
                    " own stream, or finish or close that listener first"
                )
        for stream in self.streams:
            stream.listener = ref(self)

    def close(self) -> None:
        """Release the streams for other listeners; pending detections are discarded."""
        for stream in self.streams:
            if stream.listener and stream.listener() is self:
                stream.listener = None

    @property
    def full(self) -> bool:
        return self._end is not None and self.samples >= self._end

    def time_of(self, sample: int) -> float | None:
        """The time of day of a sample of live sound, in seconds since 1970.

        It is the time when the last chunk arrived, corrected by how far the sample is from that chunk's end. The
        result is too late by as long as the sound had to wait: for its block to fill, on its way here, and for a slow
        machine.

        None if the sound is not live, and while more sound has arrived than time has passed, as with a recording sent
        through a pipe. For a stream that begins with more than `MAX_LEAD_S` at once, the time is known once its sound has
        come in real time for a while.
        """
        if not self.live or self._lead.grows:
            return None
        came, came_at = self._last_arrival
        return came - (came_at - sample) / self.rate

    def follow(self, source: InputSource) -> Iterator[Detection | Ended | Gap | Notice]:
        """Yield everything heard in a source, inside its `with` block.

        An error of the source is raised after the pending events.
        """
        self.live = source.live
        for stream in self.streams:
            stream.live = source.live
        try:
            yield from self._follow_items(iter(source))
        finally:
            self.close()

    def follow_async(
        self, source: InputSource | AsyncIterable[Item]
    ) -> AsyncGenerator[Detection | Ended | Gap | Notice, None]:
        """Yield what `follow` yields without blocking the event loop: the models run in a worker thread.

        `source` is opened in that thread and closed at the end, so pass it outside its `with` block; or pass what a
        client sends, as for `listen_async`. Leave it as you would leave `listen_async`. To end it and still get the
        pending events, call `source.stop()` (or end the client) and iterate to the end. The listener's counters may be
        ahead of the events.
        """
        from confit_runtime.asynchronous import follow_events

        return follow_events(self, source)

    def _follow_items(self, items: Iterator[Item]) -> Iterator[Detection | Ended | Gap | Notice]:
        failed: Exception | None = None
        while not (failed or self.full):
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - the source may be anyone's code; its error is raised at the end
                failed = error
            else:
                yield from self.take(item)
        yield from self.finish()
        if failed is not None:
            raise failed

    def take(self, item: Item) -> Iterator[Detection | Ended | Gap | Notice]:
        """Yield what is heard when the source has yielded `item`; its PCM may be whatever `Stream.accept` takes.

        In live sound, a chunk that is not sound, such as NaN, counts as a gap. Nothing happens until you iterate.
        Raises AudioError before anything has changed, and UsageError, also for sound at another rate than the
        listener's.
        """
        self._claim()
        if not self._started:
            self._started = True
            yield from self._bandwidth_notices()
        if not isinstance(item, Gap | Notice | Pause):
            item = self._sound(check_chunk(item))
        if isinstance(item, Notice):
            yield item
        elif isinstance(item, Gap):
            yield from self._skip(item)
        elif isinstance(item, Pause):
            for stream in self.streams:
                yield from self._apply_taps(stream, stream.pause())
        else:
            yield from self._flush_gap()
            yield from self._hear(*item, channels_of(item))

    def finish(self) -> Iterator[Detection | Ended | Gap]:
        """Yield what was still pending when the source ended; then release the streams for other listeners."""
        self._claim()
        yield from self._flush_gap()
        for stream in self.streams:
            yield from self._apply_taps(stream, stream.finish())
        self.close()

    def _sound(self, given: InputChunk) -> Chunk | Gap:
        """Turn a source's chunk into mono. Invalid samples become a gap in live sound; in a recording they raise AudioError."""
        rate = given[1]
        if rate != self.rate:
            raise UsageError(f"{self.name}: began at {self.rate} Hz and now comes at {rate} Hz")
        if self.live:
            return chunk_or_gap(given, self.name)
        chunk = downmix(given)
        check_samples(chunk[0], self.name)
        return chunk

    def _hear(self, pcm: Pcm, rate: int, channels: Pcm) -> Iterator[Detection | Ended | Notice]:
        if self._end is not None:
            pcm = pcm[: max(0, self._end - self.samples)]  # a gap may have gone past the end
        self._advance(len(pcm))
        self._last_arrival = time.time(), self.samples
        max_samples = max(1, round(MAX_CHUNK_S * rate))
        for at in range(0, len(pcm), max_samples):
            part, side_by_side = pcm[at : at + max_samples], channels[at : at + max_samples][: len(pcm) - at]
            part.setflags(write=False)  # read-only view: the array may be the caller's own
            began = time.perf_counter()
            for tap in self.taps:
                tap.hear(part, rate)
            spent = time.perf_counter() - began
            for stream in self.streams:
                began = time.perf_counter()
                found = list(self._apply_taps(stream, stream.accept(part, rate)))
                spent += time.perf_counter() - began
                yield from found
            if (notice := self._cancellation.hear(side_by_side, rate)) is not None:
                yield notice
            if not self.live:
                continue
            if self._pace.is_slow(len(part) / rate, spent):
                yield self._overload_notice()
            if (notice := self._loudness.hear(side_by_side, rate)) is not None:
                yield notice

    def _advance(self, samples: int) -> None:
        self.samples += samples
        self._lead.advance(self.samples / self.rate, boottime())

    def _bandwidth_notices(self) -> Iterator[Notice]:
        models: dict[float, list[str]] = defaultdict(list)  # by the highest frequency they hear
        for stream in self.streams:
            models[stream.model.contract.highest_hz].append(stream.model.name)
        for highest_hz, names in models.items():
            if (text := bandwidth_warning(self.name, self.rate, ", ".join(names), highest_hz)) is not None:
                yield Notice("narrow", text, tuple(names))

    def _overload_notice(self) -> Notice:
        models = ", ".join(stream.model.name for stream in self.streams)
        return Notice(
            "behind",
            f"{self.name}: this machine cannot keep up: hearing it with {models} takes {self._pace.times:.1f} times"
            " as long as the sound lasts, so it falls behind; if sound is lost on its way here, their times"
            " are too early. Use a smaller model, fewer models at once, --gate, or a faster machine",
        )

    def _skip(self, gap: Gap) -> Iterator[Detection | Ended | Gap]:
        if self._gap is not None and self._gap.reason != gap.reason:
            yield from self._flush_gap()
        samples = check_count(gap.samples, "the samples of a gap", 0)
        self._gap = Gap(samples + (self._gap.samples if self._gap else 0), gap.reason)
        self._advance(samples)
        self.dropped_samples += samples
        heard = min(samples, round(GAP_S * self.rate))
        # in two parts: a tap that is told of a long gap forgets the sound of what its first second completes
        for part in (heard, samples - heard) if samples > heard else (samples,):
            for tap in self.taps:
                tap.skip(part)
            for stream in self.streams:
                yield from self._apply_taps(stream, stream.skip(part))

    def _flush_gap(self) -> Iterator[Gap]:
        """Yield the gap that has not been reported yet, if any."""
        if self._gap is not None:
            gap, self._gap = self._gap, None
            yield gap

    def _apply_taps(self, stream: Stream, detections: list[Detection]) -> Iterator[Detection | Ended]:
        for detection in stream.take_events() if stream.ends else detections:
            which = (detection.model, detection.enrolled, detection.label, detection.start_sample)
            if isinstance(detection, Ended):
                if one := self._sounding.pop(which, None):
                    end = detection.end_s, detection.end_sample
                    yield Ended(one.model, one.label, one.start_s, end[0], one.start_sample, end[1], one.enrolled)
                continue
            reported: Detection | None = detection
            for tap in self.taps:
                reported = reported and tap.judge(reported)
            if reported is None:
                self.withheld[detection.model, detection.label] += 1
            else:
                if stream.ends:
                    self._sounding[which] = reported
                yield reported


class _Lead:
    """How far sound is ahead of the clock; live sound never gets further ahead than it began.

    `grows` is True once sound is more than `MAX_LEAD_S` further ahead than when it began, until that has not grown for
    `SETTLE_S`.
    """

    def __init__(self) -> None:
        self.grows = False
        self._began: float | None = None  # clock time at which the sound began, if it is live
        self._least = self._before = math.inf  # the earliest such times, in the current period and before it
        self._until = math.inf  # clock time at which the current period ends

    def advance(self, seconds: float, clock: float) -> None:
        """By clock time `clock`, `seconds` of sound have arrived in all."""
        began = clock - seconds / (1 + DRIFT)
        if self._began is None:
            self._began, self._until = began, clock + SETTLE_S
        if clock >= self._until:
            if self._least >= self._before - SLACK_S:
                self._began = self._least
            self._before, self._least, self._until = self._least, math.inf, clock + SETTLE_S
        self._least = min(self._least, began)
        self.grows = self._least < self._began - MAX_LEAD_S


class _Pace:
    """Whether hearing takes longer than the sound lasts, measured over `PACE_S` of sound at a time.

    The slowest part of each period is left out: the machine catches up after a single hiccup. `times` is the ratio of
    hearing time to sound time.
    """

    def __init__(self) -> None:
        self.times = 0.0
        self._since = math.inf  # seconds of sound since the last notice
        self._begin()

    def _begin(self) -> None:
        self._sound = self._spent = self._slowest = 0.0

    def is_slow(self, sound: float, spent: float) -> bool:
        """Whether to issue a notice now, after `sound` more seconds that took `spent` seconds."""
        self._since += sound
        self._sound += sound
        self._spent += spent
        self._slowest = max(self._slowest, spent)
        if self._sound < PACE_S:
            return False
        self.times, slow = self._spent / self._sound, self._spent - self._slowest > self._sound
        self._begin()
        notify = slow and self._since >= REMIND_INTERVAL_S
        if notify:
            self._since = 0.0
        return notify


def listen(
    models: Model | Stream | Iterable[Model | Stream],
    source: str | Path | InputSource = "mic",
    *,
    taps: Sequence[Tap] = (),
    seconds: float | None = None,
) -> Iterator[Detection]:
    """Yield detections as they complete, for one or more models (or streams made with a gallery) on one source.

    `source` is opened here and closed at the end; a name is read as by `open_source`. A model hears a recording from
    its very beginning (`lead_in`); a stream is used as it was made. Gaps and notices are logged as warnings: use a
    `Listener` to receive them, or to learn when sounds are over. Nothing happens until you iterate.

    Raises UsageError for an invalid model, source or number of seconds, for a stream given twice or made with `ends`,
    and for two models with the same name; also what the source and `Stream.accept` raise.
    """
    streams = make_streams(models)
    with (opened := resolve_source(source)):
        yield from listen_to_source(streams, opened, taps, seconds)


def listen_to_source(
    streams: Sequence[Stream], source: InputSource, taps: Sequence[Tap], seconds: float | None
) -> Iterator[Detection]:
    """Yield the detections of streams on an open source; gaps and notices go to the log."""
    listener = Listener(streams, source.name, source.rate, taps=taps, seconds=seconds)
    for event in listener.follow(source):
        if (detection := detection_or_log(event, listener)) is not None:
            yield detection


def check_streams(streams: object) -> None:
    """Raise UsageError unless `streams` is a sequence of streams."""
    from confit_runtime.stream import Stream

    if not isinstance(streams, Sequence) or not all(isinstance(one, Stream) for one in streams):
        raise UsageError(f"a Listener takes a list of streams, such as [model.stream()], not {streams!r}")


def check_distinct_names(models: Iterable[Model]) -> None:
    """Raise UsageError if two models share a name, which detections and summaries use to distinguish them."""
    for name, times in Counter(model.name for model in models).most_common(1):
        if times > 1:
            raise UsageError(f"{times} of the models are named {name}: their detections could not be told apart")


def detection_or_log(event: Detection | Ended | Gap | Notice, listener: Listener) -> Detection | None:
    """Return the event if it is a detection; log it if it is a gap or a notice."""
    if isinstance(event, Notice):
        log.warning("%s", event.text)
    elif isinstance(event, Gap):
        log.warning("%s: %.2f s of sound were lost: %s", listener.name, event.samples / listener.rate, event.reason)
    elif isinstance(event, Detection):
        return event
    return None
