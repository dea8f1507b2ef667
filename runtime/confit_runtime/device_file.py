"""`MODEL.device.json`: the detection settings for one model on one device, and the report behind them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confit_runtime.contract import Contract
from confit_runtime.errors import ModelError, UsageError
from confit_runtime.json_fields import check_type, read_fields

SCHEMA = 1


@dataclass(frozen=True)
class DeviceFile:
    """Thresholds of one model (as in its contract), and what `calibrate` measured.

    It is bound to `model_digest`, the SHA-256 (hex) of the model's graph. `model` is the model's name, `made` an ISO
    date.
    """

    schema: int
    model: str
    model_digest: str
    embedding_id: str
    thresholds: dict[str, dict[str, float]]
    smoothing_hops: int
    min_hops: int
    refractory_s: float
    report: dict[str, Any]
    made: str
    version: str

    def apply(self, contract: Contract, digest: str, source: Path) -> Contract:
        """`contract` with these detection settings, and the report as `calibration["device"]`, plus `file` and `made`.

        Raises ModelError if the file was made for another model.
        """
        if digest != self.model_digest:
            raise ModelError(
                f"{source}: is the calibration of another model ({self.model}), not of {contract.name}:"
                " calibrate this one, or remove the file"
            )
        if self.thresholds.keys() != set(contract.labels):
            raise ModelError(f"{source}: its labels differ from those of {contract.name}: calibrate again")
        try:
            return dataclasses.replace(
                contract,
                thresholds=self.thresholds,
                smoothing_hops=self.smoothing_hops,
                min_hops=self.min_hops,
                refractory_s=self.refractory_s,
                calibration={
                    **contract.calibration,
                    "device": {**self.report, "file": str(source), "made": self.made},
                },
            )
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from error

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def device_path(model: Path) -> Path:
    """Where the device file of a model file is, or is to be written: `words.device.json` next to `words.onnx`.

    For a link without a device file next to it, it is that of the link's target, if there is one.
    """
    adjacent, of_target = _adjacent_path(model), _adjacent_path(model.resolve())
    return of_target if of_target.exists() and not adjacent.exists() else adjacent


def _adjacent_path(model: Path) -> Path:
    return model.with_suffix(".device.json")


def check_no_device_file(model: Path) -> None:
    """Raise UsageError if a device file is next to a model to be written: it would be taken for the new model's.

    The target of a link does not matter: the new model replaces the link.
    """
    if (path := _adjacent_path(model)).exists():
        raise UsageError(
            f"{path}: is the calibration of an existing or former {model.name}, not of a new one: remove it (and"
            " calibrate the new model), or write to another name"
        )


def read_device_file(path: Path) -> DeviceFile:
    """Read and check a device file. Raises ModelError naming the file and the key at fault."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    raw = read_fields(DeviceFile, text, f"{path}:", SCHEMA, "calibrate again, or remove it")
    for field in dataclasses.fields(DeviceFile):
        check_type(f"{path}: {field.name}", str(field.type), raw[field.name])
    return DeviceFile(**raw)
