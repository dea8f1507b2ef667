"""Attention encoders through transformers: wav2vec2, HuBERT, WavLM, data2vec-audio, Whisper, Moonshine, AST.

They take whole windows. The window has the same length in training, in validation and on the device, because these
encoders normalise and attend over time: the same sound in a longer window gives a different embedding.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from confit_edge.encoders.architectures import ARCHITECTURES
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.pooling import LayerWeights, heard, time_pool
from confit_edge.recipe import Pooling
from confit_edge.torchaudio_pure import skip_native_library
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.formatting import format_count, format_list

log = logging.getLogger(__name__)
skip_native_library()  # transformers imports torchaudio where it is installed

SAMPLE_RATE = 16_000
GRID = 8 * 320  # a window is a multiple of this: eight whole hops, and whole Whisper frames
# keys that a checkpoint may lack: SpecAugment's mask is not used here
_OPTIONAL_WEIGHTS = ("masked_spec_embed",)
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")  # either says how input is normalised
# the errors that transformers and torch raise on unexpected values, which they do not check
_UNEXPECTED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_LARGEST = torch.finfo(torch.float32).max


class TransformersEncoder(Encoder):
    """The encoder of a transformers checkpoint, on windows of `window` samples every `hop`.

    `config` is the checkpoint's configuration, and `preprocessor` the settings of its feature extractor that matter here.
    Only the first `layers` layers are used. With `layer_weights`, a frame is a learned sum over all layers instead of the
    last one.
    """

    family = "transformers"
    sample_rate = SAMPLE_RATE
    streaming = False

    def __init__(
        self,
        config: dict[str, Any],
        window: int,
        hop: int,
        *,
        preprocessor: dict[str, Any] | None = None,
        layers: int | None = None,
        pooling: Pooling = "mean",
        layer_weights: bool = False,
    ) -> None:
        super().__init__()
        from transformers import AutoConfig

        self.config_data, self.window, self.hop = config, window, hop
        self.architecture = ARCHITECTURES[config["model_type"]]
        self.preprocessor = {**self.architecture.preprocessor, **(preprocessor or {})}
        # without its dtype: weights saved in half precision are trained in fp32
        plain = {key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")}
        self.settings = AutoConfig.for_model(config["model_type"], **plain)
        if layers:
            setattr(self.settings, self.architecture.layers_key, layers)
        self.architecture.fit(self.settings, window)
        self.dim = int(self.settings.hidden_size)
        # lower for wider models (Yang et al. 2022, arXiv 2203.03466): 1e-4 for Whisper tiny, 5e-5 for models called base
        self.learning_rate = 1e-4 * 384 / self.dim
        self.front_end = self.architecture.front_end(self.settings, self.preprocessor)
        self.model = self.architecture.model(self.settings)
        self.pooling, self.pool = pooling, time_pool(pooling, self.dim)
        count = getattr(self.settings, self.architecture.layers_key)
        self.layer_weights = LayerWeights(count + 1) if layer_weights else None

    def frames(self, pcm: Tensor) -> Tensor:
        found = self.model(self.front_end(pcm), output_hidden_states=self.layer_weights is not None)
        hidden = found.last_hidden_state
        if self.layer_weights is not None:
            hidden = self.layer_weights([*found.hidden_states[:-1], hidden])
        return self.architecture.in_time(hidden, self.settings)

    def pooled(self, pcm: Tensor) -> Tensor:
        frames = self.frames(pcm).float()
        return self.pool(frames, heard(pcm, frames.shape[1], self.architecture.stride(self.settings)))

    def blocks(self) -> list[list[nn.Module]]:
        first, last = self.architecture.first_and_last(self.model)
        blocks = [first, *([layer] for layer in self.architecture.layers(self.model))]
        blocks[-1] += last
        return blocks

    def learned_pooling(self) -> list[nn.Module]:
        pool: list[nn.Module] = [self.pool] if list(self.pool.parameters()) else []
        return [*pool, self.layer_weights] if self.layer_weights is not None else pool

    def spec(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "config": self.config_data,
            "window": self.window,
            "hop": self.hop,
            "preprocessor": self.preprocessor,
            "layers": len(self.architecture.layers(self.model)),
            "pooling": self.pooling,
            "layer_weights": self.layer_weights is not None,
        }

    @classmethod
    def pretrained(
        cls,
        name: str,
        window_s: float,
        *,
        layers: int | None = None,
        pooling: Pooling = "mean",
        layer_weights: bool = False,
        random: bool = False,
    ) -> TransformersEncoder:
        """The encoder of a hub name or a local directory in the Hugging Face format; `random`: without its weights.

        Raises UsageError when there is no such checkpoint, its architecture is not supported, it has fewer layers than
        requested, or its files describe no working model. Raises ConfitError when encoder weights are missing
        (transformers would leave them random) or not finite.
        """
        settings = read_settings(name)
        kind = settings.model_type
        architecture = ARCHITECTURES[kind]
        preprocessor = read_preprocessor(name, architecture.preprocessor, settings)
        with invalid_model_as_usage_error(name):
            samples = window_samples(name, settings, window_s, layers)
            config = copy.deepcopy(settings.to_diff_dict())
            config["model_type"] = kind
            encoder = cls(
                config,
                samples,
                hop=samples // 8,
                preprocessor=preprocessor,
                layers=layers,
                pooling=pooling,
                layer_weights=layer_weights,
            )
        if not random:
            weights = architecture.encoder_of(load(name)).state_dict()
            architecture.cut(weights, settings, encoder.settings)
            wanted = encoder.model.state_dict().keys()  # without those of dropped layers
            encoder.model.load_state_dict({key: value for key, value in weights.items() if key in wanted}, strict=True)
        with invalid_model_as_usage_error(name):
            check_finite_embedding(name, encoder)
        return encoder


def read_settings(name: str) -> Any:
    """The configuration of a checkpoint. Raises UsageError when it has none or its architecture is not supported."""
    from transformers import AutoConfig

    # without one, transformers guesses the architecture from the letters of the path
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise UsageError(f"--encoder {name}: has no config.json, so it is not a transformers checkpoint")
    try:
        settings = AutoConfig.from_pretrained(name)
    except (OSError, *_UNEXPECTED) as error:
        raise UsageError(
            f"--encoder {name}: not a built-in encoder, not a checkpoint directory and not a model on the hub"
            f" ({str(error).splitlines()[0]})"
        ) from error
    if settings.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(f"--encoder {name}: is a {settings.model_type!r} checkpoint; supported are {known}")
    return settings


@contextmanager
def invalid_model_as_usage_error(name: str) -> Iterator[None]:
    """Raise UsageError where a checkpoint's files describe no model that can be built and run, such as with sizes that do
    not match."""
    try:
        yield
    except _UNEXPECTED as error:
        raise UsageError(
            f"--encoder {name}: its config.json describes no model that can be built ({_first_sentence(error)})"
        ) from error


def window_samples(name: str, settings: Any, window_s: float, layers: int | None) -> int:
    """The samples of a window. Raises UsageError where the checkpoint cannot use that length, or has fewer layers."""
    architecture = ARCHITECTURES[settings.model_type]
    count = getattr(settings, architecture.layers_key)
    if layers and layers > count:
        raise UsageError(f"--layers {layers}: {name} has only {count}")
    samples = round(window_s * SAMPLE_RATE)
    samples -= samples % GRID
    least = -(-architecture.shortest(settings) // GRID) * GRID
    if samples < least:
        raise UsageError(f"--window {window_s}: this checkpoint needs at least {least / SAMPLE_RATE} s")
    longest = architecture.longest(settings)
    if longest and samples > longest:
        raise UsageError(f"--window {window_s}: this checkpoint takes at most {longest / SAMPLE_RATE:g} s")
    return samples


def _first_sentence(error: Exception) -> str:
    """The first sentence of a library's error message; some continue at great length."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]


