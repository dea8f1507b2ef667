"""Every study from its plan to its conclusions, on tones and with an encoder so small that each takes seconds."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from confit_edge.data.corpus import Clips, Corpus, read_corpus
from confit_edge.data.manifest import UNKNOWN, read_manifest, write_manifest
from confit_edge.encoders.base import Encoder
from confit_edge.encoders.embedding import embed_clips
from confit_edge.pairtune.items import epoch_batches
from confit_edge.pairtune.session import train
from confit_edge.probes import dual, views
from confit_edge.probes.dual import dual_probe
from confit_edge.probes.hard import embed_background
from confit_edge.recipe import Recipe
from confit_edge.runs import read_run
from confit_edge.studies import cost, find, names
from confit_edge.studies.bench import Bench, merit_tally, probed, source_of, trained
from confit_edge.studies.engine import Planned, prepare, run
from confit_edge.studies.questions import convergence, dimensions, unseen
from confit_edge.studies.report import write_report
from confit_edge.studies.results import Results
from confit_edge.studies.subset import cut, with_classes
from confit_edge.studies.trial import Subset
from confit_runtime.errors import UsageError

# by study: how many trials one seed has, and columns and metrics of its table
EXPECTED = {
    "batch": (6, {"batch", "window", "hardness", "linear", "knn"}),
    "classes": (6, {"classes", "linear", "head", "isoscore"}),
    "convergence": (4, {"epoch", "val_linear", "val_head", "epochs_linear"}),
    "dimensions": (6, {"basis", "what", "dimensions", "penalty", "linear", "knn", "balance", "top1_train"}),
    "isotropy": (7, {"temperature", "epochs", "isoscore", "top1"}),
    "mining": (21, {"loss", "mining", "linear"}),
    "shots": (15, {"shots", "clips", "linear", "linear_rare", "head_rare"}),
    "temperature": (9, {"temperature", "linear", "head"}),
    "unseen": (3, {"classes", "domain", "way", "shots", "prototype", "knn", "linear"}),
}


@pytest.fixture(scope="module")
def recipe(checkpoints: dict[str, Path]) -> Recipe:
    return Recipe(
        encoder=str(checkpoints["wav2vec2"]), window=0.3, shift=0.02, epochs=1, soup=1, probe_views=1, classes_per_batch=4,
        clips_per_class=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


def plan(name: str, tones: Path, recipe: Recipe, out: Path, seeds: int = 1) -> Planned:
    return prepare(find(name), source_of(tones, recipe), out, seeds=seeds, groups=3)


def done(name: str, tones: Path, recipe: Recipe, folder: Path) -> tuple[Planned, Results, list[str]]:
    planned = plan(name, tones, recipe, folder / name)
    results = run(planned, 1)
    return planned, results, write_report(planned, results, f"confit-edge study {name}")


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_study_from_its_plan_to_its_conclusions(name: str, tones: Path, recipe: Recipe, folder: Path) -> None:
    planned, results, conclusions = done(name, tones, recipe, folder)
    trials, columns = EXPECTED[name]
    assert len(planned.trials) == len(results.outcomes) == trials
    assert all(trial.subset.groups == 3 for trial in planned.trials.values())
    assert planned.cpu_seconds > 0
    with (folder / name / "table.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert columns <= set(table[0])
    for row in table:
        for metric in {"linear", "knn", "head", "prototype", "linear_rare"} & set(row):
            if row[metric]:
                low, value, high = (float(row[key]) for key in (f"{metric}_low", metric, f"{metric}_high"))
                assert 0 <= low <= value <= high <= 1
    shown = [row for row in table if "epoch" not in row or not row["epoch"]]  # an epoch has validation figures only
    assert len((folder / name / "table.md").read_text().splitlines()) == len(shown) + 2
    assert (folder / name / "plot.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((folder / name / "results.json").read_text())
    assert kept["conclusions"] == conclusions
    assert len(kept["rows"]) == len(table)
    assert "With one seed, the intervals cover the test groups only." in conclusions[0]
    assert len(conclusions) > 1
    assert not re.search(r"\bnan\b", " ".join(conclusions))


def test_the_study_in_the_documentation(tones: Path, recipe: Recipe) -> None:
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(program, names)
    trials = names["STUDY"].plan(read_corpus(tones, rate=16_000, seed=0), recipe)
    assert [trial.recipe.projection_dim for trial in trials] == [16, 64, 256]
    assert [trial.arm["dim"] for trial in trials] == [16, 64, 256]


def test_convergence_takes_each_training_of_a_soup_for_a_curve(tones: Path, recipe: Recipe) -> None:
    bench = Bench(source_of(tones, recipe))
    _, trial, *_ = convergence.plan(bench.corpus(), replace(recipe, epochs=3, soup=2, lr=(3e-3,)))
    last, *epochs = convergence.measure(bench, trial)
    _, fitted = trained(bench, trial, bench.data(trial))  # the same again
    assert fitted is not None
    assert [row["training"] for row in fitted.history] == [1, 1, 1, 2, 2, 2]
    assert [point.arm for point in epochs] == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]
    for name in ("val_linear", "val_head"):
        curves = np.array([row[name] for row in fitted.history]).reshape(2, 3)
        assert [point.numbers[name] for point in epochs] == pytest.approx(curves.mean(axis=0))
        reached = 1 + (curves >= 0.95 * curves.max(axis=1, keepdims=True)).argmax(axis=1)
        assert last.numbers[name.replace("val", "epochs")] == pytest.approx(reached.mean())


def test_no_plan_has_a_trial_twice_and_all_are_of_their_seed(tones: Path, recipe: Recipe) -> None:
    corpus = read_corpus(tones, rate=16_000, seed=0)
    for name in names():
        trials = find(name).plan(cut(corpus, Subset(groups=3), 5), replace(recipe, seed=5))
        assert {trial.recipe.seed for trial in trials} == {5}
        assert len({trial.key(name) for trial in trials}) == len(trials) == EXPECTED[name][0]
        assert len({tuple(trial.arm.items()) for trial in trials}) == len(trials)


def test_a_study_done_is_read_and_not_done_again(tones: Path, recipe: Recipe, folder: Path) -> None:
    planned, results, _ = done("classes", tones, recipe, folder)
    lines = (folder / "classes" / "trials.jsonl").read_text().splitlines()
    again, repeated, _ = done("classes", tones, recipe, folder)
    assert not again.left
    assert again.cpu_seconds == 0
    assert (folder / "classes" / "trials.jsonl").read_text().splitlines() == lines
    assert repeated.rows == results.rows
    more = plan("classes", tones, recipe, folder / "classes", seeds=2)
    assert [trial.recipe.seed for key, trial in more.trials.items() if key in more.left] == [1] * len(planned.trials)
    with pytest.raises(UsageError, match="differs in recipe key 'epochs'"):
        plan("classes", tones, replace(recipe, epochs=2), folder / "classes")


def test_a_trial_that_diverges_is_an_outcome(tones: Path, recipe: Recipe, tmp_path: Path) -> None:
    planned = plan("classes", tones, replace(recipe, lr=(1e30,), head_lr=1e30, epochs=3), tmp_path / "out")
    results = run(planned, 1)
    trained = [trial for trial in planned.trials.values() if trial.train]
    assert len(results.diverged) == len(trained)
    assert {row.arm["objective"] for row in results.rows} == {"frozen"}
    conclusions = write_report(planned, results, "confit-edge study classes")
    assert f"Diverged and left out: {len(trained)} trials" in conclusions[0]
    assert sum("were not both measured" in line for line in conclusions) == 6
    assert not any("is above" in line or "is below" in line for line in conclusions)
    assert re.search(r"\| pairtune +\| +4 \| 0 \(1 diverged\) \|", (tmp_path / "out" / "table.md").read_text())


def test_isotropy_reads_what_was_trained_before(
    tones: Path, recipe: Recipe, folder: Path, run_path: Path, tmp_path: Path
) -> None:
    _, before, _ = done("classes", tones, recipe, folder)
    planned = prepare(
        find("isotropy"), source_of(tones, recipe), tmp_path / "out", seeds=1, earlier=[folder / "classes"]
    )
    results = run(planned, 1)
    assert len(results.outcomes) == len(before.outcomes)
    assert [row.shares for row in results.rows] == [row.shares for row in before.rows]
    assert sum(outcome.cpu_seconds for outcome in results.outcomes) < 2
    with pytest.raises(UsageError, match="--background applies to runs, and --from names only studies"):
        prepare(
            find("isotropy"),
            source_of(tones, recipe),
            tmp_path / "no",
            seeds=1,
            earlier=[folder / "classes"],
            places={"background": [str(tmp_path)]},
        )
    with pytest.raises(UsageError, match="only isotropy reads earlier runs and studies"):
        prepare(find("shots"), source_of(tones, recipe), tmp_path / "no", seeds=1, earlier=[folder / "classes"])
    assert planned.cpu_seconds < 1
    other = tmp_path / "other.csv"
    manifest = read_manifest(tones)
    write_manifest(replace(manifest, clips=manifest.clips[1:], source=other), other)
    with pytest.raises(UsageError, match="classes: its clips or their splits differ"):
        prepare(find("isotropy"), source_of(other, recipe), tmp_path / "else", seeds=1, earlier=[folder / "classes"])
    with pytest.raises(UsageError, match=f"{tones}: not the data that {run_path} was trained on"):
        prepare(find("isotropy"), source_of(tones, recipe), tmp_path / "run", seeds=1, earlier=[run_path])


def test_isotropy_refuses_a_study_that_it_can_use_nothing_of(
    tones: Path, recipe: Recipe, folder: Path, tmp_path: Path
) -> None:
    done("unseen", tones, recipe, folder)
    plan("classes", tones, recipe, tmp_path / "begun").journal.begin()
    for earlier in (folder / "unseen", tmp_path / "begun"):
        with pytest.raises(UsageError, match=f"{earlier}: no finished trial has .* studies \\(any but unseen\\)"):
            prepare(find("isotropy"), source_of(tones, recipe), tmp_path / "out", seeds=1, earlier=[earlier])


def test_isotropy_judges_a_run_whose_pre_trained_encoder_is_gone(
    tones: Path, recipe: Recipe, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(checkpoints["wav2vec2"], tmp_path / "checkpoint")
    train(tones, tmp_path / "run", replace(recipe, encoder=str(checkpoint), window=0.5, freeze="all", soup=1))
    shutil.rmtree(checkpoint)
    planned = prepare(find("isotropy"), source_of(tones, recipe), tmp_path / "out", seeds=1, earlier=[tmp_path / "run"])
    (outcome,) = run(planned, 1).outcomes
    own = {key: outcome.arm[key] for key in ("objective", "loss", "temperature")}
    assert own == {"objective": "pairtune", "loss": recipe.loss, "temperature": recipe.temperature}
    (point,) = outcome.points
    assert point.numbers["isoscore"] >= 0


def test_isotropy_judges_a_run_that_learnt_background_too(
    manifest: Path, recipe: Recipe, run_path: Path, tmp_path: Path
) -> None:
    """Background adds the class unknown to a run, and the manifest of its clips has none: they are the same clips."""
    source = source_of(manifest, recipe)
    planned = prepare(find("isotropy"), source, tmp_path / "out", seeds=1, earlier=[run_path])
    [outcome] = run(planned, 1).outcomes
    [point] = outcome.points
    assert read_run(run_path).info.unknown is not None
    assert sum(clips for _, clips in point.shares["linear"].values()) == 15
    assert sum(right for right, _ in point.shares["linear"].values()) > 7


def test_isotropy_takes_the_new_location_of_a_runs_background(
    manifest: Path, background: Path, recipe: Recipe, run_path: Path, tmp_path: Path
) -> None:
    lost, now, there = tmp_path / "lost", tmp_path / "now", tmp_path / "there"
    shutil.copytree(background, now)
    shutil.copytree(run_path, lost)
    info = json.loads((lost / "run.json").read_text())
    (lost / "run.json").write_text(json.dumps(info | {"recipe": info["recipe"] | {"background": str(there)}}))
    source, study = source_of(manifest, recipe), find("isotropy")
    with pytest.raises(UsageError, match=r"is missing; give its current path \(--background\)"):
        prepare(study, source, tmp_path / "out", seeds=1, earlier=[lost])
    moved = prepare(study, source, tmp_path / "out", seeds=1, earlier=[lost], places={"background": [str(now)]})
    shutil.copytree(background, there)
    assert list(prepare(study, source, tmp_path / "out", seeds=1, earlier=[lost]).trials) == list(moved.trials)
    with pytest.raises(UsageError, match=r"was used to train .*; leave it out"):
        prepare(study, source, tmp_path / "out", seeds=1, earlier=[lost], places={"others": [str(now)]})


def test_isotropy_judges_no_run_on_what_it_may_have_learnt(tones: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Where the manifest has no splits they are the seed's, and a run of another seed has learnt from these test clips."""
    unsplit = tmp_path / "unsplit.csv"
    manifest = read_manifest(tones)
    rows = tuple(replace(clip, split=None) for clip in manifest.clips)
    write_manifest(replace(manifest, clips=rows, source=unsplit), unsplit)
    train(unsplit, tmp_path / "other", replace(recipe, seed=2, epochs=1))
    with pytest.raises(UsageError, match=r"another split of the clips .* its seed \(2\) and others \(none\)"):
        prepare(find("isotropy"), source_of(unsplit, recipe), tmp_path / "out", seeds=1, earlier=[tmp_path / "other"])


