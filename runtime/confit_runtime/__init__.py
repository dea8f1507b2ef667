"""confit-edge on the device: load a model, stream audio through it, enroll new names. numpy and onnxruntime only."""

from confit_runtime.errors import AudioError, ConfitError, DeviceError, GalleryError, ModelError, UsageError
from confit_runtime.gallery import Gallery, Match
from confit_runtime.model import Classification, Detection, Model, Stream, load

__all__ = [
    "AudioError",
    "Classification",
    "ConfitError",
    "Detection",
    "DeviceError",
    "Gallery",
    "GalleryError",
    "Match",
    "Model",
    "ModelError",
    "Stream",
    "UsageError",
    "load",
]
