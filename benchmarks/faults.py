"""Provokes what can go wrong on a device: kills, full disks, foreign and damaged files.

    python -m benchmarks.faults [PART...]

Each part writes its row into the results and leaves the others as they are. A row counts the attempts and their outcomes.
`failures` lists every outcome other than success or a clear error, and should be empty.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import say
from benchmarks.report import machine, write_json
from confit_edge.demo import DATA
from confit_runtime import ConfitError, Model, load
from confit_runtime.gallery import Gallery

OUT = Path(__file__).with_name("results") / "faults.json"
KILLS = 200
MUTATIONS = 25_000  # of each of four kinds of file
SLOWEST_S = 20.0  # a mutated file that takes longer counts as a hang

ENROLLER = """
import sys
import numpy as np
from confit_runtime.gallery import Gallery

with Gallery.open(sys.argv[1]) as gallery:
    rng, done = np.random.default_rng(), 0
    print("ready", flush=True)
    while True:
        prints = rng.standard_normal((3, gallery.dim)).astype(np.float32)
        gallery.enroll(sys.argv[2], prints, sources=["a", "b", "c"], voiced_s=5.0)
        done += 1
        print(done, flush=True)
        if len(sys.argv) > 3 and done == int(sys.argv[3]):
            break
"""


def kills(work: Path, model: Model) -> dict[str, Any]:
    """Run kill -9 at random moments while prints are committed; after each kill, every acknowledged print must be there."""
    path, rng = new_gallery(work, model), random.Random(0)
    committed = unacknowledged = journals = 0
    failures: list[str] = []
    for number in range(KILLS):
        with Gallery.open(path, model) as gallery:
            before = gallery.names()["ada"]
        child = subprocess.Popen([sys.executable, "-c", ENROLLER, path, "ada"], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.15))
        child.kill()
        acknowledged = sum(line.endswith("\n") for line in child.stdout)
        child.wait()
        journals += path.with_name(path.name + "-journal").exists()
        try:
            with Gallery.open(path, model) as gallery:
                added = gallery.names()["ada"] - before
                gallery.match(gallery.prints("ada")[-1].embedding)
        except ConfitError as error:
            failures.append(f"kill {number}: {error}")
            break
        if added not in (3 * acknowledged, 3 * acknowledged + 3):
            failures.append(f"kill {number}: {acknowledged} enrolments were acknowledged, but {added} prints are there")
        committed += acknowledged
        unacknowledged += added > 3 * acknowledged
    return {
        "kills": KILLS,
        "acknowledged_enrolments": committed,
        "committed_before_they_were_acknowledged": unacknowledged,
        "kills_that_left_a_journal": journals,
        "failures": failures,
    }


def disk_full(work: Path, model: Model) -> dict[str, Any]:
    """Enroll until a file size limit is reached, and until a small file system is full: an error, and nothing lost."""
    row: dict[str, Any] = {"failures": []}
    path = new_gallery(work, model)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    row["file_size_limit"] = _until_full(path, model, row["failures"], limited)
    mount = work / "tmpfs"
    mount.mkdir()
    if os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount], capture_output=True, check=False
    ).returncode == 0:  # fmt: skip
        try:
            row["tmpfs"] = _until_full(new_gallery(mount, model), model, row["failures"], None)
        finally:
            subprocess.run(["umount", mount], check=True)
    else:
        row["tmpfs"] = "not tried: needs the right to mount"
    return row


def _until_full(path: Path, model: Model, failures: list[str], limited: Callable[[], None] | None) -> dict[str, Any]:
    with Gallery.open(path, model) as gallery:
        before = gallery.names()["ada"]
    completed = subprocess.run(
        [sys.executable, "-c", ENROLLER, path, "ada"], preexec_fn=limited, capture_output=True, text=True, check=False
    )  # fmt: skip
    acknowledged = len(completed.stdout.splitlines()) - 1
    message = completed.stderr.strip().splitlines()[-1] if completed.stderr else ""
    if "GalleryError" not in message:
        failures.append(f"a full disk gave: {message}")
    with Gallery.open(path, model) as gallery:
        added = gallery.names()["ada"] - before
    if added != 3 * acknowledged:
        failures.append(f"a full disk: {acknowledged} enrolments were acknowledged, but {added} prints are there")
    return {
        "acknowledged_enrolments": acknowledged,
        "prints": added,
        "said": message.partition(": ")[2].rpartition("/")[2],
    }


def two_writers(work: Path, model: Model) -> dict[str, Any]:
    """Let two processes enroll at the same time; all prints of both must be there."""
    path, each = new_gallery(work, model), 60
    children = [
        subprocess.Popen([sys.executable, "-c", ENROLLER, path, name, str(each)], stdout=subprocess.DEVNULL)
        for name in ("ben", "eve")
    ]
    codes = [child.wait() for child in children]
    with Gallery.open(path, model) as gallery:
        names = gallery.names()
    failures = [] if codes == [0, 0] and names["ben"] == names["eve"] == 3 * each else [f"{codes}, {names}"]
    return {"processes": 2, "enrolments_each": each, "failures": failures}


def foreign(work: Path, model: Model) -> dict[str, Any]:
    """Open a gallery from the future, and one of another model: each must be refused with one clear line."""
    messages, failures = {}, []
    path = new_gallery(work, model)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    try:
        Gallery.open(path, model)
        failures.append("a gallery from the future was opened")
    except ConfitError as error:
        messages["from the future"] = str(error).rpartition("/")[2]
    path = new_gallery(work, model)
    try:
        Gallery.open(path, load("digits"))
        failures.append("a gallery of another model was opened")
    except ConfitError as error:
        messages["another model"] = str(error).rpartition("/")[2]
    return {"said": messages, "failures": failures}


def mutations(work: Path, model: Model) -> dict[str, Any]:
    """Read files with random bytes overwritten, removed, repeated or cut off: each must be read, or refused with our error."""
    from confit_edge.data.manifest import read_manifest
    from confit_runtime.audio import load_clip
    from confit_runtime.contract import Contract, read_sealed

    gallery = new_gallery(work, model)
    row: dict[str, Any] = {"failures": []}

    def open_gallery(path: Path) -> None:
        with Gallery.open(path, model) as opened:
            for name in opened.names():
                opened.prints(name)
            opened.match(np.ones(opened.dim, np.float32))

    def read_contract(path: Path) -> None:
        text = path.read_bytes().decode(errors="replace")
        Contract.from_json(text)

    kinds: dict[str, tuple[list[tuple[str, bytes]], Callable[[Path], object]]] = {
        "galleries": ([("gallery.db", gallery.read_bytes())], open_gallery),
        "contracts": ([("contract.json", model.contract.to_json().encode())], read_contract),
        "model files": ([("model.onnx", model.path.read_bytes())], lambda path: read_sealed(path.read_bytes())),
        "manifests": (_manifests(work), read_manifest),
        "clips": (_clips(work), lambda path: load_clip(path, 16_000)),
    }
    for kind, (originals, read) in kinds.items():
        count = MUTATIONS if kind != "model files" else 2_000  # they have megabytes each, and a digest refuses them all
        row[kind] = _mutate(work / kind.replace(" ", "-"), originals, read, count, row["failures"])
        say(f"{kind}: {row[kind]}")
    row["files"] = sum(row[kind]["files"] for kind in kinds)
    return row


def _mutate(
    folder: Path, originals: list[tuple[str, bytes]], read: Callable[[Path], object], count: int, failures: list[str]
) -> dict[str, Any]:
    folder.mkdir()
    rng, outcomes, slowest = random.Random(1), Counter[str](), 0.0
    signal.signal(signal.SIGALRM, _hangs)
    for number in range(count):
        name, data = originals[number % len(originals)]
        path = folder / name
        path.write_bytes(mutated(data, rng))
        signal.alarm(int(SLOWEST_S))
        start = time.perf_counter()
        try:
            read(path)
            outcomes["read"] += 1
        except ConfitError as error:
            outcomes["refused"] += 1
            if "\n" in str(error):
                failures.append(f"{name} {number}: more than one line: {error!r}")
        except Exception as error:  # noqa: BLE001 - any other exception is what this looks for
            failures.append(f"{name} {number}: {type(error).__name__}: {error}")
            shutil.copy(path, folder.parent / f"failed-{number}-{name}")
        signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - start)
    return {"files": count, **outcomes, "slowest_s": round(slowest, 3)}


def _hangs(number: int, frame: object) -> None:
    raise TimeoutError(f"took longer than {SLOWEST_S:g} s")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to eight changes, most of them where headers are."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(min(len(changed), 400) if rng.random() < 0.5 else len(changed)) if changed else 0
        kind = rng.random()
        if kind < 0.6:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind < 0.75:
            changed[at : at + rng.randint(1, 40)] = rng.randbytes(rng.randint(0, 40))
        elif kind < 0.9:
            changed[at:at] = changed[max(0, at - rng.randint(1, 60)) : at]
        else:
            del changed[at:]
    return bytes(changed)


def _manifests(work: Path) -> list[tuple[str, bytes]]:
    rows = "".join(
        f"clips/{at}.wav,{label},speaker{at % 5},train\n" for at, label in enumerate(["yes", "no|stop"] * 10)
    )
    lines = "".join(f'{{"path": "clips/{at}.wav", "label": "yes", "group": "a{at}"}}\n' for at in range(20))
    return [("clips.csv", f"path,label,group,split\n{rows}".encode()), ("clips.jsonl", lines.encode())]


def _clips(work: Path) -> list[tuple[str, bytes]]:
    import soundfile

    pcm = np.random.default_rng(0).uniform(-0.5, 0.5, 4000).astype(np.float32)
    made = []
    for suffix in ("wav", "flac", "aiff", "mp3"):
        path = work / f"clip.{suffix}"
        soundfile.write(path, pcm, 16_000)
        made.append((path.name, path.read_bytes()))
    return [*made, ("clip.ogg", next((DATA / "digits-real").glob("*.ogg")).read_bytes())]


def new_gallery(work: Path, model: Model) -> Path:
    """Make a gallery of two names in a folder of its own."""
    path = Path(tempfile.mkdtemp(dir=work)) / "gallery.db"
    rng, dim = np.random.default_rng(0), model.contract.embedding_dim
    with Gallery.open(path, model, create=True) as gallery:
        for name in ("ada", "bob"):
            prints = rng.standard_normal((3, dim)).astype(np.float32)
            gallery.enroll(name, prints, sources=["one", "two", "three"], voiced_s=5.0)
    return path


PARTS: dict[str, Callable[[Path, Model], dict[str, Any]]] = {
    "kills": kills,
    "disk_full": disk_full,
    "two_writers": two_writers,
    "foreign": foreign,
    "mutations": mutations,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"parts to run: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    model = load("speakers")
    for part in args.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="confit-faults-") as folder:
            row = PARTS[part](Path(folder), model)
        found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        found |= {"command": "python -m benchmarks.faults", part: row, **machine()}
        write_json(args.out, found)
        print(part, row, flush=True)


if __name__ == "__main__":
    main()
