"""`confit-edge listen`: run models on a microphone, a file, a pipe or a network stream, and print what they detect."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._arguments import ModelsArgument
from confit_edge.cli._broken_pipe import ignore_broken_pipe, stop_when_reader_gone
from confit_edge.cli._console import Json, say
from confit_edge.cli._signals import StopOnSignal
from confit_edge.cli._sources import Channels, Format, Rate
from confit_edge.cli._thresholds import (
    FIRE_AT,
    check_fire,
    parse_holds,
    parse_thresholds,
    threshold_origin,
    threshold_source,
    with_thresholds,
)
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.formatting import format_list

if TYPE_CHECKING:
    from confit_runtime.detect import Hold
    from confit_runtime.gallery import Gallery
    from confit_runtime.model import Model
    from confit_runtime.stream import Stream

_SOURCE, _DETECTION, _NAMES = "Source", "Detection", "Enrolled names and speakers"  # panels of --help


def listen(
    models: ModelsArgument,
    source: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="mic, mic:INDEX, mic:NAME (append #N for channel N), a sound file, a folder of clips, a 'pattern*', an"
            " rtsp:// or http:// URL, or - for raw PCM on stdin.",
            rich_help_panel=_SOURCE,
        ),
    ] = "mic",
    rate: Rate = None,
    channels: Channels = 1,
    pcm_format: Format = "s16le",
    gallery: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Also report names enrolled in this gallery; may be repeated, once per model.",
            rich_help_panel=_NAMES,
        ),
    ] = None,
    speaker_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Name the speaker of each detection, with this model and its --gallery.",
            rich_help_panel=_NAMES,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL:]NAME",
            help="Report only what this speaker says, for all models (alarms are then withheld too) or for one; may be"
            " repeated.",
            rich_help_panel=_NAMES,
        ),
    ] = None,
    save_triggers: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Save the sound of each detection in this folder, as FLAC; beyond 10,000 files the oldest are deleted.",
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]VALUE",
            help=f"{FIRE_AT} For an enrolled name, NAME=VALUE sets the similarity it needs. May be repeated.",
            rich_help_panel=_DETECTION,
        ),
    ] = None,
    hold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]SECONDS",
            help="Treat a sound that pauses for no longer than this as one sound, such as a beeping alarm: for everything,"
            " or for one label or enrolled name. On a word, another person saying it during the hold is not reported. May be"
            " repeated.",
            rich_help_panel=_DETECTION,
        ),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            metavar="GATE",
            help="Let the model sleep in silence, until the sound reaches a level in dBFS (such as -50), rises above the"
            " noise (auto), or is speech (speech; needs the vad extra).",
            rich_help_panel=_DETECTION,
        ),
    ] = None,
    ends: Annotated[
        bool,
        typer.Option(
            "--ends",
            help="Also report the end of each detected sound, for a sensor that is on or off.",
            rich_help_panel=_DETECTION,
        ),
    ] = False,
    seconds: Annotated[float | None, typer.Option(metavar="N", min=0.0, help="Stop after N seconds of sound.")] = None,
    json: Json = False,
) -> None:
    """Run models on live or recorded sound and print detections.

    Each detection is a line with the time of the sound, its label and its score. On a terminal, the microphone's level and
    the best scores are shown live. Listening ends at the end of the file, after --seconds or on Ctrl-C, and prints a
    summary. If a microphone is unplugged or a network stream breaks off, `listen` waits for it to return. If the reader of
    stdout goes away, `listen` ends: with an error, unless the source is a recording.

    Examples:

        confit-edge listen digits
        confit-edge listen digits --source recording.flac --json
        arecord -q -t raw -f S16_LE -r 16000 | confit-edge listen digits --source - --rate 16000
        confit-edge listen digits --source rtsp://camera.local/stream
        confit-edge listen digits --save-triggers triggers/

    With enrolled names, speakers, and sounds that last:

        confit-edge listen mymodel.onnx --source mic:USB --gallery house.db --threshold yes=0.8
        confit-edge listen digits --speaker-model speakers --gallery people.db --only ada
        confit-edge listen digits alarms.onnx --speaker-model speakers --gallery people.db --only digits:ada
        confit-edge listen alarms.onnx --ends --hold "smoke alarm=5" --json

    Next: `confit-edge calibrate` to set thresholds for a rate of false accepts, or `confit-edge evaluate` to measure them.
    """
    from confit_edge.cli._listen_galleries import open_galleries
    from confit_edge.cli._listen_output import ListenPrinter
    from confit_runtime import load
    from confit_runtime.listener import Listener, check_distinct_names
    from confit_runtime.sources import find_clips, is_clip_spec, open_source

    (general, own), pauses = parse_thresholds(threshold or []), parse_holds(hold or [])
    loaded = [load(model) for model in models]
    for model in loaded:
        if general is None and (origin := threshold_origin(model.contract))["from"] != "export":
            say(f"{model.name}: thresholds from {threshold_source(origin)}")
    tuned = [with_thresholds(model, general, own) for model in loaded]
    several = is_clip_spec(source)
    clips = [str(path) for path in find_clips([source])] if several else None
    failed = False
    voices = load(speaker_model) if speaker_model is not None else None
    check_distinct_names(tuned)
    with (
        open_galleries(
            gallery or [], tuned, speaker_model=voices, only=only or [], save=save_triggers, thresholds=own
        ) as listen_galleries,
        ignore_broken_pipe(),
        ListenPrinter(
            source,
            streams := _streams(tuned, listen_galleries.by_model, gate=gate, ends=ends, hold=pauses),
            json=json,
            clips=several,
        ) as printer,
        StopOnSignal() as stopped,
    ):
        check_fire(own, tuned, listen_galleries.names)
        for enrolled in listen_galleries.by_model.values():
            _print_thresholds(enrolled, own)
        check_fire(pauses.own_s, tuned, listen_galleries.names, "--hold")
        for name in clips or [source]:
            try:
                with (
                    open_source(name, rate=rate, channels=channels, format=pcm_format) as opened,
                    stop_when_reader_gone(opened),
                ):
                    if opened.live and sys.stdout is None and save_triggers is None:
                        raise UsageError(
                            "stdout is closed, so detections would be lost: give it a reader, or --save-triggers"
                        )
                    with_view = [*listen_galleries.taps, *printer.taps(opened)]
                    listener = Listener(streams, opened.name, opened.rate, taps=with_view, seconds=seconds)
                    printer.print_all(listener, stopped.stoppable(opened))
            except ConfitError as error:
                if clips is None:
                    raise
                printer.print_failed(name, error)
                failed = True
    if failed:
        raise typer.Exit(1)


def _print_thresholds(gallery: Gallery, by_hand: dict[str, float]) -> None:
    """Print the thresholds of enrolled names that have none `by_hand`: calibrated ones and, of sounds, the model's."""
    calibrated, matcher = gallery.calibrated(), gallery.matcher
    found = [
        f"{name} {one.threshold:.2f} (made on {one.made}, for {one.target_fa_per_hour:g} false accepts per hour)"
        for name, one in calibrated.items()
        if name not in by_hand
    ]
    if found:
        say(f"{gallery.path}: calibrated thresholds: {format_list(found)}")
    others = [name for name in matcher.enrolled if name not in calibrated and name not in by_hand]
    if others and gallery.kind == "sound":
        levels = [f"{name} {matcher.stream_threshold(name):.2f}" for name in others]
        say(
            f"{gallery.path}: not calibrated, at the model's thresholds for streams: {format_list(levels)}. If a name is missed,"
            " enroll clips of more voices or takes and calibrate it, or lower its threshold: --threshold"
            f" {quote(others[0])}=VALUE"
        )


def _streams(
    models: list[Model], galleries: dict[int, Gallery], *, gate: str | None, ends: bool, hold: Hold
) -> list[Stream]:
    """A stream for each model, with its gallery if it has one. Raises UsageError on a model that could report nothing."""
    from confit_runtime.gates import make_gate

    for at, model in enumerate(models):
        if not model.contract.can_fire and at not in galleries:
            raise UsageError(f"{model.name} has no label that fires: give --gallery with names enrolled for it")
    return [
        model.stream(
            galleries.get(at),
            lead_in=None,
            gate=None if gate is None else make_gate(gate, model.contract.sample_rate),
            ends=ends,
            hold=hold if at in galleries else hold.among(model.labels),  # without the labels of other models
        )
        for at, model in enumerate(models)
    ]
