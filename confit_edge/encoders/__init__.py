"""Pre-trained encoders by name, and the rebuilding of an encoder's architecture from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from confit_edge.encoders.base import Encoder
from confit_edge.recipe import Initialise, Pooling
from confit_runtime.errors import ConfitError, UsageError

BUILT_IN = ("speech-embedding", "ge2e", "yamnet")


def is_folder(name: str) -> bool:
    """Whether the encoder `name` is a local directory, and not the name of a built-in encoder."""
    return name.replace("_", "-") not in BUILT_IN and Path(name).is_dir()


def encoder_label(name: str) -> str:
    """The name of an encoder for cards, model files and results: a local folder without its path, which no reader needs."""
    return Path(name).resolve().name if is_folder(name) or Path(name).is_absolute() else name


def encoder_name(asked: str, family: str) -> str:
    """The label of a trained encoder: that of `asked`, the recipe's encoder, if it has this `family`, else the family."""
    built = asked.replace("-", "_") if asked.replace("_", "-") in BUILT_IN else "transformers"
    return encoder_label(asked) if family == built else family.replace("_", "-")


def pretrained(
    name: str,
    window_s: float,
    *,
    pooling: Pooling = "mean",
    layers: int | None = None,
    layer_weights: bool = False,
    initialise: Initialise = "pretrained",
    seed: int = 0,
) -> Encoder:
    """The encoder `name` with its pre-trained weights.

    `name` is `speech-embedding` or `ge2e` (which ship with confit-edge), `yamnet`, or a transformers checkpoint: a hub
    name or a local directory. `window_s` is the longest window in seconds. `pooling`, `layers` (how many to keep, from the
    first) and `layer_weights` are for checkpoints. `initialise="random"` is for control experiments: the same architecture
    and front end with weights drawn from `seed`. Raises UsageError for what does not exist or is not possible, and
    ConfitError when a checkpoint lacks encoder weights.
    """
    family, random = name.replace("_", "-"), initialise == "random"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family not in BUILT_IN:
            if Path(name).is_absolute() and not Path(name).is_dir():
                raise UsageError(
                    f"encoder {name}: no such folder; if it has moved, give its current path (--encoder; distill --student;"
                    " study: key 'encoder' of --recipe)"
                )
            if "/" not in name and not Path(name).is_dir():  # a request to the hub would take half a minute to fail
                raise UsageError(
                    f"encoder {name}: not one of {', '.join(BUILT_IN)}, not a folder here, and not a hub name (OWNER/NAME)"
                )
            from confit_edge.encoders.transformers import TransformersEncoder

            return TransformersEncoder.pretrained(
                name, window_s, layers=layers, pooling=pooling, layer_weights=layer_weights, random=random
            )
        given = {"pooling": pooling != "mean", "layers": layers is not None, "layer_weights": layer_weights}
        if refused := [key for key, value in given.items() if value]:
            raise UsageError(f"recipe key '{refused[0]}' is for attention encoders, not for --encoder {name}")
        if family == "ge2e":
            from confit_edge.encoders.ge2e import GE2E

            return GE2E() if random else GE2E.pretrained()
        if family == "yamnet":
            from confit_edge.encoders.yamnet import YAMNet

            steps = YAMNet.steps_for(window_s)
            return with_random_weights(YAMNet(steps)) if random else YAMNet.pretrained(steps)
        from confit_edge.encoders.speech_embedding import SpeechEmbedding

        encoder = SpeechEmbedding.pretrained(SpeechEmbedding.pool_hops_for(window_s))
        return with_random_weights(encoder) if random else encoder


def with_random_weights(encoder: Encoder) -> Encoder:
    """The encoder with random convolutions that preserve the signal's size over depth (He et al. 2015, 1502.01852)."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return encoder


@torch.random.fork_rng(devices=[])
def build(spec: dict[str, Any]) -> Encoder:
    """An encoder with the architecture that `Encoder.spec()` returned, without its weights."""
    rest = {key: value for key, value in spec.items() if key != "family"}
    match spec.get("family"):
        case "speech_embedding":
            from confit_edge.encoders.speech_embedding import SpeechEmbedding

            return SpeechEmbedding(**rest)
        case "ge2e":
            from confit_edge.encoders.ge2e import GE2E

            return GE2E(**rest)
        case "yamnet":
            from confit_edge.encoders.yamnet import YAMNet

            return YAMNet(**rest)
        case "transformers":
            from confit_edge.encoders.transformers import TransformersEncoder

            return TransformersEncoder(**rest)
    raise ConfitError(
        f"this version does not know the encoder family {spec.get('family')!r}; pass an encoder of your own from Python:"
        " read_run(..., encoder=...)"
    )
