"""`export`: turns a run into one model file if it passes the gate, and otherwise writes no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from confit_edge.data.augment import Augmenter
from confit_edge.data.corpus import Corpus
from confit_edge.data.tables import check_utf8
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import embed_clips
from confit_edge.runs import Run, check_same_data
from confit_export import gate, thresholds
from confit_export.calibration import Calibration, calibration_feeds
from confit_export.cost import count_cost
from confit_export.enrollment import cohort_rows, enrollment_prior, gallery_cohort, kind_of_run
from confit_export.fuse import can_fuse, fuse_activations
from confit_export.gate import Predictions, Verdict
from confit_export.graph import StreamingModel, WindowedModel, assemble, to_onnx
from confit_export.measure import accuracies, compare_on_test, count_softer, isolated_positives, share_fired
from confit_export.model_file import draft_contract, load_provisional, model_bytes, replace_embeddings
from confit_export.qat import fine_tune
from confit_export.quantize import PRECISION, Quantizer, Scheme
from confit_export.rewrite import keep_states_int8
from confit_export.rooms import embed_rooms
from confit_export.search import SearchResult, layers_to_quantise, search
from confit_export.sensitivity import validation_windows
from confit_export.targets import Target, preset
from confit_export.thresholds import LOWEST_LEVEL, SNR_DB, Setting
from confit_runtime.contract import Contract
from confit_runtime.describe import clip_noun, format_accuracy, format_map
from confit_runtime.device_file import check_no_device_file
from confit_runtime.enrollment import Kind
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.files import check_suffix, default_cache, make_folder, remove_leftovers, write_atomic
from confit_runtime.formatting import format_count
from confit_runtime.gemm import saturates
from confit_runtime.model import Model
from confit_runtime.names import escape_controls

SWEEP_MINUTES = 20.0
PARITY_S = 12.0  # seconds of sound to compare, streamed and at once
LISTED_LAYERS = 5  # how many of the worst layers an export that fails names
Say = Callable[[str], None]


@dataclass(frozen=True)
class AssembledModel:
    """An encoder, the model assembled from it for export, and that model's fp32 graph."""

    encoder: Encoder
    model: StreamingModel | WindowedModel
    graph: onnx.ModelProto

    @classmethod
    def from_encoder(cls, encoder: Encoder, run: Run, cohort: np.ndarray) -> AssembledModel:
        """Assemble `encoder`, which is the encoder of `run` or one that replaces it."""
        model = assemble(encoder, run.linear, run.typicality)
        return cls(encoder, model, to_onnx(model, encoder, cohort))

    def contract(self, run: Run, graph: onnx.ModelProto, layers: dict[str, str], **keys: Any) -> Contract:
        """Return the contract of `graph`: the fp32 graph, or that graph with `layers` in another precision."""
        cost = count_cost(self.model, self.encoder, self.graph, layers)
        return draft_contract(run, self.model, self.encoder, graph, cost=cost, **keys)


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


@dataclass(frozen=True)
class Quantisation:
    """How to quantise a model; each field has the meaning of the `confit-edge export` option of that name."""

    scheme: Scheme = "static"
    target: Target = "portable"
    calibration: Calibration = "minmax"
    keep_fp32: tuple[str, ...] = ()
    qat_epochs: int = 0
    sweep_minutes: float = SWEEP_MINUTES


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
    license: str = "unspecified",
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
    ranges = {"--target": quantisation.target != "portable", "--calibration": quantisation.calibration != "minmax"}
    if not quantize:
        others = {"--keep-fp32": quantisation.keep_fp32, "--qat-epochs": quantisation.qat_epochs}
        check_no_quantize_options({"--scheme": quantisation.scheme != "static", **ranges, **others})
    elif quantisation.scheme in ("weight-only", "fp16"):
        _check_no_effect(
            f"--scheme {quantisation.scheme}", "computes in fp32", {**ranges, "--qat-epochs": quantisation.qat_epochs}
        )
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
    job = _ExportJob(run, corpus, out, metadata, cohort, force, say, reference, fp32, fp32.graph, contract)
    job.max_abs_diff = stream_difference(fp32_model, encoder, corpus)
    if fuse:
        job.fuse()
    job.check_streaming()
    if quantize:
        job.quantize(quantisation)
    finished = _finish(run, corpus, out, job.graph, job.contract, windows, rows, kind or kind_of_run(run), say)
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


