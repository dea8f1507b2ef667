"""PortAudio: the library, the microphones it lists, and how each can be opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from confit_runtime.audio import check_rate
from confit_runtime.errors import DeviceError

_RATES = (48_000, 44_100, 32_000, 22_050, 16_000, 8_000)


@dataclass(frozen=True)
class InputDevice:
    """A microphone that PortAudio offers: `mic:{index}`, or `mic:` and a part of its name.

    `rates` are the usual sample rates, in Hz, at which it can be opened now; empty if it is in use.
    """

    index: int
    name: str
    channels: int
    default_rate: int
    default: bool
    rates: tuple[int, ...]


def input_devices(portaudio: Any = None) -> list[InputDevice]:
    """The available microphones. `portaudio` as for `Microphone`. Raises DeviceError without PortAudio."""
    portaudio = portaudio or import_portaudio()
    try:
        default = portaudio.query_devices(None, "input")["index"]
    except (ValueError, portaudio.PortAudioError):
        default = None  # how PortAudio says that there is none
    return [
        InputDevice(
            info["index"],
            info["name"],
            int(info["max_input_channels"]),
            round(info["default_samplerate"]),
            info["index"] == default,
            tuple(rate for rate in sorted(_RATES) if _channels_at(portaudio, info, rate)),
        )
        for info in portaudio.query_devices()
        if info["max_input_channels"] > 0
    ]


def import_portaudio() -> Any:
    """The sounddevice module. Raises DeviceError, saying what to install, if it or the PortAudio library is missing."""
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"no microphone support: {error}. pip install sounddevice (sound files and PCM on stdin work without it)"
        ) from error
    except OSError as error:
        raise DeviceError(
            f"no microphone support: {error}. On Debian, Ubuntu and Raspberry Pi OS: sudo apt-get install libportaudio2"
            " (sound files and PCM on stdin work without it)"
        ) from error
    return sounddevice


def working_settings(portaudio: Any, info: dict[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """How to open a device: at its default rate or, if the driver refuses its own default, at the best usual one.

    It is opened with one channel if possible, unless the `whole` device is wanted.
    """
    default = check_rate(round(info["default_samplerate"]))
    for rate in (default, *_RATES):
        if channels := _channels_at(portaudio, info, rate, whole):
            return {"device": info["index"], "channels": channels, "samplerate": rate}
    # opening it reports why it cannot be opened
    every = int(info["max_input_channels"])
    return {"device": info["index"], "channels": every if whole else 1, "samplerate": default}


def _channels_at(portaudio: Any, info: dict[str, Any], rate: int, whole: bool = False) -> int:
    """With how many channels the device opens at `rate`: one if possible, otherwise all it has; 0 if it does not open."""
    every = int(info["max_input_channels"])
    for channels in dict.fromkeys((every,) if whole else (1, every)):
        try:
            portaudio.check_input_settings(device=info["index"], channels=channels, dtype="float32", samplerate=rate)
        except portaudio.PortAudioError:
            continue
        return channels
    return 0
