"""The contract: what a model file says about itself, as JSON under `confit_edge` in the ONNX `metadata_props`.

`seal` writes it together with a digest of every other byte that matters. `read_sealed` checks both before onnxruntime
sees the file, so that a truncated, damaged or foreign file is refused with one clear line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from confit_runtime.contract_checks import check_calibration, check_data
from confit_runtime.digest import sha256
from confit_runtime.errors import ModelError
from confit_runtime.frozen_dict import freeze
from confit_runtime.json_fields import check_schema, check_type, read_fields
from confit_runtime.names import escape_controls
from confit_runtime.protobuf import bytes_field, fields, has_external_data, text_field

SCHEMA = 2
# whoever calibrated a copy of a shipped model has no run
_REMAKE_HINT = "export it again from its run, or calibrate the shipped model again if it is a calibrated copy of one"
CONTRACT_KEY = "confit_edge"
DIGEST_KEY = "confit_edge_sha256"

_MODEL_GRAPH, _MODEL_METADATA = 7, 14  # field numbers of onnx.ModelProto


@dataclass(frozen=True)
class Contract:
    """Everything a device needs to know about a model. Lengths are in samples at `sample_rate`; a hop is one row of output.

    A row of output describes `window` samples and is made every `hop` samples; the sound it describes is centred
    `latency_samples` before the row's last sample. The model hears up to `highest_hz`.

    `thresholds` maps a label to `{"on": t, "off": t}`, plus `"refractory_s": s` if the label has its own; `on` may be
    above 1 for a label that must never fire. `state` maps each state input to its shape without the leading streams
    axis (it is float32, or uint8 if the graph says so; zeros are a valid start); an empty `state` means a windowed
    model. `cost` holds `parameters`, `macs_per_second {precision: n}` of audio, and `nodes {operator: {precision:
    n}}`. docs/format.md explains each key.
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
            check_type(f"contract key '{field.name}'", str(field.type), value)
            object.__setattr__(self, field.name, freeze(value))  # shared by all streams of a model
        check_schema("the contract schema", self.schema, SCHEMA, self.version, _REMAKE_HINT)
        check_data(self.data)
        check_calibration(self.calibration)
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ModelError("contract key 'labels' must list at least one label, and each label only once")
        for key in ("sample_rate", "hop", "window", "smoothing_hops", "min_hops", "embedding_dim"):
            if getattr(self, key) < 1:
                raise ModelError(f"contract key '{key}' must be at least 1; it is {getattr(self, key)}")
        for key in ("warmup_hops", "latency_samples", "refractory_s"):
            if getattr(self, key) < 0:
                raise ModelError(f"contract key '{key}' must not be negative; it is {getattr(self, key)}")
        for key, maximum in MAX_VALUES.items():
            if getattr(self, key) > maximum:
                raise ModelError(f"contract key '{key}' must be at most {maximum}; it is {getattr(self, key)}")
        if not 0 < self.highest_hz <= self.sample_rate / 2:
            raise ModelError(
                f"contract key 'highest_hz' must be above 0 and at most half the sample rate; it is {self.highest_hz}"
            )
        if max(self.window, self.latency_samples) > MAX_WINDOW_S * self.sample_rate:
            raise ModelError(f"contract keys 'window' and 'latency_samples' must be at most {MAX_WINDOW_S} s")
        if self.unknown_label is not None and self.unknown_label not in self.labels:
            raise ModelError(f"contract key 'unknown_label' is {self.unknown_label!r}, which is not one of the labels")
        for label in self.labels:
            if escape_controls(label) != label:
                raise ModelError(
                    "contract key 'labels' contains control characters, line breaks or marks that change the text"
                    f" direction: {label[:60]!r}; export it again from a run whose labels have none"
                )
            levels = self.thresholds.get(label, {})
            if not {"on", "off"} <= levels.keys() or levels["off"] > levels["on"]:
                raise ModelError(f"contract key 'thresholds' needs on >= off for label {label!r}")
            if max(levels["on"], -levels["off"]) > MAX_THRESHOLD:
                raise ModelError(f"contract key 'thresholds' has levels beyond {MAX_THRESHOLD} for label {label!r}")
            if label != self.unknown_label and not levels["on"] > 0:
                raise ModelError(
                    f"contract key 'thresholds' needs on > 0 for label {label!r}, which would otherwise fire only once"
                )
            if not 0 <= levels.get("refractory_s", 0.0) <= MAX_VALUES["refractory_s"] or levels.keys() - {
                "on",
                "off",
                "refractory_s",
            }:
                raise ModelError(
                    f"contract key 'thresholds' may hold only on, off and refractory_s (>= 0); check {label!r}"
                )
        if self.window % self.hop:
            raise ModelError(f"contract key 'window' ({self.window}) must be a whole number of hops ({self.hop})")
        for state, shape in self.state.items():
            if not 1 <= len(shape) <= MAX_STATE_AXES or any(size < 1 for size in shape):
                raise ModelError(f"contract key 'state' gives {state!r} the impossible shape {shape!s:.60}")
        if sum(map(math.prod, self.state.values())) > MAX_STATE_SIZE:
            raise ModelError(f"contract key 'state' holds more than {MAX_STATE_SIZE} numbers")
        if self.state and self.window != (self.warmup_hops + 1) * self.hop:
            raise ModelError("contract keys disagree: a streaming model's window must be (warmup_hops + 1) * hop")

    @property
    def can_fire(self) -> list[str]:
        """The labels that can fire: all but `unknown_label` and those whose threshold no score reaches."""
        return [label for label in self.labels if label != self.unknown_label and self.thresholds[label]["on"] <= 1]

    @property
    def silenced(self) -> list[str]:
        """The labels set never to fire: those, except `unknown_label`, whose threshold no score reaches."""
        fires = set(self.can_fire)
        return [label for label in self.target_labels if label not in fires]

    @property
    def streaming(self) -> bool:
        """Whether the model carries state from call to call (otherwise it takes whole windows)."""
        return bool(self.state)

    @property
    def target_labels(self) -> list[str]:
        """The labels to listen for, including `silenced` ones: all but the one that stands for everything else."""
        return [label for label in self.labels if label != self.unknown_label]

    def to_json(self) -> str:
        """The contract as JSON; the same contract always gives the same bytes.

        `json.loads` makes plain dicts and lists of it, for YAML or to change; those of the contract cannot be changed.
        """
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Read and check a contract. Raises ModelError naming the key at fault."""
        return cls(**read_fields(cls, text, "the contract", SCHEMA, _REMAKE_HINT))


MAX_WINDOW_S = 120  # longest window
NO_LICENSE = "unspecified"  # what `license` is if nobody gave one
MAX_THRESHOLD = 100  # furthest from 0 that a threshold may be; scores lie in 0..1
MAX_STATE_AXES, MAX_STATE_SIZE = 8, 10_000_000  # limits of the carried state: axes, and numbers in all of it
# no model that listens exceeds these; larger values would fill the memory
MAX_VALUES = {
    "sample_rate": 384_000,
    "embedding_dim": 65_536,
    "smoothing_hops": 10_000,
    "min_hops": 10_000,
    "refractory_s": 86_400,
}


def seal(model: bytes, contract: Contract) -> bytes:
    """Append contract and digest to a serialised ONNX model that does not have them yet."""
    body = model + _metadata(CONTRACT_KEY, contract.to_json())
    return body + _metadata(DIGEST_KEY, sha256(body).hexdigest())


class Sealed(NamedTuple):
    """What a model file says about itself, with its digests checked."""

    contract: Contract
    graph_size: int  # bytes of the ONNX model, which precedes contract and digest
    graph_digest: str  # SHA-256 of the graph
    digest: str  # SHA-256 of graph and contract, as written in the file


def read_sealed(model: bytes) -> Sealed:
    """Take the bytes of a sealed model file apart.

    Raises ModelError if they are not a complete confit-edge model: truncated, damaged, or made by another tool.
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
            "has no confit_edge contract: it was not made by `confit-edge export`, or it was cut short (copy it again)"
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
            "does not match its own digest: the file was damaged or edited (copy it again, or export it again)"
        )
    if has_external_data(model):
        raise ModelError("has weights in other files, which its digest does not cover: export it again, into one file")
    return Sealed(Contract.from_json(text), begin, graph_digest, digest)


def _metadata(key: str, value: str) -> bytes:
    return bytes_field(_MODEL_METADATA, text_field(1, key) + text_field(2, value))


def _entry(data: bytes) -> tuple[str, str]:
    texts = {number: data[payload:end] for number, _, payload, end in fields(data)}
    try:
        return texts.get(1, b"").decode(), texts.get(2, b"").decode()
    except UnicodeDecodeError as error:
        raise ModelError("holds metadata that is not text: the file was damaged") from error
