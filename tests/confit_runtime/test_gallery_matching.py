"""Matching and verification: negative prints, the cohort, margins and thresholds."""

from __future__ import annotations

import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from confit_runtime import Model, UsageError, load
from confit_runtime.enrollment import Kind
from confit_runtime.gallery import Gallery
from confit_runtime.matcher import (
    MAX_SHIFT,
    MIN_SHIFT,
    PRIOR_PRINTS,
    Levels,
    Matcher,
    l2_normalise,
    mutual_similarity,
    negatives_win,
)
from tests import tiny_model
from tests.confit_runtime.galleries import unit_prints
from tests.tiny_model import Floats

DIM = len(tiny_model.BANDS)
random_prints = partial(unit_prints, np.random.default_rng(5))


# negative prints


def test_a_nearer_negative_print_vetoes_a_match(tmp_path: Path, model: Model) -> None:
    east, north, up = np.eye(DIM, dtype=np.float32)[:3]
    jingle = (0.8 * east + 0.6 * up).astype(np.float32)
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("east", east[None], sources=["e"], voiced_s=1.0)
        gallery.enroll("north", north[None], sources=["n"], voiced_s=1.0)
        assert gallery.match(jingle).name == "east"
        assert gallery.enroll("east", jingle[None], sources=["tv"], voiced_s=1.0, negative=True) == 1
        answer = gallery.match(jingle)
        assert (answer.name, answer.reason, answer.nearest) == (None, "negative", "east")
        assert answer.score == pytest.approx(0.8)
        assert gallery.match(east).name == "east"
        assert gallery.matcher.verify("east", jingle).reason == "negative"
        assert (gallery.names(), gallery.voiced_s("east")) == ({"east": 1, "north": 1}, 1.0)
        gallery.enroll("low", jingle[None], sources=["tv"], voiced_s=1.0, negative=True)  # a label of the model
        assert gallery.matcher.enrolled == ["east", "north"]
        assert gallery.matcher.vetoes("low", jingle)
        assert not gallery.matcher.vetoes("low", north)
        assert not gallery.matcher.vetoes("mid", jingle)


def test_a_true_sound_of_the_cohort_is_not_vetoed() -> None:
    east, up = np.eye(DIM, dtype=np.float32)[:2]
    nothing = np.zeros((0, DIM), np.float32)
    cohort, query = (l2_normalise(east + share * up) for share in (0.75, 1.0))
    unlike, like = (
        Matcher(["yes"], [], nothing, sounds, levels=Levels(), vetoed=[0], vetoes=up[None])
        for sounds in (nothing, cohort[None])
    )
    assert unlike.vetoes("yes", query)  # as near to the negative print as a match must be
    assert not like.vetoes("yes", query)
    assert like.vetoes("yes", up)
    strict = Matcher(["yes"], [], nothing, nothing, levels=Levels(0.97), vetoed=[0], vetoes=up[None])
    assert strict.vetoes("yes", query)  # though a match must be nearer
    assert not strict.vetoes("yes", l2_normalise(east + 0.7 * up))


def test_one_negative_print_of_several_is_enough() -> None:
    """As near as the nearest of them, though what they have in common is not."""
    east, north, up, down = np.eye(DIM, dtype=np.float32)[:4]
    vetoes = np.stack([east, l2_normalise(east + north), l2_normalise(east + up), l2_normalise(east + down)])
    nothing = np.zeros((0, DIM), np.float32)
    near = l2_normalise(east + 0.1 * np.eye(DIM, dtype=np.float32)[4])
    matcher = Matcher(["low"], [0], near[None], nothing, levels=Levels(), vetoed=[0] * 4, vetoes=vetoes)
    assert matcher.match(east).reason == "negative"


