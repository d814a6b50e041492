"""The course of a reproduction: make the models, compare in every case, judge, write down.

Claims that ask for the same run share it: all runs are in OUT/runs, whichever claim came first.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opd.checkpoint import write_text
from opd.claims import again, models
from opd.claims.claim import Case, Claim
from opd.claims.verdict import Outcome, concluded, judged, rivals
from opd.compare import course
from opd.compare.plan import GOALS, Contest, Entrant
from opd.compare.pool import Onlooker

TUNING_SEEDS = 3  # one leaves a rate to luck: of two equally good ones the verdict may hang on which was taken
MADE = ("student", "teacher", "reference", "task")  # settings in which made:NAME stands for a folder


def reproduce(
    method: str, claim: Claim, seeds: int, jobs: int, out: Path, onlooker: Callable[[Contest, int], Any],
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Runs what is not done yet and writes OUT/METHOD/claim.json; raises Stopped after Ctrl-C."""
    outcomes, out = list[Outcome](), out.resolve()  # a run is another one if its models are named otherwise
    for number, case in enumerate(claim.case):
        say(f"case {number + 1} of {len(claim.case)}: {case.name}")
        contest = contest_of(
            case, seeds, out / method / f"case{number + 1}", models.made(out / "models", say), out / "runs"
        )
        with onlooker(contest, jobs) as seen:
            field = _compared(contest, jobs, seen)
        if again.is_asked(case.measure):
            say("examining the students once more")
            for run in (run for run in field.runs if run.summary):
                again.examine(case.measure, run.trial.settings)
        outcomes.append(judged(case, field))
    result = {
        "method": method,
        "seeds": seeds,
        "tuning_seeds": TUNING_SEEDS,
        "verdict": concluded(outcomes),
        **claim.model_dump(mode="json", exclude={"case"}),
        "cases": [asdict(one) | {"case": one.case.model_dump(mode="json"), "holds": one.holds} for one in outcomes],
    }
    write_text(out / method / "claim.json", json.dumps(result, indent=1))
    return result


def _compared(contest: Contest, jobs: int, onlooker: Onlooker) -> Any:
    return course.compare(contest, jobs, onlooker).field


def contest_of(case: Case, seeds: int, out: Path, made: Callable[[str], str], common: Path | None = None) -> Contest:
    """The case as a comparison; `made` turns made:NAME into a folder, `common` holds the runs that cases share."""
    entrants = tuple(Entrant.of(word) for word in [case.method, *rivals(case)])
    shared = {name: made(value) if name in MADE else value for name, value in case.settings.items()}
    goal = case.measure if case.measure in GOALS else "sampled"
    return Contest(entrants, shared, out, seeds, case.rates, case.baseline, goal, common, TUNING_SEEDS)
