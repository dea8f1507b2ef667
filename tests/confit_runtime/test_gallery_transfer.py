"""Names are exported, imported, and enrolled again with another model; kept audio is erased with its name."""

from __future__ import annotations

import io
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_runtime import GalleryError, Model, UsageError, load
from confit_runtime.enrollment import to_flac
from confit_runtime.gallery import Gallery
from confit_runtime.transfer import export_names, import_names, re_enroll_prints
from tests import tiny_model
from tests.at_once import at_once
from tests.confit_runtime.galleries import unit_prints
from tests.tiny_model import Floats, chord

DIM = len(tiny_model.BANDS)
RNG = np.random.default_rng(5)
random_prints = partial(unit_prints, RNG)


@pytest.fixture
def two_names(tmp_path: Path, model: Model) -> Path:
    """A gallery of Ada Lovelace and zoë."""
    with Gallery.open(tmp_path / "two.db", model, create=True) as gallery:
        for name, prints in (("Ada Lovelace", 3), ("zoë", 2)):
            gallery.enroll(name, random_prints(prints), sources=["x"] * prints, voiced_s=5.0)
    return tmp_path / "two.db"


# other devices, other models


def test_names_that_two_processes_export_to_one_file_come_whole(tmp_path: Path, two_names: Path) -> None:
    begin = f"""
from contextlib import suppress
from confit_runtime.errors import UsageError
from confit_runtime.gallery import Gallery
from confit_runtime.transfer import export_names
source = Gallery.open(Path({str(two_names)!r}))
def export():
    path.unlink(missing_ok=True)
    with suppress(UsageError):  # the other one was faster
        assert export_names(source, [], path) == {{"Ada Lovelace": (3, 0), "zoë": (2, 0)}}
"""
    (out := tmp_path / "out").mkdir()
    at_once(begin, "export()", out / "all.db")
    with Gallery.open(out / "all.db") as given:
        assert given.names() == {"Ada Lovelace": 3, "zoë": 2}
    assert [path.name for path in out.iterdir()] == ["all.db"]


