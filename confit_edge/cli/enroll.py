"""`confit-edge enroll`: add a name to a gallery on the device, from a few clips or the microphone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._arguments import ModelArgument
from confit_edge.cli._console import Json, emit, emit_failed, print_line, say, say_error, stderr_is_terminal
from confit_edge.cli._enroll_warnings import warn_about_prints
from confit_edge.cli._gallery_options import GALLERY, KindOption, print_ended_calibrations, prints_text
from confit_edge.cli._sources import warn_about_narrow_clips
from confit_runtime.errors import AudioError, ConfitError, UsageError
from confit_runtime.names import format_known_names

if TYPE_CHECKING:
    from confit_runtime.arrays import Floats
    from confit_runtime.audio import Pcm
    from confit_runtime.contract import Contract
    from confit_runtime.enrollment import ClipPrints, Kind
    from confit_runtime.gallery import Gallery
    from confit_runtime.model import Model

COUNTDOWN_S = 1.5
_MIC = "Microphone"  # a panel of --help


def enroll(
    model: ModelArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of who or what is heard in the clips.")],
    clips: Annotated[
        list[str] | None, typer.Argument(metavar="CLIP...", help="Sound files, folders or glob patterns.")
    ] = None,
    gallery: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The gallery: the file that holds the enrolled names; created if missing."),
    ] = GALLERY,
    mic: Annotated[
        bool, typer.Option("--mic", help="Record the clips now, from the microphone.", rich_help_panel=_MIC)
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Where --mic records: mic (default), mic:INDEX, mic:NAME (append #N for channel N) or a URL.",
            rich_help_panel=_MIC,
        ),
    ] = None,
    takes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Clips to record with --mic [3].", rich_help_panel=_MIC)
    ] = None,
    take_seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="S",
            min=0.5,
            help="Length of each clip that --mic records, in seconds [4].",
            rich_help_panel=_MIC,
        ),
    ] = None,
    kind: KindOption = None,
    negative: Annotated[
        bool,
        typer.Option(
            "--negative",
            help="Enroll counter-examples: clips taken for NAME (an enrolled name or a label) that are not it.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Enroll counter-examples even if most sounds of NAME would no longer be recognised."
        ),
    ] = False,
    keep_audio: Annotated[
        bool,
        typer.Option(
            "--keep-audio", help="Also store the sound, so that `gallery re-enroll` can enroll it with another model."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Enroll a voice or sound from a few clips, without training.

    Each clip becomes one or more prints, which are embeddings stored in the gallery file.

    - A voice needs 4 s of speech in all, better 10 s, and 0.5 s in each clip, recorded as it will be heard later.
    - A sound needs one clip, if the model was trained on sounds of its kind. A model of words, for instance, takes all beeps
      for the same sound.

    Either all clips are enrolled or none: if a clip is silent, too short or unreadable, it is named and nothing is written.
    Run the command again to add clips; prints that the name already has are left out. Ask people before you enroll their
    voice.

    Counter-examples (--negative) keep the same sounds from being taken for NAME again, and many (thirty or more) also most
    sounds like them. If they would withhold most of NAME's own prints, nothing is written, unless you give --force.

    Examples:

        confit-edge enroll speakers ada ada-1.wav ada-2.wav ada-3.wav
        confit-edge enroll speakers ada --mic
        confit-edge enroll mymodel.onnx doorbell recordings/doorbell/ --gallery house.db
        confit-edge enroll mymodel.onnx doorbell triggers/tv-*.flac --negative

    Next: `confit-edge identify` on other clips, or `confit-edge listen MODEL --gallery gallery.db`.
    """
    from confit_edge.cli._enroll_negatives import check_negatives
    from confit_runtime import load
    from confit_runtime.enrollment import model_kind, to_flac
    from confit_runtime.gallery import Gallery
    from confit_runtime.names import check_new_name

    name = check_new_name(name)
    _check_options(clips, mic, {"--source": source, "--takes": takes, "--seconds": take_seconds})
    if force and not negative:
        raise UsageError("--force applies only to --negative; leave it out")
    loaded = load(model)
    with ExitStack() as stack:
        has_any = gallery.is_file() and gallery.stat().st_size > 0
        there = stack.enter_context(Gallery.open(gallery, loaded)) if has_any else None
        settled = kind or (model_kind(loaded.contract) if there is None else there.kind)
        if negative:
            _check_negative_name(name, loaded.contract, there)
        if clips:
            sounds = _find_sounds(clips, loaded)
        else:
            sounds = _record_clips(loaded, source or "mic", takes or 3, take_seconds or 4.0, settled)
        taken = _take_prints(loaded, sounds, settled, json)
        warn_about_prints(name, taken, loaded, there, settled, negative=negative)
        # checked before a gallery is created, so that a name with too little sound leaves nothing behind
        new = _new_prints(name, taken, there, None if negative else settled, gallery)
        if new.sounds and negative:
            check_negatives(name, new.sounds, new.embeddings, loaded, there, force=force)
        if new.sounds:
            there = there or stack.enter_context(Gallery.open(gallery, loaded, create=True, kind=settled))
            audio = [to_flac(sound, loaded.contract.sample_rate) for sound in new.sounds] if keep_audio else None
            _store(name, new, there, settled, audio, negative=negative)
        assert there is not None  # prints are only left out if a gallery has them
        total, calibrated = there.counts_of(name)[negative], there.calibrated()
        needed = None if negative else there.matcher.stream_threshold(name)
    _report(name, new, loaded.contract, negative=negative, json=json)
    if new.left_out:
        kept = "; their audio is not kept" if keep_audio else ""
        say(f"{prints_text(new.left_out, negative)} left out: already enrolled as {name}, or given twice{kept}")
    say(f"{gallery} holds {prints_text(total, negative)} of {name}")
    if needed is not None and settled == "sound":
        calibrate = f"confit-edge calibrate {quote(model)} --gallery {quote(str(gallery))} --negatives DIR"
        _say_how_it_fires(name, needed, loaded.name, None if name in calibrated else calibrate)


