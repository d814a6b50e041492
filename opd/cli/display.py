"""What is seen while a student learns: a live panel on a terminal, about twenty plain lines anywhere else."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from opd import recipes
from opd.words import acts, said

if TYPE_CHECKING:
    from opd.budget import Budget
    from opd.run import Run

LINES = 20  # plain lines of steps in a whole run
PHASES = ("sample", "teach", "learn")
BARS = "▁▂▃▄▅▆▇█"


class Progress:
    """What is known of a run so far, and the words for it; the two displays differ in where they put them."""

    def __init__(self) -> None:
        self.step = self.steps = 0
        self.budget: Budget | None = None
        self.title = self.task = ""
        self.losses = deque[float](maxlen=60)
        self.seconds = deque[float](maxlen=20)
        self.metrics: dict[str, Any] = {}
        self.exam: dict[str, Any] = {}
        self.first_exam: dict[str, Any] = {}
        self.phase_now = ("", 0, 0)
        self.warned = set[str]()

    def say(self, text: str, style: str = "") -> None:
        raise NotImplementedError

    # -- opd.run.Watch ------------------------------------------------------------------------------------------------

    def started(self, run: Run) -> None:
        s, training = run.settings, run.training
        self.step, self.steps, self.folder = training.step, training.steps, run.folder
        learning = sum(p.numel() for p in training.student.parameters())
        self.task = s.task
        source = "its rewards" if run.teacher is None else run.teacher_spec
        self.title = f"{s.method} on {s.task}: {s.student} learns from {source}"
        self.say(self.title, "bold")
        self.budget = training.budget
        steps = f"{s.budget}, steps" if training.budget else f"{training.steps} steps"
        size, device = f"{steps} of {training.batch} {self.said('problems')}", training.student.device
        self.say(f"{size}, {counted(learning)} parameters, {device}, folder {run.folder}")
        if run.resumed:
            self.say(f"continuing after step {training.step}")
        untried = recipes.untried(s.method, s.parameters)
        for note in (*getattr(run.task, "notes", ()), *untried, *run.findings):
            self.warn(str(note))

    def phase(self, name: str, done: int, total: int) -> None:
        self.phase_now = (name, done, total)

    def stepped(self, metrics: dict[str, Any]) -> None:
        self.phase_now = ("", 0, 0)
        self.step, self.metrics = int(metrics["step"]) + 1, metrics
        if self.budget:  # as many as there will be at this pace
            self.steps = max(self.step, round(self.step / max(self.budget.share, 1e-9)))
        self.losses.append(metrics["loss"])
        self.seconds.append(sum(metrics.get(f"seconds.{phase}", 0.0) for phase in PHASES))
        self.watch_for_trouble(metrics)

    def examined(self, metrics: dict[str, Any]) -> None:
        self.phase_now = ("", 0, 0)
        self.exam = without_prefix(metrics)
        self.first_exam = self.first_exam or self.exam

    def finished(self, summary: dict[str, Any] | None) -> None:
        if summary is None:
            return
        before, after, teacher = (flat(summary[name]) for name in ("student_before", "student_after", "teacher"))
        for name in ("greedy", "sampled"):
            if name in before and name in after:
                best = f", teacher {share(teacher, name)}" if name in teacher else ""
                what = self.said("accuracy")
                self.say(f"{what}, {name}: {share(before, name)} -> {share(after, name)}{best}", "bold")
            if (key := f"{name}.return") in before and key in after:
                best = f", teacher {earned(teacher, name)}" if key in teacher else ""
                self.say(f"return, {name}: {earned(before, name)} -> {earned(after, name)}{best}", "bold")
        if "reverse_kl" in before and "reverse_kl" in after:
            unit = self.said("nats per token")
            self.say(f"reverse KL: {before['reverse_kl']:.4g} -> {after['reverse_kl']:.4g} {unit}", "bold")
        for what, times in summary["student_after"]["grader_errors"].items():
            self.warn(f"the grader failed {times} times in the last examination: {what}")
        self.say(f"the student is in {self.folder / 'model'}; its page: opd report {self.folder}")

    # -- words --------------------------------------------------------------------------------------------------------

    def watch_for_trouble(self, metrics: dict[str, Any]) -> None:
        """Each warning is given once in a run; that an environment ends an episode at its time limit is no trouble."""
        if metrics.get("truncated", 0.0) > 0.5 and not acts(self.task):
            share = f"{metrics['truncated']:.0%} of the answers of step {self.step} are cut off"
            self.warn(f"{share}; consider a larger --max-new", key="truncated")
        if metrics.get("refused"):
            what = f"step {self.step}: an update without a finite gradient was not taken, see nonfinite/"
            self.warn(what, key="refused")
        if metrics.get("kept") == 0.0:
            self.warn(self.said(f"step {self.step}: no token was left to learn from"), key="kept")

    def said(self, text: str) -> str:
        return said(text, self.task)

    def warn(self, text: str, key: str = "") -> None:
        if (key or text) not in self.warned:
            self.warned.add(key or text)
            self.say(f"warning: {text}", "yellow")

    def rates(self) -> str:
        """Tokens per second of each phase, in the last step."""
        tokens = self.metrics.get("tokens", 0.0)
        spent = {phase: self.metrics.get(f"seconds.{phase}", 0.0) for phase in PHASES}
        return ", ".join(f"{phase} {tokens / s:,.0f}" for phase, s in spent.items() if s > 0)

    def left(self) -> str:
        """Time for the remaining steps at the pace of the last ones, examinations not counted."""
        mean = sum(self.seconds) / max(len(self.seconds), 1)
        return clock((self.steps - self.step) * mean)

    def numbers(self) -> list[str]:
        """The last step's numbers that matter most."""
        m = self.metrics
        words = [f"loss {m['loss']:.4g}"]
        words += [f"reward {m['reward']:.2f}"] if "reward" in m else []
        words += [f"length {m['length']:.0f}"]
        return words + ([f"cut off {m['truncated']:.0%}"] if m["truncated"] else [])


