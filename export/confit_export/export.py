"""`export`: a run becomes one model file, if it passes the gate; else there is no file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from confit_edge import __version__
from confit_edge.data.augment import Augmenter, Pcm
from confit_edge.data.corpus import Clips, Corpus
from confit_edge.encoders.base import Encoder, centred
from confit_edge.pairtune.embedding import embed_clips
from confit_edge.pairtune.items import make_augmenter
from confit_edge.probes.metrics import accuracy
from confit_edge.runs import Run, weights_sha256
from confit_export import thresholds
from confit_export.enrollment import cohort_rows, enrollment_prior
from confit_export.graph import StreamingModel, WindowedModel, ancestors, assemble, to_onnx
from confit_export.quantize import quantize_static
from confit_runtime.contract import SCHEMA, Contract, seal
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.model import Model, load

GATE = 0.01  # the share of validation clips that quantisation may lose
STREAM_TOLERANCE = 1e-4  # streaming against offline, fp32
CALIBRATION_CLIPS = 128
Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What was written, and how it measured: accuracies 0..1 on the clips of each split."""

    path: Path
    bytes: int
    contract: Contract
    fp32: dict[str, Any]
    shipped: dict[str, Any]
    stream_max_abs_diff: float


def export_run(
    run: Run, corpus: Corpus, out: Path, *, quantize: bool = True, license: str = "unspecified", say: Say
) -> Exported:
    """Write `out`, one ONNX file with its contract.

    Raises ConfitError, leaving no file, when streaming differs from offline, or when int8 loses more than one point of
    validation accuracy.
    """
    if out.suffix != ".onnx":
        raise UsageError(f"{out}: a model file's name ends with .onnx")
    out.parent.mkdir(parents=True, exist_ok=True)
    encoder = run.encoder.eval()
    model = assemble(encoder, run.linear)
    rows = cohort_rows(corpus, run.recipe.seed)
    windows = _windows(encoder, corpus, run, rows)
    cohort = embed_clips(encoder, list(windows), torch.device("cpu"))
    fp32 = to_onnx(model, encoder, cohort)
    say(f"assembled the graph: {len(model.state)} states, {len(fp32.graph.node)} nodes")

    contract = _contract(run, model, encoder, fp32, "fp32", corpus, out.stem, license)
    fp32_model = _provisional(out, fp32, contract)
    difference = stream_difference(fp32_model, encoder, corpus)
    if difference > STREAM_TOLERANCE:
        raise ConfitError(
            f"{out}: not written: streaming differs from offline by {difference:.2g} (allowed {STREAM_TOLERANCE:g})"
        )
    say(f"streaming equals offline: largest difference {difference:.1e}")
    measured = {"fp32": _measure(fp32_model, corpus, run.recipe.seed)}

    graph, precision = fp32, "fp32"
    if quantize:
        graph, precision = quantize_static(fp32, _calibration(encoder, model, corpus, run), model.fp32_scopes), "int8"
        contract = _contract(run, model, encoder, graph, precision, corpus, out.stem, license)
        int8_model = _provisional(out, graph, contract)
        measured["int8"] = _measure(int8_model, corpus, run.recipe.seed)
        lost = measured["fp32"]["val"]["accuracy"] - measured["int8"]["val"]["accuracy"]
        say(f"int8 on validation: {_percent(measured['int8'])} against {_percent(measured['fp32'])} in fp32")
        if lost > GATE + 1e-9:
            raise ConfitError(
                f"{out}: not written: int8 loses {100 * lost:.1f} points on validation"
                f" (allowed {100 * GATE:g}); export with --no-quantize"
            )
    # the cohort is compared with what this very file makes of a clip, so it is made by it
    embedder = _provisional(out, graph, contract)
    cohort = np.stack([embedder.embed(window, encoder.sample_rate) for window in windows])
    _replace_cohort(graph, cohort)

    chosen = thresholds.choose(_provisional(out, graph, contract), corpus, seed=run.recipe.seed)
    say(
        f"thresholds from a validation stream of {chosen.report['seconds'] / 60:.1f} minutes: "
        f"{chosen.report['found']} of {chosen.report['words']} found, {chosen.report['false_accepts']} false accepts"
    )
    val = np.stack([embedder.embed(clip, encoder.sample_rate) for clip in corpus.val.pcm])
    labels = corpus.training_clips().labels[rows]
    contract = replace(
        contract,
        thresholds=chosen.thresholds,
        smoothing_hops=chosen.smoothing_hops,
        min_hops=chosen.min_hops,
        metrics=measured[precision],
        parity={"stream_max_abs_diff": difference, "fp32": measured["fp32"]},
        calibration={
            "enroll": enrollment_prior(val, corpus.val.labels, cohort, labels, run.recipe.seed),
            "detection": chosen.report,
        },
    )
    sealed = seal(graph.SerializeToString(deterministic=True), contract)
    write_bytes(out, sealed)
    return Exported(out, len(sealed), contract, measured["fp32"], measured[precision], difference)


