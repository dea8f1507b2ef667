"""Training, probing and export called from a program: paths as text, and what was given stays as it is."""

from __future__ import annotations

import json
import re
import shutil
from ast import literal_eval
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.encoders import encoder_name, pretrained
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.own import check_encoder
from confit_edge.pairtune.session import save, train, train_corpus
from confit_edge.probes.dual import dual_probe
from confit_edge.recipe import Recipe
from confit_edge.runs import Run, read_run, run_corpus, weights_sha256
from confit_export.export import export_run
from confit_runtime import load
from confit_runtime.errors import ConfitError, UsageError

CPU = torch.device("cpu")
SHORT = Recipe(epochs=1, soup=1, probe_views=1, frozen_baseline=False)


def test_a_path_may_be_text_everywhere_and_what_a_program_draws_stays(
    manifest: Path, background: Path, tmp_path: Path
) -> None:
    drawn = torch.get_rng_state()
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
    exported = export_run(run, run_corpus(run, str(manifest)), out, quantize=False, force=True, say=lambda line: None)
    assert exported.path == Path(out)
    assert exported.path.is_file()
    assert torch.equal(torch.get_rng_state(), drawn)  # which are the program's


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
    ("like", "message"),
    [
        (lambda pcm: (pcm * 32767).astype(np.int16), r"not int16 \[\d+\]; use int16 / np.float32\(32768\)"),
        (lambda pcm: pcm.astype(np.float64), r"not float64 \[\d+\]"),
        (lambda pcm: np.stack([pcm, pcm], axis=1), r"not float32 \[\d+, 2\]"),
        (lambda pcm: np.stack([pcm, pcm], axis=1)[:, 0], r"not float32 \[\d+\], not contiguous"),
        (lambda pcm: pcm[:0], r"not float32 \[0\]"),
        (lambda pcm: pcm.tolist(), "not a list"),
        (lambda pcm: torch.from_numpy(pcm.copy()), "not a Tensor"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(few: Corpus, like: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^Clips: pcm\[0\] \(.*\.ogg\) must be .*{message}"):
        arrays(few.train, like)


def test_lists_of_clips_belong_together(few: Corpus) -> None:
    clips = few.train
    with pytest.raises(UsageError, match=r"there are 20 pcm, 20 targets, 19 groups, 20 paths$"):
        Clips(clips.pcm, clips.targets, clips.groups[1:], clips.paths)
    with pytest.raises(UsageError, match=r"20 paths, 1 uncut$"):
        replace(clips, uncut=clips.pcm[:1])
    with pytest.raises(UsageError, match=r"not int64 \[20\]; from class numbers, use np.eye\("):
        replace(clips, targets=clips.labels)
    with pytest.raises(UsageError, match=r"must be int8 0 or 1 .* not a list"):
        replace(clips, targets=clips.targets.tolist())
    for other in (2 * clips.targets, 2 * clips.targets - 1):
        with pytest.raises(UsageError, match="must be int8 0 or 1"):
            replace(clips, targets=other)
    narrow = replace(few, train=replace(clips, targets=clips.targets[:, 1:]))
    with pytest.raises(UsageError, match=r"columns, but there are .* classes; give one column for each"):
        narrow.check_training_clips()


def test_a_sample_that_is_no_number_is_reported_before_training(few: Corpus, manifest: Path) -> None:
    def damaged(pcm: Any) -> Any:
        return np.where(np.arange(len(pcm)) == 100, np.float32(np.nan), pcm)

    pcm = [damaged(few.val.pcm[0]), *few.val.pcm[1:]]
    path = re.escape(str(few.val.paths[0]))
    encoder = pretrained(SHORT.encoder, SHORT.window)
    for corpus, message in (
        (replace(few, val=replace(few.val, pcm=pcm, uncut=None)), path),
        (replace(few, background_train=[pcm[0]]), r"background_train\[0\]"),
    ):
        with pytest.raises(UsageError, match=rf"^{message}: contains samples that are not finite"):
            train_corpus(encoder, corpus, SHORT, manifest=manifest, device=CPU, name="words")


def test_a_class_without_training_clips_is_reported_before_training(few: Corpus, manifest: Path) -> None:
    targets = few.train.targets.copy()
    targets[:, 2] = 0
    corpus = replace(few, train=replace(few.train, targets=targets))
    with pytest.raises(
        UsageError, match=r"manifest.csv: no training clip has the class 'seven'; every class needs one$"
    ):
        train_corpus(
            pretrained(SHORT.encoder, SHORT.window), corpus, SHORT, manifest=manifest, device=CPU, name="words"
        )


def test_a_corpus_at_another_rate_than_the_encoders_is_refused(run: Run, manifest: Path, tmp_path: Path) -> None:
    slow = read_corpus(manifest, rate=8_000, **run.recipe.corpus_options())
    message = (
        r"manifest.csv: was read at 8000 Hz, but the encoder needs 16000 Hz; use read_corpus\(\.\.\., rate=16000\)$"
    )
    with pytest.raises(UsageError, match=message):
        train_corpus(run.encoder, slow, SHORT, manifest=manifest, device=CPU, name="words")
    with pytest.raises(UsageError, match=message):
        dual_probe(run.encoder, slow, SHORT, CPU)
    with pytest.raises(UsageError, match=message):
        export_run(run, slow, tmp_path / "words.onnx", say=print)


def test_a_run_is_exported_with_the_data_it_was_trained_on_only(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"manifest.csv: not the data that .*words was trained on: it has no clip of 'unknown'"
    ):
        export_run(run, corpus, tmp_path / "words.onnx", say=print)
    assert list(tmp_path.iterdir()) == []


class Own(Encoder):
    """A small one, as the protocol asks."""

    family, sample_rate, window, hop, dim = "own", 16_000, 20_480, 1_280, 8
    streaming, learning_rate = False, 1e-3

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 4, 400, 160), nn.Conv1d(4, 8, 5, 2)

    def frames(self, pcm: Tensor) -> Tensor:
        return self.second(self.first(pcm[:, None]).relu()).transpose(1, 2)

    def blocks(self) -> list[list[nn.Module]]:
        return [[self.first], [self.second]]

    def spec(self) -> dict[str, Any]:
        return {"family": self.family}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 9}, r"frames\(\) of one window \[1, 20480\] must be \[1, time, dim\], with dim 9; it is \[1, 61, 8\]"),
        ({"frames": lambda self, pcm: Own.frames(self, pcm).mean(dim=1)}, r"it is \[1, 8\]$"),
        ({"frames": lambda self, pcm: Own.frames(self, pcm) / 0}, "must be finite"),
        ({"frames": lambda self, pcm: Own.frames(self, pcm.half())}, r"frames\(\) of one window, float32 .*, fails \("),
        ({"learning_rate": None}, "learning_rate must be a number; it is None"),
        ({"highest_hz": 0.0}, "highest_hz must be above 0; it is 0.0"),
        ({"sample_rate": 16e3}, "sample_rate must be a whole number; it is 16000.0"),
        ({"hop": 0}, "hop must be at least 1; it is 0"),
        (
            {"spec": lambda self: {"family": "own", "place": Path()}},
            r"spec\(\) must be plain data that JSON can hold",
        ),
        ({"spec": lambda self: {"channels": 4}}, r"spec\(\) must be a dict that names the family 'own'"),
        ({"blocks": lambda self: [[self.first]]}, r"second.weight is in 0 of blocks\(\)"),
        ({"blocks": lambda self: [[self.first], [self.first, self.second]]}, r"first.weight is in 2 of blocks\(\)"),
    ],
)
def test_an_encoder_that_is_not_as_the_protocol_says_is_refused(changed: dict[str, Any], message: str) -> None:
    check_encoder(Own())
    check_encoder(type("Counted", (Own,), {"hop": np.int64(Own.hop)})())
    with pytest.raises(UsageError, match=rf"^encoder Other: .*{message}"):
        check_encoder(type("Other", (Own,), changed)())


