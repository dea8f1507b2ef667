"""Training, probing and export called from a program: paths as text, and what was given stays as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.encoders import pretrained
from confit_edge.pairtune.session import save, train, train_corpus
from confit_edge.probes.dual import dual_probe
from confit_edge.recipe import Recipe
from confit_edge.runs import Run, read_run, run_corpus
from confit_export.export import export_run
from confit_runtime.errors import UsageError

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


def arrays(clips: Clips, like: Callable[[Any], Any] = np.copy) -> Clips:
    """The same clips as a program holds them that read them itself."""
    return Clips(list(map(like, clips.pcm)), clips.targets.copy(), list(clips.groups), list(clips.paths))


def test_arrays_of_a_program_are_learnt_as_files_are(few: Corpus, manifest: Path) -> None:
    own = replace(few, train=arrays(few.train), val=arrays(few.val), test=arrays(few.test))
    first, second = (
        train_corpus(
            pretrained(SHORT.encoder, SHORT.window), corpus, SHORT, manifest=manifest, device=CPU, name="words"
        ).metrics
        for corpus in (few, own)
    )
    assert first == second


@pytest.mark.parametrize(
    ("like", "told"),
    [
        (lambda pcm: (pcm * 32767).astype(np.int16), r"not int16 \[\d+\]: int16 / np.float32\(32768\)"),
        (lambda pcm: pcm.astype(np.float64), r"not float64 \[\d+\]"),
        (lambda pcm: np.stack([pcm, pcm], axis=1), r"not float32 \[\d+, 2\]"),
        (lambda pcm: np.stack([pcm, pcm], axis=1)[:, 0], r"not float32 \[\d+\], not in one piece"),
        (lambda pcm: pcm[:0], r"not float32 \[0\]"),
        (lambda pcm: pcm.tolist(), "not a list"),
        (lambda pcm: torch.from_numpy(pcm.copy()), "not a Tensor"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(few: Corpus, like: Callable[[Any], Any], told: str) -> None:
    with pytest.raises(UsageError, match=rf"^Clips: pcm\[0\] \(.*\.ogg\) must be .*{told}"):
        arrays(few.train, like)


def test_lists_of_clips_belong_together(few: Corpus) -> None:
    clips = few.train
    with pytest.raises(UsageError, match=r"there are 20 pcm, 20 targets, 19 groups, 20 paths$"):
        Clips(clips.pcm, clips.targets, clips.groups[1:], clips.paths)
    with pytest.raises(UsageError, match=r"20 paths, 1 uncut$"):
        replace(clips, uncut=clips.pcm[:1])
    with pytest.raises(UsageError, match=r"not int64 \[20\]; of the numbers of classes: np.eye\("):
        replace(clips, targets=clips.labels)


def test_a_sample_that_is_no_number_is_told_before_training(few: Corpus, manifest: Path) -> None:
    def damaged(pcm: Any) -> Any:
        return np.where(np.arange(len(pcm)) == 100, np.float32(np.nan), pcm)

    pcm = [damaged(few.val.pcm[0]), *few.val.pcm[1:]]
    path = re.escape(str(few.val.paths[0]))
    encoder = pretrained(SHORT.encoder, SHORT.window)
    for corpus, told in (
        (replace(few, val=replace(few.val, pcm=pcm, uncut=None)), path),
        (replace(few, background_train=[pcm[0]]), r"background_train\[0\]"),
    ):
        with pytest.raises(UsageError, match=rf"^{told}: holds samples that are not finite"):
            train_corpus(encoder, corpus, SHORT, manifest=manifest, device=CPU, name="words")


def test_a_corpus_at_another_rate_than_the_encoders_is_refused(run: Run, manifest: Path, tmp_path: Path) -> None:
    slow = read_corpus(manifest, rate=8_000, **run.recipe.corpus_options())
    told = r"manifest.csv: was read at 8000 Hz, and the encoder hears 16000 Hz: read_corpus\(\.\.\., rate=16000\)$"
    with pytest.raises(UsageError, match=told):
        train_corpus(run.encoder, slow, SHORT, manifest=manifest, device=CPU, name="words")
    with pytest.raises(UsageError, match=told):
        dual_probe(run.encoder, slow, SHORT, CPU)
    with pytest.raises(UsageError, match=told):
        export_run(run, slow, tmp_path / "words.onnx", say=print)


def test_a_run_is_exported_with_the_data_it_was_trained_on_only(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"manifest.csv: is not the data .*words was trained on: it has no clip of 'unknown'"
    ):
        export_run(run, corpus, tmp_path / "words.onnx", say=print)
    assert list(tmp_path.iterdir()) == []
