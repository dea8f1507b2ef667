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
from confit_edge.runs import Run, check_same_data, weights_sha256
from confit_export import gate, thresholds
from confit_export.calibration import Calibration, calibration_feeds
from confit_export.cost import count_cost
from confit_export.enrollment import cohort_rows, enrollment_prior, kind_of_run, strangers
from confit_export.fuse import can_fuse, fuse_activations
from confit_export.gate import Answers, Verdict
from confit_export.graph import StreamingModel, WindowedModel, assemble, to_onnx
from confit_export.measure import accuracies, alone, compare_on_test, share_that_fires, softer
from confit_export.model_file import draft, provisional, replace_rows, sealed
from confit_export.qat import fine_tune
from confit_export.quantize import PRECISION, Quantizer, Scheme
from confit_export.rewrite import int8_states
from confit_export.rooms import embed_rooms
from confit_export.search import Found, all_but, search
from confit_export.sensitivity import validation_windows
from confit_export.targets import Target, preset
from confit_export.thresholds import LOWEST, SNR_DB, Setting
from confit_runtime.contract import Contract, read_sealed
from confit_runtime.describe import heard_alone, ranked, share
from confit_runtime.device_file import refuse_calibrated
from confit_runtime.enrollment import Kind
from confit_runtime.errors import ConfitError, ModelError, UsageError
from confit_runtime.files import check_suffix, default_cache, make_folder, remove_left, write_whole
from confit_runtime.gemm import saturates
from confit_runtime.model import Model
from confit_runtime.names import shown
from confit_runtime.wording import counted

SWEEP_MINUTES = 20.0
COMPARED_S = 12.0  # seconds of sound to compare, streamed and at once
NAMED = 5  # how many of the worst layers an export that fails names
Say = Callable[[str], None]


