"""The table of all methods side by side, and the file that it is kept in."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from experiments.realizability.tasks import KINDS
from opd import contract, recipes
from opd.checkpoint import write_text
from opd.claims.page import number, rate
from opd.cli.methods import toy_build
from opd.cli.wording import needed

Values = dict[str, Any]
EMBEDDED = "embedded"
TASKS = (EMBEDDED, *KINDS)
ABOUT = {EMBEDDED: "the running totals of the package"}  # and all others are of reasoning_gym
OWN = {"raps_da": "three specialists, and problems that say whose they are"}  # instead of the first task, its claim's
OTHERWISE = {("representation", task): ("bridge=8", "the two models differ in their width") for task in TASKS}
OTHERWISE |= {(name, "countdown"): ("k=64", "its vocabulary has 92 tokens") for name in ("sdpo", "opsd_ectr")}
COSTS = {"tokens": "tokens", "teacher tokens": "teacher_tokens", "MiB": "memory"}
HEAD = """
Every method with its published defaults, {steps} batches of {answers} answers, {seeds} seeds: share of
sampled answers that are right, mean and 95 % interval, on {tasks}. Its rate on each is the best of {grid} by
one run each, or of up to {further} more: beyond the outermost while that is the best, below the lowest while
none leaves the student better than it was. Its tokens learned from, tokens that teachers read or wrote,
peak memory and seconds of one core per batch are those of the first task. A method whose teacher is a copy of
the student, or that needs a verifier or references alone, never sees the teacher. What has another task or
parameter, and what a task refused, stands under the table.
"""
COMMAND = "    python -m experiments.side_by_side.compare --out runs/reproduce --page docs/methods.md"


@dataclass(frozen=True)
class Table:
    """What was tried, kept in OUT/side_by_side.json and .md. Rows that were made another way (`made`) are forgotten."""

    out: Path
    made: Values  # steps, answers, seeds, rates, further

    def put(self, row: Values) -> None:
        """One row more, or another in its place."""
        by = self.kept() | {(row["name"], row["task"]): row}
        rows = [by[key] for key in product(recipes.names(), TASKS) if key in by]
        write_text(self.out / "side_by_side.json", json.dumps({"made": self.made, "rows": rows}, indent=1))
        write_text(self.out / "side_by_side.md", document(rows, self.made))

    def kept(self) -> dict[tuple[str, str], Values]:
        """What the file holds, by method and task."""
        file = self.out / "side_by_side.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        rows = found["rows"] if found.get("made") == self.made else []
        return {(row["name"], row["task"]): row for row in rows}


def document(rows: Sequence[Values], made: Values) -> str:
    """One line per method: sampled accuracy on every task, its costs on the first, its needs, when to use it."""
    by = {(row["name"], row["task"]): row for row in rows}
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    heads = [
        "method",
        *(f"{task}, % right" for task in tasks),
        "rate" if len(tasks) == 1 else "rates",
        *COSTS,
        "s per batch",
        "needs",
        "when to use it",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for role, words in (("before", "*the student before*"), ("teacher", "*the teacher*")):
        cells = [edge(rows, task, role) for task in tasks] + [""] * (len(COSTS) + 4)
        lines.append(f"| {words} | {' | '.join(cells)} |")
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [by.get((name, task)) for task in tasks]
        cells = [*map(result, own), ", ".join(map(chosen, own)), *costs(own[0])]
        cells += [", ".join(needs(name)) or "nothing", recipes.describe(name).when]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    about = ", ".join(ABOUT.get(task, f"{task} of reasoning_gym") for task in tasks)
    head = textwrap.fill(
        HEAD.strip().format(**made, tasks=about, grid=", ".join(f"{one:g}" for one in made["rates"])), 119
    )
    return "\n".join([head, "", COMMAND, "", *lines, "", *notes(rows)]) + "\n"


def notes(rows: Sequence[Values]) -> list[str]:
    """Who has another task or parameter than all others, what refused whom, and what broke."""
    elsewhere = [f"- `{row['name']}` has a task of its own instead of the first, with {OWN[row['name']]}; before, its "
                 f"student had {edge([row], EMBEDDED, 'before')}." for row in rows
                 if row["name"] in OWN and row["task"] == EMBEDDED and row["lines"]]  # fmt: skip
    ran = {(row["name"], row["task"]) for row in rows}
    otherwise = [f"- `{one[0]}` on {one[1]} has {value}, since {why}."
                 for one, (value, why) in OTHERWISE.items() if one in ran]  # fmt: skip
    refused = [f"- `{row['name']}` on {row['task']}: {row['refused']}" for row in rows if "refused" in row]
    broken = [f"- `{row['name']}` on {row['task']} broke, {error}" for row in rows for error in row["errors"]]
    return [*elsewhere, *otherwise, *refused, *broken]


def edge(rows: Sequence[Values], task: str, role: str) -> str:
    """The student before, or the teacher, as the first method saw it."""
    found = [row["lines"][role] for row in rows if row["task"] == task and role in row["lines"]]
    return percent(found[0]) if found else ""


def result(row: Values | None) -> str:
    if row is None:
        return ""
    return percent(row["lines"].get("method", {})) or "not run"


def percent(numbers: Values) -> str:
    return number(numbers["sampled"], 100.0) if "sampled" in numbers else ""


def chosen(row: Values | None) -> str:
    """The rate, and whether a better one may lie beyond those tried."""
    return rate(row["lr"], row["tried"]) if row and row.get("lr") is not None else "–"


def costs(row: Values | None) -> list[str]:
    """The cells of COSTS, and the seconds."""
    numbers = row["lines"].get("method", {}) if row else {}
    cells = [f"{numbers[one]['value']:,.0f}" if one in numbers else "" for one in COSTS.values()]
    seconds = row.get("batch_seconds") if row else None
    return [*cells, "" if seconds is None else f"{seconds:.2f}"]


def needs(name: str) -> list[str]:
    return needed(recipes.load(name)(), contract.anatomy(toy_build(name, {})).passes)
