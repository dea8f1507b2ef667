"""`confit-edge calibrate`: set thresholds for a target rate of false accepts, with the upper bound they keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confit_edge.cli._console import Bar, Json, emit, failed_clip_reported, say
from confit_edge.cli._thresholds import check_confidence
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import check_suffix
from confit_runtime.names import closest_name, format_known_names, normalise

if TYPE_CHECKING:
    from confit_runtime.contract import Contract
    from confit_runtime.model import Model


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file, or the name of a shipped model.")],
    negatives: Annotated[
        list[str],
        typer.Option(
            metavar="SOUND",
            help="Recordings without the model's sounds: files, folders or patterns; may be repeated.",
        ),
    ],
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
        float, typer.Option(metavar="RATE", help="Most false accepts per hour that the whole model may make.")
    ] = 0.5,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Let only this label fire; may be repeated. Fewer labels then share the allowed false accepts.",
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

    Examples:

        confit-edge calibrate words.onnx --negatives radio/ --negatives kitchen.flac
        confit-edge calibrate words.onnx --negatives radio/ --positives test/ --target-fa-per-hour 0.2 --plot det.png
        confit-edge calibrate words.onnx --negatives radio/ --only stop --only seven
        confit-edge calibrate digits --negatives radio/ --bake my-digits.onnx

    Next: `confit-edge evaluate` on labelled recordings, or `confit-edge listen`.
    """
    import dataclasses

    from confit_edge.cli import _calibration_report as calibration_report
    from confit_edge.cli._positives import hear, read_positives
    from confit_runtime import load
    from confit_runtime.calibration import (
        choose_operating_point,
        count_false_accepts,
        det_curve,
        firing_label_indices,
        on_thresholds,
        thresholds,
    )
    from confit_runtime.device_file import check_no_device_file, device_path
    from confit_runtime.model import check_labels
    from confit_runtime.recordings import RowCache, score_recordings
    from confit_runtime.sources import find_clips

    _check(target_fa_per_hour, confidence, bake, plot)
    if positives is None and (label_column or group_column):
        raise UsageError(
            "--label-column and --group-column are columns of --positives: give --positives too, or leave them out"
        )
    loaded = load(model, calibrated=False)
    check_labels(model, loaded.contract.can_fire, "no thresholds to set")
    if bake is None and not Path(model).is_file():
        raise UsageError(f"{model}: is a shipped model; calibrate a copy of it with --bake OUT.onnx")
    if bake is None:
        _check_place(device_path(loaded.path), "write a copy to another folder with --bake OUT.onnx")
    else:
        _check_place(bake, "name another folder for --bake OUT.onnx")
    if bake is not None and bake.exists() and bake.samefile(loaded.path):
        raise UsageError(f"--bake {bake}: is the model being calibrated; name another file, or leave --bake out")
    if bake is not None:
        check_no_device_file(bake)
    paths = find_clips(negatives)
    contract = _only(loaded.contract, only) if only else loaded.contract
    with failed_clip_reported(json):
        clips = read_positives(positives, contract, label_column, group_column) if positives else []
    with failed_clip_reported(json), Bar(json, before="hours") as bar:
        recordings = score_recordings(
            loaded,
            paths,
            RowCache.default(),
            lambda name, done, whole: bar.show("streaming", whole, done, hours=f"{done / 3600:.1f} h"),
        )
        whole = sum(recording.seconds for recording in recordings)

        def show_progress(done: float) -> None:
            bar.show("counting false accepts", whole, done, hours=f"{done / 3600:.1f} h")

        show_progress(0.0)
        places, counts = firing_label_indices(contract), count_false_accepts(contract, recordings, show_progress)
    chosen = choose_operating_point(counts, target_fa_per_hour, confidence)
    kept = "" if lower else calibration_report.lowered_thresholds(contract, chosen)
    if not lower:
        chosen = dataclasses.replace(chosen, lowest=on_thresholds(contract))
    beware = calibration_report.cautions(counts, chosen, contract, recordings)
    contract = dataclasses.replace(contract, thresholds=thresholds(contract, chosen.thresholds))
    with failed_clip_reported(json):
        heard = hear(loaded, contract, clips, json)
    report = {
        **calibration_report.report(contract, places, counts, chosen, heard, confidence),
        "target_fa_per_hour": target_fa_per_hour,
        "confidence": confidence,
        "met": chosen.met,
    }
    curve = det_curve(counts, chosen, contract, heard, confidence)
    if plot is not None:
        calibration_report.write_curve(plot, curve, report)
    if json:
        emit("summary", **report, thresholds=contract.thresholds, det=curve, cautions=beware)
    for caution in beware:
        say(f"warning: {caution}")
    if not chosen.met:
        hours = report["hours"]
        raise ConfitError(
            f"{hours:.2f} hours are too few to promise {target_fa_per_hour:g} false accepts per hour: even without any it"
            f" takes {hours + chosen.more_hours:.2f} hours, {chosen.more_hours:.2f} more; these hours are enough for"
            f" --target-fa-per-hour {_rounded_up(chosen.bound):g}"
        )
    written = _write(loaded, contract, {**report, "det": curve}, bake)
    if not json:
        calibration_report.print_table(contract, report)
    if kept:
        say(
            f"kept at the threshold the model came with, because these recordings hold too little that sounds like it: {kept}."
            " If they hold everything the device will ever hear, --lower lowers these thresholds, so that fewer sounds are missed"
        )
    undo = "" if bake else f"; programs that load {loaded.path.name} use its thresholds until you remove it"
    say(f"wrote {written}{undo}")


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


