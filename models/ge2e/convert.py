"""Converts pretrained.pt, from PyPI's Resemblyzer 0.1.4, to ge2e.safetensors.

pip download --no-deps Resemblyzer==0.1.4 && unzip Resemblyzer-0.1.4-*.whl -d wheel
python models/ge2e/convert.py wheel/resemblyzer/pretrained.pt
"""

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from confit_edge.encoders.ge2e import GE2E, WEIGHTS


def main(checkpoint: Path) -> None:
    published = torch.load(checkpoint, map_location="cpu", weights_only=True)["model_state"]
    state = {
        re.sub(r"lstm\.(\w+)_l(\d)", r"layers.\2.\1_l0", name): tensor
        for name, tensor in published.items()
        if not name.startswith("similarity_")  # belongs to the training loss
    }
    GE2E().load_state_dict(state, strict=True)
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, WEIGHTS)
    print(f"wrote {WEIGHTS}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
