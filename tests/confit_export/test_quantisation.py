"""Whatever an export that fails the gate advises is accepted by the checks of its own options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confit_edge.encoders import pretrained
from confit_edge.probes.linear import LinearProbe
from confit_edge.probes.metrics import Difference
from confit_export.calibration import Feed
from confit_export.gate import Verdict
from confit_export.graph import assemble, to_onnx
from confit_export.quantisation import Quantisation, check_no_quantize
from confit_export.quantize import SCHEMES, Quantizer
from confit_export.sensitivity import Sweep
from confit_export.targets import TARGETS
from confit_runtime.errors import UsageError

BAD = Verdict(Difference(0.1, 0.0, 0.2), 10, 100, 0.9)
FIELDS: dict[str, Any] = {
    "--scheme": str,
    "--calibration": str,
    "--target": str,
    "--qat-epochs": int,
    "--sweep-minutes": float,
}


def advised(advice: str) -> list[tuple[str, str, list[str]]]:
    """The options in an advice: name, value, and the options to leave out."""
    options = re.findall(
        r"(--[a-z0-9-]+) ([a-z0-9.-]+)?[^,]*?(?: without ((?:--[a-z0-9-]+(?: and )?)+))?(?=,| \(| or |$)", advice
    )
    return [(name, value, without.split(" and ") if without else []) for name, value, without in options]


def apply(quantisation: Quantisation, name: str, value: str, without: Sequence[str]) -> Quantisation:
    """What the same command asks for with the advised option."""
    changes = {option: getattr(Quantisation, option[2:].replace("-", "_")) for option in without}
    changes[name] = FIELDS[name](value)
    return replace(quantisation, **{option[2:].replace("-", "_"): value for option, value in changes.items()})


@given(
    scheme=st.sampled_from(SCHEMES),
    target=st.sampled_from(TARGETS),
    calibration=st.sampled_from(["minmax", "entropy", "percentile"]),
    keep=st.sampled_from([(), ("/stack/layers.2",)]),
    qat_epochs=st.integers(0, 1),
    minutes=st.sampled_from([0.0, 20.0, 60.0]),
    unmeasured=st.integers(0, 2),
    fixed_ranges=st.booleans(),
    clips_lost=st.integers(0, 3),
)
def test_what_is_advised_is_accepted_and_is_something_new(
    scheme: Any,
    target: Any,
    calibration: Any,
    keep: tuple[str, ...],
    qat_epochs: int,
    minutes: float,
    unmeasured: int,
    fixed_ranges: bool,
    clips_lost: int,
) -> None:
    asked = Quantisation(scheme, target, calibration, keep, qat_epochs, minutes)
    try:
        asked.check()
    except UsageError:
        return  # no such command reaches the gate
    fixed_ranges = fixed_ranges and scheme in ("static", "dynamic")
    verdict = Verdict(Difference(clips_lost / 100, 0.0, 0.1), clips_lost, 100, 0.995 if clips_lost else 0.9)
    advice = asked.advice(verdict, Sweep({}, unmeasured), fixed_ranges)
    *options, last = advised(advice)
    assert last[0] == "--no-quantize"
    assert advice.endswith("--no-quantize without the other options of quantisation")
    check_no_quantize(Quantisation().given)
    for name, value, without in options:
        changed = apply(asked, name, value, without)
        changed.check()
        assert changed != asked
    offered = {f"{name} {value}" for name, value, _ in options}
    computes_int8 = scheme in ("static", "dynamic")
    assert ("--calibration percentile" in offered) == (fixed_ranges and calibration != "percentile")
    assert ("--qat-epochs 3" in offered) == (computes_int8 and qat_epochs == 0)
    assert any(option.startswith("--sweep-minutes") for option in offered) == (unmeasured > 0)
    assert ("--scheme fp16" in offered) == (scheme != "fp16")
    assert ("more validation clips (one of 100 is 1.00 points)" in advice) == (clips_lost in (1, 2))


def test_an_advice_in_words() -> None:
    assert Quantisation("weight-only", sweep_minutes=0).advice(
        Verdict(Difference(1 / 60, 0.0, 0.1), 1, 60, 0.999), Sweep({}, 4), False
    ) == (
        "try --sweep-minutes 20 (4 layers not measured), --scheme fp16, more validation clips (one of 60 is 1.67 points)"
        " or --no-quantize without the other options of quantisation"
    )
    assert Quantisation(calibration="percentile", target="arm64").advice(BAD, Sweep({}, 0), True) == (
        "try --qat-epochs 3, --scheme weight-only without --target and --calibration, --scheme fp16 without --target and"
        " --calibration or --no-quantize without the other options of quantisation"
    )
    assert (
        Quantisation("fp16").advice(BAD, None, False) == "try --no-quantize without the other options of quantisation"
    )


# fixed ranges: of layers that take no scale from a frame or a call


@pytest.fixture(scope="module")
def ge2e() -> tuple[onnx.ModelProto, tuple[str, ...], list[Feed]]:
    encoder = pretrained("ge2e", 1.6).eval()
    probe = LinearProbe(np.ones((2, encoder.dim), np.float32), np.zeros(2, np.float32), multi_label=False)
    model = assemble(encoder, probe, None)
    pcm = 0.1 * np.random.default_rng(0).standard_normal((2, 1, encoder.window)).astype(np.float32)
    graph = to_onnx(model, encoder, np.zeros((1, encoder.dim), np.float32))
    return graph, model.fp32_scopes, [{"pcm": window} for window in pcm]


def test_lstms_with_dynamic_scales_have_no_fixed_range(ge2e: Any) -> None:
    graph, scopes, feeds = ge2e
    dynamic = Quantizer.calibrate(graph, "dynamic", "portable", scopes, feeds, "minmax")
    assert len(dynamic.layers) == 4
    assert dynamic.with_fixed_range(dynamic.layers) == []
    assert dynamic.ranges is None
    with pytest.raises(UsageError, match="--calibration percentile: with --scheme dynamic, no layer of this encoder"):
        Quantizer.calibrate(graph, "dynamic", "portable", scopes, feeds, "percentile")
    static = Quantizer.calibrate(graph, "static", "portable", scopes, feeds, "percentile")
    assert static.with_fixed_range(static.layers) == list(static.layers) != []
    assert Quantizer.calibrate(graph, "fp16", "portable", scopes, feeds, "minmax").with_fixed_range(static.layers) == []
