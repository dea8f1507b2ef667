"""How onnxruntime sessions are opened and called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from confit_runtime.errors import ModelError

State = dict[str, npt.NDArray[Any]]  # float32, or uint8 in a quantised model: zeros are a valid start for both


def open_session(model: bytes | Path, threads: int, *, unoptimised: bool = False) -> Any:
    """Open an onnxruntime session of a model, given as bytes or a file, on the CPU. Raises ModelError if it cannot run.

    `unoptimised` runs each node as it is in the file; otherwise nodes are fused and folded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if unoptimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # carry each state on right after its layer ran, not at the end, when the cache holds other data: saves 1 to 2 % of
    # a hop
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    # spinning threads would occupy a core between two hops of a microphone
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(model, Path) and not _can_open(model):
        model = model.read_bytes()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes, which share no public base
        reason = " ".join(str(error).split())
        raise ModelError(f"onnxruntime {onnxruntime.__version__} cannot run this model ({reason})") from error


def _can_open(path: Path) -> bool:
    """Whether onnxruntime can open a file: it supports only names in UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def bind(session: Any, inputs: State, outputs: State) -> Callable[[], None]:
    """Return a function that runs a session on these very arrays, reading `inputs` and writing `outputs`."""
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(array))
    return partial(session.run_with_iobinding, binding)