def check_no_quantize_options(options: Mapping[str, object]) -> None:
    """Raise UsageError for an option of quantisation given with --no-quantize."""
    _check_no_effect("--no-quantize", "nothing is quantised", options)


def check_printable(out: Path, license: str) -> None:
    """Raise UsageError if the model's name or licence, both stored in the contract, would disturb the line it is shown in."""
    for option, text in ((f"-o {out}", out.stem), (f"--license {license}", license)):
        if escape_controls(text) != text:
            raise UsageError(
                f"{option}: contains a line break, a control character or a mark that reverses the direction of text; give"
                " one line without them"
            )


def _check_no_effect(option: str, why: str, options: Mapping[str, object]) -> None:
    """Raise UsageError for options that have no effect together with `option`."""
    if given := [name for name, asked in options.items() if asked]:
        pronoun = "it" if len(given) == 1 else "them"
        raise UsageError(f"{option}: {why}, so {', '.join(given)} would have no effect; remove {pronoun} or {option}")


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


@dataclass
class _ExportJob:
    """An export in progress: the current model, how it compares with the run's own, and the failures that `force` let pass."""

    run: Run
    corpus: Corpus
    out: Path
    metadata: dict[str, str]
    cohort: np.ndarray
    force: bool
    say: Say
    reference: Predictions  # of the run's own fp32 model, on validation
    assembled: AssembledModel
    graph: onnx.ModelProto
    contract: Contract
    max_abs_diff: float = float("nan")  # the largest between streaming and offline
    parity: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def fuse(self) -> None:
        """Replace activations with ones that runtimes fuse."""
        self.assembled = AssembledModel.from_encoder(
            fuse_activations(self.assembled.encoder, self.corpus, self.run), self.run, self.cohort
        )
        self.graph = self.assembled.graph
        self.contract = self.assembled.contract(self.run, self.graph, {}, precision="fp32", **self.metadata)
        verdict = self._judge(self.graph, precision="fp32")
        self.say(f"activations replaced with fused ones: {verdict.summary}")
        self.parity["fused_activations"] = verdict.to_dict()
        self._fail_unless_forced(
            [f"with activations replaced, {failure}" for failure in verdict.failures],
            "export without --fuse-activations",
        )
        fused_diff = stream_difference(
            load_provisional(self.out, self.graph, self.contract), self.assembled.encoder, self.corpus
        )
        self.max_abs_diff = float(np.maximum(self.max_abs_diff, fused_diff))  # NaN if either is

    def check_streaming(self) -> None:
        """Check that the fp32 model, streamed in parts, gives what torch gives on the whole sound."""
        self.parity["stream_max_abs_diff"] = self.max_abs_diff
        if not self.max_abs_diff <= gate.STREAM:
            self._fail_unless_forced(
                [f"streaming differs from offline by {self.max_abs_diff:.2g} (at most {gate.STREAM:g} allowed)"]
            )
        else:
            self.say(f"streaming equals offline: largest difference {self.max_abs_diff:.1e}")

    def quantize(self, quantisation: Quantisation) -> None:
        """Quantise as many layers as the gate allows, and leave out the ones with the largest error."""
        if (
            quantisation.scheme in ("static", "dynamic")
            and preset(quantisation.target).weight_bits == 8
            and saturates()
        ):
            self.say(
                f"--target {quantisation.target}: this processor (x86 without VNNI) computes products of 8-bit weights wrongly,"
                " so the gate sees worse results than the target will; export on the target, or use --target portable"
            )
        quantizer = self._quantizer(self.assembled, quantisation)
        if quantisation.qat_epochs:
            quantizer = self._fine_tune(quantizer, quantisation)
        found = search(
            quantizer,
            partial(self._judge, precision="int8"),
            validation_windows(self.assembled.encoder, self.corpus, self.run.recipe.seed),
            quantisation.keep_fp32,
            cache=default_cache(),
            minutes=quantisation.sweep_minutes,
            say=self.say,
        )
        verdict, stored_as = found.verdict, PRECISION[quantisation.scheme]
        scheme_name = stored_as if stored_as.endswith("weights") else f"{quantisation.scheme} {stored_as}"
        self.say(f"{scheme_name} compared with fp32: {verdict.summary}")
        self._fail_unless_forced(verdict.failures, *_failure_advice(found, quantisation.qat_epochs))
        self.graph = found.graph
        keep_states_int8(self.graph)
        precision = stored_as if found.layers else "fp32"
        by_layer = dict.fromkeys(found.layers, stored_as)
        self.contract = self.assembled.contract(self.run, self.graph, by_layer, precision=precision, **self.metadata)
        self.parity |= _parity(found, quantisation)

    def _quantizer(self, assembled: AssembledModel, quantisation: Quantisation) -> Quantizer:
        feeds = calibration_feeds(assembled.graph, assembled.encoder, self.corpus, self.run)
        return Quantizer.calibrate(
            assembled.graph,
            quantisation.scheme,
            quantisation.target,
            assembled.model.fp32_scopes,
            feeds,
            quantisation.calibration,
        )

    def _fine_tune(self, before: Quantizer, quantisation: Quantisation) -> Quantizer:
        """Fine-tune for rounding; keep the result only if, quantised, it is closer to the run's own model than `before`."""
        encoder = fine_tune(
            self.assembled.encoder,
            self.corpus,
            self.run,
            preset(quantisation.target),
            quantisation.qat_epochs,
            self.say,
        )
        assembled = AssembledModel.from_encoder(encoder, self.run, self.cohort)
        after = self._quantizer(assembled, quantisation)
        cosine_before, cosine_after = (
            self._judge(
                quantizer(layers_to_quantise(quantizer.layers, quantisation.keep_fp32)), precision="int8"
            ).cosine
            for quantizer in (before, after)
        )
        if cosine_after <= cosine_before:
            self.say(
                f"fine-tuning did not bring it closer to fp32 (mean cosine {cosine_after:.4f}, without {cosine_before:.4f}),"
                " so it is not used"
            )
            self.parity["qat_epochs"] = 0
            return before
        self.say(f"fine-tuning brought it closer to fp32 (mean cosine {cosine_after:.4f}, without {cosine_before:.4f})")
        self.assembled, self.parity["qat_epochs"] = assembled, quantisation.qat_epochs
        return after

    def _judge(self, graph: onnx.ModelProto, *, precision: str) -> Verdict:
        """Compare `graph` with the run's own fp32 model on validation."""
        model = load_provisional(self.out, graph, replace(self.contract, precision=precision))
        return Verdict.compare(
            self.reference, Predictions.of(model, self.corpus.val, self.corpus), self.run.recipe.seed
        )

    def _fail_unless_forced(self, failures: Sequence[str], *advice: str) -> None:
        """If there are failures, raise ConfitError so that no file is written; with `force`, report and record them."""
        if not failures:
            return
        self.failures += failures
        message = "; ".join([*self.failures, *advice])
        if not self.force:
            raise ConfitError(f"{self.out}: not written: {message}")
        self.say(f"{self.out}: does not pass the gate, but --force writes it: {message}")


