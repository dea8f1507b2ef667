"""The run directory: one training with one objective, as plain files without pickle.

Every file but the plots is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from confit_edge import __version__
from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.data.manifest import SPLITS
from confit_edge.data.others import WORDS
from confit_edge.data.tables import check_utf8
from confit_edge.encoders import build
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.own import copy_of, plain
from confit_edge.files import write_tensors, write_text
from confit_edge.probes.knn import KnnProbe
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.tables import write_csv
from confit_edge.probes.typicality import Typicality
from confit_edge.recipe import Recipe, check_places
from confit_runtime.errors import ConfitError, UsageError
from confit_runtime.formatting import format_count, format_quoted_list

SCHEMA = 2
LONGEST_WINDOW_S = 3600.0  # of an encoder; a run.json with a longer one is damaged
CHECKPOINT = "checkpoint.safetensors"
_FILES = ("run.json", "metrics.json", "encoder.safetensors", "probe.safetensors")


@dataclass(frozen=True)
class RunInfo:
    """The content of `run.json`: what was trained, on which data, with which recipe and versions."""

    name: str
    recipe: dict[str, Any]
    encoder: dict[str, Any]  # Encoder.spec()
    classes: list[str]
    unknown: str | None
    multi_label: bool
    lr: float  # chosen on validation where the recipe lists several
    kept_epoch: int
    data: dict[str, Any]  # manifest, fingerprint, clips and groups by split, seconds of background by use, problems
    encoder_sha256: str  # of the weights that training began with
    distilled: dict[str, Any] | None = None  # for a student: its teacher, the lesson, the unlabelled sound
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True)
class Run:
    """A finished run, loaded."""

    path: Path
    info: RunInfo
    recipe: Recipe
    encoder: Encoder
    linear: LinearProbe
    knn: KnnProbe
    typicality: Typicality
    metrics: dict[str, Any]


def versions() -> dict[str, str]:
    """The versions that produce a run: Python, the machine type and the libraries that affect its numbers."""
    found = {"confit-edge": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "transformers", "scikit-learn", "numpy", "soxr", "soundfile"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def write_run(
    path: Path,
    info: RunInfo,
    *,
    encoder: Encoder,
    projection: dict[str, Tensor],
    linear: LinearProbe,
    knn: KnnProbe,
    typicality: Typicality,
    metrics: dict[str, Any],
    history: list[dict[str, float]],
    card: str,
) -> None:
    """Write every file of a run; `run.json` comes last, so a folder that has it is complete."""
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / "encoder.safetensors", encoder.state_dict())
    write_tensors(path / "projection.safetensors", projection)
    arrays: dict[str, npt.NDArray] = {
        "linear.weight": linear.weight,
        "linear.bias": linear.bias,
        "knn.prints": knn.prints,
        "knn.targets": knn.targets,
    }
    arrays |= {f"typicality.{key}": getattr(typicality, key) for key in ("slope", "offset", "axes")}
    write_tensors(path / "probe.safetensors", {key: torch.from_numpy(value) for key, value in arrays.items()})
    write_csv(path / "history.csv", history)
    write_text(path / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    write_text(path / "README.md", card)
    write_text(path / "run.json", json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n")


def read_info(path: Path) -> RunInfo:
    """`run.json` of a finished run. Raises ConfitError when it is damaged or from another version."""
    reading = path / "run.json"
    try:
        raw = json.loads(reading.read_text(encoding="utf-8"))
        if raw.get("schema") != SCHEMA:
            raise ConfitError(f"{reading}: this version cannot read schema {raw.get('schema')} (it reads {SCHEMA})")
        info = RunInfo(**raw)
        _check_data(info.data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfitError(damaged(reading, error)) from error
    return info


def _check_data(data: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError where the description of the training data is incomplete."""
    for key in ("manifest", "fingerprint"):
        if not isinstance(data[key], str):
            raise ValueError(f"data: {key} is not text")
    for what in ("clips", "groups"):
        for split in SPLITS:
            if not isinstance(data[what][split], int):
                raise ValueError(f"data: the number of {split} {what} is not a whole number")


def damaged(path: Path, error: Exception) -> str:
    return f"{path}: damaged or from another version ({str(error).splitlines()[0]})"


