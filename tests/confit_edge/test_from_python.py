"""Training, probing and export called from a program: paths as text, and what was given stays as it is."""

from __future__ import annotations

from pathlib import Path

import torch

from confit_edge.data.corpus import read_corpus
from confit_edge.encoders import pretrained
from confit_edge.pairtune.session import save, train, train_corpus
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run, run_corpus
from confit_export.export import export_run

CPU = torch.device("cpu")
SHORT = Recipe(epochs=1, soup=1, probe_views=1, frozen_baseline=False)


def test_a_path_may_be_text_everywhere(manifest: Path, background: Path, tmp_path: Path) -> None:
    corpus = read_corpus(str(manifest), rate=16_000, seed=0, background=str(background))
    encoder = pretrained(SHORT.encoder, SHORT.window)
    checkpoint = str(tmp_path / "checkpoint.safetensors")
    trained = train_corpus(encoder, corpus, SHORT, manifest=str(manifest), device=CPU, name="a", checkpoint=checkpoint)
    save(trained, corpus, str(tmp_path / "a"), lambda event: None)
    assert train(str(manifest), str(tmp_path / "b"), SHORT) is not None
    for name in ("a", "b"):
        run = read_run(str(tmp_path / name))
        assert run.info.data["manifest"] == str(manifest)
    out = str(tmp_path / "words.onnx")
    made = export_run(run, run_corpus(run, str(manifest)), out, quantize=False, force=True, say=lambda line: None)
    assert made.path == Path(out)
    assert made.path.is_file()
