"""The microphone on the command line: `listen`, `doctor`, `record` and `devices` with a fake PortAudio."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_edge.cli.record import keep
from confit_edge.data.manifest import read_manifest
from confit_runtime.recording import Take
from confit_runtime.soundcheck import soundcheck
from tests.cli.command import COMMAND
from tests.cli.device import (
    RATE,
    environment,
    in_shell,
    lines,
    on_a_terminal,
    run,
    scene,
)
from tests.tiny_model import tone


@pytest.mark.parametrize("source", ["mic", "-"])
def test_of_live_sound_listening_fails_soon_when_nobody_reads(
    home: Path, fake_portaudio: Callable[[str], dict[str, str]], source: str
) -> None:
    """Before anything is detected, though nothing comes; so that a service is started again."""
    rate = [] if source == "mic" else ["--rate", "16000"]
    with subprocess.Popen(
        [*COMMAND, "listen", "tiny.onnx", "--source", source, *rate, "--threshold", "1"],
        cwd=home, env=fake_portaudio("stalls"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        time.sleep(2.0)
        assert child.poll() is None
        child.stdout.close()
        closed = time.monotonic()
        assert child.wait(timeout=30) == 1
        assert time.monotonic() - closed < 3.0
        assert child.stderr.read().splitlines()[-1].startswith("confit-edge: the reader of stdout has gone")


def test_with_a_reader_live_sound_that_ends_or_is_stopped_is_no_error(home: Path) -> None:
    pcm = (scene(16_000) * 32767).astype("<i2").tobytes()
    done = run(home, "listen", "tiny.onnx", "--source", "-", "--rate", "16000", stdin=pcm)
    assert (done.returncode, done.stderr) == (0, "tiny: low 1, mid 1 in 2.5 s\n")


@pytest.mark.parametrize(
    ("options", "status", "message"), [("", 2, "stdout is closed"), ("--save-triggers kept", 0, "low 1")]
)
def test_without_a_stdout_live_sound_is_heard_only_where_it_is_kept(
    home: Path, tmp_path: Path, options: str, status: int, message: str
) -> None:
    (tmp_path / "pcm").write_bytes((scene(16_000) * 32767).astype("<i2").tobytes())
    arguments = f"listen {home / 'tiny.onnx'} --source - --rate 16000 {options} < pcm >&-"
    done = in_shell(tmp_path, environment(), f'"$@" {arguments}')
    assert (done.returncode, message in done.stderr, len(done.stderr.splitlines())) == (status, True, 1)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&1 >&3 | true"])
def test_a_stderr_that_cannot_be_written_ends_nothing(
    home: Path, fake_portaudio: Callable[[str], dict[str, str]], redirection: str
) -> None:
    arguments = f"listen tiny.onnx --seconds 3 --json {redirection}"
    done = in_shell(home, fake_portaudio("unplugged"), f'set -o pipefail; exec 3>&1; "$@" {arguments}')
    assert (done.returncode, done.stderr) == (0, "")
    assert [one["type"] for one in lines(done)] == ["gap", "detection", "detection", "notice", "gap", "summary"]


def test_clips_are_recorded_where_stderr_is_closed(
    tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    arguments = "record low -o clips --group ada --countdown 0 --count 1 --seconds 0.8 --json 2>&-"
    done = in_shell(tmp_path, fake_portaudio("stalls"), f'"$@" {arguments}')
    assert done.returncode == 0
    assert [one["type"] for one in lines(done)][-2:] == ["recorded", "summary"]


def test_listen_to_a_microphone_that_drops_and_is_unplugged(
    home: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    """It is waited for, and meanwhile the clock runs on to the end of --seconds."""
    started_at = datetime.now(UTC)
    arguments = ("listen", "tiny.onnx", "--source", "mic:usb mic", "--seconds", "3.5", "--json")
    done = run(home, *arguments, env=fake_portaudio("unplugged"))
    assert done.returncode == 0
    *events, summary = lines(done)
    assert [one["type"] for one in events] == ["gap", "detection", "detection", "notice", "gap"]
    at = [(datetime.fromisoformat(one["at"]) - started_at).total_seconds() for one in events]
    np.testing.assert_allclose(np.subtract(at, at[1] - 0.4), [0.16, 0.4, 1.8, 2.5, 2.5], atol=0.4)
    assert 0.0 < at[0] < 15.0
    assert all(re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{3}\+00:00", one["at"]) for one in events)
    detections = [one for one in events if one["type"] == "detection"]
    assert [one["label"] for one in detections] == ["low", "mid"]
    np.testing.assert_allclose([one["start_s"] for one in detections], [0.4, 1.8], atol=0.1)
    assert (events[0]["samples"], events[0]["reason"]) == (4410, "this machine could not keep up")
    assert (events[3]["state"], events[4]["reason"]) == ("away", "the microphone was away")
    assert (summary["source"], summary["dropped_samples"]) == ("mic:usb mic", 4410 + events[4]["samples"])
    assert summary["seconds"] >= 3.5
    lost, unplugged, _ = done.stderr.splitlines()
    assert lost == "lost 0.10 s of sound: this machine could not keep up"
    assert unplugged == "USB Mic: Audio (hw:1,0) went away (unplugged?); waiting for it to come back"


def test_a_terminal_shows_the_microphone_live(home: Path, fake_portaudio: Callable[[str], dict[str, str]]) -> None:
    output, stdout = on_a_terminal(home, fake_portaudio("stalls"), "listen", "tiny.onnx", "--seconds", "1.2")
    assert stdout.split() == ["0.35", "s", "low", "1.00"]
    assert "[#####" in output
    assert "low 1.00/0.60" in output
    assert re.search(r"tiny: .*other \d\.\d\d ", output)  # what never fires has no threshold
    assert "heard: low 1.00 at 0:00" in output
    assert output.rstrip().endswith("tiny: low 1 in 1.2 s")


def test_a_terminal_shows_how_near_an_enrolled_name_came(
    home: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    arguments = ("listen", "tiny.onnx", "--seconds", "1.2", "--gallery", "house.db")
    output, _ = on_a_terminal(home, fake_portaudio("stalls"), *arguments)
    shown = re.findall(r"tiny: bell (-?\d\.\d\d) \(needs (\d\.\d\d)\)", output)
    assert shown
    assert all(float(similarity) < float(needed) for similarity, needed in shown)


def test_a_notice_replaces_the_level_on_a_terminal(home: Path, fake_portaudio: Callable[[str], dict[str, str]]) -> None:
    output, _ = on_a_terminal(home, fake_portaudio("unplugged, back"), "doctor", "--seconds", "4")
    assert "NOW" in output
    assert "\r\x1b[KUSB Mic: Audio (hw:1,0) is back\r\n" in output


def test_doctor_and_record_with_a_microphone(
    home: Path, tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(Path.cwd(), *arguments, env=fake_portaudio("stalls"))

    done = ask("doctor", "--seconds", "2", "--json")
    *findings, measured = lines(done)
    assert done.returncode == 1
    assert (measured["rate"], measured["dropped_samples"]) == (RATE, 4410)
    assert findings[0] == {
        "type": "finding",
        "level": "bad",
        "text": "0.10 s of sound were lost: this machine could not keep up (something else keeps it busy)",
    }
    assert "dropouts     0.10 s lost" in ask("doctor", "--seconds", "2").stdout

    clips = tmp_path / "clips"
    done = ask("record", "low", "-o", str(clips), "--count", "1", "--seconds", "0.3", "--countdown", "0.35", "--json")
    *events, summary = lines(done)
    assert done.returncode == 0
    assert (summary["clips"], summary["label"]) == (1, "low")
    assert events[-1]["path"] == str(clips / "low" / summary["group"] / "0001.flac")
    assert (
        clips / "manifest.csv"
    ).read_text() == f"path,label,group\nlow/{summary['group']}/0001.flac,low,{summary['group']}\n"
    again = ask(
        *("record", "mid", "-o", str(clips), "--count", "1", "--seconds", "0.3", "--countdown", "0.35"),
        *("--format", "wav", "--group", "ada", "--no-trim"),
    )
    assert again.stdout == f"{clips}/mid/ada/0001.wav\n", again.stderr
    assert soundfile.info(clips / "mid" / "ada" / "0001.wav").frames == round(0.3 * RATE)
    assert read_manifest(clips / "manifest.csv").classes == read_manifest(clips).classes == ["low", "mid"]
    for label in ("../low", "a|b", ""):
        refused = ask("record", label, "-o", str(clips))
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)

    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "low").touch()
    for place, fault in (
        ("file", "file: cannot create this folder"),
        ("taken", "taken/low/ada: cannot create this folder"),
    ):
        refused = ask("record", "low", "-o", str(tmp_path / place), "--group", "ada")
        assert (refused.returncode, refused.stderr.startswith(f"confit-edge: {tmp_path}/{fault}")) == (2, True)

    listed = (clips / "manifest.csv").read_bytes()
    (clips / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + listed)  # as Excel saves it
    more = ask("record", "low", "-o", str(clips), "--count", "1", "--seconds", "0.3", "--countdown", "0.35")
    assert more.returncode == 0, more.stderr
    assert len(read_manifest(clips / "manifest.csv").clips) == 3
    (clips / "manifest.csv").write_bytes(listed + b"low/caf\xe9.wav,low,ada\n")
    before = sorted(clips.rglob("*.*"))
    refused = ask("record", "low", "-o", str(clips), "--count", "1")
    assert (refused.returncode, "manifest.csv: is not UTF-8" in refused.stderr) == (2, True)
    assert sorted(clips.rglob("*.*")) == before  # nothing was recorded that would not be listed


def test_a_microphone_unplugged_while_clips_are_recorded_is_reported_and_waited_for(
    home: Path, tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    taking = ("--seconds", "2", "--json")
    for arguments in (
        ["record", "low", "-o", str(tmp_path / "clips"), "--count", "2", "--countdown", "0.4", *taking],
        ["enroll", "tiny.onnx", "scene", "--mic", "--takes", "2", "--gallery", str(tmp_path / "house.db"), *taking],
    ):
        done = run(home, *arguments, env=fake_portaudio("unplugged, back"))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("USB Mic: Audio (hw:1,0) went away (unplugged?); waiting for it to come back\n") == 1
        assert done.stderr.count("USB Mic: Audio (hw:1,0) is back\n") == 1
        assert "not kept" not in done.stderr


def test_doctor_does_not_blame_the_machine_for_an_unplugged_microphone(
    fake_portaudio: Callable[[str], dict[str, str]],
) -> None:
    done = run(Path.cwd(), "doctor", "--seconds", "4", "--json", env=fake_portaudio("unplugged, back"))
    *findings, measured = lines(done)
    busy, away = (one["text"] for one in findings if "lost" in one["text"])
    assert busy == "0.10 s of sound were lost: this machine could not keep up (something else keeps it busy)"
    assert away.endswith(
        " s of sound were lost: the microphone was away (unplugged, a loose cable, or a weak power supply)"
    )
    assert float(away.split()[0]) == pytest.approx((measured["dropped_samples"] - 4410) / RATE, abs=0.006)


def test_record_without_a_microphone_leaves_nothing(
    tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    done = run(Path.cwd(), "record", "low", "-o", str(tmp_path / "clips"), env=fake_portaudio("absent"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_record_stopped_before_the_first_clip_reports_it(
    tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]], signal_: signal.Signals
) -> None:
    """At once: nothing is loaded any more that Ctrl-C could interrupt halfway."""
    arguments = ["record", "low", "-o", str(tmp_path / "clips"), "--group", "ada", "--countdown", "60", "--json"]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
        env=fake_portaudio("stalls"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        while "get ready" not in child.stderr.readline():
            assert child.poll() is None
        child.send_signal(signal_)
        assert child.wait(timeout=30) == 0
        folder = str(tmp_path / "clips" / "low" / "ada")
        assert json.loads(child.stdout.read()) == {
            "type": "summary", "label": "low", "group": "ada", "clips": 0, "refused": 0, "folder": folder
        }  # fmt: skip


def test_a_clip_whose_row_does_not_fit_on_the_disk_is_not_kept(tmp_path: Path) -> None:
    """With the largest size that a file may have in place of a full disk: the row is cut short there as here."""
    sound, folder, manifest = tone(500, 0.2), tmp_path / "low" / "ada", tmp_path / "manifest.csv"
    folder.mkdir(parents=True)
    before = b"path,label,group\n" + b"low/bob/0001.wav,low,bob\n" * 1000
    manifest.write_bytes(before)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 8, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            keep(Take(sound, 16_000, soundcheck(sound, 16_000), None), tmp_path, "low", "ada", "wav", False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert manifest.read_bytes() == before
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("before", ["", "path,label,group", "path,label,group\r\nlow/Zoë/0001.wav,low,Zoë"])
def test_a_row_is_added_to_a_manifest_that_was_edited(tmp_path: Path, before: str) -> None:
    """An editor may leave the last row without a line end, and the manifest may be a link to a file elsewhere."""
    sound, folder, manifest = tone(500, 0.2), tmp_path / "low" / "Zoë", tmp_path / "manifest.csv"
    folder.mkdir(parents=True)
    soundfile.write(folder / "0001.wav", sound, 16_000)
    (tmp_path / "elsewhere.csv").write_bytes(before.encode())
    manifest.symlink_to("elsewhere.csv")
    keep(Take(sound, 16_000, soundcheck(sound, 16_000), None), tmp_path, "low", "Zoë", "wav", False)
    assert manifest.is_symlink()
    assert manifest.read_bytes().decode() == (before or "path,label,group") + "\nlow/Zoë/0002.wav,low,Zoë\n"


def test_recorders_in_one_folder_take_turns(tmp_path: Path) -> None:
    sound = tone(500, 0.2)
    take = Take(sound, 16_000, soundcheck(sound, 16_000), None)
    for label in ("low", "mid"):
        (tmp_path / label / "ada").mkdir(parents=True)

    def record(recorder: int) -> list[Path]:
        return [keep(take, tmp_path, ("low", "mid")[recorder % 2], "ada", "wav", False) for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        kept = [path for paths in pool.map(record, range(8)) for path in paths]
    assert len(set(kept)) == 80
    assert sorted(clip.path for clip in read_manifest(tmp_path / "manifest.csv").clips) == sorted(kept)


def test_a_folder_called_mic_is_not_the_microphone(
    home: Path, tmp_path: Path, fake_portaudio: Callable[[str], dict[str, str]]
) -> None:
    (tmp_path / "mic").mkdir()
    shutil.copy(home / "scene.flac", tmp_path / "mic")
    done = run(tmp_path, "listen", str(home / "tiny.onnx"), "--seconds", "0.5", env=fake_portaudio("stalls"))
    assert "mic/scene.flac" not in done.stdout + done.stderr
    assert "in 0.5 s" in done.stderr


def test_devices_are_listed(home: Path, fake_portaudio: Callable[[str], dict[str, str]]) -> None:
    for form in ([], ["--json"]):
        done = run(Path.cwd(), "devices", *form, env=fake_portaudio("stalls"))
        assert (done.returncode, done.stderr) == (0, "")
        if form:
            assert [one["type"] for one in lines(done)] == ["device", "device", "summary"]
            assert lines(done)[0] == {
                "type": "device",
                "index": 1,
                "name": "USB Mic: Audio (hw:1,0)",
                "channels": 1,
                "default_rate": RATE,
                "default": True,
                "rates": [RATE],
            }
        else:
            assert done.stdout.splitlines()[0] == "*   1  USB Mic: Audio (hw:1,0)  44100 Hz  1 channel"


def test_a_missing_microphone_is_reported_to_people_and_programs(
    fake_portaudio: Callable[[str], dict[str, str]],
) -> None:
    for form in ([], ["--json"]):
        done = run(Path.cwd(), "devices", *form, env=fake_portaudio("absent"))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "`confit-edge listen MODEL --source FILE`" in done.stderr
        assert lines(done) == ([{"type": "summary", "devices": 0}] if form else [])


@pytest.mark.parametrize("arguments", ["devices", "listen tiny.onnx", "doctor", "record low -o clips"])
def test_without_portaudio_it_says_what_to_install(home: Path, tmp_path: Path, arguments: str) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    done = run(home, *arguments.split(), env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install libportaudio2" in done.stderr
