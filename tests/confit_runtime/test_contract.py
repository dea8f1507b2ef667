"""The contract: round trips, and nothing but ModelError for whatever is wrong with a model file."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confit_runtime import ModelError, __version__, load
from confit_runtime.contract import CONTRACT_KEY, DIGEST_KEY, SCHEMA, Contract, read_sealed, seal
from tests import tiny_model


def test_levels_may_meet_and_a_label_may_need_all_there_is() -> None:
    levels = {label: {"on": 1.0, "off": 1.0} for label in tiny_model.LABELS}
    assert tiny_model.contract(thresholds=levels).can_fire == ["low", "mid", "high"]
    never = {**levels, "low": {"on": 1.01, "off": 0.5}}
    assert tiny_model.contract(thresholds=never).can_fire == ["mid", "high"]


GRAPH = tiny_model.graph()
CONTRACT = tiny_model.contract()
SEALED = seal(GRAPH, CONTRACT)
KEYS = [field.name for field in dataclasses.fields(Contract)]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 9) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_json_round_trip_gives_the_same_bytes() -> None:
    again = Contract.from_json(CONTRACT.to_json())
    assert again == CONTRACT
    assert again.to_json() == CONTRACT.to_json()


def test_sealing_is_read_back_here_and_by_onnx() -> None:
    contract = tiny_model.contract(
        labels=(labels := ["größer", "да", "はい", "می\u200cخواهم", "👩\u200d🚀"]),
        unknown_label=None,
        thresholds=_levels(*labels),
    )
    sealed = seal(GRAPH, contract)
    assert read_sealed(sealed).contract == contract
    read = onnx.load_from_string(sealed)
    onnx.checker.check_model(read)
    entries = {entry.key: entry.value for entry in read.metadata_props}
    assert entries.keys() == {CONTRACT_KEY, DIGEST_KEY}
    assert Contract.from_json(entries[CONTRACT_KEY]) == contract


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(key: str) -> None:
    raw = json.loads(CONTRACT.to_json())
    del raw[key]
    with pytest.raises(ModelError, match=key):
        Contract.from_json(json.dumps(raw))


def test_files_of_other_versions_get_advice_on_what_to_do() -> None:
    raw = json.loads(CONTRACT.to_json())
    with pytest.raises(
        ModelError, match=rf"schema {SCHEMA - 1} is from an older confit-edge.*export it again from its run"
    ):
        Contract.from_json(json.dumps({**raw, "schema": SCHEMA - 1, "pool_hops": 7}))
    update = rf"written by confit-edge 9\.1; this is {re.escape(__version__)}: update confit-edge"
    with pytest.raises(ModelError, match=rf"schema {SCHEMA + 1} is newer.*{update}"):
        Contract.from_json(json.dumps({**raw, "schema": SCHEMA + 1, "version": "9.1", "colour": "red"}))
    with pytest.raises(ModelError, match=rf"unknown keys \(colour\): {update}"):
        Contract.from_json(json.dumps({**raw, "version": "9.1", "colour": "red"}))
    with pytest.raises(ModelError, match="'schema' must be int; it is 'True'"):  # which is no older one
        Contract.from_json(json.dumps({**raw, "schema": True}))


CLIPS = {"train": 60, "val": 40, "test": 0}
OWN = {split: {"clips": 1, "groups": 1} for split in CLIPS}
DATA = {"fingerprint": "", "clips": CLIPS, "groups": CLIPS, "own": OWN, "grouped": True}


def test_data_and_calibration_are_read_in_the_form_that_export_writes() -> None:
    data = {**DATA, "repeated": {"val": 0, "test": 0}}
    enroll = {"kind": "speaker", "threshold": 0.7, "margin": 0.03, "genuine": 0.9, "trials": 40}
    contract = tiny_model.contract(data=data, calibration={"enroll": enroll, "detection": {"words": 3}})
    assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("data", {**DATA, "clips": 90}, r"'data\.clips' must be a count for train, val and test; it is '90'"),
        ("data", {**DATA, "groups": {**CLIPS, "val": 1.5}}, r"'data\.groups'"),
        ("data", {"fingerprint": "", "clips": CLIPS}, "'data' lacks groups, own, grouped"),
        ("data", {**DATA, "colour": "red"}, "'data' has unknown keys: colour"),
        ("data", {**DATA, "own": {"val": {"clips": 3}}}, r"'data\.own'"),
        ("calibration", {"colour": {}}, "'calibration' has unknown keys: colour"),
        ("calibration", {"enroll": []}, r"'calibration\.enroll' must be an object"),
        ("calibration", {"enroll": {}}, r"'calibration\.enroll' lacks kind"),
        ("calibration", {"enroll": {"kind": "bird"}}, r"'calibration\.enroll\.kind' must be speaker or sound"),
        ("calibration", {"enroll": {"kind": "sound", "threshold": "high"}}, r"'calibration\.enroll\.threshold'"),
        ("calibration", {"enroll": {"kind": "sound", "genuine": 10**400}}, r"'calibration\.enroll\.genuine'"),
        ("calibration", {"enroll": {"kind": "sound", "margin": None}}, r"'calibration\.enroll\.margin'"),
        (
            "calibration",
            {"enroll": {"kind": "sound", "threshold": 1.1}},
            r"enroll\.threshold' must be a number from -1 to 1",
        ),
        (
            "calibration",
            {"enroll": {"kind": "sound", "threshold": -1.1}},
            r"enroll\.threshold' must be a number from -1 to 1",
        ),
        (
            "calibration",
            {"enroll": {"kind": "sound", "genuine": 1.1}},
            r"enroll\.genuine' must be a number from -1 to 1",
        ),
        ("calibration", {"enroll": {"kind": "sound", "margin": -0.1}}, r"enroll\.margin' must be a number from 0 to 2"),
        ("calibration", {"enroll": {"kind": "sound", "margin": 2.1}}, r"enroll\.margin' must be a number from 0 to 2"),
        (
            "calibration",
            {"enroll": {"kind": "sound", "false_accept_rate": -0.5}},
            r"rate' must be a number from 0 to 1",
        ),
        ("calibration", {"enroll": {"kind": "sound", "false_accept_rate": 1.5}}, r"rate' must be a number from 0 to 1"),
        ("calibration", {"enroll": {"kind": "sound", "level": 1}}, "unknown keys: level"),
    ],
)
def test_data_and_calibration_in_another_form_are_refused_by_name(key: str, value: Any, fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        Contract.from_json(json.dumps({**json.loads(CONTRACT.to_json()), key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", True),
        ("schema", 3),
        ("highest_hz", 0),
        ("highest_hz", tiny_model.RATE),
        ("sample_rate", 0),
        ("sample_rate", 16000.5),
        ("hop", "320"),
        ("window", tiny_model.WINDOW + 1),
        ("warmup_hops", 3),
        ("labels", []),
        ("labels", ["yes", "yes", "mid", "high"]),
        ("labels", "low"),
        ("unknown_label", "nobody"),
        ("thresholds", {}),
        ("thresholds", {label: {"on": 0.3, "off": 0.6} for label in tiny_model.LABELS}),
        ("thresholds", {label: {"on": True, "off": 0} for label in tiny_model.LABELS}),
        ("state", {"state_pcm": [0]}),
        ("state", {"state_pcm": []}),
        ("state", {"state_pcm": [1] * 9}),
        ("state", {"state_pcm": [tiny_model.HOP], "state_ring": [10**30]}),
        ("state", {"state_pcm": [6_000_000], "state_ring": [6, 1_000_000]}),
        ("thresholds", {label: {"on": 10**400, "off": 0.3} for label in tiny_model.LABELS}),
        ("thresholds", {label: {"on": 0.6, "off": -(10**400)} for label in tiny_model.LABELS}),
        ("state", ["state_pcm"]),
        ("multi_label", 1),
        ("refractory_s", -1),
        ("refractory_s", True),
        ("calibration", []),
        ("name", None),
        ("labels", ["low", "mid", "high", "other\u2028"]),
        ("unknown_label", "other\u202e"),
        ("smoothing_hops", 10**9),
        ("min_hops", 10**30),
        ("refractory_s", 1e300),
        ("window", tiny_model.HOP * 10**12),
        ("latency_samples", 10**12),
        ("thresholds", {label: {"on": 0, "off": 0} for label in tiny_model.LABELS}),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=key):
        Contract.from_json(json.dumps({**json.loads(CONTRACT.to_json()), key: value}))


def test_labels_that_would_steer_a_terminal_are_refused_and_other_texts_are_read() -> None:
    kept = {**json.loads(CONTRACT.to_json()), "name": "digits\x1b[31m", "license": "MIT\nMIT"}
    assert Contract.from_json(json.dumps(kept)).license == "MIT\nMIT"
    label = kept["labels"][0]
    levels = {**kept["thresholds"], f"{label}\x1b": kept["thresholds"][label]}
    with pytest.raises(ModelError, match=r"'labels' contains control .*; export it again from a run"):
        Contract.from_json(json.dumps({**kept, "labels": [f"{label}\x1b", *kept["labels"][1:]], "thresholds": levels}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["refractory_s", "metrics"])
def test_numbers_that_json_cannot_carry_are_refused(key: str, number: str) -> None:
    value = {"refractory_s": number, "metrics": f'{{"test": {number}}}'}[key]
    text = CONTRACT.to_json().replace(f'"{key}": {json.dumps(getattr(CONTRACT, key))}', f'"{key}": {value}')
    assert number in text
    with pytest.raises(ModelError):
        Contract.from_json(text)


def test_an_infinite_threshold_is_refused() -> None:
    levels = json.dumps({label: {"on": float("inf"), "off": 0.5} for label in tiny_model.LABELS})
    text = json.dumps({**json.loads(CONTRACT.to_json()), "thresholds": 0}).replace(
        '"thresholds": 0', f'"thresholds": {levels}'
    )
    with pytest.raises(ModelError):
        Contract.from_json(text)


@given(st.text(max_size=40) | json_values.map(json.dumps))
def test_any_text_is_a_contract_or_a_model_error(text: str) -> None:
    with pytest.raises(ModelError):
        Contract.from_json(text)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=json_values)
def test_a_mutated_contract_loads_or_is_a_model_error(tmp_path: Path, key: str, value: Any) -> None:
    text = json.dumps({**json.loads(CONTRACT.to_json()), key: value})
    try:
        contract = Contract.from_json(text)
    except ModelError:
        return
    assert Contract.from_json(contract.to_json()) == contract
    path = tmp_path / "mutated.onnx"
    path.write_bytes(seal(GRAPH, contract))
    try:
        outcome = str(load(path).path)
    except ModelError as error:
        outcome = str(error)
    assert outcome.startswith(str(path))


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_a_changed_byte_is_a_model_error(at: int, change: int) -> None:
    damaged = bytearray(SEALED)
    damaged[at] ^= change
    with pytest.raises(ModelError):
        read_sealed(bytes(damaged))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        read_sealed(data)


def test_truncated_at_any_byte_is_a_model_error() -> None:
    for length in range(len(SEALED)):
        with pytest.raises(ModelError):
            read_sealed(SEALED[:length])


def test_bytes_after_the_digest_are_a_model_error() -> None:
    with pytest.raises(ModelError, match="damaged or edited"):
        read_sealed(SEALED + b"\x10\x01")


def test_another_tools_model_is_refused() -> None:
    with pytest.raises(ModelError, match="no confit_edge contract"):
        read_sealed(GRAPH)


@pytest.mark.parametrize("where", ["weight", "constant", "branch", "function", "sparse"])
def test_weights_in_another_file_are_refused(where: str) -> None:
    model, side = onnx.load_from_string(GRAPH), onnx.TensorProto(name="side", data_type=1, dims=[1])
    side.data_location = onnx.TensorProto.EXTERNAL
    side.external_data.add(key="location", value="side.bin")
    constant = onnx.helper.make_node("Constant", [], ["side"], value=side)
    branch = onnx.helper.make_graph([constant], "branch", [], [])
    if where == "weight":
        model.graph.initializer.append(side)
    elif where == "constant":
        model.graph.node.append(constant)
    elif where == "branch":
        model.graph.node.append(onnx.helper.make_node("If", ["yes"], ["side"], then_branch=branch, else_branch=branch))
    elif where == "function":
        model.functions.append(onnx.helper.make_function("ours", "f", [], ["side"], [constant], []))
    else:
        model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=side))
    with pytest.raises(ModelError, match="weights in other files"):
        read_sealed(seal(model.SerializeToString(), CONTRACT))


def test_names_that_resemble_external_data_are_accepted() -> None:
    model = onnx.load_from_string(GRAPH)
    model.graph.node[0].name = "location"
    assert read_sealed(seal(model.SerializeToString(), CONTRACT)).contract == CONTRACT


def _levels(*labels: str) -> dict[str, dict[str, float]]:
    return {label: {"on": 0.6, "off": 0.3} for label in labels}
