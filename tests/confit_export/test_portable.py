"""One file, everywhere: an x86 processor without VNNI by emulation, and a browser's runtime under Node."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from confit_edge.data.corpus import Corpus
from confit_export.export import Exported
from confit_runtime import Model, load
from confit_runtime.audio import load_clip

Floats = npt.NDArray[np.float32]
DEMO = Path(__file__).parents[2] / "confit_edge" / "demo" / "data"

RUN = """
import sys
import numpy as np
from confit_runtime import load
model = load(sys.argv[1])
pcm = np.fromfile(sys.argv[2], np.float32)
scores, embedding, _ = model.run(pcm[None], model.initial_state(1))
np.savez(sys.argv[3], scores=scores[0], embedding=embedding[0])
"""

WEB = "1.30.0"  # of onnxruntime-web


@pytest.fixture
def sound(corpus: Corpus, exports: dict[str, Exported], tmp_path: Path) -> Path:
    """Words in a row: whole hops of raw float32."""
    joined = np.concatenate(corpus.val.pcm)
    path = tmp_path / "sound.raw"
    joined[: 40 * exports["int8"].contract.hop].tofile(path)
    return path


def rows(model: Model, sound: Path) -> tuple[Floats, Floats]:
    """Scores and embeddings here, one hop a call."""
    hop, state, found = model.contract.hop, model.initial_state(1), []
    pcm = np.fromfile(sound, np.float32)
    for at in range(0, len(pcm), hop):
        scores, embedding, state = model.run(pcm[None, at : at + hop], state)
        found.append((scores[0, 0], embedding[0, 0]))
    scores, embeddings = zip(*found, strict=True)
    return np.stack(scores), np.stack(embeddings)


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-user is not installed (apt install qemu-user)")
@pytest.mark.skipif(sys.platform != "linux", reason="qemu-user runs on Linux")
def test_portable_int8_is_the_same_on_a_processor_without_vnni(
    exports: dict[str, Exported], sound: Path, tmp_path: Path
) -> None:
    out = tmp_path / "haswell.npz"
    command = [
        "qemu-x86_64",
        "-cpu",
        "Haswell",
        sys.executable,
        "-c",
        RUN,
        str(exports["int8"].path),
        str(sound),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-500:]
    scores, embeddings = rows(load(exports["int8"].path), sound)
    with np.load(out) as found:
        np.testing.assert_allclose(found["scores"], scores, atol=1e-4)
        np.testing.assert_allclose(found["embedding"], embeddings, atol=1e-4)


@pytest.fixture(scope="module")
def web_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with onnxruntime-web from npm."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}")
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--fetch-retries=0", f"onnxruntime-web@{WEB}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not answer in two minutes")
    if done.returncode:
        pytest.skip("npm cannot fetch onnxruntime-web (offline?)")
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_same_file_gives_the_same_rows_in_onnxruntime_web(
    web_runtime: Path, exports: dict[str, Exported], sound: Path, tmp_path: Path, precision: str
) -> None:
    model = load(exports[precision].path)
    scores, embeddings = rows(model, sound)
    web_scores, web_embeddings = web_rows(web_runtime, model, sound, tmp_path)
    assert len(web_scores) == 40
    np.testing.assert_allclose(web_scores, scores, atol=1e-4)
    np.testing.assert_allclose(web_embeddings, embeddings, atol=1e-4)


def test_a_layer_in_fp32_before_one_in_int8_rounds_otherwise_in_onnxruntime_web(
    web_runtime: Path, tmp_path: Path
) -> None:
    """Of `digits`, whose first convolution is in fp32, a last digit may fall on the edge between two levels of int8."""
    model, sound = load("digits"), tmp_path / "digits.raw"
    spoken = [load_clip(path, 16_000) for path in sorted((DEMO / "digits-real").glob("*.ogg"))]
    joined = np.concatenate([np.pad(pcm, (8000, 8000)) for pcm in spoken])
    joined[: len(joined) // model.contract.hop * model.contract.hop].tofile(sound)
    scores, embeddings = rows(model, sound)
    web_scores, web_embeddings = web_rows(web_runtime, model, sound, tmp_path)
    apart = np.abs(web_scores - scores).max(axis=1)
    assert apart.max() < 0.05
    assert np.mean(apart > 1e-4) < 0.25
    assert np.sum(web_embeddings * embeddings, axis=1).min() > 0.999


def web_rows(web_runtime: Path, model: Model, sound: Path, folder: Path) -> tuple[Floats, Floats]:
    """Scores and embeddings in onnxruntime-web, one hop a call."""
    script, out = Path(__file__).with_name("onnxruntime_web.mjs"), folder / "web.json"
    command = ["node", script, web_runtime, model.path, sound, str(model.contract.hop), out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    return np.array(found["scores"], np.float32), np.array(found["embedding"], np.float32)