def test_more_negative_prints_do_not_silence_a_name() -> None:
    """The highest of many cosines exceeds the score of any sound; the mean of a growing number of them does not."""
    rng, dim = np.random.default_rng(0), 64

    def around(centre: Floats, count: int, spread: float) -> Floats:
        return l2_normalise(centre + spread * l2_normalise(rng.standard_normal((count, dim)).astype(np.float32)))

    name, tv = (
        l2_normalise(np.eye(dim, dtype=np.float32)[0] + 0.3 * np.eye(dim, dtype=np.float32)[at]) for at in (1, 2)
    )
    prints, true, alarms = around(name, 3, 0.5), around(name, 100, 0.5), around(tv, 400, 0.5)
    nothing = np.zeros((0, dim), np.float32)

    def recognised(negatives: int, sounds: Floats) -> int:
        vetoed, vetoes = [0] * negatives, alarms[:negatives]
        matcher = Matcher(["it"], [0] * 3, prints, nothing, levels=Levels(), vetoed=vetoed, vetoes=vetoes)
        return sum(matcher.match(sound).name == "it" for sound in sounds)

    assert recognised(0, true) == 100
    assert recognised(0, alarms[200:]) == 200
    for negatives in (1, 3, 10, 63, 200):
        assert recognised(negatives, true) >= 95
        assert recognised(negatives, alarms[:negatives]) == 0  # the same sounds again
    assert recognised(200, alarms[200:]) < 100


def test_negatives_win_by_the_mean_of_the_nearest_as_a_plain_loop_finds() -> None:
    rng = np.random.default_rng(1)
    for number in (1, 2, 4, 5, 9, 10, 30):
        negatives, query = (l2_normalise(rng.standard_normal(shape).astype(np.float32)) for shape in ((number, 8), 8))
        cosines = sorted(
            (float(sum(a * b for a, b in zip(one, query, strict=True))) for one in negatives), reverse=True
        )
        nearest = 1
        while nearest * nearest < number:
            nearest += 1
        value = sum(cosines[:nearest]) / nearest
        assert negatives_win(negatives, query, value - 1e-4)
        assert not negatives_win(negatives, query, value + 1e-4)
        assert negatives_win(np.concatenate([negatives, query[None]]), query, 1.0)
    assert not negatives_win(np.zeros((0, 8), np.float32), query, -1.0)


# thresholds and verification


def test_a_query_no_better_than_the_cohort_is_a_stranger() -> None:
    one = np.eye(8, dtype=np.float32)[:1]
    matcher = Matcher(["ada"], [0], one, one.repeat(3, 0), levels=Levels(0.6, 0.0))
    assert matcher.match(one[0]).reason == "stranger"


def test_of_two_that_are_as_near_each_rule_has_its_side() -> None:
    """What reaches a threshold or a margin is enough; a negative print as near as the name's own is too near."""
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    nothing = np.zeros((0, DIM), np.float32)
    both = Matcher(["east", "north"], [0, 1], np.stack([east, north]), nothing, levels=Levels(1.0, 1.0))
    answer = both.match(east)
    assert (answer.name, answer.score, answer.threshold, answer.margin) == ("east", 1.0, 1.0, 1.0)
    vetoed = Matcher(["east"], [0], east[None], nothing, levels=Levels(0.5), vetoed=[0], vetoes=north[None])
    assert vetoed.match(l2_normalise(east + north)).reason == "negative"
    assert vetoed.match(l2_normalise(east + 0.9 * north)).name == "east"


def test_the_newest_prints_say_how_alike_a_names_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confit_runtime.matcher.NEWEST_PRINTS", 2)
    prints = np.eye(8, dtype=np.float32)[[0, 0, 0, 1]]  # the first two agree, the last two are apart
    levels = Levels(0.6, 0.0, genuine=0.9)
    nobody = np.zeros((0, 8), np.float32)
    whole = Matcher(["ada"], [0] * 4, prints, nobody, levels=levels).match(prints[0])
    newest = Matcher(["ada"], [0] * 2, prints[2:], nobody, levels=levels).match(prints[0])
    assert whole.threshold == newest.threshold < 0.6


def test_prints_that_agree_less_need_less() -> None:
    levels = Levels(threshold=0.7, margin=0.0, genuine=0.9)
    needed = []
    for spread in (0.0, 0.3, 0.6):
        base = np.eye(DIM, dtype=np.float32)[:1] + spread * random_prints(6)
        prints = (base / np.linalg.norm(base, axis=1, keepdims=True)).astype(np.float32)
        match = Matcher(["ada"], [0] * 6, prints, np.zeros((0, DIM), np.float32), levels=levels).match(prints[0])
        naive = 6 / (6 + PRIOR_PRINTS) * (mutual_similarity(prints) - 0.9)
        assert match.threshold == pytest.approx(0.7 + min(max(naive, MIN_SHIFT), MAX_SHIFT))
        needed.append(match.threshold)
    assert needed[0] > needed[1] > needed[2]
    single = Matcher(["ada"], [0], random_prints(1), np.zeros((0, DIM), np.float32), levels=levels)
    assert single.match(random_prints(1)[0]).threshold == 0.7  # one print says nothing of how alike they are


