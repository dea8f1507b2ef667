"""`confit-edge export`: turn a run into one ONNX file for a device, if it passes the gate."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from confit_edge.cli._console import Json, emit, say
from confit_edge.cli._run_options import Background, Others, RunArgument
from confit_runtime.contract import NO_LICENSE

if TYPE_CHECKING:
    from confit_export.export import Exported
    from confit_export.model_card import Timing
    from confit_runtime.contract import Contract

Choice = TypeVar("Choice", bound=str)

_QUANTISATION, _GATE, _CONTRACT = "Quantisation", "Gate", "Contract"  # panels of --help


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="The model file to write (.onnx).")],
    quantize: Annotated[
        bool,
        typer.Option(
            "--quantize/--no-quantize", help="Quantise by --scheme, or keep fp32.", rich_help_panel=_QUANTISATION
        ),
    ] = True,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="static (default): int8 with fixed scales; dynamic: int8 with scales from each window (windowed models"
            " only); weight-only: int8 weights, computed in fp32; fp16: fp16 weights, half the size, computed in fp32.",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Processor: portable (default, correct on every processor), avx2, avx512-vnni (8-bit weights, wrong"
            " results on x86 without VNNI) or arm64.",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="How int8 ranges are taken from training clips: minmax (default), entropy or percentile.",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep the layer NAME, and all layers below it, in fp32: /stack/layers.2 is not /stack/layers.20. May be"
            " repeated.",
            metavar="NAME",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    fuse_activations: Annotated[
        bool,
        typer.Option(
            "--fuse-activations",
            help="Replace activations by ones that runtimes can fuse: a faster stream, with nearly the same results.",
            rich_help_panel=_QUANTISATION,
        ),
    ] = False,
    qat_epochs: Annotated[
        int,
        typer.Option(
            help="Epochs of quantisation-aware fine-tuning before quantising.", min=0, rich_help_panel=_QUANTISATION
        ),
    ] = 0,
    sweep_minutes: Annotated[
        float | None,
        typer.Option(
            help="Minutes to search for the layers that cost accuracy, if the gate fails. The next export continues the"
            " search. [20]",
            min=0.0,
            rich_help_panel=_GATE,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write the file even if the gate fails; its contract records that.", rich_help_panel=_GATE
        ),
    ] = False,
    kind: Annotated[
        Literal["speaker", "sound"] | None,
        typer.Option(
            help="What is enrolled with the model: speakers or sounds [speaker with the encoder ge2e or the label column"
            " speaker or group, else sound].",
            rich_help_panel=_CONTRACT,
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The run's manifest, if it has moved since training.")] = None,
    background: Background = None,
    others: Others = None,
    license: Annotated[
        str,
        typer.Option(
            metavar="SPDX",
            help="Licence of the model, such as CC0-1.0, for its contract and card. The card also names the encoder that it is"
            " derived from, whose licence holds as well.",
            rich_help_panel=_CONTRACT,
        ),
    ] = NO_LICENSE,
    json_lines: Json = False,
) -> None:
    """Turn a run into one ONNX model file for a device.

    The file holds the front end, encoder, pooling, head and streaming state in one graph, and the model's contract. A card
    (.md) with the measured speed is written next to it. Ranges for int8 come from training clips; thresholds come from a
    stream composed of validation clips. An existing model of the same classes, or of some of them, is replaced; any other
    file is not.

    The model must pass the gate:

    - at most half a point of validation accuracy lost compared with fp32
    - a mean cosine of at least 0.99 between its embeddings and those of fp32
    - the same results in streaming as offline

    If int8 fails the gate, export keeps the layers that cost most accuracy in fp32 until it passes. If that does not help, it
    writes no file, and names those layers and what to try.

    Examples:

        confit-edge export runs/words -o words.onnx
        confit-edge export runs/words -o words.onnx --target avx512-vnni --calibration percentile
        confit-edge export runs/speakers -o speakers.onnx --no-quantize

    Next: `confit-edge listen words.onnx`, then `confit-edge calibrate` on recordings from the device. For a model of voices:
    `confit-edge enroll`.
    """
    from confit_edge.runs import read_run, run_corpus, with_current_paths
    from confit_export.calibration import CALIBRATIONS
    from confit_export.export import check_printable, check_replaceable, export_run
    from confit_export.model_card import check_card_path, time_model, write_card
    from confit_export.quantisation import Quantisation, check_no_quantize
    from confit_export.quantize import SCHEMES
    from confit_export.targets import TARGETS
    from confit_runtime.enrollment import model_kind

    if not quantize:
        options = {
            "--scheme": scheme,
            "--target": target,
            "--calibration": calibration,
            "--sweep-minutes": sweep_minutes,
        }
        check_no_quantize([option for option, value in options.items() if value is not None])
    check_printable(out, license)
    check_card_path(out)
    (loaded,) = with_current_paths([read_run(run)], background=background or [], others=others or [])
    check_replaceable(out, loaded)
    corpus = run_corpus(loaded, data)
    made = export_run(
        loaded,
        corpus,
        out,
        quantize=quantize,
        quantisation=Quantisation(
            scheme=_check_choice("--scheme", scheme, SCHEMES),
            target=_check_choice("--target", target, TARGETS),
            calibration=_check_choice("--calibration", calibration, CALIBRATIONS),
            keep_fp32=tuple(keep_fp32 or ()),
            qat_epochs=qat_epochs,
            sweep_minutes=Quantisation.sweep_minutes if sweep_minutes is None else sweep_minutes,
        ),
        fuse=fuse_activations,
        force=force,
        kind=kind,
        license=license,
        say=say,
    )
    timing = time_model(made)
    card = write_card(made, timing)
    if model_kind(made.contract) == "speaker":
        how = (
            "as --kind asks" if kind else "because of its encoder or label column; --kind sound makes it one for sounds"
        )
        say(f"this is a model for voices ({how}): every name enrolled with it is a speaker")
    _report(made, timing, card, json_lines)


def _report(made: Exported, timing: Timing, card: Path, json_lines: bool) -> None:
    """Print what was written, what to do better, and the next step."""
    from confit_export.model_card import recommendation
    from confit_runtime.data_warnings import data_warnings

    contract, advice = made.contract, recommendation(made.contract, timing)
    if advice:
        say(advice)
    beware = data_warnings(contract.data)
    for caution in beware:
        say(f"warning: {caution}")
    if json_lines:
        emit(
            "summary",
            model=contract.name,
            path=str(made.path),
            card=str(card),
            bytes=made.bytes,
            fp32_bytes=made.fp32_bytes,
            precision=contract.precision,
            cost=contract.cost,
            fp32=made.fp32,
            shipped=made.shipped,
            gate=contract.metrics["gate"],
            parity=contract.parity,
            stream_max_abs_diff=made.stream_max_abs_diff,
            thresholds=contract.thresholds,
            calibration=contract.calibration,
            timing=timing.to_dict(),
            recommendation=advice,
            cautions=beware,
        )
        return
    compared = "" if contract.precision == "fp32" else f" (fp32 {timing.fp32.p50_ms:.2f} ms)"
    say(
        f"wrote {made.path}: {made.bytes / 1e6:.2f} MB, {contract.precision}, {timing.latency.p50_ms:.2f} ms per call"
        f"{compared}; card {card}. Next: {_next_step(contract, made.path)}"
    )


def _next_step(contract: Contract, out: Path) -> str:
    """The next step: enroll for a model of voices, listen for one that detects its sounds, improve one that does not."""
    from confit_export.finish import finds_half
    from confit_runtime.enrollment import model_kind

    model = quote(str(out))
    enroll, listen = f"confit-edge enroll {model} NAME CLIP...", f"confit-edge listen {model}"
    if model_kind(contract) == "speaker":
        return enroll
    if finds_half(contract.calibration["detection"]):
        return f"{listen}; to add names it was not trained on: {enroll}"
    return (
        "train with more clips of more voices, and with --background; or let it fire more easily, with more false accepts:"
        f" {listen} --threshold 0.3"
    )


def _check_choice(option: str, given: str | None, choices: tuple[Choice, ...]) -> Choice:
    """The given choice, or the first if none was given. Raises UsageError."""
    from confit_runtime.errors import UsageError

    for choice in choices:
        if given is None or choice == given:
            return choice
    raise UsageError(f"{option} {given}: choose one of {', '.join(choices)}")