def test_a_clip_without_a_label_is_not_counted_wrong(tones: Path, recipe: Recipe) -> None:
    """Of several labels a clip may have none: it is one that no class should come first on, as in the mAP of `train`."""
    bench = Bench(source_of(tones, recipe))
    whole, encoder = bench.corpus(), bench.encoder(recipe)

    def without_one_class(clips: Clips) -> Clips:
        return replace(clips, targets=clips.targets * (np.arange(4) != clips.labels[0]).astype(np.int8))

    corpus = replace(whole, multi_label=True, val=without_one_class(whole.val), test=without_one_class(whole.test))
    dual = dual_probe(encoder, corpus, recipe, bench.device)
    point = probed(bench, encoder, None, corpus, recipe)
    for name in ("linear", "knn"):
        right, clips = np.sum(list(point.shares[name].values()), axis=0)
        assert clips == 12  # 3 of them without a label
        assert right / clips == pytest.approx(dual.metrics[name]["test"]["map"])
        assert point.numbers[f"val_{name}"] == pytest.approx(dual.metrics[name]["val"]["map"])
    embedded = [np.eye(4, dtype=np.float32)[clips.labels] for clips in (whole.train, whole.val, whole.test)]
    perfect = dimensions.probe(*embedded, corpus)
    assert perfect.numbers["val_linear"] == 1
    shares = [pair for tally in perfect.shares.values() for pair in tally.values()]
    assert np.allclose(shares, 4)


