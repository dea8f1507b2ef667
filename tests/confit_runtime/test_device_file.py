"""Device files: read beside the model, refused where they are another model's or damaged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confit_runtime import ModelError, UsageError, load
from confit_runtime.contract import read_sealed, seal
from confit_runtime.device_file import SCHEMA, DeviceFile, check_no_device_file, device_path, read_device_file
from tests import tiny_model


def device_file(model: Path, **changes: Any) -> DeviceFile:
    loaded = load(model, calibrated=False)
    keys: dict[str, Any] = {
        "schema": SCHEMA,
        "model": "tiny",
        "model_digest": loaded.digest,
        "embedding_id": loaded.contract.embedding_id,
        "thresholds": {label: {"on": 0.9, "off": 0.5} for label in loaded.labels},
        "smoothing_hops": 3,
        "min_hops": 4,
        "refractory_s": 2.0,
        "report": {"hours": 6.0},
        "made": "2026-11-24",
        "version": "0",
    }
    return DeviceFile(**{**keys, **changes})


def levels(level: dict[str, float]) -> dict[str, dict[str, float]]:
    return {label: dict(level) for label in tiny_model.LABELS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_model.build(tmp_path / "tiny.onnx")


def test_detection_is_set_as_it_says(path: Path) -> None:
    device_path(path).write_text(device_file(path).to_json())
    contract = load(path).contract
    assert contract.thresholds["low"] == {"on": 0.9, "off": 0.5}
    assert (contract.smoothing_hops, contract.min_hops, contract.refractory_s) == (3, 4, 2.0)
    assert contract.calibration["device"] == {"hours": 6.0, "file": str(device_path(path)), "made": "2026-11-24"}
    assert load(path, calibrated=False).contract.min_hops == 2


def test_a_link_has_a_device_file_of_its_own_or_that_of_the_file_it_leads_to(path: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    link = tmp_path / "etc" / "current.onnx"
    link.symlink_to("../tiny.onnx")
    own = tmp_path / "etc" / "current.device.json"
    assert device_path(link) == own  # where neither is there
    assert load(link).contract.min_hops == 2
    device_path(path).write_text(device_file(path).to_json())
    assert device_path(link) == device_path(path)
    contract = load(link).contract
    assert (contract.min_hops, contract.calibration["device"]["file"]) == (4, str(device_path(path)))
    check_no_device_file(link)  # a new model would take the place of the link
    own.write_text(device_file(path, min_hops=3).to_json())
    assert load(link).contract.min_hops == 3
    assert load(path).contract.min_hops == 4
    with pytest.raises(UsageError, match=r"current\.device\.json: is the calibration"):
        check_no_device_file(link)


def test_a_label_may_have_a_refractory_time_of_its_own(path: Path) -> None:
    own = device_file(path).thresholds | {"low": {"on": 0.6, "off": 0.3, "refractory_s": 1.5}}
    device_path(path).write_text(device_file(path, thresholds=own, min_hops=2, refractory_s=0.0).to_json())
    sound = np.concatenate([tiny_model.tone(500, 0.25), tiny_model.silence(0.3)] * 5)

    def times(calibrated: bool) -> list[float]:
        return [event.end_s for event in load(path, calibrated=calibrated).stream().accept(sound, tiny_model.RATE)]

    first, second = times(calibrated=True)
    assert second - first >= 1.5
    assert len(times(calibrated=False)) == 5


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_digest": "0" * 64}, "another model"),
        ({"schema": 99, "version": "9.1"}, r"schema 99 is newer.*written by confit-edge 9\.1.*: update confit-edge"),
        ({"schema": True}, "schema must be int"),
        ({"schema": 0}, "schema 0 is from an older confit-edge.*calibrate again"),
        ({"thresholds": {"low": {"on": 0.9, "off": 0.5}}}, "labels"),
        ({"thresholds": levels({"on": 0.1, "off": 0.5})}, "on >= off"),
        ({"thresholds": levels({"on": 0.9, "off": 0.5, "refractory_s": -1})}, "refractory_s"),
        ({"thresholds": levels({"on": 0.9, "off": 0.5, "level": 1})}, "refractory_s"),
        ({"thresholds": levels({"on": 10**400, "off": 0.5})}, "levels beyond"),
        ({"thresholds": []}, "thresholds"),
        ({"min_hops": 0}, "min_hops"),
        ({"smoothing_hops": "3"}, "smoothing_hops"),
        ({"made": None}, "made"),
    ],
)
def test_one_that_does_not_fit_is_refused(path: Path, changes: dict[str, Any], fault: str) -> None:
    device_path(path).write_text(device_file(path, **changes).to_json())
    with pytest.raises(ModelError, match=rf"tiny\.device\.json.*{fault}"):
        load(path)


def test_unknown_and_missing_keys_give_advice(path: Path) -> None:
    raw = json.loads(device_file(path, version="9.1").to_json())
    device_path(path).write_text(json.dumps({**raw, "colour": "red"}))
    with pytest.raises(ModelError, match=r"unknown keys \(colour\): written by confit-edge 9\.1.*: update confit-edge"):
        load(path)
    del raw["made"]
    device_path(path).write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="lacks made: calibrate again"):
        load(path)


def test_a_copy_with_other_thresholds_keeps_its_calibration(path: Path) -> None:
    """It is bound to the graph, which says what the scores are, and not to the contract."""
    contract = load(path, calibrated=False).contract
    device_path(path).write_text(device_file(path).to_json())
    model = path.read_bytes()
    path.write_bytes(seal(model[: read_sealed(model).graph_size], dataclasses.replace(contract, refractory_s=9.0)))
    assert load(path).contract.refractory_s == 2.0


@settings(max_examples=60)
@given(data=st.data())
def test_damage_is_a_model_error(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tiny_model.build(tmp_path_factory.mktemp("damage") / "tiny.onnx")
    whole = device_file(path).to_json().encode()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    damaged = whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:]
    device = device_path(path)
    device.write_bytes(damaged)
    try:
        read = read_device_file(device)
    except ModelError:
        return
    assert json.loads(damaged).keys() == dataclasses.asdict(read).keys()
