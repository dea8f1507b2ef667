"""A run on disk: what was trained comes back bit for bit, and damage is named."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch
from markdown_it import MarkdownIt

from confit_edge import runs
from confit_edge.card import run_card
from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.encoders import encoder_label, pretrained
from confit_edge.encoders.embedding import embed_clips
from confit_edge.pairtune.remarks import describe_data, remarks
from confit_edge.pairtune.resuming import check_same_training
from confit_edge.pairtune.session import (
    FEW,
    SOUP_OF_FEW,
    resolved_recipe,
    train,
    train_corpus,
    trainings,
)
from confit_edge.probes.metrics import correct, mean_average_precision
from confit_edge.recipe import Recipe
from confit_edge.runs import Run, read_run, weights_sha256
from confit_runtime.errors import ConfitError, UsageError

CPU = torch.device("cpu")
NAMED = ("run.json", "metrics.json", "encoder.safetensors", "probe.safetensors")


@pytest.fixture
def copied(run_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_path, tmp_path / "run"))


# what is written


def test_a_run_holds_its_files_and_no_pickle(run_path: Path) -> None:
    names = {path.relative_to(run_path).as_posix() for path in run_path.rglob("*") if path.is_file()}
    assert names == {
        *NAMED,
        *("projection.safetensors", "history.csv", "README.md", "plots/learning.png", "plots/confusion.png"),
    }
    for name in names:
        start = (run_path / name).read_bytes()[:10]
        if name.endswith(".safetensors"):
            assert start[8:9] == b"{"
        elif name.endswith(".png"):
            assert start.startswith(b"\x89PNG")
        else:
            (run_path / name).read_text(encoding="utf-8")
            assert not start.startswith((b"\x80", b"PK", b"\x93NUMPY"))


def test_a_run_records_what_it_was_trained_on(run_path: Path, manifest: Path, background: Path) -> None:
    info = json.loads((run_path / "run.json").read_text())
    assert info["data"]["clips"] == {"train": 30, "val": 15, "test": 15}
    assert info["data"]["groups"] == {"train": 6, "val": 3, "test": 3}
    assert (info["data"]["background_train_s"], info["data"]["background_val_s"]) == (19.6, 8.4)
    assert info["data"]["manifest"] == str(manifest)
    assert info["recipe"]["background"] == [str(background)]
    assert info["classes"] == ["happy", "marvin", "seven", "stop", "yes", "unknown"]
    assert info["versions"]["torch"] == torch.__version__
    assert set(info["recipe"]) == set(Recipe().to_dict())
    with (run_path / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == ["1", "2"]
    card = (run_path / "README.md").read_text()
    assert card.startswith("---\n")
    metrics = json.loads((run_path / "metrics.json").read_text())
    assert f"{100 * metrics['probes']['linear']['test']['accuracy']:.1f} %" in card


def test_names_stand_in_a_card_as_they_are(run: Run) -> None:
    names = [
        "<img src=x onerror=alert(1)>",
        "![p](http:evil)",
        "[a][b]",
        "_go_",
        "`x`",
        "~~y~~",
        "a\n# b",
        "AT&amp;T",
        "a|b",
    ]
    card = run_card(replace(run.info, name=names[0], classes=names), run.metrics)
    shown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(card.partition("\n---\n")[2])
    assert f"<h1>{escape(names[0])}</h1>" in shown
    assert f"<p>Classes: {escape(', '.join(names)).replace(chr(10), ' ')}</p>" in shown
    assert set(re.findall(r"<(\w+)", shown)) <= {
        *("h1", "p", "strong", "code", "img", "table", "thead", "tbody", "tr", "th", "td"),
    }
    assert shown.count("<img") == 1  # of the learning curves


def test_what_is_read_gives_the_numbers_that_were_reported(run: Run, manifest: Path, background: Path) -> None:
    corpus = read_corpus(manifest, rate=run.encoder.sample_rate, seed=0, background=background)
    embeddings = embed_clips(run.encoder, corpus.test.pcm, CPU)
    for name, probe in (("linear", run.linear), ("knn", run.knn)):
        right = correct(probe.scores(embeddings), corpus.test.targets)
        assert run.metrics["probes"][name]["test"]["accuracy"] == pytest.approx(right.mean())
    np.testing.assert_allclose(run.knn.prints, embed_clips(run.encoder, corpus.train.pcm, CPU), atol=1e-6)
    assert np.array_equal(run.knn.targets, corpus.train.targets)


def test_what_was_trained_in_memory_comes_back_bit_for_bit(run_path: Path, manifest: Path, background: Path) -> None:
    recipe = read_run(run_path).recipe
    corpus = read_corpus(manifest, rate=16_000, seed=recipe.seed, background=background)
    encoder = pretrained(recipe.encoder, recipe.window)
    trained = train_corpus(encoder, corpus, recipe, manifest=manifest, device=CPU, name="words")
    again = read_run(run_path)
    assert weights_sha256(again.encoder) == weights_sha256(trained.encoder)
    for key, value in trained.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[key], value)
    assert np.array_equal(again.linear.weight, trained.probes.linear.weight)
    assert np.array_equal(again.linear.bias, trained.probes.linear.bias)
    assert np.array_equal(again.knn.prints, trained.probes.knn.prints)
    assert again.knn.k == trained.probes.knn.k
    assert again.info == trained.info
    assert again.metrics == trained.metrics
    assert not again.encoder.training


def test_two_trainings_begin_with_the_same_encoder_and_neither_changes_the_other(
    corpus: Corpus, manifest: Path
) -> None:
    encoder, recipe = pretrained("speech-embedding", 1.28), Recipe(epochs=1, soup=1, probe_views=1)
    before = weights_sha256(encoder)
    first = train_corpus(encoder, corpus, recipe, manifest=manifest, device=CPU, name="first")
    learnt = weights_sha256(first.encoder)
    assert before == weights_sha256(encoder) == first.info.encoder_sha256 != learnt
    second = train_corpus(
        encoder, corpus, replace(recipe, objective="finetune"), manifest=manifest, device=CPU, name="second"
    )
    assert second.info.encoder_sha256 == before
    assert second.metrics["frozen"] == first.metrics["frozen"]
    assert weights_sha256(first.encoder) == learnt != weights_sha256(second.encoder)


def test_the_digest_of_weights_sees_every_value_and_name() -> None:
    encoder = pretrained("speech-embedding", 0.8)
    first = weights_sha256(encoder)
    assert first == weights_sha256(pretrained("speech-embedding", 0.8))
    with torch.no_grad():
        value = next(encoder.parameters()).view(-1)[:1]
        value.copy_(torch.nextafter(value, torch.tensor(9.0)))
    assert weights_sha256(encoder) != first


def test_the_digest_of_weights_stays_what_it_was_and_knows_every_type() -> None:
    encoder = pretrained("speech-embedding", 0.8)
    buffers = {
        "empty": torch.zeros(0),
        "count": torch.tensor(3),
        "heard": torch.tensor([True, False]),
        "turned": torch.arange(6.0).view(2, 3).t(),
        "float16": torch.ones(2, dtype=torch.float16),
    }
    for name, value in buffers.items():
        encoder.register_buffer(name, value)
    written = hashlib.sha256()  # as files tell that were written before
    for name, value in sorted(encoder.state_dict().items()):
        array = value.detach().numpy()
        written.update(f"{name} {array.shape} {array.dtype}".encode() + array.tobytes())
    assert weights_sha256(encoder) == written.hexdigest()
    encoder.register_buffer("brief", torch.ones(2, dtype=torch.bfloat16))
    first = weights_sha256(encoder)
    encoder.get_buffer("brief")[1] = 2
    assert first != weights_sha256(encoder) != written.hexdigest()


def test_of_few_clips_several_trainings_are_averaged(
    cut: Callable[..., Path], run_corpus: Corpus, tmp_path: Path
) -> None:
    few_words = cut(words=("yes", "stop"), voices={"train": 2, "val": 1})
    events: list[dict[str, Any]] = []
    recipe = Recipe(epochs=1, probe_views=1, frozen_baseline=False, clips_per_class=2)
    train(few_words, tmp_path / "run", recipe, watch=events.append)
    (note,) = [event["text"] for event in events if event["stage"] == "note" and "--soup 1" in event["text"]]
    assert f"averaging {SOUP_OF_FEW} trainings of 1 epoch each" in note
    epochs = [event for event in events if event["stage"] == "epoch"]
    assert [(one["training"], one["trainings"]) for one in epochs] == [(at, SOUP_OF_FEW) for at in (1, 2, 3, 4)]
    run = read_run(tmp_path / "run")
    assert run.recipe.soup == SOUP_OF_FEW
    assert run.metrics["training"] == {"epochs": SOUP_OF_FEW, "planned": SOUP_OF_FEW, "ended_early": False}
    assert train(few_words, tmp_path / "run", recipe, resume=True) is None  # the same recipe means the same again

    assert trainings(Recipe(), run_corpus) == SOUP_OF_FEW
    clips = run_corpus.train
    many = Clips(clips.pcm * FEW, np.tile(clips.targets, (FEW, 1)), clips.groups * FEW, clips.paths * FEW)
    assert trainings(Recipe(), replace(run_corpus, train=many)) == 1
    for has_no_mean in (Recipe(freeze="all"), Recipe(patience=2), Recipe(lora_rank=2, encoder="x")):
        assert trainings(has_no_mean, run_corpus) == 1


def test_a_training_whose_start_was_cut_off_is_reported_and_restarted(manifest: Path, tmp_path: Path) -> None:
    """A power cut leaves an empty file where it was not written to the disk, and a kill what was not renamed yet."""
    recipe = Recipe(epochs=1, soup=1, probe_views=1, frozen_baseline=False)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "started.json").touch()
    with pytest.raises(ConfitError, match=r"started\.json: is damaged"):
        train(manifest, tmp_path / "cut", recipe, resume=True)
    (tmp_path / "killed" / ".started.json.0123abcd.partial").mkdir(parents=True)
    assert train(manifest, tmp_path / "killed", recipe) is not None


# several labels


@pytest.mark.parametrize(("objective", "noisy"), [("pairtune", True), ("finetune", False)])
def test_clips_with_several_labels_train_and_get_probes(
    objective: Literal["pairtune", "finetune"], noisy: bool, corpus: Any, background: Path, tmp_path: Path
) -> None:
    """Words with how long they are as a second label; one word is nobody's, and has no label at all."""
    labels = {"yes": "yes|short", "stop": "stop|short", "happy": "happy|long", "marvin": "long|marvin", "seven": ""}
    rows = ["path,labels,group,split"]
    for split, clips in (("train", corpus.train), ("val", corpus.val), ("test", corpus.test)):
        for path, label, group in zip(clips.paths, clips.labels, clips.groups, strict=True):
            rows.append(f"{path},{labels[corpus.classes[label]]},{group},{split}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    noise = (str(background),) if noisy else ()
    recipe = Recipe(objective=objective, epochs=1, soup=1, probe_views=1, frozen_baseline=False, background=noise)
    train(tmp_path / "m.csv", tmp_path / "run", recipe)
    found = read_run(tmp_path / "run")
    assert found.info.multi_label
    assert found.linear.multi_label
    assert found.info.classes == ["happy", "long", "marvin", "short", "stop", "yes", *(["unknown"] if noisy else [])]
    probed = found.metrics["probes"]["linear"]["val"]
    assert probed["n"] == 12  # those of seven have no label, and no best class is theirs
    scores = found.linear.scores(embed_clips(found.encoder, corpus.val.pcm, CPU))
    truth = np.array(
        [[name in labels[corpus.classes[one]].split("|") for name in found.info.classes] for one in corpus.val.labels]
    )
    assert probed["map"] == pytest.approx(mean_average_precision(scores, truth.astype(np.int8)))
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| probe | split | mAP |" in card
    assert f"| linear probe | val | {100 * probed['map']:.1f} % |" in card
    assert ("head" in found.metrics) == (objective == "finetune")
    scores = found.linear.scores(embed_clips(found.encoder, corpus.train.pcm, CPU))
    words = np.array([corpus.classes[label] for label in corpus.train.labels])
    for label in ("yes", "short", "long"):
        column = scores[:, found.info.classes.index(label)]
        own = np.array([label in labels[word].split("|") for word in words])
        assert column[own].min() > column[~own].mean() + 0.2
    # each label by itself would call half of all sound its own; what is like no clip is none's
    silence = embed_clips(found.encoder, [np.zeros(16_000, np.float32)], CPU)
    silence_scores = (found.linear.scores(silence) * found.typicality.factors(silence))[0]
    assert silence_scores[[name != "unknown" for name in found.info.classes]].max() < 0.2


# damage


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "binary", "list"])
def test_a_damaged_file_is_named(copied: Path, name: str, damage: str) -> None:
    data = (copied / name).read_bytes()
    wrong = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "text": b"hello",
        "binary": b"\xff\x00\x80" * 99,
        "list": b"[]",
    }
    (copied / name).write_bytes(wrong[damage])
    with pytest.raises(ConfitError, match=name) as caught:
        read_run(copied)
    assert "\n" not in str(caught.value)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    def edit(raw: dict[str, Any]) -> None:
        del raw[key]

    return edit


