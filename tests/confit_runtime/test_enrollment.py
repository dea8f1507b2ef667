"""What a clip gives to a gallery: the sounds in it, however much room is around them, and never the room itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.demo import DATA
from confit_runtime import Model, load
from confit_runtime.audio import load_clip
from confit_runtime.enrollment import (
    ExistingPrints,
    Kind,
    embed_query,
    extract_prints,
    select_new_prints,
    split_sounds,
    to_flac,
)
from confit_runtime.errors import AudioError
from confit_runtime.gallery import Gallery
from confit_runtime.matcher import Levels, Matcher
from confit_runtime.voice_activity import active_segments
from tests import tiny_model
from tests.tiny_model import RATE, Floats, silence, tone


def room(seconds: float, level: float = 1e-3, seed: int = 0) -> Floats:
    noise: Floats = (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)
    return noise


def among(sound: Floats, before: float, after: float, level: float = 1e-3) -> Floats:
    clip = np.concatenate([silence(before), sound, silence(after)])
    return clip + room(len(clip) / RATE, level)[: len(clip)]


def bell(seconds: float = 1.5) -> Floats:
    """Two partials that die away, as of a doorbell."""
    at = np.arange(round(seconds * RATE)) / RATE
    wave: Floats = (0.4 * np.exp(-4 * at) * (np.sin(2 * np.pi * 660 * at) + np.sin(2 * np.pi * 1320 * at))).astype("f4")
    return wave


@pytest.mark.parametrize(("before", "after"), [(2.0, 1.6), (0.1, 9.0), (5.0, 0.0)])
def test_a_sound_in_a_long_clip_is_the_sound_and_not_the_room(digits: Model, before: float, after: float) -> None:
    tight = extract_prints(digits, among(bell(0.8), 0.2, 0.2), "sound", "tight")
    long = extract_prints(digits, among(bell(0.8), before, after), "sound", "long")
    (print_,) = long.embeddings
    assert print_ @ tight.embeddings[0] > 0.98
    asked = embed_query(digits, among(bell(0.8), after, before), "sound", "asked")
    assert asked @ tight.embeddings[0] > 0.98
    assert np.linalg.norm(asked) == pytest.approx(1.0, abs=1e-5)


def test_sounds_with_a_long_pause_between_are_prints_of_their_own(model: Model) -> None:
    clip = np.concatenate([among(tone(500, 0.4), 0.5, 0.5), among(tone(1200, 0.4), 0.5, 2.0)])
    taken = extract_prints(model, clip, "sound", "two")
    assert len(taken.embeddings) == len(taken.sounds) == 2
    for print_, pitch in zip(taken.embeddings, (500, 1200), strict=True):
        assert print_ @ extract_prints(model, tone(pitch, 0.4), "sound", "one").embeddings[0] > 0.9
    both = embed_query(model, clip, "sound", "both")
    assert min(taken.embeddings @ both) > 0.5


def test_clicks_and_dc_offsets_are_not_separate_sounds(digits: Model) -> None:
    clip = np.concatenate([among(bell(), 0.5, 1.0), among(0.3 * tone(2000, 0.03), 0.5, 1.0)])
    assert len(extract_prints(digits, clip, "sound", "bell and click").embeddings) == 1
    shifted = extract_prints(digits, among(bell(), 1.5, 2.0) + np.float32(0.05), "sound", "direct current")
    assert len(shifted.sounds[0]) < 2 * RATE


def test_a_negative_of_several_sounds_refuses_the_clip_it_is_of(digits: Model, tmp_path: Path) -> None:
    clip = np.concatenate([among(bell(), 0.5, 1.0), among(tone(500, 0.4), 0.5, 1.0)])
    prints, asked = extract_prints(digits, clip, "sound", "two").embeddings, embed_query(digits, clip, "sound", "two")
    assert len(prints) == 2
    with Gallery.open(tmp_path / "house.db", digits, create=True) as gallery:
        for negative in (False, True):
            # carried, as an older version's: of one sound that is both none is answered
            gallery.enroll("x", prints, sources=["two"] * 2, voiced_s=1.0, negative=negative, carried=True)
        assert gallery.match(asked).reason == "negative"


def test_negative_prints_leave_true_sounds_alone(digits: Model, tmp_path: Path) -> None:
    """With 67 other words that are taken for "bird" as negative prints, 30 of the 45 voices that say it were recognised."""
    voices, words = ("af_kore", "am_santa", "bm_george", "hm_omega", "jf_alpha", "zf_xiaoyi"), ("bird", "bed", "cat")
    queries = {
        word: {
            path.stem: embed_query(digits, load_clip(path, digits.contract.sample_rate), "sound", path.name)
            for path in sorted((DATA / "words" / word).glob("*.ogg"))
        }
        for word in words
    }
    true = [query for voice, query in queries["bird"].items() if voice not in voices]
    with Gallery.open(tmp_path / "words.db", digits, create=True, threshold=0.6) as gallery:

        def recognised(sounds: list[Floats]) -> list[Floats]:
            return [sound for sound in sounds if gallery.match(sound).name == "bird"]

        prints = np.stack([queries["bird"][voice] for voice in voices])
        gallery.enroll("bird", prints, sources=voices, voiced_s=1.0)
        found = len(recognised(true))
        alarms = recognised([*queries["bed"].values(), *queries["cat"].values()])
        assert (found, len(alarms)) == (45, 67)
        for begin, end in ((0, 1), (1, 3), (3, 10), (10, 30), (30, 67)):
            gallery.enroll(
                "bird", np.stack(alarms[begin:end]), sources=["tv"] * (end - begin), voiced_s=1.0, negative=True
            )
            assert len(recognised(true)) >= 0.9 * found
            assert recognised(alarms[:end]) == []


def test_a_short_clip_is_taken_as_it_is(model: Model) -> None:
    clip = among(tone(500, 0.05), 0.01, 0.02)[: model.contract.window]
    (part,) = split_sounds(model, clip)
    assert part is clip
    long = among(tone(500, 0.05), 1.0, 1.0)
    (part,) = split_sounds(model, long)
    assert len(part) == pytest.approx(0.35 * RATE, abs=0.03 * RATE)  # a little before and after it
    assert np.abs(part).argmax() == pytest.approx(len(part) / 2, abs=0.03 * RATE)


def test_a_short_sound_fills_the_window_with_the_room_around_it(digits: Model) -> None:
    window, beep = digits.contract.window, tone(500, 0.1)
    (part,) = split_sounds(digits, among(beep, 2.0, 3.0))
    assert len(part) == pytest.approx(window, abs=1)
    (early,) = split_sounds(digits, among(beep, 0.2, 4.0))  # as much of it after the sound as there is before
    for one in (part, early):
        assert np.abs(one).argmax() == pytest.approx(len(one) / 2, abs=0.06 * RATE)


def test_too_little_sound_is_no_print(model: Model) -> None:
    with pytest.raises(AudioError, match=r"^beep: holds 0\.06 s of sound; enrolling needs at least 0\.1 s$"):
        extract_prints(model, among(tone(500, 0.06), 0.5, 0.5, level=0.0), "sound", "beep")
    with pytest.raises(AudioError, match=r"^beep: holds 0\.06 s of sound"):  # a DC offset is none
        extract_prints(model, among(tone(500, 0.06), 0.5, 0.5, level=0.0) + np.float32(0.01), "sound", "beep")
    assert extract_prints(model, among(tone(500, 0.12), 0.5, 0.5, level=0.0), "sound", "beep").seconds == pytest.approx(
        0.12
    )


def test_of_prints_that_are_there_already_the_seconds_do_not_count_again() -> None:
    clips = [b"one", b"two", b"one", b"three"]
    already = ExistingPrints(prints={b"two"}, seconds=2.0)
    for seconds, added_s in (([1.0, 2.0, 4.0, 3.5], 4.5), (8.0, 4.0)):
        places, found_s = select_new_prints("ada", clips, list("abcd"), seconds, already, "speaker", Path("voices.db"))
        assert (places, found_s) == ([0, 3], added_s)


@pytest.mark.parametrize("kind", ["sound", "speaker"])
def test_unscaled_floats_cannot_be_enrolled(model: Model, kind: Kind) -> None:
    clip = np.round(32_767 * among(tone(500, 1.0), 0.5, 0.5)).astype(np.int16).astype(np.float32)
    for ask in (extract_prints, embed_query):
        with pytest.raises(AudioError, match=r"loud: holds samples up to .*32768 for int16"):
            ask(model, clip, kind, "loud")


def test_segments_match_a_naive_loop_over_frames() -> None:
    rng, frame = np.random.default_rng(0), RATE // 50
    for _ in range(30):
        loud = np.repeat(rng.random(rng.integers(4, 12)) < 0.5, rng.integers(10, 50))
        loud[:4] = True  # of at least three frames
        pcm = np.concatenate([np.where(one, 0.3, 1e-4) * rng.choice([-1.0, 1.0], frame) for one in loud])
        if loud.mean() > 0.85:  # the quiet must be a tenth to be told
            continue
        wanted: list[list[int]] = []
        for at, one in enumerate(loud):
            if one and wanted and at - wanted[-1][1] < 30:  # 0.6 s
                wanted[-1][1] = at + 1
            elif one:
                wanted.append([at, at + 1])
        edge = round(0.15 * RATE)
        assert active_segments(pcm.astype(np.float32), RATE) == [
            (max(0, first * frame - edge), min(len(pcm), last * frame + edge)) for first, last in wanted
        ]


@pytest.mark.parametrize("level", [0.0, 3e-4, 3e-3, 3e-2])
def test_a_quiet_room_matches_nobody_in_a_sound_gallery(digits: Model, tmp_path: Path, level: float) -> None:
    """A model of speech knows little of bells, and finds one nearer to silence than to anything it was trained on."""
    prints = extract_prints(digits, bell(), "sound", "bell").embeddings
    rows = digits.rows(room(4.0, level), RATE)[1]
    unguarded = Matcher(["bell"], [0], prints, digits.cohort, levels=Levels.of(digits.contract, None, None))
    with Gallery.open(tmp_path / "house.db", digits, create=True) as gallery:
        gallery.enroll("bell", prints, sources=["bell.wav"], voiced_s=1.0)
        assert not any(gallery.match(row).name for row in rows)
        assert gallery.match(embed_query(digits, among(bell(), 2.0, 2.0), "sound", "asked")).name == "bell"
    assert any(unguarded.match(row).name for row in rows)


@pytest.mark.parametrize(("kind", "reason"), [("sound", "stranger"), ("speaker", None)])
def test_quiet_rooms_are_stored_in_the_file_and_used_by_sound_galleries(
    tmp_path: Path, kind: Kind, reason: str | None
) -> None:
    plain = load(tiny_model.build(tmp_path / "plain.onnx"))
    heard = plain.embed(tone(500, 0.4), RATE)[None]
    model = load(tiny_model.build(tmp_path / "tiny.onnx", cohort=-heard, quiet=heard.repeat(3, axis=0)))
    for asked, expected in ((plain, None), (model, reason)):
        with Gallery.open(tmp_path / f"{asked.path.stem}.db", asked, create=True, kind=kind) as gallery:
            gallery.enroll("low", heard, sources=["low.wav"], voiced_s=5.0)
            assert gallery.match(heard[0]).reason == expected


def test_the_models_that_ship_know_silence_for_a_quiet_room(digits: Model) -> None:
    assert (digits.quiet @ digits.embed(silence(1.3), RATE)).max() > 0.9


def test_a_kept_sound_lasts_as_long_at_a_rate_that_flac_does_not_have() -> None:
    rate = 131_077
    pcm, flac_hz = soundfile.read(io.BytesIO(to_flac(tone(500, 10.0, rate), rate)), dtype="float32")
    assert flac_hz == 131_070
    assert len(pcm) == 10 * flac_hz  # 70 samples fewer