def read_run(path: str | Path, *, encoder: Encoder | None = None) -> Run:
    """Load a finished run. Raises UsageError when `path` is not one, ConfitError naming a damaged file.

    A run whose encoder is your own, unknown to confit-edge, needs an `encoder` of the same architecture: a copy of it
    takes the weights.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file as load_arrays
    from safetensors.torch import load_file as load_tensors

    path = Path(path)
    check_utf8(path)
    if (path / CHECKPOINT).is_file() and not (path / "run.json").is_file():
        raise UsageError(
            f"{path}: this training has not finished; continue it: confit-edge train MANIFEST -o {quote(str(path))} --resume"
        )
    if absent := [name for name in _FILES if not (path / name).is_file()]:
        raise UsageError(f"{path}: not a run (it lacks {', '.join(absent)}); make one with `confit-edge train`")
    info, reading = read_info(path), path / "run.json"
    try:
        recipe = Recipe.from_dict(info.recipe, str(reading))
        encoder = _build(info.encoder, reading) if encoder is None else _copy_matching(encoder, info.encoder, path)
        reading = path / "encoder.safetensors"
        encoder.load_state_dict(load_tensors(reading), strict=True)
        reading = path / "probe.safetensors"
        arrays = load_arrays(reading)
        linear = LinearProbe(arrays["linear.weight"], arrays["linear.bias"], info.multi_label)
        if linear.weight.shape != (len(info.classes), encoder.dim):
            raise ValueError(
                f"a probe of shape {list(linear.weight.shape)} for {len(info.classes)} classes and {encoder.dim} dimensions"
            )
        typicality = _typicality(arrays, info, encoder.dim)
        reading = path / "metrics.json"
        metrics = json.loads(reading.read_text(encoding="utf-8"))
        knn = KnnProbe(arrays["knn.prints"], arrays["knn.targets"], metrics["probes"]["k"], metrics["probes"]["metric"])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ConfitError(damaged(reading, error)) from error
    return Run(path, info, recipe, encoder.eval(), linear, knn, typicality, metrics)


def with_current_paths(
    runs: list[Run], *, background: Sequence[str] = (), others: Sequence[str] = (), encoder: Path | None = None
) -> list[Run]:
    """The runs with the current paths of their background, others and the encoder folder they began with.

    Raises UsageError for paths that none of them needs, or that differ in number from those of one.
    """
    for key, places in (("background", background), ("others", others)):
        if not places:
            continue
        check_places(f"--{key}", places)
        using = [run for run in runs if getattr(run.recipe, key)]
        if not using:
            raise UsageError(
                f"--{key} {' '.join(places)}: no --{key} was used to train {', '.join(str(run.path) for run in runs)}; leave it"
                " out"
            )
        for run in using:
            if len(trained := getattr(run.recipe, key)) != len(places):
                raise UsageError(
                    f"--{key} is given {format_count(len(places), 'time')}, but {run.path} was trained with"
                    f" {len(trained)}: {', '.join(trained)}; give all of them, in this order"
                )
        now: dict[str, Any] = {
            key: tuple(place if key == "others" and place == WORDS else str(Path(place).resolve()) for place in places)
        }
        runs = [replace(run, recipe=replace(run.recipe, **now)) if getattr(run.recipe, key) else run for run in runs]
    return _with_encoder_folder(runs, encoder) if encoder else runs


def _with_encoder_folder(runs: list[Run], encoder: Path) -> list[Run]:
    """The runs, where those that began with an encoder folder now name this one.

    If the folders of some no longer exist, only those change.
    """
    if not encoder.is_dir():
        raise UsageError(f"--encoder {encoder}: no such folder")
    folders = {run.recipe.encoder for run in runs if Path(run.recipe.encoder).is_absolute()}
    if not folders:
        began = ", ".join(f"{run.path} with {run.recipe.encoder}" for run in runs)
        raise UsageError(
            f"--encoder {encoder}: only for runs that began with an encoder folder (here: {began}); leave it out"
        )
    lost = {folder for folder in folders if not Path(folder).is_dir()} or folders
    now = str(encoder.resolve())
    return [
        replace(run, recipe=replace(run.recipe, encoder=now)) if run.recipe.encoder in lost else run for run in runs
    ]


def run_corpus(run: Run, manifest: str | Path | None = None) -> Corpus:
    """The corpus a run was trained on, read again. Raises UsageError when it is missing or has changed."""
    source = Path(manifest or run.info.data["manifest"])
    if not source.exists():
        raise UsageError(
            f"{source}: the run's manifest is missing; give its current path (export --data; probe, analyze and distill"
            " --manifest)"
        )
    for key in ("background", "others"):
        for place in getattr(run.recipe, key):
            if not ((key == "others" and place == WORDS) or Path(place).exists()):
                raise UsageError(
                    f"{place}: the --{key} that {run.path} was trained with is missing; give its current path (--{key})"
                )
    corpus = read_corpus(source, rate=run.encoder.sample_rate, **run.recipe.corpus_options())
    check_same_data(run, corpus)
    return corpus


def check_same_data(run: Run, corpus: Corpus) -> None:
    """Raise UsageError where `corpus` is not the data the run was trained on."""
    corpus.check_rate(run.encoder.sample_rate)
    if corpus.fingerprint != run.info.data["fingerprint"] or corpus.classes != run.info.classes:
        raise UsageError(
            f"{corpus.manifest.source}: not the data that {run.path} was trained on:"
            f" {_describe_difference(run.info, corpus, run.encoder.sample_rate)}{_left_out(corpus)}"
        )


def sizes(corpus: Corpus, rate: int) -> dict[str, Any]:
    """The number of clips and groups in each split, and the seconds of background for training and for thresholds."""
    splits = {"train": corpus.train, "val": corpus.val, "test": corpus.test}
    return {
        "clips": {name: len(clips) for name, clips in splits.items()},
        "groups": {name: len(set(clips.groups)) for name, clips in splits.items()},
        "background_train_s": round(sum(map(len, corpus.background_train)) / rate, 1),
        "background_val_s": round(sum(map(len, corpus.background_val)) / rate, 1),
    }


def _describe_difference(info: RunInfo, corpus: Corpus, rate: int) -> str:
    """A sentence on how `corpus` differs from the data of a run."""
    was, now = info.data, sizes(corpus, rate)
    differences = []
    if lost := sorted(set(info.classes) - set(corpus.classes)):
        differences.append(f"it has no clip of {format_quoted_list(lost)}")
    if new := sorted(set(corpus.classes) - set(info.classes)):
        differences.append(f"it has {format_quoted_list(new)}, which the run does not know")
    for split in SPLITS:
        before, after = (
            f"{format_count(data['clips'][split], 'clip')} of {format_count(data['groups'][split], 'group')}"
            for data in (was, now)
        )
        if before != after:
            differences.append(f"{split} had {before} and now has {after}")
    differences += [
        f"the background {use} lasted {was[key]:g} s and now lasts {now[key]:g} s"
        for key, use in (("background_train_s", "for training"), ("background_val_s", "for thresholds"))
        if was[key] != now[key]
    ]
    same = "the same number of clips and groups of the same classes, but different sound, labels, splits or background"
    return "; ".join(differences) or same


def _left_out(corpus: Corpus) -> str:
    """The first file that was left out, as the end of the sentence on what differs."""
    if not corpus.problems:
        return ""
    first, more = corpus.problems[0], len(corpus.problems) - 1
    return f"; left out: {first.path} {first.detail}" + (f", and {format_count(more, 'more file')}" if more else "")


def _typicality(arrays: dict[str, npt.NDArray], info: RunInfo, dim: int) -> Typicality:
    slope, offset, axes = (arrays[f"typicality.{key}"] for key in ("slope", "offset", "axes"))
    classes = len(info.classes)
    if slope.shape != (classes, dim) or offset.shape != (classes,) or axes.ndim != 2 or axes.shape[1] != dim:
        raise ValueError(
            f"a typicality of shapes {list(slope.shape)} and {list(axes.shape)} for {classes} classes and {dim} dimensions"
        )
    return Typicality(slope, offset, axes, info.classes.index(info.unknown) if info.unknown is not None else None)


def _build(spec: dict[str, Any], source: Path) -> Encoder:
    try:
        encoder = build(spec)
    except ConfitError as error:
        raise ConfitError(f"{source}: {error}") from error
    lasts_s = encoder.window / encoder.sample_rate
    if not 0 < lasts_s <= LONGEST_WINDOW_S:
        raise ValueError(f"the encoder's window is {lasts_s:g} s")
    return encoder


def _copy_matching(given: Encoder, spec: dict[str, Any], path: Path) -> Encoder:
    """A copy of the encoder that was given for a run. Raises UsageError where its spec is not the run's."""
    if plain(given.spec()) != spec:
        raise UsageError(f"{path}: its encoder is {spec}, but the one given is {given.spec()}")
    return copy_of(given)


def weights_sha256(encoder: Encoder) -> str:
    """A digest of an encoder's weights: names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values, whatever their type; through torch, as NumPy has no bfloat16."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
