"""The voices of the speaker benchmark: real people in the cache of `benchmarks.fetch`, as utterances of three seconds.

Prompts and words are short, so clips are joined until an utterance is long enough. Clips to enroll and clips to ask with
come from different phrases or levels, chosen by hash, so no seed ever moves a clip from one to the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.sources import ASTERISK, RATE, _by_hash, _language_folder, _prompts
from confit_runtime.audio import Pcm, load_clip

UTTERANCE_S = 3.0
ENROLLED, ASKED = 3, 6  # utterances of a voice in one draw
SHORTEST_S = 0.25  # shorter clips hold a click, not a voice


@dataclass(frozen=True)
class Voice:
    """One person, with clips to enroll and clips to ask with, which share no phrase. `split` is dev or test."""

    name: str
    origin: str
    split: str
    enroll: tuple[Path, ...]
    ask: tuple[Path, ...]


@dataclass(frozen=True)
class Draw:
    """Utterances `[samples]` of one voice at 16 kHz, to enroll and to ask with."""

    voice: Voice
    enroll: list[Pcm]
    ask: list[Pcm]


def voices(cache: Path) -> list[Voice]:
    """Return every voice with enough clips. The four prompt voices and the two actors are test; locales are split by hash."""
    clips_by_speaker: dict[tuple[str, str], list[tuple[str, Path]]] = defaultdict(list)
    for path in _prompts(cache):
        language = path.relative_to(cache / "decoded").parts[0].split("-")[3]
        phrase = str(path.relative_to(_language_folder(cache, path)).with_suffix(""))
        if not phrase.startswith("silence"):  # English and Spanish prompts are by one person
            clips_by_speaker["prompts", ASTERISK[language].rpartition("_")[2]].append((f"{language} {phrase}", path))
    root = cache / "packages/fillets-ng-data-cs/usr/share/games/fillets-ng/sound"
    for path in sorted(root.rglob("*.ogg")):
        if actor := re.search(r"-([mv])-", path.name):
            clips_by_speaker["actors", f"cs-{actor[1]}"].append((str(path.parent.relative_to(root)), path))
    for package, folder in (("klettres", "klettres"), ("ktuberling", "ktuberling/sounds")):
        root = cache / "packages" / f"{package}-data/usr/share" / folder
        for path in sorted(root.rglob("*.ogg")):
            locale = path.relative_to(root).parts[0]
            clips_by_speaker[package, locale].append((f"{locale} {path.stem.lower()}", path))
    return [
        voice
        for voice in map(_voice, *zip(*_one_of_each_locale(clips_by_speaker).items(), strict=True))
        if voice is not None
    ]


def _one_of_each_locale(
    clips_by_speaker: dict[tuple[str, str], list[tuple[str, Path]]],
) -> dict[tuple[str, str], list[tuple[str, Path]]]:
    """Keep only the package with more clips per locale, because two packages may have recorded the same volunteer."""
    kept = {}
    for (origin, name), clips in sorted(clips_by_speaker.items()):
        language = name.split("@")[0]
        rivals = [
            len(others)
            for (other, locale), others in clips_by_speaker.items()
            if other in ("klettres", "ktuberling")
            and locale.split("@")[0] == language
            and (other, locale) != (origin, name)
        ]
        if origin in ("prompts", "actors") or all(len(clips) > rival for rival in rivals):
            kept[origin, name] = clips
    return kept


def _voice(key: tuple[str, str], clips: list[tuple[str, Path]]) -> Voice | None:
    origin, name = key
    fixed = origin in ("prompts", "actors")
    split = "test" if fixed else _by_hash(f"voice {name.split('_')[0]}", val=0.0, test=0.5).replace("train", "dev")
    parts: dict[str, list[Path]] = {"train": [], "test": []}
    for group, path in clips:
        parts[_by_hash(group, val=0.0, test=0.5)].append(path)
    enroll, ask = ([path for path in parts[part] if _seconds(path) >= SHORTEST_S] for part in ("train", "test"))
    if not (_are_enough(enroll, ENROLLED) and _are_enough(ask, ASKED)):
        return None
    return Voice(f"{origin}-{name}", origin, split, tuple(enroll), tuple(ask))


def _are_enough(paths: list[Path], utterances: int) -> bool:
    """Whether the clips make enough utterances in any order; joining may waste up to the longest clip per utterance."""
    seconds = [_seconds(path) for path in paths]
    return sum(seconds) >= utterances * (UTTERANCE_S + max(seconds, default=0.0))


def draw(voice: Voice, seed: int) -> Draw:
    """Draw utterances of a voice; no clip is used twice."""
    rng = np.random.default_rng([seed, *voice.name.encode()])
    return Draw(voice, _joined(voice.enroll, ENROLLED, rng), _joined(voice.ask, ASKED, rng))


def _joined(paths: tuple[Path, ...], count: int, rng: np.random.Generator) -> list[Pcm]:
    """Return `count` utterances of `UTTERANCE_S`, each joined from whole clips in random order, with the last one cut."""
    order, utterances = list(rng.permutation(len(paths))), []
    for _ in range(count):
        parts: list[Pcm] = []
        while sum(map(len, parts)) < UTTERANCE_S * RATE:
            parts.append(load_clip(paths[order.pop()], RATE))
        utterances.append(np.concatenate(parts)[: round(UTTERANCE_S * RATE)])
    return utterances


def _seconds(path: Path) -> float:
    import soundfile

    return float(soundfile.info(str(path)).duration)
