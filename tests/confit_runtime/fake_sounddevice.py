"""A stand-in for the sounddevice module and the PortAudio behind it, as faithful as the tests need.

It calls back from its own thread with a buffer that it uses again, raises sounddevice's own kinds of errors with its
own words, and can lose samples, stall, or be unplugged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.tiny_model import Floats


class PortAudioError(Exception):
    pass


@dataclass
class Back:
    """How the microphone comes back, when PortAudio has looked for it `after` times: it says `sound` at `rate`.

    Its first block comes `late_s` after it was opened, as through PulseAudio.
    """

    sound: Floats
    rate: int = 48_000
    name: str = "USB Mic: Audio (hw:1,0)"
    after: int = 1
    late_s: float = 0.0


class FakePortAudio:
    """The module: one real microphone among other devices, with `sound [samples, channels]` to say at `rate` Hz."""

    PortAudioError = PortAudioError

    def __init__(
        self,
        sound: Floats,
        rate: int = 48_000,
        *,
        mono: bool = True,
        present: bool = True,
        busy: bool = False,
        keeps_time: bool = True,
        real_time: bool = False,
        overflows: dict[int, int] | None = None,
        faulty: tuple[int, ...] = (),
        then: str = "stalls",
        back: Back | None = None,
    ) -> None:
        """`overflows` maps a block to how many samples PortAudio loses before it; `faulty` blocks hold NaN.

        After its sound the microphone `then` "stalls" or is "unplugged", and may come `back`.
        """
        self.sound = sound.reshape(len(sound), -1)
        self.rate, self.mono, self.busy, self.then = rate, mono, busy, then
        self.keeps_time, self.real_time = keeps_time, real_time
        self.overflows, self.faulty, self.back = overflows or {}, faulty, back
        self.closed, self.gone = False, False
        self.open_streams = self.looks = 0
        self.opened: list[int] = []  # devices
        self.late_s = 0.0
        self.away_s = 0.0  # from its last block to where the first begins when it is back
        self._delivered: float | None = None  # when the last block was
        self.dead_looks = 0  # how often PortAudio cannot be started
        self._devices = [
            {"name": "Loudspeaker", "max_input_channels": 0, "default_samplerate": 48_000.0},
            {
                "name": "USB Mic: Audio (hw:1,0)",
                "max_input_channels": self.sound.shape[1],
                "default_samplerate": float(rate),
            },
            {"name": "USB Line: Audio (hw:2,0)", "max_input_channels": 2, "default_samplerate": 44_100.0},
        ]
        if not present:
            del self._devices[1:]
        for index, device in enumerate(self._devices):
            device.update(index=index, hostapi=0)

    def query_devices(self, device: int | str | None = None, kind: str | None = None) -> Any:
        if device is None and kind is None:
            return list(self._devices)
        if device is None:
            device = 1 if len(self._devices) > 1 else -1
        if isinstance(device, str):
            found = [
                one for one in self._devices if device.lower() in str(one["name"]).lower() and one["max_input_channels"]
            ]
            if not found:
                raise ValueError(f"No input device matching {device!r}")
            if len(found) > 1:
                listed = "\n".join(f"[{one['index']}] {one['name']}" for one in found)
                raise ValueError(f"Multiple input devices found for {device!r}:\n{listed}")
            return found[0]
        if not 0 <= device < len(self._devices):
            raise PortAudioError(f"Error querying device {device}")
        if not self._devices[device]["max_input_channels"]:
            raise ValueError(f"Not an input device: {self._devices[device]['name']!r}")
        return self._devices[device]

    def check_input_settings(self, device: int, channels: int, dtype: str, samplerate: int) -> None:
        assert dtype == "float32"
        if samplerate != self.rate:
            raise PortAudioError("Error: Invalid sample rate [PaErrorCode -9997]")
        if channels > self.sound.shape[1] or (channels < self.sound.shape[1] and not self.mono):
            raise PortAudioError("Error: Invalid number of channels [PaErrorCode -9998]")

    def _terminate(self) -> None:
        assert self.open_streams == 0, "PortAudio closes what is open, whosever it is"
        if 0 < self.looks <= self.dead_looks:
            raise PortAudioError("Error terminating PortAudio: PortAudio not initialized [PaErrorCode -10000]")

    def _initialize(self) -> None:
        """Real PortAudio lists devices when it is initialised, and then never again."""
        self.looks += 1
        if self.looks <= self.dead_looks:
            raise PortAudioError("Error initializing PortAudio: Unanticipated host error [PaErrorCode -9999]")
        if self.gone:
            self._devices[1:2] = [{**self._devices[1], "name": "gone", "max_input_channels": 0}]
        if self.back is not None and self.looks >= self.back.after:
            back, self.back = self.back, None
            self.sound, self.rate = back.sound.reshape(len(back.sound), -1), back.rate
            self.overflows, self.faulty, self.gone, self.late_s = {}, (), False, back.late_s
            self._devices[1].update(
                name=back.name, max_input_channels=self.sound.shape[1], default_samplerate=float(back.rate)
            )

    def InputStream(self, **settings: Any) -> FakeInputStream:  # noqa: N802 - sounddevice's name
        return FakeInputStream(self, **settings)


class FakeInputStream:
    def __init__(
        self,
        portaudio: FakePortAudio,
        *,
        device: int,
        channels: int,
        dtype: str,
        samplerate: int,
        blocksize: int,
        callback: Callable[[Floats, int, Any, Any], None],
    ) -> None:
        if portaudio.busy or (portaudio.gone and device == 1):
            raise PortAudioError("Error opening InputStream: Device unavailable [PaErrorCode -9985]")
        portaudio.check_input_settings(device, channels, dtype, samplerate)
        self._portaudio, self._channels, self._blocksize, self._callback = portaudio, channels, blocksize, callback
        self._device, self._late_s = device, portaudio.late_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.active = False

    def start(self) -> None:
        self.active = True
        self._portaudio.open_streams += 1
        self._portaudio.opened.append(self._device)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.active = False
        self._portaudio.open_streams -= 1
        self._portaudio.closed = True

    def _run(self) -> None:
        machine, at, block = self._portaudio, 0, 0
        buffer = np.zeros((self._blocksize, self._channels), np.float32)
        self._stop.wait(self._late_s)
        began = time.monotonic()
        while at + self._blocksize <= len(machine.sound) and not self._stop.is_set():
            lost = machine.overflows.get(block, 0)
            at += lost
            sound = machine.sound[at : at + self._blocksize]
            buffer[:] = sound.mean(axis=1, keepdims=True) if self._channels == 1 else sound
            if block in machine.faulty:
                buffer[7] = np.nan
            times = SimpleNamespace(inputBufferAdcTime=100.0 + at / machine.rate if machine.keeps_time else 0.0)
            if block == 0 and machine._delivered is not None:
                machine.away_s = time.monotonic() - self._blocksize / machine.rate - machine._delivered
            machine._delivered = time.monotonic()
            self._callback(buffer, self._blocksize, times, SimpleNamespace(input_overflow=lost > 0))
            buffer[:] = np.nan  # the buffer is PortAudio's again
            at += self._blocksize
            block += 1
            if machine.real_time:
                self._stop.wait(max(0.0, began + at / machine.rate - time.monotonic()))
        if machine.then == "unplugged" and not self._stop.is_set():
            self.active = False
            machine.gone = True
