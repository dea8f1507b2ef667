"""Turn a clip into prints for a gallery: of a sound, or of a voice without its pauses."""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm, check_samples, flac_rate, resample
from confit_runtime.contract import Contract
from confit_runtime.errors import AudioError, UsageError
from confit_runtime.formatting import format_list
from confit_runtime.matcher import l2_normalise
from confit_runtime.model import Model
from confit_runtime.prints import new_print_indices
from confit_runtime.voice_activity import active_seconds, active_segments, remove_pauses, voiced_seconds

Kind = Literal["speaker", "sound"]
KIND_PLURALS = {"speaker": "voices", "sound": "sounds"}

MIN_SOUND_S = 0.1
MIN_CLIP_VOICE_S = 0.5  # of one clip
MIN_VOICE_S = 4.0  # for all clips of a name together: with less, the next sentence sounds like somebody else
PRINT_S = 3.0  # of voice that one print is made of
QUIET_SIMILARITY = 0.98  # cosine with a quiet room above which a print is hardly a sound


@dataclass(frozen=True)
class ClipPrints:
    """What one clip yields: embeddings `[prints, dim]`, the sound of each, and the seconds of sound or voice in it."""

    embeddings: Floats
    sounds: list[Pcm]
    seconds: float


@dataclass(frozen=True)
class ExistingPrints:
    """What a gallery already holds when prints are added to a name.

    `prints` are the name's own, from `seconds` of sound or voice; or its negative ones, if negative prints are added.
    `contrary` are those of the other sign. `owners` are the names that have one of the added prints.
    """

    prints: Collection[bytes] = ()
    seconds: float = 0.0
    owners: Set[str] = frozenset()
    contrary: Collection[bytes] = ()
    negative: bool = False


def model_kind(contract: Contract) -> Kind:
    """Whether a model distinguishes voices or sounds, from its contract's `calibration.enroll.kind` (by default sounds)."""
    kind: Kind = contract.calibration.get("enroll", {}).get("kind", "sound")
    return kind


def extract_prints(model: Model, pcm: Pcm, kind: Kind, source: str) -> ClipPrints:
    """The prints of a clip `[samples]` at the model's rate.

    Raises AudioError, naming `source`, if it has too little sound or is not sound.
    """
    check_samples(pcm, source)
    sounds = split_sounds(model, pcm) if kind == "sound" else split_voice(pcm, model.contract.sample_rate)
    seconds = _check_duration(model, pcm, kind, source)
    rate = model.contract.sample_rate
    return ClipPrints(np.stack([model.embed(sound, rate) for sound in sounds]), sounds, seconds)


def embed_query(model: Model, pcm: Pcm, kind: Kind, source: str) -> Floats:
    """The embedding `[dim]` of a clip `[samples]` to identify; of a voice, where it speaks. Raises AudioError."""
    check_samples(pcm, source)
    _check_duration(model, pcm, kind, source)
    rate = model.contract.sample_rate
    return embed_sound(model, pcm) if kind == "sound" else model.embed(remove_pauses(pcm, rate), rate)


def embed_sound(model: Model, pcm: Pcm) -> Floats:
    """The embedding `[dim]` of all sounds in a clip `[samples]` at the model's rate together, of unit length."""
    parts = split_sounds(model, pcm)
    return l2_normalise(np.mean([model.embed(part, model.contract.sample_rate) for part in parts], axis=0))


def still_needed(voiced_s: float, kind: Kind) -> float:
    """How many seconds of voice a name with `voiced_s` still needs; 0 for sounds, for which one clip is enough."""
    return max(0.0, MIN_VOICE_S - voiced_s) if kind == "speaker" else 0.0


def select_new_prints(
    name: str,
    blobs: Sequence[bytes],
    sources: Sequence[str | Path],
    seconds: float | Sequence[float],
    already: ExistingPrints,
    kind: Kind | None,
    gallery: Path,
) -> tuple[list[int], float]:
    """The indices of the prints, each with a source, that a name does not have yet, and their seconds.

    `seconds` are given per print, or in total and shared evenly. Voices must add up to enough; `kind` None accepts any
    amount. Raises UsageError if another name has one of the prints, or this one with the other sign, and AudioError
    for too little voice.
    """
    check_sole_owner(name, already.owners, gallery)
    contrary_sources = [str(source) for blob, source in zip(blobs, sources, strict=True) if blob in already.contrary]
    check_not_both_signs(name, contrary_sources, already.negative, gallery)
    indices = new_print_indices(blobs, already.prints)
    added_s = _seconds_added(seconds, indices, len(blobs))
    if kind is not None:
        check_enough(name, already.seconds, added_s, kind)
    return indices, added_s