@pytest.mark.parametrize("threshold", [0.85, 0.993, 1.0])
def test_near_to_1_prints_move_the_threshold_little(threshold: float) -> None:
    # a training of few epochs may leave all embeddings within a few hundredths of each other
    levels = Levels(threshold=threshold, margin=0.0, genuine=0.9)
    nobody = np.zeros((0, DIM), np.float32)
    same, different = np.repeat(random_prints(1), 20, axis=0), np.eye(DIM, dtype=np.float32)
    alike = Matcher(["ada"], [0] * 20, same, nobody, levels=levels).match(same[0])
    apart = Matcher(["ada"], [0] * DIM, different, nobody, levels=levels).match(same[0])
    assert alike.name == "ada"
    assert alike.threshold == pytest.approx(threshold + (1 - threshold) / 4)
    assert apart.threshold == pytest.approx(threshold - (1 - threshold) * 5 / 4)


def test_verification_requires_that_no_other_name_is_nearer() -> None:
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    prints = np.stack([east, north])
    matcher = Matcher(["east", "north"], [0, 1], prints, np.zeros((0, DIM), np.float32), levels=Levels(0.5, 0.03))
    query = (0.6 * east + 0.8 * north).astype(np.float32)
    claimed = matcher.verify("east", query)
    assert (claimed.name, claimed.score, claimed.runner_up) == (None, pytest.approx(0.6), "north")
    assert (claimed.reason, claimed.nearest) == ("other", "north")
    confirmed = matcher.verify("north", query)
    assert (confirmed.name, confirmed.reason, confirmed.nearest) == ("north", None, "north")
    with pytest.raises(UsageError, match=r"nobody is enrolled as 'west' .*east, north"):
        matcher.verify("west", query)


def test_two_names_too_close_to_tell_are_unknown_and_the_nearer_is_verified() -> None:
    """As docs/enrollment.md and `verify --help` say: who asks about one name asks no margin."""
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    nobody = np.zeros((0, DIM), np.float32)
    matcher = Matcher(["east", "north"], [0, 1], np.stack([east, north]), nobody, levels=Levels(0.5, 0.03))
    query = l2_normalise((0.70 * east + 0.71 * north).astype(np.float32))
    assert (matcher.match(query).name, matcher.match(query).reason) == (None, "too close")
    assert (matcher.verify("north", query).name, matcher.verify("north", query).reason) == ("north", None)
    assert matcher.verify("east", query).reason == "other"


def test_names_match_in_any_unicode_normalisation() -> None:
    zoe, spelt = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")
    print_ = np.eye(DIM, dtype=np.float32)[:1]
    nothing = np.zeros((0, DIM), np.float32)
    matcher = Matcher([zoe], [0], print_, nothing, levels=Levels(), vetoed=[0], vetoes=np.roll(print_, 1))
    assert matcher.verify(spelt, print_[0]).name == zoe
    assert matcher.vetoes(spelt, np.roll(print_[0], 1))


@pytest.mark.parametrize("level", [2.0, -1.5, float("nan"), "0.5"])
def test_a_threshold_is_a_similarity(tmp_path: Path, model: Model, level: object) -> None:
    for wrong in ({"threshold": level}, {"thresholds": {"ada": level}}):
        with pytest.raises(UsageError, match="from -1 to 1"):
            Gallery.open(tmp_path / "gallery.db", model, create=True, **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "gallery.db").exists()


@pytest.mark.parametrize("margin", [float("nan"), float("inf"), -0.1, 3.0, "0.1"])
def test_a_margin_is_one_between_similarities(tmp_path: Path, model: Model, margin: float) -> None:
    with pytest.raises(UsageError, match="from 0 to 2"):
        Gallery.open(tmp_path / "gallery.db", model, create=True, margin=margin)
    assert not (tmp_path / "gallery.db").exists()


