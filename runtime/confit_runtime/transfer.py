"""Moving prints: to another gallery file and back, and to another model from the audio that was kept."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from confit_runtime.arrays import Floats
from confit_runtime.audio import MAX_CLIP_S, Pcm, resample
from confit_runtime.enrollment import (
    KIND_PLURALS,
    Kind,
    check_not_both_signs,
    check_sole_owner,
    embed_sound,
    model_kind,
)
from confit_runtime.errors import GalleryError, UsageError
from confit_runtime.files import replacing
from confit_runtime.gallery import Gallery
from confit_runtime.gallery_file import check_folder, path_exists
from confit_runtime.model import Model
from confit_runtime.names import check_new_name, clean_name
from confit_runtime.prints import Print, PrintCounts

Progress = Callable[[int, int], None]  # names done, names in all


def _no_progress(done: int, total: int) -> None:
    """Ignore progress."""


def export_names(
    source: Gallery, names: Sequence[str], out: Path, progress: Progress = _no_progress
) -> dict[str, PrintCounts]:
    """Write a new gallery file with the prints of some names (all, if none is given). Returns how many of each.

    Raises UsageError if `out` already exists, its folder does not, or a name is unknown; GalleryError if it cannot be
    written, and what reading `source` raises.
    """
    if path_exists(out):
        raise UsageError(f"{out}: already exists: choose another file, or import into it")
    check_folder(out.parent)
    with source.moment():
        counts = source.counts()
        wanted = [clean_name(name) for name in names] or list(counts)
        found = {name: (source.prints(name), source.voiced_s(name)) for name in wanted}
    try:
        with replacing(out) as temporary, source.copy_layout(temporary) as target:
            _enroll_all(target, found, progress)
    except OSError as error:
        raise GalleryError(f"{out}: cannot be written ({error.strerror}): choose another file") from error
    return {name: counts.get(name, PrintCounts()) for name in found}


def import_names(target: Gallery, source: Gallery, progress: Progress = _no_progress) -> dict[str, PrintCounts]:
    """Add another gallery's prints to this one, except those it already has. Returns how many were added, by name.

    Raises GalleryError if the two were enrolled with different models. Raises UsageError if one holds voices and the
    other sounds, if a name cannot be enrolled, or if the target has its prints under another name (which would make
    both unknown) or under the same name with the other sign. Nothing is written then.
    """
    if not source.binding.is_comparable_to(target.binding):
        raise GalleryError(
            f"{source.path}: was enrolled with another model than {target.path}, and prints of two models cannot be compared"
        )
    if source.kind != target.kind:
        raise UsageError(
            f"{source.path}: holds {KIND_PLURALS[source.kind]}, but {target.path} holds {KIND_PLURALS[target.kind]}: import it"
            " into another --gallery"
        )
    # read before the change: whoever holds one gallery must not wait for another, whose holder may wait for this one
    with source.moment():
        names = [check_new_name(name) for name in source.counts()]
        found = {name: (source.prints(name), source.voiced_s(name)) for name in names}
        blobs = {name: source.blobs(name, negative=False) for name in names}
        source_owners = source.holders(all_blobs := set().union(*blobs.values()))
    target_owners = target.holders(all_blobs)
    for name in names:
        for gallery, holders in ((target, target_owners), (source, source_owners)):
            check_sole_owner(name, set().union(*(holders[blob] for blob in blobs[name])), gallery.path)
            _check_signs(name, found[name][0], gallery)
    with target.change():
        before = target.counts()
        _enroll_all(target, found, progress)
        after = target.counts()
    return {name: _difference(after[name], before.get(name, PrintCounts())) for name in names}


def re_enroll_prints(gallery: Gallery, model: Model, kind: Kind | None = None) -> dict[str, PrintCounts]:
    """Compute every print again with another model, from the audio that was kept. Returns how many of each name.

    `kind` says what the names are, if the model is of the other kind. Raises, changing nothing, UsageError if it is
    needed and missing, and GalleryError if the audio of any print was not kept or the
    gallery was changed meanwhile.
    """
    of_model = model_kind(model.contract)
    if kind is None and gallery.kind != of_model:
        holds = KIND_PLURALS[gallery.kind]
        raise UsageError(
            f"{gallery.path}: holds {holds}, but {model.name} is for {KIND_PLURALS[of_model]}: use a model for {holds}, or"
            f" another --gallery (or --kind {gallery.kind}, if {model.name} is for {holds} after all)"
        )
    made, target_kind = {}, kind or of_model
    counts = gallery.counts()
    for name in counts:
        prints = gallery.prints(name)
        if missing := sum(one.audio is None for one in prints):
            raise GalleryError(
                f"{gallery.path}: the audio of {missing} of {name}'s {len(prints)} prints was not kept (enroll"
                " --keep-audio): enroll from clips again, into another --gallery"
            )
        sounds = [_decode_kept(gallery, one, model) for one in prints]
        embeddings = np.stack([_embed_kept(model, sound, target_kind) for sound in sounds])
        made[name] = np.stack([one.embedding for one in prints]), embeddings
    gallery.replace_prints(model, target_kind, made)
    return counts


def _check_signs(name: str, prints: Sequence[Print], gallery: Gallery) -> None:
    """Raise UsageError if a gallery has one of a prints with the other sign."""
    for negative in (False, True):
        contrary = gallery.blobs(name, negative=not negative)
        both = [one.source for one in prints if one.negative == negative and one.blob in contrary]
        check_not_both_signs(name, both, negative, gallery.path)


def _difference(after: PrintCounts, before: PrintCounts) -> PrintCounts:
    return PrintCounts(after.prints - before.prints, after.negative_prints - before.negative_prints)


def _enroll_all(target: Gallery, found: dict[str, tuple[list[Print], float]], progress: Progress) -> None:
    """Enroll prints that were enrolled elsewhere, with their seconds of sound, by name: all, or none."""
    with target.change():
        for done, (name, (prints, voiced_s)) in enumerate(found.items()):
            progress(done, len(found))
            _enroll_prints(target, name, prints, voiced_s)


def _enroll_prints(target: Gallery, name: str, prints: list[Print], voiced_s: float) -> None:
    for negative in (False, True):
        for has_audio in (False, True):
            selected = [one for one in prints if one.negative == negative and (one.audio is not None) == has_audio]
            if selected:
                target.enroll(
                    name,
                    np.stack([one.embedding for one in selected]),
                    sources=[one.source for one in selected],
                    voiced_s=0.0 if negative else voiced_s * len(selected) / sum(not one.negative for one in prints),
                    negative=negative,
                    audio=[one.audio for one in selected if one.audio is not None] if has_audio else None,
                    carried=True,
                )


def _embed_kept(model: Model, sound: Pcm, kind: Kind) -> Floats:
    """Embed a kept sound as this model needs it: another model's window may have left more room around it."""
    return embed_sound(model, sound) if kind == "sound" else model.embed(sound, model.contract.sample_rate)


def _decode_kept(gallery: Gallery, print_: Print, model: Model) -> Pcm:
    """The kept audio `[samples]` of a print, at the model's rate."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(print_.audio or b"")) as sound:
            if sound.channels != 1 or sound.frames > MAX_CLIP_S * sound.samplerate:
                raise ValueError("not a clip that was kept")
            return resample(sound.read(dtype="float32"), sound.samplerate, model.contract.sample_rate)
    except (RuntimeError, ValueError, TypeError, UsageError) as error:
        raise GalleryError(f"{gallery.path}: audio kept in it is damaged") from error
