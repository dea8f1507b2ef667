"""One file from a run: it streams exactly, it is small and cheap, and a bad one is not written."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from confit_edge.cli import main
from confit_edge.data.corpus import Corpus
from confit_edge.data.manifest import UNKNOWN
from confit_edge.encoders.speech_embedding import RECEPTIVE, SpeechEmbedding
from confit_edge.probes.metrics import correct
from confit_edge.runs import Run, run_corpus, weights_sha256, with_current_paths
from confit_export import job, measure
from confit_export.export import Exported, check_replaceable, export_run
from confit_export.graph import assemble, count_macs, to_onnx
from confit_export.measure import compare_on_test, count_softer, share_fired
from confit_export.model_file import load_provisional
from confit_export.quantisation import Quantisation
from confit_export.rooms import ROOMS, quiet_rooms
from confit_runtime import Model, load
from confit_runtime.contract import read_sealed
from confit_runtime.data_warnings import data_warnings
from confit_runtime.errors import ConfitError, UsageError
from tests import tiny_model
from tests.at_once import at_once
from tests.full_disk import limited_file_size

Floats = npt.NDArray[np.float32]
Rows = tuple[Floats, Floats]


@pytest.fixture(scope="module")
def models(exports: dict[str, Exported]) -> dict[str, Model]:
    return {precision: load(exported.path) for precision, exported in exports.items()}


@pytest.fixture(scope="module")
def audio(run_corpus_clips: list[Floats], models: dict[str, Model]) -> Floats:
    """Four streams of 40 hops: words of real voices at several levels."""
    hop = models["fp32"].contract.hop
    joined = np.concatenate(run_corpus_clips)
    return np.stack(
        [joined[start : start + 40 * hop] * level for start, level in ((0, 1), (9000, 0.3), (501, 0.01), (77, 1))]
    )


@pytest.fixture(scope="module")
def run_corpus_clips(corpus: Corpus) -> list[Floats]:
    return corpus.val.pcm


def quiet(line: str) -> None:
    """What export says of its progress goes nowhere."""


def stream(model: Model, pcm: Floats, cuts: list[int]) -> Rows:
    """Scores and embeddings of `pcm [streams, samples]`, pushed in parts that end after so many hops."""
    hop, state = model.contract.hop, model.initial_state(len(pcm))
    scores, embeddings = [], []
    for start, end in zip([0, *cuts], [*cuts, pcm.shape[1] // hop], strict=True):
        if end > start:
            score, embedding, state = model.run(pcm[:, start * hop : end * hop], state)
            scores.append(score)
            embeddings.append(embedding)
    return np.concatenate(scores, axis=1), np.concatenate(embeddings, axis=1)


# streaming


@settings(max_examples=12)
@given(cuts=st.lists(st.integers(0, 40), max_size=12).map(sorted), which=st.integers(0, 3))
def test_any_chopping_equals_torch_on_the_whole(
    models: dict[str, Model], run: Run, audio: Floats, cuts: list[int], which: int
) -> None:
    scores, embeddings = stream(models["fp32"], audio[which : which + 1], cuts)
    warmup = models["fp32"].contract.warmup_hops
    offline = run.encoder.rows(torch.from_numpy(audio[which])).numpy()
    np.testing.assert_allclose(embeddings[0, warmup:], offline, atol=1e-4)
    np.testing.assert_allclose(
        scores[0, warmup:], run.linear.scores(offline) * run.typicality.factors(offline), atol=1e-4
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("cuts", [[], list(range(1, 40)), [1, 1, 7, 22], [39]])
def test_streams_in_a_batch_equal_lone_runs_in_chunks_of_any_size(
    models: dict[str, Model], audio: Floats, precision: str, cuts: list[int]
) -> None:
    together = stream(models[precision], audio, cuts)
    warmup = models[precision].contract.warmup_hops
    for row, pcm in enumerate(audio):
        alone = stream(models[precision], pcm[None], [])
        for found, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(found[row, warmup:], expected[0, warmup:], atol=1e-4)


def test_a_model_that_two_exports_look_at_at_once_is_each_ones_own(tmp_path: Path) -> None:
    tiny_model.build(tmp_path / "tiny.onnx")
    begin = f"""
