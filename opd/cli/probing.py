"""`opd probe`: can my student be my teacher, and which of SFT and OPD do a few minutes of evidence favour?"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd.cli import options
from opd.cli.options import Option
from opd.errors import SettingError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opd.bootstrap import Interval
    from opd.probe import Plan, Report
    from opd.settings import Settings

DEFAULTS = {"steps": 300, "batch": 32, "schedule": "linear", "warmup": 10}  # of the fit; all else as in opd train
SHARED = (
    "student", "teacher", "task", "mask", "mask_which", "stop_token", "skip_first", "steps", "batch", "max_new", "seed",
    "schedule", "warmup", "floor", "weight_decay", "betas", "max_grad_norm", "lora", "dtype", "teacher_dtype", "device",
    "teacher_device", "threads", "gradient_checkpointing", "micro_tokens", "chunk", "trust_remote_code",
)  # fmt: skip
OUT = Option("out", "str", "", "a new file for everything as JSON", "The probe")
USAGE = ("opd probe [--student S --teacher T --task TASK] [options]",)
ABOUT = (
    "Fits a copy of the student to a little of the teacher's text and holds its likelihood and grades against the "
    "teacher's; then looks whether the teacher's scores of the student's own answers go with their grades. Says which "
    "of SFT, OPD or neither this favours. The student is not changed, and nothing is written but --out.\n"
    "Everything is sampled at temperature 1. What a probe cannot know stands in docs/probe.md."
)
FAVOURED = {
    "SFT": "SFT is enough",
    "OPD": "OPD is favoured over SFT",
    "neither": "neither SFT nor OPD",
    "undecided": "undecided",
}
ALWAYS = "One seed, one way to fit, the student as it is now: evidence for a choice, no proof."
STYLES = {"SFT": "green", "OPD": "green", "neither": "bold red", "undecided": "yellow"}


def probe(words: list[str]) -> int:
    """Prints what was measured and what it favours."""
    from opd.probe import Plan

    own = [replace(option, group="The probe") for option in options.of_fields(Plan)]
    shared = {option.name: option for option in options.of_settings() if option.name in SHARED}
    fit = [replace(shared[name], default=DEFAULTS.get(name, shared[name].default)) for name in shared]
    known = [*own, OUT, *fit]
    if options.asks_help(words):
        print(options.page(USAGE, ABOUT, known))
        return 0
    places, given = options.parse(words, known, "probe")
    options.no_places(places, "probe")
    out = free(given.pop("out", ""))
    plan = planned({option.name: given.pop(option.name) for option in own if option.name in given})
    settings = settings_of(given)
    found = measured(settings, plan, Lines())
    show(settings, plan, found)
    if out:
        from opd.checkpoint import plain, write_text

        write_text(out, json.dumps(plain(as_json(settings, plan, found)), indent=1, allow_nan=False) + "\n")
        print(f"\nwritten: {out}")
    return 0


def free(place: str) -> Path | None:
    """The file for the result, which must not exist yet; its folder is made now, not after minutes of work."""
    if not place:
        return None
    if (out := Path(place)).exists():
        raise SettingError(f"{out} exists", expected="a new file", remedy="Choose another with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def planned(given: dict[str, Any]) -> Plan:
    from opd.probe import Plan
    from opd.settings import checked

    return checked(Plan, given)


def settings_of(given: dict[str, Any]) -> Settings:
    from opd.cast import acts, teacher_spec
    from opd.settings import Settings

    settings = Settings.of(method="sft", **(DEFAULTS | given))
    if acts(settings):
        raise SettingError("opd probe is about texts", got=settings.task, expected="a task of a language model")
    return settings.model_copy(update={"teacher": teacher_spec(settings, settings.build_method())})


class Lines:
    """A line with the seconds for everything that is done; on a terminal, what goes on is written over itself."""

    def __init__(self) -> None:
        self.start, self.shown = time.perf_counter(), sys.stderr.isatty()

    def said(self, line: str) -> None:
        self.over("")
        print(f"{time.perf_counter() - self.start:6.1f} s  {line}", flush=True)

    def went(self, what: str, done: int, total: int) -> None:
        self.over(f"          {what} {done} of {total}")

    def over(self, text: str) -> None:
        if self.shown:
            print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def measured(settings: Settings, plan: Plan, watch: Lines) -> Report:
    """Opens the models, refuses what a run would refuse, and probes."""
    from opd.cli.quiet import hush

    hush()
    import torch

    from opd import build, cast
    from opd.probe import probe
    from opd.tasks import load_task

    if settings.threads:
        torch.set_num_threads(settings.threads)
    task, method = load_task(settings.task), settings.build_method()
    pair = cast.build(settings, method)
    build.check(settings, build.masked(settings, method, pair["student"]), task, pair)
    return probe(settings, plan, pair, task, watch)


def as_json(settings: Settings, plan: Plan, found: Report) -> dict[str, Any]:
    """Everything, with the settings that it rests on."""
    return {"settings": settings.model_dump(include=set(SHARED)), "plan": plan.model_dump(), **asdict(found)}


def show(settings: Settings, plan: Plan, found: Report) -> None:
    """Two tables, the verdict, and what to think of before believing it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print()
    console.print(Text(f"Can {settings.student} be {settings.teacher} on {settings.task}?", "bold"), soft_wrap=True)
    console.print(table(("", "value", "95 % interval", "what it is"), represented(plan, found)))
    console.print(Text("Do the teacher's scores go with the grades of the student's own answers?", "bold"))
    head = ("score of an answer", "within a problem", "overall", "right above wrong")
    console.print(table(head, scored(found), right=True))
    compared, measured = found.alignments[0].ordered, found.problems["measured"]
    console.print(
        "Rank correlations of score and grade, from -1 to 1; the first line decides. Within: among the "
        f"{found.samples} answers to one problem, mean of {compared} problems (of {measured}) where both differ. "
        "Overall: easy and hard problems mixed. Right above wrong: of answers to one problem; 50 % is chance."
    )
    verdict = found.verdict
    console.print()
    console.print(Text(f"{FAVOURED[verdict.favoured]}: {verdict.because}.", STYLES[verdict.favoured]))
    for note in (*more(found), *found.notes, ALWAYS):
        console.print(f"- {note}", markup=False)


