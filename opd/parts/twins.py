"""A rollout twice: as it was written, and its decisions once more under another prompt, so that both are learned from.

The student is then differentiated under two prompts in the same passes. Rows of a twin have the author REPEATED: they
are nobody's decisions, so that no number of the step counts them and no grader sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from opd.method import View
from opd.protocols import Cast, Sample
from opd.rollout import GIVEN, REPEATED, Group, Problem, Rollout, Visit
from opd.rows import Rows


@dataclass(frozen=True)
class Twins:
    """What `sample` writes, and after each group another with its twins, under what `view` shows.

    A group of their own: a twin is nobody's sibling.
    """

    sample: Sample
    view: View

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        groups = self.sample(cast, visits, step)
        return [one for group in groups for one in (group, self._twin(group))]

    def check(self, cast: Cast) -> None:
        if check := getattr(self.sample, "check", None):
            check(cast)

    def _twin(self, group: Group) -> Group:
        shown = [context for rollout in group.rollouts if rollout.n for context in self.view(rollout, group)]
        return replace(group, rollouts=tuple(map(repeated, shown)))


def repeated(rollout: Rollout) -> Rollout:
    """The rollout as a repetition of decisions that were taken elsewhere; its grade is given there."""
    author = np.where(rollout.author > GIVEN, REPEATED, GIVEN).astype(np.int8)
    return replace(rollout, author=author).tagged(reward=float("nan"))


@dataclass(frozen=True)
class Apart:
    """The boolean columns `written` and `repeated`: the kept rows of either kind, each for a term of its own."""

    def __call__(self, rows: Rows) -> Rows:
        twin = rows["author"] == REPEATED
        return rows.plus(written=rows["keep"] & ~twin, repeated=rows["keep"] & twin)


@dataclass(frozen=True)
class OfWritten:
    """Another view of what was written, and nothing of the twins."""

    view: View

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        return [] if rollout.repeated else self.view(rollout, group)

    def check(self, problem: Problem) -> None:
        if check := getattr(self.view, "check", None):
            check(problem)


def as_written(rollout: Rollout, group: Group) -> list[Rollout]:
    """The view that shows a twin's decisions after the problem's own prompt, and nothing of what was written."""
    return [rollout.reworded(group.render(group.problem.messages))] if rollout.repeated else []
