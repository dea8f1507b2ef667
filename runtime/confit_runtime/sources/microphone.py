"""Microphones through PortAudio: at the device's own rate, waited for when they go away, nothing lost in silence."""

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

from confit_runtime.arrays import duration, whole
from confit_runtime.audio import Pcm, StreamResampler, to_mono
from confit_runtime.errors import DeviceError, UsageError
from confit_runtime.sources.base import MICROPHONE_AWAY, OVERRUN, Chunk, Gap, Notice, check_closed, sound_or_gap
from confit_runtime.sources.clock import boottime
from confit_runtime.sources.portaudio import import_portaudio, working_settings

BLOCK_S = 0.08  # what PortAudio is asked to deliver at a time: a model's hop, and waking up more often costs a Pi more
_POLL_S = 0.2  # how often a silent microphone is asked whether it is still there
_RETRY_S = 1.0  # how often a lost one is looked for
_PATIENCE_S = 30.0  # for how long at the most one that was opened again may deliver nothing


class Microphone:
    """A microphone through PortAudio, at the device's own default rate; several channels are averaged.

    `device` is an index, a part of a name, or None for the default; `channel` the one channel to hear, from 1. A bounded
    queue of `queue_s` stands between PortAudio's thread and the reader: what does not fit, what PortAudio itself lost, and
    blocks that hold NaN come back as a `Gap`. One that is unplugged, or delivers nothing for `stall_s`, is waited for and
    opened again by its name, for `wait_s` at most (None: as long as it takes; each opening has `stall_s`). Should it then
    deliver nothing, it is given twice as long at each opening, up to half a minute. Should it come back with another rate,
    its sound is resampled to `rate`.

    `portaudio` is the sounddevice module, imported here when not given. Raises DeviceError when there is no PortAudio,
    no such device, or none that can be opened, and, on the way, when it has been away for more than `wait_s`; UsageError on
    a `channel` that is no whole number from 1, and on what is no number of seconds: `queue_s` and `stall_s` hold a block.
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
        with suppress(ImportError):  # who hears at the model's own rate has no need of it
            import soxr  # noqa: F401 - Ctrl-C while its library loads ends the process by a signal: not while someone speaks

        self._portaudio = portaudio or import_portaudio()
        self._queue_s = duration(queue_s, "the queue_s of a microphone", BLOCK_S)
        self._stall_s = duration(stall_s, "the stall_s of a microphone", BLOCK_S)
        self._wait_s = None if wait_s is None else duration(wait_s, "the wait_s of a microphone")
        self._channel = channel = None if channel is None else whole(channel, "the channel of a microphone", 1)
        self.name = ("mic" if device is None else f"mic:{device}") + ("" if channel is None else f"#{channel}")
        try:
            info = self._portaudio.query_devices(device, "input")
        except (ValueError, self._portaudio.PortAudioError) as error:
            what = "no default microphone" if device is None else f"no microphone {device!r}"
            there = any(info["max_input_channels"] for info in self._portaudio.query_devices())
            none = "there is none at all: plug one in, or listen to a file"
            cure = "`confit-edge devices` lists what there is" if there else none
            raise DeviceError(f"{what} ({_line(error)}); {cure}") from error
        self._info = info
        self.device_name = str(info["name"])
        self._alone = len(self._namesakes(_stem)) == 1
        if channel is not None and not 1 <= channel <= info["max_input_channels"]:
            has = "one channel" if info["max_input_channels"] == 1 else f"{info['max_input_channels']} channels"
            raise DeviceError(f"{self.name}: {self.device_name} has {has}")
        same = [one["index"] for one in self._namesakes(str)]
        self._same, self._place = len(same), same.index(info["index"])  # how many bear its name, and which it is
        self._settings = self._how(info)
        self.rate = int(self._settings["samplerate"])
        self._stopped = threading.Event()
        self._capture: _Capture | None = None
        self._lost: float | None = None  # when it was last heard, until it is heard again
        self._told = 0  # samples of the gaps since then
        self._patience_s = stall_s  # how long it may deliver nothing since it was opened again
        self._mute = False  # whether it was told that it delivers nothing though it is open

    @classmethod
    def named(cls, name: str) -> Microphone:
        """From how a user names it: an index, a part of a name, nothing for the default; and `#N` after it for a channel.

        Where a device is called so, it is that device.
        """
        portaudio = import_portaudio()
        device, mark, channel = name.rpartition("#")
        called_so = any(name.lower() in str(one["name"]).lower() for one in portaudio.query_devices())
        if not (mark and re.fullmatch(r"\d{1,3}", channel)) or (device and called_so):
            device, channel = name, ""
        known: int | str | None = int(device) if device.isdecimal() else device or None
        return cls(known, channel=int(channel) if channel else None, portaudio=portaudio)

    def __enter__(self) -> Microphone:
        check_closed(self.name, open_already=self._capture is not None or self._lost is not None)
        try:
            self._capture = _Capture(self._portaudio, self._settings, self._queue_s)
        except self._portaudio.PortAudioError as error:
            raise DeviceError(
                f"{self.name}: cannot be opened at {self.rate} Hz ({_line(error)}); is it in use?"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._lost = None

    def __iter__(self) -> Iterator[Chunk | Gap | Notice]:
        said = False  # that it went away
        while not self._stopped.is_set():
            if self._lost is None or self._capture is not None:  # else it was away when it was iterated over before
                heard = yield from self._hear()
                if self._stopped.is_set():
                    return
                self._close()
                if self._lost is None:
                    self._lost, self._told, said = heard, 0, False
                    self._patience_s, self._mute = self._stall_s, False
                else:  # it was opened in vain
                    yield from self._gap(boottime() - self._lost)
                    self._check_wait(self._lost)
            if not said:
                yield self._away()
                said = True
            yield from self._wait(self._lost)

    def stop(self) -> None:
        self._stopped.set()

    def _hear(self) -> Generator[Chunk | Gap | Notice, None, float]:
        """What the open device delivers until it goes away; returns when it was last heard.

        Where it was away it is back with the first block, for what was opened may take seconds to deliver it.
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
                if boottime() - max(heard, taken) > self._patience(heard):
                    yield from self._delivers_nothing()
                    break
                if self._lost is not None:  # the first block began before it came
                    yield from self._gap(boottime() - _RETRY_S - self._lost)
                continue
            if self._lost is None and came - heard - lost / capture.rate > self._stall_s:
                break  # this machine was suspended, or the device stood still, and nobody looked
            heard, taken = came, boottime()
            if self._lost is not None:
                yield from self._gap(came - (lost + len(block)) / capture.rate - self._lost)
                self._lost = None
                yield Notice("back", f"{self.device_name} is back")
            if lost:
                yield Gap(convert.skip(lost), OVERRUN)
            sound = to_mono(block) if self._channel is None else np.ascontiguousarray(block[:, self._channel - 1])
            item = sound_or_gap(sound, capture.rate, "the microphone")
            if isinstance(item, Gap):
                yield Gap(convert.skip(item.samples), item.reason)
            else:
                yield convert.push(item[0]), self.rate
        return heard

    def _patience(self, opened: float) -> float:
        """For how long nothing may come: while it is lost as long as it is waited for, if that leaves it `stall_s`."""
        if self._lost is None:
            return self._stall_s
        left_s = math.inf if self._wait_s is None else self._lost + self._wait_s - opened
        return max(self._stall_s, min(self._patience_s, left_s))

    def _delivers_nothing(self) -> Iterator[Notice]:
        """Of one that was opened again, once until it is back."""
        if self._lost is not None and not self._mute:
            self._mute = True
            text = f"{self.device_name} is there and can be opened, but delivers nothing; waiting for its sound"
            yield Notice("away", text)

    def _away(self) -> Notice:
        """That it went away. Raises DeviceError where it is not waited for."""
        if self._wait_s == 0.0:
            raise DeviceError(f"{self.name}: the microphone went away (unplugged?)")
        return Notice("away", f"{self.device_name} went away (unplugged?); waiting for it to come back")

    def _wait(self, heard: float) -> Iterator[Gap]:
        """Gaps that keep the clock running, until the device was found and opened again."""
        while not self._stopped.is_set():
            away_s = boottime() - heard
            back = self._reopen()
            yield from self._gap(away_s)
            if back:
                return
            self._check_wait(heard)
            self._stopped.wait(_RETRY_S if self._wait_s is None else min(_RETRY_S, self._wait_s / 4))

    def _check_wait(self, heard: float) -> None:
        """Raises DeviceError where it has been waited for long enough."""
        if self._wait_s is not None and boottime() - heard > self._wait_s:
            raise DeviceError(f"{self.name}: the microphone went away and did not come back in {self._wait_s:g} s")

    def _gap(self, away_s: float) -> Iterator[Gap]:
        """What was not told yet of the seconds away."""
        due = int(away_s * self.rate) - self._told
        if due > 0:
            self._told += due
            yield Gap(due, MICROPHONE_AWAY)

    def _reopen(self) -> bool:
        """Whether the device is there again, and open."""
        try:
            _look_for_devices(self._portaudio)
            found = self._find_again()
            if found is None:
                return False
            self._capture = _Capture(self._portaudio, self._how(found), self._queue_s)
        except (UsageError, ValueError, self._portaudio.PortAudioError):
            return False  # half there: udev and the sound server take a while to settle
        self._info = found
        self._patience_s = min(2 * self._patience_s, _PATIENCE_S)
        return True

    def _find_again(self) -> dict[str, Any] | None:
        """The device by its name, and its place where others bear the same, once as many are there as were.

        By its name without the card's number where that cannot be another device.
        """
        if same := self._namesakes(str):
            return same[self._place] if len(same) == self._same else None
        alike = self._namesakes(_stem)
        return alike[0] if self._alone and len(alike) == 1 else None

    def _how(self, info: dict[str, Any]) -> dict[str, Any]:
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

    Of each block with how many samples were lost before it, and when it came.
    """

    def __init__(self, portaudio: Any, settings: dict[str, Any], queue_s: float) -> None:
        self.rate = int(settings["samplerate"])
        self.blocks: queue.Queue[tuple[int, Pcm, float]] = queue.Queue(maxsize=max(1, round(queue_s / BLOCK_S)))
        self._lost = 0  # samples lost since the last block that was queued; only PortAudio's thread touches these two
        # when the next block's first sample should be recorded, on PortAudio's clock
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
        """PortAudio's thread: `block [frames, channels]` is only lent."""
        if status.input_overflow:
            expected_s = times.inputBufferAdcTime if self._expected_s is None else self._expected_s
            missing = round((times.inputBufferAdcTime - expected_s) * self.rate)
            # drivers that keep no clock give no duration: then at least one block is gone
            self._lost += missing if 0 < missing < 60 * self.rate else frames
        self._expected_s = times.inputBufferAdcTime + frames / self.rate
        try:
            self.blocks.put_nowait((self._lost, block.copy(), boottime()))
        except queue.Full:
            self._lost += frames
        else:
            self._lost = 0


