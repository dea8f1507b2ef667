"""Static int8 in QDQ form: ranges from training clips, front end and head left in fp32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

Feed = dict[str, npt.NDArray[np.float32]]


def quantize_static(model: onnx.ModelProto, feeds: list[Feed], fp32_scopes: tuple[str, ...]) -> onnx.ModelProto:
    """The model with the encoder's convolutions and matrix products in int8: activations uint8 per tensor, weights int8
    per channel.

    Ranges are the extremes over `feeds`. Scales are fixed, so a result depends neither on its neighbours in a batch nor
    on how a stream is chopped. Nodes whose name begins with one of `fp32_scopes` stay as they are, and so do products
    of two activations (attention), which have no weights to shrink.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as ort_quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    weights = {tensor.name for tensor in model.graph.initializer}
    chosen = [
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm")
        and node.input[1] in weights
        and not node.name.startswith(fp32_scopes)
    ]
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it recommends its own pre-processing on every call
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, source)
            with np.errstate(invalid="ignore"):  # it also takes the range of masks of -inf, which stay as they are
                ort_quantize_static(
                    str(source),
                    str(target),
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    nodes_to_quantize=chosen,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
            quantized = onnx.load(target)
    finally:
        logging.getLogger().setLevel(level)
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    del quantized.metadata_props[:]
    return quantized