def read_preprocessor(name: str, defaults: dict[str, Any], settings: Any) -> dict[str, Any]:
    """The settings of a checkpoint's feature extractor that matter here; without one, `defaults` adapted to `settings`.

    Raises UsageError where it cannot be read, a value has the wrong type, or it expects sound at another rate.
    """
    from transformers import AutoFeatureExtractor

    if not defaults:
        return defaults
    extractor_file = preprocessor_file(name)
    if extractor_file is None:
        # the waveform models with layer normalisation in their convolutions were trained on sound of variance 1
        whole = {"do_normalize": True} if getattr(settings, "feat_extract_norm", "") == "layer" else {}
        log.warning("%s: has no %s; assuming %s", name, _PREPROCESSORS[0], {**defaults, **whole})
        return {**defaults, **whole}
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name)
    except (OSError, *_UNEXPECTED) as error:
        raise UsageError(f"--encoder {name}: its {extractor_file} cannot be read ({_first_sentence(error)})") from error
    values = {
        key: extractor_setting(f"--encoder {name}: its {extractor_file}", extractor, key, default)
        for key, default in {"sampling_rate": SAMPLE_RATE, **defaults}.items()
    }
    if (rate := values.pop("sampling_rate")) != SAMPLE_RATE:
        raise UsageError(f"--encoder {name}: expects sound at {rate} Hz; only {SAMPLE_RATE} Hz is supported")
    return values


