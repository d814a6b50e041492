"""What happens to a student's answers when a context that was distilled into it stands before the question again.

Paper: "When Context Returns", arXiv 2606.11627. Greedy answers with and without the context, problem by problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from opd.errors import DataError
from opd.evaluate import Draws, Share, clustered, evaluate
from opd.parts.views import Privileged, template
from opd.protocols import Task, Writer
from opd.rollout import Problem


@dataclass(frozen=True)
class Removability:
    """Shares of the problems that were graded both ways, with their 95 % intervals."""

    problems: int
    without: Share  # right without the context
    under: Share  # right with it
    harm: Share | None  # of those right without it, wrong with it; None where none was right
    both: Share  # right both ways
    longer: float  # relative change of the mean length when the context is added


def removability(without: Draws, under: Draws) -> Removability:
    """Both greedy examinations of one student, of the same problems."""
    ids = [one for one in without.by_problem if one in under.by_problem]
    if not ids:
        raise DataError("no problem was graded with and without its context", expected="a task with a grader")
    bare, told = ([draws.by_problem[one] == 1 for one in ids] for draws in (without, under))
    survived = [after for before, after in zip(bare, told, strict=True) if before]
    return Removability(
        problems=len(ids),
        without=clustered(bare, 1),
        under=clustered(told, 1),
        harm=clustered([not after for after in survived], 1) if survived else None,
        both=clustered([before and after for before, after in zip(bare, told, strict=True)], 1),
        longer=under.length / without.length - 1,
    )


def told(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with their context before the question, as the methods that distil contexts show it."""
    view = Privileged(template("context"))
    return [replace(problem, prompt=view.messages(problem)) for problem in problems]


def examine(
    writer: Writer, task: Task, problems: Sequence[Problem], without: Draws, *, max_new: int | None = None
) -> Removability:
    """The student's greedy answers to problems that hold their context, against those without."""
    under = evaluate(writer, task, problems, samples=0, max_new=max_new).greedy
    assert under is not None  # greedy is asked for
    return removability(without, under)
