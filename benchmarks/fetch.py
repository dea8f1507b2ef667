"""Fetches the real sound for the benchmarks: Debian packages, checked by hash and unpacked into a cache.

    python -m benchmarks.fetch [--cache DIR]

Nothing is installed, and none of it is committed. The cache (default ~/.cache/confit-edge/benchmarks) then holds
`packages/NAME/` as unpacked by `dpkg -x`, `packages.json` with the versions and hashes, and `decoded/` with FLAC copies of what
soundfile cannot read: G.722 prompts and the samples of the sound font.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from benchmarks import soundfont
from benchmarks.command import run_main, say
from confit_runtime.errors import ConfitError, UsageError

CACHE = Path.home() / ".cache" / "confit-edge" / "benchmarks"


@dataclass(frozen=True)
class Package:
    """A Debian package, with the version and SHA-256 of the file that the results were measured with."""

    name: str
    version: str
    sha256: str
    licence: str


PACKAGES = (
    Package(
        "asterisk-core-sounds-en-g722", "1.6.1-1",
        "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806", "CC-BY-SA-3.0",
    ),
    Package(
        "asterisk-core-sounds-es-g722", "1.6.1-1",
        "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8", "CC-BY-SA-3.0",
    ),
    Package(
        "asterisk-core-sounds-fr-g722", "1.6.1-1",
        "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0", "CC-BY-SA-3.0",
    ),
    Package(
        "asterisk-core-sounds-it-g722", "1.6.1-1",
        "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016", "CC-BY-3.0",
    ),
    Package(
        "asterisk-core-sounds-ru-g722", "1.6.1-1",
        "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b", "CC-BY-3.0",
    ),
    Package(
        "asterisk-moh-opsound-g722", "2.03-1.1",
        "8d6b39d6f2e8feff54a042c4a25e1b72f3e2478d05ee372c92f77446fa0b1671", "CC-BY-SA-2.5",
    ),
    Package(
        "fillets-ng-data-cs", "1.0.1-1.1",
        "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14", "GPL-2+",
    ),
    Package(
        "fluid-soundfont-gm", "3.1-5.3",
        "6f531493ac4e4d9772fd96b2488ea1790af81c196135fbdd25997da0781fc60e", "MIT",
    ),
    Package(
        "hydrogen-drumkits", "2017.09.19~dfsg-1",
        "6ea3c6df9a67762e2362f946c695e619859126b19fbccf32a2e8f07dfd03b2f4", "by kit",
    ),
    Package(
        "klettres-data", "4:22.12.3-1",
        "1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8", "GPL-2+",
    ),
    Package(
        "ktuberling-data", "4:22.12.3-1",
        "fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed", "GPL-2+",
    ),
    Package(
        "singularity-music", "007-2",
        "139ba1e408eeb0a72f1fff3760ca46558b9f81bed97dc8c0efa108c4007f4845", "CC-BY-SA-3.0",
    ),
    Package(
        "wesnoth-1.16-music", "1:1.16.9-1",
        "f9bc3cde92b4ab30db5d7b85f89b4bcc3d788dd92602956d0347250850bf59bb", "GPL-2+",
    ),
)  # fmt: skip


def fetch(cache: Path = CACHE) -> None:
    """Fill the cache; existing parts stay as they are. Raises ConfitError if a package is not the recorded one."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise UsageError("fetching needs apt-get and dpkg; run it on Debian 12, or in a container of it")
    (cache / "packages").mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not (cache / "packages" / package.name).is_dir():
            say(f"fetching {package.name} {package.version}")
            _unpack(package, cache)
    for package in PACKAGES:
        decoded = cache / "decoded" / package.name
        if package.name.endswith("-g722") and not decoded.is_dir():
            say(f"decoding {package.name}")
            whole(decoded, partial(_decode_g722, cache / "packages" / package.name))
    samples = cache / "decoded" / "fluid-soundfont-gm"
    if not samples.is_dir():
        say("extracting the samples of the sound font")
        font = cache / "packages/fluid-soundfont-gm/usr/share/sounds/sf2/FluidR3_GM.sf2"
        whole(samples, partial(soundfont.extract, font))
    listing = {package.name: {"version": package.version, "sha256": package.sha256} for package in PACKAGES}
    (cache / "packages.json").write_text(json.dumps(listing, indent=2) + "\n")


def _unpack(package: Package, cache: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = ["apt-get", "-qq", "download", f"{package.name}={package.version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        files = list(Path(folder).glob("*.deb"))
        if done.returncode or len(files) != 1:
            raise ConfitError(
                f"{' '.join(command)} failed: {done.stderr.strip() or 'no file came'}; try apt-get update"
            )
        digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
        if digest != package.sha256:
            raise ConfitError(f"{package.name} {package.version} has SHA-256 {digest}, expected {package.sha256}")
        tree = Path(folder) / "tree"
        subprocess.run(["dpkg", "-x", str(files[0]), str(tree)], check=True)
        tree.rename(cache / "packages" / package.name)


def whole(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fill a folder elsewhere and move it into place, so that a stopped fetch leaves no half-filled folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        fill(Path(part) / "part")
        (Path(part) / "part").rename(folder)


def _decode_g722(source: Path, target: Path) -> None:
    """Write each `*.g722` under `source` as FLAC, 16 kHz mono, at the same place under `target`."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise UsageError("decoding the G.722 prompts needs PyAV; run pip install --no-deps av") from error
    for path in sorted(source.rglob("*.g722")):
        with av.open(str(path), format="g722") as container:
            frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        if not frames:  # an empty file is a prompt that was not recorded
            continue
        out = (target / path.relative_to(source)).with_suffix(".flac")
        out.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(out, np.concatenate(frames), 16_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    fetch(parser.parse_args().cache)


if __name__ == "__main__":
    run_main(main)
