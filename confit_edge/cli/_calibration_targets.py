"""What `calibrate` sets thresholds for: the labels of a model, or the names of a gallery."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from confit_runtime import device_file
from confit_runtime.arrays import Floats
from confit_runtime.audio import Pcm
from confit_runtime.calibration import RELEASE
from confit_runtime.contract import Contract
from confit_runtime.errors import ConfitError, ModelError, UsageError
from confit_runtime.gallery import Gallery
from confit_runtime.model import Model
from confit_runtime.name_calibration import name_recordings, name_rows, names_contract
from confit_runtime.names import normalise
from confit_runtime.recordings import Output, Recording, clip_rows


@dataclass(frozen=True)
class CalibrationTarget:
    """Whose thresholds are set.

    - `noun`: what they belong to, `label` or `name`.
    - `contract`: their names, and the thresholds they came with.
    - `output`: of the model, from which their scores are made: `score_recordings`, and `score_clip` for a clip `[samples]`.
    - `release`: the share of its level below which one that fired is armed again.
    - `others_keep_theirs`: whether those that --only leaves out keep their thresholds, rather than never firing.
    - `alone`: how to calibrate one of them by itself.
    - `about`: what the report says of where they are written.
    - `by_hand_before()`: the thresholds set by hand that writing replaces.
    - `write(contract, report)`: keeps the thresholds and the report; returns where, and how to undo it.
    """

    noun: str
    contract: Contract
    output: Output
    score_recordings: Callable[[list[Recording]], list[Recording]]
    score_clip: Callable[[Pcm], Floats]
    release: float
    others_keep_theirs: bool
    alone: str
    about: dict[str, Any]
    by_hand_before: Callable[[], dict[str, float]]
    write: Callable[[Contract, dict[str, Any]], str]


def labels_target(model: Model, bake: Path | None) -> CalibrationTarget:
    """The labels of a model; their thresholds go into a device file or, with `bake`, into a copy of the model."""

    def write(contract: Contract, report: dict[str, Any]) -> str:
        written = _write_labels(model, contract, report, bake)
        undo = "" if bake else f"; programs that load {model.path.name} use its thresholds until you remove it"
        return f"wrote {written}{undo}"

    return CalibrationTarget(
        noun="label",
        contract=model.contract,
        output="scores",
        score_recordings=lambda recordings: recordings,
        score_clip=lambda pcm: clip_rows(model, pcm),
        release=RELEASE,
        others_keep_theirs=False,
        alone="To calibrate one label by itself, into a copy of the model: --only LABEL --bake LABEL.onnx",
        about={},
        by_hand_before=lambda: {} if bake else _by_hand_before(device_file.device_path(model.path)),
        write=write,
    )


def names_target(model: Model, path: Path, only: Collection[str]) -> CalibrationTarget:
    """The names of the gallery at `path`; the thresholds (with `only`, of these names) go into it.

    Raises UsageError if nobody is enrolled, and what opening the gallery raises.
    """
    with Gallery.open(path, model) as gallery:
        before = _all_prints(gallery)
        if not before:
            raise UsageError(f"{path}: nobody is enrolled, so there are no thresholds to set")
        contract = names_contract(model.contract, gallery.matcher)
    with Gallery.open(path, model, threshold=-1.0) as gallery:
        scorer = gallery.matcher

    def write(contract: Contract, report: dict[str, Any]) -> str:
        levels = {name: min(1.0, contract.thresholds[name]["on"]) for name in map(normalise, only or contract.labels)}
        with Gallery.open(path, model) as gallery, gallery.change():
            if _all_prints(gallery) != before:
                raise ConfitError(
                    f"{path}: was changed meanwhile, so nothing was written; calibrate again (no hour is streamed twice)"
                )
            gallery.calibrate(levels, report["target_fa_per_hour"], datetime.date.today().isoformat())
        undo = f"confit-edge gallery uncalibrate --gallery {quote(str(path))}"
        return f"wrote {path}; programs that listen with it use these thresholds until you run `{undo}`"

    return CalibrationTarget(
        noun="name",
        contract=contract,
        output="embedding",
        score_recordings=lambda recordings: name_recordings(recordings, scorer),
        score_clip=lambda pcm: name_rows(clip_rows(model, pcm, "embedding"), scorer),
        release=1.0,
        others_keep_theirs=True,
        alone="To calibrate one name by itself: --only NAME",
        about={"gallery": str(path)},
        by_hand_before=dict,
        write=write,
    )


def _by_hand_before(path: Path) -> dict[str, float]:
    """The thresholds in the device file at `path` that were set by hand; none if it cannot be read."""
    try:
        before: dict[str, float] = device_file.read_device_file(path).report.get("by_hand", {})
    except ModelError:
        return {}
    return before


def _all_prints(gallery: Gallery) -> dict[str, list[set[bytes]]]:
    """The prints and the negative prints of each enrolled name."""
    return {name: [gallery.blobs(name, negative=sign) for sign in (False, True)] for name in gallery.names()}


def _write_labels(model: Model, contract: Contract, report: dict[str, Any], bake: Path | None) -> Path:
    """Write the device file, or with `bake` a copy of the model with the thresholds in its contract; return its path."""
    from confit_edge import __version__
    from confit_runtime.contract import read_sealed, seal
    from confit_runtime.files import write_atomic

    if bake is not None:
        calibration = {**contract.calibration, "device": report}
        baked = dataclasses.replace(contract, name=bake.stem, calibration=calibration)
        sealed = model.path.read_bytes()
        write_atomic(bake, seal(sealed[: read_sealed(sealed).graph_size], baked))
        return bake
    path = device_file.device_path(model.path)
    made = device_file.DeviceFile(
        schema=device_file.SCHEMA,
        model=contract.name,
        model_digest=model.digest,
        embedding_id=contract.embedding_id,
        thresholds=contract.thresholds,
        smoothing_hops=contract.smoothing_hops,
        min_hops=contract.min_hops,
        refractory_s=contract.refractory_s,
        report=report,
        made=datetime.date.today().isoformat(),
        version=__version__,
    )
    write_atomic(path, made.to_json().encode())
    return path