def test_a_label_that_clips_have_or_not_is_no_constant(tones: Path, recipe: Recipe) -> None:
    """Of one label the best class is always it. A study tells its mAP, as `train` does, and the unknown class is none of it."""
    bench = Bench(source_of(tones, recipe))
    whole, encoder = bench.corpus(), bench.encoder(recipe)

    def one(clips: Clips) -> Clips:
        targets = np.zeros((len(clips), 2), np.int8)
        targets[:, 0] = clips.labels == 0
        return replace(clips, targets=targets)

    train, val, test = map(one, (whole.train, whole.val, whole.test))
    hum = [np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)]
    corpus = replace(
        whole, classes=["tone0", "unknown"], unknown="unknown", multi_label=True, train=train, val=val, test=test,
        background_train=hum, background_val=hum,
    )  # fmt: skip
    dual = dual_probe(encoder, corpus, recipe, bench.device)
    point = probed(bench, encoder, None, corpus, recipe, {"rare": ["tone0"], "none": []})
    for name in ("linear", "knn"):
        right, clips = np.sum(list(point.shares[name].values()), axis=0)
        assert right / clips == pytest.approx(dual.metrics[name]["test"]["map"])
        assert point.numbers[f"val_{name}"] == pytest.approx(dual.metrics[name]["val"]["map"])
        assert point.shares[f"{name}_rare"] == point.shares[name]
        assert point.shares[f"{name}_none"] == {}
    wrong = merit_tally(np.arange(12.0)[:, None].astype(np.float32), test.targets[:, :1], test.groups, multi_label=True)
    right, clips = np.sum(list(wrong.values()), axis=0)
    assert right / clips < 0.5


