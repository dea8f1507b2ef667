"""Makes the model file: its contract, its bytes, and provisional files on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from confit_edge import __version__
from confit_edge.encoders import encoder_name
from confit_edge.encoders.base import Encoder
from confit_edge.runs import Run, weights_sha256
from confit_export import thresholds
from confit_export.graph import StreamingModel, WindowedModel, ancestors, state_shapes
from confit_runtime.contract import SCHEMA, Contract, seal
from confit_runtime.files import name_file_in_errors, partial_folder
from confit_runtime.model import Model, load

# the keys of a run's data that go into the contract
DATA_KEYS = ("fingerprint", "clips", "groups", "own", "grouped", "repeated", "multi_label")


def draft_contract(
    run: Run,
    model: StreamingModel | WindowedModel,
    encoder: Encoder,
    graph: onnx.ModelProto,
    *,
    name: str,
    precision: str,
    cost: dict[str, Any],
    license: str,
) -> Contract:
    """Return the contract of `graph` before anything is measured, with every threshold at 0.5."""
    info = run.info
    return Contract(
        schema=SCHEMA,
        name=name,
        labels=tuple(info.classes),
        multi_label=info.multi_label,
        unknown_label=info.unknown,
        sample_rate=encoder.sample_rate,
        highest_hz=float(min(encoder.highest_hz, encoder.sample_rate / 2)),
        hop=encoder.hop,
        window=encoder.window,
        warmup_hops=encoder.window // encoder.hop - 1 if model.state else 0,
        latency_samples=encoder.window // 2,
        state=state_shapes(graph),
        thresholds={label: {"on": 0.5, "off": 0.3} for label in info.classes},
        smoothing_hops=1,
        min_hops=2,
        refractory_s=thresholds.REFRACTORY_S,
        encoder={
            "name": encoder_name(info.recipe["encoder"], encoder.family),
            "weights_sha256": weights_sha256(encoder),
        },
        embedding_id=embedding_id(graph),
        embedding_dim=encoder.dim,
        precision=precision,
        cost=cost,
        data={key: info.data[key] for key in DATA_KEYS if key in info.data},
        metrics={},
        parity={},
        calibration={},
        license=license,
        version=__version__,
    )


def embedding_id(graph: onnx.ModelProto) -> str:
    """Hash everything up to the embedding, so that thresholds, head and cohort can change without orphaning a gallery.

    The hash covers nodes in their order and weights in the order of their first use, with numbers in place of names: names are
    given across the whole graph, and so depend on the head.
    """
    nodes, tensors = ancestors(graph.graph, "embedding")
    weights, numbers = {tensor.name: tensor for tensor in tensors}, dict[str, int]()
    digest = hashlib.sha256()
    for node in nodes:
        anonymous = onnx.NodeProto()
        anonymous.CopyFrom(node)
        anonymous.name = anonymous.doc_string = ""
        for names in (anonymous.input, anonymous.output):
            for index, name in enumerate(names):
                if not name:  # an input that is omitted
                    continue
                if name not in numbers and name in weights:
                    weight = onnx.TensorProto()
                    weight.CopyFrom(weights[name])
                    weight.name = ""
                    digest.update(weight.SerializeToString(deterministic=True))
                names[index] = str(numbers.setdefault(name, len(numbers)))
        digest.update(anonymous.SerializeToString(deterministic=True))
    return digest.hexdigest()[:32]


def model_bytes(graph: onnx.ModelProto, contract: Contract) -> bytes:
    """Return the bytes of the model file."""
    return seal(graph.SerializeToString(deterministic=True), contract)


def load_provisional(out: Path, graph: onnx.ModelProto, contract: Contract) -> Model:
    """Load the model as the runtime would, from a temporary file next to `out` that is removed again before returning."""
    with partial_folder(out) as folder:
        with name_file_in_errors(out):
            (folder / out.name).write_bytes(model_bytes(graph, contract))
        return load(folder / out.name)


def replace_embeddings(graph: onnx.ModelProto, name: str, rows: npt.NDArray[np.float32]) -> None:
    """Replace the embeddings that the graph gives as its output `name` with `rows [n, dim]`, as many as there are."""
    initializer = next(tensor for tensor in graph.graph.initializer if tensor.name == f"{name}_prints")
    initializer.CopyFrom(onnx.numpy_helper.from_array(rows.astype(np.float32), f"{name}_prints"))