@dataclass(frozen=True)
class Assembled:
    """An encoder, the model assembled from it for export, and that model's fp32 graph."""

    encoder: Encoder
    model: StreamingModel | WindowedModel
    graph: onnx.ModelProto

    @classmethod
    def of(cls, encoder: Encoder, run: Run, cohort: np.ndarray) -> Assembled:
        """Assemble `encoder`, which is the encoder of `run` or one that replaces it."""
        model = assemble(encoder, run.linear, run.typicality)
        return cls(encoder, model, to_onnx(model, encoder, cohort))

    def contract(self, run: Run, graph: onnx.ModelProto, layers: dict[str, str], **keys: Any) -> Contract:
        """Return the contract of `graph`: the fp32 graph, or that graph with `layers` in another precision."""
        cost = count_cost(self.model, self.encoder, self.graph, layers)
        return draft(run, self.model, self.encoder, graph, cost=cost, **keys)


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
    how: Quantisation = Quantisation(),
    fuse: bool = False,
    force: bool = False,
    kind: Kind | None = None,
    license: str = "unspecified",
    say: Say,
) -> Exported:
    """Write `out`, one ONNX file with its contract.

    With `quantize` the model is quantised as `how` says. `fuse` replaces activations with ones that runtimes fuse
    (`confit_export.fuse`); the fp32 model with the replacements must pass the gate too. `kind` is what enrolled names stand
    for, speakers or sounds; None takes the run's own kind (`kind_of_run`).

    Raises UsageError for options that do not fit together or do not fit the encoder, and for a `corpus` that the run was not
    trained on. Raises ConfitError, and writes no file, when streaming differs from offline or the quantised model does not
    pass the gate (`confit_export.gate`). With `force` the file is written anyway, and its contract's metrics say what failed.
    """
    out = Path(out)
    ranges = {"--target": how.target != "portable", "--calibration": how.calibration != "minmax"}
    if not quantize:
        others = {"--keep-fp32": how.keep_fp32, "--qat-epochs": how.qat_epochs}
        refuse_unquantised({"--scheme": how.scheme != "static", **ranges, **others})
    elif how.scheme in ("weight-only", "fp16"):
        _refuse_idle(f"--scheme {how.scheme}", "computes in fp32", {**ranges, "--qat-epochs": how.qat_epochs})
    refuse_steering(out, license)
    _check_request(out, run.encoder, how.scheme if quantize else None, fuse)
    check_same_data(run, corpus)
    make_folder(out.parent)
    remove_left(out)
    seed, encoder = run.recipe.seed, run.encoder.eval()
    rows = cohort_rows(corpus, seed)
    clips = corpus.training_clips()
    # words are centred as they are, background is cropped
    windows = Augmenter(encoder.window)([clips.pcm[row] for row in rows], np.random.default_rng([seed, 6]))
    cohort = embed_clips(encoder, list(windows), torch.device("cpu"))
    fp32 = Assembled.of(encoder, run, cohort)
    say(f"assembled the graph: {len(fp32.model.state)} states, {len(fp32.graph.graph.node)} nodes")

    named = {"name": out.stem, "license": license}
    contract = fp32.contract(run, fp32.graph, {}, precision="fp32", **named)
    fp32_model = provisional(out, fp32.graph, contract)
    reference = Answers.by(fp32_model, corpus.val, corpus)
    work = _Work(run, corpus, out, named, cohort, force, say, reference, fp32, fp32.graph, contract)
    work.difference = stream_difference(fp32_model, encoder, corpus)
    if fuse:
        work.fuse()
    work.check_streaming()
    if quantize:
        work.quantize(how)
    finished = _finish(run, corpus, out, work.graph, work.contract, windows, rows, kind or kind_of_run(run), say)
    shipped = provisional(out, work.graph, finished)
    measured = {
        "fp32": accuracies(fp32_model, reference, corpus),
        "shipped": accuracies(shipped, Answers.by(shipped, corpus.val, corpus), corpus),
    }
    if corpus.multi_label:
        say(f"mAP on validation: {ranked(measured['shipped']['val'])}")
        if not quantize and "test" in measured["shipped"]:
            say(f"mAP on test: {ranked(measured['shipped']['test'])}")
    if quantize and "test" in measured["shipped"]:
        compare_on_test(measured["fp32"]["test"], measured["shipped"]["test"], finished.precision, say)
    fired = share_that_fires(shipped, corpus)
    if fired:
        what = f"{'test' if len(corpus.test) else 'validation'} {heard_alone(finished)}"
        say(f"at these thresholds {share(fired)} of {fired['n']} {what} fire, each played alone between silences")
    soft = softer(shipped, corpus, run, say)
    finished = replace(
        finished,
        metrics={
            **measured["shipped"],
            **({"fired": fired} if fired else {}),
            **({"softer": soft} if soft else {}),
            "gate": {"passed": not work.failures, "failures": work.failures},
        },
        parity={**work.parity, "fp32": measured["fp32"]},
    )
    data = sealed(work.graph, finished)
    write_whole(out, data)
    fp32_bytes = len(sealed(fp32.graph, replace(finished, precision="fp32")))
    return Exported(
        out, len(data), fp32_bytes, finished, measured["fp32"], measured["shipped"], work.difference, fp32_model
    )


def refuse_unquantised(options: Mapping[str, object]) -> None:
    """Raise UsageError for an option of quantisation given with --no-quantize."""
    _refuse_idle("--no-quantize", "nothing is quantised", options)


def refuse_steering(out: Path, license: str) -> None:
    """Raise UsageError if the model's name or licence, both stored in the contract, would disturb the line it is shown in."""
    for option, text in ((f"-o {out}", out.stem), (f"--license {license}", license)):
        if shown(text) != text:
            raise UsageError(
                f"{option}: contains a line break, a control character or a mark that reverses the direction of text; give"
                " one line without them"
            )


def refuse_other_model(out: Path, run: Run) -> None:
    """Raise UsageError if `out` exists and was not exported from `run`: nothing could bring it back.

    Of a model whose weights the export changed (`fuse`, or `qat_epochs`), only the data is compared.
    """
    if not out.is_file():
        return
    try:
        there = read_sealed(out.read_bytes()).contract
    except ModelError:
        what = "and is not a complete model of confit-edge"
    else:
        changed = there.parity.get("qat_epochs") or "fused_activations" in there.parity
        if there.data["fingerprint"] == run.info.data["fingerprint"] and (
            changed or there.encoder["weights_sha256"] == weights_sha256(run.encoder)
        ):
            return
        what = "with the model of another run"
    raise UsageError(f"{out}: already exists, {what}; choose another -o, or remove it")


