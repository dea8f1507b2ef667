"""Makes hours of speech and music without the demo's words: the recordings in which false accepts are counted.

    python -m benchmarks.negatives [--cache DIR]

Writes `tasks/negatives/NAME.wav` (16 kHz) in the cache of `benchmarks.fetch`: the dialogue of each level of a game, each piece
of music, and all prompts of one voice joined. It leaves out:

- English prompts;
- prompts that are numbers (`digits/`), because in several languages they are the demo's words;
- syllables (`no`, `on`, `go`), for the same reason;
- the music and the voices that the demo's model is trained or tested with (prompts in French, Russian and Italian).
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.fetch import CACHE
from confit_runtime.audio import Pcm, resample, to_mono

RATE = 16_000
PAUSE_S = 0.25  # between joined clips
USED_BY_THE_DEMO = ("macroform-cold_day", "reno_project-system")
ENGLISH = ("en", "en_GB")


def recordings(cache: Path = CACHE) -> dict[str, list[Path]]:
    """Return the sound files of each recording, by the recording's name."""
    paths_by_name: dict[str, list[Path]] = defaultdict(list)
    packages, decoded = cache / "packages", cache / "decoded"
    fillets = packages / "fillets-ng-data-cs/usr/share/games/fillets-ng/sound"
    for path in sorted(fillets.rglob("*.ogg")):
        paths_by_name[f"fillets-{path.relative_to(fillets).parts[0]}"].append(path)
    for name in ("singularity-music", "wesnoth-1.16-music"):
        for path in sorted((packages / name).rglob("*.ogg")):
            paths_by_name[f"{name.split('-')[0]}-{path.stem.replace(' ', '_')}"].append(path)
    for path in sorted((decoded / "asterisk-moh-opsound-g722").rglob("*.flac")):
        if path.stem not in USED_BY_THE_DEMO:
            paths_by_name[f"moh-{path.stem}"].append(path)
    prompts = sorted((decoded / "asterisk-core-sounds-es-g722").rglob("*.flac"))
    paths_by_name["prompts-es"] = [path for path in prompts if not {"digits", "silence"} & set(path.parts)]
    ktuberling = packages / "ktuberling-data/usr/share/ktuberling/sounds"
    for path in sorted(ktuberling.rglob("*.ogg")):
        if path.relative_to(ktuberling).parts[0] not in ENGLISH:
            paths_by_name[f"ktuberling-{path.relative_to(ktuberling).parts[0]}"].append(path)
    klettres = packages / "klettres-data/usr/share/klettres"
    for path in sorted(klettres.glob("*/alpha/*.ogg")):
        if path.parent.parent.name not in ENGLISH:
            paths_by_name[f"klettres-{path.parent.parent.name}"].append(path)
    return dict(paths_by_name)


def folder(cache: Path = CACHE) -> Path:
    return cache / "tasks" / "negatives"


def join(cache: Path = CACHE) -> list[Path]:
    """Join each recording into one file, unless it exists; return the distinct ones (one voice has several names)."""
    distinct: dict[bytes, Path] = {}
    for name, paths in recordings(cache).items():
        out = folder(cache) / f"{name}.wav"
        if not out.is_file():
            pause = np.zeros(round(PAUSE_S * RATE), np.float32)
            parts = [part for path in paths for part in (_read(path), pause)]
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary = out.with_suffix(".partial")
            soundfile.write(temporary, np.concatenate(parts[:-1]), RATE, format="WAV", subtype="PCM_16")
            os.replace(temporary, out)
        distinct.setdefault(hashlib.sha256(out.read_bytes()).digest(), out)
    return list(distinct.values())


def _read(path: Path) -> Pcm:
    """Read a file even if it ends before its header says, as one piece of music does."""
    pcm, rate = soundfile.read(path, dtype="float32")
    return resample(to_mono(pcm), rate, RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    paths = join(parser.parse_args().cache)
    hours = sum(soundfile.info(path).duration for path in paths) / 3600
    print(f"{len(paths)} recordings, {hours:.2f} hours")


if __name__ == "__main__":
    main()
