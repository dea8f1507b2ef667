"""A tiny but real model file: band energies of overlapping frames -> moving mean -> embedding -> a few classes.

It hears pure tones: 500, 1200 and 3600 Hz are its classes low, mid and high, everything else is other. Streaming, it
carries the last hop of samples and the last frames of its moving mean; windowed, it takes whole windows. Recurrent, it
also carries what an RNN remembers of all that it has heard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from confit_runtime.contract import SCHEMA, Contract, seal

RATE, HOP, POOL = 16_000, 320, 5
BANDS = (300.0, 500.0, 800.0, 1200.0, 1800.0, 2600.0, 3600.0, 5000.0)
LABELS = ["low", "mid", "high", "other"]
TONES = {"low": 500.0, "mid": 1200.0, "high": 3600.0}
WINDOW = (POOL + 1) * HOP

Floats = npt.NDArray[np.float32]


def tone(frequency: float, seconds: float, rate: int = RATE, level: float = 0.3) -> Floats:
    """A sine `[samples]` with 5 ms ramps."""
    at = np.arange(round(seconds * rate)) / rate
    ramp = np.clip(np.minimum(at, seconds - at) / 0.005, 0.0, 1.0)
    wave: Floats = (level * ramp * np.sin(2 * np.pi * frequency * at)).astype(np.float32)
    return wave


def chord(frequencies: tuple[float, ...], seconds: float, rate: int = RATE) -> Floats:
    """Several tones at once: something to enroll that is none of the classes."""
    return np.sum([tone(frequency, seconds, rate) for frequency in frequencies], axis=0, dtype=np.float32)


def silence(seconds: float, rate: int = RATE) -> Floats:
    return np.zeros(round(seconds * rate), np.float32)


def contract(*, windowed: bool = False, recurrent: bool = False, **changes: Any) -> Contract:
    """The contract of the tiny model, with some keys changed."""
    memory = {"state_memory": [len(BANDS)]} if recurrent else {}
    keys: dict[str, Any] = {
        "schema": SCHEMA,
        "name": "tiny",
        "labels": LABELS,
        "multi_label": False,
        "unknown_label": "other",
        "sample_rate": RATE,
        "highest_hz": RATE / 2,
        "hop": HOP,
        "window": WINDOW,
        "warmup_hops": 0 if windowed else POOL,
        "latency_samples": WINDOW // 2,
        "state": {} if windowed else {"state_pcm": [HOP], "state_ring": [len(BANDS), POOL - 1], **memory},
        "thresholds": {label: {"on": 0.6, "off": 0.3} for label in LABELS},
        "smoothing_hops": 2,
        "min_hops": 2,
        "refractory_s": 0.2,
        "encoder": {"name": "tiny", "weights_sha256": ""},
        "embedding_id": "tiny-embedding-1",
        "embedding_dim": len(BANDS),
        "precision": "fp32",
        "cost": {},
        "data": {},
        "metrics": {},
        "parity": {},
        "calibration": {},
        "license": "Apache-2.0",
        "version": "0",
    }
    return Contract(**{**keys, **changes})


def graph(*, windowed: bool = False, recurrent: bool = False, **held: Floats) -> bytes:
    """The serialised ONNX model, not sealed yet; `held` are embeddings that it gives, as `cohort` or `quiet`."""
    length = 2 * HOP
    phase = 2 * np.pi * np.outer(BANDS, np.arange(length)) / RATE
    basis = np.concatenate([np.cos(phase), np.sin(phase)]) * np.hanning(length) * 2 / length
    weight = np.zeros((len(BANDS), len(LABELS)), np.float32)
    for column, label in enumerate(TONES):
        weight[BANDS.index(TONES[label]), column] = 20.0
    constants = {
        "basis": basis[:, None].astype(np.float32),
        "mean": np.full((len(BANDS), 1, POOL), 1 / POOL, np.float32),
        "floor": np.array(1e-6, np.float32),
        "tilt": np.array(0.01, np.float32),
        "weight": weight,
        "bias": np.array([0, 0, 0, 12], np.float32),
        "axis": np.array([1], np.int64),
        "last_hop": np.array([-HOP], np.int64),
        "last_frames": np.array([-(POOL - 1)], np.int64),
        "end": np.array([2**62], np.int64),
        "time": np.array([2], np.int64),
    }
    by_row = [0, 2, 1]
    nodes = [
        *([] if windowed else [helper.make_node("Concat", ["state_pcm", "pcm"], ["joined"], axis=1)]),
        helper.make_node("Unsqueeze", ["pcm" if windowed else "joined", "axis"], ["wave"]),
        helper.make_node("Conv", ["wave", "basis"], ["waves"], strides=[HOP]),
        helper.make_node("Mul", ["waves", "waves"], ["squares"]),
        helper.make_node("Split", ["squares"], ["cosines", "sines"], axis=1, num_outputs=2),
        helper.make_node("Add", ["cosines", "sines"], ["power"]),
        helper.make_node("Add", ["power", "floor"], ["floored"]),
        helper.make_node("Div", ["floored", "floor"], ["ratio"]),
        helper.make_node("Log", ["ratio"], ["frames"]),
        *([] if windowed else [helper.make_node("Concat", ["state_ring", "frames"], ["ring"], axis=2)]),
        helper.make_node("Conv", ["frames" if windowed else "ring", "mean"], ["pooled"], group=len(BANDS)),
        helper.make_node("Add", ["pooled", "tilt"], ["tilted"]),
        *(_remembered(constants) if recurrent else [helper.make_node("Transpose", ["tilted"], ["rows"], perm=by_row)]),
        helper.make_node("LpNormalization", ["rows"], ["embedding"], axis=-1, p=2),
        helper.make_node("MatMul", ["embedding", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    inputs = [_value("pcm", ["streams", WINDOW if windowed else "samples"])]
    outputs = [_value("scores", ["streams", "hops", len(LABELS)]), _value("embedding", ["streams", "hops", len(BANDS)])]
    if not windowed:
        nodes += [
            helper.make_node("Slice", ["joined", "last_hop", "end", "axis"], ["state_pcm_out"]),
            helper.make_node("Slice", ["ring", "last_frames", "end", "time"], ["state_ring_out"]),
        ]
        inputs += [_value("state_pcm", ["streams", HOP]), _value("state_ring", ["streams", len(BANDS), POOL - 1])]
        outputs += [
            _value("state_pcm_out", ["streams", HOP]),
            _value("state_ring_out", ["streams", len(BANDS), POOL - 1]),
        ]
    if recurrent:
        inputs.append(_value("state_memory", ["streams", len(BANDS)]))
        outputs.append(_value("state_memory_out", ["streams", len(BANDS)]))
    for name, rows in held.items():
        constants[name] = rows.astype(np.float32)
        outputs.append(_value(name, list(rows.shape)))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def build(
    path: Path,
    *,
    windowed: bool = False,
    recurrent: bool = False,
    cohort: Floats | None = None,
    quiet: Floats | None = None,
    **changes: Any,
) -> Path:
    """Write a sealed tiny model and give its path; `changes` are contract keys."""
    held = {name: rows for name, rows in (("cohort", cohort), ("quiet", quiet)) if rows is not None}
    data = graph(windowed=windowed, recurrent=recurrent, **held)
    path.write_bytes(seal(data, contract(windowed=windowed, recurrent=recurrent, **changes)))
    return path


def _remembered(constants: dict[str, Any]) -> list[onnx.NodeProto]:
    """From `tilted` and the memory of all that was heard to `rows` and the next memory, by an RNN."""
    constants["now"] = np.eye(len(BANDS), dtype=np.float32)[None] / 20
    constants["before"] = 0.95 * np.eye(len(BANDS), dtype=np.float32)[None]
    constants["first"] = np.array([0], np.int64)
    return [
        helper.make_node("Unsqueeze", ["state_memory", "first"], ["memory"]),
        helper.make_node("Transpose", ["tilted"], ["in_time"], perm=[2, 0, 1]),
        helper.make_node(
            "RNN", ["in_time", "now", "before", "", "", "memory"], ["heard", "last"], hidden_size=len(BANDS)
        ),
        helper.make_node("Squeeze", ["heard", "axis"], ["in_order"]),
        helper.make_node("Transpose", ["in_order"], ["rows"], perm=[1, 0, 2]),
        helper.make_node("Squeeze", ["last", "first"], ["state_memory_out"]),
    ]


def _value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
