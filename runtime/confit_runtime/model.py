"""A model file on a device: one heavy immutable `Model`, and a cheap `Stream` for each microphone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confit_runtime.audio import Pcm, StreamResampler, check_rate, read_audio, resample, to_mono
from confit_runtime.contract import Contract, unseal
from confit_runtime.detect import Detector, Hit, NameDetector
from confit_runtime.errors import AudioError, ModelError, UsageError
from confit_runtime.shipped import shipped_model

if TYPE_CHECKING:
    from confit_runtime.gallery import Gallery

Floats = npt.NDArray[np.float32]
State = dict[str, Floats]

HOPS_A_CALL = 256  # of a whole clip


@dataclass(frozen=True)
class Detection:
    """A sound that was heard, placed where it was (not where it was noticed).

    Samples count from the start of the stream, in the source's own rate; `score` is the smoothed score at the moment
    it fired, 0..1. `speaker` is set where a speaker model and a gallery named one.
    """

    model: str
    label: str
    score: float
    start_s: float
    end_s: float
    start_sample: int
    end_sample: int
    speaker: str | None = None


@dataclass(frozen=True)
class Classification:
    """What one clip is: the best label, its score, and every label's score (0..1)."""

    label: str
    score: float
    scores: dict[str, float]


def load(model: str | Path, *, threads: int = 1) -> Model:
    """Load a model file, or a shipped model by its name (`load("digits")`).

    `threads` is onnxruntime's; one is fastest for models this small. Raises UsageError when there is no such model and
    ModelError when the file is damaged or is not a confit-edge model.
    """
    path = Path(model)
    if not path.is_file():
        if path.suffix or len(path.parts) != 1:
            raise UsageError(f"{model}: no such model file")
        path = shipped_model(str(model))
    try:
        data = path.read_bytes()
        contract = unseal(data)
        session = _session(data, threads)
        _check_signature(contract, session)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return Model(path, contract, session)


