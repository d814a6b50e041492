"""What is seen while methods are compared: a bar per run on a terminal, a line per run anywhere else."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from opd.cli.display import clock, exam_words, flat
from opd.compare.watching import Pace

if TYPE_CHECKING:
    from opd.compare.plan import Contest, Trial


class Lines:
    """Plain text: one line when a run begins and one when it ends."""

    def __init__(self, total: int, jobs: int) -> None:
        self.total, self.jobs, self.done = total, jobs, 0
        self.began: dict[Path, float] = {}

    def __enter__(self) -> Lines:
        self.say(f"{self.total} runs, {self.jobs} at a time; what is done already is left")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def say(self, text: str) -> None:
        print(text, flush=True)

    def begun(self, trial: Trial) -> None:
        self.began[trial.folder] = time.monotonic()
        self.say(f"begins: {trial.name}")

    def looked(self, running: Sequence[Trial]) -> None:
        pass

    def ended(self, trial: Trial, error: str) -> None:
        self.done += 1
        spent = clock(time.monotonic() - self.began[trial.folder])
        self.say(
            f"{'broke' if error and error != 'stopped' else 'ends'}: {trial.name} ({spent}): {error or seen(trial)}"
        )


class Bars(Lines):
    """A bar for every run at work, with the lines of those that ended above."""

    def __init__(self, console: Console, total: int, jobs: int) -> None:
        super().__init__(total, jobs)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=console)
        self.tasks: dict[Path, tuple[TaskID, Pace]] = {}

    def __enter__(self) -> Bars:
        super().__enter__()
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        self.bars.console.print(escape(text), highlight=False, soft_wrap=True)

    def begun(self, trial: Trial) -> None:
        self.began[trial.folder] = time.monotonic()
        self.tasks[trial.folder] = self.bars.add_task(escape(trial.name), total=1.0), Pace(trial)

    def looked(self, running: Sequence[Trial]) -> None:
        for trial in running:
            task, pace = self.tasks[trial.folder]
            self.bars.update(task, completed=pace.share())

    def ended(self, trial: Trial, error: str) -> None:
        self.bars.remove_task(self.tasks.pop(trial.folder)[0])
        super().ended(trial, error)


def seen(trial: Trial) -> str:
    """The last examination of a finished run, in words."""
    summary = json.loads((trial.folder / "summary.json").read_text(encoding="utf-8"))
    return ", ".join(exam_words(flat(summary["student_after"])))


def onlooker(contest: Contest, jobs: int) -> Lines:
    """Bars where somebody looks, lines where not."""
    total = contest.most_runs
    console = Console(highlight=False)
    is_watched = sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal
    return Bars(console, total, jobs) if is_watched else Lines(total, jobs)