def stream_difference(model: Model, encoder: Encoder, corpus: Corpus) -> float:
    """The largest difference in an embedding between the model file fed in random parts and torch on the whole sound."""
    hop, contract, clips = encoder.hop, model.contract, corpus.val.pcm or corpus.train.pcm
    samples, joined = int(PARITY_S * encoder.sample_rate), np.zeros(0, np.float32)
    for clip in clips:  # only as many as are compared
        if len(joined) < samples:
            joined = np.concatenate([joined, clip[: samples - len(joined)]])
    audio = np.pad(joined, (0, max(0, encoder.window - len(joined))))
    audio = np.pad(audio, (0, -(len(audio) - encoder.window) % hop))
    offline = encoder.rows(torch.from_numpy(audio)).numpy()
    if not contract.streaming:
        return float(np.abs(model.rows(audio, encoder.sample_rate)[1] - offline).max())
    rng, parts, start, state = np.random.default_rng(0), [], 0, model.initial_state(1)
    while start < len(audio):
        size = hop * int(rng.integers(1, 6))
        _, embedding, state = model.run(audio[None, start : start + size], state)
        parts.append(embedding[0])
        start += size
    return float(np.abs(np.concatenate(parts)[contract.warmup_hops :] - offline).max())


def _failure_advice(found: SearchResult, qat_epochs: int) -> list[str]:
    """The layers with the largest error, in words, and what to try."""
    errors = found.sweep.errors if found.sweep else {}
    worst = ", ".join(f"{layer} {error:.4f}" for layer, error in list(errors.items())[:LISTED_LAYERS])
    largest_errors = [f"largest errors (1 - cosine) when quantised alone: {worst}"] if worst else []
    qat_option = "" if qat_epochs else "--qat-epochs 3, "
    return [
        *largest_errors,
        f"try --calibration percentile, {qat_option}another --scheme, or export with --no-quantize",
    ]