def _refuse_idle(option: str, why: str, options: Mapping[str, object]) -> None:
    """Raise UsageError for options that have no effect together with `option`."""
    if given := [name for name, asked in options.items() if asked]:
        them = "it" if len(given) == 1 else "them"
        raise UsageError(f"{option}: {why}, so {', '.join(given)} would have no effect; remove {them} or {option}")


def _check_request(out: Path, encoder: Encoder, scheme: Scheme | None, fuse: bool) -> None:
    """Raise UsageError for a request that cannot be met; `scheme` is None if nothing is quantised."""
    check_suffix(out, ".onnx", "a model file's name")
    check_utf8(Path(out.name))
    refuse_calibrated(out)
    if scheme == "dynamic" and encoder.streaming:
        raise UsageError(
            "--scheme dynamic: not for a streaming model: it takes its scales from each call, so a result would depend on"
            " how the stream is split into calls and on the other streams of a batch; use static or weight-only"
        )
    if fuse and not can_fuse(encoder):
        raise UsageError(f"--fuse-activations: {encoder.family} has no activation that can be replaced; leave it out")


@dataclass
class _Work:
    """An export in progress: the current model, how it compares with the run's own, and the failures that `force` let pass."""

    run: Run
    corpus: Corpus
    out: Path
    named: dict[str, str]
    cohort: np.ndarray
    force: bool
    say: Say
    reference: Answers  # of the run's own fp32 model, on validation
    made: Assembled
    graph: onnx.ModelProto
    contract: Contract
    difference: float = float("nan")  # the largest between streaming and offline
    parity: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def fuse(self) -> None:
        """Replace activations with ones that runtimes fuse."""
        self.made = Assembled.of(fuse_activations(self.made.encoder, self.corpus, self.run), self.run, self.cohort)
        self.graph = self.made.graph
        self.contract = self.made.contract(self.run, self.graph, {}, precision="fp32", **self.named)
        verdict = self._judge(self.graph, precision="fp32")
        self.say(f"activations replaced with fused ones: {verdict.told}")
        self.parity["fused_activations"] = verdict.to_dict()
        self._fail(
            [f"with activations replaced, {failure}" for failure in verdict.failures],
            "export without --fuse-activations",
        )
        its_own = stream_difference(provisional(self.out, self.graph, self.contract), self.made.encoder, self.corpus)
        self.difference = float(np.maximum(self.difference, its_own))  # NaN if either is

    def check_streaming(self) -> None:
        """Check that the fp32 model, streamed in parts, gives what torch gives on the whole sound."""
        self.parity["stream_max_abs_diff"] = self.difference
        if not self.difference <= gate.STREAM:
            self._fail([f"streaming differs from offline by {self.difference:.2g} (at most {gate.STREAM:g} allowed)"])
        else:
            self.say(f"streaming equals offline: largest difference {self.difference:.1e}")

    def quantize(self, how: Quantisation) -> None:
        """Quantise as many layers as the gate allows, and leave out the ones with the largest error."""
        if how.scheme in ("static", "dynamic") and preset(how.target).weight_bits == 8 and saturates():
            self.say(
                f"--target {how.target}: this processor (x86 without VNNI) computes products of 8-bit weights wrongly, so the"
                " gate sees worse results than the target will; export on the target, or use --target portable"
            )
        quantizer = self._quantizer(self.made, how)
        if how.qat_epochs:
            quantizer = self._fine_tuned(quantizer, how)
        found = search(
            quantizer,
            partial(self._judge, precision="int8"),
            validation_windows(self.made.encoder, self.corpus, self.run.recipe.seed),
            how.keep_fp32,
            cache=default_cache(),
            minutes=how.sweep_minutes,
            say=self.say,
        )
        verdict, written = found.verdict, PRECISION[how.scheme]
        quantised = written if written.endswith("weights") else f"{how.scheme} {written}"
        self.say(f"{quantised} compared with fp32: {verdict.told}")
        self._fail(verdict.failures, *_blame(found, how.qat_epochs))
        self.graph = found.graph
        int8_states(self.graph)
        precision = written if found.layers else "fp32"
        by_layer = dict.fromkeys(found.layers, written)
        self.contract = self.made.contract(self.run, self.graph, by_layer, precision=precision, **self.named)
        self.parity |= _parity(found, how)

    def _quantizer(self, made: Assembled, how: Quantisation) -> Quantizer:
        feeds = calibration_feeds(made.graph, made.encoder, self.corpus, self.run)
        return Quantizer.of(made.graph, how.scheme, how.target, made.model.fp32_scopes, feeds, how.calibration)

    def _fine_tuned(self, before: Quantizer, how: Quantisation) -> Quantizer:
        """Fine-tune for rounding; keep the result only if, quantised, it is closer to the run's own model than `before`."""
        tuned = fine_tune(self.made.encoder, self.corpus, self.run, preset(how.target), how.qat_epochs, self.say)
        made = Assembled.of(tuned, self.run, self.cohort)
        after = self._quantizer(made, how)
        was, is_ = (
            self._judge(quantizer(all_but(quantizer.layers, how.keep_fp32)), precision="int8").cosine
            for quantizer in (before, after)
        )
        if is_ <= was:
            self.say(
                f"fine-tuning did not bring it closer to fp32 (mean cosine {is_:.4f}, without {was:.4f}), so it is not used"
            )
            self.parity["qat_epochs"] = 0
            return before
        self.say(f"fine-tuning brought it closer to fp32 (mean cosine {is_:.4f}, without {was:.4f})")
        self.made, self.parity["qat_epochs"] = made, how.qat_epochs
        return after

    def _judge(self, graph: onnx.ModelProto, *, precision: str) -> Verdict:
        """Compare `graph` with the run's own fp32 model on validation."""
        model = provisional(self.out, graph, replace(self.contract, precision=precision))
        return Verdict.of(self.reference, Answers.by(model, self.corpus.val, self.corpus), self.run.recipe.seed)

    def _fail(self, failures: Sequence[str], *advice: str) -> None:
        """If there are failures, raise ConfitError so that no file is written; with `force`, report and record them."""
        if not failures:
            return
        self.failures += failures
        told = "; ".join([*self.failures, *advice])
        if not self.force:
            raise ConfitError(f"{self.out}: not written: {told}")
        self.say(f"{self.out}: does not pass the gate, but --force writes it: {told}")


