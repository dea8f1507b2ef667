"""`confit-edge devices`: the microphones there are."""

from __future__ import annotations

import dataclasses

from confit_edge.cli._console import Json, emit, tell
from confit_runtime.errors import DeviceError
from confit_runtime.wording import counted


def devices(json: Json = False) -> None:
    """List the microphones, the default one marked with `*`. Listen to one with `--source mic:INDEX` or `mic:NAME`.

    The first rate is the device's own, at which it is opened; then come the others of the usual rates it can do now.

    Examples:

        confit-edge devices

        confit-edge listen digits --source mic:2
    """
    from confit_runtime.sources import input_devices

    found = input_devices()
    for device in found:
        if json:
            emit("device", **dataclasses.asdict(device))
        else:
            mark = "*" if device.default else " "
            channels = counted(device.channels, "channel")
            others = ", ".join(str(rate) for rate in device.rates if rate != device.default_rate)
            also = f" ({others})" if others else ""
            tell(f"{mark} {device.index:3}  {device.name}  {device.default_rate} Hz{also}  {channels}")
    if json:
        emit("summary", devices=len(found))
    if not found:
        raise DeviceError(
            "no microphone found: plug one in, or hear a file with `confit-edge listen MODEL --source FILE`"
        )