def _seconds_added(seconds: float | Sequence[float], places: Sequence[int], prints: int) -> float:
    if isinstance(seconds, Sequence):
        return sum(seconds[at] for at in places)
    return seconds * (len(places) / prints)


def check_enough(name: str, had_s: float, seconds: float, kind: Kind) -> None:
    """Raise AudioError, saying how much is missing, unless these seconds and those of before are enough voice for a name."""
    if still_needed(had_s + seconds, kind):
        had = f", in addition to the {floor_to_tenths(had_s):.1f} s already enrolled," if had_s else ""
        raise AudioError(
            f"{name}: these clips hold {floor_to_tenths(seconds):.1f} s of voice{had} but {MIN_VOICE_S:g} s are needed:"
            f" {MIN_VOICE_S - floor_to_tenths(had_s + seconds):.1f} s more are missing, a sentence or two; nothing was written"
        )


def check_sole_owner(name: str, owners: Set[str], gallery: Path) -> None:
    """Raise UsageError unless `name` alone owns its prints in a gallery: a sound under two names is never answered."""
    if others := owners - {name}:
        other = min(others)
        raise UsageError(
            f"{gallery}: some of the sounds for {name!r} are already enrolled as {other!r}, and a sound under two"
            f" names is always unknown; leave them out, or first remove {other!r} with `{removal_command(other, gallery)}`"
        )


def check_not_both_signs(name: str, clips: Sequence[str], negative: bool, gallery: Path) -> None:
    """Raise UsageError if there are `clips` whose prints (or `negative` ones) a gallery has with the other sign."""
    if clips:
        existing = f"enrolled as {name!r}" if negative else f"a negative print of {name!r}"
        raise UsageError(
            f"{gallery}: a sound of {format_list(list(dict.fromkeys(clips)))} is already {existing}, and a sound that is"
            " both a print and a negative print is never answered: leave it out; if the earlier one was the"
            f" mistake, enroll {name!r} again (no command removes a single print, `{removal_command(name, gallery)}`"
            " removes all)"
        )


def removal_command(name: str, gallery: Path) -> str:
    """The command that removes a name."""
    return f"confit-edge gallery remove {shlex.quote(name)} --gallery {shlex.quote(str(gallery))}"


def floor_to_tenths(seconds: float) -> float:
    """Seconds as printed when there are too few: rounded down, so that they do not look like enough."""
    return math.floor(10 * seconds) / 10


def split_voice(pcm: Pcm, rate: int) -> list[Pcm]:
    """The voice in a clip `[samples]`, in equal parts of about `PRINT_S`."""
    voice = remove_pauses(pcm, rate)
    return np.array_split(voice, max(1, round(len(voice) / rate / PRINT_S)))


def split_sounds(model: Model, pcm: Pcm) -> list[Pcm]:
    """The sounds in a clip `[samples]` at the model's rate, split at long pauses, each with the room noise around it.

    An embedding is a mean over windows, and for a short sound in a long clip most windows contain only the room. A
    clip no longer than the window is one part, unchanged.
    """
    window = model.contract.window
    if len(pcm) <= window:
        return [pcm]
    parts = []
    for first, last in active_segments(pcm, model.contract.sample_rate, MIN_SOUND_S):
        # with the room around it, as it will be heard; equally much on both sides, so that it is in the middle of the
        # window
        around = min(max(0, window - (last - first)) // 2, first, len(pcm) - last)
        parts.append(pcm[first - around : last + around])
    return parts


def to_flac(pcm: Pcm, rate: int) -> bytes:
    """A sound `[samples]` as 16-bit FLAC, for keeping. Its rate is changed slightly if FLAC does not support it."""
    import soundfile

    buffer, flac_hz = io.BytesIO(), flac_rate(rate)
    soundfile.write(buffer, resample(pcm, rate, flac_hz), flac_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _check_duration(model: Model, pcm: Pcm, kind: Kind, source: str) -> float:
    """Seconds of sound or voice in a clip. Raises AudioError if there are too few for a print."""
    rate = model.contract.sample_rate
    sounding = active_seconds(pcm, rate)
    if sounding == 0.0:
        raise AudioError(f"{source}: is silent; record it again")
    if kind == "sound":
        if sounding < MIN_SOUND_S:
            raise AudioError(f"{source}: holds {sounding:.2f} s of sound; enrolling needs at least {MIN_SOUND_S} s")
        return sounding
    voiced = voiced_seconds(pcm, rate)
    if voiced < MIN_CLIP_VOICE_S:
        raise AudioError(
            f"{source}: holds {floor_to_tenths(voiced):.1f} s of voice in {len(pcm) / rate:.1f} s, but each clip needs"
            f" {MIN_CLIP_VOICE_S} s: {MIN_CLIP_VOICE_S - floor_to_tenths(voiced):.1f} s more are missing; speak a whole"
            " sentence"
        )
    return voiced
