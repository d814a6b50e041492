"""How much a probe looks at, and from where on a difference counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from opd.errors import DataError, SettingError
from opd.examined import split
from opd.protocols import Task
from opd.rollout import Problem

FEWEST = 8  # problems in any part: an interval over fewer is none


class Plan(BaseModel, allow_inf_nan=False):
    """The options of a probe beside those of the fit."""

    problems: int = Field(256, description="training problems to which the teacher writes an answer to learn from")
    held_out: int = Field(192, description="held-out problems: a third to choose the rate, the others to measure")
    samples: int = Field(8, description="answers per measured problem, of student, fitted student and teacher each")
    rates: tuple[float, ...] = Field((), description="learning rates to try; default: around one for the model's size")
    nats: float = Field(0.05, description="gap to the teacher that is as good as none, in nats per token")
    points: float = Field(0.05, description="gap to the teacher's mean grade that is as good as none")


@dataclass(frozen=True)
class Parts:
    """Problems that nobody meets twice: to learn from, to choose with, to measure on."""

    fit: Sequence[Problem]
    tune: Sequence[Problem]
    test: Sequence[Problem]

    @classmethod
    def of(cls, plan: Plan, task: Task) -> Parts:
        """The first problems of the task; a held-out prompt that is also learned from is passed over."""
        check(plan)
        fit = task.train[: plan.problems]
        seen = {str(problem.messages) for problem in fit}
        held_out = [problem for problem in task.held_out if str(problem.messages) not in seen][: plan.held_out]
        if len(fit) < FEWEST or len(held_out) < 3 * FEWEST:
            what = f"task {task.name} has too few problems for a probe"
            got = f"{len(fit)} to learn from and {len(held_out)} others that are held out"
            raise DataError(what, got=got, expected=f"at least {FEWEST} and {3 * FEWEST}")
        return cls(fit, *split(held_out, len(held_out) // 3))


def check(plan: Plan) -> None:
    """Stops at numbers with which nothing can be measured."""
    least = {"problems": FEWEST, "held_out": 3 * FEWEST, "samples": 3}
    for name, fewest in least.items():
        if (got := getattr(plan, name)) < fewest:
            raise SettingError(f"--{name.replace('_', '-')}", got=got, expected=f"at least {fewest}")
    if any(rate <= 0 for rate in (*plan.rates, plan.nats, plan.points)):
        got = f"{', '.join(map(str, plan.rates)) or 'the default'}; {plan.nats}; {plan.points}"
        raise SettingError("--rates, --nats and --points", got=got, expected="numbers above 0")
