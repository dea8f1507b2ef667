"""Schemes and targets: what is quantised and how, what stays, and that it can be told from the graph."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from confit_edge.data.corpus import Corpus
from confit_edge.runs import Run
from confit_export.calibration import CALIBRATIONS, Feed, calibration_feeds, tensor_ranges
from confit_export.export import Exported, export_run
from confit_export.graph import StreamingModel, WindowedModel, assemble, to_onnx
from confit_export.quantisation import Quantisation
from confit_export.quantize import PRECISION, SCHEMES, Quantizer, pass_through_nodes, quantisable
from confit_export.search import kept_by_name
from confit_export.sensitivity import embed, sweep, validation_windows
from confit_export.targets import TARGETS, preset
from confit_runtime import load
from confit_runtime.errors import UsageError
from confit_runtime.session import open_session
from tests.at_once import at_once

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def assembled(run: Run) -> StreamingModel | WindowedModel:
    return assemble(run.encoder, run.linear, run.typicality)


@pytest.fixture(scope="module")
def fp32(run: Run, assembled: StreamingModel) -> onnx.ModelProto:
    return to_onnx(assembled, run.encoder, np.zeros((1, run.encoder.dim), np.float32))


@pytest.fixture(scope="module")
def feeds(fp32: onnx.ModelProto, run: Run, run_corpus: Corpus) -> list[Feed]:
    return calibration_feeds(fp32, run.encoder, run_corpus, run)


@pytest.fixture(scope="module")
def windows(run: Run, run_corpus: Corpus) -> Floats:
    return validation_windows(run.encoder, run_corpus, 0)


@pytest.fixture(scope="module")
def quantizer(fp32: onnx.ModelProto, assembled: StreamingModel, feeds: list[Feed]) -> Quantizer:
    return Quantizer.calibrate(fp32, "static", "portable", assembled.fp32_scopes, feeds, "minmax")


def weights_of(model: onnx.ModelProto) -> dict[str, Floats]:
    """The int8 weights of a QDQ graph's convolutions and matrix products."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and source.get(node.input[1]) in tensors:
            found[node.name] = numpy_helper.to_array(tensors[source[node.input[1]]])
    return found


# targets


@pytest.mark.parametrize("target", TARGETS)
def test_weights_have_the_bits_a_target_can_add_without_overflow(quantizer: Quantizer, target: Any) -> None:
    weights = weights_of(Quantizer(**{**vars(quantizer), "target": target})(quantizer.layers))
    assert set(weights) == set(quantizer.layers)
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights.values())
    assert all(weight.dtype == np.int8 for weight in weights.values())
    # 16 bits hold two products of uint8 by 7 bits, not by 8
    if target in ("portable", "avx2"):
        assert largest == 64
        assert 2 * 255 * largest <= 32_767
    else:
        assert largest == 127
    assert preset(target).per_channel


# which nodes


def test_what_lies_between_quantised_layers_stays_in_int8(quantizer: Quantizer) -> None:
    quantised = quantizer(quantizer.layers)
    giver = {output: node.op_type for node in quantised.graph.node for output in node.output}
    takers = {name: node.op_type for node in quantised.graph.node for name in node.input}
    between = [
        node for node in quantised.graph.node if node.name in pass_through_nodes(quantizer.fp32, quantizer.layers)
    ]
    kinds = Counter(node.op_type for node in between)
    assert (kinds["LeakyRelu"], kinds["MaxPool"], kinds["Concat"]) == (19, 5, 10)
    for node in between:
        data = node.input if node.op_type == "Concat" else node.input[:1]
        assert {giver[name] for name in data} == {"DequantizeLinear"}, node.name
        assert takers[node.output[0]] == "QuantizeLinear", node.name
    # int8 clips for nothing: only the clips of the front end and the head are left
    assert not any(node.op_type == "Clip" and node.name.startswith("/stack/") for node in between)


