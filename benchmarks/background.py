"""Makes the speech of the demo's training background, by speakers other than those of the test background.

    python -m benchmarks.background [--cache DIR]

Needs `python -m benchmarks.fetch`; writes speech-fr.ogg and speech-ru.ogg next to the music in the demo's data: two minutes of
telephone prompts by one speaker each. It leaves out digits, letters, menus (which read out digits, and the Russian word for
three sounds nearly like the English one) and short prompts, because they might hold the demo's words or similar ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.fetch import CACHE
from confit_edge.demo import DATA
from confit_runtime.audio import Pcm, load_clip

RATE, SECONDS, PAUSE_S, SHORT_S = 16_000, 120, 0.25, 1.2
LEFT_OUT = {"dictate", "digits", "followme", "letters", "phonetic", "silence"}
MENUS = ("basic", "conf", "demo", "dir", "if-", "priv", "screen", "vm-")
TEN_KBIT = 0.985  # per second, as libsndfile's compression level: all data of the demo must stay below 6 MB


def prompts(language: str, cache: Path) -> Pcm:
    """Return `SECONDS` of the prompts of a language in shuffled order, with a pause after each."""
    folder = cache / "decoded" / f"asterisk-core-sounds-{language}-g722"
    paths = [
        path
        for path in sorted(folder.rglob("*.flac"))
        if not (LEFT_OUT & set(path.parts) or path.name.startswith(MENUS))
    ]
    np.random.default_rng(1).shuffle(paths)
    clips = [clip for clip in (load_clip(path, RATE) for path in paths) if len(clip) >= SHORT_S * RATE]
    pause = np.zeros(round(PAUSE_S * RATE), np.float32)
    joined = np.concatenate([part for clip in clips for part in (clip, pause)])
    assert len(joined) >= SECONDS * RATE, language
    return joined[: SECONDS * RATE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    cache = parser.parse_args().cache
    for language in ("fr", "ru"):
        out = DATA / "background" / "train" / f"speech-{language}.ogg"
        soundfile.write(out, prompts(language, cache), RATE, format="OGG", subtype="OPUS", compression_level=TEN_KBIT)
        print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