def _check_options(clips: list[str] | None, mic: bool, for_mic: dict[str, object]) -> None:
    """Raise UsageError unless exactly one of clips and --mic is given, and options of --mic only with it."""
    if bool(clips) == mic:
        raise UsageError("enroll takes either clips or --mic to record them; give one of the two")
    given = [option for option, value in for_mic.items() if value is not None]
    if given and not mic:
        raise UsageError(f"{given[0]} applies only to --mic; add --mic, or leave it out for existing clips")


def _check_negative_name(name: str, contract: Contract, gallery: Gallery | None) -> None:
    """Raise UsageError unless `name` is enrolled or a label that fires."""
    labels = contract.target_labels
    enrolled = list(gallery.names()) if gallery is not None else []
    if name not in [*labels, *enrolled]:
        raise UsageError(
            f"--negative {name}: is neither enrolled (enrolled: {format_known_names(name, enrolled) or 'nobody'}) nor a label of"
            f" {contract.name} that fires ({format_known_names(name, labels) or 'none'})"
        )


def _find_sounds(clips: list[str], model: Model) -> list[tuple[str, Path | Pcm]]:
    """The sound files that clips name, folders and patterns resolved; warns of those that lack the high frequencies."""
    from confit_runtime.sources import find_clips

    paths = find_clips(clips)
    warn_about_narrow_clips(paths, model)
    return [(str(path), path) for path in paths]


def _take_prints(
    model: Model, sounds: Sequence[tuple[str, Path | Pcm]], kind: Kind, json: bool
) -> list[tuple[str, ClipPrints]]:
    """What each clip yields. Raises AudioError if a clip cannot be used; several such clips are all named first."""
    from confit_runtime.audio import load_clip
    from confit_runtime.enrollment import extract_prints

    taken: list[tuple[str, ClipPrints]] = []
    errors: list[ConfitError] = []
    for clip, sound in sounds:
        try:
            pcm = load_clip(sound, model.contract.sample_rate) if isinstance(sound, Path) else sound
            taken.append((clip, extract_prints(model, pcm, kind, clip)))
        except ConfitError as error:
            emit_failed(clip, error, json)
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        for unusable in errors:
            say_error(unusable)
        raise AudioError(f"{len(errors)} of {len(sounds)} clips cannot be used; nothing was written")
    return taken


@dataclass(frozen=True)
class _NewPrints:
    """Prints that a name lacks: their embeddings `[prints, dim]`, the sound and the clip of each, and the seconds of sound.

    `left_out` counts the others, which the name already has or which were given twice.
    """

    embeddings: Floats
    sounds: list[Pcm]
    clips: list[str]
    seconds: float
    left_out: int