def naive_graph() -> onnx.ModelProto:
    """conv a -> relu -> (joined with a state) -> conv b -> sigmoid -> conv c, and a slice into the next state."""
    weights = [numpy_helper.from_array(np.ones((1, depth, 1), np.float32), f"w{depth}") for depth in (1, 2)]
    places = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("one", 1), ("two", 2))]
    nodes = [
        helper.make_node("Conv", ["pcm", "w1"], ["a"], "conv a"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Concat", ["state", "b"], ["c"], "join", axis=2),
        helper.make_node("Slice", ["c", "one", "two", "two"], ["state_out"], "keep"),
        helper.make_node("Conv", ["c", "w2"], ["d"], "conv b"),
        helper.make_node("Sigmoid", ["d"], ["e"], "sigmoid"),
        helper.make_node("Conv", ["e", "w2"], ["f"], "conv c"),
        helper.make_node("Relu", ["f"], ["embedding"], "last relu"),
    ]
    entry = helper.make_tensor_value_info("pcm", TensorProto.FLOAT, [1, 1, 4])
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 1, 1])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "naive", [entry, state], [out], [*weights, *places]))


def test_a_layer_recorded_as_int8_is_int8() -> None:
    """Every kind of layer, one after another: what a scheme names is no longer of its own kind, and all else is."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (1, 1, 1), "wl": (1, 16, 4), "rl": (1, 16, 4), "wg": (1, 12, 4), "rg": (1, 12, 4), "mat": (4, 4)}
    weights = [numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), at) for at, size in shapes.items()]
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    nodes = [
        helper.make_node("Conv", ["pcm", "conv"], ["a"], "sound"),
        helper.make_node("LSTM", ["a", "wl", "rl"], ["b"], "lstm", hidden_size=4),
        helper.make_node("Squeeze", ["b", "axis"], ["c"], "out of lstm"),
        helper.make_node("GRU", ["c", "wg", "rg"], ["d"], "gru", hidden_size=4),
        helper.make_node("Squeeze", ["d", "axis"], ["e"], "out of gru"),
        helper.make_node("MatMul", ["e", "mat"], ["embedding"], "product"),
    ]
    entry = helper.make_tensor_value_info("pcm", TensorProto.FLOAT, [1, 1, 4])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "recurrent", [entry], [out], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    feeds = [{"pcm": rng.standard_normal((1, 1, 4)).astype(np.float32)} for _ in range(3)]
    quantizer = Quantizer.calibrate(model, "dynamic", "portable", (), feeds, "minmax")
    assert quantizer.layers == ("lstm", "product")
    kinds = Counter(node.op_type for node in quantizer(quantizer.layers).graph.node)
    assert (kinds["LSTM"], kinds["MatMul"], kinds["GRU"], kinds["DynamicQuantizeLSTM"]) == (0, 0, 1, 1)
    assert quantisable(model, "static", ()) == ("product",)
    assert quantisable(model, "weight-only", ()) == ("sound", "lstm", "gru", "product")


def test_only_what_leads_from_a_layer_to_a_layer_is_carried() -> None:
    model = naive_graph()
    assert quantisable(model, "static", ("conv c",)) == ("conv b",)  # "conv a" takes sound
    assert quantisable(model, "weight-only", ("conv c",)) == ("conv a", "conv b")
    assert pass_through_nodes(model, ["conv a", "conv b", "conv c"]) == ["relu", "join", "keep"]
    assert pass_through_nodes(model, ["conv a", "conv c"]) == []
    assert pass_through_nodes(model, ["conv b", "conv c"]) == []


def test_keeping_layers_by_name(quantizer: Quantizer, windows: Floats) -> None:
    first = quantizer.layers[0]
    assert kept_by_name(quantizer.layers, (first,)) == [first]
    assert kept_by_name(quantizer.layers, ()) == []
    with pytest.raises(UsageError, match=r"--keep-fp32 /nothing: names none of the 20 layers; they are /stack/"):
        kept_by_name(quantizer.layers, ("/nothing",))
    fewer = quantizer([layer for layer in quantizer.layers if layer != first])
    assert set(weights_of(fewer)) == set(quantizer.layers) - {first}


# schemes


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "dynamic"])
def test_each_scheme_is_smaller_and_embeds_nearly_as_fp32(
    fp32: onnx.ModelProto, assembled: StreamingModel, feeds: list[Feed], windows: Floats, scheme: Any
) -> None:
    quantizer = Quantizer.calibrate(fp32, scheme, "portable", assembled.fp32_scopes, feeds, "percentile")
    quantised = quantizer(quantizer.layers)
    onnx.checker.check_model(quantised)
    cosine = (embed(quantised, windows) * embed(fp32, windows)).sum(axis=1)
    assert cosine.min() > {"static": 0.97, "weight-only": 0.99, "fp16": 0.9999}[scheme]
    assert cosine.min() < 1 - 1e-8
    share = {"static": 0.6, "weight-only": 0.6, "fp16": 0.75}[scheme]
    assert quantised.ByteSize() < share * fp32.ByteSize()
    assert quantizer(()).SerializeToString() == fp32.SerializeToString()


def test_dynamic_is_refused_for_a_stream_with_the_reason(run: Run, run_corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="depend on how the stream is split"):
        export_run(
            run, run_corpus, tmp_path / "words.onnx", quantisation=Quantisation("dynamic"), say=lambda line: None
        )
    assert list(tmp_path.iterdir()) == []


def test_dynamic_is_refused_where_nothing_would_be(
    fp32: onnx.ModelProto, assembled: StreamingModel, feeds: list[Feed]
) -> None:
    with pytest.raises(UsageError, match="convolutions only"):
        Quantizer.calibrate(fp32, "dynamic", "portable", assembled.fp32_scopes, feeds, "minmax")


def test_a_weight_only_scheme_exports_and_records_it(run: Run, run_corpus: Corpus, tmp_path: Path) -> None:
    messages: list[str] = []
    exported = export_run(
        run, run_corpus, tmp_path / "words.onnx", quantisation=Quantisation("weight-only"), say=messages.append
    )
    assert any(line.startswith("int8 weights compared with fp32: ") for line in messages)
    contract = load(exported.path).contract
    assert contract.precision == PRECISION["weight-only"]
    assert contract.cost["nodes"]["Conv"] == {"fp32": 1, "int8 weights": 20}
    assert set(contract.cost["macs_per_second"]) == {"fp32"}  # it computes in fp32
    assert contract.parity["cosine"] > 0.998


# calibration and sensitivity


def test_a_stream_is_calibrated_with_the_state_that_sound_leaves(feeds: list[Feed], fp32: onnx.ModelProto) -> None:
    assert len(feeds) == 32  # 30 clips and three of background, of which the first fills the state
    assert all(np.abs(feed["state_01"]).min() > 0 for feed in feeds)  # log-mel of sound, not the zeros of a start
    session = open_session(fp32.SerializeToString(), 1)
    names = [name for name in feeds[0] if name != "pcm"]
    after = session.run([f"{name}_out" for name in names], feeds[0])
    for name, value in zip(names, after, strict=True):
        np.testing.assert_array_equal(feeds[1][name], value)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_ranges_by_histogram_lie_within_the_extremes_whichever_clip_comes_first(
    fp32: onnx.ModelProto, feeds: list[Feed], method: Any
) -> None:
    few = sorted(feeds[:6], key=lambda feed: float(np.abs(feed["pcm"]).max()))
    extremes = dict(tensor_ranges(fp32, few, "minmax", ["Conv"]).items())
    found, turned = (dict(tensor_ranges(fp32, order, method, ["Conv"]).items()) for order in (few, few[::-1]))
    assert found.keys() == extremes.keys()
    cut = 0
    for name, data in found.items():
        low, high = data.range_value
        least, most = extremes[name].range_value
        step = (most - least) / 100
        assert least - step <= low <= high <= most + step
        assert (low, high) == turned[name].range_value
        cut += high - low < 0.999 * (most - least)
    assert cut > 0


@pytest.mark.parametrize("method", CALIBRATIONS)
@pytest.mark.parametrize("value", [0.0, 1e-44])
def test_a_layer_that_is_always_silent_is_quantised(value: float, method: Any) -> None:
    """A tensor may hold zeros alone, or denormal numbers, whose range cannot be divided into bins."""
    weights = {"dead": np.full((4, 4), value, np.float32), "next": np.eye(4, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["pcm", "dead"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "next"], ["embedding"], "second"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("pcm", "embedding")]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "silent", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = [{"pcm": np.float32([[1, 2, 3, 4]]) * step} for step in range(-8, 9)]
    quantizer = Quantizer.calibrate(model, "static", "portable", (), feeds, method)
    assert quantizer.layers == ("second",)  # the first hears the sound itself
    (out,) = open_session(quantizer(quantizer.layers).SerializeToString(), 1).run(None, feeds[0])
    np.testing.assert_array_equal(out, 0)


def test_the_sweep_finds_the_layer_that_was_spoilt_and_resumes(
    quantizer: Quantizer, windows: Floats, tmp_path: Path
) -> None:
    """The range of one layer's input is made a hundred times too wide, so that layer rounds worst."""
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    spoilt = quantizer.layers[7]
    layer_input = next(node.input[0] for node in quantizer.fp32.graph.node if node.name == spoilt)
    ranges = dict(quantizer.ranges.items())
    low, high = ranges[layer_input].range_value
    ranges[layer_input] = TensorData(lowest=np.float32(100 * low), highest=np.float32(100 * high))
    spoiler = Quantizer(**{**vars(quantizer), "ranges": TensorsData(quantizer.ranges.calibration_method, ranges)})
    stopped = sweep(spoiler, windows, tmp_path, minutes=0)
    assert (stopped.errors, stopped.unmeasured) == ({}, 20)
    found = sweep(spoiler, windows, tmp_path, minutes=5)
    assert next(iter(found.errors)) == spoilt
    assert found.unmeasured == 0
    again = sweep(spoiler, windows, tmp_path, minutes=0)  # from what was kept
    assert again == found
    (journal,) = (tmp_path / "sweeps").iterdir()
    journal.write_text('{"a')
    assert sweep(spoiler, windows, tmp_path, minutes=0).unmeasured == 20
    journal.write_text("[1]")
    assert sweep(spoiler, windows, tmp_path, minutes=0).unmeasured == 20


