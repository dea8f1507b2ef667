"""The recipe of a training run: plain data, each key also a flag of `confit-edge train`."""

from __future__ import annotations

import dataclasses
import difflib
import re
import reprlib
import sys
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from confit_runtime.errors import UsageError
from confit_runtime.shipped import MODELS

Precision = Literal["fp32", "bf16", "auto"]
Initialise = Literal["pretrained", "random"]
Pooling = Literal["mean", "masked", "attentive"]
Loss = Literal["supcon", "triplet", "nt-xent", "n-pairs", "proxy-anchor"]
Mining = Literal["hardness", "none", "hardest-negatives", "hardest-positives", "semi-hard", "multi-similarity"]

LONGEST_SHOWN = 200  # characters of an invalid value in a message

# The mining each loss can use. Only supcon takes weights between 0 and 1 (hardness); n-pairs takes its negatives from the
# pairs of the other classes, and proxy-anchor does not compare pairs of clips at all.
_MINING: dict[Loss, tuple[Mining, ...]] = {
    "supcon": typing.get_args(Mining),
    "triplet": ("none", "hardest-negatives", "hardest-positives", "semi-hard", "multi-similarity"),
    "nt-xent": ("none", "hardest-negatives", "hardest-positives", "semi-hard", "multi-similarity"),
    "n-pairs": ("none", "hardest-positives"),
    "proxy-anchor": ("none",),
}


