"""`export`: turns a run into one model file if it passes the gate, and otherwise writes no file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from confit_edge.data.augment import Augmenter
from confit_edge.data.corpus import Corpus
from confit_edge.data.manifest import UNKNOWN
from confit_edge.data.tables import check_utf8
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import embed_clips
from confit_edge.runs import Run, check_same_data
from confit_export.enrollment import cohort_rows, kind_of_run
from confit_export.finish import finish
from confit_export.fuse import can_fuse
from confit_export.gate import Predictions
from confit_export.job import AssembledModel, ExportJob, stream_difference
from confit_export.measure import accuracies, compare_on_test, count_softer, share_fired
from confit_export.model_file import load_provisional, model_bytes
from confit_export.quantisation import Quantisation, check_no_quantize
from confit_export.quantize import Scheme
from confit_export.search import Say
from confit_runtime.contract import NO_LICENSE, Contract, read_sealed
from confit_runtime.describe import clip_noun, format_accuracy, format_map
from confit_runtime.device_file import check_no_device_file
from confit_runtime.enrollment import Kind
from confit_runtime.errors import ModelError, UsageError
from confit_runtime.files import check_suffix, make_folder, remove_leftovers, write_atomic
from confit_runtime.formatting import format_list
from confit_runtime.model import Model
from confit_runtime.names import escape_controls

MAX_NAMED = 5  # classes of another model that a refusal names


@dataclass(frozen=True)
class Exported:
    """The file that was written, and its accuracies 0..1 on the clips of each split.

    `fp32_model` is the same model before quantisation, for comparing speed.
    """

    path: Path
    bytes: int
    fp32_bytes: int
    contract: Contract
    fp32: dict[str, Any]
    shipped: dict[str, Any]
    stream_max_abs_diff: float
    fp32_model: Model


@torch.random.fork_rng(devices=[])
def export_run(
    run: Run,
    corpus: Corpus,
    out: str | Path,
    *,
    quantize: bool = True,
    quantisation: Quantisation = Quantisation(),
    fuse: bool = False,
    force: bool = False,
    kind: Kind | None = None,
    license: str = NO_LICENSE,
    say: Say,
) -> Exported:
    """Write `out`, one ONNX file with its contract.

    With `quantize` the model is quantised as `quantisation` says. `fuse` replaces activations with ones that runtimes fuse
    (`confit_export.fuse`); the fp32 model with the replacements must pass the gate too. `kind` is what enrolled names stand
    for, speakers or sounds; None takes the run's own kind (`kind_of_run`).

    Raises UsageError for options that do not fit together or do not fit the encoder, and for a `corpus` that the run was not
    trained on. Raises ConfitError, and writes no file, when streaming differs from offline or the quantised model does not
    pass the gate (`confit_export.gate`). With `force` the file is written anyway, and its contract's metrics say what failed.
    """
    out = Path(out)
    if quantize:
        quantisation.check()
    else:
        check_no_quantize(quantisation.given)
    check_printable(out, license)
    _check_request(out, run.encoder, quantisation.scheme if quantize else None, fuse)
    check_same_data(run, corpus)
    make_folder(out.parent)
    remove_leftovers(out)
    seed, encoder = run.recipe.seed, run.encoder.eval()
    rows = cohort_rows(corpus, seed)
    clips = corpus.training_clips()
    # words are centred as they are, background is cropped
    windows = Augmenter(encoder.window)([clips.pcm[row] for row in rows], np.random.default_rng([seed, 6]))
    cohort = embed_clips(encoder, list(windows), torch.device("cpu"))
    fp32 = AssembledModel.from_encoder(encoder, run, cohort)
    say(f"assembled the graph: {len(fp32.model.state)} states, {len(fp32.graph.graph.node)} nodes")

    metadata = {"name": out.stem, "license": license}
    contract = fp32.contract(run, fp32.graph, {}, precision="fp32", **metadata)
    fp32_model = load_provisional(out, fp32.graph, contract)
    reference = Predictions.of(fp32_model, corpus.val, corpus)
    job = ExportJob(run, corpus, out, metadata, cohort, force, say, reference, fp32, fp32.graph, contract)
    job.max_abs_diff = stream_difference(fp32_model, encoder, corpus)
    if fuse:
        job.fuse()
    job.check_streaming()
    if quantize:
        job.quantize(quantisation)
    finished = finish(run, corpus, out, job.graph, job.contract, windows, rows, kind or kind_of_run(run), say)
    shipped = load_provisional(out, job.graph, finished)
    measured = {
        "fp32": accuracies(fp32_model, reference, corpus),
        "shipped": accuracies(shipped, Predictions.of(shipped, corpus.val, corpus), corpus),
    }
    if corpus.multi_label:
        say(f"mAP on validation: {format_map(measured['shipped']['val'])}")
        if not quantize and "test" in measured["shipped"]:
            say(f"mAP on test: {format_map(measured['shipped']['test'])}")
    if quantize and "test" in measured["shipped"]:
        compare_on_test(measured["fp32"]["test"], measured["shipped"]["test"], finished.precision, say)
    fired = share_fired(shipped, corpus)
    if fired:
        clips_fired = f"{'test' if len(corpus.test) else 'validation'} {clip_noun(finished)}"
        say(
            f"at these thresholds {format_accuracy(fired)} of {fired['n']} {clips_fired} fire, each played alone between silences"
        )
    softer_counts = count_softer(shipped, corpus, run, say)
    finished = replace(
        finished,
        metrics={
            **measured["shipped"],
            **({"fired": fired} if fired else {}),
            **({"softer": softer_counts} if softer_counts else {}),
            "gate": {"passed": not job.failures, "failures": job.failures},
        },
        parity={**job.parity, "fp32": measured["fp32"]},
    )
    data = model_bytes(job.graph, finished)
    write_atomic(out, data)
    fp32_bytes = len(model_bytes(fp32.graph, replace(finished, precision="fp32")))
    return Exported(
        out, len(data), fp32_bytes, finished, measured["fp32"], measured["shipped"], job.max_abs_diff, fp32_model
    )


def check_printable(out: Path, license: str) -> None:
    """Raise UsageError if the model's name or licence, both stored in the contract, would disturb the line it is shown in."""
    for option, text in ((f"-o {out}", out.stem), (f"--license {license}", license)):
        if escape_controls(text) != text:
            raise UsageError(
                f"{option}: contains a line break, a control character or a mark that reverses the direction of text; give"
                " one line without them"
            )


