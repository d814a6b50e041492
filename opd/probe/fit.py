"""A copy of the student learns the teacher's answers by `sft`, at several learning rates, each with the same budget.

The rate and the moment to stop are chosen on teacher text that is neither learned from nor measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from opd.build import assembled, masked
from opd.errors import NonFiniteError
from opd.loop import one_step
from opd.method import Method
from opd.probe.texts import read
from opd.protocols import Cast, Student
from opd.rollout import Group, Problem
from opd.settings import Settings
from opd.tasks.graders import Graded, none

LOOKS = 10  # times that a fit is looked at within its budget
PATIENCE = 3  # looks without improvement after which it stops
FACTOR, MOST = 3.0, 6  # neighbouring rates of the ladder; rates at most

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """One learning rate: where it was best, and the nats per token that the student's -log pi was there."""

    rate: float
    steps: int  # updates made
    best: int  # updates after which the tuning text was likeliest
    tuning: float  # nats per token on the tuning text then; infinite if the fit broke
    learned: float  # nats per token on the text that it learned from, at its end: memory helps here
    error: str = ""


@dataclass
class Fitting:
    """What all fits share. After them `weights` are those of the best, the untaught ones if nothing helped."""

    settings: Settings
    cast: Cast
    method: Method
    problems: Sequence[Problem]
    learned: Sequence[Group]  # teacher's answers that are learned from, or some of them
    tuning: Sequence[Group]
    fits: list[Fit] = field(default_factory=list[Fit])

    def __post_init__(self) -> None:
        self.weights = self.start = held(self.cast["student"])  # the best so far, and the untaught ones
        self.least = self.untaught = self.nats(self.tuning)
        self.floor = -float(read(self.settings, self.cast, self.learned).teacher.mean())  # the teacher's own, learned text

    def try_rate(self, rate: float) -> Fit:
        """From the untaught student to the end of the budget, or until it gets no better."""
        student: Student = self.cast["student"]
        student.load_state_dict(self.start)
        settings = self.settings.model_copy(update={"lr": rate})
        method = masked(settings, self.method, student)
        training = assembled(settings, method, Graded("teacher text", self.problems, (), none), self.cast)
        every = max(1, settings.steps // LOOKS)
        best, weights = Fit(rate, 0, 0, self.untaught, float("inf")), self.start
        try:
            while not training.is_done and training.step - best.best < PATIENCE * every:
                one_step(training)
                if training.step % every and not training.is_done:
                    continue
                if (now := self.nats(self.tuning)) < best.tuning:
                    best, weights = replace(best, best=training.step, tuning=now), held(student)
        except NonFiniteError as error:
            best = replace(best, error=error.evidence)
        best = replace(best, steps=training.step, learned=self.nats(self.learned))
        if best.tuning < self.least:
            self.weights, self.least = weights, best.tuning
        self.fits.append(best)
        return best

    def nats(self, groups: Sequence[Group]) -> float:
        """Mean -log pi per token; infinite where it is not a number."""
        found = -float(read(self.settings, self.cast, groups).student.mean())
        return found if found == found else float("inf")


def held(student: Student) -> Weights:
    """What learns, on the processor and on its own."""
    return {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}


def climb(rates: Sequence[float], one: Callable[[float], Fit], most: int = MOST) -> bool:
    """Tries the rates, and then beyond the end of the ladder as long as the best stands there; True if it does not."""
    tried = {rate: one(rate).tuning for rate in rates}
    while not is_inside(tried) and len(tried) < most:
        best = min(tried, key=lambda rate: tried[rate])
        rate = best * FACTOR if best == max(tried) else best / FACTOR
        tried[rate] = one(rate).tuning
    return is_inside(tried)


def is_inside(tried: dict[float, float]) -> bool:
    """The best rate has a worse one on either side."""
    best = min(tried, key=lambda rate: tried[rate])
    return min(tried) < best < max(tried)


def ladder(student: Student) -> tuple[float, ...]:
    """Three rates around one that falls with the size of the model: 1e-2 for 1e5 parameters, 1e-4 for 1e9."""
    size = sum(p.numel() for p in student.parameters() if p.requires_grad)
    middle = float(f"{1e-2 * (1e5 / size) ** 0.5:.1g}")
    return middle / FACTOR, middle, middle * FACTOR