def stream_difference(model: Model, encoder: Encoder, corpus: Corpus) -> float:
    """The largest difference in an embedding between the model file fed in random parts and torch on the whole sound."""
    hop, contract, clips = encoder.hop, model.contract, corpus.val.pcm or corpus.train.pcm
    wanted, joined = int(COMPARED_S * encoder.sample_rate), np.zeros(0, np.float32)
    for clip in clips:  # only as many as are compared
        if len(joined) < wanted:
            joined = np.concatenate([joined, clip[: wanted - len(joined)]])
    audio = np.pad(joined, (0, max(0, encoder.window - len(joined))))
    audio = np.pad(audio, (0, -(len(audio) - encoder.window) % hop))
    offline = encoder.rows(torch.from_numpy(audio)).numpy()
    if not contract.streaming:
        return float(np.abs(model.rows(audio, encoder.sample_rate)[1] - offline).max())
    rng, parts, at, state = np.random.default_rng(0), [], 0, model.initial_state(1)
    while at < len(audio):
        step = hop * int(rng.integers(1, 6))
        _, embedding, state = model.run(audio[None, at : at + step], state)
        parts.append(embedding[0])
        at += step
    return float(np.abs(np.concatenate(parts)[contract.warmup_hops :] - offline).max())


def _blame(found: Found, qat_epochs: int) -> list[str]:
    """The layers with the largest error, in words, and what to try."""
    errors = found.sweep.errors if found.sweep else {}
    worst = ", ".join(f"{layer} {error:.4f}" for layer, error in list(errors.items())[:NAMED])
    blamed = [f"largest errors (1 - cosine) when quantised alone: {worst}"] if worst else []
    tuning = "" if qat_epochs else "--qat-epochs 3, "
    return [*blamed, f"try --calibration percentile, {tuning}another --scheme, or export with --no-quantize"]


