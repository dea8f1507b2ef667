"""Microphones through PortAudio: at the device's own rate, reopened after an absence, with every loss reported."""

from __future__ import annotations

import math
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np

from confit_runtime.arrays import check_count, check_duration
from confit_runtime.audio import Pcm, StreamResampler
from confit_runtime.errors import DeviceError, UsageError
from confit_runtime.sources.base import MICROPHONE_AWAY, OVERRUN, Chunk, Gap, Notice, check_not_open, chunk_or_gap
from confit_runtime.sources.clock import boottime
from confit_runtime.sources.portaudio import import_portaudio, working_settings

BLOCK_S = 0.08  # how much PortAudio delivers at a time: a model's hop; waking up more often costs a Raspberry Pi more
_POLL_S = 0.2  # how often to check whether a silent microphone is still there
_RETRY_S = 1.0  # how often to look for a lost one
_MAX_STALL_S = 30.0  # longest time that a reopened microphone may deliver nothing


class Microphone:
    """A microphone through PortAudio, at the device's own default rate; several channels are averaged.

    - `device`: an index, a part of a name, or None for the default.
    - `channel`: hear only this channel, from 1.
    - `queue_s`: length of the queue between PortAudio's thread and the reader. What does not fit, what PortAudio
      itself lost, and blocks with NaN come back as a `Gap`.
    - `stall_s`: a microphone that delivers nothing for this long counts as away, like one that is unplugged. It is
      then waited for and opened again by its name. If it still delivers nothing, it gets twice as long at each
      opening, up to half a minute.
    - `wait_s`: the longest time to wait for it (None: no limit); each opening gets at least `stall_s`.
    - `portaudio`: the sounddevice module, imported here if not given.

    If it comes back with another rate, its sound is resampled to `rate`.

    Raises DeviceError if there is no PortAudio, no such device, or none that can be opened and, during iteration, if
    it has been away for longer than `wait_s`. Raises UsageError if `channel` is not a whole number from 1, and if a
    number of seconds is invalid; `queue_s` and `stall_s` must be at least one block.
    """

    live = True

    def __init__(
        self,
        device: int | str | None = None,
        *,
        channel: int | None = None,
        queue_s: float = 5.0,
        stall_s: float = 3.0,
        wait_s: float | None = None,
        portaudio: Any = None,
    ) -> None:
        with suppress(ImportError):  # not needed at the model's own rate
            import soxr  # noqa: F401 - load it now: Ctrl-C while its library loads kills the process

        self._portaudio = portaudio or import_portaudio()
        self._queue_s = check_duration(queue_s, "the queue_s of a microphone", BLOCK_S)
        self._stall_s = check_duration(stall_s, "the stall_s of a microphone", BLOCK_S)
        self._wait_s = None if wait_s is None else check_duration(wait_s, "the wait_s of a microphone")
        self._channel = channel = None if channel is None else check_count(channel, "the channel of a microphone", 1)
        self.name = ("mic" if device is None else f"mic:{device}") + ("" if channel is None else f"#{channel}")
        try:
            info = self._portaudio.query_devices(device, "input")
        except (ValueError, self._portaudio.PortAudioError) as error:
            what = "no default microphone" if device is None else f"no microphone {device!r}"
            any_inputs = any(info["max_input_channels"] for info in self._portaudio.query_devices())
            none = "there are no microphones: plug one in, or listen to a file"
            hint = "`confit-edge devices` lists the microphones" if any_inputs else none
            raise DeviceError(f"{what} ({_one_line(error)}); {hint}") from error
        self._info = info
        self.device_name = str(info["name"])
        self._unique_stem = len(self._namesakes(_stem)) == 1
        if channel is not None and not 1 <= channel <= info["max_input_channels"]:
            has = "one channel" if info["max_input_channels"] == 1 else f"{info['max_input_channels']} channels"
            raise DeviceError(f"{self.name}: {self.device_name} has only {has}")
        same = [one["index"] for one in self._namesakes(str)]
        # how many devices have its name, and which of them it is
        self._same_name_count, self._same_name_index = len(same), same.index(info["index"])
        self._settings = self._settings_for(info)
        self.rate = int(self._settings["samplerate"])
        self._stopped = threading.Event()
        self._capture: _Capture | None = None
        self._lost: float | None = None  # when it was last heard, while it is away
        self._reported_samples = 0  # samples of the gaps reported since then
        self._stall_limit_s = stall_s  # how long it may deliver nothing after it was reopened
        self._reported_stalled = False  # whether a notice said that it is open but delivers nothing

    @classmethod
    def named(cls, name: str) -> Microphone:
        """Open a microphone by the name a user gives.

        That is an index, a part of a name, or nothing for the default, then optionally `#N` for a channel.

        If a device's name contains the `#N`, it is that device.
        """
        portaudio = import_portaudio()
        device, mark, channel = name.rpartition("#")
        name_exists = any(name.lower() in str(one["name"]).lower() for one in portaudio.query_devices())
        if not (mark and re.fullmatch(r"\d{1,3}", channel)) or (device and name_exists):
            device, channel = name, ""
        known: int | str | None = int(device) if device.isdecimal() else device or None
        return cls(known, channel=int(channel) if channel else None, portaudio=portaudio)

    def __enter__(self) -> Microphone:
        check_not_open(self.name, open_already=self._capture is not None or self._lost is not None)
        try:
            self._capture = _Capture(self._portaudio, self._settings, self._queue_s)
        except self._portaudio.PortAudioError as error:
            raise DeviceError(
                f"{self.name}: cannot be opened at {self.rate} Hz ({_one_line(error)}); is it in use?"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._lost = None

    def __iter__(self) -> Iterator[Chunk | Gap | Notice]:
        notified = False  # whether a notice said that it went away
        while not self._stopped.is_set():
            if self._lost is None or self._capture is not None:  # otherwise it was already away in an earlier iteration
                heard = yield from self._hear()
                if self._stopped.is_set():
                    return
                self._close()
                if self._lost is None:
                    self._lost, self._reported_samples, notified = heard, 0, False
                    self._stall_limit_s, self._reported_stalled = self._stall_s, False
                else:  # reopening it did not help
                    yield from self._gap(boottime() - self._lost)
                    self._check_wait(self._lost)
            if not notified:
                yield self._away_notice()
                notified = True
            yield from self._wait(self._lost)

    def stop(self) -> None:
        self._stopped.set()

    def _hear(self) -> Generator[Chunk | Gap | Notice, None, float]:
        """Yield what the open device delivers until it goes away; return when it was last heard.

        After an absence it counts as back with its first block, which a reopened device may take seconds to deliver.
        """
        capture = self._capture
        if capture is None:
            raise UsageError(f"{self.name}: is not open: iterate over a microphone inside its `with` block")
        heard = taken = boottime()
        convert = _Converter(capture.rate, self.rate)
        while not self._stopped.is_set():
            try:
                lost, block, came = capture.blocks.get(timeout=min(_POLL_S, self._stall_s))
            except queue.Empty:
                if not capture.active:
                    break
                if boottime() - max(heard, taken) > self._stall_limit(heard):
                    yield from self._stalled_notice()
                    break
                if self._lost is not None:  # the first block began before it arrived
                    yield from self._gap(boottime() - _RETRY_S - self._lost)
                continue
            if self._lost is None and came - heard - lost / capture.rate > self._stall_s:
                break  # the machine was suspended, or the device stalled unnoticed
            heard, taken = came, boottime()
            if self._lost is not None:
                yield from self._gap(came - (lost + len(block)) / capture.rate - self._lost)
                self._lost = None
                yield Notice("back", f"{self.device_name} is back")
            if lost:
                yield Gap(convert.skip(lost), OVERRUN)
            sound = block if self._channel is None else np.ascontiguousarray(block[:, self._channel - 1])
            item = chunk_or_gap((sound, capture.rate), "the microphone")
            if isinstance(item, Gap):
                yield Gap(convert.skip(item.samples), item.reason)
            else:
                converted = convert.push(item[0])
                yield item if converted is item[0] else (converted, self.rate)
        return heard

    def _stall_limit(self, opened: float) -> float:
        """How long nothing may arrive: while it is away, the current patience within `wait_s`, but at least `stall_s`."""
        if self._lost is None:
            return self._stall_s
        left_s = math.inf if self._wait_s is None else self._lost + self._wait_s - opened
        return max(self._stall_s, min(self._stall_limit_s, left_s))

    def _stalled_notice(self) -> Iterator[Notice]:
        """Yield a notice, once per absence, that a reopened device delivers nothing."""
        if self._lost is not None and not self._reported_stalled:
            self._reported_stalled = True
            text = f"{self.device_name} can be opened but delivers nothing; waiting for sound"
            yield Notice("away", text)

    def _away_notice(self) -> Notice:
        """The notice that it went away. Raises DeviceError if it is not to be waited for."""
        if self._wait_s == 0.0:
            raise DeviceError(f"{self.name}: the microphone went away (unplugged?)")
        return Notice("away", f"{self.device_name} went away (unplugged?); waiting for it to come back")

    def _wait(self, heard: float) -> Iterator[Gap]:
        """Yield gaps that keep the clock running until the device is found and opened again."""
        while not self._stopped.is_set():
            away_s = boottime() - heard
            back = self._reopen()
            yield from self._gap(away_s)
            if back:
                return
            self._check_wait(heard)
            self._stopped.wait(_RETRY_S if self._wait_s is None else min(_RETRY_S, self._wait_s / 4))

    def _check_wait(self, heard: float) -> None:
        """Raise DeviceError if the wait has lasted long enough."""
        if self._wait_s is not None and boottime() - heard > self._wait_s:
            raise DeviceError(f"{self.name}: the microphone went away and did not come back within {self._wait_s:g} s")

    def _gap(self, away_s: float) -> Iterator[Gap]:
        """Yield the part of `away_s` that no gap has reported yet."""
        due = int(away_s * self.rate) - self._reported_samples
        if due > 0:
            self._reported_samples += due
            yield Gap(due, MICROPHONE_AWAY)

    def _reopen(self) -> bool:
        """Whether the device is back and open."""
        try:
            _rescan_devices(self._portaudio)
            found = self._find_again()
            if found is None:
                return False
            self._capture = _Capture(self._portaudio, self._settings_for(found), self._queue_s)
        except (UsageError, ValueError, self._portaudio.PortAudioError):
            return False  # half ready: udev and the sound server need a moment to settle
        self._info = found
        self._stall_limit_s = min(2 * self._stall_limit_s, _MAX_STALL_S)
        return True

    def _find_again(self) -> dict[str, Any] | None:
        """Find the device by its name; among several with that name by its position, once as many are present as before.

        Without an exact match, the card's number in the name is ignored, if no other device can be meant.
        """
        if same := self._namesakes(str):
            return same[self._same_name_index] if len(same) == self._same_name_count else None
        alike = self._namesakes(_stem)
        return alike[0] if self._unique_stem and len(alike) == 1 else None

    def _settings_for(self, info: dict[str, Any]) -> dict[str, Any]:
        """The settings to open a device with."""
        return working_settings(self._portaudio, info, whole=self._channel is not None)

    def _namesakes(self, of: Callable[[str], str]) -> list[dict[str, Any]]:
        return [
            device
            for device in self._portaudio.query_devices()
            if device["max_input_channels"] >= (self._channel or 1)
            and device["hostapi"] == self._info["hostapi"]
            and of(device["name"]) == of(self._info["name"])
        ]

    def _close(self) -> None:
        if self._capture is not None:
            self._capture.close()
            self._capture = None


class _Capture:
    """One opening of a device: PortAudio's thread fills a bounded queue.

    Each entry is how many samples were lost before the block, the block, and when it arrived.
    """

    def __init__(self, portaudio: Any, settings: dict[str, Any], queue_s: float) -> None:
        self.rate = int(settings["samplerate"])
        self.blocks: queue.Queue[tuple[int, Pcm, float]] = queue.Queue(maxsize=max(1, round(queue_s / BLOCK_S)))
        # only PortAudio's thread touches these three
        self._lost = 0  # samples lost since the last queued block
        self._draining = False  # the queue was full and has not been emptied since
        # when the next block's first sample should be recorded, by PortAudio's clock
        self._expected_s: float | None = None
        with _captures_lock:
            self._stream = portaudio.InputStream(
                blocksize=int(self.rate * BLOCK_S), callback=self._callback, dtype="float32", **settings
            )
            try:
                self._stream.start()
            except portaudio.PortAudioError:
                self._stream.close()
                raise
            _captures.add(self)

    @property
    def active(self) -> bool:
        return bool(self._stream.active)

    def close(self) -> None:
        with _captures_lock:
            self._stream.close()
            _captures.discard(self)

    def _callback(self, block: Pcm, frames: int, times: Any, status: Any) -> None:
        """Called in PortAudio's thread; `block [frames, channels]` is only lent."""
        if status.input_overflow:
            expected_s = times.inputBufferAdcTime if self._expected_s is None else self._expected_s
            missing = round((times.inputBufferAdcTime - expected_s) * self.rate)
            # drivers without a clock give no duration: then at least one block is lost
            self._lost += missing if 0 < missing < 60 * self.rate else frames
        self._expected_s = times.inputBufferAdcTime + frames / self.rate
        # A machine that is too slow should lose long stretches: were each free place filled at once, single blocks would
        # be lost all the time, and of sound in which every word has a hole it would hear less.
        self._draining = self.blocks.full() or (self._draining and not self.blocks.empty())
        if self._draining:
            self._lost += frames
        else:
            self.blocks.put_nowait((self._lost, block.copy(), boottime()))
            self._lost = 0


class _Converter:
    """Converts a device that came back at another rate to its earlier rate, without letting the clock drift."""

    def __init__(self, rate: int, to: int) -> None:
        self._rate, self._to = rate, to
        self._samples_in = self._samples_out = 0  # samples, at `rate` and at `to`
        self._resampler = StreamResampler(rate, to)

    def push(self, pcm: Pcm) -> Pcm:
        converted = self._resampler.push(pcm)
        self._samples_in += len(pcm)
        self._samples_out += len(converted)
        return converted

    def skip(self, samples: int) -> int:
        """How many samples at `to` are lost with `samples` at `rate`."""
        self._samples_in += samples
        lost = round(self._samples_in * self._to / self._rate) - self._samples_out
        self._samples_out += lost
        self._resampler = StreamResampler(self._rate, self._to)
        return lost


def _rescan_devices(portaudio: Any) -> None:
    """Make PortAudio list the devices again, which it does only when it starts, and only while none is open."""
    with _captures_lock:
        if not _captures:
            with suppress(portaudio.PortAudioError):  # it is not running if it could not be started last time
                portaudio._terminate()
            portaudio._initialize()


def _stem(name: str) -> str:
    """A device's name without the card's number, which may change when it is plugged in again."""
    return re.sub(r"\(hw:\d+,\d+\)", "", name).strip()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


_captures: set[_Capture] = set()  # those open in this process
_captures_lock = threading.Lock()
