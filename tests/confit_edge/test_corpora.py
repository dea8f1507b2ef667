"""Corpora by name, each on a small tree of the published shape, with real sound in the published coding."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.data.check import check
from confit_edge.data.clips import ClipStore
from confit_edge.data.corpora import CORPORA, Fetched, fetch
from confit_edge.data.corpora.base import Wanted
from confit_edge.data.corpora.sounds import ESC50
from confit_edge.data.manifest import Manifest, read_manifest, write_manifest
from confit_edge.data.splits import groups_across_splits, missing_classes
from confit_edge.recipe import Recipe
from confit_runtime.errors import ConfitError, UsageError

RATE = 16_000


def sound(
    path: Path, *, container: str = "WAV", subtype: str = "PCM_16", rate: int = RATE, seconds: float = 0.1
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = np.frombuffer(str(path).encode(), np.uint8)
    pcm = np.random.default_rng(seed).uniform(-0.3, 0.3, int(seconds * rate))
    soundfile.write(path, pcm, rate, format=container, subtype=subtype)


def table(path: Path, columns: list[str], rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


# trees of the true shape

SPEAKERS = {
    "TRAIN/DR1/FCJF0": 37,
    "TRAIN/DR8/MBCG0": 57,
    "TEST/DR4/MDAB0": 49,
    "TRAIN/DR1/MDAC0": 91,
    "TRAIN/DR3/MSFV0": 92,
    "TRAIN/DR5/MABC0": 3,
}  # and the first of its SX sentences


def timit(root: Path) -> None:
    for speaker, first in SPEAKERS.items():
        unique = [f"SI{number + first}" for number in (1000, 1630, 500)]
        for sentence in ["SA1", "SA2", *unique, *(f"SX{first + 90 * block}" for block in range(5))]:
            sound(root / "TIMIT" / speaker / f"{sentence}.WAV", container="NIST")
            (root / "TIMIT" / speaker / f"{sentence}.TXT").write_text("0 1600 Words.")


def gtzan(root: Path) -> None:
    listed = Path(__file__).parents[2] / "confit_edge" / "data" / "corpora" / "gtzan_filtered.csv"
    with listed.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for number in row["recordings"].split()[:2]:
                path = root / "Data" / "genres_original" / row["genre"] / f"{row['genre']}.{int(number):05d}.wav"
                sound(path, rate=22_050)


def esc50(root: Path) -> None:
    rows: list[list[object]] = []
    for fold in range(1, 6):
        for target, category in enumerate(("dog", "rain")):
            for take in "AB":
                source = 100 * fold + target
                rows.append([f"{fold}-{source}-{take}-{target}.wav", fold, target, category, "True", source, take])
                sound(root / "ESC-50-master" / "audio" / str(rows[-1][0]), rate=44_100)
    columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    table(root / "ESC-50-master" / "meta" / "esc50.csv", columns, rows)


def mswc(root: Path) -> None:
    rows: list[list[object]] = []
    for split, speakers in (("TRAIN", "abc"), ("DEV", "de"), ("TEST", "fg")):
        for word in ("casa", "perro"):
            for speaker in speakers:
                link = f"{word}/common_voice_es_{len(rows)}.opus"
                rows.append([split, link, word, speaker != "c", speaker * 64, "OTHER"])
                sound(root / "es" / "clips" / link, container="OGG", subtype="OPUS", rate=48_000, seconds=1)
    table(root / "es" / "es_splits.csv", ["SET", "LINK", "WORD", "VALID", "SPEAKER", "GENDER"], rows)


def emodb(root: Path) -> None:
    for speaker in ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16"):
        for text in ("a01", "b10"):
            for emotion in "WLEAFTN":
                if (speaker, emotion) != ("08", "E"):  # as in the real one
                    sound(root / "wav" / f"{speaker}{text}{emotion}b.wav")


def speech_commands(root: Path) -> None:
    words = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "bed", "cat", "marvin"]
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word in words:
        for number, speaker in enumerate(("0a7c2a8d", "1b4c9b89", "b2ae3928", "f035e2ea")):
            name = f"{word}/{speaker}_nohash_0.wav"
            sound(root / name, seconds=0.2)
            if number > 1:
                lists[list(lists)[number - 2]].append(name)
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    for noise in ("doing_the_dishes", "dude_miaowing", "exercise_bike", "pink_noise", "running_tap", "white_noise"):
        sound(root / "_background_noise_" / f"{noise}.wav", seconds=3)
    (root / "_background_noise_" / "README.md").write_text("noise")


def voxceleb1(root: Path) -> None:
    lines = []
    for speaker in ("id10001", "id10270"):
        for video, split in (("1zcIwhmdeo4", 1), ("7gWzIy6yIIk", 1), ("J9lHsKG98U8", 2), ("x6uYqmx31kE", 3)):
            for clip in (1, 2):
                name = f"{speaker}/{video}/{clip:05d}.wav"
                sound(root / "wav" / name)
                lines.append(f"{split} {name}")
    (root / "iden_split.txt").write_text("\n".join(lines) + "\n")


def ravdess(root: Path) -> None:
    for actor in range(1, 25):
        for emotion in range(1, 9):
            name = f"03-01-{emotion:02d}-01-01-01-{actor:02d}.wav"
            sound(root / "Audio_Speech_Actors_01-24" / f"Actor_{actor:02d}" / name, rate=48_000)
        song = f"03-02-01-01-01-01-{actor:02d}.wav"
        sound(root / "Audio_Speech_Actors_01-24" / f"Actor_{actor:02d}" / song, rate=48_000)


def urbansound8k(root: Path) -> None:
    rows: list[list[object]] = []
    for fold in range(1, 11):
        for number, label in enumerate(("siren", "dog_bark")):
            for part in (0, 1):
                source = 100_000 + 10 * fold + number
                name = f"{source}-{number}-0-{part}.wav"
                rows.append([name, source, 0.0, 4.0, 1, fold, number, label])
                sound(root / "UrbanSound8K" / "audio" / f"fold{fold}" / name, rate=44_100)
    columns = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    table(root / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv", columns, rows)


TREES: dict[str, Callable[[Path], None]] = {
    "timit": timit,
    "gtzan": gtzan,
    "esc50": esc50,
    "mswc": mswc,
    "emodb": emodb,
    "speech-commands-12": speech_commands,
    "speech-commands-35": speech_commands,
    "voxceleb1": voxceleb1,
    "ravdess": ravdess,
    "urbansound8k": urbansound8k,
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tree, made once; not to be changed."""
    folder = tmp_path_factory.mktemp("corpora")
    for name in CORPORA:
        TREES[name](folder / name)
    return folder


