"""One process loads what every run needs, once; each run is a fork of it and starts at once instead of in five seconds.

Only for runs on a processor: a fork of a process that has met a graphics driver cannot use it. Nothing is computed
before the fork, so that a forked run has the bits of one that was started by itself.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, NoReturn

from opd.errors import OpdError

NEEDED = "opd.run", "opd.report", "transformers.generation", "transformers.models.auto.modeling_auto"
EVERY = 0.1  # seconds between two looks for runs that have ended
MOST = 2**16  # bytes of a message; a run's words are a few hundred


class Nursery:
    """The side of whoever wants runs: starts them, hears of their ends. It ends with this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "opd.compare.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
            )  # fmt: skip
        self.codes: dict[int, int] = {}  # by process
        atexit.register(self.close)

    def start(self, words: Sequence[str], output: IO[bytes]) -> Forked:
        """`opd WORDS...` as a process of a session of its own, which keeps `output` open and writes there."""
        socket.send_fds(self.line, [json.dumps(words).encode()], [output.fileno()])
        while "pid" not in (said := self._heard()):
            self.codes |= {said["ended"]: said["code"]}
        return Forked(self, said["pid"])

    def code(self, pid: int) -> int | None:
        """The exit code of a run that has ended, negative for a signal."""
        while pid not in self.codes and (said := self._heard(socket.MSG_DONTWAIT)):
            self.codes |= {said["ended"]: said["code"]}
        return self.codes.get(pid)

    def close(self) -> None:
        """No more runs; those that are going on do so."""
        self.line.close()
        self.process.wait()

    def _heard(self, flags: int = 0) -> dict[str, int]:
        try:
            message = self.line.recv(MOST, flags)
        except BlockingIOError:
            return {}
        if not message:
            raise OpdError("the process that starts the runs has gone", remedy="The same command goes on")
        return json.loads(message)


class Forked:
    """A run, with as much of subprocess.Popen as a pool needs."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.nursery, self.pid = nursery, pid

    def poll(self) -> int | None:
        return self.nursery.code(self.pid)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def serve(line: socket.socket) -> None:
    """Forks a run per message, until nobody is at the other end; in a fork it is `python -m opd WORDS...`."""
    for name in NEEDED:
        importlib.import_module(name)
    while True:
        if select.select([line], [], [], EVERY)[0]:
            words, files, *_ = socket.recv_fds(line, MOST, 1)
            if not words:
                return
            if not (pid := os.fork()):
                become(json.loads(words), files[0], line)
            os.close(files[0])
            line.send(json.dumps({"pid": pid}).encode())
        tell(line)


def become(words: Sequence[str], output: int, line: socket.socket) -> NoReturn:
    line.close()
    os.setsid()
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    sys.argv = ["opd", *words]
    runpy.run_module("opd", run_name="__main__")
    raise AssertionError("python -m opd ends by itself")


def tell(line: socket.socket) -> None:
    """Says which runs have ended, and how."""
    with suppress(ChildProcessError):  # there is none
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            line.send(json.dumps({"ended": found[0], "code": os.waitstatus_to_exitcode(found[1])}).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
