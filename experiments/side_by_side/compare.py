"""All methods side by side on three tasks: one budget, one grid of rates, and what each needs and costs.

    python -m experiments.side_by_side.compare --out runs/reproduce

The embedded task, and Countdown and chains of sums from reasoning_gym. Every method with its published defaults gets
60 batches of 64 answers (a method that writes n answers per problem sees 64/n problems in a batch), its learning rate
from one grid, which goes on where its end is best, on problems that no number is about, and three seeds. A method that
a task or pair of models does not suit is in the table with the sentence that refused it. Runs are shared with `opd
reproduce` and made once: a stopped command, given again, goes on. The table is in OUT/side_by_side.md after every
method; `opd reproduce --page` includes it.
"""

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from experiments.realizability.tasks import KINDS
from experiments.side_by_side.costs import Costs
from experiments.side_by_side.models import pair
from opd import contract, recipes
from opd.checkpoint import write_text
from opd.claims import models
from opd.claims.page import number, rate
from opd.cli.comparing_display import Lines
from opd.cli.methods import toy_build
from opd.cli.quiet import hush
from opd.cli.wording import needed
from opd.compare import course
from opd.compare.plan import Contest, Entrant
from opd.errors import OpdError
from opd.run import Stopped

Values = dict[str, Any]
STEPS, ANSWERS = 60, 64
RATES = (1e-3, 3e-3, 1e-2)
FURTHER = 2  # rates more for a method whose best is the outermost
SHARED: Values = {"steps": STEPS, "schedule": "linear", "eval_problems": 256, "drafts": 0}
COSTS = {"tokens": "tokens", "teacher tokens": "teacher_tokens", "MiB": "memory"}
SHOWN = ("sampled", "greedy", "reverse_kl", *COSTS.values())
WORDS = {"representation": "representation:bridge=8"}  # these models differ in their width
EMBEDDED = "embedded"
TASKS = (EMBEDDED, *KINDS)
ABOUT = {EMBEDDED: "the running totals of the package"}  # and all others are of reasoning_gym
HEAD = """
Every method with its published defaults, {steps} batches of {answers} answers, {seeds} seeds: share of
sampled answers that are right, mean and 95 % interval, on {tasks}. Its rate on each is the best of {rates} by
one run each, or of up to {further} beyond the outermost while that is the best. Its tokens learned from,
tokens that teachers read or wrote, peak memory and seconds of one core per batch are those of the first task.
A method whose teacher is a copy of the student, or that needs a verifier or references alone, never sees the
teacher. What a task refused stands under the table. Made by `python -m experiments.side_by_side.compare`.
"""


@cache
def settings_of(task: str, out: Path) -> Values:
    """The models and problems of a task; students read what they are shown, which some methods live on."""
    if task != EMBEDDED:
        return pair(task, out / "models")
    student = models.made(out / "models", print)("made:copyist")
    return {"student": student, "teacher": "embedded:teacher", "task": "sums", "max_new": 20}


def contest(name: str, task: str, out: Path, seeds: int, rates: Sequence[float]) -> Contest:
    """One method on one task; a method whose teacher is a copy of the student has no other."""
    method = recipes.load(name)()
    own = {p.name: p.default for p in recipes.describe(name).parameters}
    shared = SHARED | settings_of(task, out) | {"batch": max(1, ANSWERS // own.get("n", 1))}
    if "teacher" in method.casting:
        del shared["teacher"]
    entrant = Entrant.of(WORDS.get(name, name))
    return Contest(
        (entrant,),
        shared,
        out / "side_by_side" / task / name,
        seeds,
        tuple(rates),
        common=out / "runs",
        further_rates=FURTHER,
    )


def tried(contest: Contest, name: str, task: str, jobs: int) -> Values:
    """What came out of one method on one task, or the sentence that refused it."""
    row: Values = {"name": name, "task": task, "lines": {}, "errors": ()}
    try:
        found = course.compare(contest, jobs, Lines(contest.most_runs, jobs))
    except OpdError as error:
        return row | {"refused": str(error)}
    lines = {line.role: line for line in found.lines}
    numbers = {role: {k: asdict(v) for k, v in line.numbers.items() if k in SHOWN} for role, line in lines.items()}
    rates = {"lr": lines["method"].lr, "tried": [one.lr for one in found.tried]}
    return row | rates | {"errors": lines["method"].errors, "lines": numbers}


# ---- the table


def document(rows: Sequence[Values], seeds: int, grid: Sequence[float]) -> str:
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
        cells = [*map(result, own), ", ".join(filter(None, map(chosen, own))), *costs(own[0])]
        cells += [", ".join(needs(name)) or "nothing", recipes.describe(name).when]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    refused = [f"- `{row['name']}` on {row['task']}: {row['refused']}" for row in rows if "refused" in row]
    broken = [f"- `{row['name']}` on {row['task']} broke, {error}" for row in rows for error in row["errors"]]
    about = ", ".join(ABOUT.get(task, f"{task} of reasoning_gym") for task in tasks)
    said = {"steps": STEPS, "answers": ANSWERS, "seeds": seeds, "tasks": about, "further": FURTHER}
    said["rates"] = ", ".join(f"{one:g}" for one in grid)
    head = textwrap.fill(HEAD.strip().format(**said), 119)
    return "\n".join([head, "", *lines, "", *refused, *broken]) + "\n"


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
    return rate(row["lr"], row["tried"]) if row and row.get("lr") is not None else ""


def costs(row: Values | None) -> list[str]:
    """The cells of COSTS, and the seconds."""
    numbers = row["lines"].get("method", {}) if row else {}
    cells = [f"{numbers[one]['value']:,.0f}" if one in numbers else "" for one in COSTS.values()]
    seconds = row.get("batch_seconds") if row else None
    return [*cells, "" if seconds is None else f"{seconds:.2f}"]


def needs(name: str) -> list[str]:
    return needed(recipes.load(name)(), contract.anatomy(toy_build(name, {})).passes)


# ---- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=lambda name: Path(name).resolve(), default="runs/reproduce")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=recipes.names(), default=list(recipes.names()))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    hush()
    rows, clock = list[Values](), Costs(args.out / "side_by_side_costs.json")
    for task in args.tasks:
        for name in args.methods:
            print(f"{task}: {name}", flush=True)
            one = contest(name, task, args.out, args.seeds, args.rates)
            try:
                rows.append(tried(one, name, task, args.jobs))
            except Stopped:
                raise SystemExit("stopped; the same command goes on from there") from None
            if task == args.tasks[0] and "refused" not in rows[-1]:
                rows[-1]["batch_seconds"] = clock.of(
                    f"{name} on {task}", one.settings(one.entrants[0], lr=args.rates[0])
                )
            write_text(args.out / "side_by_side.json", json.dumps(rows, indent=1))
            write_text(args.out / "side_by_side.md", document(rows, args.seeds, args.rates))


if __name__ == "__main__":
    main()
