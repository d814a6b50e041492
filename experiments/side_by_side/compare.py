"""All methods side by side on three tasks: one budget, one grid of rates, and what each needs and costs.

    python -m experiments.side_by_side.compare --out runs/reproduce --page docs/methods.md

The embedded task, and Countdown and chains of sums from reasoning_gym. Every method with its published defaults gets
60 batches of 64 answers (a method that writes n answers per problem sees 64/n problems in a batch), its learning rate
from one grid, which goes on where its end is best or all of it harms, on problems that no number is about, and three
seeds. A method that a task or pair of models does not suit is in the table with the sentence that refused it. Runs are
shared with `opd reproduce` and made once: a stopped command, given again, goes on. The table is in OUT/side_by_side.md
after every method; a part that was asked for (--tasks, --methods) leaves the rest of it as it was.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from experiments.side_by_side.costs import Costs
from experiments.side_by_side.models import pair
from experiments.side_by_side.table import COSTS, EMBEDDED, OTHERWISE, OWN, TASKS, Table, Values
from opd import recipes
from opd.claims import claim, models, page
from opd.claims import course as claims
from opd.cli.comparing_display import Lines
from opd.cli.quiet import hush
from opd.compare import course
from opd.compare.plan import Contest, Entrant
from opd.errors import OpdError
from opd.run import Stopped

STEPS, ANSWERS = 60, 64
RATES = (1e-3, 3e-3, 1e-2)
FURTHER = 2  # rates more for a method whose best is the outermost, or does harm
SHARED: Values = {"steps": STEPS, "schedule": "linear", "eval_problems": 256, "drafts": 0}
SHOWN = ("sampled", "greedy", "reverse_kl", *COSTS.values())


@cache
def settings_of(task: str, out: Path, own: str = "") -> Values:
    """The models and problems of a task, or of a method's own; students read what they are shown: some live on that."""
    if own:
        return claims.contest_of(claim.load(own).case[0], 1, out, models.made(out / "models", print)).shared
    if task != EMBEDDED:
        return pair(task, out / "models")
    student = models.made(out / "models", print)("made:copyist")
    return {"student": student, "teacher": "embedded:teacher", "task": "sums", "max_new": 20}


def contest(name: str, task: str, out: Path, seeds: int, rates: Sequence[float]) -> Contest:
    """One method on one task; a method whose teacher is a copy of the student has no other."""
    method = recipes.load(name)()
    own = {p.name: p.default for p in recipes.describe(name).parameters}
    place = settings_of(task, out, name if name in OWN and task == EMBEDDED else "")
    shared = place | SHARED | {"batch": max(1, ANSWERS // own.get("n", 1))}
    if "teacher" in method.casting:
        del shared["teacher"]
    return Contest(
        (entrant(name, task),),
        shared,
        out / "side_by_side" / task / name,
        seeds,
        tuple(rates),
        common=out / "runs",
        further_rates=FURTHER,
    )


def entrant(name: str, task: str) -> Entrant:
    """A method with its defaults, but for what a task leaves no choice about."""
    parameter, _ = OTHERWISE.get((name, task), ("", ""))
    return Entrant.of(f"{name}:{parameter}" if parameter else name)


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


# ---- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=lambda name: Path(name).resolve(), default="runs/reproduce")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=recipes.names(), default=list(recipes.names()))
    parser.add_argument(
        "--page", type=Path, help="the page of all claims, with this table, for example docs/methods.md"
    )
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    hush()
    made = {"steps": STEPS, "answers": ANSWERS, "seeds": args.seeds, "rates": args.rates, "further": FURTHER}
    table, clock = Table(args.out, made), Costs(args.out / "side_by_side_costs.json")
    for task in args.tasks:
        for name in args.methods:
            print(f"{task}: {name}", flush=True)
            one = contest(name, task, args.out, args.seeds, args.rates)
            try:
                row = tried(one, name, task, args.jobs)
            except Stopped:
                raise SystemExit("stopped; the same command goes on from there") from None
            if task == EMBEDDED and "refused" not in row:
                settings = one.settings(one.entrants[0], lr=args.rates[0])
                row["batch_seconds"] = clock.of(f"{name} on {task}", settings)
            table.put(row)
    if args.page:
        page.write(args.out, args.page)


if __name__ == "__main__":
    main()
