"""`opd demo`: the main job on the embedded default, with the baseline beside it at equal updates and at equal time."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from opd.cli import options
from opd.cli.options import Option

COMMON: dict[str, Any] = {
    "teacher": "embedded:teacher", "batch": 64, "max_new": 20, "schedule": "linear",
    "warmup": 10, "eval_problems": 512, "checkpoint_every": 0, "drafts": 60,
    "threads": 1,  # models this small gain nothing from a second one, and lose much when it has to wait
}  # fmt: skip
METHOD: dict[str, Any] = {
    "method": "gkd", "parameters": {"lam": 1.0, "beta": 1.0, "temperature": 1.5, "mean": "token_mean"},
    "lr": 1.6e-2, "steps": 300, "eval_every": 100,
}  # fmt: skip
BASELINE: dict[str, Any] = {"method": "sft", "lr": 4.8e-2}  # its own best of seven, see docs/embedded.md
SEED = Option("seed", "int", 0, "another order of problems, other samples", "Demo")


def demo(words: list[str]) -> int:
    """Three runs, a table, a page; 130 when it was asked to stop."""
    if options.asks_help(words):
        text = "Distils the embedded student and shows what came of it."
        print(options.page(["opd demo [--seed N]"], text, [SEED]))
        return 0
    places, given = options.parse(words, [SEED], "demo")
    options.no_places(places, "demo")
    from opd.run import Stopped

    root = free_folder(Path("runs/demo"))
    try:
        return three_runs(root, given.get("seed", 0))
    except Stopped:
        print(f"stopped; what was done so far is in {root}, and the same command begins anew", flush=True)
        return 130


def three_runs(root: Path, seed: int) -> int:
    start = time.perf_counter()
    on_policy, equal_updates, equal_time = (
        root / name for name in ("on-policy", "sft-equal-updates", "sft-equal-time")
    )
    ours = teach("on-policy distillation: gkd, the student's own answers, reverse KL", on_policy, seed, METHOD)
    same = {**BASELINE, "steps": METHOD["steps"]}
    updates = teach("the baseline: sft on the teacher's answers, equal updates", equal_updates, seed, same)
    longer = {**BASELINE, "steps": round(same["steps"] * step_seconds(on_policy) / step_seconds(equal_updates))}
    seconds = teach("the baseline: sft, equal time", equal_time, seed, longer)
    (on_policy / "notes.json").write_text(json.dumps(notes()), encoding="utf-8")
    from opd import report

    page = report.write(on_policy, [equal_updates, equal_time])
    show(ours, updates, seconds)
    print(f"\n{time.perf_counter() - start:.0f} seconds in all. A page to look at:\n  {page.resolve()}")
    return 0


def step_seconds(folder: Path) -> float:
    """The median time of a step: another program that takes the processor for a while does not move it."""
    from opd.record import read_metrics

    lines = [line for line in read_metrics(folder) if "loss" in line]
    return statistics.median(sum(v for k, v in line.items() if k.startswith("seconds.")) for line in lines)


def free_folder(wanted: Path) -> Path:
    """The folder itself, or the first of wanted-2, wanted-3 ... that does not exist yet."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def teach(what: str, folder: Path, seed: int, values: dict[str, Any]) -> dict[str, Any]:
    from opd.cli.display import display
    from opd.cli.quiet import hush
    from opd.run import Run
    from opd.settings import Settings

    hush()
    print(f"\n{what}", flush=True)
    own = {"task": f"sums,train=128,seed={seed}", "seed": seed, "out": str(folder)}
    return Run.new(Settings.of(**COMMON, **values, **own), display()).train()


def show(ours: dict[str, Any], updates: dict[str, Any], seconds: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = "512 problems that nobody learned from (95 % intervals)"
    narrow: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "collapse_padding": True}
    table = Table(title=title, title_justify="left", **narrow)  # fits 80 columns
    for name in ("", "greedy %", "sampled %", "reverse KL", "updates", "seconds"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row(*row("student before", ours["student_before"]), "", "")
    table.add_row(*row("sft, equal updates", updates["student_after"]), *spent(updates))
    table.add_row(*row("sft, equal time", seconds["student_after"]), *spent(seconds))
    table.add_row(*row("on-policy (gkd)", ours["student_after"]), *spent(ours), style="bold")
    table.add_row(*row("teacher", ours["teacher"]), "", "")
    Console().print("", table)


def row(name: str, seen: dict[str, Any]) -> tuple[str, str, str, str]:
    kl = seen["kl"]
    return name, percent(seen["greedy"]), percent(seen["sampled"]), f"{kl['per_token']:.2f}" if kl else ""


def percent(drawn: dict[str, Any]) -> str:
    share = drawn["accuracy"]
    return f"{100 * share['value']:.1f} ({100 * share['low']:.0f}-{100 * share['high']:.0f})"


def spent(summary: dict[str, Any]) -> tuple[str, str]:
    return str(summary["steps"]), f"{summary['seconds']:.0f}"


def notes() -> dict[str, Any]:
    """What the page says about where the gap is small: measured, see docs/embedded.md."""
    from importlib import resources

    return json.loads(resources.files("opd.embedded").joinpath("notes.json").read_text(encoding="utf-8"))