def _parity(found: Found, how: Quantisation) -> dict[str, Any]:
    """How the quantised graph was made, and how it compares with fp32."""
    made: dict[str, Any] = {
        "scheme": how.scheme,
        "target": how.target,
        "kept_fp32": found.kept,
        **found.verdict.to_dict(),
    }
    if how.scheme in ("static", "dynamic") and found.layers:
        made |= {"calibration": how.calibration, "weight_bits": preset(how.target).weight_bits}
    if found.sweep:
        made["sweep"] = {"errors": found.sweep.errors, "unmeasured": found.sweep.unmeasured}
    return made


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
    embedder = provisional(out, graph, contract)
    cohort = np.stack([embedder.embed(window, contract.sample_rate) for window in windows])
    quiet = embed_rooms(embedder)
    replace_rows(graph, "cohort", cohort)
    replace_rows(graph, "quiet", quiet)
    chosen = thresholds.choose(provisional(out, graph, contract), corpus, seed=seed)
    say(
        f"thresholds from a validation stream of {chosen.report['seconds'] / 60:.1f} minutes: "
        f"{chosen.report['found']} of {chosen.report['words']} found,"
        f" {counted(chosen.report['false_accepts'], 'false accept')}"
    )
    if not hears(chosen.report):
        # with the chosen detection settings, so that sounds heard alone are smoothed as in the stream
        tried = replace(contract, smoothing_hops=chosen.smoothing_hops, min_hops=thresholds.MIN_HOPS[0])
        say(
            f"warning: a device would hear {_why_so_few(chosen, provisional(out, graph, tried), corpus)}. Train with"
            f" {'' if corpus.background_train else '--background, or with '}more clips from more voices (or machines, or rooms),"
            " cut to their sound. For enrolled names the model may be good enough as it is"
        )
    val = np.stack([embedder.embed(clip, contract.sample_rate) for clip in corpus.val.pcm])
    against = strangers(kind, cohort, corpus.training_clips().targets[rows], quiet)
    return replace(
        contract,
        thresholds=chosen.thresholds,
        smoothing_hops=chosen.smoothing_hops,
        min_hops=chosen.min_hops,
        calibration={
            "enroll": {
                "kind": kind,
                **enrollment_prior(val, corpus.val.targets, *against, seed, nobody=corpus.unknown_column),
            },
            "detection": chosen.report,
        },
    )


def _why_so_few(chosen: Setting, model: Model, corpus: Corpus) -> str:
    """Say how many sounds were found, and why the lowest threshold tried would not help: false accepts, or none more found."""
    report, lowest = chosen.report, chosen.loosest
    told, found = f"{report['found']} of {report['words']} sounds", sum(lowest.found)
    if found > report["found"]:
        falsely = counted(len(lowest.false_accepts), "false accept")
        return (
            f"{told}. Lower thresholds let too much else through: at {LOWEST:g} it would hear {found}, with {falsely}"
        )
    heard = alone(model, corpus.val, corpus)
    would = sum(one.level >= LOWEST for one in heard)
    under = "the validation part of the background" if corpus.background_val else "coloured noise"
    return (
        f"{told}, and no more with lower thresholds: over {under}, {SNR_DB:g} dB softer than the sounds, the others do not"
        f" fire even at {LOWEST:g}. Heard alone, {would} of {len(heard)} validation {heard_alone(model.contract)} would"
    )


def hears(detection: Mapping[str, Any]) -> bool:
    """Whether the model found at least half of the sounds of the validation stream; `detection` is from `calibration`."""
    return bool(2 * detection["found"] >= detection["words"])
