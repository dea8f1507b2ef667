"""`confit-edge export`: a run becomes one ONNX file for a device, if it passes the gate."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from confit_edge.cli._console import Json, emit, say
from confit_edge.cli._runs import Background, Others

if TYPE_CHECKING:
    from confit_runtime.contract import Contract

Choice = TypeVar("Choice", bound=str)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `confit-edge train` wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The model file to write (.onnx).")],
    quantize: Annotated[bool, typer.Option("--quantize/--no-quantize", help="By a scheme, or fp32.")] = True,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="static (default): int8 with fixed scales; dynamic: scales from each window (windowed models only); weight-only:"
            " int8 weights, computed in fp32; fp16: weights of half the size, computed in fp32."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="portable (default): right on every processor; avx2; avx512-vnni: 8-bit weights, wrong on x86 without VNNI;"
            " arm64."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="How ranges are drawn from training clips: minmax (default), entropy or percentile."),
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(help="Leave layers whose name begins so in fp32; give it again for more.", metavar="NAME"),
    ] = None,
    fuse_activations: Annotated[
        bool,
        typer.Option(
            "--fuse-activations",
            help="Exchange activations for ones that runtimes fuse: a faster stream, nearly the same.",
        ),
    ] = False,
    qat_epochs: Annotated[int, typer.Option(help="Epochs of quantisation-aware fine-tuning before.", min=0)] = 0,
    sweep_minutes: Annotated[
        float,
        typer.Option(
            help="How long to look for the layers that hurt, where the gate fails; continued next time.", min=0.0
        ),
    ] = 20.0,
    force: Annotated[bool, typer.Option("--force", help="Write the file though the gate fails; it says so.")] = False,
    kind: Annotated[
        Literal["speaker", "sound"] | None,
        typer.Option(
            help="What names are enrolled with it: a speaker, or a sound. Unsaid: speaker with the encoder ge2e or the label"
            " column speaker or group, else sound."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The run's manifest, where it has moved since training.")] = None,
    background: Background = None,
    others: Others = None,
    license: Annotated[str, typer.Option(help="The licence that goes into the model's contract.")] = "unspecified",
    json_lines: Json = False,
) -> None:
    """Write one model file: front end, encoder, pooling, head and state in one graph, with its contract inside.

    Ranges for int8 come from training clips, thresholds from a stream composed of validation clips. The gate: at most half a
    point of validation accuracy lost against fp32, a mean cosine of embeddings of at least 0.99, streaming equal to offline.
    Where int8 does not pass, the layers that hurt most stay in fp32 until it does; where that does not help, no file is
    written and those layers are named. A card (.md) with the measured speed is written beside the model.

    Examples:

    `confit-edge export runs/words -o words.onnx`

    `confit-edge export runs/words -o words.onnx --target avx512-vnni --calibration percentile`

    `confit-edge export runs/speakers -o speakers.onnx --no-quantize`
    """
    from confit_edge.runs import moved, read_run, run_corpus
    from confit_export.calibration import CALIBRATIONS
    from confit_export.export import Quantisation, export_run, refuse_steering, refuse_unquantised
    from confit_export.model_card import recommendation, refuse_other_card, time_model, write_card
    from confit_export.quantize import SCHEMES
    from confit_export.targets import TARGETS
    from confit_runtime.cautions import cautions
    from confit_runtime.enrollment import kind_of

    if not quantize:
        refuse_unquantised({"--scheme": scheme, "--target": target, "--calibration": calibration})
    refuse_steering(out, license)
    refuse_other_card(out)
    (loaded,) = moved([read_run(run)], background=background, others=others)
    corpus = run_corpus(loaded, data)
    made = export_run(
        loaded,
        corpus,
        out,
        quantize=quantize,
        how=Quantisation(
            scheme=_one_of("--scheme", scheme, SCHEMES),
            target=_one_of("--target", target, TARGETS),
            calibration=_one_of("--calibration", calibration, CALIBRATIONS),
            keep_fp32=tuple(keep_fp32 or ()),
            qat_epochs=qat_epochs,
            sweep_minutes=sweep_minutes,
        ),
        fuse=fuse_activations,
        force=force,
        kind=kind,
        license=license,
        say=say,
    )
    timing = time_model(made)
    card = write_card(made, timing)
    if kind_of(made.contract) == "speaker":
        how = "as asked for" if kind else "by its encoder or its label column; --kind sound makes it one for sounds"
        say(f"it is a model for voices ({how}): who is enrolled with it is a speaker")
    contract, advice = made.contract, recommendation(made.contract, timing)
    if advice:
        say(advice)
    beware = cautions(contract.data)
    for caution in beware:
        say(f"beware: {caution}")
    if json_lines:
        emit(
            "summary",
            model=contract.name,
            path=str(out),
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
    say(
        f"wrote {out}: {made.bytes / 1e6:.2f} MB, {contract.precision}, {timing.latency.p50_ms:.2f} ms a call"
        f" (fp32 {timing.fp32.p50_ms:.2f}); card {card}. Next: {_next_step(contract, out)}"
    )


def _next_step(contract: Contract, out: Path) -> str:
    """What to do with the model: of one for voices enroll, of one that hears its sounds listen, of one that does not mend it."""
    from confit_export.export import hears
    from confit_runtime.enrollment import kind_of

    model = quote(str(out))
    enroll, listen = f"confit-edge enroll {model} NAME CLIP...", f"confit-edge listen {model}"
    if kind_of(contract) == "speaker":
        return enroll
    if hears(contract.calibration["detection"]):
        return f"{listen}; for names that it was not trained on, {enroll}"
    return f"train with more clips of more voices, and --background; or let it fire sooner, and falsely: {listen} --threshold 0.3"


def _one_of(option: str, given: str | None, choices: tuple[Choice, ...]) -> Choice:
    """The choice that was given, or else the first."""
    from confit_runtime.errors import UsageError

    for choice in choices:
        if given is None or choice == given:
            return choice
    raise UsageError(f"{option} {given}: choose one of {', '.join(choices)}")