def setting(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(raw: dict[str, Any]) -> None:
        raw[key] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        *[without(key) for key in ("classes", "recipe", "encoder", "data", "lr")],
        *[setting("schema", 99), setting("surprise", 1), setting("recipe", {"epoch": 3}), setting("recipe", None)],
        *[setting("encoder", {"family": "hearsay"}), setting("encoder", {}), setting("encoder", [])],
        *[setting("encoder", {"family": "speech_embedding", "depth": 3})],
        *[setting("encoder", {"family": "speech_embedding", "pool_hops": hops}) for hops in (10**9, -100)],
        *[setting("classes", ["yes", "no"]), setting("classes", "yes")],
        *[setting("data", {}), setting("data", []), setting("data", {"manifest": "m.csv", "fingerprint": 5})],
    ],
    ids=lambda edit: f"{edit.__qualname__.split('.')[0]} {[cell.cell_contents for cell in edit.__closure__]}",
)
def test_a_run_json_that_is_wrong_is_refused_by_name(copied: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((copied / "run.json").read_text())
    edit(raw)
    (copied / "run.json").write_text(json.dumps(raw))
    with pytest.raises(ConfitError, match=str(copied)) as caught:
        read_run(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_what_is_nested_too_deeply_is_named(copied: Path, name: str) -> None:
    (copied / name).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ConfitError, match=f"{name}: damaged"):
        read_run(copied)


def test_a_schema_from_the_future_says_which_is_read(copied: Path) -> None:
    raw = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**raw, "schema": runs.SCHEMA + 1}))
    with pytest.raises(ConfitError, match=f"schema {runs.SCHEMA + 1} .* reads {runs.SCHEMA}"):
        read_run(copied)


