"""confit-edge on the device: load a model, stream audio through it, enroll new names. Needs numpy and onnxruntime only."""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confit_runtime.asynchronous import listen_async
    from confit_runtime.detect import Hold
    from confit_runtime.errors import AudioError, ConfitError, DeviceError, GalleryError, ModelError, UsageError
    from confit_runtime.event_json import event_to_json
    from confit_runtime.events import Detection, Ended
    from confit_runtime.gallery import Gallery
    from confit_runtime.gates import EnergyGate, Gate, SpeechGate
    from confit_runtime.listener import Listener, Tap, listen
    from confit_runtime.matcher import Match
    from confit_runtime.model import Classification, Model, load
    from confit_runtime.stream import Stream

__all__ = [
    "AudioError",
    "Classification",
    "ConfitError",
    "Detection",
    "DeviceError",
    "Ended",
    "EnergyGate",
    "Gallery",
    "GalleryError",
    "Gate",
    "Hold",
    "Listener",
    "Match",
    "Model",
    "ModelError",
    "SpeechGate",
    "Stream",
    "Tap",
    "UsageError",
    "__version__",
    "event_to_json",
    "listen",
    "listen_async",
    "load",
]

# read by the build; looking it up from the installed package would cost each start 5 MB and 30 ms
__version__ = "0.1.0"

# onnxruntime from 1.29 on reports each session to Microsoft unless this is set when it is imported; set it to 0 to
# allow that
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# imported on first use: a program that only listens does not load galleries, and an error message loads nothing
_HOME = {
    **dict.fromkeys(("AudioError", "ConfitError", "DeviceError", "GalleryError", "ModelError", "UsageError"), "errors"),
    **dict.fromkeys(("EnergyGate", "Gate", "SpeechGate"), "gates"),
    **dict.fromkeys(("Listener", "Tap", "listen"), "listener"),
    **dict.fromkeys(("Classification", "Model", "load"), "model"),
    **dict.fromkeys(("Detection", "Ended"), "events"),
    "Gallery": "gallery",
    "Match": "matcher",
    "Hold": "detect",
    "Stream": "stream",
    "event_to_json": "event_json",
    "listen_async": "asynchronous",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