@dataclass(frozen=True)
class Recipe:
    """Every key of a recipe, with its default. Lengths are in seconds, levels in dB."""

    encoder: str = "speech-embedding"
    objective: Literal["pairtune", "finetune"] = "pairtune"
    epochs: int = 12
    seed: int = 0
    # the data
    label_column: str = "label"
    group_column: str = "group"
    split_by: str | None = None
    others: tuple[str, ...] = ()  # folders or manifests of sounds of no class, learnt as `unknown`; or `words`
    background: tuple[str, ...] = ()  # folders or files without any class: mixed in, and learnt as `unknown`
    # the window
    window: float = 1.28
    trim: bool = True  # remove the silence before and after the sound of clips longer than the window
    shift: float = 0.2
    gain: float | None = None  # clips become louder or softer by up to this many dB; None: the encoder's own
    speed: float = 0.0
    noise_probability: float = 0.7
    spec_augment: bool = False
    snr_low: float = 0.0
    snr_high: float = 15.0
    rooms: str | None = None  # folder of impulse responses, or `synthetic`: clips sound as if in a room
    room_probability: float = 0.5
    equaliser: float = 0.0  # octave bands are raised or lowered by up to this many dB
    band_probability: float = 0.0  # of limiting a clip to the band of a telephone or a small microphone
    codec_probability: float = 0.0
    # the encoder
    initialise: Initialise = "pretrained"  # random: the same architecture with random weights, as a control
    layers: int | None = None  # keep this many first layers of an attention encoder and drop the rest
    pooling: Pooling = "mean"  # over time, for attention encoders
    layer_weights: bool = False  # a frame is a learned sum over the layers
    lora_rank: int = 0  # rank of the adapters that train instead of an attention encoder (0: train the encoder)
    # the batch: P classes x K clips
    classes_per_batch: int = 16
    clips_per_class: int | None = None  # None: to fill a batch of 64, at least 4, at most what a typical class has
    accumulate: int = 1  # batches per step of the optimiser; the loss sees each batch on its own
    chunk_size: int = 0  # clips embedded at a time, to save memory (0: the whole batch)
    # the optimiser
    lr: tuple[float, ...] = ()  # of the encoder; empty: the encoder's own; several: validation chooses
    head_lr: float = 2e-3
    weight_decay: float = 0.01
    averaging: float = 0.0  # average the weights over this last share of a training (0: keep those of one epoch)
    soup: int | None = None  # number of trainings from one start whose weights are averaged; None: `train` decides
    search_epochs: int = 0  # epochs of each learning-rate trial (0: as many as the training)
    lr_decay: float = 1.0  # each layer of the encoder learns at this share of the rate of the layer above it
    freeze: str = "none"  # of the encoder: none, features, a number of layers, or all
    patience: int = 0  # end the training after this many epochs without a gain on validation (0: never)
    head_init: Literal["random", "probe"] = "random"  # probe: vanilla fine-tuning starts from a linear probe
    # the objective
    loss: Loss = "supcon"
    temperature: float = 0.1
    loss_margin: float = 0.1  # in cosine, for triplet and proxy-anchor
    mining: Mining = "hardness"
    hardness: float = 4.0
    mining_share: float = 0.5  # of each anchor's pairs, for hardest-negatives and hardest-positives
    mining_margin: float = 0.1  # in cosine, for semi-hard and multi-similarity
    projection_dim: int = 64
    projection_layers: int = 1  # linear layers; each one beyond the first is a hidden layer of the embedding's size
    # the probes
    probe_views: int = 8
    frozen_baseline: bool = True
    # the machine
    device: str = "auto"
    precision: Precision = "fp32"  # auto: bf16 where the processor supports it natively
    strict: bool = False

    def __post_init__(self) -> None:
        for name, hint in _key_types().items():
            check_type(name, hint, getattr(self, name))
        self._check_values()
        self._check_combinations()

    def _check_values(self) -> None:
        at_least = {
            "seed": 0, "epochs": 1, "classes_per_batch": 2, "search_epochs": 0, "projection_dim": 2, "probe_views": 1,
            "accumulate": 1, "chunk_size": 0, "patience": 0, "lora_rank": 0, "projection_layers": 1,
        }  # fmt: skip
        for key, low in at_least.items():
            if getattr(self, key) < low:
                raise UsageError(f"recipe key '{key}' must be at least {low}; it is {getattr(self, key)}")
        for key in ("layers", "clips_per_class", "soup"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise UsageError(f"recipe key '{key}' must be at least 1; it is {value}")
        if self.seed >= 2**63:
            raise UsageError(f"recipe key 'seed' must be below 2**63; it is {self.seed}")
        for key in ("window", "temperature", "head_lr"):
            if getattr(self, key) <= 0:
                raise UsageError(f"recipe key '{key}' must be above 0; it is {getattr(self, key)}")
        for key in ("shift", "gain", "speed", "equaliser", "hardness", "loss_margin", "mining_margin", "weight_decay"):
            if (getattr(self, key) or 0) < 0:
                raise UsageError(f"recipe key '{key}' must not be negative; it is {getattr(self, key)}")
        if min(self.lr, default=1.0) <= 0:
            raise UsageError(f"recipe key 'lr' must hold learning rates above 0; it is {list(self.lr)}")
        if not 0 <= self.averaging < 1:
            raise UsageError(f"recipe key 'averaging' must be at least 0 and below 1; it is {self.averaging}")
        if not 0 < self.lr_decay <= 1:
            raise UsageError(f"recipe key 'lr_decay' must be above 0 and at most 1; it is {self.lr_decay}")
        if self.freeze not in ("none", "features", "all") and not re.fullmatch(r"[1-9][0-9]*", self.freeze):
            raise UsageError(
                f"recipe key 'freeze' must be none, features, a number of layers or all; it is {self.freeze!r}"
            )
        for key in ("others", "background"):
            check_places(f"recipe key '{key}'", getattr(self, key))
        if self.speed > 0.5:
            raise UsageError(f"recipe key 'speed' must be at most 0.5; it is {self.speed}")
        for key in ("noise_probability", "room_probability", "band_probability", "codec_probability"):
            if not 0 <= getattr(self, key) <= 1:
                raise UsageError(f"recipe key '{key}' must be between 0 and 1; it is {getattr(self, key)}")
        if not 0 < self.mining_share <= 1:
            raise UsageError(f"recipe key 'mining_share' must be above 0 and at most 1; it is {self.mining_share}")

    def _check_combinations(self) -> None:
        if self.objective == "pairtune" and self.clips_per_class == 1:
            raise UsageError("recipe key 'clips_per_class' must be at least 2 for pairtune: an anchor needs a positive")
        if self.lora_rank and (self.trainings > 1 or self.averaging):
            mean = "soup" if self.trainings > 1 else "averaging"
            raise UsageError(
                f"recipe key '{mean}' cannot be combined with recipe key 'lora_rank': averaging an adapter's two factors"
                " does not average the weights they make"
            )
        if self.trainings > 1 and self.patience:
            raise UsageError(
                "recipe key 'soup' cannot be combined with recipe key 'patience': all trainings of a soup have the same"
                " length, so none may end early"
            )
        if self.lora_rank and self.freeze == "all":
            raise UsageError(
                "recipe key 'lora_rank' cannot be combined with recipe key 'freeze' all: the adapters would be frozen too"
            )
        if self.averaging and self.patience:
            raise UsageError(
                "recipe key 'averaging' cannot be combined with recipe key 'patience': if a training may end early, it is"
                " not known when its last part begins"
            )
        if self.head_init == "probe" and self.objective != "finetune":
            raise UsageError("recipe key 'head_init' probe needs the objective finetune: pairtune has no head")
        if self.objective == "pairtune" and self.mining not in _MINING[self.loss]:
            raise UsageError(
                f"recipe key 'loss' {self.loss} cannot use recipe key 'mining' {self.mining}; use mining"
                f" {' or '.join(_MINING[self.loss])}"
            )
        if self.snr_low > self.snr_high:
            raise UsageError(
                f"recipe key 'snr_low' ({self.snr_low}) must not be above recipe key 'snr_high' ({self.snr_high})"
            )

    def to_dict(self) -> dict[str, Any]:
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    def encoder_options(self) -> dict[str, Any]:
        """The arguments of `confit_edge.encoders.pretrained` other than the encoder's name and the window."""
        return {key: getattr(self, key) for key in ("initialise", "layers", "pooling", "layer_weights", "seed")}

    @property
    def trainings(self) -> int:
        """The number of trainings whose weights are averaged; 1 while `soup` is undecided."""
        return self.soup or 1

    def corpus_options(self) -> dict[str, Any]:
        """The arguments of `confit_edge.data.corpus.read_corpus` that choose the clips and their splits."""
        same = {key: getattr(self, key) for key in ("seed", "label_column", "group_column", "split_by")}
        same["longest_s"] = self.window if self.trim else None
        return {**same, "others": self.others, "background": self.background}

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: str = "recipe") -> Recipe:
        """A recipe from plain data. Raises UsageError naming a key that is unknown or has the wrong type."""
        check_keys(raw, {field.name for field in dataclasses.fields(cls)}, source)
        values = dict(raw)
        for key in {"lr", "others", "background"} & values.keys():
            if values[key] is None and key != "lr":
                values[key] = ()  # a key without a value
            else:
                values[key] = tuple(values[key]) if isinstance(values[key], list | tuple) else (values[key],)
        if type(values.get("freeze")) is int:
            values["freeze"] = str(values["freeze"])
        try:
            return cls(**values)
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error

    @classmethod
    def from_file(cls, path: Path, **flags: Any) -> Recipe:
        """A recipe from a YAML file or a shipped recipe; `flags` from the command line override its keys."""
        return cls.from_dict({**read_yaml(path), **flags}, str(path))


