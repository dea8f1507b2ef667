"""Network streams: a real ffmpeg and a web server of the tests' own, which serves files and radio that breaks off."""

from __future__ import annotations

import http.server
import io
import math
import os
import re
import resource
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile

from confit_runtime import DeviceError, UsageError
from confit_runtime.sources import Gap, NetworkSource, Notice, PcmSource, open_source
from confit_runtime.sources.network import is_url, without_secrets
from tests.tiny_model import Floats, tone

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
RATE = 16_000


class Radio(http.server.ThreadingHTTPServer):
    """`/file.flac` is a second of a tone; of the six of `/torn.wav` only half are sent.

    `/radio` sends a WAV without an end: two seconds of it at once, as radio does to who comes new, then as time passes; it
    hangs up after two more. `/stalling` sends eight, and then nothing for ten.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        file = io.BytesIO()
        soundfile.write(file, tone(440, 1.0, RATE), RATE, format="flac")
        soundfile.write(wav := io.BytesIO(), np.tile(tone(440, 1.0, RATE), 6), RATE, format="wav")
        self.bodies = {"/torn.wav": wav.getvalue(), "/file.flac": file.getvalue()}
        self.visits: list[str] = []

    @property
    def url(self) -> str:
        return f"http://ada:secret@127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Radio

    def do_GET(self) -> None:
        self.server.visits.append(self.path)
        if self.path in ("/radio", "/stalling"):
            self.send_radio(stalls=self.path == "/stalling")
            return
        body = self.server.bodies.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/torn.wav" else body)

    def send_radio(self, *, stalls: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "audio/wav")
        self.end_headers()
        endless = struct.pack("<I", 2**32 - 1)
        form = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
        self.wfile.write(b"RIFF" + endless + b"WAVEfmt " + form + b"data" + endless)
        if stalls:
            self.wfile.write(bytes(8 * 2 * RATE))
            time.sleep(10.0)
            return
        self.wfile.write(bytes(2 * 2 * RATE))
        began = time.monotonic()
        for tenth in range(20):
            self.wfile.write(bytes(2 * RATE // 10))
            time.sleep(max(0.0, began + (tenth + 1) / 10 - time.monotonic()))

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def radio() -> Iterator[Radio]:
    with Radio() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@needs_ffmpeg
def test_a_file_on_a_web_server_is_heard_to_its_end(radio: Radio) -> None:
    source = NetworkSource(f"{radio.url}/file.flac", rate=RATE)
    assert "secret" not in source.name
    parts: list[Floats] = []
    with source:
        for item in source:
            assert isinstance(item, tuple)
            assert item[1] == RATE
            parts.append(item[0])
        with pytest.raises(UsageError, match=r"file\.flac: is already open: .* outside its `with` block"), source:
            pass
    np.testing.assert_allclose(np.concatenate(parts), tone(440, 1.0, RATE), atol=1e-3)
    assert set(radio.visits) == {"/file.flac"}


@pytest.fixture
def second(tmp_path: Path) -> str:
    """A program that delivers a second of silence as ffmpeg does, whatever it is asked for."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\necho '  Duration: 00:00:01.00, start: 0' >&2\nhead -c {2 * RATE} /dev/zero\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_stream_is_given_a_number_of_seconds(second: str, seconds: float) -> None:
    with pytest.raises(UsageError, match=r"stall_s of a network stream: must be a number of seconds, 0\.2 or more"):
        NetworkSource("http://localhost/radio", stall_s=seconds, ffmpeg=second)


def test_a_stream_that_is_not_open_says_so(second: str) -> None:
    source = NetworkSource("http://ada:secret@localhost/radio", rate=RATE, ffmpeg=second)
    with pytest.raises(UsageError, match=r"is not open: iterate .* inside its `with` block") as caught:
        next(iter(source))
    assert "secret" not in str(caught.value)
    with source:
        next(iter(source))
    with pytest.raises(UsageError, match="is not open"):
        next(iter(source))


