"""One loop for every program that listens: the streams that hear a source together, and what taps add on the way."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import ref

import numpy.typing as npt

from confit_runtime.arrays import duration, whole
from confit_runtime.audio import check_rate, check_samples, narrow, to_mono
from confit_runtime.errors import UsageError
from confit_runtime.events import Detection, Ended
from confit_runtime.given import chunk_of, source_of, streams_of
from confit_runtime.loudness import Loudness
from confit_runtime.sources import Chunk, Gap, GivenSource, Item, Notice, Pause
from confit_runtime.sources.base import sound_or_gap
from confit_runtime.sources.clock import boottime

if TYPE_CHECKING:
    from confit_runtime.audio import Pcm
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

log = logging.getLogger(__name__)

AHEAD_S = 10.0  # of sound, which a network stream gives at once as it begins
DRIFT = 0.001  # how much too fast a sound card may run
SETTLED_S, SLACK_S = 30.0, 0.5  # sound comes as it happens where in so long it got no further ahead than so much
MOST_S = 0.5  # of sound between two looks of the taps, which hold the last seconds only
PACE_S = 10.0  # of sound, over which is judged whether it takes longer to hear than it lasts
REMIND_S = 60.0  # of sound from one notice of that to the next


class Tap:
    """Hears what the streams hear, and may name, keep or drop what they detect. Override what you need."""

    def begin(self, name: str, rate: int) -> None:
        """A source begins: its next sample is sample 0, and nothing was heard before."""

    def hear(self, pcm: Pcm, rate: int) -> None:
        """A chunk `[samples]` at `rate`, of half a second at most, before the streams hear it.

        It holds the end of each detection that they make of it. It is lent, and for reading only: copy what you keep.
        """

    def skip(self, samples: int) -> None:
        """The source lost `samples`."""

    def judge(self, detection: Detection) -> Detection | None:
        """What is to be told instead of `detection`: itself, a changed one, or nothing."""
        return detection


class Listener:
    """Feeds one source at `rate` Hz to the streams of one or more models, in step.

    `take` what the source gives, then `finish`; or iterate over `follow(source)`, which does both, or in an asyncio program
    over `follow_async(source)`. Until then no other listener may have its streams (one that is left in the middle and kept is
    to be closed). They give detections in the order they complete (of a chunk, or of half a second of a longer one, first
    those of the first model), each judged by every tap in turn, and the source's gaps and notices (gaps that follow one
    another as one, when sound is back). At a pause they give what was on its way. A notice says at the beginning where a model
    hears more than the source holds, and of `live` sound once a minute at most where hearing takes longer than it lasts, and
    where it is silent or clipped. After `seconds` of the source's own time it is `full`, and hears no more.
    `samples` and `dropped_samples` count in the source's own samples; `withheld` counts what taps kept back, by the names
    of model and label. Of streams with `ends` it also gives when what was told is over.
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
        """Raises UsageError on what are no streams; where one is given twice, for it would hear each sample twice, or is another
        listener's still; where two models have one name; and on what is no rate and no number of seconds.
        """
        check_streams(streams)
        if len(set(map(id, streams))) < len(streams):
            raise UsageError("a stream is given twice: give each of the models that listen a stream of its own")
        check_names(stream.model for stream in streams)
        self.streams, self.name, self.rate, self.taps = streams, name, check_rate(rate), taps
        self.samples = self.dropped_samples = 0
        self._came = time.time(), 0  # when the last chunk came, and at which sample it ended
        self._lead = _Lead()
        self.withheld: Counter[tuple[str, str]] = Counter()
        # of streams with `ends`, what was told and is not over
        self._sounding: Counter[tuple[str, bool, str, int]] = Counter()
        self._end = None if seconds is None else round(duration(seconds, "how long one listens") * self.rate)
        self.live = True  # the sound comes as it happens, and does not wait for who is slow
        self._pace, self._loudness = _Pace(), Loudness(name)
        self._begun = False
        self._gap: Gap | None = None  # not told yet
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
        """Raises UsageError where a stream is another's still: each would hear the sounds of both, and be told of few."""
        for stream in self.streams:
            other = stream.listener() if stream.listener else None
            if other is not None and other is not self:
                raise UsageError(
                    f"a stream of {stream.model.name} is listening to {other.name} still: give each listener a stream of its own,"
                    " or finish or close that one first"
                )
        for stream in self.streams:
            stream.listener = ref(self)

    def close(self) -> None:
        """Leave the streams to other listeners; what was on its way is not told."""
        for stream in self.streams:
            if stream.listener and stream.listener() is self:
                stream.listener = None

    @property
    def full(self) -> bool:
        return self._end is not None and self.samples >= self._end

    def time_of(self, sample: int) -> float | None:
        """The time of day of a sample of live sound, in seconds since 1970: by when the last chunk came, and where in it or
        how far from it the sample is.

        So it is too late by as long as sound had to wait: for its block, on its way here, and for a machine that is behind.
        None of sound that is not live, and where more has come than time has passed, as of a recording through a pipe:
        nobody knows when that was. Of a stream that begins with more than `AHEAD_S` at once it is known when it has come as
        it happens for a while.
        """
        if not self.live or self._lead.grows:
            return None
        came, came_at = self._came
        return came - (came_at - sample) / self.rate

    def follow(self, source: GivenSource) -> Iterator[Detection | Ended | Gap | Notice]:
        """All that is heard of a source, inside its `with` block. What it raises is raised after what was still on its way."""
        self.live = source.live
        for stream in self.streams:
            stream.live = source.live
        try:
            yield from self._followed(iter(source))
        finally:
            self.close()

    def follow_async(
        self, source: GivenSource | AsyncIterable[Item]
    ) -> AsyncGenerator[Detection | Ended | Gap | Notice, None]:
        """What `follow` gives, without holding up the event loop: the models run in a worker thread.

        A source is opened there and closed at the end, so it is to be given outside its `with` block; or it is what a client
        sends, as `listen_async` takes it. It is to be left as `listen_async` is. Who ends it and wants what was on its way calls
        `source.stop()`, or ends the client, and iterates to the end. What the listener counts may be further on than the event.
        """
        from confit_runtime.asynchronous import followed

        return followed(self, source)

    def _followed(self, items: Iterator[Item]) -> Iterator[Detection | Ended | Gap | Notice]:
        failed: Exception | None = None
        while not (failed or self.full):
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - of a source that may be anybody's, and raised in the end
                failed = error
            else:
                yield from self.take(item)
        yield from self.finish()
        if failed is not None:
            raise failed

    def take(self, item: Item) -> Iterator[Detection | Ended | Gap | Notice]:
        """What is heard when the source has given `item`, whose PCM may be whatever `Stream.accept` takes.

        Of live sound a chunk that holds what is no sound, such as NaN, is a gap. Nothing happens until it is iterated over.
        Raises AudioError, before anything has moved on, and UsageError, also on sound of another rate than the listener's.
        """
        self._claim()
        if not self._begun:
            self._begun = True
            yield from self._narrow()
        if not isinstance(item, Gap | Notice | Pause):
            item = self._sound(*chunk_of(item))
        if isinstance(item, Notice):
            yield item
        elif isinstance(item, Gap):
            yield from self._skip(item)
        elif isinstance(item, Pause):
            for stream in self.streams:
                yield from self._judge(stream, stream.pause())
        else:
            yield from self._told()
            yield from self._hear(*item)

    def finish(self) -> Iterator[Detection | Ended | Gap]:
        """What was still on its way when the source ended; then the streams are free for other listeners."""
        self._claim()
        yield from self._told()
        for stream in self.streams:
            yield from self._judge(stream, stream.finish())
        self.close()

    def _sound(self, pcm: npt.ArrayLike, rate: int) -> Chunk | Gap:
        """What a source gave, mono for taps, too; a recording does not mend by waiting, and is refused where it is no sound."""
        if rate != self.rate:
            raise UsageError(f"{self.name}: listened to at {self.rate} Hz, and now comes at {rate} Hz")
        mono = to_mono(pcm)
        if self.live:
            return sound_or_gap(mono, rate, self.name)
        check_samples(mono, self.name)
        return mono, rate

    def _hear(self, pcm: Pcm, rate: int) -> Iterator[Detection | Ended | Notice]:
        if self._end is not None:
            pcm = pcm[: max(0, self._end - self.samples)]  # a gap may have led beyond
        self._advance(len(pcm))
        self._came = time.time(), self.samples
        most = max(1, round(MOST_S * rate))
        for part in (pcm[at : at + most] for at in range(0, len(pcm), most)):
            part.setflags(write=False)  # of the view: it may be the caller's own array
            began = time.perf_counter()
            for tap in self.taps:
                tap.hear(part, rate)
            spent = time.perf_counter() - began
            for stream in self.streams:
                began = time.perf_counter()
                found = list(self._judge(stream, stream.accept(part, rate)))
                spent += time.perf_counter() - began
                yield from found
            if not self.live:
                continue
            if self._pace.slow(len(part) / rate, spent):
                yield self._behind()
            if (notice := self._loudness.hear(part, rate)) is not None:
                yield notice

    def _advance(self, samples: int) -> None:
        self.samples += samples
        self._lead.advance(self.samples / self.rate, boottime())

    def _narrow(self) -> Iterator[Notice]:
        models: dict[float, list[str]] = defaultdict(list)  # by how high they hear
        for stream in self.streams:
            models[stream.model.contract.highest_hz].append(stream.model.name)
        for highest_hz, names in models.items():
            if (text := narrow(self.name, self.rate, ", ".join(names), highest_hz)) is not None:
                yield Notice("narrow", text, tuple(names))

    def _behind(self) -> Notice:
        models = ", ".join(stream.model.name for stream in self.streams)
        return Notice(
            "behind",
            f"{self.name}: this machine cannot keep up: hearing it with {models} takes {self._pace.times:.1f} times as long as"
            " the sound lasts, so that it falls behind; where sound is lost on its way here, times come out too early. Take a"
            " smaller model, fewer at once, --gate, or a faster machine",
        )

    def _skip(self, gap: Gap) -> Iterator[Detection | Ended | Gap]:
        if self._gap is not None and self._gap.reason != gap.reason:
            yield from self._told()
        samples = whole(gap.samples, "the samples of a gap", 0)
        self._gap = Gap(samples + (self._gap.samples if self._gap else 0), gap.reason)
        self._advance(samples)
        self.dropped_samples += samples
        for tap in self.taps:
            tap.skip(samples)
        for stream in self.streams:
            stream.skip(samples)
            yield from self._judge(stream, [])

    def _told(self) -> Iterator[Gap]:
        """The gap that has not been told yet."""
        if self._gap is not None:
            gap, self._gap = self._gap, None
            yield gap

    def _judge(self, stream: Stream, detections: list[Detection]) -> Iterator[Detection | Ended]:
        for detection in stream.take_events() if stream.ends else detections:
            which = (detection.model, detection.enrolled, detection.label, detection.start_sample)
            if isinstance(detection, Ended):
                if self._sounding[which]:
                    self._sounding -= Counter((which,))
                    yield detection
                continue
            told: Detection | None = detection
            for tap in self.taps:
                told = told and tap.judge(told)
            if told is None:
                self.withheld[detection.model, detection.label] += 1
            else:
                if stream.ends:
                    self._sounding[which] += 1
                yield told