def fetch_corpus(name: str, root: Path, out: Path, **options: object) -> Fetched:
    return fetch(CORPORA[name], root, out / f"{name}.csv", partial=True, **options)  # type: ignore[arg-type]


def sizes(manifest: Manifest) -> dict[str, int]:
    return {split: len(manifest.select(split)) for split in ("train", "val", "test")}


# every corpus


@pytest.mark.parametrize("name", list(CORPORA))
def test_a_corpus_becomes_a_manifest_that_can_be_trained_on(name: str, trees: Path, tmp_path: Path) -> None:
    fetched = fetch_corpus(name, trees / name, tmp_path)
    write_manifest(fetched.manifest, tmp_path / f"{name}.csv")
    manifest = read_manifest(tmp_path / f"{name}.csv")
    assert manifest.fingerprint() == fetched.manifest.fingerprint()
    assert groups_across_splits(manifest) == {}
    assert missing_classes(manifest) == {"train": [], "val": [], "test": []}
    report = check(manifest, ClipStore(RATE, tmp_path / "cache"))
    assert report.problems == []
    assert report.leaks is False


@pytest.mark.parametrize("name", [name for name, corpus in CORPORA.items() if corpus.folds])
def test_each_clip_is_tested_in_one_fold_and_validates_in_another(name: str, trees: Path, tmp_path: Path) -> None:
    tested: Counter[Path] = Counter()
    validating: Counter[Path] = Counter()
    for fold in range(1, CORPORA[name].folds + 1):
        manifest = fetch_corpus(name, trees / name, tmp_path, fold=fold).manifest
        tested.update(clip.path for clip in manifest.select("test").clips)
        validating.update(clip.path for clip in manifest.select("val").clips)
        assert len(manifest.select("train")) > len(manifest.select("test"))
    everything = {clip.path for clip in manifest.clips}
    assert tested == validating == dict.fromkeys(everything, 1)
    with pytest.raises(UsageError, match=f"has folds 1 to {CORPORA[name].folds}"):
        fetch_corpus(name, trees / name, tmp_path, fold=CORPORA[name].folds + 1)


