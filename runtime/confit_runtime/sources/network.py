"""Network streams (RTSP cameras, HTTP radio), decoded by the ffmpeg program."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from confit_runtime.arrays import check_duration
from confit_runtime.audio import check_rate, to_mono
from confit_runtime.errors import DeviceError, UsageError
from confit_runtime.sources.base import STREAM_AWAY, Chunk, Gap, Notice, check_not_open
from confit_runtime.sources.clock import boottime
from confit_runtime.sources.pipes import wait_for_data

# what a URL of each scheme may make ffmpeg open: a playlist must not read this machine's files
_HTTP = "http,https,httpproxy,tcp,tls,crypto"
_RTSP = "rtsp,rtp,rtcp,srtp,udp,tcp,tls"
PROTOCOLS = {"http": _HTTP, "https": _HTTP, "rtsp": _RTSP, "rtsps": _RTSP}

# Missing parts of a stream become silence; a clock that is reset, backwards or far ahead, is not a gap.
_DURATION_SINCE_LAST = "if(between(PTS-PREV_INPTS,0,15/TB),PTS-PREV_INPTS,NB_SAMPLES/SR/TB)"
FILTER = f"asetpts='if(isnan(PREV_OUTPTS),PTS,PREV_OUTPTS+{_DURATION_SINCE_LAST})',aresample=async=1"

# ffmpeg's lines about a stream and its output: they are no reason why it ended
_NO_REASON = re.compile(
    r"\s|(?:In|Out)put #|Stream mapping:|Press \[q\]|size=|.*(?:muxing overhead|Guessed Channel Layout|Estimating duration)"
)

_HOST = re.compile(r"(?:[^/?#]*@)?(?:\[[\da-fA-F:.]+(?:%[\w.%~-]+)?\]|[^/?#:@\[\]]+)(?::\d*)?(?=[/?#]|$)")
_SECRET_PARAMETER = re.compile(r"((?:pass|pw|pin|token|key|secret|auth)[a-z_]*=)[^&;]*", re.IGNORECASE)
_PARAMETER_NAME = re.compile(r"[A-Za-z][\w-]{0,23}", re.ASCII)  # of a query parameter
_STREAM_PARAMETER = re.compile(  # parameters that distinguish the streams of a camera: channel=1
    r"(?:channel|chan|chn?|camera|cam|(?:sub)?stream|subtype|sub|profile|track|media|quality|resolution|res|fps|codec|format|index)"
    r"[_-]?(?:id|no|num|number|name|type)?\d{0,2}=[A-Za-z0-9]{1,4}",
    re.IGNORECASE | re.ASCII,
)

_POLL_S = 0.2
_MAX_WAIT_S = 30.0
# a stream has caught up when, for _SETTLED_S, it came no faster than _FASTEST times real time
_SETTLE_S, _MAX_SPEED = 1.0, 1.25
_MAX_BACKLOG_S = 60.0  # of sound buffered while catching up
_LATE_DELIVERY_S = 15.0  # part of the absence that a stream may still deliver when it is back


def is_url(spec: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", spec) is not None


def without_secrets(url: str) -> str:
    """A URL that is safe to show: without user and password, secrets in its path masked, and its query mostly masked.

    A query parameter is shown if its name distinguishes streams, such as `channel`, and its value has at most four
    letters or digits. If the URL has no valid host, a / ? or # may belong to the password, which then ends at the very
    last @. What is not a URL stays as it is.
    """
    if not is_url(url):
        return url
    scheme, rest = url.split("://", 1)
    if _HOST.match(rest):
        rest, *behind = re.split("(?=[?#])", rest, maxsplit=1)
        rest = rest.rpartition("@")[2]
    else:
        rest, *behind = re.split("(?=[?#])", rest.rpartition("@")[2], maxsplit=1)
    query, mark, _ = "".join(behind).partition("#")
    return f"{scheme}://{_SECRET_PARAMETER.sub(_mask_secret, rest)}{re.sub('[^?&;]+', _mask_parameter, query)}{mark and '#***'}"


def _mask_parameter(found: re.Match[str]) -> str:
    """One parameter of a query: unchanged, with its value masked, or masked completely if it may itself be a secret."""
    name, _, value = found[0].partition("=")
    if not value or "=" in value or _PARAMETER_NAME.fullmatch(name) is None:
        return "***"
    return found[0] if _STREAM_PARAMETER.fullmatch(found[0]) else f"{name}=***"


def _mask_secret(found: re.Match[str]) -> str:
    return f"{found[1]}***"


class NetworkSource:
    """An RTSP or HTTP stream, decoded to mono at `rate` Hz by ffmpeg.

    A stream that breaks off, or delivers nothing for `stall_s`, is opened again: first after one second, then after
    twice as long each time, up to 30 s. Its clock continues meanwhile. When the stream is back and has delivered what
    it had buffered, a gap sets the clock to where it would have been, and sound heard before is left out.

    A stream that states its length, such as a file on a web server, ends at its end; if it breaks off before that,
    this is an error. `name` is the URL `without_secrets`.

    Raises UsageError for a scheme not in `PROTOCOLS` and an invalid `stall_s`; DeviceError without ffmpeg and, during
    iteration, if the stream cannot be opened the first time, with ffmpeg's message.
    """

    live = True

    def __init__(self, url: str, *, rate: int = 48_000, stall_s: float = 10.0, ffmpeg: str = "ffmpeg") -> None:
        self.name = without_secrets(url)
        scheme, host = _scheme_and_host(url, self.name)
        if scheme not in PROTOCOLS:
            raise UsageError(f"{scheme}:// is not supported (supported: {', '.join(PROTOCOLS)})")
        if not host:
            raise UsageError(f"{self.name}: has no host name")
        program = shutil.which(ffmpeg)
        if program is None:
            raise DeviceError("listening to a URL needs the program ffmpeg: sudo apt-get install ffmpeg")
        self.rate = check_rate(rate)
        self._url, self._stall_s = url, check_duration(stall_s, "the stall_s of a network stream", _POLL_S)
        self._command = [
            *(program, "-nostdin", "-hide_banner", "-loglevel", "info", "-nostats"),
            *("-protocol_whitelist", PROTOCOLS[scheme]),
            *(("-rtsp_transport", "tcp") if scheme.startswith("rtsp") else ()),
            *("-i", url, "-map", "0:a:0", "-af", FILTER),
            *("-ac", "1", "-ar", str(self.rate), "-f", "s16le", "pipe:1"),
        ]
        self._stopped = threading.Event()
        self._ffmpeg: _Ffmpeg | None = None
        self._heard_s = self._clock_s = 0.0  # seconds of sound, without and with the gaps
        self._clock_origin = math.inf  # when the clock stood at 0: the earliest time consistent with what came

    def __enter__(self) -> NetworkSource:
        check_not_open(self.name, open_already=self._ffmpeg is not None)
        self._ffmpeg = _Ffmpeg(self._command)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __iter__(self) -> Iterator[Chunk | Gap | Notice]:
        while not self._stopped.is_set():
            for chunk in self._hear():
                yield self._advance_clock(chunk)
            if self._stopped.is_set() or self._ended():
                return
            yield from self._wait()

    def stop(self) -> None:
        self._stopped.set()

    def _hear(self) -> Iterator[Chunk]:
        """Yield what the open stream delivers until it breaks off."""
        if self._ffmpeg is None:
            raise UsageError(f"{self.name}: is not open: iterate over a stream inside its `with` block")
        heard = boottime()
        while not self._stopped.is_set() and boottime() - heard < self._stall_s:
            samples = self._ffmpeg.read(_POLL_S)
            if len(samples):
                heard = boottime()
                yield to_mono(samples), self.rate
            elif self._ffmpeg.ended:
                return

    def _advance_clock(self, chunk: Chunk) -> Chunk:
        """The chunk, after advancing the clock by it."""
        seconds = len(chunk[0]) / self.rate
        self._heard_s, self._clock_s = self._heard_s + seconds, self._clock_s + seconds
        self._clock_origin = min(self._clock_origin, boottime() - self._clock_s)
        return chunk

    def _gap(self, seconds: float) -> Gap:
        """A gap of that many seconds, after advancing the clock by it."""
        gap = Gap(max(0, round(seconds * self.rate)), STREAM_AWAY)
        self._clock_s += gap.samples / self.rate
        return gap

    def _ended(self) -> bool:
        """Whether the stream reached its end instead of breaking off.

        Raises DeviceError if waiting for it is pointless.
        """
        assert self._ffmpeg is not None
        self._ffmpeg.close()
        if not self._heard_s:
            raise DeviceError(f"{self.name}: cannot be opened ({self._failure_reason()})")
        duration_s = self._ffmpeg.duration_s
        if duration_s is not None and self._heard_s < duration_s - 1.0:
            # opened again, it would start from its beginning
            text = f"broke off after {self._heard_s:.1f} s of {duration_s:.1f} s ({self._failure_reason()})"
            raise DeviceError(f"{self.name}: {text}")
        return duration_s is not None

    def _wait(self) -> Iterator[Chunk | Gap | Notice]:
        """Yield gaps that keep the clock running until the stream is open again, then what it delivers first."""
        yield Notice("away", f"{self.name} broke off ({self._failure_reason()}); waiting for it to come back")
        pause = 1.0
        while not self._stopped.wait(pause):
            self._ffmpeg = _Ffmpeg(self._command)
            chunks = self._drain_backlog()
            behind = boottime() - self._clock_origin - self._clock_s
            if chunks:
                pcm = np.concatenate([pcm for pcm, _ in chunks])
                away = behind - len(pcm) / self.rate
                yield self._gap(away)
                yield Notice("back", f"{self.name} is back")
                # what it buffered from before it broke off was already heard
                yield self._advance_clock((pcm[max(0, round(-away * self.rate)) :], self.rate))
                return
            if behind > _LATE_DELIVERY_S:
                yield self._gap(behind - _LATE_DELIVERY_S)
            self._ffmpeg.close()
            pause = min(_MAX_WAIT_S, 2 * pause)

    def _drain_backlog(self) -> list[Chunk]:
        """What a reopened stream delivers until it arrives no faster than real time."""
        chunks: list[Chunk] = []
        began, held_s, recent = 0.0, 0.0, deque[tuple[float, float]]()  # when how many seconds came
        for chunk in self._hear():
            now, seconds = boottime(), len(chunk[0]) / self.rate
            began, held_s = began or now, held_s + seconds
            chunks.append(chunk)
            recent.append((now, seconds))
            while recent[0][0] < now - _SETTLE_S:
                recent.popleft()
            steady = sum(one for _, one in recent) <= _MAX_SPEED * _SETTLE_S
            if (now - began >= _SETTLE_S and steady) or held_s >= _MAX_BACKLOG_S:
                break
        return chunks

    def _failure_reason(self) -> str:
        assert self._ffmpeg is not None
        if not self._ffmpeg.ended:
            return f"it delivered nothing for {self._stall_s:g} s"
        message = self._ffmpeg.last_message.replace(self._url, self.name)
        message = re.sub(
            r"\w+://\S+", lambda found: without_secrets(found[0]), message
        )  # URLs that it was redirected to
        return f"ffmpeg: {message}" if message else "it ended"

    def _close(self) -> None:
        if self._ffmpeg is not None:
            self._ffmpeg.close()
            self._ffmpeg = None


def _scheme_and_host(url: str, shown: str) -> tuple[str, str | None]:
    """The scheme and host of a URL. Raises UsageError, without showing secrets, if the URL cannot be parsed."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        # Python's message may contain the password
        raise UsageError(
            f"{shown}: is not a valid URL: if the password contains / ? # or @, write them as %2F %3F %23 %40"
        ) from error
    return parts.scheme.lower(), parts.hostname


