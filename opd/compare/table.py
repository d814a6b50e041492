"""The result as text: the table, what was tried, differences against the baseline, verdicts."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from opd.bootstrap import Interval
from opd.compare.comparison import Comparison
from opd.compare.verdicts import worded
from opd.words import said

WIDTH = 150  # of the table where no terminal says how wide it is
COLUMNS = {  # number -> heading, factor, digits
    "sampled": ("sampled %", 100.0, 1),
    "greedy": ("greedy %", 100.0, 1),
    "return": ("return", 1.0, 2),
    "reverse_kl": ("reverse KL", 1.0, 3),
    "length": ("length", 1.0, 1),
    "entropy": ("entropy", 1.0, 3),
    "steps": ("steps", 1.0, 0),
    "seconds": ("seconds", 1.0, 0),
    "tokens": ("tokens", 1.0, 0),
    "teacher_tokens": ("teacher tokens", 1.0, 0),
    "memory": ("MiB", 1.0, 0),
}
RANGES = ("sampled", "greedy", "return", "reverse_kl")  # whose intervals are shown


def show(comparison: Comparison) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print("", results(comparison))
    for line in comparison.lines:
        for error in line.errors:
            console.print(f"{line.label} broke, {error}", style="red", markup=False)
    if comparison.tried:
        console.print("", tried(comparison))
    sentences = [f"{gap.label} against {gap.other}: {worded(gap, comparison.field)}" for gap in comparison.differences]
    for part in (sentences, comparison.verdicts, comparison.notes):
        if part:
            console.print("")
        for text in part:
            console.print(text, markup=False, soft_wrap=True)


def results(comparison: Comparison) -> Table:
    tell = lambda text: said(text, comparison.field.task)
    columns = [name for name in COLUMNS if name != "return" or any(name in line.numbers for line in comparison.lines)]
    title = tell(f"{len(comparison.field.problems)} held-out problems, 95 % intervals")
    table = Table(title=title if comparison.field.problems else "95 % intervals", title_justify="left")
    table.add_column("", overflow="fold")
    for heading in ("lr", "seeds", *(tell(COLUMNS[name][0]) for name in columns)):
        table.add_column(heading, justify="right")
    for line in comparison.lines:
        seeds = str(len(line.seeds)) if line.role == "method" else ""
        lr = "" if line.lr is None else f"{line.lr:g}"
        table.add_row(line.label, lr, seeds, *(number(line.numbers.get(name), name) for name in columns))
    return table


def number(interval: Interval | None, name: str) -> str:
    """A mean, with its interval where that is shown."""
    if interval is None:
        return ""
    _, factor, digits = COLUMNS[name]
    text = f"{factor * interval.value:.{digits}f}"
    if name not in RANGES or interval.low is None or interval.high is None:
        return text
    fewer = max(digits - 1, 0)
    return f"{text}\n({factor * interval.low:.{fewer}f} to {factor * interval.high:.{fewer}f})"


def tried(comparison: Comparison) -> Table:
    goal = COLUMNS[comparison.contest.goal][0].removesuffix(" %")
    title = f"Learning rates, chosen by {goal} on {comparison.aside} problems that nothing above is about"
    table = Table(title=said(title, comparison.field.task), title_justify="left")
    table.add_column("")
    for name in ("lr", "seeds", "sampled %", "greedy %", "reverse KL"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in comparison.tried:
        shares = ["" if share is None else f"{100 * share:.1f}" for share in (one.accuracy, one.greedy)]
        kl = "" if one.reverse_kl is None else f"{one.reverse_kl:.3f}"
        last = one.error or ("chosen" if one.is_chosen else "")
        table.add_row(one.label, f"{one.lr:g}", str(one.seeds), *shares, kl, last)
    return table
