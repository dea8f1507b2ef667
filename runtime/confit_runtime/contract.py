"""The contract: what a model file says of itself, as JSON under `confit_edge` in the ONNX `metadata_props`.

`seal` writes it together with a digest of every other byte that matters, and `read_sealed` checks both before
onnxruntime sees the file: a truncated, damaged or foreign file is refused with one clear line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from confit_runtime.digest import sha256
from confit_runtime.errors import ModelError
from confit_runtime.frozen import frozen
from confit_runtime.names import shown
from confit_runtime.protobuf import bytes_field, fields, has_external_data, text_field
from confit_runtime.reports import check_calibration, check_data

SCHEMA = 2
CONTRACT_KEY = "confit_edge"
DIGEST_KEY = "confit_edge_sha256"

_MODEL_GRAPH, _MODEL_METADATA = 7, 14  # field numbers of onnx.ModelProto


@dataclass(frozen=True)
class Contract:
    """Everything a device needs to know of a model. Lengths are in samples at `sample_rate`, hops are rows of output.

    A row of output describes `window` samples and is made every `hop` samples; the sound it speaks of is centred
    `latency_samples` before the row's last sample. It hears up to `highest_hz`. `thresholds` maps a label to
    `{"on": t, "off": t}`, and, where a label has one of its own, `"refractory_s": s`; `on` may be above 1 for a label that must
    never fire. `state` maps each state input to its shape without the leading streams axis (it is float32, or uint8 where the
    graph says so; zeros are a valid start); an empty `state` means a windowed model. `cost` holds `parameters`,
    `macs_per_second {precision: n}` of audio, and `nodes {operator: {precision: n}}`. docs/format.md tells what each is for.
    """

    schema: int
    name: str
    labels: tuple[str, ...]
    multi_label: bool
    unknown_label: str | None
    sample_rate: int
    highest_hz: float
    hop: int
    window: int
    warmup_hops: int
    latency_samples: int
    state: dict[str, list[int]]
    thresholds: dict[str, dict[str, float]]
    smoothing_hops: int
    min_hops: int
    refractory_s: float
    encoder: dict[str, Any]
    embedding_id: str
    embedding_dim: int
    precision: str
    cost: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    parity: dict[str, Any]
    calibration: dict[str, Any]
    license: str
    version: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check_type(field.name, str(field.type), value)
            object.__setattr__(self, field.name, frozen(value))  # all streams of a model share it
        check_schema("contract schema", self.schema, SCHEMA, self.version, _anew(self.calibration))
        check_data(self.data)
        check_calibration(self.calibration)
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ModelError("contract key 'labels' must list at least one label, each once")
        for key in ("sample_rate", "hop", "window", "smoothing_hops", "min_hops", "embedding_dim"):
            if getattr(self, key) < 1:
                raise ModelError(f"contract key '{key}' must be at least 1, is {getattr(self, key)}")
        for key in ("warmup_hops", "latency_samples", "refractory_s"):
            if getattr(self, key) < 0:
                raise ModelError(f"contract key '{key}' must not be negative, is {getattr(self, key)}")
        for key, most in MOST.items():
            if getattr(self, key) > most:
                raise ModelError(f"contract key '{key}' is at most {most}, is {getattr(self, key)}")
        if not 0 < self.highest_hz <= self.sample_rate / 2:
            raise ModelError(
                f"contract key 'highest_hz' must lie above 0 and within half the rate, is {self.highest_hz}"
            )
        if max(self.window, self.latency_samples) > LONGEST_S * self.sample_rate:
            raise ModelError(f"contract keys 'window' and 'latency_samples' are at most {LONGEST_S} s")
        if self.unknown_label is not None and self.unknown_label not in self.labels:
            raise ModelError(
                f"contract key 'unknown_label' names {self.unknown_label!r}, which is not among the labels"
            )
        for label in self.labels:
            if shown(label) != label:
                raise ModelError(
                    f"contract key 'labels' holds control characters, line breaks or marks that turn a line around:"
                    f" {label[:60]!r}; export it again from a run whose labels hold none"
                )
            levels = self.thresholds.get(label, {})
            if not {"on", "off"} <= levels.keys() or levels["off"] > levels["on"]:
                raise ModelError(f"contract key 'thresholds' lacks on >= off for label {label!r}")
            if max(levels["on"], -levels["off"]) > FARTHEST:
                raise ModelError(f"contract key 'thresholds' has levels beyond {FARTHEST} for label {label!r}")
            if label != self.unknown_label and not levels["on"] > 0:
                raise ModelError(
                    f"contract key 'thresholds' needs on > 0 for label {label!r}, which would fire once only"
                )
            if not 0 <= levels.get("refractory_s", 0.0) <= MOST["refractory_s"] or levels.keys() - {
                "on",
                "off",
                "refractory_s",
            }:
                raise ModelError(
                    f"contract key 'thresholds' holds on, off and refractory_s (>= 0) only, for {label!r} too"
                )
        if self.window % self.hop:
            raise ModelError(f"contract key 'window' ({self.window}) must be a whole number of hops ({self.hop})")
        for state, shape in self.state.items():
            if not 1 <= len(shape) <= MOST_AXES or any(size < 1 for size in shape):
                raise ModelError(f"contract key 'state' gives {state!r} the shape {shape!s:.60}")
        if sum(map(math.prod, self.state.values())) > LARGEST_STATE:
            raise ModelError(f"contract key 'state' holds more than {LARGEST_STATE} numbers")
        if self.state and self.window != (self.warmup_hops + 1) * self.hop:
            raise ModelError("contract keys disagree: a streaming model's window is (warmup_hops + 1) * hop")

    @property
    def can_fire(self) -> list[str]:
        """The labels that can fire: not `unknown_label`, and none whose threshold no score reaches."""
        return [label for label in self.labels if label != self.unknown_label and self.thresholds[label]["on"] <= 1]

    @property
    def silenced(self) -> list[str]:
        """The labels that are set never to fire: those with a threshold that no score reaches, but not `unknown_label`."""
        fires = set(self.can_fire)
        return [label for label in self.target_labels if label not in fires]

    @property
    def streaming(self) -> bool:
        """Whether the model carries state from call to call (else it takes whole windows)."""
        return bool(self.state)

    @property
    def target_labels(self) -> list[str]:
        """The labels to listen for, `silenced` ones too: all but the one that stands for everything else."""
        return [label for label in self.labels if label != self.unknown_label]

    def to_json(self) -> str:
        """The contract as JSON: the same contract gives the same bytes."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Read and check. Raises ModelError naming the key at fault."""
        try:
            raw = json.loads(text)
            json.dumps(raw, ensure_ascii=False, allow_nan=False).encode()  # no NaN, infinity or half a surrogate pair
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the contract is not JSON ({error})") from error
        if not isinstance(raw, dict):
            raise ModelError("the contract is not a JSON object")
        if type(raw.get("schema")) is int:  # before its keys, which may be others
            check_schema("contract schema", raw["schema"], SCHEMA, raw.get("version"), _anew(raw.get("calibration")))
        known = {field.name for field in dataclasses.fields(cls)}
        if extra := sorted(raw.keys() - known):
            raise ModelError(f"the contract has unknown keys ({', '.join(extra)}): {of_a_newer(raw.get('version'))}")
        if missing := sorted(known - raw.keys()):
            raise ModelError(f"the contract lacks {', '.join(missing)}")
        return cls(**raw)


