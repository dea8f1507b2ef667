"""`confit-edge export` and `inspect` as a user runs them: the options, the card, and a device that has numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from confit_edge.cli.export import _next_step
from confit_edge.demo import DATA
from confit_export import fuse
from confit_export.export import Exported
from confit_export.model_card import Timing, front_matter, recommendation, table
from confit_runtime import load
from confit_runtime.bench import call_latency
from confit_runtime.errors import ConfitError
from confit_runtime.gemm import saturates
from tests.cli.command import Confit


def test_export_with_options_writes_a_card_and_inspect_shows_the_same(
    run_path: Path, tmp_path: Path, confit: Confit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse, "WINDOWS", 128)  # enough for the few clips of the tests
    out = tmp_path / "words.onnx"
    keep = ("--keep-fp32", "/stack/layers.4/", "--calibration", "percentile", "--license", "CC0-1.0")
    code, _, err = confit("export", run_path, "-o", out, "--target", "avx2", "--fuse-activations", *keep)
    assert code == 0, err
    contract = load(out).contract
    enroll = contract.calibration["enroll"]
    assert "false_accept_rate" not in enroll
    few = f"{enroll['trials']} trials with validation clips of {enroll['classes']} classes do not show how many strangers pass"
    assert f"enrolled names: {few}" in " ".join(err.split())
    assert contract.parity["weight_bits"] == 7  # which no processor adds wrongly
    assert "export there, or take --target portable" not in " ".join(err.split())
    assert "its 8-bit weights give wrong results" not in caplog.text

    _, head, body = out.with_suffix(".md").read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(head)
    assert (fields["license"], fields["pipeline_tag"]) == ("cc0-1.0", "audio-classification")
    assert "model-index" not in fields  # 15 clips of 3 voices are no result to publish
    assert "15 validation clips from 3 groups" in body
    assert "| derived from | speech\\_embedding, copyright Google LLC, Apache-2.0 |" in body
    unlicensed = front_matter(replace(contract, license="unspecified"))
    assert "license" not in yaml.safe_load(unlicensed)  # the hub refuses a name that it does not list
    held = {**contract.data["own"], "test": {"clips": 300, "groups": 18}}
    many = replace(contract, data={**contract.data, "own": held})
    (result,) = yaml.safe_load(front_matter(many))["model-index"][0]["results"]
    (measured,) = result["metrics"]
    assert measured["name"] == "test accuracy"
    assert measured["value"] == pytest.approx(contract.metrics["test"]["accuracy"], abs=1e-4)
    for part in (
        "too few to say how many strangers pass",
        "static for avx2, ranges by percentile",
        "/stack/layers.4/Conv",
        "p50 / p99",
        "peak memory",
    ):
        assert part in body
    assert "2 fp32, 19 int8" in body
    latency = call_latency(load(out))
    timing = Timing(latency, latency, None)
    assert recommendation(contract, timing) is None
    hardly = replace(contract, cost={"macs_per_second": {"fp32": 99, "int8": 1}})
    assert "--scheme fp16" in str(recommendation(hardly, timing))
    assert "dynamic" not in str(recommendation(hardly, timing))  # which is refused for a stream

    code, printed, err = confit("inspect", out, "--no-measure")
    assert code == 0, err
    lines = dict(line.split("  ", 1) for line in printed.splitlines())
    assert lines["size"].strip() == f"{out.stat().st_size / 1e6:.2f} MB"
    assert lines["layers kept in fp32"].strip() == "/stack/layers.4/Conv"
    assert lines["gate"].strip() == "passed"
    assert lines["activations"].strip().startswith("replaced by fused ones")

    code, printed, _ = confit("inspect", out, "--json")
    assert code == 0
    (line,) = map(json.loads, printed.splitlines())
    assert line["contract"] == json.loads(contract.to_json())
    assert line["measured"]["p50_ms"] > 0
    assert line["measured"]["first_score_s"] > 0


def test_a_model_for_voices_has_galleries_of_voices(run_path: Path, tmp_path: Path, confit: Confit) -> None:
    out, gallery = tmp_path / "voices.onnx", tmp_path / "voices.db"
    code, _, err = confit("export", run_path, "-o", out, "--no-quantize", "--kind", "speaker")
    assert code == 0, err
    assert "this is a model for voices (as --kind asks)" in err
    assert load(out).contract.calibration["enroll"]["kind"] == "speaker"
    assert "confit-edge enroll voices.onnx NAME CLIP..." in out.with_suffix(".md").read_text(encoding="utf-8")
    word = next((DATA / "words" / "seven").glob("*.ogg"))
    code, _, err = confit("enroll", out, "ada", word, "--gallery", gallery)
    assert code == 1
    assert "s of voice but 4 s are needed" in err
    code, _, err = confit("enroll", out, "ada", word, "--gallery", gallery, "--kind", "sound")
    assert code == 0, err


@pytest.mark.parametrize(
    ("kind", "found", "warning"),
    [
        (
            "sound",
            9,
            "confit-edge listen 'my words.onnx'; to add names it was not trained on: confit-edge enroll 'my",
        ),
        (
            "sound",
            1,
            "train with more clips of more voices, and with --background; or let it fire more easily, with more false"
            " accepts: confit-edge listen",
        ),
        ("speaker", 1, "confit-edge enroll 'my words.onnx' NAME CLIP..."),
    ],
)
def test_the_next_step_depends_on_what_a_model_can_do(
    exports: dict[str, Exported], kind: str, found: int, warning: str
) -> None:
    calibration = {"enroll": {"kind": kind}, "detection": {"found": found, "words": 10}}
    contract = replace(exports["fp32"].contract, calibration=calibration)
    assert _next_step(contract, Path("my words.onnx")).startswith(warning)


def test_inspect_needs_no_onnx_and_no_torch(exports: dict[str, Exported]) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'sklearn', 'scipy', 'yaml', 'optimum'): sys.modules[name] = None\n"
        "from confit_edge.cli import main\n"
        f"sys.argv = ['confit-edge', 'inspect', {str(exports['int8'].path)!r}, '--no-measure', '--json']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["contract"]["precision"] == "int8"


def test_inspect_shows_what_it_knows_where_measuring_fails(confit: Confit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise ConfitError(f"{path}: a new process could not run it (no word)")

    monkeypatch.setattr("confit_runtime.bench.fresh_process", fails)
    code, out, err = confit("inspect", "digits")
    assert (code, "thresholds" in out, "latency per call here" in out, "peak memory" in out) == (1, True, True, False)
    assert "a new process could not run it" in err
    code, out, _ = confit("inspect", "digits", "--json")
    description = json.loads(out)
    assert (code, description["contract"]["name"], "p50_ms" in description["measured"]) == (1, "digits", True)


def test_inspect_of_what_is_no_model(tmp_path: Path, confit: Confit) -> None:
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    for given, code in ((tmp_path / "no.onnx", 1), (tmp_path / "absent.onnx", 2)):
        found, out, err = confit("inspect", given)
        assert (found, out) == (code, "")
        assert given.name in err


def test_a_file_that_is_no_card_is_not_replaced_by_one(run_path: Path, tmp_path: Path, confit: Confit) -> None:
    (tmp_path / "README.md").write_text("# Notes of mine\n")
    code, _, err = confit("export", run_path, "-o", tmp_path / "README.onnx")
    assert code == 2
    assert "README.md: is not a card that confit-edge wrote" in err
    assert (tmp_path / "README.md").read_text() == "# Notes of mine\n"
    assert not (tmp_path / "README.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheme", "int4"], "--scheme int4: choose one of static, dynamic, weight-only, fp16"),
        (["--target", "arm"], "--target arm: choose one of portable, avx2, avx512-vnni, arm64"),
        (["--calibration", "mean"], "--calibration mean: choose one of minmax, entropy, percentile"),
        (["--no-quantize", "--scheme", "static"], "so --scheme would have no effect; remove it or --no-quantize"),
        (["--no-quantize", "--target", "portable", "--calibration", "minmax"], "so --target, --calibration would have"),
        (["--no-quantize", "--sweep-minutes", "20"], "so --sweep-minutes would have no effect; remove it or --no"),
        (["--scheme", "fp16", "--target", "arm64"], "--target would have no effect; remove it or --scheme fp16"),
        (["--scheme", "dynamic"], "--scheme dynamic: not for a streaming model"),
        (
            ["--keep-fp32", "/stack/layer.4"],
            "/stack/layer.4: names none of the 20 layers; did you mean /stack/layers.4?",
        ),
        (["--keep-fp32", "/nothing"], "--keep-fp32 /nothing: names none of the 20 layers; they are"),
    ],
)
def test_what_cannot_be_asked_for_is_named(
    run_path: Path, tmp_path: Path, confit: Confit, options: list[str], message: str
) -> None:
    code, out, err = confit("export", run_path, "-o", tmp_path / "words.onnx", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_eight_bit_weights_where_they_are_wrong_are_reported(
    run_path: Path, tmp_path: Path, confit: Confit, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "words.onnx"
    code, _, err = confit("export", run_path, "-o", out, "--target", "avx512-vnni", "--force")
    assert code == 0, err
    assert ("export there, or take --target portable" in " ".join(err.split())) == saturates()
    assert load(out).contract.parity["weight_bits"] == 8
    assert ("its 8-bit weights give wrong results on this processor" in caplog.text) == saturates()


def test_a_card_shows_labels_as_they_are() -> None:
    assert table([("labels", "<unk>, _go_, *, a|b, yes")])[2] == r"| labels | \<unk\>, \_go\_, \*, a\|b, yes |"
    assert (
        table([("labels", "![p](http:x)\n, 90.0 [81.2, 95.1]")])[2] == r"| labels | ![p\](http:x) , 90.0 [81.2, 95.1] |"
    )