def check_places(option: str, places: Sequence[str]) -> None:
    """Raise UsageError if a place is empty: as a path that is the current folder, which nobody meant."""
    if "" in places:
        raise UsageError(f"{option}: is empty (is a variable not set?); use . for the current folder")


@cache
def _key_types() -> dict[str, Any]:
    """The type of each key. Cached: resolving one takes a tenth of a millisecond, and a study makes hundreds of recipes."""
    return typing.get_type_hints(Recipe)


def check_no_idle_keys(recipe: Recipe, given: Collection[str]) -> None:
    """Raise UsageError where a key `given` on the command line has no effect with the rest of its recipe."""
    acts = {
        "hardness": ("mining", ("hardness",)),
        "mining_share": ("mining", ("hardest-negatives", "hardest-positives")),
        "mining_margin": ("mining", ("semi-hard", "multi-similarity")),
        "temperature": ("loss", ("supcon", "nt-xent", "n-pairs")),
        "loss_margin": ("loss", ("triplet", "proxy-anchor")),
    }
    for key in given:
        flag = f"--{key.replace('_', '-')}"
        if recipe.objective != "pairtune" and key in (*acts, "loss", "mining", "projection_dim", "projection_layers"):
            raise UsageError(f"{flag} belongs to the objective pairtune and has no effect with {recipe.objective}")
        if key in acts and getattr(recipe, acts[key][0]) not in acts[key][1]:
            by, values = acts[key]
            raise UsageError(
                f"{flag} has no effect with {by} {getattr(recipe, by)}; it belongs to {by} {', '.join(values)}"
            )


