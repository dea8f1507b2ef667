"""onnxruntime sessions, as everything here opens and calls them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from confit_runtime.errors import ModelError

State = dict[str, npt.NDArray[Any]]  # float32, or uint8 in a quantised model: zeros are a valid start of either


def open_session(model: bytes | Path, threads: int, *, as_written: bool = False) -> Any:
    """An onnxruntime session of a model, serialised or a file, on the CPU. Raises ModelError when it cannot run it.

    `as_written` runs each node as it stands in the file; else they are fused and folded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # each state is carried on where its layer has just run, not at the end, when the cache holds other things: 1 to 2 % of a hop
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    # spinning threads would eat a core between two hops of a microphone
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(model, Path) and not _takes(model):
        model = model.read_bytes()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, which share no public base
        reason = " ".join(str(error).split())
        raise ModelError(f"onnxruntime {onnxruntime.__version__} cannot run this model ({reason})") from error


def _takes(path: Path) -> bool:
    """Whether onnxruntime can open a file, which it does by names in UTF-8 only."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def bind(session: Any, inputs: State, outputs: State) -> Callable[[], None]:
    """A call of a session that reads and writes these very arrays, each time it is called."""
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(array))
    return partial(session.run_with_iobinding, binding)
