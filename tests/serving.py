"""Real servers for tests: `opd serve` in a process of its own, and a proxy before it that misbehaves as it is told."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from opd.rollout import STUDENT, Problem, Rollout, Sampling, Visit, continued

TOKEN = "a-token-for-tests-only"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "OPD_SERVE_TOKEN": TOKEN}


class Serve:
    """`opd serve` as a process; `url` is known once it listens."""

    def __init__(self, *words: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "opd", "serve", *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment or ENVIRONMENT
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        self.url = ""
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := re.search(r"at (http://\S+)$", line):
                self.url = found[1]
                break
        threading.Thread(
            target=lambda: self.lines.extend(line.rstrip() for line in self.process.stdout), daemon=True
        ).start()

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)

    def get(self, path: str, token: str = TOKEN) -> httpx.Response:
        return httpx.get(self.url + path, headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=60)

    def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/x-opd-question"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return httpx.post(self.url + path, content=body, headers=headers, trust_env=False, timeout=60)


Fault = Callable[[int, str, int, bytes], tuple[int, bytes] | str | None]  # number, path, status, body -> what is sent


class Proxy:
    """A real HTTP server that passes requests on, and does with the answers what `fault` says.

    None: as it is. A status and a body: those instead. "cut": half of it, then the connection is closed. "slow":
    nothing for a second, then nothing at all. `number` counts the questions (POST) so far.
    """

    def __init__(self, target: str, fault: Fault) -> None:
        self.target, self.fault, self.count, self.lock = target, fault, 0, threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Tests print nothing."""

            def do_GET(self) -> None:
                proxy.serve(self, b"")

            def do_POST(self) -> None:
                proxy.serve(self, self.rfile.read(int(self.headers["content-length"])))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        kept = {k: v for k, v in handler.headers.items() if k.lower() not in ("host", "content-length", "connection")}
        answer = httpx.request(
            handler.command, self.target + handler.path, content=body, headers=kept, trust_env=False, timeout=60
        )
        with self.lock:
            number = self.count
            self.count += handler.command == "POST"
        what = self.fault(number, handler.path, answer.status_code, answer.content)
        if what == "slow":
            time.sleep(1.5)
            handler.close_connection = True
            return
        status, content = what if isinstance(what, tuple) else (answer.status_code, answer.content)
        handler.send_response(status)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        if what == "cut":
            handler.wfile.write(content[: len(content) // 2])
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        handler.wfile.write(content)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def blocks(content: bytes) -> list[bytes]:
    """The blocks of an answer, as they travel."""
    found, start = [], 0
    while start < len(content):
        (size,) = struct.unpack_from("<Q", content, start)
        found += [content[start + 8 : start + 8 + size]] if size else []
        start += 8 + size
    return found


def state_folder(path: Path) -> dict[str, str]:
    """An environment whose token lies under `path`."""
    clean = {k: v for k, v in ENVIRONMENT.items() if k not in ("OPD_SERVE_TOKEN", "OPD_SERVE_TOKEN_FILE")}
    return {**clean, "XDG_STATE_HOME": str(path)}


@contextmanager
def through(server: Any, fault: Fault) -> Iterator[Proxy]:
    """A proxy before a server, as long as it lasts."""
    proxy = Proxy(server.url, fault)
    try:
        yield proxy
    finally:
        proxy.close()


def written(student: Any, n: int = 3, problems: int = 3) -> list[Rollout]:
    """Texts of the student, several for every prompt."""
    found = []
    for number in range(problems):
        problem = Problem(f"p{number}", f"{number}2+{number + 3}1=")
        prompt = student.render(problem.messages)
        seeds = [[Visit(problem, 0, 0).seed(i) for i in range(n)]]
        for piece in student.write([prompt], Sampling(max_new=9), seeds)[0]:
            found.append(continued(prompt, piece, problem, Sampling(), STUDENT))
    return found