class _Ffmpeg:
    """One run of ffmpeg: PCM from its stdout, and its messages on stderr."""

    def __init__(self, command: list[str]) -> None:
        self.duration_s: float | None = None  # if the stream states its length
        self.ended = False
        self._partial_sample = b""  # half a sample
        self._lines: deque[str] = deque(maxlen=10)
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    @property
    def last_message(self) -> str:
        return self._lines[-1] if self._lines else ""

    def read(self, timeout_s: float) -> npt.NDArray[np.int16]:
        """The samples available: empty if nothing came in time, or if the stream has `ended`."""
        assert self._process.stdout is not None
        if wait_for_data(self._process.stdout.fileno(), timeout_s):
            data = self._process.stdout.read(65_536)
            self.ended = not data
            self._partial_sample += data
        complete = len(self._partial_sample) // 2 * 2
        samples, self._partial_sample = (
            np.frombuffer(self._partial_sample[:complete], "<i2"),
            self._partial_sample[complete:],
        )
        return samples

    def close(self) -> None:
        """Kill the process if it is still running."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        if not self.ended:
            self._process.kill()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._process.stderr.close()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            decoded = line.decode(errors="replace")
            text = " ".join(decoded.split())
            if match := re.match(r"Duration: (?:(\d+):(\d+):([\d.]+)|N/A)", text):
                hours, minutes, seconds = match.groups(default="0")
                self.duration_s = 3600 * int(hours) + 60 * int(minutes) + float(seconds) or None
            elif text and not _NO_REASON.match(decoded):
                self._lines.append(text)
