"""Counts the cost of a model: parameters, multiply-adds per second of audio, and layers by precision."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import onnx

from confit_edge.encoders.base import Encoder
from confit_export.graph import StreamingModel, WindowedModel, count_macs

FP32 = "fp32"


def count_cost(
    model: StreamingModel | WindowedModel, encoder: Encoder, fp32: onnx.ModelProto, layers: dict[str, str]
) -> dict[str, Any]:
    """Return the contract's `cost`.

    `layers` maps the names of quantised nodes of the `fp32` graph to their precision. Multiply-adds count as int8 where the
    layer computes in int8, not where only its weights are stored in int8. A windowed model computes its whole window again
    for every hop, and the cost of a second of audio includes that.
    """
    samples = encoder.hop if model.state else encoder.window
    feed = {"pcm": np.zeros((1, samples), np.float32)}
    feed |= {name: np.zeros((1, *shape), np.float32) for name, shape in model.state.items()}
    kinds = {node.name: node.op_type for node in fp32.graph.node}
    nodes: dict[str, Counter[str]] = defaultdict(Counter)
    macs: Counter[str] = Counter()
    for name, count in count_macs(fp32, feed).items():
        precision = layers.get(name, FP32)
        nodes[kinds[name]][precision] += 1
        macs[precision if precision == "int8" else FP32] += count
    per_second = encoder.sample_rate / encoder.hop
    return {
        "parameters": sum(weight.numel() for part in (encoder, model.head) for weight in part.parameters()),
        "macs_per_second": {precision: round(count * per_second) for precision, count in sorted(macs.items())},
        "nodes": {kind: dict(sorted(counts.items())) for kind, counts in sorted(nodes.items())},
    }
