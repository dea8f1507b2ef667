"""A model file on a device: one large immutable `Model`, and a small `Stream` for each microphone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import Floats, check_count, is_number
from confit_runtime.audio import SOUND_SUFFIXES, Pcm, check_rate, check_samples, load_clip, resample, to_mono
from confit_runtime.batch import Batch
from confit_runtime.chunk_scorer import ChunkScorer
from confit_runtime.contract import DIGEST_KEY, Contract, read_sealed
from confit_runtime.detect import NO_HOLD, Hold
from confit_runtime.device_file import device_path, read_device_file
from confit_runtime.errors import AudioError, ModelError, UsageError
from confit_runtime.gemm import saturates
from confit_runtime.names import format_known_names
from confit_runtime.session import State, bind, open_session
from confit_runtime.shipped import did_you_mean, shipped_model
from confit_runtime.synthetic import common_sounds

if TYPE_CHECKING:
    from confit_runtime.gallery import Gallery
    from confit_runtime.gates import Gate
    from confit_runtime.stream import Stream


Thresholds = dict[str, dict[str, float]]  # per label, as in a contract
STATE_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classification:
    """What one clip is: the best label, its score, and every label's score (0..1).

    `labels` lists the labels heard in the clip, best first. For a single-label model that is `label` alone. For a
    multi-label model it is every label that reaches its threshold (0.5 for a label set never to fire), so it may be
    empty; the unknown class is then never the best.
    """

    label: str
    score: float
    scores: dict[str, float]
    labels: tuple[str, ...]


def load(model: str | Path, *, threads: int = 1, calibrated: bool = True) -> Model:
    """Load a model file, or a shipped model by its name (`load("digits")`).

    If `confit-edge calibrate` wrote `MODEL.device.json` next to the file (or next to the file that a link points to),
    the detection settings come from there, unless `calibrated` is False. `threads` is the number of onnxruntime
    threads, 1 or more; one is fastest for models this small.

    Raises UsageError if there is no such model or `threads` is not a valid number, and ModelError if a file cannot be
    read, is damaged, was not made by confit-edge, or is the calibration of another model.
    """
    if not isinstance(model, str | Path):
        raise UsageError(f"load takes a model file or the name of a shipped model, not {model!r}")
    threads = check_count(threads, "the number of threads", 1)
    path = Path(model)
    try:
        path = _find(model, path)
        contract, _, digest, sealed = read_sealed(path.read_bytes())
        # onnxruntime reads the file itself: it would keep a copy of bytes passed to it
        session = open_session(path, threads)
        if session.get_modelmeta().custom_metadata_map.get(DIGEST_KEY) != sealed:
            raise ModelError("changed while it was being read (load it again)")
        _check_signature(contract, session)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if contract.parity.get("weight_bits") == 8 and saturates():
        log.warning(
            "%s: its 8-bit weights give wrong results on this processor (x86 without VNNI); export it with --target portable",
            path,
        )
    if calibrated and (device_file := device_path(path)).exists():
        contract = read_device_file(device_file).apply(contract, digest, device_file)
    return Model(path, contract, session, digest)


def _find(model: str | Path, path: Path) -> Path:
    """Return the path of a model file or of a shipped model.

    Raises UsageError if there is none, OSError if access is denied.
    """
    if not str(model).strip():
        raise UsageError("the model name is empty: give a model file or the name of a shipped model")
    if path.is_file():
        if path.suffix.lower() in SOUND_SUFFIXES:
            raise UsageError(
                f"{model}: is a sound file, not a model file; `listen` takes it as --source {quote(str(path))}"
            )
        return path
    if (path / "run.json").is_file():
        export = f"confit-edge export {quote(str(path))} -o {quote(f'{path.name}.onnx')}"
        raise UsageError(f"{model}: is a training run, not a model file; export it first: {export}")
    if path.suffix or len(path.parts) != 1:
        what = "is a folder, not a model file" if path.is_dir() else "no such model file"
        raise UsageError(f"{model}: {what}{did_you_mean(path)}")
    return shipped_model(str(model))


def check_labels(model: str, labels: Sequence[str], consequence: str) -> None:
    """Raise UsageError if a model, such as one for voices, has none of the `labels` that a task needs.

    `consequence` says what is missing without them, such as "nothing to classify".
    """
    if not labels:
        raise UsageError(
            f"{model}: has no label that can fire, and thus {consequence}: use it with `enroll` and `identify`"
        )


def _check_signature(contract: Contract, session: Any) -> None:
    """Raise ModelError unless the graph's inputs and outputs match the contract (a free dimension matches any size)."""
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
        raise ModelError(f"its graph has the inputs {sorted(has_inputs)}, but its contract says {sorted(inputs)}")
    for name, shape in [*inputs.items(), *outputs.items()]:
        tensor = has_inputs.get(name) or has_outputs.get(name)
        if tensor is None:
            raise ModelError(f"its graph has no output {name!r}")
        agree = len(tensor.shape) == len(shape) and all(
            want is None or not isinstance(size, int) or size == want
            for size, want in zip(tensor.shape, shape, strict=True)
        )
        state = name.removesuffix("_out")
        kinds = {has_inputs[state].type} & STATE_TYPES.keys() if state in states else {"tensor(float)"}
        if tensor.type not in kinds or not agree:
            raise ModelError(f"its graph has {name!r} as {tensor.type} {tensor.shape}, but its contract says {shape}")


