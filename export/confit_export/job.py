"""The stages of an export: assemble the graph, exchange activations, check streaming, quantise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from confit_edge.data.corpus import Corpus
from confit_edge.encoders.base import Encoder
from confit_edge.runs import Run
from confit_export import gate
from confit_export.calibration import calibration_feeds
from confit_export.cost import count_cost
from confit_export.fuse import fuse_activations
from confit_export.gate import Predictions, Verdict
from confit_export.graph import StreamingModel, WindowedModel, assemble, to_onnx
from confit_export.model_file import draft_contract, load_provisional
from confit_export.qat import fine_tune
from confit_export.quantisation import Quantisation
from confit_export.quantize import INT8_SCHEMES, PRECISION, Quantizer
from confit_export.rewrite import keep_states_int8
from confit_export.search import Say, SearchResult, layers_to_quantize, search
from confit_export.sensitivity import validation_windows
from confit_export.targets import preset
from confit_runtime.contract import Contract
from confit_runtime.errors import ConfitError
from confit_runtime.files import default_cache
from confit_runtime.gemm import saturates
from confit_runtime.model import Model

PARITY_S = 12.0  # seconds of sound to compare, streamed and at once
LISTED_LAYERS = 5  # how many of the worst layers an export that fails names


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


@dataclass
class ExportJob:
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
        if quantisation.scheme in INT8_SCHEMES and preset(quantisation.target).weight_bits == 8 and saturates():
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
        fixed_ranges = bool(quantizer.with_fixed_range(found.layers))
        advice = quantisation.advice(verdict, found.sweep, fixed_ranges)
        self._fail_unless_forced(verdict.failures, *_largest_errors(found), advice)
        self.graph = found.graph
        keep_states_int8(self.graph)
        precision = stored_as if found.layers else "fp32"
        by_layer = dict.fromkeys(found.layers, stored_as)
        self.contract = self.assembled.contract(self.run, self.graph, by_layer, precision=precision, **self.metadata)
        self.parity |= _parity(found, quantisation, fixed_ranges)

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
                quantizer(layers_to_quantize(quantizer.layers, quantisation.keep_fp32)), precision="int8"
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


def _largest_errors(found: SearchResult) -> list[str]:
    """The layers with the largest error, in words; empty if none was measured."""
    errors = found.sweep.errors if found.sweep else {}
    worst = ", ".join(f"{layer} {error:.4f}" for layer, error in list(errors.items())[:LISTED_LAYERS])
    return [f"largest errors (1 - cosine) when quantised alone: {worst}"] if worst else []


def _parity(found: SearchResult, quantisation: Quantisation, fixed_ranges: bool) -> dict[str, Any]:
    """How the quantised graph was made, and how it compares with fp32."""
    report: dict[str, Any] = {
        "scheme": quantisation.scheme,
        "target": quantisation.target,
        "kept_fp32": found.kept,
        **found.verdict.to_dict(),
    }
    if fixed_ranges:
        report["calibration"] = quantisation.calibration
    if quantisation.scheme in INT8_SCHEMES and found.layers:
        report["weight_bits"] = preset(quantisation.target).weight_bits
    if found.sweep:
        report["sweep"] = {"errors": found.sweep.errors, "unmeasured": found.sweep.unmeasured}
    return report