def more(found: Report) -> Iterator[str]:
    """How many problems it would take, where it is undecided."""
    verdict, n = found.verdict, found.problems
    if verdict.problems is not None:
        held_out = -(-verdict.problems * (n["measured"] + n["tuning"]) // n["measured"])
        yield f"About {verdict.problems} measured problems, not {n['measured']}, may settle it: --held-out {held_out}."
    elif verdict.favoured == "undecided":
        yield (
            f"More than these {n['measured']} measured problems would not settle it soon: a value lies too near its "
            "border, or there is nothing to compare. Try other problems, or other --nats and --points."
        )


def represented(plan: Plan, found: Report) -> Iterator[tuple[str, ...]]:
    answers, fine = found.problems["learned"], "is as good as none"
    yield "teacher's entropy", *of(found.entropy), "nats per token of its own text that nobody can foresee"
    yield "gap, student", *of(found.gap_before), "nats per token by which that text is less likely to the student"
    yield "gap, fitted copy", *of(found.gap), f"after it learned {answers} answers; up to {plan.nats:g} {fine}"
    yield "gap, learned text", f"{found.gap_learned:.3f}", "", "the same on text that it learned from: memory helps"
    yield "grade, student", *of(found.grades["student"]), "mean grade of sampled answers"
    yield "grade, fitted copy", *of(found.grades["fitted copy"]), "the same after learning"
    yield "grade, teacher", *of(found.grades["teacher"]), "the same of the teacher"
    yield "grade missing", *of(found.shortfall), f"teacher minus fitted copy; up to {plan.points:g} {fine}"


def scored(found: Report) -> Iterator[tuple[str, ...]]:
    for one in found.alignments:
        yield (one.score, together(one.within), together(one.overall), together(one.auc, percent=True))


def of(found: Interval) -> tuple[str, str]:
    """A value and its interval, as two cells."""
    if found.low is None or found.high is None:
        return f"{found.value:.3f}", ""
    return f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}"


def together(found: Interval | None, percent: bool = False) -> str:
    """The same as one cell."""
    if found is None or math.isnan(found.value):
        return ""
    form = (lambda x: f"{x:.0%}") if percent else (lambda x: f"{x:+.2f}")
    return form(found.value) + ("" if found.low is None else f" ({form(found.low)} to {form(found.high)})")


def table(head: Sequence[str], rows: Iterator[tuple[str, ...]], right: bool = False) -> RenderableType:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, name in enumerate(head):
        made.add_column(name, justify="right" if i == 1 or (right and i) else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
