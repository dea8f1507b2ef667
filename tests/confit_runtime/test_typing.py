"""What a program may give, as mypy reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import confit_runtime

PROGRAM = """
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import numpy as np
import numpy.typing as npt

from confit_runtime import Ended, Listener, listen, listen_async, load
from confit_runtime.sources import Pause


class Mine:
    name = "mine"
    live = True

    @property
    def rate(self) -> int:
        return 16_000

    def __enter__(self) -> "Mine":
        return self

    def __exit__(self, *details: object) -> None: ...

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.int16], int]]:
        yield np.zeros(320, np.int16), 16_000

    def stop(self) -> None: ...


async def client() -> AsyncIterator[tuple[list[float], int] | Pause]:
    yield [0.0], 16_000


async def main() -> None:
    async for event in listen_async(load("digits"), client()):
        print(event.label)
    async for event in listen_async(load("digits"), Mine()):
        print(event.label)
    for source in (client(), Mine()):
        async with aclosing(Listener([load("digits").stream(ends=True)], "mine", 16_000).follow_async(source)) as events:
            async for told in events:
                print(told.end_s if isinstance(told, Ended) else told)


print(list(listen(load("digits"), Mine())))
listener = Listener([load("digits").stream()], "mine", 16_000)
print(list(listener.follow(Mine())), list(listener.take((np.zeros(320, np.int16), 16_000))))
"""


def test_whatever_sound_is_taken_is_of_a_type_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(confit_runtime.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
