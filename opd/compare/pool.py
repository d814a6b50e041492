"""Runs as processes side by side: each in its own folder, each on its own when it fails, all of them stoppable.

A run holds a lock on its log for as long as it lives, whoever started it, so that two comparisons which share runs, or
one that was killed and started anew, never have two processes in one folder: the second waits for the first.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol

import torch

import opd
from opd.compare.nursery import Forked, Nursery
from opd.compare.plan import Trial
from opd.settings import Settings
from opd.stopping import asked_to_stop

EVERY = 0.2  # seconds between two looks at the processes


class Onlooker(Protocol):
    """Whoever shows how far the runs are."""

    def begun(self, trial: Trial) -> None: ...
    def looked(self, running: Sequence[Trial]) -> None: ...
    def ended(self, trial: Trial, error: str) -> None: ...


@dataclass
class Pool:
    """At most `jobs` runs at a time. After `run`, `errors` says of every broken trial why; `stopping`: Ctrl-C came."""

    jobs: int
    onlooker: Onlooker
    errors: dict[Path, str] = field(default_factory=dict[Path, str])
    stopping: bool = False
    running: dict[Path, tuple[Trial, subprocess.Popen[bytes] | Forked]] = field(default_factory=dict[Path, Any])
    asked: set[Path] = field(default_factory=set[Path])  # to save and stop

    def run(self, trials: Sequence[Trial]) -> None:
        """Brings every trial to its end; those that are finished already are left."""
        waiting = list(trials)
        with asked_to_stop(self._ask):
            try:
                while (waiting and not self.stopping) or self.running:
                    waiting = [trial for trial in waiting if not is_finished(trial) and not self._start(trial)]
                    time.sleep(EVERY)
                    self._look()
            finally:
                self._kill()  # reached with runs alive only when something here went wrong

    def _start(self, trial: Trial) -> bool:
        """Starts it, unless there is no room now or a process is in its folder already."""
        if len(self.running) == self.jobs or self.stopping:
            return False
        log = log_of(trial)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process has it from us and keeps it
            except BlockingIOError:
                return False
            if is_finished(trial):
                return True
            file.truncate(0)
            self.running[trial.folder] = trial, start(command(trial, self.jobs), file)
        self.onlooker.begun(trial)
        return True

    def _look(self) -> None:
        for folder, (trial, process) in list(self.running.items()):
            if (code := process.poll()) is None:
                if self.stopping and folder not in self.asked:
                    self.asked.add(folder)
                    process.terminate()
                continue
            del self.running[folder]
            error = "" if is_finished(trial) else "stopped" if self.stopping else explained(trial, code)
            if error and not self.stopping:
                self.errors[folder] = error
            self.onlooker.ended(trial, error)
        self.onlooker.looked([trial for trial, _ in self.running.values()])

    def _kill(self) -> None:
        for _, process in self.running.values():
            if process.poll() is None:
                process.kill()

    def _ask(self) -> None:
        """The first Ctrl-C lets every run save and end, the second ends them at once."""
        if self.stopping:
            self._kill()
        self.stopping = True


def is_finished(trial: Trial) -> bool:
    return (trial.folder / "summary.json").is_file()


def log_of(trial: Trial) -> Path:
    """What the process said stands beside the run's folder, which belongs to the run."""
    return trial.folder.with_name(f"{trial.folder.name}.log")


def start(words: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes] | Forked:
    """`opd WORDS...` in a session of its own: Ctrl-C comes here first, and every run is asked to stop once."""
    if not torch.accelerator.is_available():
        return nursery().start(words, output)
    return subprocess.Popen(
        [sys.executable, "-m", "opd", *words], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        env=environment(), start_new_session=True,
    )  # fmt: skip


@cache
def nursery() -> Nursery:
    """The one of this process."""
    return Nursery(environment())


def command(trial: Trial, jobs: int) -> list[str]:
    """The words that start a trial, or go on with it; of several at a time each has one thread, unless it says else."""
    if (trial.folder / "run.toml").is_file():
        return ["train", "--resume", str(trial.folder)]
    alone = ["--threads=1"] if jobs > 1 and not trial.settings.threads else []
    return ["train", *words(trial.settings), *alone]


def words(settings: Settings) -> list[str]:
    """Settings as they would be typed; what is at its default is left out."""
    values = settings.model_dump(mode="json", exclude_defaults=True, exclude={"method", "parameters"})
    if settings.budget:
        values.pop("steps", None)  # the budget says it
    return [settings.method, *(_word(k, v) for k, v in (settings.parameters | values).items())]


def _word(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    match value:
        case bool():
            return f"--{flag}" if value else f"--no-{flag}"
        case list() | tuple():
            return f"--{flag}={','.join(map(str, value))}"
    return f"--{flag}={value}"


def environment() -> dict[str, str]:
    """The runs use this very package, wherever they are started."""
    paths = [str(Path(opd.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def explained(trial: Trial, code: int) -> str:
    """Why a run broke, in one line."""
    said = log_of(trial).read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line.removeprefix("opd: ") for line in said if line.startswith("opd: ")]
    if own:
        return own[-1]
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name}); no memory left, or somebody killed it"
    return f"exit code {code}; see {log_of(trial)}"
