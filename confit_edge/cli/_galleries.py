"""Which gallery is whose, and what taps `listen` needs for them: speakers named, false alarms dropped, triggers kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from confit_runtime.errors import UsageError

if TYPE_CHECKING:
    from confit_runtime.gallery import Gallery
    from confit_runtime.listener import Tap
    from confit_runtime.model import Model


@dataclass
class Placed:
    """Galleries by the models they were enrolled with, and the taps that use them."""

    of_model: dict[int, Gallery] = field(default_factory=dict)  # by place among the models
    taps: list[Tap] = field(default_factory=list)


@contextmanager
def opened(
    paths: list[Path], models: list[Model], *, speaker_model: Model | None, only: list[str], save: Path | None
) -> Iterator[Placed]:
    """The galleries, open for as long as somebody listens.

    Raises UsageError when the options do not fit together, GalleryError on a gallery of none of the models.
    """
    if not (paths or speaker_model or only or save):
        yield Placed()  # who only listens is spared SQLite and what stands on it: 2 MB
        return
    from confit_runtime.gallery import Gallery, clean_name
    from confit_runtime.speaker import SaveTap, SpeakerTap, VetoTap

    if speaker_model is None and only:
        raise UsageError(
            "--only names who may speak: give --speaker-model (speakers, or a file) and its --gallery, too"
        )
    with ExitStack() as stack:
        placed, voices = Placed(), None
        for path in paths:
            with Gallery.open(path) as unread:
                owners = [at for at, model in enumerate(models) if model.contract.embedding_id == unread.embedding_id]
            if speaker_model is not None and (speaker_model.contract.embedding_id == unread.embedding_id or not owners):
                # one of none of the models is refused here, or below
                voices = stack.enter_context(Gallery.open(path, speaker_model))
                continue
            for at in owners or [0]:
                gallery = stack.enter_context(Gallery.open(path, models[at]))
                placed.of_model[at] = gallery
                if gallery.negatives():
                    placed.taps.append(VetoTap(models[at], gallery))
        if speaker_model is not None:
            if voices is None:
                raise UsageError(
                    "--speaker-model needs the --gallery of those who may be named: see `confit-edge enroll`"
                )
            wanted = [clean_name(name) for name in only]
            if unknown := [name for name in wanted if name not in voices.names()]:
                enrolled = ", ".join(voices.names()) or "nobody"
                raise UsageError(f"--only {unknown[0]}: is not enrolled in {voices.path} (enrolled: {enrolled})")
            placed.taps.append(SpeakerTap(speaker_model, voices, wanted))
        if save is not None:
            placed.taps.append(SaveTap(save, models))
        yield placed
