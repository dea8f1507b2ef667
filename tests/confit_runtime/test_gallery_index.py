"""The index of a large gallery: made, found damaged, erased and made again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from confit_runtime import GalleryError, Model, load
from confit_runtime.enrollment import to_flac
from confit_runtime.gallery import Gallery
from confit_runtime.search import ExactSearch, IndexSearch, build_index
from confit_runtime.transfer import export_names, re_enroll_prints
from tests import tiny_model
from tests.at_once import at_once
from tests.tiny_model import Floats, chord

DIM = len(tiny_model.BANDS)
RNG = np.random.default_rng(5)


def random_prints(count: int) -> Floats:
    rows = RNG.standard_normal((count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# the index


def test_an_index_finds_what_exact_search_finds_and_is_erased_with_a_name(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, prints = tmp_path / "gallery.db", random_prints(3000)
    with Gallery.open(path, model, create=True) as gallery:
        for name, rows in zip([f"name{at}" for at in range(100)], np.split(prints, 100), strict=True):
            gallery.enroll(name, rows, sources=["x"] * len(rows), voiced_s=1.0)
        exact = gallery.matcher
        told: list[tuple[int, int]] = []
        assert gallery.build_index(lambda done, total: told.append((done, total))) == 3000
        assert told[-1] == (3000, 3000)
        assert gallery.index_path.stat().st_mode & 0o777 == 0o600
        later = random_prints(1)
        gallery.enroll("late", later, sources=["x"], voiced_s=1.0)
        queries = random_prints(50)
        agreed = [gallery.match(query).nearest == exact.match(query).nearest for query in queries]
        assert np.mean(agreed) > 0.9
        assert gallery.match(later[0]).nearest == "late"  # enrolled after the index was made
        killed = gallery.index_path.with_name(f".{gallery.index_path.name}.0123abcd.partial")
        killed.mkdir()
        shutil.copy(gallery.index_path, killed)
        gallery.remove("name7")
        assert not gallery.index_path.exists()
        assert not killed.exists()
    path.chmod(0o644)
    with Gallery.open(path, model) as gallery, Gallery.open(tmp_path / "other.db", model, create=True) as other:
        gallery.build_index()
        assert gallery.index_path.stat().st_mode & 0o777 == 0o644  # who may read the one reads the other
        other.enroll("ada", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        shutil.copy(gallery.index_path, other.index_path)
        with Gallery.open(other.path, model) as another:
            assert another.match(random_prints(1)[0]).nearest == "ada"  # without it
        assert "other.db.index: is not this gallery's current index" in caplog.text
        assert "comparing with every print instead" in caplog.text


@pytest.mark.parametrize("how", ["made", "exported", "empty"])
def test_an_index_of_a_gallery_that_is_gone_is_erased_by_the_next(tmp_path: Path, model: Model, how: str) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, other, prints = tmp_path / "gallery.db", tmp_path / "other.db", random_prints(30)
    with Gallery.open(path, model, create=True) as gallery, Gallery.open(other, model, create=True) as carried:
        gallery.enroll("ada", prints, sources=["x"] * 30, voiced_s=1.0)
        gallery.build_index()
        carried.enroll("bob", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        listening = Gallery.open(path, model)
        matcher, index = listening.matcher, gallery.index_path.read_bytes()
        path.unlink()
        if how == "exported":
            export_names(carried, [], path)
        else:
            made = Gallery.open(path, model, create=True)
            assert not gallery.index_path.exists()
            if how == "empty":
                gallery.index_path.write_bytes(index)
                with Gallery.open(path, model) as looking:
                    assert looking.match(prints[0]).reason == "nobody"
                assert gallery.index_path.read_bytes() == index  # who only looks erases nothing
            made.enroll("bob", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        assert not gallery.index_path.exists()
        assert all(matcher.match(print_).nearest == "ada" for print_ in prints)  # who listens has its own
        assert listening.matcher.names == ("bob",)
        assert Gallery.open(path, model).matcher.names == ("bob",)


@pytest.mark.parametrize("how", ["symbolic", "hard", "folder"])
def test_the_target_of_a_link_at_the_index_path_is_kept(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path, others = tmp_path / "gallery.db", tmp_path / "others"
    others.mkdir()
    victim, index = others / "gallery.db.index", tmp_path / "gallery.db.index"
    victim.write_text("not an index")
    for _ in range(2):  # of a gallery that is made, and of one that somebody is removed from
        if how == "symbolic":
            index.symlink_to(victim)
        elif how == "hard":
            index.hardlink_to(victim)
        else:
            index = tmp_path / ".gallery.db.index.0123abcd.partial"
            index.symlink_to(others)
        if path.exists():
            with Gallery.open(path) as gallery:
                gallery.remove("ada")
        else:
            with Gallery.open(path, model, create=True) as gallery:
                gallery.enroll("ada", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        assert victim.read_text() == "not an index"
        assert how == "folder" or not index.exists()
        told = {"symbolic": str(victim), "hard": f"-inum {victim.stat().st_ino}"}
        assert how == "folder" or [told[how] in line for line in caplog.messages] == [True], caplog.messages
        assert caplog.text.count("may contain prints of the removed name: remove it by hand") == len(caplog.messages)
        caplog.clear()
        index.unlink(missing_ok=True)


def test_enrolled_again_it_matches_at_once_and_without_its_old_index(tmp_path: Path, model: Model) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, sound = tmp_path / "gallery.db", chord((300.0, 2600.0), 0.4)
    other = load(tiny_model.build(tmp_path / "other.onnx", embedding_id="another", name="other"))
    print_, audio = model.embed(sound, 16_000)[None], [to_flac(sound, 16_000)]
    with Gallery.open(path, model, create=True) as gallery:
        gallery.enroll("bell", print_, sources=["bell.wav"], voiced_s=0.4, audio=audio)
        before = gallery.matcher
        gallery.build_index()
        assert gallery.matcher is not before  # it searches with the index now
    with Gallery.open(path) as gallery:
        assert re_enroll_prints(gallery, other) == {"bell": (1, 0)}
        assert not gallery.index_path.exists()
        assert gallery.match(print_[0]).nearest == "bell"


def test_an_index_that_cannot_be_written_or_erased_is_one_error(tmp_path: Path, model: Model) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    with Gallery.open(tmp_path / "gallery.db", model, create=True) as gallery:
        gallery.enroll("ada", random_prints(3), sources=["x"] * 3, voiced_s=1.0)
        gallery.index_path.mkdir()  # permissions do not bind root
        with pytest.raises(GalleryError, match=r"gallery\.db\.index: the index cannot be written"):
            gallery.build_index()
        with pytest.raises(GalleryError, match=r"gallery\.db\.index: the index cannot be erased"):
            gallery.remove("ada")
        assert gallery.names() == {"ada": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery.db", "gallery.db.index"]


def test_an_index_that_two_processes_make_at_once_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    begin = f"""
import numpy as np
from confit_runtime.search import build_index
prints = np.eye({DIM}, dtype=np.float32)
"""
    path, ids, prints = tmp_path / "small.index", np.arange(DIM), np.eye(DIM, dtype=np.float32)
    at_once(begin, f"build_index(path, np.arange({DIM}), prints)", path)
    digest = sha256(path.read_bytes()).hexdigest()
    assert IndexSearch(path, ids, prints, digest).nearest(prints[2], 1).tolist() == [2]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("what", ["replaced", "gone", "removed", "enrolled"])
def test_an_index_belongs_to_the_prints_of_its_gallery(tmp_path: Path, model: Model, what: str, when: str) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    folder, other = tmp_path / "house", tmp_path / "other.db"
    folder.mkdir()
    path = folder / "gallery.db"
    for file, names in ((path, ["ada", "bob"]), (other, ["eve"])):
        with Gallery.open(file, model, create=True) as gallery:
            for name in names:
                gallery.enroll(name, random_prints(3), sources=["x"] * 3, voiced_s=5.0)

    def change(*_: int) -> None:
        if what == "replaced":
            other.replace(path)
        elif what == "gone":
            shutil.rmtree(folder)
        else:
            with Gallery.open(path) as changed:
                if what == "removed":
                    changed.remove("bob")
                changed.enroll("carl", random_prints(3), sources=["x"] * 3, voiced_s=5.0)

    with Gallery.open(path) as gallery:
        if when == "before":
            change()
        progress = change if when == "meanwhile" else None
        if what == "enrolled" or (what, when) == ("removed", "before"):
            assert gallery.build_index(progress) == (9 if (what, when) == ("enrolled", "before") else 6)
            assert Gallery.open(path, model).matcher.names[-1] == "carl"
        else:
            message = "a name was removed" if what == "removed" else "was replaced or removed|the index cannot be"
            with pytest.raises(GalleryError, match=message):
                gallery.build_index(progress)
            assert not gallery.index_path.exists()


def test_matching_survives_an_erased_index(tmp_path: Path, model: Model) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, prints = tmp_path / "gallery.db", random_prints(300)
    with Gallery.open(path, model, create=True) as gallery:
        for at in range(100):
            gallery.enroll(f"name{at}", prints[3 * at : 3 * at + 3], sources=["x"] * 3, voiced_s=1.0)
        exact = [gallery.match(print_).nearest for print_ in prints]
        gallery.build_index()
        with Gallery.open(path, model) as listening:
            matcher = listening.matcher
            agreed = [matcher.match(print_).nearest == name for print_, name in zip(prints, exact, strict=True)]
            assert np.mean(agreed) > 0.9
            gallery.remove("name99")
            assert [matcher.match(print_).nearest for print_ in prints] == exact


def test_matching_survives_an_index_restored_in_place(tmp_path: Path, model: Model) -> None:
    """In a process of its own: one that reads what is cut short is killed."""
    pytest.importorskip("usearch", reason="the index extra is not installed")
    script = """
