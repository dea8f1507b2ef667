"""The search for what may be quantised: all of it, else less and less, from the layer that hurts most on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from confit_edge.data.corpus import Clips
from confit_edge.probes.metrics import Difference
from confit_export.gate import Verdict
from confit_export.quantize import Quantizer
from confit_export.search import SearchResult, kept_by_name, layers_to_quantize, search
from confit_export.sensitivity import WINDOWS, embed, sweep, validation_windows
from confit_runtime.errors import UsageError

LAYERS = 20
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def windows() -> Floats:
    weight = np.random.default_rng(1).standard_normal((11, 9)).astype(np.float32)
    weight[:, -1] = 0
    return weight


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    """Of twenty turns in a row, each beside weights that meet nothing but zeros: the larger these, the coarser its steps."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [helper.make_node("Unsqueeze", ["pcm", "one"], ["x"], "x")], [], "x"
    for number, place in enumerate(rng.permutation(LAYERS)):
        weight = np.zeros((9, 9))
        weight[:8, :8], _ = np.linalg.qr(rng.standard_normal((8, 8)))
        weight[8, :8] = 1.2**place
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"weight{number}"))
        nodes.append(helper.make_node("MatMul", [last, weights[-1].name], [f"y{number}"], f"/layer{number}/MatMul"))
        nodes.append(helper.make_node("LpNormalization", [f"y{number}"], [f"z{number}"], f"/norm{number}", axis=-1))
        last = f"z{number}"
    nodes.append(helper.make_node("Concat", ["x", last], ["embedding"], "embedding", axis=1))  # the last row counts
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, ["windows", 9])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["windows", 2, 9])],
        [*weights, numpy_helper.from_array(np.array([1]), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Quantizer.calibrate(model, "weight-only", "portable", ("/none",), [], "minmax")


@pytest.fixture(scope="module")
def by_sensitivity(quantizer: Quantizer, windows: Floats) -> list[str]:
    """The layers, the worst first, each measured alone."""
    whole = embed(quantizer.fp32, windows)
    assert whole.shape == windows.shape  # also of those that fill no batch
    near = {layer: float((embed(quantizer([layer]), windows) * whole).sum(axis=1).mean()) for layer in quantizer.layers}
    assert len({round(cosine, 6) for cosine in near.values()}) == LAYERS
    return sorted(near, key=near.__getitem__)


def quantised(model: onnx.ModelProto) -> set[str]:
    stored = {output for node in model.graph.node if node.name.endswith("_Mul") for output in node.output}
    return {node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in stored}


class Search:
    """A search by a judge whom a graph displeases in which any of `bad` is quantised; what it tried, and what it said."""

    def __init__(self, quantizer: Quantizer, windows: Floats, cache: Path, bad: set[str], keep: tuple[str, ...] = ()):
        self.tried: list[set[str]] = []
        self.said: list[str] = []
        self.bad = bad
        self.found: SearchResult = search(
            quantizer, self.judge, windows, keep, cache=cache, minutes=5, say=self.said.append
        )

    def judge(self, model: onnx.ModelProto) -> Verdict:
        self.tried.append(quantised(model))
        cosine = 0.5 + 0.001 * len(self.tried) if self.tried[-1] & self.bad else 1.0
        return Verdict(Difference(0.0, 0.0, 0.0), 0, 100, cosine)


def test_what_passes_whole_is_not_searched(quantizer: Quantizer, windows: Floats, tmp_path: Path) -> None:
    result = Search(quantizer, windows, tmp_path, set())
    assert result.tried == [set(quantizer.layers)] == [quantised(result.found.graph)]
    assert (result.found.layers, result.found.kept, result.found.sweep) == (list(quantizer.layers), [], None)
    assert (result.said, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize(("needed", "given_up"), [(1, 1), (4, 4), (5, 6), (9, None)])
def test_layers_are_given_up_from_the_worst_on_until_the_gate_is_passed(
    quantizer: Quantizer, windows: Floats, tmp_path: Path, by_sensitivity: list[str], needed: int, given_up: int | None
) -> None:
    """In ever larger steps, and no more than half of them: then all are quantised, with the verdict that has."""
    result = Search(quantizer, windows, tmp_path, {by_sensitivity[needed - 1]})
    counts = [0, 1, 2, 3, 4, 6, 8]
    tried = counts[: counts.index(given_up) + 1] if given_up else counts
    assert result.tried == [set(by_sensitivity[count:]) for count in tried]
    found, kept = result.found, by_sensitivity[: given_up or 0]
    assert found.kept == kept
    assert found.layers == [layer for layer in quantizer.layers if layer not in kept]
    assert quantised(found.graph) == set(found.layers)
    assert (found.verdict.failures == []) == bool(given_up)
    assert found.verdict.cosine == (1.0 if given_up else 0.501)
    assert found.sweep is not None
    assert list(found.sweep.errors) == by_sensitivity
    assert len(result.said) == (2 if given_up else 1)


def test_what_was_to_stay_in_fp32_stays_and_is_not_given_up_again(
    quantizer: Quantizer, windows: Floats, tmp_path: Path, by_sensitivity: list[str]
) -> None:
    own = [by_sensitivity[0], by_sensitivity[7]]
    result = Search(
        quantizer, windows, tmp_path, {by_sensitivity[2]}, tuple(layer.removesuffix("MatMul") for layer in own)
    )
    assert result.tried == [set(by_sensitivity) - set(own) - set(by_sensitivity[1 : 1 + count]) for count in (0, 1, 2)]
    assert set(result.found.kept[:2]) == set(own)
    assert result.found.kept[2:] == by_sensitivity[1:3]


@given(
    names=st.lists(
        st.lists(st.sampled_from(["/a", ".2", ".20", "/Conv", "/Conv_1"]), min_size=2, max_size=4), min_size=1
    ),
    taken=st.integers(1, 4),
    end=st.sampled_from(["", "/", "."]),
)
def test_layers_are_named_by_whole_parts(names: list[list[str]], taken: int, end: str) -> None:
    layers = tuple(dict.fromkeys("".join(parts) for parts in names))
    asked = names[0][:taken]
    expected = dict.fromkeys("".join(parts) for parts in names if parts[: len(asked)] == asked)
    assert kept_by_name(layers, ("".join(asked) + end,)) == list(expected)
    with pytest.raises(UsageError, match=r"names none of the"):
        kept_by_name(layers, ("".join(asked)[:-1] + "5",))


def test_a_model_without_layers_to_quantise_is_no_mistake_of_what_is_kept() -> None:
    assert layers_to_quantize((), ()) == []
    with pytest.raises(UsageError, match=r"--keep-fp32 /stack: leaves no layer to quantise"):
        layers_to_quantize(("/stack/Conv",), ("/stack",))


def test_a_layer_that_does_not_exist_is_answered_with_the_closest() -> None:
    layers = tuple(f"/stack/layers.{number}/Conv" for number in range(10))
    for asked, near in (("/stack/layer.2", "/stack/layers.2"), ("/stack/layers.3/Cnv", "/stack/layers.3/Conv")):
        with pytest.raises(
            UsageError, match=rf"--keep-fp32 {asked}: names none of the 10 layers; did you mean {near}\?"
        ):
            kept_by_name(layers, (asked,))


def test_without_time_to_measure_nothing_is_given_up(quantizer: Quantizer, windows: Floats, tmp_path: Path) -> None:
    messages: list[str] = []
    verdict = Verdict(Difference(0.0, 0.0, 0.0), 0, 100, 0.5)
    found = search(quantizer, lambda model: verdict, windows, (), cache=tmp_path, minutes=0, say=messages.append)
    assert (found.layers, found.kept, found.verdict) == (list(quantizer.layers), [], verdict)
    assert found.sweep is not None
    assert (found.sweep.errors, found.sweep.unmeasured) == ({}, LAYERS)
    assert len(messages) == 2
    assert str(LAYERS) in messages[1]


def test_a_sweep_is_of_its_windows_and_of_how_it_was_quantised(
    quantizer: Quantizer, windows: Floats, tmp_path: Path
) -> None:
    """What was measured of one model is not taken for what another would give."""
    few = replace(quantizer, layers=quantizer.layers[:2])
    assert sweep(few, windows, tmp_path, minutes=5).unmeasured == 0
    assert sweep(few, windows, tmp_path, minutes=0).unmeasured == 0
    changed = onnx.ModelProto()
    changed.CopyFrom(quantizer.fp32)
    changed.graph.node[-1].name = "last"
    for other in (
        replace(few, scheme="fp16"),
        replace(few, target="avx2"),
        replace(few, calibration="percentile"),
        replace(few, fp32=changed),
        replace(few, feeds=[{"pcm": windows}]),
    ):
        assert sweep(other, windows, tmp_path, minutes=0).unmeasured == 2
    assert sweep(few, windows[1:], tmp_path, minutes=0).unmeasured == 2


def test_a_sweep_takes_the_minutes_it_was_given(
    quantizer: Quantizer, windows: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which each layer takes half a minute."""
    clock = itertools.count(100.0, 30.0)
    monkeypatch.setattr("confit_export.sensitivity.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert sweep(quantizer, windows, tmp_path, minutes=2).unmeasured == LAYERS - 4
    assert sweep(quantizer, windows, tmp_path, minutes=1.5).unmeasured == LAYERS - 4 - 3  # which goes on where it was


@pytest.mark.parametrize("window", [40, 100])
def test_windows_are_of_clips_drawn_by_the_seed_cut_or_in_the_middle(window: int) -> None:
    lengths = [30 + at for at in range(60)]
    pcm = [
        np.full(length, at + 1, np.float32) + np.arange(length, dtype=np.float32) / 128
        for at, length in enumerate(lengths)
    ]
    clips = Clips(pcm, np.ones((60, 1), np.int8), ["a"] * 60, [Path()] * 60)
    encoder, corpus = SimpleNamespace(window=window), SimpleNamespace(val=clips)
    first, again, other = (validation_windows(encoder, corpus, seed) for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert first.shape == (WINDOWS, window)
    assert np.array_equal(first, again)
    drawn = [int(row.max()) - 1 for row in first]
    assert drawn == sorted(set(drawn))
    assert drawn != [int(row.max()) - 1 for row in other]
    for row, at in zip(first, drawn, strict=True):
        before = max(0, window - lengths[at]) // 2
        expected = np.pad(pcm[at][:window], (before, max(0, window - lengths[at] - before)))
        assert np.array_equal(row, expected)