class _Lead:
    """How far sound is ahead of the clock: what happens as it comes gets no further ahead, whatever it began with.

    `grows` where it is more than `AHEAD_S` ahead of what it began with, until that has not grown for `SETTLED_S`.
    """

    def __init__(self) -> None:
        self.grows = False
        self._began: float | None = None  # by the clock, for sound that comes as it happens
        self._least = self._before = math.inf  # the earliest of those, lately and before that
        self._until = math.inf  # by the clock, where lately ends

    def advance(self, seconds: float, clock: float) -> None:
        """So much sound, in all, had come by then."""
        began = clock - seconds / (1 + DRIFT)
        if self._began is None:
            self._began, self._until = began, clock + SETTLED_S
        if clock >= self._until:
            if self._least >= self._before - SLACK_S:
                self._began = self._least
            self._before, self._least, self._until = self._least, math.inf, clock + SETTLED_S
        self._least = min(self._least, began)
        self.grows = self._least < self._began - AHEAD_S


class _Pace:
    """Whether hearing takes longer than the sound lasts, by `PACE_S` of sound at a time.

    The slowest part of each is left aside: one hiccup of the machine is made up for. `times` is how much longer it took.
    """

    def __init__(self) -> None:
        self.times = 0.0
        self._since = math.inf  # of sound, after it was told last
        self._begin()

    def _begin(self) -> None:
        self._sound = self._spent = self._slowest = 0.0

    def slow(self, sound: float, spent: float) -> bool:
        """Whether it is to be told now, after `sound` seconds more that took `spent` seconds."""
        self._since += sound
        self._sound += sound
        self._spent += spent
        self._slowest = max(self._slowest, spent)
        if self._sound < PACE_S:
            return False
        self.times, slow = self._spent / self._sound, self._spent - self._slowest > self._sound
        self._begin()
        told = slow and self._since >= REMIND_S
        if told:
            self._since = 0.0
        return told