def check_replaceable(out: Path, run: Run) -> None:
    """Raise UsageError if `out` exists and is not an earlier model of the run's classes: nothing could bring it back.

    A model with at least one of the run's classes, apart from unknown, counts as one: classes come and go between trainings.
    """
    if not out.is_file():
        return
    try:
        there = read_sealed(out.read_bytes()).contract
    except ModelError:
        raise UsageError(
            f"{out}: already exists, and is not a complete model of confit-edge; choose another -o, or remove it"
        ) from None
    labels = [label for label in there.labels if label not in (there.unknown_label, UNKNOWN)]
    if set(labels).isdisjoint(run.info.classes):
        listed = format_list(labels, MAX_NAMED) or "none, as of a speaker model"
        raise UsageError(
            f"{out}: already exists, and is a model of other classes ({listed}) than {run.path}; choose another -o, or remove it"
        )


def _check_request(out: Path, encoder: Encoder, scheme: Scheme | None, fuse: bool) -> None:
    """Raise UsageError for a request that cannot be met; `scheme` is None if nothing is quantised."""
    check_suffix(out, ".onnx", "a model file's name")
    check_utf8(Path(out.name))
    check_no_device_file(out)
    if scheme == "dynamic" and encoder.streaming:
        raise UsageError(
            "--scheme dynamic: not for a streaming model: it takes its scales from each call, so a result would depend on"
            " how the stream is split into calls and on the other streams of a batch; use static or weight-only"
        )
    if fuse and not can_fuse(encoder):
        raise UsageError(f"--fuse-activations: {encoder.family} has no activation that can be replaced; leave it out")
