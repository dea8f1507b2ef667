"""Converts the encoder of Moonshine tiny (MIT), from PyPI's moonshine-voice 0.0.49, to a Hugging Face directory.

pip download --no-deps moonshine-voice==0.0.49 && unzip moonshine_voice-0.0.49-*.whl -d wheel
python models/moonshine/convert.py wheel/moonshine_voice/assets/tiny-en/encoder_model.ort moonshine-tiny
confit-edge train MANIFEST -o RUN --encoder moonshine-tiny

The source file holds the matrices of the attention and feed-forward layers in eight bits; the script turns them back into
floats. The weights are not part of this repository.
"""

import re
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession
from safetensors.torch import save_file
from transformers import MoonshineConfig
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

TYPES = {1: np.float32, 2: np.uint8, 7: np.int64}  # by TensorProto.DataType
MATRIX = re.compile(r"/(layers\.\d/\w+/\w+)/MatMul_quant")


def main(source: Path, out: Path) -> None:
    graph = InferenceSession.GetRootAs(source.read_bytes(), 0).Model().Graph()
    stored = {
        tensor.Name().decode(): array(tensor) for tensor in map(graph.Initializers, range(graph.InitializersLength()))
    }
    state: dict[str, npt.NDArray[np.float32]] = {}
    for node in map(graph.Nodes, range(graph.NodesLength())):
        name, inputs = node.Name().decode(), [node.Inputs(at).decode() for at in range(node.InputsLength())]
        if found := MATRIX.fullmatch(name):
            base = next(entry for entry in inputs if entry.endswith("_quantized") and entry in stored)
            base = base.removesuffix("_quantized")
            values = stored[f"{base}_quantized"].astype(np.float32) - stored[f"{base}_zero_point"]
            state[found[1].replace("/", ".") + ".weight"] = values.T * stored[f"{base}_scale"]
        elif name in ("/groupnorm/Mul", "/groupnorm/Add"):
            constant = next(stored[entry] for entry in inputs if entry in stored)
            state["groupnorm.weight" if name.endswith("Mul") else "groupnorm.bias"] = constant.reshape(-1)
    for name, value in stored.items():
        name = name.removesuffix("_add_tensor")
        if name.split(".")[-1] in ("weight", "bias"):
            state[name] = value
    config = MoonshineConfig(hidden_size=288, encoder_num_hidden_layers=6, encoder_num_attention_heads=8)
    weights = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}
    MoonshineEncoder(config).load_state_dict(weights, strict=True)
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    save_file(
        {f"encoder.{name}": value for name, value in weights.items()}, out / "model.safetensors", {"format": "pt"}
    )
    print(f"wrote {out}")


def array(tensor) -> npt.NDArray:
    """Return the values of a flatbuffer tensor."""
    shape = tensor.DimsAsNumpy() if tensor.DimsLength() else ()
    return tensor.RawDataAsNumpy().view(TYPES[tensor.DataType()]).reshape(shape)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