def flat(result: dict[str, Any] | None) -> dict[str, Any]:
    """An evaluation as the numbers of one line of metrics: greedy, greedy.low, reverse_kl, ..."""
    from opd.record import exam_line

    return without_prefix(exam_line(0, result)) if result else {}


def without_prefix(line: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("eval."): value for key, value in line.items() if key.startswith("eval.")}


def exam_words(exam: dict[str, Any]) -> list[str]:
    """An examination: accuracies with intervals, reverse KL, length."""
    words = [f"{name} {share(exam, name)}" for name in ("greedy", "sampled") if name in exam]
    words += [f"return, {name} {earned(exam, name)}" for name in ("greedy", "sampled") if f"{name}.return" in exam]
    words += [f"reverse KL {exam['reverse_kl']:.4g}"] if "reverse_kl" in exam else []
    kind = "sampled" if "sampled.length" in exam else "greedy"
    words += [f"length {exam[f'{kind}.length']:.0f}"]
    return words + ([f"cut off {exam[f'{kind}.truncated']:.0%}"] if exam[f"{kind}.truncated"] else [])


def share(exam: dict[str, Any], name: str) -> str:
    """A proportion with its interval: 31.2% (25.9 to 37.1)."""
    return f"{exam[name]:.1%} ({100 * exam[f'{name}.low']:.1f} to {100 * exam[f'{name}.high']:.1f})"


def earned(exam: dict[str, Any], name: str) -> str:
    """A mean return with its interval: -17.2 (-18 to -16.4)."""
    value, low, high = (exam[f"{name}.return{end}"] for end in ("", ".low", ".high"))
    return f"{value:.4g} ({low:.4g} to {high:.4g})"


def spark(values: Sequence[float]) -> str:
    """A line of small bars from the least value to the greatest; what is no number is a gap."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((v - low) * scale)] if math.isfinite(v) else " " for v in values)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(n: int) -> str:
    for size, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.3g}{name}"
    return str(n)


class Lines(Progress):
    """Plain text for files, pipes and CI: a line per examination, and one per 5 % of the steps."""

    def say(self, text: str, style: str = "") -> None:
        print(text, flush=True)

    def phase(self, name: str, done: int, total: int) -> None:
        if name != self.phase_now[0]:
            self.say(f"{name}: {total} {self.said('problems')}")
        super().phase(name, done, total)

    def stepped(self, metrics: dict[str, Any]) -> None:
        super().stepped(metrics)
        every = max(1, math.ceil(self.steps / LINES))
        if self.step % every == 0 or self.step in (1, self.steps):
            words, rates = "  ".join(self.numbers()), f"{self.said('tokens/s')}: {self.rates()}"
            self.say(f"step {self.step}/{self.steps}  {words}  {rates}  left {self.left()}")

    def examined(self, metrics: dict[str, Any]) -> None:
        super().examined(metrics)
        self.say(f"step {metrics['step']}  held out: {'  '.join(exam_words(self.exam))}")


class LivePanel(Progress):
    """One panel that is redrawn four times a second."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console, self.began = console, time.monotonic()
        self.live = Live(get_renderable=self.panel, console=console, refresh_per_second=4)

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)

    def started(self, run: Run) -> None:
        super().started(run)
        self.live.start()

    def finished(self, summary: dict[str, Any] | None) -> None:
        self.live.stop()
        super().finished(summary)

    def panel(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        name, done, total = self.phase_now
        left = f"{self.left()} left" if self.seconds else ""
        grid.add_row(f"step {self.step}/{self.steps}", self.bar(self.step, self.steps, left))
        if name:
            grid.add_row(name, self.bar(done, total, f"{done}/{total}"))
        if self.metrics:
            grid.add_row("loss", Text(f"{self.metrics['loss']:.4g}  ").append(spark(self.losses), "cyan"))
            grid.add_row(self.said("answers"), "  ".join(self.numbers()[1:]))
            grid.add_row(self.said("tokens/s"), self.rates())
        if self.exam:
            grid.add_row("held out", Text("  ".join(exam_words(self.exam)), "bold"))
        if self.first_exam and self.first_exam is not self.exam:
            grid.add_row("at first", "  ".join(exam_words(self.first_exam)))
        elapsed = clock(time.monotonic() - self.began)
        return Panel(grid, title=Text(self.title), title_align="left", subtitle=elapsed, subtitle_align="right")

    @staticmethod
    def bar(done: int, total: int, text: str) -> RenderableType:
        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(total=max(total, 1), completed=done, width=40), text)
        return Group(line)


def display() -> Progress:
    """The panel where somebody looks, plain lines where not."""
    console = Console(highlight=False)
    seen = sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal
    return LivePanel(console) if seen else Lines()
