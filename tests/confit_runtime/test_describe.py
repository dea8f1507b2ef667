"""A model in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from confit_runtime.describe import facts
from confit_runtime.errors import ModelError
from tests import tiny_model

LEVELS = {
    "low": {"on": 0.95, "off": 0.3},
    "mid": {"on": 0.5, "off": 0.3},
    "high": {"on": 1.01, "off": 0.3},
    "other": {"on": 0.2, "off": 0.1},
}


def test_thresholds_are_described_as_a_range_and_silenced_labels() -> None:
    told = dict(facts(tiny_model.contract(thresholds=LEVELS), 1000))
    assert told["thresholds"] == "0.5 (mid) to 0.95 (low); never: high"
    assert told["thresholds from"] == "export, not calibrated since"
    report = {"hours": 7.7, "fa_per_hour_bound": 0.3894, "confidence": 0.95, "target_fa_per_hour": 0.5}
    told = dict(facts(tiny_model.contract(thresholds=LEVELS, calibration={"device": report}), 1000))
    assert told["thresholds from"] == (
        "calibration on 7.70 hours: at most 0.39 false accepts per hour (95 % confidence), target 0.5"
    )


def test_the_threshold_of_enrolled_names_is_described_with_its_trials() -> None:
    def described(**enroll: float) -> str | None:
        contract = tiny_model.contract(calibration={"enroll": {"kind": "sound", **enroll}})
        return dict(facts(contract, 1000)).get("enrolled names start at")

    assert described() is described(threshold=0.7) is None
    measured = described(threshold=0.7121, trials=1656, classes=24, false_accept_rate=0.01)
    assert measured == "0.71: passed by 1 % of strangers in 1656 trials with 24 classes"
    few = described(threshold=0.8975, trials=36, classes=3)
    assert few == "0.90: a guess, because 36 trials with 3 classes are too few to say how many strangers pass"


def test_misses_are_described_with_their_thresholds() -> None:
    fired = {"accuracy": 0.794, "low": 0.7, "high": 0.9, "n": 126}
    report = {"hours": 7.7, "fa_per_hour_bound": 0.3894, "confidence": 0.95, "target_fa_per_hour": 0.5}
    missed = {"clips": 540, "frr": 0.7, "frr_interval": [0.61, 0.789]}
    soft = {"db": 20.0, "fired": 51, "as_recorded": 100, "n": 126}
    plain = tiny_model.contract(metrics={"fired": fired, "test": fired, "softer": soft})
    told = dict(facts(plain, 1000))
    assert told["fires 20 dB softer, validation"] == "51 of 126 clips; at the recorded level 100"
    assert told["fires at the export's thresholds, test"].startswith("79.4 % [70.0, 90.0] of 126")
    assert "missed at the calibrated thresholds" not in told
    told = dict(facts(dataclasses.replace(plain, calibration={"device": {**report, **missed}}), 1000))
    assert told["missed at the calibrated thresholds"] == "70.0 % [61.0, 78.9] of 540 clips"
    assert "missed at the calibrated thresholds" not in dict(
        facts(dataclasses.replace(plain, calibration={"device": report}), 1000)
    )


def test_int8_models_computed_mostly_in_fp32_are_described_as_such() -> None:
    """As LSTMs are, which have no static int8."""
    nodes = {"LSTM": {"fp32": 3}, "MatMul": {"int8": 1}}
    cost = {"parameters": 1, "macs_per_second": {"fp32": 1_215_300_000, "int8": 300_000}, "nodes": nodes}
    parity = {"scheme": "static", "target": "portable", "kept_fp32": []}
    contract = dataclasses.replace(tiny_model.contract(), precision="int8", cost=cost, parity=parity, state={})
    told = dict(facts(contract, 1000))
    assert told["precision"].startswith("int8, but most multiply-adds are in fp32: export with --scheme dynamic")
    assert told["layers kept in fp32"] == "none of those that static can quantise"
    even = dataclasses.replace(contract, cost={**cost, "macs_per_second": {"fp32": 1, "int8": 1}})
    assert dict(facts(even, 1000))["precision"] == "int8"


@pytest.mark.parametrize(
    "changes",
    [
        {"cost": {"parameters": 1}},
        {"cost": {"parameters": 10**400, "macs_per_second": {}, "nodes": {}}},
        {"metrics": {"gate": True}},
        {"parity": {"lost": []}},
        {"calibration": {"device": {"hours": 6}}},
        {"calibration": {"device": {"frr": 0.5}}},
    ],
)
def test_reports_of_another_form_are_a_model_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="is malformed"):
        facts(dataclasses.replace(tiny_model.contract(), **changes), 1)


def test_the_layers_that_hurt_most_come_first() -> None:
    sweep = {"errors": {"a": 4.4e-05, "b": 2.8e-05, "c": 0.001739, "d": 0.0213}, "unmeasured": 0}
    parity = {"scheme": "static", "target": "portable", "kept_fp32": [], "sweep": sweep}
    told = dict(facts(tiny_model.contract(parity=parity), 1000))
    assert told["layers that hurt most"] == "d 0.021, c 0.0017, a 4.4e-05 (1 - cosine when quantised alone)"


@pytest.mark.parametrize(
    ("errors", "unmeasured", "shown"),
    [
        ({}, 4, "4 layers not measured for lack of time"),
        ({"a": 0.5}, 1, "a 0.5 (1 - cosine when quantised alone); 1 layer not measured for lack of time"),
    ],
)
def test_layers_that_were_not_measured_are_counted(errors: dict[str, float], unmeasured: int, shown: str) -> None:
    parity = {
        "scheme": "static",
        "target": "portable",
        "kept_fp32": [],
        "sweep": {"errors": errors, "unmeasured": unmeasured},
    }
    assert dict(facts(tiny_model.contract(parity=parity), 1000))["layers that hurt most"] == shown