import onnx
from confit_export.model_file import load_provisional
from tests import tiny_model
graph, contract = onnx.load({str(tmp_path / "tiny.onnx")!r}), tiny_model.contract()
del graph.metadata_props[:]
"""
    at_once(begin, "load_provisional(path, graph, contract)", tmp_path / "out.onnx", "confit_export.model_file")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_where_the_disk_is_full_the_model_that_was_to_be_is_named(tmp_path: Path) -> None:
    graph = onnx.load(tiny_model.build(tmp_path / "tiny.onnx"))
    del graph.metadata_props[:]
    with limited_file_size(1_000), pytest.raises(OSError, match="File too large") as refused:
        load_provisional(tmp_path / "out.onnx", graph, tiny_model.contract())
    assert refused.value.filename == str(tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_fresh_rows_do_not_depend_on_what_was_heard_long_ago(models: dict[str, Model], audio: Floats) -> None:
    model = models["fp32"]
    window, hop = model.contract.window, model.contract.hop
    whole, _ = stream(model, audio, [])
    later, _ = stream(model, audio[:, -window:], [])
    assert window % hop == 0
    np.testing.assert_allclose(later[:, -1], whole[:, -1], atol=1e-4)


def test_exports_measure_their_own_stream_difference(exports: dict[str, Exported]) -> None:
    for exported in exports.values():
        assert 0 < exported.stream_max_abs_diff < 1e-4
        assert exported.contract.parity["stream_max_abs_diff"] == exported.stream_max_abs_diff


def test_an_inexact_graph_is_not_written(
    run: Run, corpus: Corpus, run_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph of other weights than torch judges by, which is what a wrong conversion comes to."""

    def converted(model: Any, encoder: Any, cohort: Floats) -> onnx.ModelProto:
        graph = to_onnx(model, encoder, cohort)
        for tensor in graph.graph.initializer:
            if tensor.name == "stack.layers.2.weight":
                tensor.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(tensor), tensor.name))
        return graph

    monkeypatch.setattr(job, "to_onnx", converted)
    (tmp_path / ".words.onnx.0123abcd.partial").mkdir()  # what kill -9 leaves
    with pytest.raises(ConfitError, match="streaming differs from offline"):
        export_run(run, run_corpus, tmp_path / "words.onnx", quantize=False, say=quiet)
    assert list(tmp_path.iterdir()) == []


# size and cost


def test_int8_is_small_and_as_good(exports: dict[str, Exported]) -> None:
    int8, fp32 = exports["int8"], exports["fp32"]
    assert int8.path.stat().st_size == int8.bytes < 1_500_000
    assert int8.bytes < 0.6 * fp32.bytes
    assert int8.shipped["val"]["accuracy"] >= fp32.shipped["val"]["accuracy"] - 0.005
    assert int8.contract.parity["cosine"] >= 0.99
    assert (int8.contract.precision, fp32.contract.precision) == ("int8", "fp32")
    metrics = {key: int8.contract.metrics[key] for key in ("fired", "softer")}
    assert int8.contract.metrics == {**int8.shipped, **metrics, "gate": {"passed": True, "failures": []}}
    assert int8.contract.parity["fp32"] == int8.fp32 == fp32.shipped