@pytest.mark.parametrize("name", NAMED)
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(UsageError, match=name):
        read_run(copied)


def test_an_unfinished_training_is_distinguished_from_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run"):
        read_run(tmp_path)
    (tmp_path / runs.CHECKPOINT).write_bytes(b"")
    with pytest.raises(UsageError, match="--resume"):
        read_run(tmp_path)


# where a run may be written


def test_a_run_is_never_written_over_something_else(run_path: Path, manifest: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="finished run"):
        train(manifest, run_path, Recipe())
    same = read_run(run_path).recipe
    assert train(manifest, run_path, same, resume=True) is None
    with pytest.raises(UsageError, match=r"these differ: .*epochs"):
        train(manifest, run_path, replace(same, epochs=same.epochs + 1, objective="finetune"), resume=True)
    assert before == {path: path.read_bytes() for path in run_path.rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        train(manifest, tmp_path / "file", Recipe())
    with pytest.raises(UsageError, match="not empty"):
        train(manifest, tmp_path, Recipe())
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


class StoppedError(Exception):
    """Stands for a kill."""


def test_killed_while_the_run_is_being_written_it_is_written_again(
    cut: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = cut(words=("yes", "stop"), voices={"train": 2, "val": 1})
    recipe = Recipe(epochs=1, soup=1, probe_views=1, frozen_baseline=False, clips_per_class=2)
    train(manifest, tmp_path / "whole", recipe)
    write = runs.write_text

    def stop_at_the_last_file(path: Path, text: str) -> None:
        if path.name == "run.json":
            raise StoppedError
        write(path, text)

    monkeypatch.setattr(runs, "write_text", stop_at_the_last_file)
    with pytest.raises(StoppedError):
        train(manifest, tmp_path / "run", recipe)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--resume"):
        read_run(tmp_path / "run")
    train(manifest, tmp_path / "run", recipe, resume=True)
    for name in ("encoder.safetensors", "projection.safetensors", "probe.safetensors", "history.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_plot_that_cannot_be_drawn_costs_no_run(cut: Callable[..., Path], tmp_path: Path) -> None:
    manifest, out, events = cut(words=("yes", "stop"), voices={"train": 2, "val": 1}), tmp_path / "run", []

    def block_plots(event: dict[str, Any]) -> None:
        events.append(event)
        if event["stage"] == "probe":
            (out / "plots").write_text("where plots would go")

    recipe = Recipe(epochs=1, soup=1, probe_views=1, frozen_baseline=False, clips_per_class=2)
    train(manifest, out, recipe, watch=block_plots)
    read_run(out)
    notes = [event["text"] for event in events if event["stage"] == "note"]
    assert any(note.startswith(f"warning: {out / 'plots' / 'learning.png'} could not be drawn (") for note in notes)
    assert not (out / "started.json").exists()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"lora_rank": 4, "soup": None}, "'lora_rank'"),
        ({"freeze": "40"}, "'freeze' is 40"),
        ({"encoder": "ge2e", "window": 1.6, "spec_augment": True}, "'spec_augment'"),
        ({"label_column": "labels", "loss": "triplet", "mining": "semi-hard"}, "'loss' triplet"),
    ],
)
def test_a_recipe_that_cannot_be_done_leaves_nothing(
    cut: Callable[..., Path], tmp_path: Path, wrong: dict[str, Any], named: str
) -> None:
    """And is refused before the frozen encoder is probed, so that the right one may begin in its place."""
    manifest = cut(words=("yes", "stop"), voices={"train": 2, "val": 1})
    if "label_column" in wrong:
        manifest.write_text(manifest.read_text().replace("path,label,", "path,labels,"))
    stages = []
    with pytest.raises(UsageError, match=named):
        train(
            manifest, tmp_path / "run", replace(Recipe(epochs=1, soup=1), **wrong),
            watch=lambda event: stages.append(event["stage"]),
        )  # fmt: skip
    assert "probe" not in stages
    assert not (tmp_path / "run").exists()