def _read_only(embeddings: Floats) -> Floats:
    embeddings.setflags(write=False)
    return embeddings


def _reopen(path: Path, threads: int, digest: str, contract: Contract, loaded: Thresholds) -> Model:
    """Load a pickled model in another process. Raises ModelError if the file has changed since."""
    model = load(path, threads=threads, calibrated=False)
    if model.digest != digest:
        raise ModelError(f"{path}: is no longer the model that was passed to this process: load it here again")
    return Model(path, contract, model._session, digest, loaded)


class Model:
    """A loaded model file: immutable and safe to share between threads.

    When it is passed to another process, that process opens the file again and applies the same settings.
    `digest` is the SHA-256 (hex) of the graph; copies that differ only in their thresholds have the same digest.
    """

    def __init__(
        self, path: Path, contract: Contract, session: Any, digest: str, loaded: Thresholds | None = None
    ) -> None:
        self.path, self.contract, self._session, self.digest = path, contract, session, digest
        # `with_thresholds` lowers `off` from these, whatever `on` levels were set before
        self._loaded = contract.thresholds if loaded is None else loaded

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[object, ...]]:
        threads = self._session.get_session_options().intra_op_num_threads
        return _reopen, (self.path.absolute(), threads, self.digest, self.contract, self._loaded)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.contract.labels

    @property
    def name(self) -> str:
        return self.contract.name

    @cached_property
    def one_window_per_call(self) -> bool:
        """Whether the graph takes one window per call, as it does when int8 scales are computed from each window."""
        return bool(next(entry for entry in self._session.get_inputs() if entry.name == "pcm").shape[0] == 1)

    @cached_property
    def cohort(self) -> Floats:
        """Embeddings `[n, dim]` of sounds that are not enrolled: open-set scores are measured against them."""
        return self._stored_embeddings("cohort")

    @cached_property
    def quiet(self) -> Floats:
        """Embeddings `[n, dim]` of quiet rooms, as stored in the file.

        They join the cohort when sounds are enrolled: no training set covers every kind of silence, and whatever is
        nearer to a quiet room than to any print is not an enrolled sound.
        """
        return self._stored_embeddings("quiet")

    @cached_property
    def plain(self) -> Floats:
        """Embeddings `[n, dim]` of synthetic beeps, hums, knocks and hisses, which are common in any house.

        If the model cannot tell an enrolled sound from one of these, it cannot tell it from any sound of that kind.
        """
        rate = self.contract.sample_rate
        return _read_only(np.stack([self.embed(sound, rate) for sound in common_sounds(self.contract.window, rate)]))

    def _stored_embeddings(self, output: str) -> Floats:
        """Embeddings `[n, dim]` that the file stores as an output of its graph; empty if there is no such output."""
        if output not in {entry.name for entry in self._session.get_outputs()}:
            return _read_only(np.zeros((0, self.contract.embedding_dim), np.float32))
        size = self.contract.hop if self.contract.streaming else self.contract.window
        feed = {"pcm": np.zeros((1, size), np.float32), **self.initial_state(1)}
        return _read_only(self._session.run([output], feed)[0])

    def initial_state(self, streams: int) -> State:
        """The state of `streams` streams (1 or more) that have heard nothing yet: zeros."""
        types = {tensor.name: STATE_TYPES.get(tensor.type) for tensor in self._session.get_inputs()}
        return {name: np.zeros((streams, *shape), types[name]) for name, shape in self.contract.state.items()}

    def run(self, pcm: Floats, state: State) -> tuple[Floats, Floats, State]:
        """Run the graph once.

        `pcm [streams, samples]` is at the contract's rate: a multiple of `hop` samples for a streaming model, exactly
        `window` for a windowed one. Returns `scores [streams, hops, classes]`, `embedding [streams, hops, dim]` and
        the next state.

        Checks nothing, and passes on what onnxruntime raises. Use `rows`, `stream` or `batch` for untrusted sound.
        """
        names = ["scores", "embedding", *(f"{name}_out" for name in state)]
        if self.one_window_per_call and len(pcm) > 1:
            each = [self._session.run(names, {"pcm": window[None]}) for window in pcm]
            scores, embedding = (np.concatenate(arrays) for arrays in zip(*each, strict=True))
            return scores, embedding, {}
        scores, embedding, *rest = self._session.run(names, {"pcm": pcm, **state})
        return scores, embedding, dict(zip(state, rest, strict=True))

    def bind(self, inputs: State, outputs: State) -> Callable[[], None]:
        """Return a function that runs the graph on these very arrays, reading `inputs` and writing `outputs`.

        It avoids creating arrays as `run` does, which takes a fifth of the time of a small model. Checks nothing
        either.
        """
        return bind(self._session, inputs, outputs)

    def with_thresholds(self, on: Mapping[str, float]) -> Model:
        """Return this model with other `on` levels for some labels; both share one engine.

        `on` maps labels to levels. Each `off` is the one that was loaded, lowered where it must be; levels set
        earlier, for example by a slider, leave no trace. Raises UsageError for a label that the model does not have,
        or a level that is not above 0 and at most 1.
        """
        if not isinstance(on, Mapping):
            raise UsageError(f"thresholds must be a mapping of labels to levels, got {on!r}")
        levels = dict(self.contract.thresholds)
        for label, level in on.items():
            if label not in self.labels:
                raise UsageError(
                    f"{self.name} has no label {label!r} (it has {format_known_names(label, self.labels)})"
                )
            if not is_number(level) or not 0.0 < level <= 1.0:  # with 0 a label fires only once: no score falls below
                raise UsageError(f"the threshold of {label!r} must be above 0 and at most 1; it is {level!r}")
            levels[label] = {**levels[label], "on": float(level), "off": min(float(level), self._loaded[label]["off"])}
        contract = dataclasses.replace(self.contract, thresholds=levels)
        return Model(self.path, contract, self._session, self.digest, self._loaded)

    def stream(
        self,
        gallery: Gallery | None = None,
        *,
        lead_in: bool | None = False,
        gate: Gate | None = None,
        ends: bool = False,
        hold: Hold = NO_HOLD,
    ) -> Stream:
        """Return a new stream that has heard nothing. With a gallery it also detects enrolled names.

        - `lead_in`: put silence before the sound, so that a sound at the very beginning of a recording is heard too.
          Without it the first scores come once the model's window is full, as suits a microphone. None: only if the
          stream is not `live`, which a `Listener` sets when it follows a recording.
        - `gate`: the stream does not run the model while this gate hears nothing worth scoring. Each stream needs its
          own.
        - `ends`: `take_events` also reports when a detected sound is over.
        - `hold`: for how long a sound that fired may pause and still count as the same sound.
        """
        from confit_runtime.stream import Stream

        return Stream(self, gallery, lead_in=lead_in, gate=gate, ends=ends, hold=hold)

    def batch(self, streams: int) -> Batch:
        """Return a batch of `streams` streams that run in step, in one call.

        Raises UsageError if `streams` is not a whole number of 1 or more.
        """
        return Batch(self, streams)

    def rows(self, pcm: npt.ArrayLike | str | Path, sample_rate: int | None = None) -> tuple[Floats, Floats]:
        """Scores `[hops, classes]` and embeddings `[hops, dim]` of a clip.

        A clip is a file, or samples `[samples]` or `[samples, channels]` with their rate in Hz: floats in -1..1, or
        int16 (int8, int32, uint8) of full scale. A clip shorter than the window is centred in it; a longer one is
        padded at its end to a whole hop.

        Raises UsageError if the file does not exist or the rate is missing. Raises AudioError if the file is not
        sound, for integers of another type (including a list of them), for NaN, infinite or absurdly large samples,
        and for an empty clip.
        """
        clip = self._clip(pcm, sample_rate)
        contract = self.contract
        if len(clip) < contract.window:
            left = (contract.window - len(clip)) // 2
            clip = np.pad(clip, (left, contract.window - len(clip) - left))
        clip = np.pad(clip, (0, -(len(clip) - contract.window) % contract.hop))
        scores, embedding = zip(*ChunkScorer(self).push(clip, last=True), strict=True)
        return np.concatenate(scores), np.concatenate(embedding)

    def embed(self, pcm: npt.ArrayLike | str | Path, sample_rate: int | None = None) -> Floats:
        """The embedding `[dim]` of a clip, of length 1: the mean over its hops.

        A clip is what `rows` takes: a file, or floats in -1..1 or int16 with their rate. Raises AudioError,
        UsageError.
        """
        mean = self.rows(pcm, sample_rate)[1].mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def classify(self, pcm: npt.ArrayLike | str | Path, sample_rate: int | None = None) -> Classification:
        """Classify a clip by the mean of its scores over its hops.

        The silence around the sound of a clip that is longer than the window is cut off first.

        A clip is what `rows` takes: a file, or floats in -1..1 or int16 with their rate. Raises AudioError, UsageError
        (also for a model without labels, such as one for voices), and ModelError if the model's scores are NaN.
        """
        from confit_runtime.voice_activity import trim_silence  # not imported on a device that only listens

        check_labels(self.name, self.contract.target_labels, "nothing to classify")
        clip, rate = self._clip(pcm, sample_rate), self.contract.sample_rate
        scores = self.rows(trim_silence(clip, rate) if len(clip) > self.contract.window else clip, rate)[0].mean(axis=0)
        if not np.isfinite(scores).all():
            raise ModelError(f"{self.path}: scores this clip as NaN: is the model damaged? Export it again")
        by_label = {label: float(score) for label, score in zip(self.labels, scores, strict=True)}
        ranked = sorted(by_label, key=lambda label: -by_label[label])
        heard = ranked[:1]
        if self.contract.multi_label:
            ranked = [label for label in ranked if label != self.contract.unknown_label]
            on = {label: levels["on"] for label, levels in self.contract.thresholds.items()}
            heard = [label for label in ranked if by_label[label] >= (on[label] if on[label] <= 1 else 0.5)]
        return Classification(ranked[0], by_label[ranked[0]], by_label, tuple(heard))

    def _clip(self, pcm: npt.ArrayLike | str | Path, sample_rate: int | None) -> Pcm:
        if isinstance(pcm, str | Path):
            return load_clip(pcm, self.contract.sample_rate)
        if sample_rate is None:
            raise UsageError("PCM samples need a sample_rate")
        clip = to_mono(pcm)
        if clip.size == 0:
            raise AudioError("the clip: holds no samples")
        check_samples(clip, "the clip")
        return resample(clip, check_rate(sample_rate), self.contract.sample_rate)
