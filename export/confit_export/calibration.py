"""The data for the ranges of static quantisation: training clips, at the length that the device will use."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
import torch

from confit_edge.data.corpus import Corpus
from confit_edge.encoders.base import Encoder, centred
from confit_edge.runs import Run
from confit_edge.windows import make_augmenter
from confit_runtime.session import open_session

Feed = dict[str, npt.NDArray[np.float32]]
Calibration = Literal["minmax", "entropy", "percentile"]
CALIBRATIONS: tuple[Calibration, ...] = get_args(Calibration)

CLIPS = 128
BATCH_SIZE = 4  # clips whose activations a histogram keeps in memory at the same time
PERCENTILE = 99.999


def calibration_feeds(fp32: onnx.ModelProto, encoder: Encoder, corpus: Corpus, run: Run) -> list[Feed]:
    """Return training windows as inputs of the graph, half of them as recorded and half augmented.

    A streaming graph hears them as one stream: each window comes with the state that the window before it left, because a
    stream runs on such states and not on the zeros it begins with.
    """
    clips, rng = corpus.training_clips(), np.random.default_rng([run.recipe.seed, 7])
    augment = make_augmenter(encoder, corpus, run.recipe)
    chosen = [clips.pcm[int(row)] for row in rng.permutation(len(clips))[:CLIPS]]
    half = len(chosen) // 2
    windows = [
        centred(torch.from_numpy(np.array(clip[: encoder.window])), encoder.window).numpy() for clip in chosen[:half]
    ]
    windows += list(augment(chosen[half:], rng))
    windows = [windows[index] for index in rng.permutation(len(windows))]
    return list(_as_stream(fp32, windows))


def _as_stream(fp32: onnx.ModelProto, windows: list[npt.NDArray[np.float32]]) -> Iterator[Feed]:
    states = [entry for entry in fp32.graph.input if entry.name != "pcm"]
    if not states:
        yield from ({"pcm": window[None]} for window in windows)
        return
    session = open_session(fp32.SerializeToString(), threads=1)
    shapes = {entry.name: [1, *(size.dim_value for size in entry.type.tensor_type.shape.dim[1:])] for entry in states}
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for index, window in enumerate(windows):
        feed = {"pcm": window[None], **state}
        if index:  # the first only fills the state
            yield feed
        state = dict(zip(state, session.run([f"{name}_out" for name in state], feed), strict=True))


def tensor_ranges(model: onnx.ModelProto, feeds: list[Feed], method: Calibration, operators: list[str]) -> Any:
    """Return the range over `feeds` of each input and output of `operators`, as onnxruntime's TensorsData.

    `minmax` takes the extremes, `percentile` cuts off one value in 100,000, and `entropy` cuts where the histogram loses the
    least information (Migacz 2017).
    """
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self, part: list[Feed]) -> None:
            self.feeds = iter(part)

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    methods = {
        "minmax": (CalibrationMethod.MinMax, {}),
        "entropy": (CalibrationMethod.Entropy, {"num_bins": 512, "num_quantized_bins": 128}),
        "percentile": (CalibrationMethod.Percentile, {"percentile": PERCENTILE, "symmetric": False}),
    }
    calibration_method, options = methods[method]
    with tempfile.TemporaryDirectory() as folder, silence_quantizer(), np.errstate(invalid="ignore"):
        source = Path(folder) / "fp32.onnx"
        onnx.save(model, source)
        calibrator = create_calibrator(
            source, operators, str(Path(folder) / "augmented.onnx"), calibration_method, extra_options=options
        )
        calibrator.set_execution_providers(["CPUExecutionProvider"])
        calibrator.infer_session = _WithoutDenormals(calibrator.infer_session)
        # the loudest first: a histogram keeps the bins of its first part, and grows by bins of that width
        loudest = sorted(feeds, key=lambda feed: -float(np.abs(feed["pcm"]).max()))
        for start in range(0, len(loudest), BATCH_SIZE):
            calibrator.collect_data(Reader(loudest[start : start + BATCH_SIZE]))
        return calibrator.compute_data()


class _WithoutDenormals:
    """A session of onnxruntime whose outputs have zeros for denormal numbers, which numpy cannot divide into bins."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *args: Any) -> list[npt.NDArray]:
        outputs = self._session.run(*args)
        return [
            np.where(np.abs(output) < np.finfo(np.float32).tiny, output.dtype.type(0), output) for output in outputs
        ]


_silenced = threading.local()  # its `on` is true in a thread that quantises


@contextmanager
def silence_quantizer() -> Iterator[None]:
    """Keep the messages of onnxruntime's quantiser in this thread out of the log and stdout; other threads are not affected.

    The quantiser recommends its own pre-processing on every call, on the root logger, and its calibrators print.
    """
    from onnxruntime.quantization import calibrate

    vars(calibrate)["print"] = _print_unless_silenced
    quantizer_folder, thread, root = str(Path(calibrate.__file__).parent), threading.get_ident(), logging.getLogger()

    def keep_record(record: logging.LogRecord) -> bool:
        return (
            record.thread != thread
            or record.levelno >= logging.ERROR
            or not record.pathname.startswith(quantizer_folder)
        )

    # in a program without logging, `logging.warning` would set it up for good; the last-resort handler prevents that
    fallback_handler = None if root.handlers else logging.lastResort
    if fallback_handler:
        root.addHandler(fallback_handler)
    root.addFilter(keep_record)
    _silenced.on = True
    try:
        yield
    finally:
        _silenced.on = False
        root.removeFilter(keep_record)
        if fallback_handler:
            root.removeHandler(fallback_handler)


def _print_unless_silenced(*args: Any, **kwargs: Any) -> None:
    """Stand in for `print` in onnxruntime's calibrators."""
    if not getattr(_silenced, "on", False):
        print(*args, **kwargs)