def extractor_setting(where: str, extractor: Any, key: str, default: bool | float) -> Any:
    """A feature extractor's value of `key`. Raises UsageError where it does not have the type of the default."""
    value = getattr(extractor, key, default)
    if isinstance(default, bool):
        value = False if value is None else value  # as transformers treats null
        good, kind = isinstance(value, bool), "true or false"
    else:
        good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
        kind = "a finite number"
        if key == "std":  # a divisor
            good, kind = good and value > 0, "a number above 0"
    if not good:
        raise UsageError(f"{where} sets {key} to {value!r:.40}; it must be {kind}")
    return value


def preprocessor_file(name: str) -> str | None:
    """The file that describes a checkpoint's feature extractor; None if it has none.

    Raises UsageError where that cannot be found out.
    """
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from transformers.utils import cached_file

    for file in _PREPROCESSORS:
        try:
            if cached_file(name, file, _raise_exceptions_for_missing_entries=False):
                return file
        except OSError as error:
            raise UsageError(f"--encoder {name}: its {file} cannot be fetched ({_first_sentence(error)})") from error
    # the hub's answer that a file does not exist is cached; without a connection, that answer may be missing
    if not Path(name).is_dir() and any(
        try_to_load_from_cache(name, file) is not _CACHED_NO_EXIST for file in _PREPROCESSORS
    ):
        raise UsageError(
            f"--encoder {name}: without a connection to the hub, it is not known whether it has a {_PREPROCESSORS[0]}, which"
            " says how sound is normalised for it; connect once, or give a folder that holds the checkpoint"
        )
    return None


def load(name: str) -> nn.Module:
    """The checkpoint's model in fp32. Raises ConfitError when it is damaged or lacks encoder weights."""
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging as verbose

    verbosity = verbose.get_verbosity()
    verbose.set_verbosity_error()  # missing weights are reported below; a decoder's do not matter
    try:
        model, loading = AutoModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfitError(f"--encoder {name}: its weights cannot be loaded ({str(error).splitlines()[0]})") from error
    finally:
        verbose.set_verbosity(verbosity)
    check_no_missing_weights(name, loading)
    return model


def check_no_missing_weights(name: str, loading: dict[str, Any]) -> None:
    """Raise ConfitError when loading left an encoder weight random (decoder weights do not matter)."""
    absent = [key for key in loading["missing_keys"] if "decoder" not in key and not key.endswith(_OPTIONAL_WEIGHTS)]
    wrong = [str(entry[0]) for entry in loading["mismatched_keys"]]
    if lacking := sorted(absent + wrong):
        raise ConfitError(
            f"--encoder {name}: the checkpoint lacks {format_count(len(lacking), 'encoder weight')} ({format_list(lacking, 3)}),"
            " which would stay random: is it a checkpoint of this architecture?"
        )


@torch.no_grad()
def check_finite_embedding(name: str, encoder: TransformersEncoder) -> None:
    """Raise an error where the embedding of quiet noise is not finite: ConfitError if weights are not, else UsageError."""
    noise = 0.01 * torch.randn(1, encoder.window, generator=torch.Generator().manual_seed(0))
    embedding = encoder.eval().pooled(noise)
    encoder.train()
    if embedding.isfinite().all():
        return
    for key, weight in encoder.model.state_dict().items():
        if not weight.isfinite().all():
            raise ConfitError(f"--encoder {name}: its weights are damaged ({key} holds numbers that are not finite)")
    raise UsageError(
        f"--encoder {name}: with the settings of its config.json and {_PREPROCESSORS[0]}, embeddings are not finite numbers"
    )
