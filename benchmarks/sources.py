"""The source of each task's clips: labels and groups from the file names and listings of the packages."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import string
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from confit_edge.data.augment import crop, noise_gain
from confit_runtime.audio import Pcm, load_clip

RATE = 16_000
WINDOW_S = 1.28
SNIPPET_S, EVERY_S = 1.3, 2  # for pieces of music
ASTERISK = {"en": "en_US_f_Allison", "es": "es_MX_f_Allison", "fr": "fr_CA_f_June", "it": "it_IT_m_Carlo",
            "ru": "ru_RU_f_IvrvoiceRU"}  # fmt: skip
DEMO = Path(__file__).parents[1] / "confit_edge" / "demo" / "data" / "words"


@dataclass(frozen=True)
class Sound:
    """A clip, its label, the group whose clips must stay together, and the split of that group."""

    path: Path
    label: str
    group: str
    split: str


def speakers(cache: Path) -> list[Sound]:
    """One class per speaker and language; the group is the phrase, by any speaker."""
    by_phrase: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for path in _between(_prompts(cache), 0.3, 2.0):
        phrase = path.relative_to(_language_folder(cache, path)).with_suffix("")
        if phrase.parts[0] != "silence":
            by_phrase[f"asterisk-{path.relative_to(cache / 'decoded').parts[0].split('-')[3]}"].append(
                (path, str(phrase))
            )
    for name, folder in (("klettres", "klettres"), ("ktuberling", "ktuberling/sounds")):
        root = cache / "packages" / f"{name}-data" / "usr/share" / folder
        for path in _between(root.rglob("*.ogg"), 0.3, 2.0):
            by_phrase[f"{name}-{path.relative_to(root).parts[0]}"].append((path, path.stem.lower()))
    most = sorted(by_phrase, key=lambda speaker: (-len(by_phrase[speaker]), speaker))[:35]
    return [
        Sound(path, speaker, phrase, _by_hash(phrase, val=0.2, test=0.35))
        for speaker in sorted(most)
        for path, phrase in by_phrase[speaker]
    ]


def fillets(cache: Path) -> list[Sound]:
    """The two actors of a game's dialogue (`-m-` and `-v-` in the file name); the group is the level of the game."""
    root = cache / "packages/fillets-ng-data-cs/usr/share/games/fillets-ng/sound"
    sounds = []
    for path in _between(root.rglob("*.ogg"), 0.6, 2.0):
        actor = re.search(r"-([mv])-", path.name)
        if actor:
            level = str(path.parent.relative_to(root))
            sounds.append(Sound(path, actor[1], level, _by_hash(level, val=0.15, test=0.4)))
    return sounds


DRUMS = {
    "kick": r"kick|bass ?drum",
    "snare": r"snare",
    "hihat": r"hh|hi-?\s?hat|\bhat\b",
    "tom": r"\btom\b|tomhi",
    "crash": r"crash",
    "ride": r"ride",
    "clap": r"clap",
    "cowbell": r"cowbell",
    "stick": r"stick|rim click",
}
VAL_KITS = ("ForzeeStereo", "rumpf_kit_z01_h2")
TEST_KITS = ("The Black Pearl 1.0", "ElectricEmpireKit", "ColomboAcousticDrumkit", "Audiophob", "VariBreaks")


def drums(cache: Path) -> list[Sound]:
    """Hits of drum kits, labelled by their instrument if its name matches one drum only; the group is the kit.

    Only the beginning of each hit is used: some kits follow it with silence, and others with reverberation.
    """
    sounds = []
    for listing in sorted((cache / "packages/hydrogen-drumkits").rglob("drumkit.xml")):
        kit = listing.parent.name
        split = "val" if kit in VAL_KITS else "test" if kit in TEST_KITS else "train"
        tree = ElementTree.parse(listing)
        for node in tree.iter():
            node.tag = node.tag.rpartition("}")[2]  # some kits use a namespace, some do not
        for instrument in tree.iter("instrument"):
            name = (instrument.findtext("name") or "").lower()
            labels = [label for label, pattern in DRUMS.items() if re.search(pattern, name)]
            for file in {node.text for node in instrument.iter("filename")} if len(labels) == 1 else ():
                path = listing.parent / str(file)
                if path.is_file() and "empty" not in path.name:
                    sounds.append(Sound(_beginning(path, cache / "tasks" / "drums" / kit), labels[0], kit, split))
    return sounds


