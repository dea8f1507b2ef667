"""`confit-edge devices`: list the microphones."""

from __future__ import annotations

import dataclasses

from confit_edge.cli._console import Json, emit, print_line
from confit_runtime.errors import DeviceError
from confit_runtime.formatting import format_count


def devices(json: Json = False) -> None:
    """List the microphones of this machine.

    Each line shows the index, name, rates and channels of a microphone; `*` marks the default. The first rate is the
    device's own, at which it is opened; the other usual rates that it supports now follow in brackets. Use a microphone
    with `--source mic:INDEX` or `--source mic:NAME`. With several channels you hear one that the driver or the sound server
    makes of them (their mean, or the first); append `#N` to hear channel N.

    Examples:

        confit-edge devices
        confit-edge listen digits --source mic:2

    Next: `confit-edge doctor` checks a microphone.
    """
    from confit_runtime.sources import input_devices

    found = input_devices()
    for device in found:
        if json:
            emit("device", **dataclasses.asdict(device))
        else:
            mark = "*" if device.default else " "
            channels = format_count(device.channels, "channel")
            others = ", ".join(str(rate) for rate in device.rates if rate != device.default_rate)
            also = f" ({others})" if others else ""
            print_line(f"{mark} {device.index:3}  {device.name}  {device.default_rate} Hz{also}  {channels}")
    if json:
        emit("summary", devices=len(found))
    if not found:
        raise DeviceError(
            "no microphone found: plug one in, or listen to a file with `confit-edge listen MODEL --source FILE`"
        )
