"""Errors that a user can act on: each message names what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ConfitError(Exception):
    """The requested work failed. The command line prints the message on one line and exits with `exit_code`.

    `clip` is the sound file at fault when there are several (see `clip_errors`).
    """

    exit_code = 1
    clip: str | None = None


class UsageError(ConfitError):
    """The request cannot be carried out as given: a wrong option, a missing file, a missing column."""

    exit_code = 2


class AudioError(ConfitError):
    """A clip or a stream cannot be read as sound."""


class TooLongError(AudioError):
    """A clip is longer than the limit for files that are read as a whole."""


class ModelError(ConfitError):
    """A model file is damaged, was not made by confit-edge, or comes from an unknown version."""


class GalleryError(ConfitError):
    """A gallery cannot be used: it is damaged, not a confit-edge gallery, or belongs to another model."""


class GalleryModelError(GalleryError):
    """The gallery was enrolled with another model."""


class GalleryBusyError(GalleryError):
    """Another program kept the gallery locked for longer than the time limit."""


class DeviceError(ConfitError):
    """There is no microphone or no PortAudio, or the device disappeared."""


@contextmanager
def clip_errors(path: str | Path) -> Iterator[None]:
    """Mark every ConfitError raised in this block as caused by the clip at `path`."""
    try:
        yield
    except ConfitError as error:
        error.clip = str(path)
        raise
