"""`confit-edge calibrate`: set thresholds for a target rate of false accepts with the upper bound they keep, or by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confit_edge.cli._arguments import ModelArgument
from confit_edge.cli._console import Bar, Json, emit, failed_clip_reported, say
from confit_edge.cli._thresholds import FIRE_AT, check_confidence, check_fire, parse_thresholds, with_thresholds
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import check_suffix
from confit_runtime.formatting import format_count, format_list
from confit_runtime.names import closest_name, format_known_names, normalise

if TYPE_CHECKING:
    from confit_edge.cli._calibration_targets import CalibrationTarget
    from confit_edge.data.manifest import Clip
    from confit_runtime.calibration import FalseAcceptCounts, OperatingPoint, Positive
    from confit_runtime.contract import Contract
    from confit_runtime.model import Model
    from confit_runtime.recordings import Recording

TARGET = 0.5  # false accepts per hour


def calibrate(
    model: ModelArgument,
    negatives: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOUND",
            help="Recordings without the model's sounds: files, folders or patterns; may be repeated. Needed unless"
            " thresholds are only set by hand.",
        ),
    ] = None,
    positives: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Clips of the model's sounds, to measure false rejects: a manifest (if it has splits, only test counts) or"
            " a folder with one sub-folder per label.",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Column of --positives that holds the label [label; or labels, which holds several]."),
    ] = None,
    group_column: Annotated[
        str | None,
        typer.Option(help="Column of --positives that holds the group: the speaker or recording [group]."),
    ] = None,
    target_fa_per_hour: Annotated[
        float | None,
        typer.Option(metavar="RATE", help=f"Most false accepts per hour that the whole model may make [{TARGET:g}]."),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Set the thresholds of the names enrolled in this gallery, and store them in it, instead of those of labels.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Let only this label fire; may be repeated. Fewer labels then share the allowed false accepts. With"
            " --gallery: set the threshold of this name only; the others keep theirs and are not counted.",
        ),
    ] = None,
    lower: Annotated[
        bool,
        typer.Option(
            "--lower",
            help="Also let thresholds fall below those the model came with. Use it only if the recordings hold everything the"
            " device will ever hear, including speech and television.",
        ),
    ] = False,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]VALUE",
            help=f"Set by hand, not by the target. {FIRE_AT} May be repeated. With --negatives, the other labels are calibrated,"
            " and the report measures all; without, the other thresholds stay as they are.",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="SHARE", help="Confidence of the bound.")] = 0.95,
    bake: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.onnx",
            help="Write the thresholds into a copy of the model called OUT instead of a device file.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="DET.png",
            help="Plot false rejects against false accepts, even if the target cannot be kept, and write DET.csv next to it."
            " Needs the train extra.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Set thresholds that keep a rate of false accepts.

    You need hours of sound that the device hears all day, such as talk, television and music, but none of the model's own
    sounds. For the defaults (95 % confidence, 0.5 false accepts per hour) you need at least six hours. The bound counts
    recordings rather than minutes, so many short recordings of many kinds tell more than one long recording.

    `calibrate` streams every recording through the model. It sets the lowest thresholds at which the upper bound of false
    accepts per hour, for all labels together, is at most the target. No threshold falls below the one the model came with,
    because quiet recordings would allow any threshold; --lower lifts that limit. If you stop it, the same command resumes at
    the file it was in.

    It writes MODEL.device.json next to the model, and every program that loads the model reads it. If MODEL is a link and
    only the file it links to has a device file, that one is overwritten.

    --threshold keeps a threshold that you chose, for example one that you tried with `listen --threshold`: it is recorded as
    set by hand, and promises nothing unless --negatives measure it.

    With --gallery it sets the thresholds of the enrolled names by the same method, and writes them into the gallery; the labels
    stay as they are. They hold in streams (`listen`, `evaluate`); `identify` and `verify` ask about clips and keep their own.

    Examples:

        confit-edge calibrate words.onnx --negatives radio/ --negatives kitchen.flac
        confit-edge calibrate words.onnx --negatives radio/ --positives test/ --target-fa-per-hour 0.2 --plot det.png
        confit-edge calibrate words.onnx --negatives radio/ --only stop --only seven
        confit-edge calibrate digits --negatives radio/ --bake my-digits.onnx
        confit-edge calibrate words.onnx --threshold marvin=0.3
        confit-edge calibrate digits --gallery words.db --negatives radio/

    Next: `confit-edge evaluate` on labelled recordings, or `confit-edge listen`.
    """
    from confit_edge.cli._calibration_targets import labels_target, names_target
    from confit_edge.cli._positives import hear, read_positives
    from confit_runtime import load
    from confit_runtime.sources import find_clips

    target = TARGET if target_fa_per_hour is None else target_fa_per_hour
    _check(target, confidence, bake, plot)
    general, own = parse_thresholds(threshold or [])
    if gallery is not None:
        _check_of_names(negatives, threshold, bake)
    elif not negatives:
        _check_by_hand(threshold, target_fa_per_hour, only, lower, plot)
    if positives is None and (label_column or group_column):
        raise UsageError(
            "--label-column and --group-column are columns of --positives: give --positives too, or leave them out"
        )
    # without recordings, those in force are changed, which another calibration may have set
    loaded = load(model, calibrated=not negatives)
    _check_output(model, loaded, gallery, bake)
    of = labels_target(loaded, bake) if gallery is None else names_target(loaded, gallery, only or [])
    came_with = _only(of.contract, only, gallery) if only else of.contract
    check_fire(own, [loaded])
    by_hand = _by_hand(loaded, came_with, general, own)
    if negatives:
        _check_measured(by_hand)
    contract = replace(came_with, thresholds={**came_with.thresholds, **by_hand})
    with failed_clip_reported(json):
        clips = read_positives(positives, contract, label_column, group_column) if positives else []
    if not negatives:
        _set_by_hand(loaded, contract, by_hand, clips, confidence, of, json)
        return
    recordings = _score_recordings(loaded, find_clips(negatives), of, json)
    choice = _choose(contract, by_hand, recordings, of, target, confidence, lower, json)
    with failed_clip_reported(json):
        heard = hear(choice.contract, clips, of.score_clip, json)
    _write(choice, came_with, heard, of, plot, json)


