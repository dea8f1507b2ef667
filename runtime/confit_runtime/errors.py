"""Errors a person can act on: each message names what is at fault and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ConfitError(Exception):
    """The work could not be done. The command line prints the message on one line and exits with `exit_code`.

    `clip` is the sound file that could not be used, where it is one of several (`of_clip`).
    """

    exit_code = 1
    clip: str | None = None


class UsageError(ConfitError):
    """What was asked for cannot be meant: a wrong option, a missing file, a column that is not there."""

    exit_code = 2


class AudioError(ConfitError):
    """A clip or a stream that cannot be read as sound."""


class TooLongError(AudioError):
    """A clip that is longer than what is read whole."""


class ModelError(ConfitError):
    """A model file that is damaged, is not ours, or is from a version we do not know."""


class GalleryError(ConfitError):
    """A gallery that cannot be used, as it is damaged, not ours, or of another model."""


class GalleryModelError(GalleryError):
    """A gallery that was enrolled with another model."""


class GalleryBusyError(GalleryError):
    """Another program holds the gallery for longer than one waits."""


class DeviceError(ConfitError):
    """No microphone, no PortAudio, or a device that went away."""


@contextmanager
def of_clip(path: str | Path) -> Iterator[None]:
    """What is raised here is of this clip."""
    try:
        yield
    except ConfitError as error:
        error.clip = str(path)
        raise