def test_shipped_encoders_are_as_the_protocol_says(run: Run) -> None:
    for encoder in (run.encoder, pretrained("ge2e", 1.6)):
        before, training = weights_sha256(encoder), encoder.training
        check_encoder(encoder)
        assert weights_sha256(encoder) == before
        assert encoder.training == training


def test_an_encoder_is_named_by_what_it_is_where_the_recipe_asked_for_another() -> None:
    assert encoder_name("speech-embedding", "speech_embedding") == "speech-embedding"
    assert encoder_name("speech_embedding", "ge2e") == "ge2e"
    assert encoder_name("org/hubert", "transformers") == "org/hubert"
    assert encoder_name("org/hubert", "own_one") == "own-one"


# docs/python.md


def program(at: int) -> str:
    """A program of the page, with a short training."""
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    found = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert found[at].count("Recipe(epochs=30)") == 1
    return str(found[at].replace("Recipe(epochs=30)", "Recipe(epochs=2, soup=1, probe_views=1, frozen_baseline=False)"))


@pytest.fixture
def working_folder(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a program, with the words that it reads."""
    shutil.copytree(manifest.parent, tmp_path / "words")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_training_probing_and_export_in_a_program(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(program(0), "program", "exec"), {"__name__": "program"})
    probed, *_, exported = capsys.readouterr().out.splitlines()
    metrics = json.loads((working_folder / "runs" / "words" / "metrics.json").read_text())
    assert probed == str(metrics["probes"]["linear"]["test"])
    assert literal_eval(exported) == load(working_folder / "words.onnx").contract.metrics["test"]


def test_an_encoder_of_a_programs_own(working_folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(program(1), "program", "exec"), names)
    again, trained = names["run"], names["trained"]
    assert weights_sha256(again.encoder) == weights_sha256(trained.encoder) != trained.info.encoder_sha256
    assert "\nsmall trained" in (working_folder / "runs" / "small" / "README.md").read_text()
    assert load(working_folder / "small.onnx").contract.encoder["name"] == "small"
    with pytest.raises(
        ConfitError, match=r"does not know the encoder family 'small'; pass an encoder of your own.*encoder="
    ):
        read_run("runs/small")
    with pytest.raises(UsageError, match=r"its encoder is \{.*48\}, but the one given is \{.*40\}$"):
        read_run("runs/small", encoder=names["Small"](40))
