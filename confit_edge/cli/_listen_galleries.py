"""The galleries of `listen`: which model each belongs to, and the taps that name speakers, veto and save detections."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from confit_edge.cli._console import say
from confit_runtime.errors import UsageError
from confit_runtime.formatting import format_list
from confit_runtime.names import normalise

if TYPE_CHECKING:
    from confit_runtime.gallery import Gallery
    from confit_runtime.listener import Tap
    from confit_runtime.model import Model
    from confit_runtime.speaker import SaveTap


@dataclass
class ListenGalleries:
    """Galleries by the models they were enrolled with, and the taps that use them."""

    by_model: dict[int, Gallery] = field(default_factory=dict)  # by index of the model
    voices: Gallery | None = None  # of the speaker model
    taps: list[Tap] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All enrolled names."""
        galleries = [*self.by_model.values(), *([self.voices] if self.voices is not None else [])]
        return list(dict.fromkeys(name for gallery in galleries for name in gallery.names()))


@contextmanager
def open_galleries(
    paths: list[Path],
    models: list[Model],
    *,
    speaker_model: Model | None,
    only: list[str],
    save: Path | None,
    thresholds: dict[str, float],
) -> Iterator[ListenGalleries]:
    """The galleries, open while `listen` runs; `thresholds` by name override the calibrated ones.

    Raises UsageError if the options do not fit together, GalleryError on a gallery that belongs to none of the models.
    """
    if not (paths or speaker_model or only or save):
        yield ListenGalleries()  # plain listening is spared SQLite and what uses it: 2 MB
        return
    from confit_runtime.gallery import Gallery
    from confit_runtime.speaker import SpeakerTap, VetoTap

    if speaker_model is None and only:
        raise UsageError(
            "--only needs to know who speaks: also give --speaker-model (speakers, or a file) and its --gallery"
        )
    with ExitStack() as stack:
        placed = ListenGalleries()
        for path in paths:
            with Gallery.open(path) as unread:
                own = {name: level for name, level in thresholds.items() if name in unread.names()}
                owners = [at for at, model in enumerate(models) if model.contract.embedding_id == unread.embedding_id]
            if speaker_model is not None and (speaker_model.contract.embedding_id == unread.embedding_id or not owners):
                # a gallery of none of the models is refused here or below
                _check_single_gallery(path, placed.voices, speaker_model)
                placed.voices = stack.enter_context(Gallery.open(path, speaker_model, thresholds=own))
                continue
            for at in owners or [0]:
                _check_single_gallery(path, placed.by_model.get(at), models[at])
                gallery = stack.enter_context(Gallery.open(path, models[at], thresholds=own))
                placed.by_model[at] = gallery
                placed.taps.append(VetoTap(models[at], gallery))
        if speaker_model is not None:
            voices = _speaker_gallery(placed, speaker_model)
            wanted = _parse_only(only, models, voices)
            placed.taps.append(SpeakerTap(speaker_model, voices, wanted, models))
            if wanted:
                _print_only_filter(wanted, models, placed)
        if save is not None:
            placed.taps.append(_save_tap(save, models))
        yield placed


def _check_single_gallery(path: Path, other: Gallery | None, model: Model) -> None:
    """Raise UsageError if the model already has a gallery."""
    if other is not None:
        raise UsageError(
            f"--gallery {path}: {model.name} already has {other.path}, and a model uses only one gallery; join them with"
            f" `confit-edge gallery import {shlex.quote(str(path))} --gallery {shlex.quote(str(other.path))}`"
        )


def _speaker_gallery(placed: ListenGalleries, speaker_model: Model) -> Gallery:
    """The gallery of the speaker model. Raises UsageError if it was not given or holds sounds."""
    from confit_runtime.shipped import display_name

    given = f"--speaker-model {display_name(speaker_model.path)}"
    how = "create one with `confit-edge enroll`"
    if placed.voices is None and placed.by_model:
        others = ", ".join(
            f"{one.path} belongs to {one.binding.model or 'another model'}" for one in placed.by_model.values()
        )
        raise UsageError(f"{given}: needs a --gallery that was enrolled with it ({others}); {how}")
    if placed.voices is None:
        raise UsageError(f"{given}: needs the --gallery of the speakers to name; {how}")
    if placed.voices.binding.kind == "sound":
        raise UsageError(
            f"{given}: {placed.voices.path} holds sounds, but only voices can be named as speakers; enroll them with the model"
            " `speakers`, or with --kind speaker"
        )
    return placed.voices


def _parse_only(options: list[str], models: list[Model], voices: Gallery) -> dict[str, list[str]]:
    """The names of `--only` by model: `MODEL:NAME` counts for one model, a bare NAME for all.

    Raises UsageError if NAME is not enrolled.
    """
    from confit_runtime.names import clean_name, format_known_names

    wanted: dict[str, list[str]] = defaultdict(list)
    enrolled = voices.names() if options else {}
    for option in map(normalise, options):
        of = [model.name for model in models if option.startswith(f"{normalise(model.name)}:")][:1]
        name = clean_name(option.removeprefix(f"{normalise(of[0])}:") if of else option)
        if name not in enrolled:
            there = format_known_names(name, list(enrolled)) or "nobody"
            known = ", ".join(model.name for model in models)
            hint = f"; what stands before a colon must be a model: {known}" if ":" in name else ""
            raise UsageError(f"--only {option}: is not enrolled in {voices.path} (enrolled: {there}{hint})")
        for model in of or [model.name for model in models]:
            wanted[model] += [name] if name not in wanted[model] else []
    return wanted


def _print_only_filter(wanted: dict[str, list[str]], models: list[Model], placed: ListenGalleries) -> None:
    """Print what --only lets through: an alarm has no speaker, so a user who wants it must see that it is withheld."""
    lines = []
    for at, model in enumerate(models):
        enrolled = placed.by_model[at].names() if at in placed.by_model else ()
        who = f"only from {' or '.join(wanted[model.name])}" if model.name in wanted else "from anybody"
        lines.append(f"{format_list([*model.contract.target_labels, *enrolled])} ({model.name}) {who}")
    say(f"reporting: {'; '.join(lines)}")


def _save_tap(folder: Path, models: list[Model]) -> SaveTap:
    from confit_runtime.speaker import SaveTap

    try:
        return SaveTap(folder, models)
    except OSError as error:
        raise UsageError(
            f"--save-triggers {folder}: the folder cannot be created or written ({error.strerror}); choose another"
        ) from error