def _parity(found: SearchResult, quantisation: Quantisation) -> dict[str, Any]:
    """How the quantised graph was made, and how it compares with fp32."""
    report: dict[str, Any] = {
        "scheme": quantisation.scheme,
        "target": quantisation.target,
        "kept_fp32": found.kept,
        **found.verdict.to_dict(),
    }
    if quantisation.scheme in ("static", "dynamic") and found.layers:
        report |= {"calibration": quantisation.calibration, "weight_bits": preset(quantisation.target).weight_bits}
    if found.sweep:
        report["sweep"] = {"errors": found.sweep.errors, "unmeasured": found.sweep.unmeasured}
    return report


def _finish(
    run: Run,
    corpus: Corpus,
    out: Path,
    graph: onnx.ModelProto,
    contract: Contract,
    windows: np.ndarray,
    rows: list[int],
    kind: Kind,
    say: Say,
) -> Contract:
    """Put the cohort and the quiet rooms into the graph; return the contract with thresholds and the prior for names.

    Both are chosen on validation.
    """
    seed = run.recipe.seed
    # they are compared with embeddings that this very file computes, so it computes them too
    embedder = load_provisional(out, graph, contract)
    cohort = np.stack([embedder.embed(window, contract.sample_rate) for window in windows])
    quiet = embed_rooms(embedder)
    replace_embeddings(graph, "cohort", cohort)
    replace_embeddings(graph, "quiet", quiet)
    chosen = thresholds.choose(load_provisional(out, graph, contract), corpus, seed=seed)
    say(
        f"thresholds from a validation stream of {chosen.report['seconds'] / 60:.1f} minutes: "
        f"{chosen.report['found']} of {chosen.report['words']} found,"
        f" {format_count(chosen.report['false_accepts'], 'false accept')}"
    )
    if not finds_half(chosen.report):
        # with the chosen detection settings, so that sounds heard alone are smoothed as in the stream
        smoothed = replace(contract, smoothing_hops=chosen.smoothing_hops, min_hops=thresholds.MIN_HOPS[0])
        say(
            f"warning: a device would hear {_explain_low_recall(chosen, load_provisional(out, graph, smoothed), corpus)}."
            f" Train with {'' if corpus.background_train else '--background, or with '}more clips from more voices (or machines, or"
            " rooms), cut to their sound. For enrolled names the model may be good enough as it is"
        )
    val = np.stack([embedder.embed(clip, contract.sample_rate) for clip in corpus.val.pcm])
    cohort_and_targets = gallery_cohort(kind, cohort, corpus.training_clips().targets[rows], quiet)
    return replace(
        contract,
        thresholds=chosen.thresholds,
        smoothing_hops=chosen.smoothing_hops,
        min_hops=chosen.min_hops,
        calibration={
            "enroll": {
                "kind": kind,
                **enrollment_prior(
                    val, corpus.val.targets, *cohort_and_targets, seed, unknown_column=corpus.unknown_column
                ),
            },
            "detection": chosen.report,
        },
    )


def _explain_low_recall(chosen: Setting, model: Model, corpus: Corpus) -> str:
    """Say how many sounds were found, and why the lowest threshold tried would not help: false accepts, or none more found."""
    report, lowest = chosen.report, chosen.loosest
    found_of_all, found = f"{report['found']} of {report['words']} sounds", sum(lowest.found)
    if found > report["found"]:
        false_accepts = format_count(len(lowest.false_accepts), "false accept")
        return (
            f"{found_of_all}. Lower thresholds let too much else through: at {LOWEST_LEVEL:g} it would hear {found},"
            f" with {false_accepts}"
        )
    positives = isolated_positives(model, corpus.val, corpus)
    would_fire = sum(positive.level >= LOWEST_LEVEL for positive in positives)
    noise = "the validation part of the background" if corpus.background_val else "coloured noise"
    return (
        f"{found_of_all}, and no more with lower thresholds: over {noise}, {SNR_DB:g} dB softer than the sounds, the others"
        f" do not fire even at {LOWEST_LEVEL:g}. Heard alone, {would_fire} of {len(positives)} validation"
        f" {clip_noun(model.contract)} would"
    )


def finds_half(detection: Mapping[str, Any]) -> bool:
    """Whether the model found at least half of the sounds of the validation stream; `detection` is from `calibration`."""
    return bool(2 * detection["found"] >= detection["words"])