def test_a_sweep_that_cannot_be_cached_is_done_anyway(
    quantizer: Quantizer, windows: Floats, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    few = Quantizer(**{**vars(quantizer), "layers": quantizer.layers[:2]})
    assert len(sweep(few, windows, tmp_path / "file", minutes=5).errors) == 2
    assert [record.message.rsplit("; ", 1)[1] for record in caplog.records] == ["set CONFIT_EDGE_CACHE"]


def test_a_sweep_that_two_exports_make_at_once_is_kept(tmp_path: Path) -> None:
    begin = (
        "from confit_export.sensitivity import _load_errors, _save_errors\n"
        "errors = {f'layer {at}': 0.5 for at in range(200)}"
    )
    work = "assert _save_errors(path, errors) and _load_errors(path) == errors"
    at_once(begin, work, tmp_path / "sweep.json", "confit_export.sensitivity")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_exports_of_both_precisions_share_what_they_measure(exports: dict[str, Exported]) -> None:
    assert exports["int8"].fp32 == exports["fp32"].shipped
    assert exports["int8"].fp32_bytes == pytest.approx(exports["fp32"].bytes, abs=2_000)


def test_only_the_quantiser_is_silenced(
    fp32: onnx.ModelProto,
    quantizer: Quantizer,
    feeds: list[Feed],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program that exports goes on to log and print in its other threads, with the log as it has set it up: not at all."""
    root, done = logging.getLogger(), threading.Event()
    output: list[str] = []
    monkeypatch.setattr(root, "handlers", [])

    def serve() -> None:
        while not done.wait(0.002):
            output.append(f"request {len(output)}")
            print(output[-1])
            root.warning(output[-1])  # the quantiser's is the root logger, too

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        tensor_ranges(fp32, feeds[:6], "percentile", ["Conv"])
        quantizer(quantizer.layers)
    finally:
        done.set()
        serving.join()
    printed, logged = capsys.readouterr()
    assert printed.splitlines() == output
    assert logged.splitlines() == output
    assert len(output) > 20
    assert root.handlers == []