def test_a_training_suspects_a_class_that_is_another_misspelt(cut: Callable[..., Path], tmp_path: Path) -> None:
    manifest = cut(words=("yes", "stop"), voices={"train": 2, "val": 1})
    manifest.write_text(manifest.read_text().replace(",yes,", ",Stop,"))
    events = []

    def stop(event: dict[str, Any]) -> None:
        events.append(event.get("text", ""))
        if event["stage"] == "epoch":
            raise StoppedError

    with pytest.raises(StoppedError):
        train(manifest, tmp_path / "run", Recipe(epochs=1, frozen_baseline=False, clips_per_class=2), watch=stop)
    assert "warning: 'Stop' (3 clips): is it 'stop' (3)? If so, rename it" in events


def test_a_training_suspects_labels_that_are_joined(cut: Callable[..., Path]) -> None:
    manifest = cut(words=("yes", "stop", "seven"), voices={"train": 2, "val": 1})
    table = manifest.read_text().replace(",seven,", ',"yes,stop",')
    manifest.write_text(table)
    corpus = read_corpus(manifest, rate=16_000, seed=0)
    notes = list(remarks(corpus, describe_data(manifest, corpus, 16_000)))
    assert any("warning: class 'yes,stop' is learnt separately" in line for line in notes)


def test_a_training_reports_a_label_that_all_its_clips_have(
    cut: Callable[..., Path], background: Path, tmp_path: Path
) -> None:
    """Without background, which has it not."""
    manifest = cut(words=("yes", "stop"), voices={"train": 2, "val": 1})
    table = manifest.read_text().replace("path,label", "path,labels")
    manifest.write_text(table.replace(",yes,", ",word|yes,").replace(",stop,", ",word,"))
    for sound, warned in (((), True), (background, False)):
        corpus = read_corpus(manifest, rate=16_000, seed=0, background=sound)
        notes = list(remarks(corpus, describe_data(manifest, corpus, 16_000)))
        assert (
            any(
                "every training clip is 'word': the model learns nothing to distinguish it from" in line
                for line in notes
            )
            == warned
        )