@dataclass(frozen=True)
class _Choice:
    """The thresholds in `contract`: set `by_hand`, or chosen on recordings for the `target`."""

    contract: Contract
    by_hand: dict[str, dict[str, float]]
    places: list[int]  # the indices of the labels that have such a threshold
    counts: FalseAcceptCounts
    point: OperatingPoint
    kept: str  # the labels that the recordings would allow to fire more easily, as text
    cautions: list[str]
    target: float
    confidence: float


def _score_recordings(model: Model, paths: Sequence[Path], of: CalibrationTarget, json: bool) -> list[Recording]:
    """Stream the recordings through the model; what was streamed before comes from the cache."""
    from confit_runtime.recordings import RowCache, score_recordings

    with failed_clip_reported(json), Bar(json, before="hours") as bar:
        return of.score_recordings(
            score_recordings(
                model,
                paths,
                RowCache.default(of.output),
                lambda name, done, whole: bar.show_hours("streaming", whole, 0.0, done),
            )
        )


def _choose(
    contract: Contract,
    by_hand: dict[str, dict[str, float]],
    recordings: list[Recording],
    of: CalibrationTarget,
    target: float,
    confidence: float,
    lower: bool,
    json: bool,
) -> _Choice:
    """Count the false accepts of `contract`, and choose the thresholds of all labels but those set by hand in it."""
    from confit_edge.cli._calibration_report import cautions, lowered_thresholds
    from confit_runtime.calibration import (
        choose_operating_point,
        count_false_accepts,
        firing_label_indices,
        on_thresholds,
        restrict_to_labels,
        set_by_hand,
        thresholds,
    )

    calibrated = restrict_to_labels(contract, set(contract.can_fire) - by_hand.keys())
    whole = sum(recording.seconds for recording in recordings)
    with Bar(json, before="hours") as bar:
        show_progress = partial(bar.show_hours, "counting false accepts", whole, 0.0)
        show_progress(0.0)
        counts = count_false_accepts(contract, recordings, show_progress, release=of.release)
    levels = {contract.labels.index(label): level["on"] for label, level in by_hand.items()}
    of_calibrated = counts.without(levels)
    point = choose_operating_point(of_calibrated, target if calibrated.can_fire else float("inf"), confidence)
    kept = "" if lower else lowered_thresholds(calibrated, point)
    if not lower:
        point = replace(point, lowest=on_thresholds(contract))
    beware = cautions(of_calibrated, point, calibrated, recordings, of.alone)
    point = set_by_hand(point, counts, levels, confidence)
    chosen = replace(contract, thresholds={**thresholds(contract, point.thresholds, of.release), **by_hand})
    places = firing_label_indices(contract)
    return _Choice(chosen, by_hand, places, counts, point, kept, beware, target, confidence)


