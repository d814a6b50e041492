"""Answers that somebody wrote to some problems, graded, and how likely student and teacher find every token of them.

Axes: N tokens that are kept, P problems, k answers to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from opd.loop import grade
from opd.masks import masks
from opd.method import Ask, chain
from opd.parts.sample import OneTurn
from opd.probe.watching import Watch
from opd.protocols import Cast, Task, Want
from opd.rollout import Array, End, Group, Problem, Sampling, Visit
from opd.rows import Rows
from opd.settings import Settings
from opd.teach import teach

PROBE = -3  # the number of a probe's visits: training counts from 0, an examination is -1, a doctor's trial -2
ASKS = tuple(Ask(who, who, Want(chosen=True)) for who in ("teacher", "student"))


@dataclass(frozen=True)
class Read:
    """k answers to each of P problems, with the log-probs that teacher and student gave them when this was made."""

    problems: int
    k: int
    teacher: Array  # [N] log q of the tokens that are learned from
    student: Array  # [N] log pi
    answer: Array  # [N] number of the answer, from 0 to P k - 1

    def sums(self, each: Array) -> Array:
        """[P, k] sums over the tokens of every answer."""
        return np.bincount(self.answer, each, self.problems * self.k).reshape(-1, self.k)

    @property
    def lengths(self) -> Array:
        """[P, k] tokens of every answer."""
        return self.sums(np.ones(len(self.answer)))


@torch.no_grad()
def written(
    settings: Settings, cast: Cast, task: Task, writer: str, problems: Sequence[Problem], samples: int, watch: Watch
) -> list[Group]:
    """`samples` graded answers of one writer at temperature 1 to each problem, a batch of problems at a time."""
    write = OneTurn(samples, Sampling(max_new=settings.max_new), writer)
    visits = [Visit(problem, PROBE, settings.seed) for problem in problems]
    groups = list[Group]()
    for start in range(0, len(visits), settings.batch):
        groups += grade(task, write(cast, visits[start : start + settings.batch], 0))
        watch.went(f"the {writer} writes, problem", len(groups), len(visits))
    return groups


def rewards(groups: Sequence[Group]) -> Array:
    """[P, k] grades; nan where the task can't tell."""
    return np.array([[rollout.tags["reward"] for rollout in group.rollouts] for group in groups])


def cut(groups: Sequence[Group]) -> float:
    """The share of answers that the limit of tokens ended."""
    return float(np.mean([rollout.end == End.LENGTH for group in groups for rollout in group.rollouts]))


@torch.no_grad()
def read(settings: Settings, cast: Cast, groups: Sequence[Group]) -> Read:
    """What both make of these answers as they are now; tokens that the settings mask are in no measurement."""
    student = cast["student"]
    rows = teach(ASKS, groups, Rows.of(groups, 0, student.device, student.dtype), cast)
    rows = chain(*masks(settings, student))(rows)
    kept = rows["keep"]
    theirs, ours, answer = (
        rows[name][kept].double().cpu().numpy() for name in ("teacher.chosen", "student.chosen", "sequence")
    )
    return Read(len(groups), len(groups[0].rollouts), theirs, ours, answer.astype(np.int64))