def test_a_stream_is_heard_where_a_pipe_cannot_be_waited_for(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which has no `select.poll`, and whose `select` takes sockets only."""
    with NetworkSource("http://localhost/radio", rate=RATE, ffmpeg=second) as source, monkeypatch.context() as windows:
        windows.delattr(select, "poll")
        windows.setattr(sys, "platform", "win32")
        assert sum(len(item[0]) for item in source if isinstance(item, tuple)) == RATE


def test_a_stream_is_heard_by_a_program_of_many_open_files(second: str) -> None:
    """`select` takes no descriptor beyond 1,023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1_200:
        pytest.skip("so many files may not be open here")
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1_200), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while stack.enter_context(open(os.devnull)).fileno() < 1_100:
            pass
        with NetworkSource("http://localhost/radio", rate=RATE, ffmpeg=second) as source:
            assert sum(len(item[0]) for item in source if isinstance(item, tuple)) == RATE
        read, write = os.pipe()
        with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as writer:
            writer.write(bytes(20))
            assert [len(item[0]) for item in islice(PcmSource(reader, RATE), 2) if isinstance(item, tuple)] == [10]


@needs_ffmpeg
def test_a_stream_that_breaks_off_is_opened_again_and_its_clock_runs_on(radio: Radio) -> None:
    """Whatever it delivers at once when it is back: what it sent while ffmpeg looked at it, and what it kept."""
    source = NetworkSource(f"{radio.url}/radio", rate=RATE)
    states, away, clock, zeros = list[str](), 0.0, 0.0, [math.inf]
    with source:
        for item in source:
            if isinstance(item, Notice):
                states.append(item.state)
                zeros += [math.inf] if item.state == "back" else []
                assert "secret" not in item.text
                assert not re.search("size=|encoder", item.text)  # as if how much came were the reason
            else:
                seconds = (item.samples if isinstance(item, Gap) else len(item[0])) / RATE
                away += seconds if isinstance(item, Gap) else 0.0
                clock += seconds
            if isinstance(item, tuple):
                zeros[-1] = min(zeros[-1], time.monotonic() - clock)  # when the clock stood at 0, by what came
            if states == ["away", "back"] * 3:
                source.stop()
    assert states == ["away", "back"] * 3
    assert max(zeros[:-1]) - min(zeros[:-1]) < 0.3, zeros
    assert away < 3 * 2.0  # 1 s of waiting each time, less what was kept


@needs_ffmpeg
def test_a_stalled_stream_is_reported(radio: Radio) -> None:
    """Not what ffmpeg, which runs on, told of the stream as it began."""
    with NetworkSource(f"{radio.url}/stalling", rate=RATE, stall_s=1.5) as source:
        away = next(item for item in source if isinstance(item, Notice))
    told = "broke off (it delivered nothing for 1.5 s); waiting for it to come back"
    assert (away.state, away.text) == ("away", f"{source.name} {told}")


@needs_ffmpeg
def test_missing_packets_become_silence(radio: Radio, tmp_path: Path) -> None:
    """Two of six seconds of MPEG-TS, as cameras send it, never came; its time stamps say so."""
    pcm = np.concatenate([tone(440, 4.0, RATE), tone(1200, 2.0, RATE)])
    soundfile.write(tmp_path / "whole.wav", pcm, RATE)
    encode = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        tmp_path / "whole.wav",
        "-c:a",
        "mp2",
        "-f",
        "mpegts",
        tmp_path / "whole.ts",
    ]
    subprocess.run(encode, check=True)
    packets = (tmp_path / "whole.ts").read_bytes()
    second = len(packets) // 188 // 6 * 188
    radio.bodies["/holed.ts"] = packets[: 2 * second] + packets[4 * second :]
    with NetworkSource(f"{radio.url}/holed.ts", rate=RATE) as source:
        heard = np.concatenate([item[0] for item in source if isinstance(item, tuple)])
    assert len(heard) / RATE == pytest.approx(6.0, abs=0.2)
    assert np.abs(heard[round(2.4 * RATE) : round(3.6 * RATE)]).max() < 0.01
    loud = np.abs(np.fft.rfft(heard[-RATE:]))
    assert np.argmax(loud) == pytest.approx(1200, abs=3)


@needs_ffmpeg
def test_a_clock_that_is_set_ahead_is_no_hole(radio: Radio, tmp_path: Path) -> None:
    """A camera that learns what time it is: two hours of silence would be one more hour each second."""
    ahead = [
        "-f",
        "lavfi",
        "-i",
        f"sine=frequency=500:duration=4:sample_rate={RATE}",
        "-af",
        "asetpts='PTS+gte(T,2)*7200/TB'",
    ]
    subprocess.run(["ffmpeg", "-v", "error", *ahead, "-c:a", "aac", tmp_path / "jump.flv"], check=True)
    radio.bodies["/jump.flv"] = (tmp_path / "jump.flv").read_bytes()
    heard_s = 0.0
    source = NetworkSource(f"{radio.url}/jump.flv", rate=RATE)
    with source, suppress(DeviceError):  # what says how long it is is a file, which ends before the time it tells
        for item in source:
            heard_s += len(item[0]) / RATE if isinstance(item, tuple) else 0.0
            if heard_s > 60:
                break
    assert heard_s == pytest.approx(4.0, abs=0.3)