def _write(
    choice: _Choice,
    came_with: Contract,
    heard: Sequence[Positive],
    of: CalibrationTarget,
    plot: Path | None,
    json: bool,
) -> None:
    """Report the choice, and write it. Raises ConfitError, and writes nothing, if the hours are too few for the target."""
    from confit_edge.cli import _calibration_report as calibration_report
    from confit_runtime.calibration import det_curve

    contract, point, target = choice.contract, choice.point, choice.target
    before = {label: level["on"] for label, level in came_with.thresholds.items()}
    report = {
        **calibration_report.report(contract, choice.places, choice.counts, point, heard, choice.confidence, before),
        "target_fa_per_hour": target,
        "confidence": choice.confidence,
        "met": point.met and point.bound <= target,
        **of.about,
        **({"by_hand": {label: level["on"] for label, level in choice.by_hand.items()}} if choice.by_hand else {}),
    }
    curve = det_curve(choice.counts, point, contract, heard, choice.confidence)
    if plot is not None:
        calibration_report.write_curve(plot, curve, report)
    if json:
        labels = [contract.labels[at] for at in choice.places] if of.others_keep_theirs else contract.labels
        levels = {label: contract.thresholds[label] for label in labels}
        emit("summary", **report, thresholds=levels, det=curve, cautions=choice.cautions)
    for caution in choice.cautions:
        say(f"warning: {caution}")
    if not point.met:
        hours = report["hours"]
        raise ConfitError(
            f"{hours:.2f} hours are too few to promise {target:g} false accepts per hour: even without any it takes"
            f" {hours + point.more_hours:.2f} hours, {point.more_hours:.2f} more; these hours are enough for"
            f" --target-fa-per-hour {_rounded_up(point.bound):g}"
        )
    dropped = {label: on for label, on in of.by_hand_before().items() if label not in choice.by_hand}
    written = of.write(contract, {**report, "det": curve})
    if not json:
        calibration_report.print_table(contract, report, of.noun)
        calibration_report.print_lower_thresholds(report)
    if not report["met"]:
        say(
            f"warning: with the thresholds set by hand, the bound is {point.bound:.2f} false accepts per hour, above the"
            f" target of {target:g}"
        )
    if choice.kept:
        say(
            "kept at the threshold the model came with, because these recordings hold too little that sounds like it:"
            f" {choice.kept}. If they hold everything the device will ever hear, --lower lowers these thresholds, so that"
            " fewer sounds are missed"
        )
    if dropped:
        say(
            f"no longer set by hand, but calibrated: {format_list([f'{label}={on:g}' for label, on in dropped.items()])}."
            " To keep such a threshold, give it again with --threshold"
        )
    say(written)


def _check_output(model: str, loaded: Model, gallery: Path | None, bake: Path | None) -> None:
    """Raise UsageError, before the hours of work, if there is nothing to set, or it cannot be written to where it belongs."""
    from confit_runtime.device_file import check_no_device_file, device_path
    from confit_runtime.model import check_labels

    if gallery is not None:
        _check_place(gallery, "copy it to another folder")
        return
    check_labels(model, loaded.contract.can_fire, "no thresholds to set")
    if bake is None:
        if not Path(model).is_file():
            raise UsageError(f"{model}: is a shipped model; calibrate a copy of it with --bake OUT.onnx")
        _check_place(device_path(loaded.path), "write a copy to another folder with --bake OUT.onnx")
        return
    _check_place(bake, "name another folder for --bake OUT.onnx")
    if bake.exists() and bake.samefile(loaded.path):
        raise UsageError(f"--bake {bake}: is the model being calibrated; name another file, or leave --bake out")
    check_no_device_file(bake)


def _check_of_names(negatives: list[str] | None, threshold: list[str] | None, bake: Path | None) -> None:
    """Raise UsageError for options that do not fit --gallery."""
    if threshold:
        raise UsageError("--threshold sets thresholds of labels; for enrolled names give it to `listen`")
    if bake is not None:
        raise UsageError("--bake writes thresholds of labels, and --gallery sets those of names; give one of the two")
    if not negatives:
        raise UsageError("--negatives is missing: give recordings without the enrolled sounds")


def _check_by_hand(
    threshold: list[str] | None, target: float | None, only: list[str] | None, lower: bool, plot: Path | None
) -> None:
    """Raise UsageError for options that need recordings, of a command that names none."""
    if not threshold:
        raise UsageError(
            "--negatives is missing: give recordings without the model's sounds, or set thresholds by hand with --threshold"
        )
    for option, given in (("--target-fa-per-hour", target), ("--only", only), ("--lower", lower), ("--plot", plot)):
        if given:
            raise UsageError(f"{option}: has no effect without --negatives; leave it out, or give --negatives")


def _by_hand(
    loaded: Model, contract: Contract, general: float | None, own: dict[str, float]
) -> dict[str, dict[str, float]]:
    """The thresholds that --threshold sets, as in a contract; `contract` is that of `loaded`, perhaps with --only."""
    from confit_runtime.calibration import with_release

    tuned = with_thresholds(loaded, general, own).contract
    labels = contract.can_fire if general is not None else []
    named = [label for label in loaded.contract.target_labels if normalise(label) in own]
    if outside := [label for label in named if label not in contract.can_fire and label in loaded.contract.can_fire]:
        raise UsageError(f"--threshold {outside[0]}={own[normalise(outside[0])]:g}: is not among the labels of --only")
    return {
        label: with_release(tuned.thresholds[label], tuned.thresholds[label]["on"])
        for label in dict.fromkeys([*labels, *named])
    }