@pytest.mark.parametrize("name", list(CORPORA))
def test_another_folder_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UsageError) as error:
        fetch_corpus(name, tmp_path, tmp_path)
    assert CORPORA[name].home in str(error.value)
    assert CORPORA[name].layout in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="no such folder"):
        fetch_corpus(name, tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize("name", [name for name, corpus in CORPORA.items() if not corpus.folds])
def test_a_corpus_without_folds_reports_it(name: str, trees: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one split and no folds"):
        fetch_corpus(name, trees / name, tmp_path, fold=1)


def test_a_tree_is_found_two_folders_down_and_no_further(tmp_path: Path) -> None:
    esc50(tmp_path / "one")
    assert fetch_corpus("esc50", tmp_path, tmp_path).tree == tmp_path / "one" / "ESC-50-master"
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "two").rename(tmp_path / "deep" / "er" / "one")
    with pytest.raises(UsageError, match="up to 2 folders below"):
        fetch_corpus("esc50", tmp_path, tmp_path)


def test_counts_are_held_against_the_published_ones(tmp_path: Path) -> None:
    esc50(tmp_path)
    complete = replace(ESC50, clips=20, classes=2)
    assert fetch(complete, tmp_path, tmp_path / "m.csv").warnings == []
    with pytest.raises(
        ConfitError, match=r"20 clips, fewer than the 2000 published; 2 classes, fewer than the 50 .*--partial"
    ):
        fetch(ESC50, tmp_path, tmp_path / "m.csv")
    assert len(fetch(ESC50, tmp_path, tmp_path / "m.csv", partial=True).warnings) == 2
    more = fetch(replace(complete, clips=19), tmp_path, tmp_path / "m.csv")
    assert more.warnings == ["20 clips, more than the 19 published"]

    (tmp_path / "ESC-50-master" / "audio" / "3-300-A-0.wav").unlink()
    with pytest.raises(ConfitError, match=r"19 clips, fewer .*1 listed clip is missing, such as .*3-300-A-0\.wav"):
        fetch(complete, tmp_path, tmp_path / "m.csv")
    assert len(fetch(complete, tmp_path, tmp_path / "m.csv", partial=True).manifest) == 19
    for path in (tmp_path / "ESC-50-master" / "audio").iterdir():
        path.unlink()
    with pytest.raises(ConfitError, match="none of the clips of esc50 exists"):
        fetch(complete, tmp_path, tmp_path / "m.csv", partial=True)


@pytest.mark.parametrize("name", list(CORPORA))
def test_hidden_twins_of_an_archive_made_on_macos_are_no_clips(name: str, trees: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(trees / name, tmp_path / "tree")
    complete = fetch_corpus(name, tree, tmp_path)
    for path in [path for path in tree.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert fetch_corpus(name, tree, tmp_path) == complete


def test_sound_that_cannot_be_read_is_reported_at_once(tmp_path: Path) -> None:
    timit(tmp_path)
    for path in tmp_path.rglob("*.WAV"):
        path.write_bytes(path.read_bytes().replace(b"pcm", b"xyz"))
    with pytest.raises(ConfitError, match="cannot be read as sound"):
        fetch_corpus("timit", tmp_path, tmp_path)


def test_the_largest_classes_are_kept(trees: Path, tmp_path: Path) -> None:
    emotions = fetch_corpus("emodb", trees / "emodb", tmp_path, top=6).manifest.classes
    assert len(emotions) == 6
    assert "disgust" not in emotions  # the smallest


@pytest.mark.parametrize("name", ["timit", "gtzan", "esc50", "mswc", "emodb"])
def test_each_corpus_of_the_paper_has_a_recipe(name: str) -> None:
    path = Path(__file__).parents[2] / "models" / f"{name}.yaml"
    recipe = Recipe.from_file(Path(name))
    assert recipe == Recipe.from_file(path)
    assert recipe.objective == "pairtune"
    assert f"data fetch {name} " in path.read_text()
    assert recipe.classes_per_batch <= (CORPORA[name].classes or 100)


# one by one


def test_timit_distinguishes_speakers_by_sentences_not_heard_in_training(trees: Path, tmp_path: Path) -> None:
    manifest = fetch_corpus("timit", trees / "timit", tmp_path).manifest
    assert sizes(manifest) == {"train": 36, "val": 12, "test": 12}
    assert manifest.classes == ["FCJF0", "MABC0", "MBCG0", "MDAB0", "MDAC0", "MSFV0"]
    for split, clips in (("train", 6), ("val", 2), ("test", 2)):
        assert set(Counter(clip.label for clip in manifest.select(split).clips).values()) == {clips}
    sentences = {split: {clip.group for clip in manifest.select(split).clips} for split in ("train", "val", "test")}
    assert sentences["val"] == {"SA1", "SX307", "SX327", "SX319", "SX361", "SX362", "SX273"}
    assert sentences["test"] == {"SA2", "SX397", "SX417", "SX409", "SX451", "SX452", "SX363"}
    assert all(soundfile.info(clip.path).format == "NIST" for clip in manifest.clips)


def test_timit_names_in_lower_case_and_next_to_riff_copies(tmp_path: Path) -> None:
    timit(tmp_path)
    for path in sorted(tmp_path.rglob("*.WAV")):
        sound(path.with_name(f"{path.name}.wav"))  # as one copy that goes round has it
    assert sizes(fetch_corpus("timit", tmp_path, tmp_path).manifest) == {"train": 36, "val": 12, "test": 12}
    for path in sorted(tmp_path.glob("TIMIT/*/*/*/*"), reverse=True):
        path.rename(path.with_name(path.name.lower()))
    for split in ("TRAIN", "TEST"):
        (tmp_path / "TIMIT" / split).rename(tmp_path / "TIMIT" / split.lower())
    assert sizes(fetch_corpus("timit", tmp_path, tmp_path).manifest) == {"train": 36, "val": 12, "test": 12}
    first = min(tmp_path.rglob("sa1.wav"))
    first.rename(first.with_name("zz9.wav"))
    with pytest.raises(ConfitError, match=r"zz9\.wav: is not named like a TIMIT"):
        fetch_corpus("timit", tmp_path, tmp_path)


@pytest.mark.skipif(find_spec("torchaudio") is None, reason="the list is compared to torchaudio's")
def test_the_split_of_gtzan_is_the_one_in_use(trees: Path, tmp_path: Path) -> None:
    from confit_edge.torchaudio_pure import skip_native_library

    skip_native_library()
    from torchaudio.datasets import gtzan as theirs

    listed = CORPORA["gtzan"].rows(trees, Wanted(1, tmp_path))
    ours: dict[str | None, set[str]] = {}
    for clip in listed:
        ours.setdefault(clip.split, set()).add(clip.path.stem)
    assert ours == {
        "train": set(theirs.filtered_train),
        "val": set(theirs.filtered_valid),
        "test": set(theirs.filtered_test),
    }


def test_gtzan_as_au_files(tmp_path: Path) -> None:
    gtzan(tmp_path)
    for path in sorted(tmp_path.rglob("*.wav")):
        pcm, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".au"), pcm, rate)
        path.unlink()
    assert sizes(fetch_corpus("gtzan", tmp_path, tmp_path).manifest) == {"train": 20, "val": 20, "test": 20}


def test_the_broken_recording_of_gtzan_on_kaggle_is_reported(trees: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(trees / "gtzan", tmp_path / "gtzan")
    path = tree / "Data" / "genres_original" / "jazz" / "jazz.00054.wav"
    sound(path, rate=22_050)
    complete = fetch_corpus("gtzan", tree, tmp_path)
    assert not any("jazz" in warning for warning in complete.warnings)
    path.write_bytes(b"\0" * 1000)
    broken = fetch_corpus("gtzan", tree, tmp_path)
    assert broken.manifest == complete.manifest
    (new_warning,) = set(broken.warnings) - set(complete.warnings)
    assert new_warning.startswith(
        f"{path} cannot be read, as in a widespread copy of gtzan: replace it by the file of another"
    )


def test_urbansound_as_it_lies_on_kaggle(trees: Path, tmp_path: Path) -> None:
    complete = fetch_corpus("urbansound8k", trees / "urbansound8k", tmp_path).manifest
    tree = shutil.copytree(trees / "urbansound8k" / "UrbanSound8K" / "audio", tmp_path / "archive")
    shutil.copy(trees / "urbansound8k" / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv", tree)
    fetched = fetch_corpus("urbansound8k", tmp_path, tmp_path)
    assert fetched.tree == tree
    assert fetched.manifest.fingerprint() == complete.fingerprint()


def test_mswc_words_of_one_recording_are_one_group(trees: Path, tmp_path: Path) -> None:
    """Of a speaker who is not told, LINK names the recording: under each of the words that were cut from it."""
    tree = shutil.copytree(trees / "mswc", tmp_path / "mswc")
    (listing,) = tree.rglob("*_splits.csv")
    rows = [line.split(",") for line in listing.read_text().splitlines()]
    at = rows[0].index("SPEAKER")
    listing.write_text(
        "\n".join(",".join([*row[:at], "NA" if line else row[at], *row[at + 1 :]]) for line, row in enumerate(rows))
    )
    clips = fetch_corpus("mswc", tree, tmp_path).manifest.clips
    assert {clip.group for clip in clips} == {clip.path.name for clip in clips}


def test_mswc_with_its_splits_in_an_archive_of_their_own(trees: Path, tmp_path: Path) -> None:
    complete = fetch_corpus("mswc", trees / "mswc", tmp_path).manifest
    tree = tmp_path / "mswc"
    shutil.copytree(trees / "mswc" / "es" / "clips", tree / "audio" / "es" / "clips")
    for language in ("es", "de"):  # of all languages, where only one has its sound
        (tree / "splits" / language).mkdir(parents=True)
        shutil.copy(trees / "mswc" / "es" / "es_splits.csv", tree / "splits" / language / f"{language}_splits.csv")
    fetched = fetch_corpus("mswc", tree, tmp_path)
    assert fetched.tree == tree
    assert fetched.manifest.fingerprint() == complete.fingerprint()
    clips = shutil.copytree(tree / "audio" / "es", tree / "audio" / "de") / "clips"
    with pytest.raises(ConfitError, match=r"expected one language .*, found de, es; put"):
        fetch_corpus("mswc", tree, tmp_path)
    shutil.copy(tree / "splits" / "de" / "de_splits.csv", tree / "audio" / "de")
    german = fetch_corpus("mswc", tree / "audio" / "de", tmp_path).manifest
    assert all(clip.path.is_relative_to(clips) for clip in german.clips)


def test_mswc_leaves_out_what_is_not_valid(trees: Path, tmp_path: Path) -> None:
    manifest = fetch_corpus("mswc", trees / "mswc", tmp_path).manifest
    assert sizes(manifest) == {"train": 4, "val": 4, "test": 4}
    assert {clip.group[0] for clip in manifest.select("train").clips} == {"a", "b"}


def test_emodb_and_ravdess_read_their_codes(trees: Path, tmp_path: Path) -> None:
    emodb = fetch_corpus("emodb", trees / "emodb", tmp_path).manifest
    assert {clip.label for clip in emodb.clips if clip.path.stem == "03a01Fb"} == {"happiness"}
    assert {clip.group for clip in emodb.select("test").clips} == {"03", "08"}
    ravdess = fetch_corpus("ravdess", trees / "ravdess", tmp_path, fold=4).manifest
    assert {clip.label for clip in ravdess.clips if "-01-06-" in clip.path.stem} == {"fearful"}
    assert {clip.group for clip in ravdess.select("test").clips} == {"08", "17", "21", "23", "24"}
    assert len(ravdess) == 24 * 8  # and no song


def test_names_that_are_not_the_corpuss_are_reported(tmp_path: Path) -> None:
    for make, name, stray in [
        (emodb, "emodb", tmp_path / "emodb" / "wav" / "04a01Fb.wav"),
        (
            ravdess,
            "ravdess",
            tmp_path / "ravdess" / "Audio_Speech_Actors_01-24" / "Actor_01" / "03-01-09-01-01-01-01.wav",
        ),
    ]:
        make(tmp_path / name)
        sound(stray)
        with pytest.raises(ConfitError, match=stray.name):
            fetch_corpus(name, tmp_path / name, tmp_path)


def test_twelve_commands_hold_unknown_words_and_silence(trees: Path, tmp_path: Path) -> None:
    first, again = (fetch_corpus("speech-commands-12", trees / "speech-commands-12", tmp_path / name) for name in "ab")
    labels = {
        split: Counter(clip.label for clip in first.manifest.select(split).clips) for split in ("train", "val", "test")
    }
    assert len(labels["train"]) == 12
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        assert set(labels[split].values()) == {count}
    unknown = [clip for clip in first.manifest.clips if clip.label == "unknown"]
    assert {clip.path.parent.name for clip in unknown} <= {"bed", "cat", "marvin"}
    silence = [clip for clip in first.manifest.clips if clip.label == "silence"]
    assert all(soundfile.info(clip.path).frames == RATE for clip in silence)
    assert {clip.group for clip in silence if clip.split == "test"} == {"running_tap"}
    assert first.manifest.fingerprint() == again.manifest.fingerprint()
    assert len(fetch_corpus("speech-commands-35", trees / "speech-commands-35", tmp_path).manifest) == 13 * 4


@pytest.mark.parametrize("name", ["speech-commands-12", "speech-commands-35"])
def test_spoken_commands_of_which_some_are_gone_are_refused(name: str, trees: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(trees / name, tmp_path / "tree")
    (tree / "yes" / "f035e2ea_nohash_0.wav").unlink()
    shutil.rmtree(tree / "marvin")
    says = (
        r"speech-commands-35: 47 clips, fewer than the 105829 published; 12 classes, fewer than the 35 .*"
        r"3 listed clips are missing, such as .*/marvin/b2ae3928_nohash_0\.wav \(--partial"
    )
    with pytest.raises(ConfitError, match=says):
        fetch(CORPORA[name], tree, tmp_path / "m.csv")
    assert not (tmp_path / "m").exists()
    fetched = fetch_corpus(name, tree, tmp_path)
    assert any("3 listed clips are missing" in warning for warning in fetched.warnings)
    assert all(clip.path.is_file() for clip in fetched.manifest.clips)
    assert missing_classes(fetched.manifest)["test"] == ["yes"]


def test_voxceleb_keeps_videos_in_one_split(trees: Path, tmp_path: Path) -> None:
    manifest = fetch_corpus("voxceleb1", trees / "voxceleb1", tmp_path).manifest
    assert sizes(manifest) == {"train": 8, "val": 4, "test": 4}
    assert all(clip.group == "/".join(clip.path.parts[-3:-1]) for clip in manifest.clips)

    voxceleb1(tmp_path / "torn")
    listing = tmp_path / "torn" / "iden_split.txt"
    listing.write_text(listing.read_text().replace("1 id10001/7gWzIy6yIIk/00001", "3 id10001/7gWzIy6yIIk/00001"))
    fetched = fetch_corpus("voxceleb1", tmp_path / "torn", tmp_path)
    assert sizes(fetched.manifest) == {"train": 6, "val": 4, "test": 5}
    assert "1 clip is left out of train and val, because test has clips of the same group" in fetched.warnings
    listing.write_text("one id10001/7gWzIy6yIIk/00001.wav\n")
    with pytest.raises(ConfitError, match=r"iden_split\.txt, line 1: expected"):
        fetch_corpus("voxceleb1", tmp_path / "torn", tmp_path)


def test_tables_that_lack_a_column_are_reported(tmp_path: Path) -> None:
    esc50(tmp_path / "esc50")
    path = tmp_path / "esc50" / "ESC-50-master" / "meta" / "esc50.csv"
    text = path.read_text()
    path.write_text(text.replace("src_file", "source"))
    with pytest.raises(ConfitError, match=r"esc50\.csv: there is no column 'src_file' \(columns: filename"):
        fetch_corpus("esc50", tmp_path, tmp_path)
    path.write_text(text.replace(",3,", ",three,"))
    with pytest.raises(ConfitError, match=r"esc50\.csv, line 10: fold 'three'"):
        fetch_corpus("esc50", tmp_path, tmp_path)
    mswc(tmp_path / "mswc")
    listing = tmp_path / "mswc" / "es" / "es_splits.csv"
    text = listing.read_text()
    for old, new, says in [("SPEAKER", "WHO", "no column 'SPEAKER'"), ("DEV", "EVAL", "SET 'EVAL' is not TRAIN")]:
        listing.write_text(text.replace(old, new))
        with pytest.raises(ConfitError, match=says):
            fetch_corpus("mswc", tmp_path / "mswc", tmp_path)