def _session(data: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # spinning threads would eat a core between two hops of a microphone
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, which share no public base
        reason = " ".join(str(error).split())
        raise ModelError(f"onnxruntime {onnxruntime.__version__} cannot run this model ({reason})") from error


def _check_signature(contract: Contract, session: Any) -> None:
    """Raise ModelError unless the graph takes and gives what the contract says (a free dimension may be anything)."""
    states = {name: [None, *shape] for name, shape in contract.state.items()}
    inputs = {"pcm": [None, None if states else contract.window], **states}
    outputs = {
        "scores": [None, None, len(contract.labels)],
        "embedding": [None, None, contract.embedding_dim],
        **{f"{name}_out": shape for name, shape in states.items()},
    }
    has_inputs = {tensor.name: tensor for tensor in session.get_inputs()}
    has_outputs = {tensor.name: tensor for tensor in session.get_outputs()}
    if has_inputs.keys() != inputs.keys():
        raise ModelError(f"its graph takes {sorted(has_inputs)}, its contract says {sorted(inputs)}")
    for name, shape in [*inputs.items(), *outputs.items()]:
        tensor = has_inputs.get(name) or has_outputs.get(name)
        if tensor is None:
            raise ModelError(f"its graph does not give {name!r}")
        agree = len(tensor.shape) == len(shape) and all(
            want is None or not isinstance(size, int) or size == want
            for size, want in zip(tensor.shape, shape, strict=True)
        )
        if tensor.type != "tensor(float)" or not agree:
            raise ModelError(f"its graph has {name!r} as {tensor.type} {tensor.shape}, its contract says {shape}")


class Model:
    """A loaded model file: immutable and safe to share between threads."""

    def __init__(self, path: Path, contract: Contract, session: Any) -> None:
        self.path, self.contract, self._session = path, contract, session

    @property
    def labels(self) -> list[str]:
        return self.contract.labels

    @property
    def name(self) -> str:
        return self.contract.name

    @cached_property
    def cohort(self) -> Floats:
        """Embeddings `[n, dim]` of sounds that are not enrolled: what an open-set score is measured against."""
        if "cohort" not in {output.name for output in self._session.get_outputs()}:
            return np.zeros((0, self.contract.embedding_dim), np.float32)
        size = self.contract.hop if self.contract.streaming else self.contract.window
        feed = {"pcm": np.zeros((1, size), np.float32), **self.initial_state(1)}
        return self._session.run(["cohort"], feed)[0]

    def initial_state(self, streams: int) -> State:
        """The state of `streams` streams that have heard nothing: zeros."""
        return {name: np.zeros((streams, *shape), np.float32) for name, shape in self.contract.state.items()}

    def run(self, pcm: Floats, state: State) -> tuple[Floats, Floats, State]:
        """One call of the graph.

        `pcm [streams, samples]` at the contract's rate: a multiple of `hop` for a streaming model, exactly `window`
        for a windowed one. Returns `scores [streams, hops, classes]`, `embedding [streams, hops, dim]`, next state.
        """
        names = ["scores", "embedding", *(f"{name}_out" for name in state)]
        scores, embedding, *rest = self._session.run(names, {"pcm": pcm, **state})
        return scores, embedding, dict(zip(state, rest, strict=True))

    def with_thresholds(self, on: Mapping[str, float]) -> Model:
        """This model, sharing its engine, with other `on` levels for some labels (`off` is lowered where it must be).

        Raises UsageError on a label the model does not have or a level outside 0..1.
        """
        levels = dict(self.contract.thresholds)
        for label, level in on.items():
            if label not in self.labels:
                raise UsageError(f"{self.name} has no label {label!r} (it has {', '.join(self.labels)})")
            if not 0.0 <= level <= 1.0:
                raise UsageError(f"the threshold of {label!r} must be between 0 and 1, is {level}")
            levels[label] = {"on": level, "off": min(level, levels[label]["off"])}
        return Model(self.path, dataclasses.replace(self.contract, thresholds=levels), self._session)

    def stream(self, gallery: Gallery | None = None, *, lead_in: bool = False) -> Stream:
        """A new stream that has heard nothing; with a gallery, it also tells when an enrolled name is heard.

        A microphone is scored once it has filled the model's window. `lead_in` is for recordings: silence stands before
        them, so that a sound at the very beginning is heard too.
        """
        return Stream(self, gallery, lead_in=lead_in)

    def batch(self, streams: int) -> Batch:
        """`streams` streams in step with one another, run in one call."""
        return Batch(self, streams)

    def rows(self, pcm: npt.ArrayLike | str | Path, sample_rate: int | None = None) -> tuple[Floats, Floats]:
        """Scores `[hops, classes]` and embeddings `[hops, dim]` of a clip (a file, or PCM with its rate).

        A clip shorter than the window is centred in it; a longer one is padded at its end to a whole hop.
        """
        clip = self._clip(pcm, sample_rate)
        contract = self.contract
        if len(clip) < contract.window:
            left = (contract.window - len(clip)) // 2
            clip = np.pad(clip, (left, contract.window - len(clip) - left))
        clip = np.pad(clip, (0, -(len(clip) - contract.window) % contract.hop))
        if contract.streaming:
            state, parts, step = self.initial_state(1), [], HOPS_A_CALL * contract.hop
            for start in range(0, len(clip), step):  # in parts: a long recording must not need memory for all of it
                *rows, state = self.run(clip[None, start : start + step], state)
                parts.append(rows)
            scores, embedding = (np.concatenate([part[kind][0] for part in parts]) for kind in (0, 1))
            return scores[contract.warmup_hops :], embedding[contract.warmup_hops :]
        windows = np.lib.stride_tricks.sliding_window_view(clip, contract.window)[:: contract.hop]
        scores, embedding, _ = self.run(np.ascontiguousarray(windows), {})
        return scores[:, 0], embedding[:, 0]

    def embed(self, pcm: npt.ArrayLike | str | Path, sample_rate: int | None = None) -> Floats:
        """The embedding `[dim]` of a clip, of length 1: the mean over its hops. Raises AudioError, UsageError."""
        mean = self.rows(pcm, sample_rate)[1].mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def classify(self, pcm: npt.ArrayLike | str | Path, sample_rate: int | None = None) -> Classification:
        """What a clip is, by the mean of its scores over its hops. Raises AudioError, UsageError."""
        scores = self.rows(pcm, sample_rate)[0].mean(axis=0)
        best = int(scores.argmax())
        by_label = {label: float(score) for label, score in zip(self.labels, scores, strict=True)}
        return Classification(self.labels[best], float(scores[best]), by_label)

    def _clip(self, pcm: npt.ArrayLike | str | Path, sample_rate: int | None) -> Pcm:
        if isinstance(pcm, str | Path):
            clip, sample_rate = read_audio(pcm)
            source = str(pcm)
        else:
            if sample_rate is None:
                raise UsageError("PCM needs its sample_rate")
            clip, source = to_mono(pcm), "the clip"
        if clip.size == 0:
            raise AudioError(f"{source}: holds no samples")
        if not np.isfinite(clip).all():
            raise AudioError(f"{source}: holds NaN or infinite samples")
        return resample(clip, check_rate(sample_rate), self.contract.sample_rate)


class Batch:
    """Several streams in step: one call of the graph for all of them."""

    def __init__(self, model: Model, streams: int) -> None:
        if streams < 1:
            raise UsageError(f"a batch needs at least one stream, got {streams}")
        self.model, self.streams = model, streams
        self.reset()

    def reset(self) -> None:
        self._state = self.model.initial_state(self.streams)
        self._window = np.zeros((self.streams, self.model.contract.window), np.float32)
        self._hops = 0

    def push(self, pcm: Floats) -> tuple[Floats, Floats]:
        """Take one hop `[streams, hop]`; give scores `[streams, rows, classes]` and embeddings `[streams, rows, dim]`.

        `rows` is 1, or 0 until real audio fills the receptive field.
        """
        contract = self.model.contract
        if pcm.shape != (self.streams, contract.hop):
            raise UsageError(
                f"a batch of {self.streams} takes [{self.streams}, {contract.hop}] samples, got {list(pcm.shape)}"
            )
        self._hops += 1
        if contract.streaming:
            scores, embedding, self._state = self.model.run(pcm, self._state)
            ready = self._hops > contract.warmup_hops
        else:
            self._window = np.concatenate([self._window[:, contract.hop :], pcm], axis=1)
            ready = self._hops * contract.hop >= contract.window
            scores = np.zeros((self.streams, 1, len(contract.labels)), np.float32)
            embedding = np.zeros((self.streams, 1, contract.embedding_dim), np.float32)
            if ready:
                scores, embedding, _ = self.model.run(self._window, {})
        return scores[:, : int(ready)], embedding[:, : int(ready)]


class Stream:
    """One microphone or file: push audio of any rate in chunks of any length, get detections.

    The model always sees one hop a call, so events do not depend on how the audio was chopped. With a gallery its names
    are further classes: one fires when it is matched on `min_hops` rows in succession (at least two), and its score is
    the similarity. The names are those enrolled when the stream was made. Raises GalleryError when the gallery was
    enrolled with another model.
    """

    def __init__(self, model: Model, gallery: Gallery | None = None, *, lead_in: bool = False) -> None:
        self.model, self.lead_in = model, lead_in
        self._batch = model.batch(1)
        self._detector = Detector.from_contract(model.contract)
        self._names: NameDetector | None = None
        if gallery is not None:
            gallery.check(model)
            self._names = NameDetector(model.contract, gallery.matcher)
        self.reset()

    def reset(self) -> None:
        """Begin anew: the next sample pushed is sample 0 of silence, whatever was heard before."""
        self._rate: int | None = None
        self._origin = 0  # the source sample at which the audio since the last gap begins
        self._taken = 0  # source samples taken since then
        self._forget()

    def skip(self, samples: int) -> None:
        """Tell that the source dropped `samples` of its own samples: forget what was heard, and move the clock on.

        Without it, what was said before and after the gap would be heard as one, and times would be early from here on.
        """
        if samples < 0:
            raise UsageError(f"cannot skip {samples} samples")
        self._origin += self._taken + samples
        self._taken = 0
        self._forget()

    def _forget(self) -> None:
        self._batch.reset()
        self._detector.reset()
        if self._names is not None:
            self._names.reset()
        self._resampler: StreamResampler | None = None
        self._held = np.zeros(0, np.float32)
        self._hops = 0  # hops consumed since the start or the last gap

    def accept(self, pcm: npt.ArrayLike, sample_rate: int) -> list[Detection]:
        """Take `[samples]` or `[samples, channels]` at `sample_rate`; give the detections they complete.

        Raises AudioError on NaN or infinite samples, UsageError when the rate changes without `reset()`.
        """
        chunk = to_mono(pcm)
        if not np.isfinite(chunk).all():
            raise AudioError("the stream delivered NaN or infinite samples")
        if self._rate not in (None, sample_rate):
            raise UsageError(
                f"the stream began at {self._rate} Hz and now delivers {sample_rate} Hz: call reset() first"
            )
        if self.lead_in and self._rate is None:
            silence = math.ceil(self.model.contract.window * sample_rate / self.model.contract.sample_rate)
            chunk = np.concatenate([np.zeros(silence, np.float32), chunk])
            self._origin = -silence
        if self._resampler is None:
            self._resampler = StreamResampler(sample_rate, self.model.contract.sample_rate)
            self._rate = self._resampler.rate
        self._taken += len(chunk)
        return self._advance(self._resampler.push(chunk))

    def finish(self) -> list[Detection]:
        """Give the detections still on their way by following the audio with silence, then reset."""
        if self._resampler is None:
            self.reset()
            return []
        contract = self.model.contract
        tail = self._resampler.finish()
        silence = contract.latency_samples + contract.smoothing_hops * contract.hop
        silence += -(len(self._held) + len(tail) + silence) % contract.hop
        found = self._advance(np.concatenate([tail, np.zeros(silence, np.float32)]))
        self.reset()
        return found

    def _advance(self, pcm: Pcm) -> list[Detection]:
        contract = self.model.contract
        self._held = np.concatenate([self._held, pcm])
        found: list[Detection] = []
        while len(self._held) >= contract.hop:
            chunk, self._held = self._held[: contract.hop], self._held[contract.hop :]
            scores, embedding = self._batch.push(chunk[None])
            self._hops += 1
            found += [self._detection(hit, contract.labels) for hit in self._detector.push(scores[0])]
            if self._names is not None:
                found += [self._detection(hit, self._names.labels) for hit in self._names.push(embedding[0])]
        return found

    def _detection(self, hit: Hit, labels: Sequence[str]) -> Detection:
        """Where in the source a hit of the newest row was."""
        contract, rate = self.model.contract, self._rate
        assert rate is not None
        start = self._centre(self._hops - (hit.row - hit.start_row)) - contract.hop // 2
        # no later than what has been consumed: how far ahead the source is depends on the chopping
        end = min(self._centre(self._hops) + contract.hop // 2, self._hops * contract.hop)
        first, last = (
            max(0, self._origin + min(max(0, round(at * rate / contract.sample_rate)), self._taken))
            for at in (start, end)
        )
        return Detection(contract.name, labels[hit.label], hit.score, first / rate, last / rate, first, last)

    def _centre(self, hops: int) -> int:
        """The sample at the middle of the sound that the row after `hops` hops speaks of."""
        return hops * self.model.contract.hop - self.model.contract.latency_samples