LONGEST_S = 120  # of a window
FARTHEST = 100  # from 0, of a level that scores, which lie in 0..1, are held against
MOST_AXES, LARGEST_STATE = 8, 10_000_000  # of what is carried from call to call, and the numbers in all of it
# beyond these no model listens, and what is made from them would fill the memory
MOST = {
    "sample_rate": 384_000,
    "embedding_dim": 65_536,
    "smoothing_hops": 10_000,
    "min_hops": 10_000,
    "refractory_s": 86_400,
}
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "float": (int, float),
    "str | None": (str, type(None)),
}


def check_schema(what: str, schema: int, known: int, version: object, anew: str) -> None:
    """Raise ModelError where a file is written by a `schema` that is not the `known` one.

    `version` is that of the confit-edge which wrote it; `anew` is how an older file is made again.
    """
    if schema < known:
        raise ModelError(f"{what} {schema} is of an older confit-edge, and this one reads {known}: {anew}")
    if schema > known:
        raise ModelError(f"{what} {schema} is newer than {known}, which this version reads: {of_a_newer(version)}")


def _anew(calibration: object) -> str:
    """How a model of an older schema is made again. Of one that ships who made a calibrated copy has no run."""
    anew = "export it again from its run"
    if isinstance(calibration, dict) and "device" in calibration:
        anew += ", or, where it is a calibrated copy of a model that ships, calibrate that again"
    return anew


