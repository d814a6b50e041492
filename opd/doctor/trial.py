"""A trial is a few real answers: the student's, read by the teacher, and the teacher's own greedy ones.

Axes: N rows, n rows of one rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from opd.doctor.case import Case
from opd.loop import grade
from opd.masks import masks
from opd.method import Ask, View, chain, plain
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Array, End, Group, Problem, Rollout, Sampling, Visit
from opd.rows import Rows, flatten
from opd.teach import teach

AGAIN = 2  # samples of the teacher per problem
DOCTOR = -2  # the number of a trial's visits: training counts from 0, an examination is -1


@dataclass(frozen=True)
class Trial:
    """Graded answers to the first problems of a run, and what the teacher makes of them."""

    case: Case
    groups: list[Group]
    rows: Rows | None  # the student's decisions with `teacher.chosen`; None where the teacher gives no log-prob.
    # Rows that the settings mask (--mask, --stop-token mask, --skip-first) are not kept, and in no measurement.
    own: list[Rollout]  # the teacher's greedy answers to the same prompts; none where it can't write
    own_read: list[Array]  # [n] the teacher's log-probs of each of them, when it reads them
    again: list[list[Rollout]] = field(default_factory=list[list[Rollout]])  # samples of the teacher, by problem: the
    # first half of the problems, so that they cost what the greedy answers do

    @property
    def answers(self) -> list[Rollout]:
        return [rollout for rollout, _ in flatten(self.groups)]

    @cached_property
    def ratio(self) -> Array:
        """[N] log q - log p of the tokens that the student wrote and would learn from."""
        return self.everywhere[self.kept]

    @cached_property
    def everywhere(self) -> Array:
        """The same of every token, masked or not."""
        if self.rows is None:
            return np.zeros(0)
        return (self.rows["teacher.chosen"] - self.rows["untruncated"]).double().cpu().numpy()

    @property
    def kept(self) -> Array:
        """Which tokens the student would learn from."""
        return np.zeros(0, bool) if self.rows is None else self.rows["keep"].cpu().numpy()

    @property
    def judged(self) -> bool:
        """The teacher gave every token a number; without that there is nothing to measure."""
        return bool(len(self.ratio)) and bool(np.isfinite(self.ratio).all())

    def column(self, name: str) -> Array:
        assert self.rows is not None
        return self.rows[name].cpu().numpy()[self.kept]


@torch.no_grad()
def written(case: Case, count: int) -> Trial:
    """Answers to `count` training problems; one that does not fit is passed over, a check of its own names it."""
    problems = [p for p in case.task.train[: 2 * count] if fits(case, p)][:count]
    visits = [Visit(problem, DOCTOR, case.settings.seed) for problem in problems]
    limit, can = case.settings.max_new, getattr(case.teacher, "can", frozenset[str]())
    as_method = replace(case.writing, n=1, sampling=replace(case.writing.sampling, max_new=limit))
    groups = grade(case.task, as_method(case.cast, visits, 0))
    rows = read(case, groups) if case.reads and shows(case, groups) else None
    greedy = OneTurn(1, Sampling(temperature=0.0, max_new=limit), "teacher")
    free = getattr(case.teacher, "is_free", True)  # who is paid by the answer writes for the run alone
    own = grade(case.task, greedy(case.cast, visits, 0)) if "text" in can and free else []
    answers = [rollout for rollout, _ in flatten(own)]
    own_read = reread(case, answers) if answers and rows is not None else []
    sampled = OneTurn(AGAIN, Sampling(max_new=limit), "teacher")
    again = grade(case.task, sampled(case.cast, visits[: -(-len(visits) // AGAIN)], 0)) if own else []
    return Trial(case, groups, rows, answers, own_read, [list(group.rollouts) for group in again])


def fits(case: Case, problem: Problem) -> bool:
    """The prompt leaves room for an answer in both models."""
    contexts = [model.context for model in (case.student, case.reader) if model is not None]
    return 0 < case.prompt_length(problem) < min(contexts)


def view_of(case: Case) -> View:
    """What the teacher is shown by the method's first ask."""
    return case.method.teach[0].view if case.method.teach else plain


def shows(case: Case, groups: Sequence[Group]) -> bool:
    """Whether the teacher would see any of these; a view of siblings has nothing to show of single answers."""
    return any(view_of(case)(rollout, group) for group in groups for rollout in group.rollouts if rollout.n)


def read(case: Case, groups: Sequence[Group]) -> Rows:
    """The table of the student's decisions with the teacher's log-probs, under the view of the method's first ask."""
    student = case.student
    rows = Rows.of(groups, 0, student.device, student.dtype)
    ask = Ask("teacher", "teacher", Want(chosen=True), view_of(case))
    rows = teach((ask,), groups, rows, case.cast)
    return chain(*masks(case.settings, student))(rows)


def reread(case: Case, answers: Sequence[Rollout]) -> list[Array]:
    """[n] log-probs that the teacher gives to each of its own answers."""
    chosen = case.teacher.read(answers, Want(chosen=True)).chosen
    ends = np.cumsum([answer.n for answer in answers])[:-1]
    return np.split(chosen.double().cpu().numpy(), ends)


def cut(answers: Sequence[Rollout]) -> float:
    """The share of answers that the limit of tokens ended."""
    return float(np.mean([answer.end == End.LENGTH for answer in answers])) if answers else 0.0
