"""A stream: one microphone or file that a model listens to."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats, check_count
from confit_runtime.audio import Pcm, StreamResampler, check_rate, check_samples, to_mono
from confit_runtime.detect import NO_HOLD, Detector, Hit, Hold, NameDetector
from confit_runtime.errors import UsageError
from confit_runtime.events import Detection, Ended, Events
from confit_runtime.gates import check_gate

if TYPE_CHECKING:
    from weakref import ref

    from confit_runtime.gallery import Gallery
    from confit_runtime.gates import Gate
    from confit_runtime.listener import Listener
    from confit_runtime.matcher import Match
    from confit_runtime.model import Model


GALLERY_CHECK_S = 1.0  # seconds of sound between checks for gallery changes
GAP_S = 1.0  # a gap is heard as silence for this many seconds; what follows a longer one is a new beginning


class Stream:
    """One microphone or file: push audio of any rate in chunks of any length, get detections.

    The model always processes one hop per call, so detections do not depend on the chunk sizes.

    With a gallery, the enrolled names are further classes: a name fires when it matches in `min_hops` consecutive rows
    (at least two), and its score is the similarity. Names that another program enrolls or removes take effect within a
    second of sound. Raises GalleryError if the gallery was enrolled with another model.

    With a gate, the model does not run while every hop of a window is gated. When the gate opens, the sound of the
    last window is played to the model again, so that its rows are the same as without a gate and the start of a word
    is not clipped. No row is made where it would cover gated hops only; for a sound that has fired this counts as a
    pause.

    A sound that pauses for no longer than `hold` and then continues counts as one sound, for example an alarm that
    beeps.

    Lost sound (`skip`) is heard as silence, but for no more than a second of each gap.

    With `ends` the stream also reports when a detected sound is over. Call `take_events` after `accept`, `skip`,
    `pause` and `finish`; it returns both detections and ends. They are kept, however many there are, until it is
    called or until `reset`.
    """

    def __init__(
        self,
        model: Model,
        gallery: Gallery | None = None,
        *,
        lead_in: bool | None = False,
        gate: Gate | None = None,
        ends: bool = False,
        hold: Hold = NO_HOLD,
    ) -> None:
        if not isinstance(hold, Hold):
            raise UsageError(f"hold must be a Hold(seconds), got {hold!r}")
        if gate is not None:
            check_gate(gate, model.contract.sample_rate)
        if gallery is None:  # with a gallery, names may be enrolled later
            hold.check(model.contract)
        self.model, self.lead_in, self.ends = model, lead_in, ends
        self._events = Events()  # with `ends`
        self._batch = model.batch(1)
        self._detector = Detector.from_contract(model.contract, hold)
        self._gallery = gallery
        self._names: NameDetector | None = None
        if gallery is not None:
            _check_gallery(gallery)
            gallery.check(model)
            self._names = NameDetector(model.contract, gallery.matcher, hold)
        self._check_interval = max(
            1, round(GALLERY_CHECK_S * model.contract.sample_rate / model.contract.hop)
        )  # gallery checks, in hops
        self._hops_since_check = 0  # hops since the last check
        self._gate = gate
        # a row depends on the hops of its window, and an event on rows as far back as the detectors remember
        memory = max(detector.memory for detector, _ in self._detectors())
        self._warmup_hops = model.contract.window // model.contract.hop - 1  # hops before the first row
        self._lookback_hops = self._warmup_hops + memory
        self._muted = False
        self.listener: ref[Listener] | None = None  # the listener that feeds this stream, until it has finished
        # called for each row: its scores [classes] as the thresholds see them (smoothed), and what it matches in the gallery
        self.on_row: Callable[[Floats, Match | None], None] | None = None
        self.reset()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream cannot be passed to another process: pass its model and make a stream there")

    def reset(self) -> None:
        """Start over as a `live` stream: the next sample pushed is sample 0, preceded by silence.

        Events that were not taken are discarded.
        """
        self._events.clear()
        self._restart()

    def _restart(self) -> None:
        self.live = True  # the sound pushed is being recorded in real time
        self._rate: int | None = None
        self._muted_at = time.monotonic()  # since when it is muted, if it is
        self._unheard_s = 0.0  # seconds of muted sound that are still to arrive
        self._idle = False  # nothing has arrived since a pause
        self._origin = 0  # the source sample at which the audio since the last interruption begins
        self._source_samples = 0  # source samples taken since then
        self._needs_lead_in = self.lead_in  # put silence before the next sound (None: unless it is live)
        for detector, _ in self._detectors():
            detector.reset()
        self._reset_audio()

    def skip(self, samples: int) -> list[Detection]:
        """Report that the source lost `samples` of its own samples; return the detections that the gap completes.

        The clock advances by them, and the gap is heard as silence: the stream hears what it would hear if zeros had
        been pushed. Several calls without sound in between are one gap. After the first `GAP_S` seconds of a gap, what
        was heard before is forgotten: a sound that is still on then has ended where the gap began, and what follows
        the gap is preceded by silence, as after a `pause`. A class that fired stays silent for its refractory time,
        gap included. A gap before the first sound, and one in muted sound, only advances the clock.

        Raises UsageError if `samples` is not a whole number of 0 or more.
        """
        samples = check_count(samples, "the number of samples to skip", 0)
        if self._rate is not None and (unheard := self._count_unheard(samples, self._rate)) > 0:
            self._skip_time(unheard)
            samples -= unheard
        if self._resampler is None:
            self._skip_time(samples)
            return []
        rate = self._resampler.rate
        played = min(samples, round(GAP_S * rate) - self._lost_samples)
        if played and self._gate is not None:
            self._lost_spans.append(
                (self._to_model_samples(self._source_samples), self._to_model_samples(self._source_samples + played))
            )
        self._source_samples += played
        self._lost_samples += played
        found = self._advance(self._resampler.push(np.zeros(played, np.float32)))
        if samples > played:
            self._skip_time(samples - played, silence=self._lead_in(rate))
            self._needs_lead_in = True
        return found

    def _skip_time(self, samples: int, *, silence: int = 0) -> None:
        """Forget what was heard, but not which classes fired, and advance the clock.

        `silence` is how many samples of what precedes the next sound take no time of the refractory times.
        """
        contract = self.model.contract
        self._end_all(self._origin + self._source_samples - self._lost_samples)
        if self._rate is not None:
            since = self._lead_in_samples + self._source_samples + samples - silence
            hops = since * contract.sample_rate / (self._rate * contract.hop)
            for detector, _ in self._detectors():
                detector.restart_after(hops)
        self._origin += self._source_samples + samples
        self._source_samples = 0
        self._hops_since_check = self._check_interval
        self._reset_audio()

    def mute(self) -> None:
        """From the next `accept` until `unmute`, let sound pass unheard: the clock advances, nothing is scored.

        For a device that speaks itself. What was heard before is forgotten. May be called from a thread other than the
        one that pushes sound.
        """
        if not self._muted:
            self._muted_at = time.monotonic()
            self._unheard_s = max(0.0, self._unheard_s)  # of an earlier mute
        self._muted = True

    def unmute(self) -> None:
        """Listen again, like a new stream whose clock has kept running.

        Sound recorded during the mute but pushed only now also passes unheard, as happens when the program that pushes
        sound was busy speaking: as much as the mute lasted by the wall clock, less what was pushed meanwhile. There
        are two exceptions. After a `pause` nothing is on its way. And if the stream is not `live`, nothing was being
        recorded (set `live = False` after `reset` to push a file).
        """
        if self._muted and self.live and not self._idle:
            self._unheard_s += time.monotonic() - self._muted_at
        self._muted = False

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Mute inside a `with stream.muted(): ...` block, and unmute at its end."""
        self.mute()
        try:
            yield
        finally:
            self.unmute()

    def _reset_audio(self) -> None:
        self._batch.reset()
        self._lead_in_samples = 0  # source samples of silence that precede the audio
        self._lead_in_hops = 0  # hops of that silence still to come: a gate must not take them for the room's noise
        self._resampler: StreamResampler | None = None
        self._buffer = np.zeros(0, np.float32)
        self._hops = 0  # hops consumed since the start or the last interruption
        self._lost_samples = 0  # lost samples heard as silence since the last sound
        self._lost_spans: deque[tuple[float, float]] = deque()  # where they lie in the model's samples, for a gate
        self._hops_until_closed = 0  # hops to be scored before the gate may close
        # the newest gated hops, of `_gated_count` in all
        self._gated_hops: deque[Pcm] = deque(maxlen=self._lookback_hops)
        self._gated_count = 0
        if self._gate is not None:
            self._gate.reset()
        self.scores: Floats | None = None  # the newest row [classes], for display

    def accept(self, pcm: npt.ArrayLike, sample_rate: int) -> list[Detection]:
        """Take `[samples]` or `[samples, channels]` at `sample_rate` in Hz; return the detections they complete.

        Samples are floats in -1..1, or int16 (int8, int32, uint8) of full scale. Raises AudioError for integers of
        another type (including a list of them), for NaN, infinite or absurdly large samples, and for more than 64
        channels; UsageError if the rate is invalid or changes without `reset()`; with a gallery also what
        `Gallery.matcher` raises.
        """
        chunk, sample_rate = to_mono(pcm), check_rate(sample_rate)
        check_samples(chunk, "the stream")
        if self._rate not in (None, sample_rate):
            raise UsageError(f"the stream began at {self._rate} Hz and now gets {sample_rate} Hz: call reset() first")
        self._idle = self._idle and not len(chunk)
        if (unheard := self._count_unheard(len(chunk), sample_rate)) > 0:
            self._rate = sample_rate
            self._skip_time(unheard)
            chunk = chunk[unheard:]
            if not len(chunk):
                return []
        if self._resampler is None:
            if not len(chunk):  # not the first sound yet, nor the one that a long gap or a pause waits for
                self._rate = sample_rate
                return []
            self._resampler = StreamResampler(sample_rate, self.model.contract.sample_rate)
            self._rate = self._resampler.rate
        self._source_samples += len(chunk)
        if len(chunk):
            self._lost_samples = 0
        if self._needs_lead_in or (self._needs_lead_in is None and not self.live):
            self._lead_in_samples = self._lead_in(sample_rate)
            self._lead_in_hops = self.model.contract.window // self.model.contract.hop
            chunk = np.concatenate([np.zeros(self._lead_in_samples, np.float32), chunk])
        self._needs_lead_in = False
        return self._advance(self._resampler.push(chunk))

    def _lead_in(self, rate: int) -> int:
        """How many samples of silence a lead-in is: a window."""
        return math.ceil(self.model.contract.window * rate / self.model.contract.sample_rate)

    def _count_unheard(self, samples: int, rate: int) -> int:
        """How many of the next `samples` pass unheard: the stream is muted, or was when they were recorded."""
        if self._muted:
            self._unheard_s -= samples / rate
            return samples
        unheard = max(0, min(samples, round(self._unheard_s * rate)))
        self._unheard_s = self._unheard_s - unheard / rate if unheard else 0.0
        return unheard

    def finish(self) -> list[Detection]:
        """Return the detections still pending, by following the audio with silence; then reset.

        Events not yet taken with `take_events` are kept.
        """
        found = self.pause()
        self._restart()
        return found

    def pause(self) -> list[Detection]:
        """Return the detections still pending, by following the audio with silence: no more of it comes for now.

        Sound pushed next continues on the same clock, preceded by silence, even if nothing came before the pause or it
        passed unheard. A class that fired stays silent for its refractory time; the silence counts towards it.
        """
        self._idle, self._unheard_s = True, 0.0  # nothing is on its way
        if self._resampler is None:
            self._needs_lead_in = True
            return []
        contract = self.model.contract
        tail = self._resampler.finish()
        silence = contract.latency_samples + contract.smoothing_hops * contract.hop
        silence += -(len(self._buffer) + len(tail) + silence) % contract.hop
        found = self._advance(np.concatenate([tail, np.zeros(silence, np.float32)]))
        self._skip_time(0)
        self._needs_lead_in = True
        return found

    def _advance(self, pcm: Pcm) -> list[Detection]:
        hop = self.model.contract.hop
        self._buffer = np.concatenate([self._buffer, pcm])
        found: list[Detection] = []
        while len(self._buffer) >= hop:
            chunk, self._buffer = self._buffer[:hop], self._buffer[hop:]
            found += self._score(chunk) if self._gate is None else self._gated(chunk, self._gate)
        self._buffer = self._buffer.copy()  # a view would keep the whole chunk in memory
        return found

    def _gated(self, chunk: Pcm, gate: Gate) -> list[Detection]:
        """Score a hop, or skip it if the gate has heard nothing for as long as an event may reach back."""
        if self._lead_in_hops > 0:  # score the beginning: with nothing before it, a gate would take it for the room
            self._lead_in_hops -= 1
            self._hops_until_closed = self._lookback_hops + 1
        elif not self._mostly_lost() and gate.hears(chunk):
            found = self._replay_gated()
            self._hops_until_closed = self._lookback_hops
            return found + self._score(chunk)
        if self._hops_until_closed > 0:
            self._hops_until_closed -= 1
            return self._score(chunk)
        self._gated_hops.append(chunk.copy())
        self._gated_count += 1
        if self._gated_count > self._lookback_hops:  # from here on it wakes like a stream that heard nothing
            self._skip_hop()
        self.scores = None
        return []

    def _mostly_lost(self) -> bool:
        """Whether at least half of the next hop was lost: a gate must not take that silence for the room's noise."""
        hop = self.model.contract.hop
        first = (self._hops + len(self._gated_hops)) * hop
        lost = sum(max(0.0, min(end, first + hop) - max(start, first)) for start, end in self._lost_spans)
        while self._lost_spans and self._lost_spans[0][1] <= first + hop:
            self._lost_spans.popleft()
        return 2 * lost >= hop

    def _skip_hop(self) -> None:
        """Skip a hop without scoring it: a pause for what has fired."""
        self._hops += 1
        self._hops_since_check += 1
        for detector, labels in self._detectors():
            detector.skip_to(self._hops)
            self._to_detections(detector, [], labels)

    def _detectors(self) -> Iterator[tuple[Detector, Sequence[str]]]:
        yield self._detector, self.model.labels
        if self._names is not None:
            yield self._names, self._names.labels

    def _replay_gated(self) -> list[Detection]:
        """Play the newest gated hops to the model; if more hops were gated before them, reset its state first."""
        if self._gated_count > len(self._gated_hops):
            self._batch.reset()
            self._refresh_names()  # before the events of the gated sound are reported
        found = [detection for chunk in self._gated_hops for detection in self._score(chunk)]
        self._gated_hops.clear()
        self._gated_count = 0
        return found

    def _score(self, chunk: Pcm) -> list[Detection]:
        """Score the next hop and return the detections it completes."""
        scores, embedding = self._batch.step(chunk[None])
        self._hops += 1
        self._hops_since_check += 1
        self.scores = scores[0, -1] if scores.shape[1] else None
        found = self._to_detections(self._detector, self._detector.push(scores[0]), self.model.labels)
        self._refresh_names()
        if self._names is not None:
            found += self._to_detections(self._names, self._names.push(embedding[0]), self._names.labels)
        if self.on_row is not None and self.scores is not None and self._detector.newest is not None:
            self.on_row(self._detector.newest, self._names.match if self._names is not None else None)
        return found

    def _refresh_names(self) -> None:
        """Take over the gallery's current names, if a check is due."""
        if self._gallery is None or self._names is None or self._hops_since_check < self._check_interval:
            return
        self._hops_since_check = 0
        if (matcher := self._gallery.matcher) is not self._names.matcher:
            self._end_pausing(self._names, self._names.labels, except_names=matcher.names)
            self._names = self._names.with_matcher(self.model.contract, matcher)
            self._events.end_names_except(matcher.names, self._to_source_sample(self._begin(self._hops)), self._rate)

    def _to_detections(self, detector: Detector, hits: list[Hit], labels: Sequence[str]) -> list[Detection]:
        """Return the detections of the newest row; with `ends`, record what ended there too."""
        names = isinstance(detector, NameDetector)
        found = [self._detection(hit, labels, names) for hit in hits]
        if self.ends:
            for row, at in detector.released:
                self._events.end((names, labels[at]), self._row_start(row), self._rate)
            for one in found:
                self._events.add(one)
        return found

    def _end_all(self, end: int) -> None:
        """End every sounding class at sample `end` of the source, because no more of it can be heard.

        A class that is pausing there ended when its pause began.
        """
        for detector, labels in self._detectors():
            self._end_pausing(detector, labels)
        self._events.end_all(end, self._rate)

    def _end_pausing(self, detector: Detector, labels: Sequence[str], except_names: Collection[str] = ()) -> None:
        if self.ends:
            names = isinstance(detector, NameDetector)
            for row, at in detector.pausing:
                if labels[at] not in except_names:
                    self._events.end((names, labels[at]), self._row_start(row), self._rate)

    def take_events(self) -> list[Detection | Ended]:
        """With `ends`: the detections and ends since the last call, in the order in which they became known."""
        return self._events.take()

    def _detection(self, hit: Hit, labels: Sequence[str], enrolled: bool) -> Detection:
        """Turn a hit of the newest row into a detection with its place in the source."""
        contract, rate = self.model.contract, self._rate
        assert rate is not None
        first, last = (
            self._to_source_sample(self._begin(self._hops - (hit.row - hit.start_row))),
            self._to_source_sample(self._end()),
        )
        return Detection(contract.name, labels[hit.label], hit.score, first / rate, last / rate, first, last, enrolled)

    def _to_source_sample(self, at: int) -> int:
        """The source sample that corresponds to a sample of the model's, counted since the last interruption."""
        assert self._rate is not None
        since = round(at * self._rate / self.model.contract.sample_rate)
        return self._origin + min(max(0, since - self._lead_in_samples), self._source_samples)

    def _to_model_samples(self, taken: int) -> float:
        """How many of the model's samples the stream has been given once it has taken so many of the source's."""
        assert self._rate is not None
        return (self._lead_in_samples + taken) * self.model.contract.sample_rate / self._rate

    def _row_start(self, row: int) -> int:
        """The source sample at which the sound described by a row of scores begins."""
        return self._to_source_sample(self._begin(row + 1 + self._warmup_hops))

    def _begin(self, hops: int) -> int:
        """The first sample of the hop at the middle of the sound that the row after `hops` hops describes."""
        return self._centre(hops) - self.model.contract.hop // 2

    def _end(self) -> int:
        """The end of the newest row's hop, but no later than the samples consumed.

        How far ahead of those the source is depends on the chunk sizes.
        """
        hop = self.model.contract.hop
        return min(self._centre(self._hops) + hop // 2, self._hops * hop)

    def _centre(self, hops: int) -> int:
        """The sample at the middle of the sound that the row after `hops` hops describes."""
        return hops * self.model.contract.hop - self.model.contract.latency_samples


def _check_gallery(gallery: object) -> None:
    from confit_runtime.gallery import Gallery  # not imported on a device that only listens

    if not isinstance(gallery, Gallery):
        raise UsageError(f"gallery must be an open Gallery, as Gallery.open(path, model) returns it, got {gallery!r}")
