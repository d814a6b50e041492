"""A stock vLLM server in a process of its own, for tests of whoever talks to one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SMALL = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several servers do not fight for one core
    "TORCHDYNAMO_DISABLE": "1",  # else the first question waits for a compiler
}


class VLLM:
    """A server of the model in `folder` on a port of its own; `url` answers once this is made.

    flags: more words of its command line. environment: more of it. port: a free one where it is 0.
    Its log is FOLDER.log; it shows the end of it where it does not start.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        environment: dict[str, str] | None = None,
        port: int = 0,
        name: str = "tiny",
        seconds: float = 600.0,
    ) -> None:
        assert PYTHON.exists(), f"{PYTHON} is not there: run these tests with make test-vllm"
        self.folder, self.name, self.port = folder, name, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder.with_suffix(".log")
        module = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        plain = ["--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", name, "--dtype", "float32"]
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*module, *plain, "--enforce-eager", *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**kept, **SMALL, **(environment or {})},
                start_new_session=True,  # a group, so that its engine ends with it
            )
        try:
            self._wait(seconds)
        except BaseException:
            self.kill()
            raise

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=60)

    def post(self, path: str, **body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, trust_env=False, timeout=60)

    def stop(self) -> None:
        """Asked to end, and waited for."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=20)
        self.kill()

    def kill(self) -> None:
        """Ended at once with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.3)
        tail = self.log.read_text(errors="replace").splitlines()[-40:]
        raise AssertionError("\n".join([f"vLLM does not answer at {self.url}; its log ends with:", *tail]))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