@needs_ffmpeg
def test_a_file_that_breaks_off_on_the_way_is_an_error(radio: Radio) -> None:
    with NetworkSource(f"{radio.url}/torn.wav", rate=RATE) as source, pytest.raises(DeviceError, match=r"of 6\.0 s"):
        list(source)


@needs_ffmpeg
@pytest.mark.parametrize("path", ["/nothing", "/file.flac"])
def test_a_stream_that_cannot_be_opened_reports_ffmpegs_message(radio: Radio, path: str) -> None:
    radio.bodies["/file.flac"] = b"this is not sound"
    with NetworkSource(radio.url + path) as source, pytest.raises(DeviceError, match="ffmpeg: ") as caught:
        list(source)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_ffmpeg
def test_a_playlist_cannot_make_ffmpeg_read_files_of_this_machine(radio: Radio, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "private.wav", tone(440, 1.0, RATE), RATE)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", f"file://{tmp_path}/private.wav", "#EXT-X-ENDLIST", ""]
    radio.bodies["/list.m3u8"] = "\n".join(lines).encode()
    with NetworkSource(f"{radio.url}/list.m3u8") as source, pytest.raises(DeviceError):
        list(source)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "concat://a", "ftp://host/x", "http:///nothing"])
def test_urls_that_are_not_listened_to(url: str) -> None:
    assert is_url(url)
    with pytest.raises(UsageError):
        open_source(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://ada:s3c/ret@127.0.0.1:1/x",
        "http://ada:s3c#ret@127.0.0.1/x",
        "http://ada:s3c@ret@/x",
        "rtsp://[::1/ada:s3cret",
        "http://ada:s3cret@host:port/x",
    ],
)
def test_invalid_urls_are_rejected_without_showing_the_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(url)
    assert "s3c" not in str(caught.value).replace("[::1/ada:s3cret", "")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://cam/video.cgi?user=admin&pwd=s3cret", "http://cam/video.cgi?user=***&pwd=***"),
        ("http://cam:80/x?at=a@b", "http://cam:80/x?at=***"),
        ("http://bob:p@s3@cam/x?a=b@s3c#s3", "http://cam/x?a=***#***"),
        ("http://bob:p?s3@cam/x", "http://cam/x"),
        ("http://[::1]:8000/x#s3cret", "http://[::1]:8000/x#***"),
        (
            "rtsp://cam:554/user=admin&password=s3c/ret&channel=1.sdp",
            "rtsp://cam:554/user=admin&password=***&channel=1.sdp",
        ),
        ("rtsp://cam/user=admin_Password=s3cret_channel=2", "rtsp://cam/user=admin_Password=***"),
        ("rtsp://cam/ch1/main", "rtsp://cam/ch1/main"),
        ("http://cam/token=s3cret/live?x", "http://cam/token=***?***"),
        ("rtsp://cam/live?channel=1&subtype=0", "rtsp://cam/live?channel=1&subtype=0"),
        ("http://cam/v?psw=1234&name=bob;id=1234&cam=2", "http://cam/v?psw=***&name=***;id=***&cam=2"),
        ("rtsp://cam/live?c2s3cret=&a=b=c;p=s3&x=s3cret&PIN=s3", "rtsp://cam/live?***&***;p=***&x=***&PIN=***"),
        ("rtsp://[fe80::1%25eth0]/s?user=a@b&pwd=s3cret", "rtsp://[fe80::1%25eth0]/s?user=***&pwd=***"),
    ],
)
def test_secrets_in_urls_are_masked(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
    assert without_secrets("mic:a?b") == "mic:a?b"
    with pytest.raises(UsageError) as caught:
        open_source(url, rate=16_000)
    assert shown in str(caught.value)
    assert "s3" not in str(caught.value)


def test_a_missing_ffmpeg_error_says_what_to_install() -> None:
    with pytest.raises(DeviceError, match="apt-get install ffmpeg"):
        NetworkSource("http://localhost/radio", ffmpeg="no-such-program")