def listen(
    models: Model | Stream | Iterable[Model | Stream],
    source: str | Path | GivenSource = "mic",
    *,
    taps: Sequence[Tap] = (),
    seconds: float | None = None,
) -> Iterator[Detection]:
    """Detections as they complete, of one or more models (or streams made with a gallery) on one source.

    `source` is opened here, and closed at the end; it may be named as `open_source` reads it. Of a recording a model hears
    the very beginning, too (`lead_in`); a stream is taken as it was made. Gaps and notices are logged as
    warnings; who wants them, or when sounds are over, has a `Listener`. Nothing happens until it is iterated over. Raises
    UsageError on what is no model, no source and no number of seconds, on a stream given twice or made with `ends`, and on two
    models of one name; what the source raises, and what `Stream.accept` does.
    """
    streams = streams_of(models)
    with (opened := source_of(source)):
        yield from listened(streams, opened, taps, seconds)


def listened(
    streams: Sequence[Stream], source: GivenSource, taps: Sequence[Tap], seconds: float | None
) -> Iterator[Detection]:
    """The detections of streams on a source that is open; the rest goes to the log."""
    listener = Listener(streams, source.name, source.rate, taps=taps, seconds=seconds)
    for event in listener.follow(source):
        if (detection := logged(event, listener)) is not None:
            yield detection


def check_streams(streams: object) -> None:
    """Raise UsageError unless they are streams, several or one."""
    from confit_runtime.stream import Stream

    if not isinstance(streams, Sequence) or not all(isinstance(one, Stream) for one in streams):
        raise UsageError(f"a Listener takes a list of streams, as [model.stream()], not {streams!r}")


def check_names(models: Iterable[Model]) -> None:
    """Raise UsageError where two models have one name, by which detections and summaries tell them apart."""
    for name, times in Counter(model.name for model in models).most_common(1):
        if times > 1:
            raise UsageError(f"{times} of the models are named {name}: what each hears could not be told apart")


def logged(event: Detection | Ended | Gap | Notice, listener: Listener) -> Detection | None:
    """The event where it is a detection; a gap or a notice goes to the log."""
    if isinstance(event, Notice):
        log.warning("%s", event.text)
    elif isinstance(event, Gap):
        log.warning("%s: %.2f s of sound were lost: %s", listener.name, event.samples / listener.rate, event.reason)
    elif isinstance(event, Detection):
        return event
    return None