def _new_prints(
    name: str, taken: Sequence[tuple[str, ClipPrints]], there: Gallery | None, kind: Kind | None, path: Path
) -> _NewPrints:
    """Which of the prints taken the name lacks; `kind` is None for negative prints. Raises as `select_new_prints` does."""
    import numpy as np

    from confit_runtime.enrollment import ExistingPrints, select_new_prints
    from confit_runtime.prints import to_blobs

    embeddings = np.concatenate([one.embeddings for _, one in taken])
    sounds = [sound for _, one in taken for sound in one.sounds]
    clips = [clip for clip, one in taken for _ in one.sounds]
    # the seconds of a clip are divided equally: the prints of a voice have equal lengths
    seconds_of = [one.seconds / len(one.sounds) for _, one in taken for _ in one.sounds]
    blobs = to_blobs(embeddings)
    already = there.already(name, blobs, negative=kind is None) if there else ExistingPrints()
    places, seconds = select_new_prints(name, blobs, clips, seconds_of, already, kind, path)
    left_out = len(clips) - len(places)
    return _NewPrints(
        embeddings[places], [sounds[at] for at in places], [clips[at] for at in places], seconds, left_out
    )


def _store(
    name: str, new: _NewPrints, gallery: Gallery, kind: Kind, audio: list[bytes] | None, *, negative: bool
) -> None:
    """Write the prints into a gallery, and say which calibrations that ended."""
    calibrated_before = gallery.calibrated()
    gallery.enroll(
        name,
        new.embeddings,
        sources=new.clips,
        voiced_s=new.seconds,
        negative=negative,
        audio=audio,
        kind=kind,
    )
    print_ended_calibrations(gallery, calibrated_before)


def _report(name: str, new: _NewPrints, contract: Contract, *, negative: bool, json: bool) -> None:
    """Print the result: what was enrolled."""
    from confit_runtime.prints import PrintCounts

    number = len(new.sounds)
    if not json:
        print_line(f"{name}: {prints_text(number, negative)} from {new.seconds:.1f} s of sound")
        return
    emit(
        "enrolled",
        name=name,
        **(PrintCounts(0, number) if negative else PrintCounts(number))._asdict(),
        left_out=new.left_out,
        voiced_s=round(new.seconds, 3),
        negative=negative,
        false_accept_rate=contract.calibration.get("enroll", {}).get("false_accept_rate"),
    )


def _say_how_it_fires(name: str, needed: float, model: str, calibrate: str | None) -> None:
    """Say how similar a stream must be to the sound, and how to measure how often it fires, if the command is given."""
    from confit_runtime.matcher import SAME_SOUND

    if needed >= SAME_SOUND:
        say(
            f"warning: in a stream, {name} needs a similarity of more than {SAME_SOUND:g}, which hardly any sound but the"
            f" enrolled clips reaches: {model} can hardly tell it from other sounds; train a model with"
            f" more classes or epochs, or with {name} as a class"
        )
        return
    say(
        f"in a stream, {name} needs a similarity of {needed:.2f}; if it is missed, enroll clips of more voices or takes, or"
        f" lower that with `listen --threshold {quote(name)}=VALUE`; with either it also fires falsely more often"
    )
    if calibrate:
        say(
            f"how often {name} fires falsely in your own background is unknown: `{calibrate}` measures it and sets a"
            " threshold"
        )


def _record_clips(model: Model, source: str, takes: int, seconds: float, kind: Kind) -> list[tuple[str, Path | Pcm]]:
    """Record clips at the model's rate, announcing each; a clip that is clipped or silent is recorded again."""
    from confit_edge.cli._live import level_line, say_alone
    from confit_runtime.audio import bandwidth_warning, resample
    from confit_runtime.recording import record_clip
    from confit_runtime.sources import open_source, without_secrets

    shown = without_secrets(source)  # it is stored in the gallery
    wanted = "speak a sentence or two, as you will later" if kind == "speaker" else "make the sound"
    recorded: list[tuple[str, Path | Pcm]] = []
    with open_source(source) as opened:
        if (lacks := bandwidth_warning(opened.name, opened.rate, model.name, model.contract.highest_hz)) is not None:
            say(lacks)
        for attempt in range(2 * takes):
            say(f"clip {len(recorded) + 1} of {takes}: {wanted}, {seconds:g} s")
            show = level_line() if stderr_is_terminal() else None
            take = record_clip(opened, seconds, countdown_s=COUNTDOWN_S, show=show, notify=say_alone)
            if take.fault is None:
                recorded.append((f"{shown} {attempt + 1}", resample(take.pcm, take.rate, model.contract.sample_rate)))
            else:
                say(f"  not kept: {take.fault}")
            if len(recorded) == takes:
                return recorded
    raise AudioError(f"{shown}: too many clips could not be used ({take.fault}); see `confit-edge doctor`")
