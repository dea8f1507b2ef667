"""Distillation: its losses against naive loops, what a batch holds, and a student that comes nearer to its teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional

from confit_edge.data.augment import Augmenter
from confit_edge.data.clips import ClipStore
from confit_edge.data.corpus import Corpus, read_corpus
from confit_edge.encoders import Encoder, pretrained
from confit_edge.encoders.base import centred
from confit_edge.encoders.embedding import embed_clips
from confit_edge.encoders.transformers import TransformersEncoder
from confit_edge.pairtune.distill import Lesson, Teaching, TeachingRun, embedding_loss, similarity_loss
from confit_edge.pairtune.losses import jaccard, supervised_contrastive
from confit_edge.pairtune.lr_search import choose_lr
from confit_edge.pairtune.student import INHERITED, student_recipe
from confit_edge.pairtune.trainer import Fitted, fit
from confit_edge.recipe import Recipe
from confit_runtime.errors import UsageError

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=3, clips_per_class=2, mining="none", device="cpu")  # ten clips a batch, two batches an epoch
LESSON = Lesson(unlabelled_per_batch=6)


class StoppedError(Exception):
    """Stands for a kill."""


class Bands(Encoder):
    """A teacher one can see through: the energy in `dim` bands of a window, at 8 kHz."""

    family, sample_rate, dim, streaming = "bands", 8000, 4, False

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window, self.hop = window, window // 4

    def frames(self, pcm: Tensor) -> Tensor:
        power = torch.fft.rfft(pcm)[:, 1:].abs().square().unflatten(1, (self.dim, -1))
        return torch.log10(power.mean(dim=2) + 1e-3)[:, None]

    def blocks(self) -> list[list[torch.nn.Module]]:
        return [[]]

    def spec(self) -> dict[str, Any]:
        return {"family": self.family}


@pytest.fixture(scope="module")
def teacher(checkpoints: dict[str, Path]) -> Encoder:
    return TransformersEncoder.pretrained(str(checkpoints["whisper"]), 0.8)


@pytest.fixture(scope="module")
def student() -> Encoder:
    return pretrained("speech-embedding", 0.8)


@pytest.fixture(scope="module")
def teaching(teacher: Encoder, corpus: Corpus) -> Teaching:
    """With the clips of two other voices for its sound without labels."""
    return Teaching(teacher, corpus.train.pcm[4::6] + corpus.train.pcm[5::6], 16_000, LESSON)


def test_clips_to_judge_by_are_refused_though_the_corpus_has_trimmed_them(teacher: Encoder, tmp_path: Path) -> None:
    """The very files: of clips that are longer than the window the corpus holds no silence."""
    rows = ["path,label,group,split"]
    for at in range(6):
        sound = np.random.default_rng(at).uniform(-0.3, 0.3, 8000).astype(np.float32)
        soundfile.write(tmp_path / f"{at}.wav", np.pad(sound, 16_000), 16_000)
        rows.append(f"{at}.wav,{'ab'[at % 2]},{at // 2},{('train', 'val', 'test')[at // 2]}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    hum = np.random.default_rng(9).uniform(-0.1, 0.1, 48_000).astype(np.float32)
    (tmp_path / "hum").mkdir()
    soundfile.write(tmp_path / "hum" / "hum.wav", hum, 16_000)
    corpus = read_corpus(tmp_path / "m.csv", rate=16_000, seed=0, longest_s=1.28, background=tmp_path / "hum")
    assert max(map(len, corpus.test.pcm)) < 16_000

    def teaching_from(*files: Path) -> TeachingRun:
        clips = [ClipStore(16_000).get(path) for path in files]
        about: dict[str, Any] = {"metrics": {}, "paths": list(files), "about": {}, "fingerprint": corpus.fingerprint}
        return TeachingRun(teacher, clips, 16_000, LESSON, name="run", classes=corpus.classes, **about)

    for at, split in ((2, "val"), (5, "test")):
        with pytest.raises(UsageError, match=f"{at}.wav is a {split} clip"):
            teaching_from(tmp_path / f"{at}.wav").check_corpus(corpus)
    trained = teaching_from(tmp_path / "0.wav", tmp_path / "hum" / "hum.wav")
    trained.check_corpus(corpus)
    assert trained.recordings_of_thresholds(corpus) == [tmp_path / "hum" / "hum.wav"]


# the losses


def test_similarity_loss_is_the_divergence_of_two_softmaxes_over_the_others() -> None:
    rng = np.random.default_rng(0)
    student, teacher, temperature = rng.normal(size=(6, 3)), rng.normal(size=(6, 5)), 0.3

    def others(rows: np.ndarray, i: int) -> list[float]:
        cosines = [
            rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]) for j in range(len(rows)) if j != i
        ]
        weights = [math.exp(cosine / temperature) for cosine in cosines]
        return [weight / sum(weights) for weight in weights]

    expected = np.mean(
        [
            sum(p * math.log(p / q) for p, q in zip(others(teacher, i), others(student, i), strict=True))
            for i in range(6)
        ]
    )
    found = similarity_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_similarity_loss_is_nothing_where_the_student_is_the_teacher_turned_around() -> None:
    teacher = torch.randn(9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    student = (3 * teacher @ turn).requires_grad_()
    loss = similarity_loss(student, teacher, 0.1)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12
    assert similarity_loss(teacher.flip(0), teacher, 0.1) > 0.1


def test_embedding_loss_is_one_less_the_mean_cosine() -> None:
    rng = np.random.default_rng(0)
    mapped, teacher = rng.normal(size=(2, 7, 4))
    cosines = [a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for a, b in zip(mapped, teacher, strict=True)]
    assert embedding_loss(torch.tensor(mapped), torch.tensor(teacher)).item() == pytest.approx(1 - np.mean(cosines))


def test_the_parts_of_the_loss_are_weighted_and_unlabelled_rows_are_nobodys_negatives() -> None:
    lesson = Lesson(embedding_weight=0.5, similarity_weight=2.0, supervised_weight=3.0, similarity_temperature=0.2)
    torch.manual_seed(0)
    teaching = Teaching(Bands(64), [], 8000, lesson)
    objective = teaching.objective(RECIPE, dim=8, classes=2, multi_label=False)
    embeddings, distilled = functional.normalize(torch.randn(7, 8), dim=1), torch.randn(7, 4)
    labels = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0], [0, 0]]).float()
    labelled = torch.tensor([1, 1, 1, 1, 1, 0, 0]).float()[:, None]  # the fifth carries none of the classes
    loss, statistics = objective(embeddings, torch.cat([labels, labelled, distilled], dim=1))
    assert objective.supervised is not None
    distilled = distilled - distilled.mean(dim=0)
    parts = {
        "teacher_cosine": functional.cosine_similarity(objective.map(embeddings * 8**0.5), distilled).mean(),
        "similarity_loss": similarity_loss(embeddings, distilled, 0.2),
        "supervised_loss": supervised_contrastive(
            objective.supervised.project(embeddings[:5]), jaccard(labels[:5]), temperature=RECIPE.temperature
        ),
    }
    for name, value in parts.items():
        assert statistics[name] == pytest.approx(value.item(), rel=1e-5)
    expected = 0.5 * (1 - parts["teacher_cosine"]) + 2 * parts["similarity_loss"] + 3 * parts["supervised_loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_map_begins_as_a_ridge_regression_to_the_teachers_embeddings(student: Encoder) -> None:
    rng = np.random.default_rng(0)
    windows, distilled = rng.normal(size=(40, 12_800)).astype(np.float32), rng.normal(size=(40, 4)).astype(np.float32)
    objective = Teaching(Bands(64), [], 8000, Lesson()).objective(RECIPE, dim=96, classes=2, multi_label=False)
    targets = torch.from_numpy(np.concatenate([np.zeros((40, 3), np.float32), distilled], axis=1))
    objective.start(copy.deepcopy(student), torch.from_numpy(windows), targets, ridge=0.5)
    embeddings = embed_clips(student, list(windows), CPU) * 96**0.5
    centred_embeddings = distilled - distilled.mean(axis=0)
    centred_embeddings /= np.linalg.norm(centred_embeddings, axis=1, keepdims=True)
    expected = Ridge(alpha=0.5 * 40).fit(embeddings, centred_embeddings)
    np.testing.assert_allclose(objective.map.weight.detach(), expected.coef_, atol=1e-4)
    np.testing.assert_allclose(objective.map.bias.detach(), expected.intercept_, atol=1e-4)


def test_a_teacher_alone_needs_no_supervised_part() -> None:
    lesson = Lesson(supervised_weight=0)
    objective = Teaching(Bands(64), [], 8000, lesson).objective(RECIPE, dim=8, classes=2, multi_label=False)
    assert {name.partition(".")[0] for name, _ in objective.named_parameters()} == {"map"}
    targets = torch.cat([torch.zeros(3, 3), torch.randn(3, 4)], dim=1)
    loss, statistics = objective(functional.normalize(torch.randn(3, 8), dim=1), targets)
    assert loss.isfinite()
    assert statistics.keys() == {"teacher_cosine", "similarity_loss"}


# what a batch holds


def test_a_batch_is_followed_by_unlabelled_windows_and_all_carry_the_teachers_embedding(
    teaching: Teaching, few: Corpus
) -> None:
    augment = Augmenter(window=12_800, shift=800, gain=3.0, noise_probability=0.5, snr=(0.0, 10.0))
    pcm, labels = augment(few.train.pcm[:4], np.random.default_rng(3)), few.train.targets[:4]

    def extended() -> tuple[np.ndarray, np.ndarray]:
        return teaching.extend(pcm, labels, augment, RECIPE, CPU, np.random.default_rng(7))

    windows, targets = extended()
    assert windows.shape == (4 + 6, 12_800)
    np.testing.assert_array_equal(windows[:4], pcm)
    classes = labels.shape[1]
    np.testing.assert_array_equal(targets[:, :classes], np.pad(labels, ((0, 6), (0, 0))))
    np.testing.assert_array_equal(targets[:, classes], [1] * 4 + [0] * 6)
    np.testing.assert_allclose(
        targets[:, classes + 1 :], embed_clips(teaching.teacher, list(windows), CPU), rtol=1e-4, atol=1e-5
    )
    again = extended()
    np.testing.assert_array_equal(again[0], windows)
    np.testing.assert_array_equal(again[1], targets)
    alone = replace(teaching, unlabelled=[]).extend(pcm, labels, augment, RECIPE, CPU, np.random.default_rng(7))
    np.testing.assert_array_equal(alone[0], pcm)


def test_long_recordings_teach_more_often_than_short_ones() -> None:
    short, long = np.full(50, 0.25, np.float32), np.full(9 * 64 + 5, 0.5, np.float32)
    teaching = Teaching(Bands(64), [short, long], 8000, Lesson(unlabelled_per_batch=1000))
    clips, labels = np.zeros((1, 64), np.float32), np.ones((1, 1), np.int8)
    windows, _ = teaching.extend(clips, labels, Augmenter(window=64), RECIPE, CPU, np.random.default_rng(0))
    assert 860 < np.count_nonzero(windows[1:].max(axis=1) == 0.5) < 940  # nine windows against one


@pytest.mark.parametrize("teacher_window", [800, 1600, 3200])
def test_a_teacher_hears_the_same_sound_at_its_own_rate_and_length(teacher_window: int) -> None:
    """Of windows of 0.2 s: in the middle of its own where that is longer, by parts where it is shorter."""
    rng, time = np.random.default_rng(0), np.arange(3200) / 16_000
    tones = np.sin(2 * np.pi * np.array([[500], [1500], [2500], [3400]]) * time)  # one in each band
    windows = (tones + 0.01 * rng.normal(size=tones.shape)).astype(np.float32)
    found = Teaching(Bands(teacher_window), [], 16_000, LESSON).embed(windows, CPU)
    resampled = [soxr.resample(window, 16_000, 8000) for window in windows]
    np.testing.assert_allclose(found, embed_clips(Bands(teacher_window), resampled, CPU), atol=1e-4)
    assert found.argmax(axis=1).tolist() == [0, 1, 2, 3]


# learning


def distilled(
    student: Encoder, corpus: Corpus, recipe: Recipe, teaching: Teaching, **options: Any
) -> tuple[Fitted, dict]:
    student = copy.deepcopy(student)
    fitted = fit(student, corpus, recipe, lr=5e-4, epochs=recipe.epochs, teaching=teaching, **options)
    return fitted, {**student.state_dict(), **fitted.objective.state_dict(prefix="objective.")}


def test_a_student_comes_nearer_to_its_teacher_without_any_label(student: Encoder, few: Corpus) -> None:
    teaching = Teaching(Bands(6400), few.test.pcm, 16_000, replace(LESSON, supervised_weight=0.0))
    recipe = replace(RECIPE, epochs=8, lr=(2e-3,), noise_probability=0.0)
    pupil = copy.deepcopy(student)
    fitted = fit(pupil, few, recipe, lr=2e-3, epochs=8, teaching=teaching)
    inputs = [centred(torch.tensor(clip), 12_800).numpy()[:12_800] for clip in few.train.pcm + few.test.pcm]
    distilled = torch.from_numpy(teaching.embed(np.stack(inputs), CPU))
    far = [
        similarity_loss(torch.from_numpy(embed_clips(one, inputs, CPU)), distilled - distilled.mean(dim=0), 0.1).item()
        for one in (student, pupil)
    ]
    assert far[1] < 0.85 * far[0]
    assert "supervised_loss" not in fitted.history[-1]
    assert not teaching.teacher.training


def test_a_student_stopped_anywhere_and_resumed_is_the_same_bit_for_bit(
    student: Encoder, few: Corpus, teaching: Teaching, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, precision="bf16")
    undisturbed, expected = distilled(student, few, recipe, teaching)
    path = tmp_path / "checkpoint.safetensors"

    def stop_at(epoch: int, step: int) -> Callable[[dict[str, Any]], None]:
        def watch(event: dict[str, Any]) -> None:
            if event["stage"] == "step" and (event["epoch"], event["step"]) == (epoch, step):
                raise StoppedError

        return watch

    for moment in ((0, 1), (1, 2), (2, 1)):
        with pytest.raises(StoppedError):
            distilled(student, few, recipe, teaching, checkpoint_path=path, watch=stop_at(*moment))
    resumed, found = distilled(student, few, recipe, teaching, checkpoint_path=path)
    assert resumed.history == undisturbed.history
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_unlabelled_sound_changes_what_is_learnt(student: Encoder, few: Corpus, teaching: Teaching) -> None:
    recipe = replace(RECIPE, epochs=1)
    _, one = distilled(student, few, recipe, teaching)
    _, other = distilled(student, few, recipe, replace(teaching, unlabelled=[]))
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_the_rates_of_a_student_are_tried_with_its_teacher(student: Encoder, few: Corpus, teaching: Teaching) -> None:
    recipe, told = replace(RECIPE, epochs=1, lr=(5e-4, 1e-3)), list[dict[str, Any]]()
    choose_lr(student, few, recipe, watch=told.append, teaching=teaching)
    losses = {
        lr: [event["loss"] for event in told if event["stage"] == "trying" and event["lr"] == lr] for lr in recipe.lr
    }
    alone = list[dict[str, Any]]()
    distilled(student, few, recipe, teaching, watch=alone.append)
    assert losses[5e-4] == [event["loss"] for event in alone if event["stage"] == "step"]


# the recipe of a student


def test_a_student_inherits_what_describes_the_data_and_no_more() -> None:
    teacher = Recipe(encoder="ge2e", window=1.6, seed=7, label_column="word", snr_high=20.0, lr=(1e-4,), epochs=3,
                     lora_rank=0, freeze="features", loss="triplet", mining="none", group_column="who", split_by="label",
                     others=("words",), background=("noise",), trim=False)  # fmt: skip
    settings_given = {"encoder": "speech-embedding", "epochs": 5, "similarity_weight": 2, "snr_high": 10.0}
    recipe, lesson = student_recipe(teacher, settings_given, "here")
    assert lesson == Lesson(similarity_weight=2)
    expected = {key: getattr(teacher, key) for key in INHERITED} | {"snr_high": 10.0}
    assert recipe == Recipe(encoder="speech-embedding", epochs=5, **expected)
    assert recipe.corpus_options() == teacher.corpus_options()


@pytest.mark.parametrize(
    ("lesson", "named"),
    [
        ({"similarity": 1.0}, ["unknown keys: similarity (did you mean similarity_weight?)"]),
        ({"objective": "finetune"}, ["'objective'"]),
        ({"similarity_weight": "much"}, ["'similarity_weight'", "must be a number; it is 'much'"]),
        ({"unlabelled_per_batch": 1.5}, ["'unlabelled_per_batch'", "must be a whole number"]),
        ({"unlabelled_per_batch": 0}, ["'unlabelled_per_batch'", "at least 1"]),
        ({"embedding_weight": -1.0}, ["'embedding_weight'"]),
        ({"supervised_weight": float("nan")}, ["'supervised_weight'"]),
        ({"similarity_temperature": 0.0}, ["'similarity_temperature'"]),
        ({"embedding_weight": 0, "similarity_weight": 0}, ["nothing"]),
        ({"epochs": 0}, ["'epochs'"]),
    ],
)
def test_a_bad_lesson_is_refused_by_name(lesson: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UsageError, match="the file: ") as caught:
        student_recipe(Recipe(), lesson, "the file")
    assert all(name in str(caught.value) for name in named), caught.value
