"""Network streams (RTSP cameras, HTTP radio) through ffmpeg, which is run as a program where it is installed."""

from __future__ import annotations

import re
import select
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import urlsplit

import numpy as np

from confit_runtime.audio import check_rate, to_mono
from confit_runtime.errors import DeviceError, UsageError
from confit_runtime.sources.base import Chunk, Gap, Notice

AWAY = "the stream was away"

# what a URL of each scheme may make ffmpeg open in its turn: a playlist must not read this machine's files
_HTTP = "http,https,httpproxy,tcp,tls,crypto"
_RTSP = "rtsp,rtp,rtcp,srtp,udp,tcp,tls"
PROTOCOLS = {"http": _HTTP, "https": _HTTP, "rtsp": _RTSP, "rtsps": _RTSP}

_POLL_S = 0.2
_LONGEST_WAIT_S = 30.0


def is_url(spec: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", spec) is not None


class NetworkSource:
    """An RTSP or HTTP stream, decoded and made mono at `rate` Hz by ffmpeg.

    A stream that breaks off, or delivers nothing for `stall_s`, is opened again, at first after a second, then after
    twice as long each time up to 30 s; its clock runs on meanwhile. What says how long it is, as a file on a web server
    does, ends with its end, and is an error when it breaks off before. `name` is the URL without user and password.

    Raises UsageError on a scheme that is none of `PROTOCOLS`, DeviceError without ffmpeg, and, on the way, when the
    stream cannot be opened the first time, with what ffmpeg says.
    """

    live = True

    def __init__(self, url: str, *, rate: int = 48_000, stall_s: float = 10.0, ffmpeg: str = "ffmpeg") -> None:
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        if scheme not in PROTOCOLS:
            raise UsageError(f"{scheme}:// cannot be listened to (can be: {', '.join(PROTOCOLS)})")
        if not parts.hostname:
            raise UsageError(f"{url}: names no host")
        program = shutil.which(ffmpeg)
        if program is None:
            raise DeviceError("listening to a URL needs the program ffmpeg: apt-get install ffmpeg")
        self.rate = check_rate(rate)
        self.name = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._url, self._stall_s = url, stall_s
        self._command = [
            *(program, "-nostdin", "-hide_banner", "-loglevel", "info", "-nostats"),
            *("-protocol_whitelist", PROTOCOLS[scheme]),
            *(("-rtsp_transport", "tcp") if scheme.startswith("rtsp") else ()),
            *("-i", url, "-map", "0:a:0", "-ac", "1", "-ar", str(self.rate), "-f", "s16le", "pipe:1"),
        ]
        self._stopped = threading.Event()
        self._ffmpeg: _Ffmpeg | None = None

    def __enter__(self) -> NetworkSource:
        self._ffmpeg = _Ffmpeg(self._command)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __iter__(self) -> Iterator[Chunk | Gap | Notice]:
        samples = 0
        while not self._stopped.is_set():
            heard = time.monotonic()
            for chunk in self._hear():
                heard, samples = time.monotonic(), samples + len(chunk[0])
                yield chunk
            if self._stopped.is_set() or self._ended(samples / self.rate):
                return
            yield from self._wait(heard)

    def stop(self) -> None:
        self._stopped.set()

    def _hear(self) -> Iterator[Chunk]:
        """What the open stream delivers until it breaks off."""
        assert self._ffmpeg is not None, "a stream is iterated over inside its `with` block"
        heard, held = time.monotonic(), b""
        while not self._stopped.is_set() and time.monotonic() - heard < self._stall_s:
            data = self._ffmpeg.read(_POLL_S)
            if data is None:
                continue
            if not data:
                return
            heard, held = time.monotonic(), held + data
            whole = len(held) // 2 * 2
            samples, held = np.frombuffer(held[:whole], "<i2"), held[whole:]
            yield to_mono(samples), self.rate

    def _ended(self, heard_s: float) -> bool:
        """Whether the stream came to its end, rather than broke off. Raises DeviceError where it is not to be waited for."""
        assert self._ffmpeg is not None
        self._ffmpeg.close()
        if not heard_s:
            raise DeviceError(f"{self.name}: cannot be listened to ({self._why()})")
        duration_s = self._ffmpeg.duration_s
        if duration_s is not None and heard_s < duration_s - 1.0:
            # opened again it would begin from its beginning
            raise DeviceError(f"{self.name}: broke off after {heard_s:.1f} s of {duration_s:.1f} s ({self._why()})")
        return duration_s is not None

    def _wait(self, heard: float) -> Iterator[Gap | Notice]:
        """Gaps that keep the clock running, until the stream was opened again and delivers."""
        yield Notice("away", f"{self.name} broke off ({self._why()}); waiting for it to come back")
        told, pause = 0, 1.0
        while not self._stopped.wait(pause):
            self._ffmpeg = _Ffmpeg(self._command)
            back = self._ffmpeg.wait_for_data(self._stall_s, self._stopped)
            due = int((time.monotonic() - heard) * self.rate) - told
            yield Gap(due, AWAY)
            told += due
            if back:
                yield Notice("back", f"{self.name} is back")
                return
            self._ffmpeg.close()
            pause = min(_LONGEST_WAIT_S, 2 * pause)

    def _why(self) -> str:
        assert self._ffmpeg is not None
        said = self._ffmpeg.last_words.replace(self._url, self.name)
        return f"ffmpeg: {said}" if said else "it delivers nothing"

    def _close(self) -> None:
        if self._ffmpeg is not None:
            self._ffmpeg.close()


class _Ffmpeg:
    """One run of ffmpeg: PCM from its stdout, and what it says on stderr."""

    def __init__(self, command: list[str]) -> None:
        self.duration_s: float | None = None  # where the stream says how long it is
        self._ended = False
        self._lines: deque[str] = deque(maxlen=10)
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self._reader = threading.Thread(target=self._read_words, daemon=True)
        self._reader.start()

    @property
    def last_words(self) -> str:
        return self._lines[-1] if self._lines else ""

    def read(self, timeout_s: float) -> bytes | None:
        """The PCM there is: None where nothing came in time, nothing at its end."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            return None
        data = self._process.stdout.read(65_536)
        self._ended = not data
        return data

    def wait_for_data(self, timeout_s: float, stopped: threading.Event) -> bool:
        """Whether PCM begins to come."""
        assert self._process.stdout is not None
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and not stopped.is_set():
            if select.select([self._process.stdout], [], [], _POLL_S)[0]:
                # an end can be "read", too
                return self._process.poll() is None
        return False

    def close(self) -> None:
        """Kill it if it still runs."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        if not self._ended:
            self._process.kill()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._process.stderr.close()

    def _read_words(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = " ".join(line.decode(errors="replace").split())
            if match := re.match(r"Duration: (?:(\d+):(\d+):([\d.]+)|N/A)", text):
                hours, minutes, seconds = match.groups(default="0")
                told = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
                self.duration_s = told or None
            elif text:
                self._lines.append(text)
