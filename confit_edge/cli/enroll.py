"""`confit-edge enroll`: teach a model a new name on the device, from a few clips or the microphone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confit_edge.cli._console import Json, emit, say
from confit_runtime.errors import AudioError, UsageError

if TYPE_CHECKING:
    from confit_runtime.audio import Pcm
    from confit_runtime.enrollment import Kind
    from confit_runtime.model import Model

COUNTDOWN_S = 1.5

KindOption = Annotated[
    Literal["speaker", "sound"] | None,
    typer.Option(
        "--kind",
        help="What a name is: a speaker (long pauses cut, 4 s at least) or a sound. The model says which, if not you.",
    ),
]


def enroll(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file, or the name of a shipped model.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what the clips are.")],
    clips: Annotated[
        list[str] | None, typer.Argument(metavar="CLIP", help="Sound files, folders or glob patterns.")
    ] = None,
    gallery: Annotated[
        Path, typer.Option(metavar="FILE", help="Where enrolled names are kept; made when it is not there.")
    ] = Path("gallery.db"),
    mic: Annotated[bool, typer.Option("--mic", help="Record the clips now, from the microphone.")] = False,
    source: Annotated[
        str, typer.Option(metavar="SOURCE", help="Where --mic records: mic, mic:INDEX, mic:NAME or a URL.")
    ] = "mic",
    takes: Annotated[int, typer.Option(metavar="N", min=1, help="Clips to record with --mic.")] = 3,
    take_seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0.5, help="Length of each clip recorded with --mic.")
    ] = 4.0,
    kind: KindOption = None,
    negative: Annotated[
        bool,
        typer.Option(
            "--negative", help="The clips were taken for NAME (or for this label of the model) and are not it."
        ),
    ] = False,
    keep_audio: Annotated[
        bool, typer.Option("--keep-audio", help="Keep the sound too, so that another model can enroll it again.")
    ] = False,
    json: Json = False,
) -> None:
    """Enroll a name from a few clips: each becomes a print in the gallery, no training needed.

    All clips are enrolled or none is: one that is silent, too short or unreadable is named, and nothing is written. Of a
    sound one clip is enough. A voice needs 4 s of speech in all, better 10 s, recorded as it will be
    heard later; run it again to add more. Ask people before you enroll their voice.

    Examples:

        confit-edge enroll speakers ada ada-1.wav ada-2.wav ada-3.wav

        confit-edge enroll speakers ada --mic

        confit-edge enroll mymodel.onnx doorbell recordings/doorbell/ --gallery house.db

        confit-edge enroll mymodel.onnx doorbell triggers/tv-*.flac --negative
    """
    import numpy as np

    from confit_runtime import load
    from confit_runtime.audio import load_clip
    from confit_runtime.enrollment import kind_of, take, to_flac
    from confit_runtime.gallery import Gallery, clean_name
    from confit_runtime.sources import find_clips

    name = clean_name(name)
    if bool(clips) == mic:
        raise UsageError("enroll takes clips, or --mic to record them: one of the two")
    loaded = load(model)
    rate = loaded.contract.sample_rate
    settled = kind or kind_of(loaded.contract)
    if clips:
        sounds = [(str(path), load_clip(path, rate)) for path in find_clips(clips)]
    else:
        sounds = _recorded(loaded, source, takes, take_seconds, settled)
    taken = [(clip, take(loaded, pcm, settled, clip)) for clip, pcm in sounds]
    seconds = sum(one.seconds for _, one in taken)
    if not negative:
        _check_enough(gallery, name, seconds, settled)
    embeddings = np.concatenate([one.embeddings for _, one in taken])
    with Gallery.open(gallery, loaded, create=True) as opened:
        total = opened.enroll(
            name,
            embeddings,
            sources=[clip for clip, one in taken for _ in one.sounds],
            voiced_s=seconds,
            negative=negative,
            audio=[to_flac(sound, rate) for _, one in taken for sound in one.sounds] if keep_audio else None,
        )
    if json:
        emit("enrolled", name=name, prints=len(embeddings), voiced_s=round(seconds, 3), negative=negative)
    else:
        what = f"{prints_text(len(embeddings), negative)} from {seconds:.1f} s of sound"
        print(f"{name}: {what}")
    say(f"{gallery} holds {prints_text(total, negative)} of {name}")


def prints_text(count: int, negative: bool = False) -> str:
    return f"{count} {'negative ' if negative else ''}print{'s' if count != 1 else ''}"


def _check_enough(gallery: Path, name: str, seconds: float, kind: Kind) -> None:
    """Raise AudioError, saying how much is missing, unless a name has enough voice with these seconds and what it had."""
    from confit_runtime.enrollment import LEAST_VOICE_S, still_needed
    from confit_runtime.gallery import Gallery

    had = 0.0
    if gallery.is_file() and gallery.stat().st_size:
        with Gallery.open(gallery) as opened:
            had = opened.voiced_s(name) if name in opened.names() else 0.0
    if missing := still_needed(had + seconds, kind):
        raise AudioError(
            f"{name}: these clips hold {seconds:.1f} s of voice, and {LEAST_VOICE_S:g} s are needed:"
            f" {missing:.1f} s more, a sentence or two; nothing was written"
        )


def _recorded(model: Model, source: str, takes: int, seconds: float, kind: Kind) -> list[tuple[str, Pcm]]:
    """Clips from the microphone at the model's rate, each announced; one that is clipped or silent is recorded again."""
    from confit_edge.cli.record import level_line
    from confit_runtime.audio import resample
    from confit_runtime.recording import record_clip
    from confit_runtime.sources import open_source

    wanted = "speak a sentence or two, as you will later" if kind == "speaker" else "make the sound"
    recorded: list[tuple[str, Pcm]] = []
    with open_source(source) as opened:
        for attempt in range(2 * takes):
            say(f"clip {len(recorded) + 1} of {takes}: {wanted}, {seconds:g} s")
            take = record_clip(
                opened, seconds, countdown_s=COUNTDOWN_S, show=level_line() if sys.stderr.isatty() else None
            )
            if take.fault is None:
                recorded.append((f"{source} {attempt + 1}", resample(take.pcm, take.rate, model.contract.sample_rate)))
            else:
                say(f"  not kept: {take.fault}")
            if len(recorded) == takes:
                return recorded
    raise AudioError(f"{source}: too many clips could not be used ({take.fault}); see `confit-edge doctor`")