def of_a_newer(version: object) -> str:
    """What to say of a file that a `version` wrote which knows more than this one."""
    from confit_runtime import __version__

    return f"written by confit-edge {shown(str(version))[:40]}, this is {__version__}: update confit-edge"


def _check_type(key: str, annotation: str, value: object) -> None:
    if annotation in _TYPES:
        good = isinstance(value, _TYPES[annotation]) and (annotation == "bool" or not isinstance(value, bool))
        good = good and value == value and value not in (float("inf"), float("-inf"))
    elif annotation == "tuple[str, ...]":
        good = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    elif annotation == "dict[str, list[int]]":
        good = isinstance(value, dict) and all(
            isinstance(shape, list) and all(type(size) is int for size in shape) for shape in value.values()
        )
    elif annotation == "dict[str, dict[str, float]]":
        good = isinstance(value, dict) and all(
            isinstance(levels, dict)
            and all(type(level) in (int, float) and level == level for level in levels.values())
            for levels in value.values()
        )
    else:
        good = isinstance(value, dict)
    if not good:
        kind = annotation.replace("tuple[str, ...]", "list[str]")  # as JSON has it
        raise ModelError(f"contract key '{key}' must be {kind}, is {str(value)[:60]!r}")


def seal(model: bytes, contract: Contract) -> bytes:
    """Append contract and digest to a serialised ONNX model that has no metadata of ours yet."""
    body = model + _metadata(CONTRACT_KEY, contract.to_json())
    return body + _metadata(DIGEST_KEY, sha256(body).hexdigest())


class Sealed(NamedTuple):
    """What a model file says of itself, its digests checked."""

    contract: Contract
    graph_size: int  # bytes of the ONNX model, which stands before contract and digest
    graph_digest: str  # SHA-256 of the graph
    digest: str  # SHA-256 of graph and contract, as it is written in the file


def read_sealed(model: bytes) -> Sealed:
    """A sealed model file's bytes, taken apart.

    Raises ModelError when the bytes are not a complete ONNX model of ours: truncated, damaged, or another tool's.
    """
    parts = list(fields(model))
    if not any(number == _MODEL_GRAPH for number, _, _, _ in parts):
        raise ModelError("is not an ONNX model, or was cut short (copy it again)")
    entries = {}
    for number, start, payload_start, end in parts:
        if number == _MODEL_METADATA:
            key, value = _entry(model[payload_start:end])
            entries[key] = (value, start, end)
    if CONTRACT_KEY not in entries:
        raise ModelError(
            "holds no confit_edge contract: it was not made by `confit-edge export`, or it was cut short (copy it again)"
        )
    if DIGEST_KEY not in entries:
        raise ModelError("has lost its digest: the file was cut short or edited (copy it again)")
    text, begin, _ = entries[CONTRACT_KEY]
    digest, start, end = entries[DIGEST_KEY]
    hashed = sha256(model[:begin])
    graph_digest = hashed.hexdigest()
    hashed.update(model[begin:start])
    if end != len(model) or hashed.hexdigest() != digest:
        raise ModelError(
            "does not match its own digest: the file was damaged or edited (copy it again, or export it anew)"
        )
    if has_external_data(model):
        raise ModelError("has weights in other files, of which its digest says nothing: export it anew, into one file")
    return Sealed(Contract.from_json(text), begin, graph_digest, digest)


def _metadata(key: str, value: str) -> bytes:
    return bytes_field(_MODEL_METADATA, text_field(1, key) + text_field(2, value))


def _entry(data: bytes) -> tuple[str, str]:
    texts = {number: data[payload:end] for number, _, payload, end in fields(data)}
    try:
        return texts.get(1, b"").decode(), texts.get(2, b"").decode()
    except UnicodeDecodeError as error:
        raise ModelError("holds metadata that is not text: the file was damaged") from error