def test_a_study_of_several_labels_reports_map(tones: Path, recipe: Recipe, tmp_path: Path) -> None:
    several = tmp_path / "several.csv"
    with tones.open(newline="") as file, several.open("w", newline="") as target:
        rows = list(csv.reader(file))[1:]
        both = {"tone0": "low", "tone1": "low|even", "tone2": "", "tone3": "even"}
        table = [[tones.parent / path, both[label], group, split] for path, label, group, split in rows]
        csv.writer(target).writerows([["path", "labels", "group", "split"], *table])
    planned, results, conclusions = done("convergence", several, recipe, tmp_path)
    assert results.figure == "mAP"
    assert "linear, knn and head are mAP" in conclusions[0]
    assert json.loads((tmp_path / "convergence" / "results.json").read_text())["figure"] == "mAP"
    bench, frozen = Bench(planned.source), next(trial for trial in planned.trials.values() if not trial.train)
    probes = dual_probe(bench.encoder(frozen.recipe), bench.data(frozen), frozen.recipe, bench.device)
    for name in ("linear", "knn"):
        assert results.share(name, objective="frozen").value == pytest.approx(probes.metrics[name]["test"]["map"])
    header = tmp_path / "convergence" / "study.json"
    plain = {key: value for key, value in json.loads(header.read_text()).items() if key != "figure"}
    header.write_text(json.dumps(plain))
    with pytest.raises(UsageError, match="differs in figure"):
        plan("convergence", several, recipe, tmp_path / "convergence")