def test_thresholds_require_an_enrolled_name(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("zoë", random_prints(1), sources=["x"], voiced_s=1.0)
    with Gallery.open(path, model, thresholds={"zoe\u0308": 0.9}) as gallery:  # however it is spelt
        assert gallery.match(random_prints(1)[0]).threshold == 0.9
    with pytest.raises(
        UsageError, match=r"gallery\.db: there is a threshold for 'zoo', which is not enrolled \(enrolled: zoë\)"
    ):
        Gallery.open(path, model, thresholds={"zoo": 0.9})


def test_a_threshold_by_hand_is_not_moved_by_how_alike_prints_are(tmp_path: Path) -> None:
    calibrated = {"enroll": {"kind": "sound", "threshold": 0.7, "margin": 0.03, "genuine": 0.9}}
    model = load(tiny_model.build(tmp_path / "tiny.onnx", calibration=calibrated))
    path, apart = tmp_path / "gallery.db", np.eye(DIM, dtype=np.float32)[:3]
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("ada", apart, sources=["x"] * 3, voiced_s=1.0)
        assert gallery.match(apart[0]).threshold < 0.5
    with Gallery.open(path, model, threshold=0.7) as gallery:
        assert gallery.match(apart[0]).threshold == 0.7


def test_one_names_threshold_is_set_by_hand(tmp_path: Path, model: Model) -> None:
    east, north = np.eye(DIM, dtype=np.float32)[:2]
    with Gallery.open(tmp_path / "gallery.db", model, create=True, thresholds={"east": 0.9}) as gallery:
        for name, row in (("east", east), ("north", north)):
            gallery.enroll(name, row[None], sources=["x"], voiced_s=1.0)
        for row, other, name in ((east, north, None), (north, east, "north")):
            match = gallery.match((0.8 * row + 0.6 * other).astype(np.float32))
            assert (match.name, match.threshold) == (name, 0.9 if name is None else pytest.approx(0.6))


def test_a_name_of_very_many_prints_does_not_hide_the_next(tmp_path: Path, model: Model) -> None:
    ada, mum = np.zeros((2, model.contract.embedding_dim), np.float32)
    ada[0], mum[0], mum[1] = 1.0, 1.0, 0.1
    many = l2_normalise(ada + 0.01 * random_prints(300))
    with Gallery.open(tmp_path / "house.db", model, create=True) as gallery:
        gallery.enroll("ada", many, sources=["x"] * 300, voiced_s=900.0)
        gallery.enroll("mum", mum[None], sources=["x"], voiced_s=5.0)
        gallery.enroll("far", -ada[None], sources=["x"], voiced_s=5.0)
        match = gallery.match(ada)
        assert (match.name, match.reason, match.runner_up) == (None, "too close", "mum")
        gallery.remove("mum")
        assert gallery.match(ada).name == "ada"
        gallery.remove("far")
        assert gallery.match(ada).runner_up is None


def test_a_name_with_more_prints_needs_more_similarity_in_a_stream_up_to_the_newest_that_count() -> None:
    def needed(prints: int) -> float:
        own = l2_normalise(np.random.default_rng(0).standard_normal((prints, 8), dtype=np.float32))
        levels = Levels(0.6, 0.05, stream_threshold=0.8)
        return Matcher(["ada"], [0] * prints, own, np.zeros((0, 8), np.float32), levels=levels).stream_threshold("ada")

    assert needed(1) == needed(3) == pytest.approx(0.8)
    assert needed(48) == pytest.approx(1 - 0.2 / 2)  # sixteen times as many
    assert needed(48) < needed(64) == needed(200)


def test_a_quiet_room_is_a_stranger_among_sounds_and_not_among_voices(tmp_path: Path) -> None:
    room, near = np.eye(DIM, dtype=np.float32)[:1], l2_normalise(np.float32([[1.0, 0.1] + [0.0] * (DIM - 2)]))
    model = load(tiny_model.build(tmp_path / "quiet.onnx", quiet=room))
    kinds: tuple[Kind, ...] = ("sound", "speaker")
    for kind in kinds:
        with Gallery.open(tmp_path / f"{kind}.db", model, create=True, kind=kind) as gallery:
            gallery.enroll("ada", near, sources=["a"], voiced_s=5.0)
            assert gallery.match(room[0]).reason == ("stranger" if kind == "sound" else None)