def _only(contract: Contract, labels: Sequence[str]) -> Contract:
    from confit_runtime.calibration import restrict_to_labels

    labels = [normalise(label) for label in labels]
    for label in labels:
        fires = f"(labels that fire: {format_known_names(label, contract.can_fire)})"
        if label == contract.unknown_label:
            raise UsageError(
                f"--only {label}: stands for everything that is not a label of {contract.name}, and never fires {fires}"
            )
        if label not in contract.labels:
            near = closest_name(label, contract.can_fire)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UsageError(f"--only {label}: is not a label of {contract.name} {fires}{hint}")
        if label not in contract.can_fire:
            raise UsageError(
                f"--only {label}: is set never to fire in {contract.name} {fires}; calibrate the model that {contract.name} was"
                " made from"
            )
    return restrict_to_labels(contract, labels)


def _write(loaded: Model, contract: Contract, report: dict[str, Any], bake: Path | None) -> Path:
    """Write the device file, or with `bake` a copy of the model with the thresholds in its contract; return its path."""
    import dataclasses
    import datetime

    from confit_edge import __version__
    from confit_runtime import device_file
    from confit_runtime.contract import read_sealed, seal
    from confit_runtime.files import write_atomic

    if bake is not None:
        calibration = {**contract.calibration, "device": report}
        baked = dataclasses.replace(contract, name=bake.stem, calibration=calibration)
        model = loaded.path.read_bytes()
        write_atomic(bake, seal(model[: read_sealed(model).graph_size], baked))
        return bake
    path = device_file.device_path(loaded.path)
    made = device_file.DeviceFile(
        schema=device_file.SCHEMA,
        model=contract.name,
        model_digest=loaded.digest,
        embedding_id=contract.embedding_id,
        thresholds=contract.thresholds,
        smoothing_hops=contract.smoothing_hops,
        min_hops=contract.min_hops,
        refractory_s=contract.refractory_s,
        report=report,
        made=datetime.date.today().isoformat(),
        version=__version__,
    )
    write_atomic(path, made.to_json().encode())
    return path


def _rounded_up(rate: float) -> float:
    """The rate rounded up to two digits."""
    import math

    unit = 10 ** (math.floor(math.log10(rate)) - 1)
    return math.ceil(rate / unit) * unit