def test_a_killed_export_leaves_nothing_that_the_next_does_not_remove(tmp_path: Path, two_names: Path) -> None:
    (out := tmp_path / "out").mkdir()
    killed = f"""
import os, signal, sys
from pathlib import Path
from confit_runtime.gallery import Gallery
from confit_runtime.transfer import export_names
def kill(event, arguments):
    if event == "os.rename":  # all is written, and the file has not its name
        os.kill(os.getpid(), signal.SIGKILL)
with Gallery.open(Path({str(two_names)!r})) as source:
    sys.addaudithook(kill)
    export_names(source, [], Path({str(out / "all.db")!r}))
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    (left,) = out.iterdir()
    assert left.name.startswith(".all.db.")
    with Gallery.open(two_names) as source:
        export_names(source, [], out / "all.db")
    assert [path.name for path in out.iterdir()] == ["all.db"]


def test_export_and_import_carry_everything_and_add_nothing_twice(tmp_path: Path, model: Model) -> None:
    sound = chord((300.0, 2600.0), 0.4)
    with Gallery.open(tmp_path / "one.db", model, create=True) as one:
        one.enroll("ada", random_prints(2), sources=["a", "b"], voiced_s=3.0, audio=[to_flac(sound, 16_000)] * 2)
        one.enroll("ada", random_prints(1), sources=["d"], voiced_s=1.5)  # its audio is not kept
        one.enroll("ada", random_prints(1), sources=["tv"], voiced_s=1.0, negative=True)
        one.enroll("bob", random_prints(1), sources=["c"], voiced_s=1.0)
        assert export_names(one, ["ada"], tmp_path / "ada.db") == {"ada": (3, 1)}
        one.enroll("low", random_prints(1), sources=["x"], voiced_s=0.0, negative=True)  # a label
        assert export_names(one, ["low"], tmp_path / "low.db") == {"low": (0, 1)}
        with pytest.raises(UsageError, match="already exists"):
            export_names(one, [], tmp_path / "ada.db")
        for length in (250, 300):
            with pytest.raises(GalleryError, match=r"yyy\.db: cannot be .*\(File name too long\)"):
                export_names(one, [], tmp_path / f"{'y' * length}.db")
        original = one.prints("ada")
    with Gallery.open(tmp_path / "two.db", model, create=True) as two, Gallery.open(tmp_path / "ada.db") as given:
        assert import_names(two, given) == {"ada": (3, 1)}
        assert import_names(two, given) == {"ada": (0, 0)}
        assert (two.names(), two.negatives(), two.voiced_s("ada")) == ({"ada": 3}, {"ada": 1}, 4.5)
        for was, is_ in zip(
            *(sorted(one, key=lambda one: one.source) for one in (original, two.prints("ada"))), strict=True
        ):
            np.testing.assert_array_equal(was.embedding, is_.embedding)
            assert (was.source, was.negative, was.audio) == (is_.source, is_.negative, is_.audio)
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another"))
    with (
        Gallery.open(tmp_path / "three.db", other, create=True) as three,
        Gallery.open(tmp_path / "ada.db") as given,
        pytest.raises(GalleryError, match="another model"),
    ):
        import_names(three, given)


def test_prints_do_not_come_under_a_second_name(tmp_path: Path, model: Model) -> None:
    with Gallery.open(tmp_path / "one.db", model, create=True) as one:
        one.enroll("ada", random_prints(2), sources=["a", "b"], voiced_s=3.0)
        one.enroll("bob", random_prints(1), sources=["c"], voiced_s=3.0)
        export_names(one, [], tmp_path / "both.db")
        one.rename("bob", "robert")
        with (
            Gallery.open(tmp_path / "both.db") as given,
            pytest.raises(UsageError, match=r"one\.db: .* for 'bob' are already enrolled as 'robert'"),
        ):
            import_names(one, given)
        assert one.names() == {"ada": 2, "robert": 1}


def test_carried_prints_are_not_checked_again(tmp_path: Path, model: Model) -> None:
    """A program may carry one print under two names, and voices with too little: a copy of a gallery keeps all of it."""
    shared, own = random_prints(2)[:, None]
    with Gallery.open(tmp_path / "old.db", model, create=True, kind="speaker") as old:
        for name, prints in (("ada", shared), ("bob", np.concatenate([shared, own]))):
            old.enroll(name, prints, sources=["x"] * len(prints), voiced_s=1.0, carried=True)
        assert export_names(old, [], tmp_path / "copy.db") == {"ada": (1, 0), "bob": (2, 0)}
        export_names(old, ["ada"], tmp_path / "ada.db")
    with (
        Gallery.open(tmp_path / "copy.db") as copy,
        Gallery.open(tmp_path / "new.db", model, create=True, kind="speaker") as new,
        Gallery.open(tmp_path / "ada.db") as ada,
    ):
        assert (copy.names(), copy.voiced_s("bob")) == ({"ada": 1, "bob": 2}, 1.0)
        assert import_names(new, ada) == {"ada": (1, 0)}


def test_voices_are_not_imported_among_sounds(tmp_path: Path, model: Model) -> None:
    with (
        Gallery.open(tmp_path / "voices.db", model, create=True, kind="speaker") as voices,
        Gallery.open(tmp_path / "sounds.db", model, create=True, kind="sound") as sounds,
    ):
        voices.enroll("ada", random_prints(1), sources=["a"], voiced_s=5.0)
        with pytest.raises(UsageError, match=r"voices\.db: holds voices, but .*sounds\.db holds sounds"):
            import_names(sounds, voices)
        assert sounds.names() == {}


def test_an_import_that_cannot_be_written_leaves_nothing_of_it(tmp_path: Path, model: Model) -> None:
    with Gallery.open(tmp_path / "many.db", model, create=True) as many:
        for name in ("ada", "bob", "eve"):
            many.enroll(name, random_prints(200), sources=["x"] * 200, voiced_s=5.0)
    with Gallery.open(tmp_path / "house.db", model, create=True) as house, Gallery.open(tmp_path / "many.db") as given:
        house.enroll("carl", random_prints(1), sources=["y"], voiced_s=5.0)
        with house.change() as db:
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 8}")
        with pytest.raises(GalleryError, match="is the disk full"):
            import_names(house, given)
        assert house.names() == {"carl": 1}
        with house.change() as db:
            db.execute("PRAGMA max_page_count = 100000")
        assert import_names(house, given) == dict.fromkeys(("ada", "bob", "eve"), (200, 0))


def enroll_bell(gallery: Gallery, model: Model) -> Floats:
    """Enroll a bell and keep its audio; its print `[1, dim]`."""
    sound = chord((300.0, 2600.0), 0.4)
    print_: Floats = model.embed(sound, 16_000)[None]
    gallery.enroll("bell", print_, sources=["bell.wav"], voiced_s=0.4, audio=[to_flac(sound, 16_000)])
    return print_


def test_kept_audio_is_enrolled_again_with_another_model(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another", name="other"))
    with Gallery.open(path, model, create=True) as gallery:
        print_ = enroll_bell(gallery, model)
    with pytest.raises(GalleryError, match=r"another model .*gallery re-enroll .*other\.onnx"):
        Gallery.open(path, other)
    with Gallery.open(path) as gallery:
        assert re_enroll_prints(gallery, other) == {"bell": (1, 0)}
    with Gallery.open(path, other) as gallery:
        np.testing.assert_allclose(gallery.prints("bell")[0].embedding, print_[0], atol=1e-3)
        gallery.enroll("bell", random_prints(1), sources=["no audio"], voiced_s=0.1)
    with Gallery.open(path) as gallery, pytest.raises(GalleryError, match="audio of 1 of bell's 2 prints was not kept"):
        re_enroll_prints(gallery, model)


@pytest.mark.parametrize("what", ["hours", "channels", "text"])
def test_kept_audio_that_no_clip_gives_is_an_error(tmp_path: Path, model: Model, what: str) -> None:
    path = tmp_path / "gallery.db"
    with Gallery.open(path, model, create=True) as gallery:
        enroll_bell(gallery, model)
    samples = np.ones(3_700_000 if what == "hours" else (4000, 2), np.int16)
    soundfile.write(held := io.BytesIO(), samples, 1000, format="FLAC")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE audio SET flac = ?", (b"text" if what == "text" else held.getvalue(),))
    with Gallery.open(path) as gallery, pytest.raises(GalleryError, match="audio kept in it is damaged"):
        re_enroll_prints(gallery, model)


def test_open_galleries_reject_old_prints_after_a_re_enrollment(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another", name="other"))
    with Gallery.open(path, model, create=True) as gallery:
        enroll_bell(gallery, model)
        export_names(gallery, [], tmp_path / "bell.db")
    with (
        Gallery.open(path, model) as enrolling,
        Gallery.open(path, model) as listening,
        Gallery.open(path) as importing,
        Gallery.open(tmp_path / "bell.db") as given,
        Gallery.open(path) as gallery,
    ):
        gallery.rename("bell", "chime")
        re_enroll_prints(gallery, other)
        with pytest.raises(GalleryError, match="was enrolled with another model"):
            listening.match(random_prints(1)[0])
        for act in (
            lambda: enrolling.enroll("eve", random_prints(1), sources=["x"], voiced_s=1.0),
            lambda: listening.enroll("eve", random_prints(1), sources=["x"], voiced_s=1.0),
            lambda: import_names(importing, given),
            lambda: import_names(given, importing),
            lambda: export_names(importing, [], tmp_path / "chime.db"),
        ):
            with pytest.raises(GalleryError, match=r"gallery\.db: was bound to another model while it was open"):
                act()
        assert (gallery.names(), given.names()) == ({"chime": 1}, {"bell": 1})
        assert gallery.enroll("eve", random_prints(1), sources=["x"], voiced_s=1.0) == 1


def test_to_enroll_again_is_advised_only_where_all_audio_was_kept(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another", name="other"))
    with Gallery.open(path, model, create=True) as gallery:
        enroll_bell(gallery, model)
        gallery.enroll("bell", random_prints(1), sources=["no audio"], voiced_s=0.1)
    with pytest.raises(GalleryError) as refused:
        Gallery.open(path, other)
    assert str(refused.value).endswith("use that model, or another --gallery")


def test_voices_do_not_become_sounds_unasked(tmp_path: Path, model: Model) -> None:
    path, sound = tmp_path / "gallery.db", chord((300.0, 2600.0), 0.4)
    voices = {"embedding_id": "voices", "name": "voices", "calibration": {"enroll": {"kind": "speaker"}}}
    other = load(tiny_model.build(tmp_path / "voices.onnx", **voices))
    with Gallery.open(path, other, create=True) as gallery:
        gallery.enroll(
            "ada", other.embed(sound, 16_000)[None], sources=["a"], voiced_s=5.0, audio=[to_flac(sound, 16_000)]
        )
    with pytest.raises(GalleryError) as refused:
        Gallery.open(path, model)
    assert str(refused.value).endswith("use that model, or another --gallery")  # and not: make it one of sounds
    with Gallery.open(path) as gallery:
        with pytest.raises(UsageError, match="holds voices, but tiny is for sounds: use a model for voices"):
            re_enroll_prints(gallery, model)
        assert gallery.embedding_id == "voices"
        assert re_enroll_prints(gallery, model, "speaker") == {"ada": (1, 0)}
    with Gallery.open(path, model) as gallery:
        assert gallery.kind == "speaker"


def test_nothing_is_left_of_kept_audio(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "gallery.db"
    flac = to_flac(RNG.uniform(-0.5, 0.5, 8000).astype(np.float32), 16_000)
    with Gallery.open(path, model, create=True) as gallery:
        for name in ("stays", "goes", "stays too"):
            gallery.enroll(name, random_prints(20), sources=["x"] * 20, voiced_s=9.0, audio=[flac] * 20)
        gallery.rename("stays", "stayed")
        print_ = gallery.prints("goes")[3].embedding.tobytes()
        gallery.remove("goes")
        gallery.remove("stayed")
        gallery.remove("stays too")
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(flac[at : at + 16] in left for at in range(200, len(flac) - 16, 16))
    assert print_[:8] not in left
    assert b"goes" not in left


def test_two_galleries_are_imported_into_each_other_at_once(tmp_path: Path, model: Model) -> None:
    with (
        Gallery.open(tmp_path / "one.db", model, create=True) as one,
        Gallery.open(tmp_path / "two.db", model, create=True) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        for gallery, names in ((one, "abcdef"), (two, "uvwxyz")):
            for name in names:
                gallery.enroll(name, random_prints(1), sources=["x"], voiced_s=1.0)
        for work in [pool.submit(import_names, one, two), pool.submit(import_names, two, one)]:
            work.result(timeout=60)
        assert one.names() == two.names() == dict.fromkeys("abcdefuvwxyz", 1)
