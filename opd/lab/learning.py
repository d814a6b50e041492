"""A recipe, a table that learns and an expert, brought together by the package's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from opd.lab.policy import Policy, problems
from opd.lab.world import World
from opd.loop import Source, Training, train
from opd.method import Method
from opd.rollout import Problem


@dataclass(frozen=True)
class Walks:
    """The task of a world: walks from its starts. What they earn is an exact sum elsewhere, so nothing is graded."""

    train: Sequence[Problem]
    name: str = "walks"

    @property
    def held_out(self) -> Sequence[Problem]:
        return self.train

    def grade(self, problem: Problem, text: str) -> float | None:
        return None


def learn(
    world: World,
    method: Method,
    student: Policy,
    teacher: Policy,
    *,
    steps: int,
    batch: int,
    data: int,
    seed: int,
    lr: float,
) -> Policy:
    """Lets a student learn for `steps` batches from `data` problems at a rate that falls to 0, and gives it back."""
    optimizer = torch.optim.SGD(student.parameters(), lr)  # a table needs no more, and does not overshoot
    cast = {"student": student, "teacher": teacher}
    task = Walks(problems(world, data))
    training = Training(
        student,
        cast,
        task,
        method,
        optimizer,
        lambda step: lr * (1 - step / steps),
        Source(task.train, seed),
        steps,
        batch,
        max_grad_norm=0.0,
    )
    for _ in train(training):
        pass
    return student
