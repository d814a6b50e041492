"""A copy of the student learns the teacher's answers by `sft`, at several learning rates, each with the same budget.

Rate and moment are chosen on problems that are neither learned from nor measured on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from opd.build import assembled, masked
from opd.errors import NonFiniteError
from opd.loop import one_step
from opd.method import Method
from opd.probe.plan import Parts
from opd.probe.texts import read, rewards, written
from opd.probe.watching import Watch
from opd.protocols import Cast, Student, Task
from opd.rollout import Group
from opd.settings import Settings
from opd.tasks.graders import Graded, none

LOOKS = 10  # times that a fit is looked at within its budget
HOPELESS = 1.0  # nats per token above the untaught student at which a fit is given up
FACTOR, MOST = 3.0, 6  # neighbouring rates of the ladder; rates at most

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """One learning rate. Nats are the student's -log pi per token."""

    rate: float
    steps: int  # updates made
    best: int  # updates after which the teacher's text on the tuning problems was likeliest
    tuning: float  # nats of that text then
    learned: float  # nats, at the end, of the text that it learned from: memory helps here
    grade: float  # mean grade on the tuning problems, at the end or at its best, whichever is better
    error: str = ""


@dataclass
class Fitting:
    """What all fits share, and the best of them: likelihood and grade each have their own.

    The likelihood of new text is best early, the grade often late, when single probabilities are overdone already.
    """

    settings: Settings
    samples: int
    cast: Cast
    task: Task
    method: Method
    parts: Parts
    learned: Sequence[Group]  # teacher's answers that are learned from, or some of them
    tuning: Sequence[Group]  # and to the tuning problems
    watch: Watch
    fits: list[Fit] = field(default_factory=list[Fit])

    def __post_init__(self) -> None:
        self.start = self.likeliest = self.right = held(self.cast["student"])
        self.untaught = self.least = self.nats(self.tuning)
        self.most = self.grade(self.start)
        self.floor = -float(read(self.settings, self.cast, self.learned).teacher.mean())  # the teacher's, learned text

    def try_rate(self, rate: float) -> Fit:
        """From the untaught student to the end of the budget, unless it goes astray."""
        student: Student = self.cast["student"]
        student.load_state_dict(self.start)
        settings = self.settings.model_copy(update={"lr": rate})
        method = masked(settings, self.method, student)
        training = assembled(settings, method, Graded("teacher text", self.parts.fit, (), none), self.cast)
        every = max(1, settings.steps // LOOKS)
        best, tuning, weights, error = 0, self.untaught, self.start, ""
        try:
            now = tuning
            while not training.is_done and now < self.untaught + HOPELESS:
                one_step(training)
                self.watch.went(f"lr {rate:.2g}, update", training.step, settings.steps)
                if training.step % every and not training.is_done:
                    continue
                if (now := self.nats(self.tuning)) < tuning:
                    best, tuning, weights = training.step, now, held(student)
        except NonFiniteError as broken:
            error = broken.evidence
        learned, candidates = self.nats(self.learned), {training.step: held(student), best: weights}
        graded = {self.grade(one): one for one in candidates.values()}
        if tuning < self.least:
            self.least, self.likeliest = tuning, weights
        if max(graded) > self.most:
            self.most, self.right = max(graded), graded[max(graded)]
        self.fits.append(Fit(rate, training.step, best, tuning, learned, max(graded), error))
        return self.fits[-1]

    def nats(self, groups: Sequence[Group]) -> float:
        """Mean -log pi per token; infinite where it is not a number."""
        found = -float(read(self.settings, self.cast, groups).student.mean())
        return math.inf if math.isnan(found) else found

    def grade(self, weights: Weights) -> float:
        """Mean grade of answers to the tuning problems, of those that are graded; 0 if none is."""
        self.cast["student"].load_state_dict(weights)
        groups = written(self.settings, self.cast, self.task, "student", self.parts.tune, self.samples, self.watch)
        found = rewards(groups)
        return 0.0 if np.isnan(found).all() else float(np.nanmean(found))


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