def _check_measured(by_hand: dict[str, dict[str, float]]) -> None:
    """Raise UsageError for a threshold set by hand that is lower than those at which false accepts are counted."""
    from confit_runtime.calibration import LEVELS

    for label, level in by_hand.items():
        if level["on"] < LEVELS[0]:
            raise UsageError(
                f"--threshold {label}={level['on']:g}: recordings are measured at thresholds of {LEVELS[0]:.2f} or more;"
                " give a higher one, or leave --negatives out"
            )


def _set_by_hand(
    loaded: Model,
    contract: Contract,
    by_hand: dict[str, dict[str, float]],
    clips: list[Clip],
    confidence: float,
    of: CalibrationTarget,
    json: bool,
) -> None:
    """Write the thresholds of `contract`, some set by hand and measured on no recordings; report what they miss of the clips."""
    from confit_edge.cli._calibration_report import report_by_hand
    from confit_edge.cli._positives import hear

    before = loaded.contract.calibration.get("device", {})
    with failed_clip_reported(json):
        heard = hear(contract, clips, of.score_clip, json)
    report = {
        **report_by_hand(contract, list(by_hand), heard, confidence),
        "by_hand": {**before.get("by_hand", {}), **{label: level["on"] for label, level in by_hand.items()}},
    }
    if "hours" in before or "calibrated" in before:
        report["calibrated"] = before.get("calibrated") or {
            key: before[key] for key in ("made", "hours", "target_fa_per_hour", "fa_per_hour_bound") if key in before
        }
    written = of.write(contract, report)
    if json:
        emit("summary", **report, thresholds=contract.thresholds)
    else:
        for label, level in by_hand.items():
            row = report["by_label"][label]
            missed = (
                f", misses {100 * row['frr']:.1f} % of {format_count(row['clips'], 'clip')}" if "frr" in row else ""
            )
            print(f"{label}: {level['on']:g} (was {loaded.contract.thresholds[label]['on']:g}){missed}")
    say(written)


def _check(target: float, confidence: float, bake: Path | None, plot: Path | None) -> None:
    if not 0 < target < float("inf"):
        raise UsageError(f"--target-fa-per-hour must be above 0; it is {target:g}")
    check_confidence(confidence)
    if bake is not None:
        check_suffix(bake, ".onnx", "a model file's name", "--bake")
    if plot is not None:
        check_suffix(plot, ".png", "the plot's name", "--plot")
        _check_place(plot, "name another folder for --plot DET.png")
        _check_table(plot)
        from confit_edge.geometry import plots  # noqa: F401 - without matplotlib it fails here, not after hours


def _check_table(plot: Path) -> None:
    """Raise UsageError if the CSV next to the plot would replace another kind of file, such as labels."""
    from confit_edge.cli._calibration_report import CURVE_HEADER

    table = plot.with_suffix(".csv")
    if table.exists() and not table.read_bytes().startswith(CURVE_HEADER.encode()):
        raise UsageError(f"--plot {plot}: would replace {table}, which is not such a curve; name another DET.png")


def _check_place(path: Path, advice: str) -> None:
    """Raise UsageError, before the hours of work, if the folder of `path` cannot be written."""
    import tempfile

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UsageError(f"{path}: its folder cannot be written ({error.strerror}); {advice}") from error


def _only(contract: Contract, labels: Sequence[str], gallery: Path | None) -> Contract:
    from confit_runtime.calibration import restrict_to_labels

    labels = [normalise(label) for label in labels]
    for label in labels:
        known = format_known_names(label, contract.can_fire)
        fires = f"(labels that fire: {known})"
        near = closest_name(label, contract.can_fire)
        hint = f"; did you mean {near!r}?" if near else ""
        if label not in contract.labels and gallery is not None:
            raise UsageError(f"--only {label}: is not enrolled in {gallery} (enrolled: {known}){hint}")
        if label == contract.unknown_label:
            raise UsageError(
                f"--only {label}: stands for everything that is not a label of {contract.name}, and never fires {fires}"
            )
        if label not in contract.labels:
            raise UsageError(f"--only {label}: is not a label of {contract.name} {fires}{hint}")
        if label not in contract.can_fire:
            raise UsageError(
                f"--only {label}: is set never to fire in {contract.name} {fires}; calibrate the model that {contract.name} was"
                " made from"
            )
    return restrict_to_labels(contract, labels)


def _rounded_up(rate: float) -> float:
    """The rate rounded up to two digits."""
    import math

    unit = 10 ** (math.floor(math.log10(rate)) - 1)
    return math.ceil(rate / unit) * unit