FAMILIES = ("piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reed", "pipe")


def instruments(cache: Path) -> list[Sound]:
    """Samples of a sound font, labelled by family of preset (General MIDI: eight programs each); the group is the preset.

    Presets of one family that share samples form one group. A sample used by two families is left out.
    """
    root = cache / "decoded/fluid-soundfont-gm"
    presets = [
        entry for entry in json.loads((root / "presets.json").read_text()) if entry["program"] // 8 < len(FAMILIES)
    ]
    families = defaultdict(set)
    for preset in presets:
        for file in preset["samples"]:
            families[file].add(preset["program"] // 8)
    sounds = []
    for family, label in enumerate(FAMILIES):
        groups: list[tuple[set[str], set[str]]] = []  # names of presets, and the files they play
        for preset in sorted(
            (entry for entry in presets if entry["program"] // 8 == family), key=lambda entry: entry["name"]
        ):
            names, files = {preset["name"]}, {file for file in preset["samples"] if len(families[file]) == 1}
            for overlapping in [group for group in groups if group[1] & files]:
                groups.remove(overlapping)
                names, files = names | overlapping[0], files | overlapping[1]
            if files:
                groups.append((names, files))
        groups.sort(key=lambda group: hashlib.sha256(" ".join(sorted(group[0])).encode()).digest())
        for number, (names, files) in enumerate(groups):
            split = ("test", "train", "val", "train", "test", "train", "train", "test")[number % 8]
            sounds += [Sound(root / file, label, " + ".join(sorted(names)), split) for file in sorted(files)]
    return sounds


VAL_LOCALES = ("klettres-it", "klettres-nb")
TEST_LOCALES = ("asterisk-fr", "klettres-en_GB", "klettres-es", "klettres-nds", "klettres-da")


def letters(cache: Path) -> list[Sound]:
    """The letters a to z as pronounced in each locale; the group is the locale, which has one speaker."""
    entries = []
    for path in _prompts(cache):
        if path.parent.name == "letters" and len(path.stem) == 1:
            entries.append((path, path.stem, f"asterisk-{path.relative_to(cache / 'decoded').parts[0].split('-')[3]}"))
    root = cache / "packages/klettres-data/usr/share/klettres"
    for locale in ("da", "de", "en", "en_GB", "es", "fr", "hu", "it", "nb", "nds", "pt_BR"):
        for path in (root / locale / "alpha").glob("*.ogg"):
            entries.append((path, _letter(path.stem, locale), f"klettres-{locale}"))
    split = {**dict.fromkeys(VAL_LOCALES, "val"), **dict.fromkeys(TEST_LOCALES, "test")}
    return [
        Sound(path, letter, locale, split.get(locale, "train"))
        for path, letter, locale in entries
        if letter in string.ascii_lowercase and letter and locale != "asterisk-ru"
    ]


def _letter(stem: str, locale: str) -> str:
    """Return the letter that a file name stands for: the name itself, a number from 0 (da, fr), or a code point (nb)."""
    if locale in ("da", "fr"):
        number = int(stem.removeprefix("a-"))
        return string.ascii_lowercase[number] if number < 26 else ""
    if locale == "nb":
        return chr(int(stem.removeprefix("U"), 16))
    return stem.lower() if len(stem) == 1 else ""


def words(cache: Path) -> list[Sound]:
    """The thirty words that ship with the project, in their shipped splits; the group is the voice."""
    return [Sound(path, path.parent.name, path.stem, _voices()[path.stem]) for path in sorted(DEMO.glob("*/*.ogg"))]


def noisy_words(cache: Path) -> list[Sound]:
    """The same words at 0 dB over music; each split has its own pieces of music."""
    pieces = _music(cache)
    order = sorted(pieces, key=lambda name: hashlib.sha256(name.encode()).digest())
    share = {"train": order[:8], "val": order[8:11], "test": order[11:]}
    out = cache / "tasks" / "noisy-words"
    sounds = []
    for word in words(cache):
        path = out / word.label / f"{word.group}.flac"
        sounds.append(Sound(path, word.label, word.group, word.split))
        if not path.is_file():
            rng = np.random.default_rng(list(hashlib.sha256(f"{word.label}/{word.group}".encode()).digest()))
            names = share[word.split]
            _write(path, _mixed(load_clip(word.path, RATE), _audio(pieces[names[int(rng.integers(len(names)))]]), rng))
    return sounds


def _mixed(clip: Pcm, music: Pcm, rng: np.random.Generator) -> Pcm:
    """Mix the clip into the middle of music of the same loudness, over `WINDOW_S` or, if it is longer, the whole clip."""
    noise = crop(music, max(len(clip), round(WINDOW_S * RATE)), rng)
    start = (len(noise) - len(clip)) // 2
    mixed = noise * noise_gain(clip, noise, 0.0)
    mixed[start : start + len(clip)] += clip
    return mixed / max(1.0, float(np.abs(mixed).max()))


def tracks(cache: Path) -> list[Sound]:
    """Snippets of 1.3 s from each piece of music: the first half is train, the last third test; a group is 10 s of music."""
    sounds = []
    for name, path in sorted(_music(cache).items()):
        out = cache / "tasks" / "tracks" / name
        if not out.is_dir():
            _cut(_audio(path), out)
        for snippet in sorted(out.glob("*.flac")):
            second, length = map(int, snippet.stem.split("-of-"))
            share = second / length
            split = "train" if share < 0.5 else "val" if share < 0.65 else "test"
            sounds.append(Sound(snippet, name, f"{name} {split} {second // 10}", split))
    return sounds


def _cut(music: Pcm, out: Path) -> None:
    for second in range(0, len(music) // RATE - EVERY_S, EVERY_S):
        snippet = music[second * RATE : round((second + SNIPPET_S) * RATE)]
        if float(np.sqrt(np.mean(snippet**2))) > 1e-3:
            _write(out / f"{second:04d}-of-{len(music) // RATE:04d}.flac", snippet)


def _music(cache: Path) -> dict[str, Path]:
    """Return the pieces of music without words, by name."""
    prompts = (cache / "decoded/asterisk-moh-opsound-g722").rglob("*.flac")
    pieces = (cache / "packages/singularity-music").rglob("*.ogg")
    return {re.sub(r"\W+", "_", path.stem.lower()): path for path in sorted([*prompts, *pieces])}


@functools.cache
def _audio(path: Path) -> Pcm:
    return load_clip(path, RATE)


def _beginning(path: Path, folder: Path) -> Path:
    """Return the first `WINDOW_S` of a sound, as a file in `folder`."""
    out = folder / f"{path.stem}.flac"
    if not out.is_file():
        _write(out, load_clip(path, RATE)[: round(WINDOW_S * RATE)])
    return out


def _write(path: Path, pcm: Pcm) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, pcm, RATE)


def _prompts(cache: Path) -> list[Path]:
    return sorted(
        path
        for language in ASTERISK
        for path in (cache / f"decoded/asterisk-core-sounds-{language}-g722").rglob("*.flac")
    )


def _language_folder(cache: Path, prompt: Path) -> Path:
    language = prompt.relative_to(cache / "decoded").parts[0].split("-")[3]
    return cache / f"decoded/asterisk-core-sounds-{language}-g722/usr/share/asterisk/sounds/{ASTERISK[language]}"


def _voices() -> dict[str, str]:
    """Return the split of each voice of the words."""
    import csv

    with (DEMO / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return {row["group"]: row["split"] for row in csv.DictReader(file)}


def _between(paths: Iterable[Path], shortest: float, longest: float) -> list[Path]:
    """Return the sound files of `shortest` to `longest` seconds, in order."""
    return [path for path in sorted(paths) if shortest <= soundfile.info(path).duration <= longest]


def _by_hash(group: str, *, val: float, test: float) -> str:
    """Return the split of a group, the same on every machine: shares `val` and `test` of all groups, and train for the rest."""
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") / 2**32
    return "test" if place < test else "val" if place < test + val else "train"
