"""What the steps of the demo share: the folder they write to, how they print, and the recipe they train with."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from textwrap import fill
from typing import Any

from confit_edge.data.manifest import Clip
from confit_edge.demo import DATA
from confit_edge.progress import Watcher
from confit_edge.recipe import Recipe
from confit_runtime.audio import load_clip

EPOCHS, SOUP = 14, 2
# The defaults of `train`, plus clips at other speeds, which stand in for more voices, and weights averaged over the last
# half of a training and over two trainings, which may help with voices that are not in training.
WORDS: dict[str, Any] = {
    "epochs": EPOCHS, "soup": SOUP, "averaging": 0.5, "speed": 0.15, "projection_dim": 128, "probe_views": 4,
    "precision": "auto",
}  # fmt: skip
Say = Callable[[str], None]


@dataclass
class Demo:
    """What the steps share. `say` prints text, `watch` gets the events of a training.

    `data` holds the words and the background to train on. A test takes less of them and trains for less long.
    """

    out: Path
    seed: int
    say: Say
    watch: Watcher | None
    data: Path = DATA
    epochs: int = EPOCHS
    soup: int = SOUP

    def print_step(self, title: str, *paragraphs: str) -> None:
        self.say(f"\n{title}\n{'-' * len(title)}")
        for paragraph in paragraphs:
            self.say(fill(paragraph, 100))


def settings(demo: Demo) -> dict[str, Any]:
    """What the recipes of all steps have in common."""
    return {**WORDS, "epochs": demo.epochs, "soup": demo.soup, "seed": demo.seed}


def program() -> str:
    """The command as the shell finds it: after `make demo` it is in .venv/bin."""
    return quote(
        "confit-edge" if shutil.which("confit-edge") else os.path.relpath(Path(sys.executable).parent / "confit-edge")
    )


def recipe(demo: Demo, **keys: Any) -> Recipe:
    """The demo's recipe, with other keys where a step needs them."""
    return Recipe.from_dict({**settings(demo), **keys}, "the demo")


def seconds_in(clips: list[Clip]) -> float:
    """Return the total length of the clips in seconds."""
    return sum(len(load_clip(clip.path, 16_000)) for clip in clips) / 16_000
