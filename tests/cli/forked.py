"""The command in processes of its own, each forked from one that has loaded what it needs: that is paid for once.

A device verb takes a quarter of a second of loading, and a training four seconds, most of them for torch.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.cli.command import ENVIRONMENT
from tests.cli.json_lines import check

ROOT = Path(__file__).parents[2]
PATHS = [str(ROOT / part) for part in ("", "export", "runtime")]


class Forked:
    """A process as subprocess.Popen has it, of which stdin takes bytes and stdout and stderr give text."""

    def __init__(self, arguments: list[str], stdin: int, stdout: int, stderr: int, status: int) -> None:
        self.args, self._status = arguments, os.fdopen(status)
        self.stdin, self.stdout, self.stderr = os.fdopen(stdin, "wb"), os.fdopen(stdout), os.fdopen(stderr)
        self.returncode: int | None = None
        self.pid = int(self._status.readline())

    def poll(self, seconds: float = 0) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            self.returncode = int(self._status.readline())
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        status = self.poll(timeout)
        assert status is not None, f"{self.args} takes longer than {timeout} s"
        return status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, stdin: bytes = b"", timeout: float = 120) -> tuple[str, str]:
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.stdin.write(stdin)
                self.stdin.close()
            except BrokenPipeError:  # it needed no more of it
                pass
            out, err = (one.result() for one in both)
        self.wait(timeout)
        return out, err


class Loaded:
    """A process that has imported `modules`, and forks whatever is to be run. It begins when first asked and ends with us."""

    def __init__(self, *modules: str, **environment: str) -> None:
        self.modules, self.environment = modules, environment
        self.asking: socket.socket | None = None

    def start(
        self, *arguments: str | Path, cwd: Path | None = None, environment: Mapping[str, str] = os.environ,
        stderr: int | None = None,
    ) -> Forked:  # fmt: skip
        """`confit-edge ARGUMENTS`. Where `environment` has a PYTHONPATH, its folders come first.

        It has a pipe for each of stdin, stdout and stderr, or in place of the last the file that is given.
        """
        self.asking = self.asking or self._begin()
        spec = {
            "arguments": list(map(str, arguments)), "cwd": str(cwd or Path.cwd()),
            "environment": {**environment, **self.environment},
        }  # fmt: skip
        (stdin, into), (out, stdout), (err, said), (status, told) = (os.pipe() for _ in range(4))
        socket.send_fds(self.asking, [json.dumps(spec).encode()], [stdin, stdout, stderr or said, told])
        for descriptor in (stdin, stdout, said, told):
            os.close(descriptor)
        return Forked(spec["arguments"], into, out, err, status)

    def run(
        self, *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """The same, to its end. What it prints with --json is held against docs/json.md."""
        process = self.start(*arguments, cwd=cwd, environment=environment)
        out, err = process.communicate(stdin)
        check(arguments, out)
        return subprocess.CompletedProcess(process.args, process.wait(), out, err)

    def _begin(self) -> socket.socket:
        parent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(child.fileno()), *self.modules],
            pass_fds=[child.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            env={**os.environ, **self.environment, "PYTHONPATH": os.pathsep.join(PATHS)},
        )  # fmt: skip
        child.close()
        return parent


# for the verbs that need no torch
DEVICE = Loaded(
    *("confit_edge.cli.listen", "confit_runtime.listener", "confit_runtime.gallery", "confit_runtime.sources.files"),
    *("onnxruntime", "soundfile", "soxr", "rich.progress"),
)
# for those that train, also with an encoder of transformers
TRAINING = Loaded(
    *("confit_edge.cli.train", "confit_edge.cli.distill", "confit_edge.pairtune.student", "confit_edge.geometry.plots"),
    *("confit_edge.encoders.transformers", "transformers.models.whisper.modeling_whisper", "sklearn.linear_model"),
    *("torch._dynamo", "scipy.optimize", "rich.progress"),
    **ENVIRONMENT,
)


def serve(spec: socket.socket) -> None:
    """Fork for each request and tell how what was forked ends; return in that, or leave when nobody asks any more."""
    told: dict[int, int] = {}

    def ended(*_: object) -> None:
        while told and (found := os.waitpid(-1, os.WNOHANG))[0]:
            os.write(told[found[0]], f"{os.waitstatus_to_exitcode(found[1])}\n".encode())
            os.close(told.pop(found[0]))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    signal.signal(signal.SIGCHLD, ended)
    while True:
        request, descriptors, _, _ = socket.recv_fds(spec, 1 << 18, 4)
        if not request:
            sys.exit()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until it is known whom to tell
        pid = os.fork()
        if not pid:
            for descriptor in (spec.detach(), *told.values()):
                os.close(descriptor)
            adopt_streams(json.loads(request), descriptors)
            return
        told[pid] = descriptors.pop()
        os.write(told[pid], f"{pid}\n".encode())
        for descriptor in descriptors:
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def adopt_streams(spec: dict[str, Any], descriptors: list[int]) -> None:
    """Be as a process that a shell has begun."""
    for target, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.environ.clear()
    os.environ.update(spec["environment"])
    os.chdir(spec["cwd"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    sys.argv = ["confit-edge", *spec["arguments"]]


if __name__ == "__main__":
    for module in sys.argv[2:]:
        import_module(module)
    gc.freeze()  # or each process would copy all of it, to count references
    serve(socket.socket(fileno=int(sys.argv[1])))
    from confit_edge.cli import main

    main()