def shipped_recipe(name: str) -> Path:
    """The path of the shipped recipe with this name. Raises UsageError listing the shipped recipes."""
    path = MODELS / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in MODELS.glob("*.yaml")))
        what = "is a folder" if Path(name).is_dir() else "no such file"
        raise UsageError(f"{name}: {what}, and no shipped recipe has that name (shipped: {names})")
    return path


def check_keys(raw: Collection[Any], known: Collection[str], source: str) -> None:
    """Raise UsageError for keys of a recipe that are not `known`, with the closest that is."""
    unknown = [
        (key, difflib.get_close_matches(key.replace("-", "_"), known, 1))
        for key in sorted(map(str, raw))
        if key not in known
    ]
    if unknown:
        named = [f"{key} (did you mean {near[0]}?)" if near else key for key, near in unknown]
        listed = "" if all(near for _, near in unknown) else f"; known are {', '.join(sorted(known))}"
        raise UsageError(f"{source}: unknown keys: {', '.join(named)}{listed}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe file or, given a bare name, of a shipped recipe. Raises UsageError."""
    import yaml

    if not path.is_file() and not path.suffix and len(path.parts) == 1:
        path = shipped_recipe(path.name)
    if not path.exists():
        raise UsageError(f"{path}: no such file")

    class Loader(yaml.SafeLoader):
        """Reads `5e-4` as a number: PyYAML follows YAML 1.1 and would read it as text, as it has no decimal point.

        Refuses aliases: a few lines of them can expand to more than fits in memory. Refuses a key that is there twice.
        """

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                alias = self.peek_event().anchor
                raise UsageError(f"{path}: contains a YAML alias (*{alias}); write out what it stands for")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            if isinstance(node, yaml.MappingNode):
                keys = [self.construct_object(key, deep=True) for key, _ in node.value]
                for repeated in (key for at, key in enumerate(keys) if key in keys[:at]):
                    raise UsageError(f"{path}: contains the key {repeated} twice; keep one of the two")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, thousands of digits, the 99th of a month
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply for a recipe, which is a list of `key: value` lines") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: not a recipe, which is a list of `key: value` lines")
    return raw


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_LISTS = {float: "[3e-4, 1e-3]", str: "[music, talk]"}


def check_type(key: str, hint: Any, value: Any) -> None:
    """Raise UsageError where the value of a recipe key does not have its type."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value not in options:
            raise UsageError(f"recipe key '{key}' must be one of {', '.join(options)}; it is {_shown(value)}")
        return
    kind = options[0] if options else hint
    must = _KINDS[kind]
    if typing.get_origin(hint) is tuple:
        wrong = [item for item in value if not _has_type(item, kind)] if isinstance(value, tuple) else [value]
        good, value = not wrong, next(iter(wrong), value)
        must += f" or a list, such as {_LISTS[kind]}"
    else:
        good = (value is None and type(None) in options) or _has_type(value, kind)
    if not good:
        raise UsageError(f"recipe key '{key}' must be {must}; it is {_shown(value)}")


def _shown(value: Any) -> str:
    """A value as shown in a message; a long or nested one is cut short."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring = 2, LONGEST_SHOWN
    text = short.repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _has_type(value: Any, kind: type) -> bool:
    if kind is float:
        most = sys.float_info.max  # an int may be larger
        return isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
