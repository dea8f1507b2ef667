"""Makes the speech of the demo's training background, so that its speakers are not those of the test background.

    python -m benchmarks.background [--cache DIR]

needs `python -m benchmarks.fetch`, and writes speech-fr.ogg and speech-ru.ogg beside the music in the demo's data: two
minutes of telephone prompts of one speaker each. Left out are digits, letters, menus (which read out digits, and three in
Russian is nearly three) and short prompts, where the demo's words or words like them might be.
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
TEN_KBIT = 0.985  # a second, in the terms of libsndfile: all data of the demo have to stay below 6 MB


def prompts(language: str, cache: Path) -> Pcm:
    """`SECONDS` of the prompts of a language in a shuffled order, a pause after each."""
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