import sys
from pathlib import Path
import numpy as np
from confit_runtime.search import IndexSearch, build_index

path, prints = Path(sys.argv[1]), np.load(sys.argv[2])
digest = build_index(path, np.arange(len(prints)), prints)
search, whole = IndexSearch(path, np.arange(len(prints)), prints, digest), path.read_bytes()
for length in (0, 40, len(whole) // 2):
    path.write_bytes(whole[:length])
    print([int(search.nearest(print_, 1)[0]) for print_ in prints] == list(range(len(prints))))
"""
    np.save(tmp_path / "prints.npy", random_prints(500))
    command = [sys.executable, "-c", script, tmp_path / "many.index", tmp_path / "prints.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 3), done.stderr


def test_a_truncated_index_is_not_used(tmp_path: Path) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    path, prints = tmp_path / "many.index", random_prints(500)
    digest = build_index(path, np.arange(500), prints)
    whole = path.read_bytes()
    for length in (0, 40, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        for said in (digest, sha256(whole[:length]).hexdigest()):  # of a file that says it is whole
            with pytest.raises(GalleryError, match=r"many\.index: is not this gallery's current index"):
                IndexSearch(path, np.arange(500), prints, said)


def test_a_damaged_index_is_not_read(tmp_path: Path) -> None:
    """In a process of its own: what is wrong in one took it down."""
    pytest.importorskip("usearch", reason="the index extra is not installed")
    script = """
import sys
from pathlib import Path
import numpy as np
from confit_runtime import Gallery, load

path, model = Path(sys.argv[1]), load(sys.argv[2])
with Gallery.open(path, model, create=True) as gallery:
    prints = np.eye(gallery.dim, dtype=np.float32)
    gallery.enroll("ada", prints, sources=["x"] * len(prints), voiced_s=9.0)
    gallery.build_index()
    whole = gallery.index_path.read_bytes()
    for at in range(len(whole)):
        gallery.index_path.write_bytes(whole[:at] + bytes([255 - whole[at]]) + whole[at + 1 :])
        with Gallery.open(path, model) as opened:
            assert opened.match(prints[2]).nearest == "ada"
print("done")
"""
    tiny = tiny_model.build(tmp_path / "tiny.onnx")
    command = [sys.executable, "-c", script, tmp_path / "gallery.db", tiny]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


def test_an_index_of_8_bits_ranks_as_all_bits_do(tmp_path: Path) -> None:
    pytest.importorskip("usearch", reason="the index extra is not installed")
    # a cloud so dense that the nearest differ by less than 8 bits tell
    prints = random_prints(1)[0] + 0.05 * RNG.standard_normal((12_000, DIM)).astype(np.float32)
    prints /= np.linalg.norm(prints, axis=1, keepdims=True)
    ids = RNG.permutation(len(prints)) + 7
    path = tmp_path / "dense.index"
    digest = build_index(path, ids[:11_990], prints[:11_990])
    search, exact = IndexSearch(path, ids, prints, digest), ExactSearch(prints)
    found = [(search.nearest(query, 16).tolist(), exact.nearest(query, 16).tolist()) for query in prints[-20:]]
    assert all(len(rows) == len(set(rows)) == 16 for rows, _ in found)
    assert np.mean([len(set(rows) & set(true)) / 16 for rows, true in found]) > 0.97