class _Converter:
    """Brings a device that came back with another rate to the rate it had, without letting the clock slip."""

    def __init__(self, rate: int, to: int) -> None:
        self._rate, self._to = rate, to
        self._taken = self._given = 0  # samples, at `rate` and at `to`
        self._resampler = StreamResampler(rate, to)

    def push(self, pcm: Pcm) -> Pcm:
        converted = self._resampler.push(pcm)
        self._taken += len(pcm)
        self._given += len(converted)
        return converted

    def skip(self, samples: int) -> int:
        """How many samples at `to` are lost with `samples` at `rate`."""
        self._taken += samples
        lost = round(self._taken * self._to / self._rate) - self._given
        self._given += lost
        self._resampler = StreamResampler(self._rate, self._to)
        return lost


def _look_for_devices(portaudio: Any) -> None:
    """Have PortAudio list the devices anew, which it does only when it starts, and can only while it has none open."""
    with _captures_lock:
        if not _captures:
            with suppress(portaudio.PortAudioError):  # it does not run where it could not be started the last time
                portaudio._terminate()
            portaudio._initialize()


def _stem(name: str) -> str:
    """A device's name without the card's number, which may differ when it is plugged in again."""
    return re.sub(r"\(hw:\d+,\d+\)", "", name).strip()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


_captures: set[_Capture] = set()  # those open in this process
_captures_lock = threading.Lock()