def test_a_recipe_means_the_same_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("checkpoint", "ge2e"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    settled_recipe = resolved_recipe(Recipe(encoder="./checkpoint", background=("hum",)), torch.device("cpu"))
    assert settled_recipe.encoder == str(tmp_path / "checkpoint")
    assert settled_recipe.background == (str(tmp_path / "hum"),)
    for name in ("ge2e", "openai/whisper-tiny"):  # what ships goes before a folder of its name
        assert resolved_recipe(Recipe(encoder=name), torch.device("cpu")).encoder == name
    assert encoder_label(settled_recipe.encoder) == "checkpoint"
    assert encoder_label("openai/whisper-tiny") == "openai/whisper-tiny"


def test_resuming_needs_the_same_recipe_and_the_same_data(cut: Callable[..., Path], tmp_path: Path) -> None:
    manifest = cut(words=("yes", "stop"), voices={"train": 2, "val": 1})
    recipe = Recipe(epochs=2, soup=1, probe_views=1, frozen_baseline=False, clips_per_class=2)

    def stop(event: dict[str, Any]) -> None:
        if event["stage"] == "step" and event["epoch"] == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(manifest, tmp_path / "run", recipe, watch=stop)
    with pytest.raises(UsageError, match="add --resume"):
        train(manifest, tmp_path / "run", recipe)
    changed = replace(recipe, lr=(1e-3,), temperature=0.2)
    with pytest.raises(UsageError, match=r"differ: lr \(its own, now 0\.001\), temperature \(0\.1, now 0\.2\)$"):
        train(manifest, tmp_path / "run", changed, resume=True)
    beginning = tmp_path / "run" / "started.json"
    by_one = beginning.read_text()
    beginning.write_text(by_one.replace('"processes": 1', '"processes": 2'))
    with pytest.raises(UsageError, match=r"differ: the number of processes \(2, now 1\)$"):
        train(manifest, tmp_path / "run", recipe, resume=True)
    beginning.write_text(json.dumps({key: value for key, value in json.loads(by_one).items() if key != "chosen_by"}))
    with pytest.raises(ConfitError, match=r"started\.json: lacks chosen_by; remove"):
        train(manifest, tmp_path / "run", recipe, resume=True)
    beginning.write_text(by_one)
    started, moved = json.loads(by_one), {"background": "there", "others": "there"}
    other_device = {**started, "recipe": {**started["recipe"], **moved}}
    check_same_training(tmp_path, other_device, started)  # the same sound, which has moved
    other_folder = {**started, "recipe": {**started["recipe"], "encoder": "/there"}}
    check_same_training(tmp_path, other_folder, started)  # the same weights
    with pytest.raises(UsageError, match=r"differ: encoder \(/there, now speech-embedding\)$"):
        check_same_training(tmp_path, {**other_folder, "encoder_sha256": "another"}, started)
    with pytest.raises(UsageError, match=r"differ: others \(there, now none\), background \(there, now none\)$"):
        check_same_training(tmp_path, {**other_device, "fingerprint": "another"}, started)
    clip = sorted(manifest.parent.glob("yes-*.ogg"))[0]
    original = clip.read_bytes()
    soundfile.write(clip, np.random.default_rng(0).uniform(-0.1, 0.1, 9000), 16_000, format="OGG", subtype="OPUS")
    with pytest.raises(UsageError, match=r"differ: the data$"):
        train(manifest, tmp_path / "run", recipe, resume=True)
    clip.write_bytes(original)
    header, *rows = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([header, *reversed(rows)]))  # its batches would be of other clips
    with pytest.raises(UsageError, match=r"differ: the order of the clips \(in the manifest, or of --others\)$"):
        train(manifest, tmp_path / "run", recipe, resume=True)
    reordered, checkpoint = read_corpus(manifest, rate=16_000, seed=0), tmp_path / "run" / runs.CHECKPOINT
    encoder, places = pretrained(recipe.encoder, recipe.window), {"manifest": manifest, "checkpoint": checkpoint}
    with pytest.raises(ConfitError, match=r"the checkpoint belongs to another training"):
        train_corpus(encoder, reordered, recipe, device=CPU, name="run", **places)
    manifest.write_text("".join([header, *rows]))
    beginning.write_text(json.dumps({**started, "device": "cuda"}))
    other_device, events = replace(recipe, device="cpu:0", strict=True), []  # neither changes what is learnt
    assert train(manifest, tmp_path / "run", other_device, resume=True, watch=events.append) is not None
    assert [event for event in events if "started on cuda, resuming on cpu" in event.get("text", "")]
    assert [event for event in events if event.get("text", "") == "resuming after epoch 1 of 2"]
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "run" / runs.CHECKPOINT).exists()
