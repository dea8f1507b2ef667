"""`confit-edge listen`: run models on a microphone, a file or a pipe, and print what they hear."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._console import Json, emit, say
from confit_runtime.errors import UsageError

if TYPE_CHECKING:
    from confit_runtime.audio import Pcm
    from confit_runtime.model import Detection, Model, Stream
    from confit_runtime.sources import Source


def listen(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Model files, or names of shipped models.")],
    source: Annotated[
        str, typer.Option(metavar="SOURCE", help="mic, mic:INDEX, mic:NAME, a sound file, or - for raw PCM on stdin.")
    ] = "mic",
    rate: Annotated[int | None, typer.Option(metavar="HZ", help="Sample rate of the PCM on stdin.")] = None,
    channels: Annotated[int, typer.Option(metavar="N", help="Channels of the PCM on stdin.")] = 1,
    pcm_format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="Samples of the PCM on stdin: s16le or f32le.")
    ] = "s16le",
    gallery: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also tell when a name enrolled in this gallery is heard.")
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="[LABEL=]VALUE", help="Fire at this score, for one label or for all; may be repeated."),
    ] = None,
    seconds: Annotated[float | None, typer.Option(metavar="N", min=0.0, help="Stop after N seconds of sound.")] = None,
    json: Json = False,
) -> None:
    """Listen, and print a line for each detection: when the sound was, what it was, its score.

    Ends with the file, after --seconds, or on Ctrl-C, with a summary.

    Examples:

        confit-edge listen digits

        confit-edge listen digits --source recording.flac --json

        arecord -q -t raw -f S16_LE -r 16000 | confit-edge listen digits --source - --rate 16000

        confit-edge listen mymodel.onnx --source mic:USB --gallery house.db --threshold yes=0.8
    """
    from confit_runtime import load
    from confit_runtime.sources import open_source

    # a job in a script's background is started with SIGINT ignored, and a service is stopped by SIGTERM
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, signal.default_int_handler)
    tuned = _with_thresholds([load(model) for model in models], threshold or [])
    streams = _streams(tuned, gallery, lead_in=Path(source).is_file())
    with open_source(source, rate=rate, channels=channels, format=pcm_format) as opened, _quiet_when_unread():
        listener = _Listener(opened, streams, json)
        try:
            with suppress(KeyboardInterrupt):
                listener.listen(seconds)
        finally:
            listener.summary()


class _Listener:
    """Feeds one source to one stream per model, and prints what they hear."""

    def __init__(self, source: Source, streams: list[Stream], json: bool) -> None:
        self._source, self._streams, self._json = source, streams, json
        self._counts: list[Counter[str]] = [Counter() for _ in streams]
        self._samples = self._dropped = 0
        self._meter = _Meter() if source.name.startswith("mic") and sys.stderr.isatty() else None

    def listen(self, seconds: float | None) -> None:
        """Until the source ends, or for `seconds` of its own time."""
        from confit_runtime.sources import Gap

        end = None if seconds is None else round(seconds * self._source.rate)
        for item in self._source:
            if isinstance(item, Gap):
                self._skip(item.samples)
            else:
                pcm, rate = item
                self._hear(pcm if end is None else pcm[: end - self._samples], rate)
            if end is not None and self._samples >= end:
                break
        for at, stream in enumerate(self._streams):
            self._tell(at, stream.finish())

    def summary(self) -> None:
        """One for each model: how often it heard what."""
        if self._meter is not None:
            self._meter.clear()
        seconds = self._samples / self._source.rate
        for stream, counts in zip(self._streams, self._counts, strict=True):
            if self._json:
                emit(
                    "summary",
                    model=stream.model.name,
                    source=self._source.name,
                    seconds=round(seconds, 3),
                    detections=dict(counts),
                    dropped_samples=self._dropped,
                )
            else:
                heard = ", ".join(f"{label} {count}" for label, count in counts.most_common()) or "nothing"
                say(f"{stream.model.name}: {heard} in {seconds:.1f} s")

    def _hear(self, pcm: Pcm, rate: int) -> None:
        self._samples += len(pcm)
        for at, stream in enumerate(self._streams):
            self._tell(at, stream.accept(pcm, rate))
        if self._meter is not None:
            self._meter.show(pcm)

    def _skip(self, samples: int) -> None:
        self._samples += samples
        self._dropped += samples
        for stream in self._streams:
            stream.skip(samples)
        if self._meter is not None:
            self._meter.clear()
        say(f"{samples / self._source.rate:.2f} s of sound were lost: this machine could not keep up")

    def _tell(self, at: int, detections: list[Detection]) -> None:
        for detection in detections:
            self._counts[at][detection.label] += 1
            if self._json:
                emit("detection", **dataclasses.asdict(detection))
                continue
            if self._meter is not None:
                self._meter.clear()
            model = f"  ({detection.model})" if len(self._streams) > 1 else ""
            print(f"{detection.start_s:8.2f} s  {detection.label}  {detection.score:.2f}{model}", flush=True)


class _Meter:
    """The microphone's level as one line on the terminal that is written over ten times a second."""

    def __init__(self) -> None:
        self._peak = self._shown = 0.0

    def show(self, pcm: Pcm) -> None:
        self._peak = max(self._peak, float(abs(pcm).max(initial=0.0)))
        if time.monotonic() - self._shown >= 0.1:
            decibel = 20 * math.log10(max(self._peak, 1e-3))  # -60..0
            print(f"\r[{'#' * round(decibel / 2 + 30):<30}] {decibel:4.0f} dB ", end="", file=sys.stderr, flush=True)
            self._peak, self._shown = 0.0, time.monotonic()

    def clear(self) -> None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _streams(models: list[Model], gallery: Path | None, *, lead_in: bool) -> list[Stream]:
    """A stream for each model; with the gallery where it is the model's own, which at least one must be."""
    from confit_runtime.gallery import Gallery

    if gallery is None:
        return [model.stream(lead_in=lead_in) for model in models]
    with Gallery.open(gallery) as opened:
        own = [model for model in models if model.contract.embedding_id == opened.embedding_id]
    streams = []
    for model in models:
        if model in (own or models[:1]):  # a gallery of none of them is refused when it is opened with the first
            with Gallery.open(gallery, model) as opened:
                streams.append(model.stream(opened, lead_in=lead_in))
        else:
            streams.append(model.stream(lead_in=lead_in))
    return streams


def _with_thresholds(models: list[Model], options: list[str]) -> list[Model]:
    """The models with `--threshold` applied: `LABEL=VALUE` to those that have the label, a bare value to all labels."""
    for option in options:
        label, equals, value = option.rpartition("=")
        try:
            level = float(value)
        except ValueError as error:
            raise UsageError(
                f"--threshold {option}: expected LABEL=VALUE or VALUE, a number between 0 and 1"
            ) from error
        if equals:
            own = [model for model in models if label in model.labels] or models[
                :1
            ]  # the first refuses a label of none
            models = [model.with_thresholds({label: level}) if model in own else model for model in models]
        else:
            models = [model.with_thresholds(dict.fromkeys(model.labels, level)) for model in models]
    return models


@contextmanager
def _quiet_when_unread() -> Iterator[None]:
    """End without a word when whoever read our stdout has left, as `| head -1` does."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes stdout once more when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
