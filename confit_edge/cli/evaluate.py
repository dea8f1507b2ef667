"""`confit-edge evaluate`: measure a model on labelled recordings or clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confit_edge.cli._arguments import ModelArgument
from confit_edge.cli._console import Bar, Json, emit, failed_clip_reported, print_line, say, say_failed
from confit_edge.cli._gallery_options import open_names
from confit_edge.cli._sources import warn_about_narrow_clips
from confit_edge.cli._thresholds import (
    FIRE_AT,
    check_confidence,
    check_fire,
    parse_thresholds,
    threshold_origin,
    threshold_source,
    with_thresholds,
)
from confit_runtime.errors import AudioError, ConfitError, UsageError
from confit_runtime.formatting import format_count, format_interval, format_list
from confit_runtime.names import closest_name

if TYPE_CHECKING:
    from confit_runtime.contract import Contract
    from confit_runtime.evaluation import EvaluatedRecording
    from confit_runtime.gallery import Gallery
    from confit_runtime.labels import LabelledRecording

SHOWN = 5  # places printed of false accepts and of missed sounds; --json lists all


def evaluate(
    model: ModelArgument,
    labelled: Annotated[
        Path,
        typer.Argument(
            metavar="LABELLED",
            help="Recordings: a CSV (path,start_s,end_s,label), or a folder with Audacity's labels next to them. Or clips: a"
            " manifest, or a folder with one sub-folder per label.",
        ),
    ],
    threshold: Annotated[
        list[str] | None, typer.Option(metavar="[LABEL=]VALUE", help=f"{FIRE_AT} May be repeated.")
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also count the names enrolled in this gallery, as labels of their own."),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="SHARE", help="Confidence of the intervals.")] = 0.95,
    json: Json = False,
) -> None:
    """Measure false accepts and misses on labelled recordings or clips.

    It prints false accepts per hour, false rejects by label and by signal-to-noise ratio, latency, and what fired for what.
    The model listens as `listen` does, with the thresholds of its device file if it has one. With --gallery, enrolled names
    count too, each with its false accepts per hour.

    - A detection is correct from a quarter of a second before a sound with its label until a second after the sound's end.
    - Every other detection is a false accept; two within a second count as one.
    - Sounds of labels that are set never to fire are counted separately, not as missed.
    - A damaged recording is reported (with --json as a line `failed`) and left out, the others are still measured, and the
      exit status is 1.

    Label the recordings in one of two ways:

    - A CSV with the columns path, start_s, end_s and label (or labels). Paths are relative to the CSV. Overlapping sounds have
      a row each, or one row with their labels joined by a vertical bar (owl|crow). A recording without any of the model's
      sounds is a row with only its path, and a CSV of only such recordings needs no other column.
    - A folder with Audacity labels: File > Export > Export Labels writes name.txt; keep it next to name.wav.

    A sound to be found needs a start and an end. Labels of other sounds show what caused a false accept; a recording may have
    only such labels.

    Clips are played one by one, each between silences, as a device hears a sound in a quiet room. Of a manifest with splits,
    only the test clips count. A detection in a clip of another label is a false accept.

    Examples:

        confit-edge evaluate words.onnx kitchen/labels.csv
        confit-edge evaluate words.onnx clips/
        confit-edge evaluate words.onnx kitchen/ --json
        confit-edge evaluate words.onnx kitchen/ --threshold yes=0.8
        confit-edge evaluate digits kitchen/ --gallery words.db

    Next: `confit-edge calibrate` if it fires too often, or `confit-edge train` with more clips if it misses too much.
    """
    from confit_edge.cli._positives import clips_as_recordings, holds_clips
    from confit_runtime import load
    from confit_runtime.evaluation import evaluate_recording
    from confit_runtime.evaluation_report import summarise
    from confit_runtime.labels import read_labelled
    from confit_runtime.model import check_labels
    from confit_runtime.recordings import check_duplicate_recordings

    check_confidence(confidence)
    general, own = parse_thresholds(threshold or [])
    loaded = with_thresholds(load(model), general, own)
    with open_names(gallery, loaded, own) as opened:
        names = [] if opened is None else list(opened.names())
        check_fire(own, [loaded], names)
        if not names:
            check_labels(model, loaded.contract.can_fire, "nothing to evaluate")
        clips = holds_clips(labelled)
        with failed_clip_reported(json):
            recordings = clips_as_recordings(labelled, loaded.contract, names) if clips else read_labelled(labelled)
        if not clips:
            check_duplicate_recordings([recording.path for recording in recordings])
        _check_labels(labelled, recordings, loaded.contract, names)
        warn_about_narrow_clips([recording.path for recording in recordings], loaded)
        whole, done = sum(recording.seconds for recording in recordings), 0.0
        judged = []
        left_out: list[tuple[str, ConfitError]] = []
        with Bar(json, before="hours") as bar:
            for recording in recordings:
                show_progress = partial(bar.show_hours, recording.path.name, whole, done)
                try:
                    judged.append(evaluate_recording(loaded, recording, show_progress, opened))
                except (AudioError, UsageError) as error:
                    left_out.append((str(recording.path), error))
                done += recording.seconds
        for path, why in left_out:
            say_failed(path, why, json)
        if not (judged or json):
            raise typer.Exit(1)
        report = {
            "model": loaded.name,
            "failed": len(left_out),
            "thresholds_of": {**threshold_origin(loaded.contract), **({"given": threshold} if threshold else {})},
            **summarise(judged, loaded.contract, confidence),
            **({} if opened is None else {"by_name": _names_report(opened, judged, confidence, own)}),
        }
        if clips:  # no noise surrounds them, and nothing says when a microphone would have heard the silence after them
            report |= {"snr": {}, "latency_s": {}, "latency_from_start_s": {}}
        if json:
            emit("summary", **report)
        else:
            _print(report, "clip" if clips else "recording")
        if left_out:
            raise typer.Exit(1)


def _names_report(
    gallery: Gallery, judged: Sequence[EvaluatedRecording], confidence: float, by_hand: Mapping[str, float]
) -> dict[str, Any]:
    """The threshold of each enrolled name, when it was calibrated (None: it was not, or is `by_hand`), and its false accepts."""
    from confit_runtime.evaluation_report import false_accept_rate

    matcher, calibrated = gallery.matcher, gallery.calibrated()
    return {
        name: {
            "threshold": matcher.stream_threshold(name),
            "calibrated": calibrated[name].made if name in calibrated and name not in by_hand else None,
            **false_accept_rate(judged, confidence, name),
        }
        for name in matcher.enrolled
    }


def _check_labels(
    source: Path, recordings: Sequence[LabelledRecording], contract: Contract, names: Sequence[str]
) -> None:
    """Warn about labels that neither the model nor the gallery has.

    Raises UsageError if no label is the model's but one looks misspelt, and if a sound to be found has no length.
    """
    fires = {*contract.can_fire, *names}
    points = [
        f"{sound.label} at {sound.start_s:g} s of {recording.path}"
        for recording in recordings
        for sound in recording.sounds
        if sound.label in fires and sound.start_s == sound.end_s
    ]
    if points:
        more = f" (and {len(points) - 1} more)" if len(points) > 1 else ""
        raise UsageError(
            f"{source}: {points[0]}{more} has no length, but detections are matched with the start and end of a sound;"
            " give it an end (in Audacity drag the label's edge over the sound)"
        )
    own = [*contract.target_labels, *names]
    found = {sound.label for recording in recordings for sound in recording.sounds}
    if not (strange := sorted(found - set(contract.labels) - set(names))):
        return
    near = {label: closest_name(label, own) for label in strange}
    strange.sort(key=lambda label: not near[label])  # if there are many, list the misspelt ones first
    named = format_list([f"{label} ({near[label]}?)" if near[label] else label for label in strange])
    if found & set(own):
        say(f"{source}: labels that {contract.name} does not have: {named}; they count as other sounds")
        return
    none = f"{source}: holds none of the labels that {contract.name} detects ({format_list(own)}), but {named}"
    if any(near.values()):
        raise UsageError(f"{none}; correct misspelt labels, and rename labels of other sounds")
    say(f"{none}; they count as other sounds, and only false accepts are measured")


def _print(report: dict[str, Any], noun: str) -> None:
    """Print the report on recordings, or whatever `noun` calls them."""
    from confit_runtime.intervals import MIN_GROUPS

    low, high = report["fa_per_hour_interval"]
    recordings = format_count(report["recordings"], noun)
    print(
        f"{format_count(report['false_accepts'], 'false accept')} in {report['hours']:.2f} hours of {recordings}:"
        f" {report['fa_per_hour']:.2f} per hour {format_interval(low, high, '.2f')}"
    )
    if report["failed"]:
        all_of_them = format_count(report["recordings"] + report["failed"], noun)
        print(f"incomplete: {report['failed']} of {all_of_them} could not be read; the figures leave them out")
    if report["recordings"] < MIN_GROUPS:
        print(
            f"fewer than {MIN_GROUPS} {noun}s do not show how much {noun}s differ: the interval of false accepts per hour"
            " holds only for sound like theirs"
        )
    given = (
        f", except --threshold {' '.join(report['thresholds_of']['given'])}"
        if "given" in report["thresholds_of"]
        else ""
    )
    print(f"thresholds from {threshold_source(report['thresholds_of'])}{given}")
    for name, row in report.get("by_name", {}).items():
        low, high = row["fa_per_hour_interval"]
        since = f"calibrated on {row['calibrated']}" if row["calibrated"] else "not calibrated"
        print_line(
            f"enrolled name {name} at {row['threshold']:.2f}, {since}: {format_count(row['false_accepts'], 'false accept')},"
            f" {row['fa_per_hour']:.2f} per hour {format_interval(low, high, '.2f')}"
        )
    if report["false_rejects"]["sounds"] or report["never_fire"]:
        print(f"\n{'false rejects':<20}{'sounds':>8}{'missed':>8}{'share':>8}")
    bands = [(f"SNR {band}", row) for band, row in report["snr"].items()]
    for name, row in [("all", report["false_rejects"]), *report["by_label"].items(), *bands]:
        if row["sounds"]:
            low, high = row["frr_interval"]
            share = f"{100 * row['frr']:>6.1f} %  {format_interval(100 * low, 100 * high)}"
            print(f"{name:<20}{row['sounds']:>8}{row['missed']:>8}{share}")
    for name, sounds in report["never_fire"].items():
        print(f"{name:<20}{sounds:>8}{'-':>8}  set never to fire")
    if report["recordings"] < MIN_GROUPS and report["false_rejects"]["sounds"]:
        print(
            f"\nthese intervals are wide because sounds of one {noun} tend to be missed together;"
            f" {MIN_GROUPS} or more {noun}s narrow them"
        )
    if report["latency_s"] or report["latency_from_start_s"]:
        print()
    _print_latency("a sound's end", report["latency_s"])
    _print_latency("the start of a sound longer than the model's window", report["latency_from_start_s"])
    for row in report["fired_for"]:
        print_line(f"{row['times']:>4} x {row['heard']} fired, label there: {row['was']}")
    for what, rows in (("false accepts", report["heard_falsely"]), ("missed sounds", report["not_heard"])):
        _print_places(what, rows)


def _print_latency(place: str, latency: dict[str, float]) -> None:
    if latency:
        print(f"reported {latency['median']:+.2f} s from {place} (median), {latency['p90']:+.2f} s (90th percentile)")


def _print_places(what: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print where the first of them are, so that a person can listen."""
    if not rows:
        return
    print(f"\n{what}" + (f", {SHOWN} of {len(rows)} (--json lists them all)" if len(rows) > SHOWN else ""))
    for row in rows[:SHOWN]:
        score = f" ({row['score']:.2f}), label there: {row['was']}" if "score" in row else ""
        print_line(f"  {row['file']}  {row['start_s']:.2f} to {row['end_s']:.2f} s  {row['label']}{score}")
