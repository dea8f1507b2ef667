"""Times one step of the streamed network against recomputing its window with the published graph, without front ends."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from benchmarks.cut import front_end, network, without_front_end
from confit_runtime.contract import read_sealed
from confit_runtime.session import bind, open_session

FRAMES, BANDS, FRAMES_PER_HOP = 76, 32, 8
CALLS, TURN, WARM_UP = 600, 25, 5
SAME = 1e-4

Arrays = dict[str, npt.NDArray[Any]]
TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


def compare(models: dict[str, Path], published: Path) -> dict[str, Any]:
    """Return, for one and for ten hops per call, the microseconds of each graph and each model's ratio to the published one.

    The graphs are called in turns, with inputs and outputs bound to fixed arrays; times are medians of processor time. `ratio`
    is for the network alone, which computes the same as the published graph. `with_head` is for everything after the front
    end, with pooling, normalisation and head. The result also has a profile of one hop.
    """
    graphs = {name: onnx.load(path) for name, path in models.items()}
    for name, graph in graphs.items():
        check_cut(graph, models[name])
    networks = {name: network(graph)[:2] for name, graph in graphs.items()}
    with_heads = {name: without_front_end(graph) for name, graph in graphs.items()}
    result: dict[str, Any] = {}
    for label, hops in (("one_hop", 1), ("ten_hops", 10)):
        calls = {"published": _published(published, hops)}
        calls |= {name: _streamed(part, hops) for name, part in networks.items()}
        calls |= {f"{name} with head": _streamed(part, hops) for name, part in with_heads.items()}
        elapsed = time_in_turns(calls, CALLS // hops)
        result[label] = {"published": {"us": round(1e6 * elapsed["published"], 1)}}
        for name in models:
            result[label][name] = {
                "us": round(1e6 * elapsed[name], 1),
                "ratio": round(elapsed[name] / elapsed["published"], 4),
                "with_head": round(elapsed[f"{name} with head"] / elapsed["published"], 4),
            }
    result["profile_one_hop_us"] = {name: profile(part) for name, part in with_heads.items()}
    result["calls"] = CALLS
    return result


def time_in_turns(calls: dict[str, Callable[[], None]], times: int) -> dict[str, float]:
    """Return the processor seconds of each call, median of `times`, in turns of `TURN` calls; the first ones warm up.

    In turns of single calls, each would find the caches full of the others' weights, which no real program does.
    """
    elapsed: dict[str, list[float]] = {name: [] for name in calls}
    while len(elapsed[next(reversed(calls))]) < times:
        for name, call in calls.items():
            for number in range(TURN):
                start = time.thread_time()
                call()
                if number >= WARM_UP:
                    elapsed[name].append(time.thread_time() - start)
    return {name: median(times_of_call) for name, times_of_call in elapsed.items()}


def profile(part: tuple[onnx.ModelProto, str], calls: int = 200) -> dict[str, dict[str, float]]:
    """Profile one hop per call, by the runtime's operators: the number of nodes, and their microseconds together."""
    feed, _ = _arrays(part, 1)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(part[0].SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(calls):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"])
    by_operator: dict[str, dict[str, float]] = defaultdict(lambda: {"nodes": 0, "us": 0.0})
    for (operator, _), durations in nodes.items():
        by_operator[operator]["nodes"] += 1
        by_operator[operator]["us"] += median(durations)
    return dict(sorted(by_operator.items(), key=lambda entry: -entry[1]["us"]))


def check_cut(graph: onnx.ModelProto, path: Path) -> None:
    """Raise ValueError unless the two parts, one after the other, give the same as the whole model."""
    hop = read_sealed(path.read_bytes()).contract.hop
    full_session, front_session = (open_session(one.SerializeToString(), 1) for one in (graph, front_end(graph)))
    network_part, frames = without_front_end(graph)
    network_session = open_session(network_part.SerializeToString(), 1)
    states: Arrays = {
        entry.name: np.zeros((1, *entry.shape[1:]), TYPES[entry.type])
        for entry in full_session.get_inputs()
        if entry.name != "pcm"
    }
    full_states = parts_states = states
    for pcm in np.float32(0.05) * np.random.default_rng(0).standard_normal((20, 1, hop), dtype=np.float32):
        expected, full_states = _call(full_session, {"pcm": pcm}, full_states)
        front_outputs, front_states = _call(front_session, {"pcm": pcm}, parts_states)
        outputs, rest_states = _call(network_session, {frames: front_outputs[frames]}, parts_states)
        parts_states = {**front_states, **rest_states}
        if not np.allclose(expected["embedding"], outputs["embedding"], atol=SAME):
            raise ValueError(f"{path.name}: cut at {frames}, the model no longer gives the same embeddings")


def _call(session: Any, inputs: Arrays, states: Arrays) -> tuple[Arrays, Arrays]:
    """Call a part that takes some of `states`; return its outputs and the new states."""
    own_states = {entry.name: states[entry.name] for entry in session.get_inputs() if entry.name in states}
    names = [entry.name for entry in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {**inputs, **own_states}), strict=True))
    return outputs, {name: outputs[f"{name}_out"] for name in own_states}


def _published(path: Path, hops: int) -> Callable[[], None]:
    session = open_session(path.read_bytes(), 1)
    (input_,), (output,) = session.get_inputs(), session.get_outputs()
    windows = np.random.default_rng(0).standard_normal((hops, FRAMES, BANDS, 1), dtype=np.float32)
    return bind(session, {input_.name: windows}, {output.name: np.zeros((hops, 1, 1, 96), np.float32)})


def _streamed(part: tuple[onnx.ModelProto, str], hops: int) -> Callable[[], None]:
    session = open_session(part[0].SerializeToString(), 1)
    inputs, _ = _arrays(part, hops)
    outputs_now = session.run(None, inputs)
    outputs = {
        entry.name: np.zeros_like(value) for entry, value in zip(session.get_outputs(), outputs_now, strict=True)
    }
    return bind(session, inputs, outputs)


def _arrays(part: tuple[onnx.ModelProto, str], hops: int) -> tuple[Arrays, str]:
    """Return inputs for a cut model: noise for the frames, and the states of a stream that has heard nothing."""
    model, frames = part
    arrays: Arrays = {}
    for entry in model.graph.input:
        sizes = [size.dim_value for size in entry.type.tensor_type.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        arrays[entry.name] = np.zeros((1, *sizes[1:]), kind)
    shape = (1, 1, FRAMES_PER_HOP * hops, BANDS)
    arrays[frames] = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return arrays, frames