def test_the_share_that_fires_is_what_a_listener_hears(models: dict[str, Model], run_corpus: Corpus) -> None:
    model, clips = models["int8"], run_corpus.test if len(run_corpus.test) else run_corpus.val
    labels_per_precision = []
    for pcm, target in zip(clips.pcm, clips.targets, strict=True):
        stream = model.stream(lead_in=True)
        events = [*stream.accept(pcm, 16_000), *stream.finish()]
        labels_per_precision.append(run_corpus.classes[int(target.argmax())] in {event.label for event in events})
    fired = model.contract.metrics["fired"]
    assert (fired["n"], fired["accuracy"]) == (len(clips), pytest.approx(np.mean(labels_per_precision)))
    cut = replace(
        clips, pcm=[pcm[: len(pcm) // 8] for pcm in clips.pcm]
    )  # a device does not hear what was cut for training
    assert share_fired(model, replace(run_corpus, test=cut)) == fired
    assert share_fired(model, replace(run_corpus, test=replace(cut, uncut=None))) != fired


def test_what_softer_sound_costs_is_what_a_listener_misses(
    models: dict[str, Model], run: Run, run_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, messages = models["int8"], []
    count = {}
    for gain in (1.0, 0.1):
        streams = [(model.stream(lead_in=True), pcm * np.float32(gain)) for pcm in run_corpus.val.pcm]
        labels_per_model = [
            {event.label for event in [*one.accept(pcm, 16_000), *one.finish()]} for one, pcm in streams
        ]
        expected = [run_corpus.classes[int(target.argmax())] for target in run_corpus.val.targets]
        count[gain] = sum(label in labels for label, labels in zip(expected, labels_per_model, strict=True))
    counts = model.contract.metrics["softer"]
    assert counts == {"db": 20.0, "fired": count[0.1], "as_recorded": count[1.0], "n": len(run_corpus.val)}
    assert count_softer(model, run_corpus, run, messages.append) == counts
    assert not messages
    monkeypatch.setattr(measure, "SOFTER_DB", 200.0)  # nothing is left of it
    assert count_softer(model, run_corpus, run, messages.append) == {**counts, "db": 200.0, "fired": 0}
    assert messages[0].startswith(
        f"warning: 200 dB softer, as from the next room, 0 of {counts['n']} validation sounds fire"
    )
    assert "`--gain` above 6 " in messages[0]


def test_int8_embeds_nearly_as_fp32(models: dict[str, Model], corpus: Corpus) -> None:
    cosines = [models["int8"].embed(pcm, 16_000) @ models["fp32"].embed(pcm, 16_000) for pcm in corpus.test.pcm]
    assert min(cosines) > 0.95
    assert min(cosines) < 1 - 1e-6  # it is another model


def test_convolutions_are_int8_and_front_end_and_head_are_not(models: dict[str, Model]) -> None:
    graph = onnx.load(models["int8"].path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producer = {output: node for node in graph.node for output in node.output}
    int8, fp32 = [], []
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            source = producer.get(node.input[1])
            restored = source is not None and source.op_type == "DequantizeLinear"
            quantised = restored and weights[source.input[0]].data_type == onnx.TensorProto.INT8
            (int8 if quantised else fp32).append(node.name)
    assert len(int8) == 20
    assert all(name.startswith(("/stack/layers.0/", "/stack/layers.1/", "/head/")) for name in fp32)
    assert len(fp32) >= 3


def macs_by_hooks(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Multiply-adds of every convolution and linear layer that runs, counted from the shapes that pass."""
    total = 0

    def count(layer: Any, _: Any, out: torch.Tensor) -> None:
        nonlocal total
        weights = layer.weight
        total += out.numel() * (weights.shape[1] if isinstance(layer, nn.Linear) else int(np.prod(weights.shape[1:])))

    hooks = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_are_counted(kind: str, gates: int) -> None:
    """Of each frame and gate: the input's weights and the state's."""
    frames, batch, inputs, hidden = 7, 2, 5, 3
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((1, gates * hidden, size)).astype(np.float32), name)
        for name, size in (("w", inputs), ("r", hidden))
    ]
    node = helper.make_node(kind, ["x", "w", "r"], ["y"], name="layer", hidden_size=hidden)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [frames, batch, inputs])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "one", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    counted = count_macs(model, {"x": np.zeros((frames, batch, inputs), np.float32)})
    assert counted == {"layer": frames * batch * gates * hidden * (inputs + hidden)}


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        (
            {"quantize": False, "quantisation": Quantisation("fp16", qat_epochs=3)},
            "--scheme, --qat-epochs would have no effect",
        ),
        ({"quantize": False, "quantisation": Quantisation(keep_fp32=("x",))}, "--keep-fp32 would have no effect"),
        ({"quantize": False, "quantisation": Quantisation(sweep_minutes=3)}, "--sweep-minutes would have no effect"),
        ({"quantisation": Quantisation("weight-only", target="avx512-vnni")}, "--target would have no effect"),
        ({"quantisation": Quantisation("fp16", calibration="entropy")}, "--calibration would have no effect"),
        ({"quantisation": Quantisation("weight-only", qat_epochs=1)}, "--qat-epochs would have no effect"),
        ({"quantisation": Quantisation(keep_fp32=("/stack",))}, "--keep-fp32 /stack: leaves no layer to quantise"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    run: Run, run_corpus: Corpus, tmp_path: Path, options: dict[str, Any], idle: str
) -> None:
    with pytest.raises(UsageError, match=idle):
        export_run(run, run_corpus, tmp_path / "m.onnx", say=print, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_that_lies_there_is_not_taken_for_that_of_the_new_model(
    run: Run, run_corpus: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "m.device.json").write_text("{}")
    with pytest.raises(UsageError, match=r"m\.device\.json: is the calibration of an existing or former m\.onnx"):
        export_run(run, run_corpus, tmp_path / "m.onnx", say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["m.device.json"]


def test_a_hop_costs_at_most_a_fifth_of_its_window(run: Run) -> None:
    encoder = run.encoder
    assert isinstance(encoder, SpeechEmbedding)
    model = assemble(encoder, run.linear, run.typicality)
    graph = to_onnx(model, encoder, np.zeros((1, encoder.dim), np.float32))
    feed = {"pcm": np.zeros((1, encoder.hop), np.float32)}
    feed |= {name: np.zeros((1, *shape), np.float32) for name, shape in model.state.items()}
    by_node = count_macs(graph, feed)
    states = [torch.zeros(1, *shape) for shape in model.state.values()]
    hooked = macs_by_hooks(model, torch.zeros(1, encoder.hop), *states)
    # products of two tensors, with no layer to hook: the mel bands (frames, parts of bins, bands) and the typicality
    products = 8 * 240 * 32 + len(run.typicality.axes) * len(run.info.classes)
    assert sum(by_node.values()) == hooked + products

    by_hooks = macs_by_hooks(encoder.layers, torch.zeros(1, 1, 76, 32))
    hop_only = sum(macs for name, macs in by_node.items() if not name.startswith(model.fp32_scopes))
    assert by_hooks > 1_000_000
    assert hop_only <= 0.2 * by_hooks
    # with the front end and the head it is no worse
    whole = macs_by_hooks(encoder.spectrum, torch.zeros(1, 1, RECEPTIVE)) + 76 * 120 * 32 + by_hooks
    assert sum(by_node.values()) <= 0.2 * whole


def test_counting_costs_of_a_quantised_graph_gives_the_same(models: dict[str, Model]) -> None:
    counts = []
    for model in models.values():
        feed = {"pcm": np.zeros((1, model.contract.hop), np.float32), **model.initial_state(1)}
        counts.append(sum(count_macs(onnx.load(model.path), feed).values()))
    assert counts[0] == counts[1] > 0


# the gate


@pytest.fixture
def bad_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrates on what no sound leaves in a state: ranges a thousand times too wide."""
    real = job.calibration_feeds

    def wild_feeds(*arguments: Any) -> list[dict[str, Floats]]:
        return [
            {name: value if name == "pcm" else 1000 * value for name, value in feed.items()}
            for feed in real(*arguments)[:4]
        ]

    monkeypatch.setattr(job, "calibration_feeds", wild_feeds)


@pytest.mark.usefixtures("bad_calibration")
def test_a_failed_gate_names_the_layers_to_blame_and_leaves_no_file_but_an_older_one(
    run_path: Path,
    exports: dict[str, Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    last_good = exports["int8"].path.read_bytes()
    (tmp_path / "words.onnx").write_bytes(last_good)
    monkeypatch.setattr(sys, "argv", ["confit-edge", "export", str(run_path), "-o", str(tmp_path / "words.onnx")])
    main_exit(1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "words.onnx: not written: " in last
    assert "mean cosine" in last
    assert "/stack/layers." in last
    assert (
        "; try --calibration percentile, --qat-epochs 3, --scheme weight-only, --scheme fp16 or --no-quantize" in last
    )
    assert [path.name for path in tmp_path.iterdir()] == ["words.onnx"]
    assert (tmp_path / "words.onnx").read_bytes() == last_good


def test_only_a_model_with_a_class_of_the_run_is_replaced(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "words.onnx"
    check_replaceable(out, run)
    tiny_model.build(out)  # of low, mid and high
    check_replaceable(out, replace(run, info=replace(run.info, classes=["mid", "new", UNKNOWN])))
    for classes in (["owl", "crow", UNKNOWN], ["owl", "crow"]):
        with pytest.raises(UsageError) as refused:
            check_replaceable(out, replace(run, info=replace(run.info, classes=classes)))
        other = f"words.onnx: already exists, and is a model of other classes (low, mid, high) than {run.path}; choose"
        assert other in str(refused.value)
    shutil.copy(load("speakers").path, out)
    with pytest.raises(UsageError, match=r"of other classes \(none, as of a speaker model\) than"):
        check_replaceable(out, run)
    out.write_bytes(b"a model of another tool")
    with pytest.raises(UsageError, match="already exists, and is not a complete model"):
        check_replaceable(out, run)


@pytest.mark.usefixtures("bad_calibration")
def test_force_writes_the_file_and_its_contract_records_what_failed(
    run: Run, run_corpus: Corpus, tmp_path: Path
) -> None:
    messages: list[str] = []
    exported = export_run(run, run_corpus, tmp_path / "words.onnx", force=True, say=messages.append)
    verdict = load(exported.path).contract.metrics["gate"]
    assert not verdict["passed"]
    assert any("cosine" in failure for failure in verdict["failures"])
    assert exported.contract.parity["cosine"] < 0.99
    assert any("does not pass the gate" in line for line in messages)
    lost, clips = exported.fp32["test"]["accuracy"] - exported.shipped["test"]["accuracy"], len(run_corpus.test)
    assert lost > 0.2
    assert any(line.startswith("accuracy on test: int8 ") and f" of {clips} clips, fp32 " in line for line in messages)
    (warning,) = [line for line in messages if line.startswith("warning: on test, quantising to int8 loses ")]
    assert (
        f" {100 * lost:.2f} points of accuracy, {round(lost * clips)} of {clips} clips: more than the gate" in warning
    )
    assert "--no-quantize" in warning
    # the sweep that looked for a way out is told, worst layer first
    errors = list(exported.contract.parity["sweep"]["errors"].values())
    assert len(errors) == 20
    assert errors == sorted(errors, reverse=True)


def test_a_loss_on_test_is_reported_beyond_what_the_gate_allows() -> None:
    def warnings_for(*lost: float) -> list[str]:
        messages: list[str] = []
        fp32, int8 = (
            {"n": 400, "low": 0.5, "high": 1.0, "accuracy": 0.95 - less}
            | {"map": 0.9 - less_map, "map_low": 0.5, "map_high": 1.0}
            for less, less_map in ((0.0, 0.0), lost)
        )
        compare_on_test(fp32, int8, "int8", messages.append)
        return messages[1:]

    assert warnings_for(0.005, 0.005) == warnings_for(-0.1, -0.1) == []
    assert "loses 0.75 points of accuracy, 3 of 400 clips: more" in warnings_for(0.0075, 0.0)[0]
    assert "loses 3.00 points of mAP: more" in warnings_for(0.0, 0.03)[0]


# what is in the file


def main_exit(code: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in ({0, None} if code == 0 else {code})


def test_the_contract_is_correct(exports: dict[str, Exported], run: Run) -> None:
    for exported in exports.values():
        contract = read_sealed(exported.path.read_bytes()).contract
        assert contract == exported.contract
        assert contract.name == "words"
        assert list(contract.labels) == run.info.classes
        assert contract.unknown_label == "unknown"
        assert contract.encoder["weights_sha256"] == weights_sha256(run.encoder)
        assert contract.data["fingerprint"] == run.info.data["fingerprint"]
        assert data_warnings(contract.data) == data_warnings(run.info.data)
        assert contract.data["repeated"] == run.info.data["repeated"]
        assert contract.data["grouped"] is run.info.data["grouped"] is True
        assert (contract.window, contract.hop, contract.embedding_dim) == (20_480, 1_280, 96)
        assert contract.window == (contract.warmup_hops + 1) * contract.hop
        assert contract.latency_samples == contract.window // 2
        assert set(contract.thresholds) == set(contract.labels)
        report = contract.calibration["detection"]
        assert report["words"] == 30
        assert report["found"] >= 20
        assert report["false_accepts"] <= 3
        onnx.checker.check_model(onnx.load(exported.path), full_check=True)
        layers = len(run.info.classes) * 2 + len(
            run.typicality.axes
        )  # of the head, each with as many weights and a bias
        assert contract.cost["parameters"] == sum(weight.numel() for weight in run.encoder.parameters()) + layers * 97
        feed = {"pcm": np.zeros((1, contract.hop), np.float32), **load(exported.path).initial_state(1)}
        hop_macs = sum(count_macs(onnx.load(exported.path), feed).values())
        assert sum(contract.cost["macs_per_second"].values()) == hop_macs * 16_000 / 1_280
    int8 = exports["int8"].contract.cost
    assert int8["nodes"]["Conv"]["int8"] == 20
    assert int8["macs_per_second"]["int8"] > 5 * int8["macs_per_second"]["fp32"]


def test_the_file_scores_clips_as_the_run_does(models: dict[str, Model], run: Run, corpus: Corpus) -> None:
    scores = np.stack([models["fp32"].rows(pcm, 16_000)[0].mean(axis=0) for pcm in corpus.test.pcm])
    targets = np.pad(corpus.test.targets, ((0, 0), (0, 1)))
    assert correct(scores, targets).mean() == pytest.approx(
        run.metrics["probes"]["linear"]["test"]["accuracy"], abs=0.07
    )


def test_the_embedding_id_is_of_the_embedding_only(
    exports: dict[str, Exported], run: Run, run_corpus: Corpus, tmp_path: Path
) -> None:
    def embedding_id(changed: Run) -> str:
        return export_run(changed, run_corpus, tmp_path / "words.onnx", quantize=False, say=quiet).contract.embedding_id

    other_head = replace(run, linear=replace(run.linear.sharpened(1.5), multi_label=not run.linear.multi_label))
    other_weights = replace(run, encoder=copy.deepcopy(run.encoder))
    with torch.no_grad():
        next(iter(other_weights.encoder.parameters())).view(-1)[0] += 1e-3
    before = exports["fp32"].contract.embedding_id
    assert embedding_id(other_head) == before
    assert embedding_id(other_weights) != before
    assert exports["int8"].contract.embedding_id != before


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_cohort_is_embeddings_of_training_clips_by_this_file(
    models: dict[str, Model], run_corpus: Corpus, precision: str
) -> None:
    model = models[precision]
    np.testing.assert_allclose(np.linalg.norm(model.cohort, axis=1), 1, atol=1e-5)
    own = np.stack([model.embed(pcm, 16_000) for pcm in run_corpus.train.pcm])
    nearest = (model.cohort @ own.T).max(axis=1)
    words = nearest > 1 - 1e-4
    assert words.sum() == 20  # four clips of each of five words
    assert len(model.cohort) == 20 + len(run_corpus.background_train)
    drawn = (model.cohort[words] @ own.T).argmax(axis=1)
    assert np.bincount(run_corpus.train.labels[drawn]).tolist() == [4] * 5


def test_a_contract_says_up_to_where_its_encoder_hears(exports: dict[str, Exported]) -> None:
    assert (
        exports["fp32"].contract.highest_hz == exports["int8"].contract.highest_hz == SpeechEmbedding.highest_hz < 4000
    )
    assert load("speakers").contract.highest_hz == 8000  # all of its rate


def test_quiet_rooms_are_white_and_rumbling_noise_of_the_levels_of_rooms() -> None:
    rooms = list(quiet_rooms(16_000))
    levels = [20 * np.log10(np.sqrt(np.square(room, dtype=np.float64).mean())) for room in rooms]
    np.testing.assert_allclose(levels, np.repeat([-80.0, -65.0, -50.0, -40.0], 2), atol=0.01)
    for hiss, rumble in zip(rooms[::2], rooms[1::2], strict=True):
        low, low_rumble = (np.square(np.abs(np.fft.rfft(room)))[1:100].sum() for room in (hiss, rumble))
        assert low_rumble > 50 * low
        assert abs(rumble[0] - rumble[-1]) < 0.1 * np.abs(rumble).max()  # it does not drift away


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_quiet_rooms_are_embedded_by_this_file_and_stand_in_it(models: dict[str, Model], precision: str) -> None:
    model = models[precision]
    assert len(model.quiet) == ROOMS
    rooms = quiet_rooms(model.contract.window)
    np.testing.assert_array_equal(model.quiet, [model.embed(room, 16_000) for room in rooms])
    soft = 1e-3 * np.random.default_rng(0).standard_normal(20_480).astype(np.float32)
    assert (model.quiet @ model.embed(soft, 16_000)).max() > 0.9


# what cannot be exported


def test_data_that_changed_or_moved_is_noticed(run: Run, manifest: Path, tmp_path: Path) -> None:
    moved_run = replace(run, info=replace(run.info, data={**run.info.data, "manifest": str(tmp_path / "gone.csv")}))
    with pytest.raises(UsageError, match=r"gone\.csv.*--data"):
        run_corpus(moved_run)
    assert run_corpus(moved_run, manifest).fingerprint == run.info.data["fingerprint"]
    lost = replace(run, recipe=replace(run.recipe, background=(str(tmp_path / "lost"),)))
    with pytest.raises(UsageError, match=r"lost: the --background that .* is missing; give its current path"):
        run_corpus(lost)
    shutil.copytree(run.recipe.background[0], tmp_path / "found")
    (found,) = with_current_paths([lost], background=[str(tmp_path / "found")])
    assert run_corpus(found).fingerprint == run.info.data["fingerprint"]
    with pytest.raises(UsageError, match=r"no --others was used to train .*; leave it out"):
        with_current_paths([run], others=[str(tmp_path)])
    fewer = tmp_path / "fewer.csv"
    rows = manifest.read_text().splitlines()
    fewer.write_text("\n".join([rows[0], *(f"{manifest.parent}/{row}" for row in rows[1:-1])]))
    with pytest.raises(UsageError, match=r"trained on: val had 15 clips of 3 groups and now has 14 clips of 3 groups$"):
        run_corpus(run, fewer)
    first = tmp_path / "found" / sorted(os.listdir(tmp_path / "found"))[0]
    first.write_bytes(b"no sound")
    shorter = r"trained on: the background for training lasted 19.6 s and now lasts (11.2|16.8) s; the background for"
    with pytest.raises(UsageError, match=rf"{shorter}.*; left out: .*{first.name} cannot be read as sound \("):
        run_corpus(found)
    first.unlink()
    with pytest.raises(UsageError, match=rf"{shorter} thresholds lasted [0-9.]+ s and now lasts [0-9.]+ s$"):
        run_corpus(found)
    other = tmp_path / "other.csv"
    other.write_text(fewer.read_text().replace(",yes,", ",yess,") + f"\n{manifest.parent}/{rows[-1]}")
    with pytest.raises(UsageError, match=r"it has no clip of 'yes'; it has 'yess', which the run does not know$"):
        run_corpus(run, other)
    other.write_text(other.read_text().replace(",yess,", ",no,").replace(",stop,", ",yes,").replace(",no,", ",stop,"))
    with pytest.raises(UsageError, match=r"same classes, but different sound, labels, splits or background$"):
        run_corpus(run, other)


def test_a_model_that_hears_little_is_reported(run: Run, run_corpus: Corpus, tmp_path: Path) -> None:
    for scale, warned in ((0.0, True), (1.0, False)):  # a probe that knows nothing, and the run's own
        probe = replace(run.linear, weight=scale * run.linear.weight, bias=scale * run.linear.bias)
        messages: list[str] = []
        changed = replace(run, linear=probe)
        export_run(changed, run_corpus, tmp_path / f"{scale}.onnx", quantize=False, force=True, say=messages.append)
        assert any(line.startswith("warning: a device would hear ") for line in messages) == warned


def test_a_model_file_must_be_called_onnx(run: Run, run_corpus: Corpus, tmp_path: Path) -> None:
    for name in ("words", "words.bin", "words.onnx.zip"):
        with pytest.raises(UsageError, match=r"\.onnx"):
            export_run(run, run_corpus, tmp_path / "new" / name, say=quiet)
    assert list(tmp_path.iterdir()) == []