def stream_difference(model: Model, encoder: Encoder, corpus: Corpus, seconds: float = 12.0) -> float:
    """The largest difference of an embedding between the model file fed in random parts, and torch on the whole."""
    joined = np.concatenate(corpus.val.pcm or corpus.train.pcm)
    hop, contract = encoder.hop, model.contract
    count = min(len(joined), int(seconds * encoder.sample_rate))
    audio = np.pad(joined[:count], (0, max(0, encoder.window - count)))
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


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _windows(encoder: Encoder, corpus: Corpus, run: Run, rows: list[int]) -> npt.NDArray[np.float32]:
    """The cohort's clips as windows: words centred as they are, background cropped."""
    clips, rng = corpus.training_clips(), np.random.default_rng([run.recipe.seed, 6])
    return Augmenter(encoder.window)([clips.pcm[row] for row in rows], rng)


def _calibration(
    encoder: Encoder, model: StreamingModel | WindowedModel, corpus: Corpus, run: Run
) -> list[dict[str, npt.NDArray[np.float32]]]:
    """Feeds for static ranges: training clips, half of them as recorded and half augmented."""
    clips, rng = corpus.training_clips(), np.random.default_rng([run.recipe.seed, 7])
    augment = make_augmenter(encoder, corpus, run.recipe)
    chosen = [clips.pcm[int(row)] for row in rng.permutation(len(clips))[:CALIBRATION_CLIPS]]
    half = len(chosen) // 2
    windows = [
        centred(torch.from_numpy(np.array(clip[: encoder.window])), encoder.window).numpy() for clip in chosen[:half]
    ]
    windows += list(augment(chosen[half:], rng))
    state = {name: np.zeros((1, *shape), np.float32) for name, shape in model.state.items()}
    return [{"pcm": window[None], **state} for window in windows]


def _contract(
    run: Run,
    model: StreamingModel | WindowedModel,
    encoder: Encoder,
    graph: onnx.ModelProto,
    precision: str,
    corpus: Corpus,
    name: str,
    license: str,
) -> Contract:
    info = run.info
    return Contract(
        schema=SCHEMA,
        name=name,
        labels=list(info.classes),
        multi_label=info.multi_label,
        unknown_label=info.unknown,
        sample_rate=encoder.sample_rate,
        hop=encoder.hop,
        window=encoder.window,
        pool_hops=getattr(encoder, "pool_hops", 1),
        warmup_hops=encoder.window // encoder.hop - 1 if model.state else 0,
        latency_samples=encoder.window // 2,
        state=dict(model.state),
        thresholds={label: {"on": 0.5, "off": 0.3} for label in info.classes},
        smoothing_hops=1,
        min_hops=2,
        refractory_s=thresholds.REFRACTORY_S,
        encoder={"name": info.recipe["encoder"], "weights_sha256": weights_sha256(encoder)},
        embedding_id=_embedding_id(graph),
        embedding_dim=encoder.dim,
        precision=precision,
        data={key: info.data[key] for key in ("fingerprint", "clips", "groups")},
        metrics={},
        parity={},
        calibration={},
        license=license,
        version=__version__,
    )


def _embedding_id(graph: onnx.ModelProto) -> str:
    """A hash of everything up to the embedding: thresholds, head and cohort may change without orphaning a gallery."""
    nodes, tensors = ancestors(graph.graph, "embedding")
    digest = hashlib.sha256()
    for part in [*nodes, *sorted(tensors, key=lambda tensor: tensor.name)]:
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()[:32]


def _provisional(out: Path, graph: onnx.ModelProto, contract: Contract) -> Model:
    """The model as the runtime would load it, from a file that is gone again before it is used."""
    temporary = out.with_name(f".{out.stem}.provisional.onnx")
    try:
        temporary.write_bytes(seal(graph.SerializeToString(deterministic=True), contract))
        return load(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _replace_cohort(graph: onnx.ModelProto, cohort: npt.NDArray[np.float32]) -> None:
    place = next(tensor for tensor in graph.graph.initializer if tensor.name == "cohort_prints")
    place.CopyFrom(onnx.numpy_helper.from_array(cohort.astype(np.float32), "cohort_prints"))


def _measure(model: Model, corpus: Corpus, seed: int) -> dict[str, Any]:
    """Accuracy of the file itself, through the runtime: validation, and test where there is one."""
    return {
        name: _accuracy(model, clips, corpus, seed)
        for name, clips in (("val", corpus.val), ("test", corpus.test))
        if len(clips)
    }


def _accuracy(model: Model, clips: Clips, corpus: Corpus, seed: int) -> dict[str, float]:
    right = [_right(model, pcm, target, corpus) for pcm, target in zip(clips.pcm, clips.targets, strict=True)]
    return accuracy(np.array(right), clips.groups, seed).to_dict()


def _right(model: Model, pcm: Pcm, target: npt.NDArray[np.int8], corpus: Corpus) -> bool:
    return bool(target[corpus.classes.index(model.classify(pcm, model.contract.sample_rate).label)])


def _percent(measured: dict[str, Any]) -> str:
    return f"{100 * measured['val']['accuracy']:.1f} %"