def test_unseen_needs_classes_to_hold_back(tones: Path, recipe: Recipe, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    with tones.open(newline="") as file, few.open("w", newline="") as target:
        rows = [row for row in csv.reader(file) if row[1] != "tone3"]
        csv.writer(target).writerows(
            [[str(tones.parent / row[0]), *row[1:]] if row[0] != "path" else row for row in rows]
        )
    with pytest.raises(UsageError, match="at least 4 classes"):
        plan("unseen", few, recipe, tmp_path / "out")


@pytest.mark.parametrize("name", ["classes", "unseen"])
def test_studies_that_draw_classes_want_each_in_test(name: str, tones: Path, recipe: Recipe, tmp_path: Path) -> None:
    subset, manifest = tmp_path / "some.csv", read_manifest(tones)
    clips = tuple(clip for clip in manifest.clips if clip.split != "test" or clip.labels != ("tone2",))
    write_manifest(replace(manifest, clips=clips, source=subset), subset)
    with pytest.raises(UsageError, match="class 'tone2' has no test clip"):
        plan(name, subset, recipe, tmp_path / "out")


def test_unseen_has_prints_of_the_groups_that_it_trained_on(
    tones: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan("unseen", tones, recipe, tmp_path / "out")
    labels_seen: list[set[str]] = []
    drawn = unseen.episodes

    def watched(prints: Any, clips: Clips, *rest: Any) -> Any:
        labels_seen.append(set(clips.groups))
        return drawn(prints, clips, *rest)

    monkeypatch.setattr(unseen, "episodes", watched)
    frozen = next(trial for trial in planned.trials.values() if not trial.train)
    bench = Bench(planned.source)
    find("unseen").measure(bench, frozen)
    assert labels_seen
    assert all(groups == set(cut(bench.corpus(), Subset(groups=3), 0).train.groups) for groups in labels_seen)


def test_the_cost_of_a_trial_counts_every_clip_that_is_embedded(
    tones: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes a second on for each clip: `unseen` embeds far more than the probes do."""
    seconds = 0

    def counted(encoder: Encoder, pcm: list[Any], device: torch.device, **settings: Any) -> Any:
        nonlocal seconds
        seconds += len(pcm)
        return embed_clips(encoder, pcm, device, **settings)

    for module in (dual, views, unseen):
        monkeypatch.setattr(module, "embed_clips", counted)
    monkeypatch.setattr(cost, "fit", lambda *args, **options: None)
    monkeypatch.setattr(cost.time, "process_time", lambda: seconds)
    study = find("unseen")
    planned = plan("unseen", tones, recipe, tmp_path / "out")
    bench, frozen = Bench(planned.source), next(trial for trial in planned.trials.values() if not trial.train)
    pace = cost.measure_pace(bench, recipe, bench.encoder(recipe))
    assert (pace.train, pace.probe, pace.background) == (0, 1, 0)
    seconds = 0
    study.measure(bench, frozen)
    assert cost.expected(study, frozen, bench, pace) == seconds
    assert cost.expected(study, replace(frozen, recipe=replace(recipe, probe_views=3)), bench, pace) > seconds


def test_the_cost_of_hearing_the_background_is_once_a_trial_and_of_no_clip(
    tones: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on only while the background is heard."""
    sound = np.random.default_rng(0).normal(0, 0.1, 20 * 16_000)
    soundfile.write(tmp_path / "noise.wav", sound, 16_000)
    seconds = 0

    def counted(*args: Any, **settings: Any) -> Any:
        nonlocal seconds
        seconds += 100
        return embed_background(*args, **settings)

    for module in (dual, cost):
        monkeypatch.setattr(module, "embed_background", counted)
    monkeypatch.setattr(cost, "fit", lambda *args, **options: None)
    monkeypatch.setattr(cost.time, "process_time", lambda: seconds)
    planned = plan("temperature", tones, replace(recipe, background=(str(tmp_path / "noise.wav"),)), tmp_path / "out")
    assert set(planned.cost.values()) == {100}
    planned = plan("dimensions", tones, planned.source.recipe, tmp_path / "deaf")
    assert set(planned.cost.values()) == {0}


def test_shots_trains_as_long_for_every_seed(tones: Path, recipe: Recipe) -> None:
    corpus = read_corpus(tones, rate=16_000, seed=0)
    few, many = (cut(corpus, Subset(shots=shots), 0) for shots in (2, 6))

    def epochs(part: Corpus) -> dict[tuple[object, ...], int]:
        trials = find("shots").plan(part, recipe)
        return {tuple(trial.arm.values()): trial.recipe.epochs for trial in trials if trial.arm["clips"] == "even"}

    assert epochs(few).items() < epochs(many).items()


def test_temperature_is_asked_of_losses_that_have_one(tones: Path, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no effect with loss triplet"):
        plan("temperature", tones, replace(recipe, loss="triplet", mining="semi-hard"), tmp_path / "out")


def test_batch_varies_only_windows_that_the_encoder_has(tones: Path) -> None:
    corpus = read_corpus(tones, rate=16_000, seed=0)
    for encoder, windows in (("ge2e", {1.6}), ("speech-embedding", {1.2, 1.6})):
        trials = find("batch").plan(corpus, Recipe(encoder=encoder, window=1.6))
        assert {trial.arm["window"] for trial in trials} == windows


def test_batch_counts_the_clips_of_the_unknown_class(tones: Path) -> None:
    """Of four words and the unknown, four or five classes a batch are the same; and of one word and the unknown."""
    corpus = read_corpus(tones, rate=16_000, seed=0)
    background = [np.zeros(16_000, np.float32)]

    def named(known: Corpus) -> set[object]:
        columns = ((0, 0), (0, 1))
        train, val = (replace(clips, targets=np.pad(clips.targets, columns)) for clips in (known.train, known.val))
        corpus_with_background = replace(
            known, train=train, val=val, classes=[*known.classes, UNKNOWN], unknown=UNKNOWN, background_train=background
        )
        trials = find("batch").plan(corpus_with_background, Recipe())
        assert len({json.dumps(dict(trial.arm)) for trial in trials}) == len(trials)
        for trial in trials:
            batches = epoch_batches(corpus_with_background.training_clips(), corpus_with_background, trial.recipe, 0)
            assert {len(batch) for batch in batches} == {trial.arm["batch"]}
        return {trial.arm["batch"] for trial in trials}

    assert named(corpus) == {4 * 4 + 8}
    assert named(with_classes(corpus, corpus.classes[:1])) == {8}
    assert {trial.arm["batch"] for trial in find("batch").plan(corpus, Recipe())} == {16}


def test_a_recipe_for_vanilla_alone_does_not_stop_a_study(tones: Path, recipe: Recipe, tmp_path: Path) -> None:
    planned = plan("classes", tones, replace(recipe, objective="finetune", head_init="probe"), tmp_path / "out")
    begins = {trial.arm["objective"]: trial.recipe.head_init for trial in planned.trials.values()}
    assert begins == {"frozen": "random", "finetune": "probe", "pairtune": "random"}


def test_a_study_is_of_the_weights_it_began_with(tones: Path, recipe: Recipe, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(recipe.encoder, checkpoint)
    planned = plan("classes", tones, replace(recipe, encoder=str(checkpoint)), tmp_path / "out")
    planned.journal.begin()
    plan("classes", tones, replace(recipe, encoder=str(checkpoint)), tmp_path / "out")
    checkpoint = checkpoint.rename(tmp_path / "moved")  # with its weights, it is the same wherever it lies
    moved = plan("classes", tones, replace(recipe, encoder=str(checkpoint)), tmp_path / "out")
    assert list(moved.trials) == list(planned.trials)
    assert {trial.recipe.encoder for trial in moved.trials.values()} == {str(checkpoint)}
    message = rf"encoder {planned.source.recipe.encoder}: no such folder; .*study: key 'encoder' of --recipe"
    with pytest.raises(UsageError, match=message):
        plan("classes", tones, planned.source.recipe, tmp_path / "out")
    weights = load_file(checkpoint / "model.safetensors")
    first = sorted(weights)[0]
    save_file({**weights, first: weights[first] + 1e-3}, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="differs in encoder_sha256"):
        plan("classes", tones, replace(recipe, encoder=str(checkpoint)), tmp_path / "out")


def test_a_study_means_the_same_from_another_folder(
    recipe: Recipe, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Path(recipe.encoder)
    monkeypatch.chdir(checkpoint.parent)
    source = source_of(tones, replace(recipe, encoder=checkpoint.name))
    assert source == source_of(tones, recipe)
