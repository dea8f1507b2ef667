"""`confit-edge doctor`: measure a microphone for a few seconds, and say in plain words what to improve."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._console import Json, emit, print_line, say, stderr_is_terminal
from confit_edge.cli._sources import Channels, Format, Rate
from confit_runtime.errors import AudioError, DeviceError
from confit_runtime.formatting import format_count

if TYPE_CHECKING:
    from confit_runtime.audio import Pcm
    from confit_runtime.channels import ChannelCheck
    from confit_runtime.soundcheck import Finding, Soundcheck
    from confit_runtime.sources import Source

_LEAST_TO_TIME_S = 4.0


def doctor(
    source: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="mic, mic:INDEX, mic:NAME (append #N for channel N), a sound file, a URL, or - for raw PCM on stdin.",
            rich_help_panel="Source",
        ),
    ] = "mic",
    rate: Rate = None,
    channels: Channels = 1,
    pcm_format: Format = "s16le",
    seconds: Annotated[
        float, typer.Option(metavar="N", min=1.0, max=600.0, help="Seconds to measure, of a file from its beginning.")
    ] = 8.0,
    json: Json = False,
) -> None:
    """Measure a microphone and advise what to improve.

    It measures the rate, level, clipping, noise floor, DC offset and dropouts, and whether the channels cancel each other. Be
    quiet for the first half, then speak as you will later, from where you will stand. The exit status is 1 if something is so
    bad that little would be recognised.

    Examples:

        confit-edge doctor
        confit-edge doctor --source mic:USB --seconds 20
        confit-edge doctor --source recording.wav --json
        arecord -q -t raw -f S16_LE -r 16000 | confit-edge doctor --source - --rate 16000

    Next: `confit-edge listen`, or `confit-edge record` to collect clips.
    """
    from confit_runtime.soundcheck import findings, soundcheck
    from confit_runtime.sources import Microphone, open_source

    with open_source(source, rate=rate, channels=channels, format=pcm_format) as opened:
        if opened.live:
            say(f"measuring {opened.name} for {seconds:g} s: be quiet for {seconds / 2:g} s, then speak")
        pcm, measured, lost, arrivals = _record_sound(opened, seconds)
        name, clocked = opened.name, isinstance(opened, Microphone)
    try:
        check = soundcheck(pcm, opened.rate, measured)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error
    found = findings(check, lost_s={reason: samples / opened.rate for reason, samples in lost.items()})
    if clocked and (drift := _clock_drift(arrivals, opened.rate)) is not None:
        found = [drift, *(one for one in found if one.level != "good")]
    if json:
        for one in found:
            emit("finding", level=one.level, text=one.text)
        emit("summary", source=name, dropped_samples=lost.total(), **_rounded(check))
    else:
        _print(name, check, lost.total(), found)
    if any(one.level == "bad" for one in found):
        raise typer.Exit(1)


def _record_sound(source: Source, seconds: float) -> tuple[Pcm, ChannelCheck, Counter[str], list[tuple[float, int]]]:
    """The sound without gaps, what was measured of its channels, the samples lost by reason, and the arrivals.

    An arrival is a time, and how many samples had come by then.
    """
    import numpy as np

    from confit_edge.cli._live import level_line, say_alone
    from confit_runtime.channels import ChannelCheck
    from confit_runtime.sources import Gap, Notice, Pause

    show = level_line() if source.live and stderr_is_terminal() else None
    parts, arrivals, heard, wanted = [], [], 0, round(seconds * source.rate)
    lost: Counter[str] = Counter()
    channels = ChannelCheck()
    for item in (items := iter(source)):
        if isinstance(item, Notice):
            say_alone(item.text)
            continue
        if isinstance(item, Pause):
            continue
        if isinstance(item, Gap):
            lost[item.reason] += item.samples
            heard += item.samples
        else:
            parts.append(item[0])
            channels.hear(item)
            heard += len(item[0])
        arrivals.append((time.monotonic(), heard))
        if show is not None and parts:
            show(max(0.0, (wanted - heard) / source.rate), parts[-1])
        if heard >= wanted:
            if not source.live and next(items, None) is not None:
                say(
                    f"{source.name}: only the first {heard / source.rate:.1f} s are measured; --seconds N measures more"
                )
            break
    if not parts:
        raise DeviceError(f"{source.name}: gave no sound in {seconds:g} s")
    return np.concatenate(parts), channels, lost, arrivals


def _clock_drift(arrivals: list[tuple[float, int]], rate: int) -> Finding | None:
    """A finding if sound comes more than 5 % faster or slower than its rate, else None.

    `arrivals` holds pairs of a time and the samples that had come by then. Both halves of the time must agree: a machine that
    was busy for a moment gets the queued sound all at once.
    """
    from confit_runtime.soundcheck import Finding

    if arrivals[-1][0] - arrivals[0][0] < _LEAST_TO_TIME_S:
        return None
    middle = arrivals[len(arrivals) // 2]
    halves = [
        (later[1] - sooner[1]) / (later[0] - sooner[0])
        for sooner, later in pairwise((arrivals[0], middle, arrivals[-1]))
    ]
    if not (all(real > 1.05 * rate for real in halves) or all(real < 0.95 * rate for real in halves)):
        return None
    return Finding(
        "bad", f"delivers {sum(halves) / 2:,.0f} samples per second, though its rate is {rate:,}: a fault of the driver"
    )


def _rounded(check: Soundcheck) -> dict[str, float]:
    return {
        key: round(value, 5) if isinstance(value, float) else value for key, value in dataclasses.asdict(check).items()
    }


def _print(name: str, check: Soundcheck, dropped: int, found: list[Finding]) -> None:
    print_line(f"{name}: {check.seconds:.1f} s at {check.rate} Hz")
    rows = [
        ("peak", f"{check.peak_db:.1f} dB of full scale"),
        ("loud", f"{check.loud_db:.1f} dB"),
        ("noise floor", f"{check.noise_db:.1f} dB"),
        ("clipped", f"{100 * check.clipped:.3f} %"),
        ("DC offset", f"{check.dc_offset:+.4f}"),
        ("bandwidth", f"{check.bandwidth_hz / 1000:.1f} kHz"),
        ("dropouts", f"{dropped / check.rate:.2f} s lost, {format_count(check.holes, 'break')} in the sound"),
    ]
    for what, value in rows:
        print_line(f"  {what:<12} {value}")
    for one in found:
        print_line(f"{one.level}: {one.text}")
