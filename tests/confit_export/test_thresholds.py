"""Thresholds are chosen by what the device itself would have heard."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from confit_edge import runs
from confit_edge.data.corpus import Corpus
from confit_edge.demo import DATA
from confit_edge.encoders import pretrained
from confit_edge.pairtune.session import train
from confit_edge.recipe import Recipe
from confit_edge.runs import Run
from confit_export import finish, thresholds
from confit_export.enrollment import (
    ALTERATIONS,
    altered,
    cohort_rows,
    enrollment_prior,
    gallery_cohort,
    kind_of_run,
    stream_threshold,
)
from confit_export.export import Exported, export_run
from confit_export.thresholds import Setting, choose, strictest, validation_stream
from confit_runtime import load
from confit_runtime.audio import load_clip
from confit_runtime.detect import Detector, Hit
from confit_runtime.enrollment import Kind
from confit_runtime.matcher import Levels, Matcher, mutual_similarity, refuses_own_sounds
from confit_runtime.scoring import Score, SoundEvent, score_detections
from tests import tiny_model

Floats = npt.NDArray[np.float32]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_stream_on_the_device_hears_what_export_reported(
    exports: dict[str, Exported], run_corpus: Corpus, precision: str
) -> None:
    model = load(exports[precision].path)
    pcm, truth = validation_stream(model, run_corpus, seed=0, repeats=2)
    device, rng, at = model.stream(), np.random.default_rng(0), 0
    detections = []
    while at < len(pcm):
        step = int(rng.integers(1, 30_000))
        detections += device.accept(pcm[at : at + step], 16_000)
        at += step
    detections += device.finish()
    assert {detections.label for detections in truth} == set(run_corpus.classes) - {"unknown"}
    score = score_detections(truth, [SoundEvent(event.label, event.start_s, event.end_s) for event in detections])
    report = exports[precision].contract.calibration["detection"]
    assert (report["words"], report["seconds"]) == (len(truth), round(len(pcm) / 16_000, 1))
    # the stream's last word may still be on its way when its audio ends
    assert abs(sum(score.found) - report["found"]) <= 1
    assert len(score.false_accepts) == report["false_accepts"]


def test_the_background_is_heard_by_itself_after_the_clips(
    exports: dict[str, Exported], run_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, alone = load(exports["fp32"].path), np.concatenate(run_corpus.background_val)
    pcm, truth = validation_stream(model, run_corpus, seed=0, repeats=1)
    np.testing.assert_array_equal(pcm[-len(alone) :], alone)
    assert max(sound.end_s for sound in truth) * 16_000 < len(pcm) - len(alone)
    for most in (1, 3):  # within the first recording, and across two
        monkeypatch.setattr(thresholds, "BACKGROUND_ONLY_S", most)
        shorter, same = validation_stream(model, run_corpus, seed=0, repeats=1)
        assert same == truth
        np.testing.assert_array_equal(shorter, pcm[: len(pcm) - len(alone) + most * 16_000])
        assert shorter.base is None  # a view of all the hours would hold them in memory


def test_a_label_that_fires_in_long_background_is_raised(exports: dict[str, Exported], run_corpus: Corpus) -> None:
    """Of a radio that says one of the words now and then, which the clips of a dozen seconds would never meet."""
    model, rng = load(exports["fp32"].path), np.random.default_rng(0)
    word = run_corpus.classes[0]
    spoken = [pcm for pcm, target in zip(run_corpus.train.pcm, run_corpus.train.targets, strict=True) if target[0]]
    quiet = 0.001 * rng.standard_normal(5 * 16_000).astype(np.float32)
    radio = np.concatenate([part for pcm in spoken for part in (quiet, pcm)])
    before, after = (
        choose(model, replace(run_corpus, background_val=recordings), seed=0)
        for recordings in (run_corpus.background_val, [*run_corpus.background_val, radio])
    )
    assert after.thresholds[word]["on"] > before.thresholds[word]["on"]
    assert after.report["seconds"] > before.report["seconds"]


def test_thresholds_are_the_same_again_and_depend_on_what_is_heard(
    exports: dict[str, Exported], run_corpus: Corpus
) -> None:
    exported = exports["fp32"]
    setting = choose(load(exported.path), run_corpus, seed=0)
    assert setting.thresholds == exported.contract.thresholds
    assert (setting.smoothing_hops, setting.min_hops) == (exported.contract.smoothing_hops, exported.contract.min_hops)
    for levels in setting.thresholds.values():
        assert 0 < levels["off"] < levels["on"] <= 1
        assert levels["off"] == pytest.approx(0.6 * levels["on"], abs=1e-4)


def test_a_bar_in_the_name_of_a_class_is_part_of_it(exports: dict[str, Exported], run_corpus: Corpus) -> None:
    named = replace(run_corpus, classes=[f"{name}|sung" if name != "unknown" else name for name in run_corpus.classes])
    model = load(exports["fp32"].path)
    plain, barred = (validation_stream(model, corpus, seed=0, repeats=1)[1] for corpus in (run_corpus, named))
    assert [sound.label for sound in barred] == [f"{sound.label}|sung" for sound in plain]


def test_what_is_unknown_is_no_word_to_be_found(exports: dict[str, Exported], run_corpus: Corpus) -> None:
    corpus = replace(run_corpus, unknown="yes")
    truth = validation_stream(load(exports["fp32"].path), corpus, seed=0, repeats=1)[1]
    assert {sound.label for sound in truth} == set(corpus.classes) - {"yes", "unknown"}


def chosen_of(monkeypatch: pytest.MonkeyPatch, sounds: list[tuple[float, int]]) -> Setting:
    """What is chosen on a stream of sounds, each of a score and a label: those of label 0 are said, the others fire falsely."""
    contract, rows, truth = tiny_model.contract(), np.zeros((0, 4), np.float32), []
    for score, label in sounds:
        sound = np.zeros((60, 4), np.float32)
        sound[20:40, label] = score
        if label == 0:
            start, end = ((len(rows) + at) * contract.hop / contract.sample_rate for at in (20, 40))
            truth.append(SoundEvent("low", start, end))
        rows = np.concatenate([rows, sound])
    monkeypatch.setattr(thresholds, "MIN_SOUNDS", 0)
    monkeypatch.setattr(thresholds, "validation_stream", lambda *of, **how: (np.zeros(16_000, np.float32), truth))
    model: Any = SimpleNamespace(contract=contract, rows=lambda *of: (rows, None))
    corpus: Any = SimpleNamespace(background_val=[])
    return choose(model, corpus, seed=0)


@pytest.mark.parametrize(("quiet", "level", "raised"), [(3, 0.95, 0.95), (4, 0.6, 0.74)])
def test_a_false_accept_costs_three_words_and_raising_its_label_cures_three_quarters(
    monkeypatch: pytest.MonkeyPatch, quiet: int, level: float, raised: float
) -> None:
    """4 false accepts that raising cures cost 3 * (4 / 4) = 3: as much as 3 missed words, and less than 4."""
    chosen = chosen_of(monkeypatch, [(0.99, 0)] * 5 + [(0.62, 0)] * quiet + [(0.72, 1)] * 4)
    assert chosen.thresholds["low"]["on"] == pytest.approx(level, abs=1e-3)
    assert chosen.thresholds["mid"]["on"] == pytest.approx(raised, abs=1e-3)
    assert chosen.report["found"] == (5 if level > 0.62 else 5 + quiet)


@pytest.mark.parametrize(("loud", "level"), [(4, 0.9), (2, 0.3)])
def test_where_less_than_half_is_found_lower_thresholds_are_tried(
    monkeypatch: pytest.MonkeyPatch, loud: int, level: float
) -> None:
    """Of eight sounds, some reach 0.92 and the others 0.34; nothing fires falsely."""
    chosen = chosen_of(monkeypatch, [(0.92, 0)] * loud + [(0.34, 0)] * (8 - loud))
    assert chosen.thresholds["low"]["on"] == pytest.approx(level, abs=1e-3)
    assert chosen.report["found"] == (loud if level > 0.34 else 8)


def test_the_reason_for_low_recall_is_reported(
    monkeypatch: pytest.MonkeyPatch, run: Run, run_corpus: Corpus, tmp_path: Path
) -> None:
    """Where lower thresholds would find more, at what cost; where none would, not that anything else fires."""
    loud = chosen_of(monkeypatch, [(0.34, 0)] * 12 + [(0.36, 1)] * 20)
    assert loud.report["found"] == 0
    explanation = finish._explain_low_recall(loud, load(tiny_model.build(tmp_path / "tiny.onnx")), run_corpus)
    assert explanation.endswith(
        "Lower thresholds let too much else through: at 0.2 it would hear 12, with 20 false accepts"
    )
    monkeypatch.undo()
    messages, hum = list[str](), 0.01 * np.sin(np.arange(16_000) / 50).astype(np.float32)
    val = replace(run_corpus.val, pcm=[hum] * len(run_corpus.val), uncut=None)
    export_run(run, replace(run_corpus, val=val), tmp_path / "hums.onnx", quantize=False, say=messages.append)
    (warning,) = [line for line in messages if line.startswith("warning: a device would hear 0 of ")]
    assert "and no more with lower thresholds: over the validation part of the background, 10 dB softer" in warning
    assert f"Heard alone, 0 of {len(val)} validation clips would. Train with more clips" in warning


def test_a_label_is_raised_above_the_loudest_of_what_it_fired_falsely_on() -> None:
    contract = tiny_model.contract()
    fired = [(0, 0.8), (0, 0.7), (1, 0.96), (2, 0.9)]
    hits = [Hit(label, score, 100 * at, 100 * at) for at, (label, score) in enumerate(fired)]
    accepts = [SoundEvent(contract.labels[hit.label], 0.0, thresholds._end_s(hit, contract)) for hit in hits[:3]]
    on = np.full(4, 0.5, np.float32)
    raised = thresholds._raise_above_false_accepts(on, Score([], accepts), hits, contract)
    np.testing.assert_allclose(raised, [0.82, 0.97, 0.5, 0.5], atol=1e-6)
    assert (on == 0.5).all()


@pytest.mark.parametrize("multi_label", [False, True])
def test_thresholds_are_tried_with_the_detector_of_the_device(multi_label: bool) -> None:
    on = np.array([0.5, 0.6, 0.7, 0.5], np.float32)
    contract = tiny_model.contract(
        multi_label=multi_label,
        thresholds={name: {"on": x, "off": x * 0.6} for name, x in zip(tiny_model.LABELS, on.tolist(), strict=True)},
        smoothing_hops=thresholds.SMOOTHING,
        refractory_s=0.21,
    )
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.uniform(0, 1, (400, 4)), rng.integers(1, 12, 400), axis=0).astype(np.float32)
    _, hits = thresholds._detect(rows, contract.min_hops, [contract.labels.index("other")], contract, [], on)
    assert len(hits) > 20
    assert hits == Detector.from_contract(contract).push(rows)


def test_of_settings_that_do_equally_well_the_strictest_is_taken() -> None:
    """Within half the standard error of a count: 9 + 1.5, not 11."""
    on = np.zeros(1, np.float32)
    tried = [(9.0, 0.5, on, 2, 90), (10.4, 0.8, on, 3, 89), (10.0, 0.8, on + 1, 4, 89), (11.0, 0.9, on, 5, 88)]
    chosen, min_hops = strictest(tried, 99)
    assert (float(chosen[0]), min_hops) == (1.0, 4)
    assert strictest([(0.0, 0.5, on, 2, 9), (1.0, 0.9, on, 3, 8)], 99)[1] == 2
    # of a poor model: 6.7 is half the standard error, and finding nothing is no setting
    poor = [(172.0, 0.4, on, 2, 6), (173.0, 0.5, on, 3, 5), (178.0, 0.95, on, 4, 0)]
    assert strictest(poor, 99)[1] == 3
    assert strictest([(104.0, 0.45, on, 2, 11), (107.5, 0.5, on, 3, 6)], 99)[1] == 2
    # of four sounds all levels up to 0.65 find all
    few = [(0.0, level, on, hops, 4) for hops, level in enumerate((0.4, 0.45, 0.5, 0.6, 0.65))]
    assert (strictest(few, 4)[1], strictest(few, 99)[1]) == (2, 4)


def test_several_labels_are_all_true_of_their_clip(corpus: Corpus, background: Path, tmp_path: Path) -> None:
    labels = {"yes": "yes|short", "stop": "stop|short", "happy": "happy", "marvin": "marvin", "seven": ""}
    rows = ["path,labels,group,split"]
    for split, clips in (("train", corpus.train), ("val", corpus.val)):
        for path, label, group in zip(clips.paths, clips.labels, clips.groups, strict=True):
            rows.append(f"{path},{labels[corpus.classes[label]]},{group},{split}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    recipe = Recipe(epochs=1, soup=1, probe_views=1, frozen_baseline=False, background=(str(background),))
    train(tmp_path / "m.csv", tmp_path / "run", recipe)
    run = runs.read_run(tmp_path / "run")
    exported = export_run(run, runs.run_corpus(run), tmp_path / "several.onnx", quantize=False, say=lambda line: None)
    assert exported.contract.multi_label
    assert "test" not in exported.contract.metrics
    report = exported.contract.calibration["detection"]
    assert report["words"] == 2 * 3 * (2 + 2 + 1 + 1)  # twice, three voices, a label at a time; `seven` has none
    assert report["found"] > 0.4 * report["words"]
    model = load(exported.path)
    scores = np.stack([model.rows(pcm, 16_000)[0].mean(axis=0) for pcm in corpus.train.pcm])
    short = scores[:, model.labels.index("short")]
    own = np.isin(corpus.train.labels, [corpus.classes.index(word) for word in ("yes", "stop")])
    assert short[own].mean() > short[~own].mean() + 0.3
    probabilities = run.linear.scores(run.knn.prints)
    assert (probabilities.sum(axis=1) > 1.2).any()  # sigmoids, not a softmax
    np.testing.assert_allclose(scores, probabilities * run.typicality.factors(run.knn.prints), atol=1e-3)


# enrollment


def unit(rows: npt.NDArray[np.float64]) -> Floats:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clouds(spread: float, seed: int, clips: int = 3, classes: int = 5) -> tuple[Floats, npt.NDArray[np.int64]]:
    labels = np.repeat(np.arange(classes), clips)
    middles = np.random.default_rng(7).standard_normal((classes, 16)) + 0.8
    return unit(middles[labels] + spread * np.random.default_rng(seed).standard_normal((len(labels), 16))), labels


def one_hot(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """Targets `[clips, classes]` of clips with one label each."""
    return np.eye(labels.max() + 1, dtype=np.int8)[labels]


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_the_prior_is_what_one_stranger_in_a_hundred_reaches(spread: float) -> None:
    (val, val_labels), (cohort, cohort_labels) = clouds(spread, 0, classes=12), clouds(spread, 1, clips=4, classes=12)
    reached = []
    for name in range(12):
        prints = val[val_labels == name]  # three, so all of them are enrolled
        for clip, label in zip(val, val_labels, strict=True):
            if label == name:
                continue
            near = [max(float(clip @ row), 0.0) for row in prints]
            centroid = sum(weight * row for weight, row in zip(near if sum(near) else [1, 1, 1], prints, strict=True))
            score = float(centroid @ clip / np.linalg.norm(centroid))
            rest = [row for row, of in zip(cohort, cohort_labels, strict=True) if of not in (name, label)]
            cohort_score = np.mean(sorted(float(clip @ row) for row in rest)[-3:])
            reached.append(score if score > cohort_score else 0.0)
    found = enrollment_prior(val, one_hot(val_labels), cohort, one_hot(cohort_labels), seed=0)
    assert found["trials"] == len(reached) == 12 * 33
    assert (found["classes"], found["false_accept_rate"]) == (12, 0.01)
    assert found["threshold"] == pytest.approx(max(0.2, np.quantile(reached, 0.99)), abs=1e-3)
    assert sum(score > found["threshold"] + 1e-3 for score in reached) <= math.ceil(0.01 * len(reached))


def test_single_clips_of_classes_do_not_show_how_alike_those_of_a_name_are() -> None:
    labels = np.eye(20, dtype=np.int64)
    prior = enrollment_prior(np.eye(20, dtype=np.float32), labels, np.eye(20, dtype=np.float32), labels, seed=0)
    assert "false_accept_rate" in prior
    assert "genuine" not in prior
    assert not refuses_own_sounds(prior)
    assert not refuses_own_sounds({**prior, "genuine": 0.9})
    assert refuses_own_sounds({**prior, "genuine": 0.9, "threshold": 0.99})


def test_the_prior_of_classes_far_apart_is_low_and_needs_no_stranger() -> None:
    far = unit(np.repeat(np.eye(12), 3, axis=0))
    labels = one_hot(np.repeat(np.arange(12), 3))
    assert enrollment_prior(far, labels, far, labels, seed=0)["threshold"] == pytest.approx(0.2)
    alone = enrollment_prior(far[:3], labels[:3], far, labels, seed=0)
    assert alone["trials"] == 0
    assert alone["threshold"] == pytest.approx((0.6 + 1) / 2)  # all that is known is that its prints are equal
    assert "false_accept_rate" not in alone


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes_let_few_strangers_pass_and_no_owner_fail(classes: int) -> None:
    """Of 2, 3 and 5 classes, the plain quantile let 16, 6 and 3 % of strangers pass, and says nothing of a rate."""
    rng, names = np.random.default_rng(classes), 12

    def takes(middles: npt.NDArray[np.float64], clips: int) -> Floats:
        middles = np.repeat(middles, clips, axis=0)
        return unit(middles + 0.9 / 8 * rng.standard_normal(middles.shape))

    accepted, owners = [], []
    for seed in range(12):
        shared = rng.standard_normal(64)
        middles = 0.8 * shared / np.linalg.norm(shared) + unit(rng.standard_normal((classes + 40, 64)))
        known, strange = middles[:classes], middles[classes + names :]
        labels = one_hot(np.repeat(np.arange(classes), 4))
        cohort = takes(known, 4)
        prior = enrollment_prior(takes(known, 4), labels, cohort, labels, seed)
        assert "false_accept_rate" not in prior
        for name in range(classes, classes + names):
            levels = Levels(prior["threshold"], prior["margin"], prior["genuine"])
            matcher = Matcher(["a"], [0] * 3, takes(middles[name : name + 1], 3), cohort, levels=levels)
            accepted += [matcher.match(clip).name == "a" for clip in takes(strange, 1)]
            owners += [matcher.match(clip).name == "a" for clip in takes(middles[name : name + 1], 4)]
    assert np.mean(accepted) < 0.015
    assert np.mean(owners) > 0.98


def test_a_clip_is_altered_by_its_speed_its_direction_and_both() -> None:
    clip = np.concatenate([tiny_model.tone(400.0, 0.3), np.zeros(4800, np.float32)])
    slow, backwards, both = altered(clip)
    np.testing.assert_array_equal(backwards, clip[::-1])
    np.testing.assert_array_equal(both, slow[::-1])
    assert len(slow) == pytest.approx(len(clip) / 0.6, abs=1)
    assert np.abs(np.fft.rfft(slow)).argmax() * 16_000 / len(slow) == pytest.approx(240, abs=2)  # lowered as well


def test_with_few_classes_the_level_is_what_one_altered_stranger_in_a_hundred_reaches() -> None:
    (val, val_labels), (cohort, cohort_labels) = clouds(0.3, 0, classes=2), clouds(0.3, 1, classes=2)
    targets = np.pad(one_hot(val_labels), ((0, 2), (0, 1)))
    targets[-2:, 2] = 1  # the unknown class, which is not altered
    val, cohort_targets = np.concatenate([val, -val[:2]]), np.pad(one_hot(cohort_labels), ((0, 0), (0, 1)))
    rng = np.random.default_rng(3)
    of_row = unit(rng.standard_normal((3, 16)) + 0.6 * rng.standard_normal((6, 3, 16)))
    asked: list[int] = []

    def embed_altered(row: int) -> Floats:
        asked.append(row)
        return of_row[row]

    found = enrollment_prior(val, targets, cohort, cohort_targets, 0, unknown_column=2, embed_altered=embed_altered)
    assert asked == list(range(6))
    reached, alike = [], []
    for label in (0, 1):
        for way, (speed, _) in enumerate(ALTERATIONS):
            prints = of_row[val_labels == label, way]
            alike.append(mutual_similarity(prints))
            matcher = Matcher(["a"], [0] * 3, prints, cohort, levels=Levels(-1.0, 0.0))
            for row in range(6):
                for other, (other_speed, _) in enumerate(ALTERATIONS):
                    if val_labels[row] != label or other_speed != speed:
                        match = matcher.match(of_row[row, other])
                        reached.append(match.score if match.name else 0.0)
    assert found["threshold"] == pytest.approx(np.quantile(reached, 0.99), abs=1e-4)
    assert found["genuine"] == pytest.approx(max(found["threshold"], np.mean(alike)), abs=1e-4)
    assert "false_accept_rate" not in found
    plain = enrollment_prior(val, targets, cohort, cohort_targets, 0, unknown_column=2)
    assert found["threshold"] > plain["threshold"] + 0.05
    asked.clear()
    one_class = targets * np.array([1, 0, 0], np.int8)
    alone = enrollment_prior(val, one_class, cohort, cohort_targets, 0, unknown_column=2, embed_altered=embed_altered)
    assert asked == [0, 1, 2]
    assert alone["genuine"] == pytest.approx(max(alone["threshold"], np.mean(alike[:3])), abs=1e-4)


def test_no_altered_clip_is_asked_for_where_classes_and_trials_are_enough() -> None:
    (val, labels), (cohort, cohort_labels) = clouds(0.5, 0, classes=12), clouds(0.5, 1, clips=4, classes=12)
    enrollment_prior(
        val, one_hot(labels), cohort, one_hot(cohort_labels), 0, embed_altered=lambda row: pytest.fail("asked")
    )


def test_an_exported_model_of_few_words_refuses_most_words_it_never_heard(exports: dict[str, Exported]) -> None:
    model = load(exports["fp32"].path)
    words = [word for word in ("marvin", "sheila", "bird", "wow", "house", "happy") if word not in model.labels]
    voices = ("am_santa", "bm_george", "zf_xiaoyi", "af_heart", "bf_emma", "am_michael")
    heard = {
        word: np.stack(
            [model.embed(load_clip(DATA / "words" / word / f"{voice}.ogg", 16_000), 16_000) for voice in voices]
        )
        for word in words
    }
    levels = Levels.of(model.contract, None, None)
    named, own = [], []
    for word, rows in heard.items():
        matcher = Matcher([word], [0] * 3, rows[:3], model.cohort, levels=levels)
        own += [matcher.match(row).name is not None for row in rows[3:]]
        named += [matcher.match(row).name is not None for other in words if other != word for row in heard[other]]
    assert np.mean(named) < 0.05
    assert np.mean(own) > 0.3


def test_who_shares_a_label_is_no_stranger_and_a_clip_without_one_is_never_enrolled() -> None:
    """Sounds 0 and 1 are heard alone and together, and twice as much is neither."""
    clips = unit(np.random.default_rng(0).standard_normal((9, 16)))
    targets = np.array([[1, 0]] * 2 + [[0, 1]] * 2 + [[1, 1]] * 2 + [[0, 0]] * 3, np.int8)
    found = enrollment_prior(clips, targets, clips, targets, seed=0)
    assert found["trials"] == 2 * 5  # of each sound: two clips of the other alone, and three of neither


@pytest.mark.parametrize("kind", ["sound", "speaker"])
def test_who_is_nearer_to_a_quiet_room_passes_for_no_sound(kind: Kind) -> None:
    """All sounds lie nearer to the rooms than to one another, and far from what was trained on."""
    middle, others = np.eye(16)[0], np.eye(16)[1:7]
    clips, quiet, far = unit(middle + others), unit(np.tile(middle, (3, 1))), unit(-np.tile(middle, (2, 1)))
    targets = one_hot(np.repeat(np.arange(2), 3))
    against = gallery_cohort(kind, far, one_hot(np.arange(2)), quiet)
    found = enrollment_prior(clips, targets, *against, seed=0)
    refused = found["threshold"] == pytest.approx(found["genuine"] / 2, abs=1e-4)  # halfway from 0: of few trials
    assert refused == (kind == "sound")


def test_the_unknown_class_is_not_enrolled_but_is_a_stranger() -> None:
    clips = unit(np.random.default_rng(0).standard_normal((9, 16)))
    targets = one_hot(np.repeat(np.arange(3), 3))
    found = enrollment_prior(clips, targets, clips, targets, seed=0, unknown_column=2)
    assert found["trials"] == 2 * 6
    alike = [mutual_similarity(clips[first : first + 3]) for first in (0, 3)]
    assert found["genuine"] == pytest.approx(np.mean(alike), abs=1e-4)


def test_the_level_of_streams_is_what_background_reaches_five_times_an_hour(tmp_path: Path) -> None:
    model, rng = load(tiny_model.build(tmp_path / "tiny.onnx", min_hops=3)), np.random.default_rng(0)
    pitches = rng.choice(tiny_model.BANDS, 240)
    background = np.concatenate([tiny_model.tone(pitch, 0.3, level=rng.uniform(0.05, 0.5)) for pitch in pitches])
    background += (1e-3 * rng.standard_normal(len(background))).astype(np.float32)
    prints = unit(model.rows(background, 16_000)[1][::45][:80] + 0.1 * rng.standard_normal((80, 8)))
    level = stream_threshold(model, prints, [background[: len(background) // 2], background[len(background) // 2 :]])
    assert level is not None
    peaks = []
    for recording in (background[: len(background) // 2], background[len(background) // 2 :]):
        rows = model.rows(recording, 16_000)[1]
        for print_ in prints:
            scores = [float(row @ print_ / np.linalg.norm(row)) for row in rows]
            held = [min(scores[at - 2 : at + 1]) if at >= 2 else -1.0 for at in range(len(scores))]
            peaks += [max(held[at : at + 10]) for at in range(0, len(held) - 9, 10)]  # the refractory time is 0.2 s
    allowed = round(5 * len(peaks) * 0.2 / 3600)
    assert sorted(peaks)[-allowed - 1] - 1e-4 < level < sorted(peaks)[-allowed + 1] + 1e-4
    assert stream_threshold(model, prints[:2], [background]) is None  # too little to tell
    assert stream_threshold(model, prints, [background[:500]]) is None


@pytest.mark.parametrize(
    ("column", "encoder", "kind"),
    [
        ("label", "speech-embedding", "sound"),
        ("speaker", "speech-embedding", "speaker"),
        ("group", "speech-embedding", "speaker"),
        ("label", "ge2e", "speaker"),
    ],
)
def test_a_run_labelled_by_speakers_makes_a_model_for_voices(run: Run, column: str, encoder: str, kind: str) -> None:
    settings = replace(run.recipe, label_column=column)
    assert kind_of_run(replace(run, recipe=settings, encoder=pretrained(encoder, 1.28))) == kind


def test_an_exported_prior_lets_the_enrolled_in(exports: dict[str, Exported], run_corpus: Corpus) -> None:
    for exported in exports.values():
        prior = exported.contract.calibration["enroll"]
        assert prior["kind"] == "sound"
        assert 0.2 <= prior["threshold"] < 1
        assert prior["trials"] == 60
        model = load(exported.path)
        val = np.stack([model.embed(pcm, 16_000) for pcm in run_corpus.val.pcm])
        same = val @ val.T
        own = run_corpus.val.labels[:, None] == run_corpus.val.labels[None]
        assert np.median(same[own & ~np.eye(len(val), dtype=bool)]) > np.median(same[~own])


def test_a_cohort_has_a_few_clips_of_each_class(run_corpus: Corpus) -> None:
    rows = cohort_rows(run_corpus, seed=0)
    labels = run_corpus.training_clips().labels[rows]
    assert len(set(rows)) == len(rows)
    assert np.bincount(labels).tolist() == [4, 4, 4, 4, 4, min(4, len(run_corpus.background_train))]
    assert rows == cohort_rows(run_corpus, seed=0)
    assert rows != cohort_rows(run_corpus, seed=1)
