"""What happens to a student's answers when a context that was distilled into it stands before the question again.

Paper: "When Context Returns", arXiv 2606.11627. Greedy answers with and without the context, problem by problem, and
how alike the hidden states are under the two prompts. INFERRED: that these are compared on answers without the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import cosine_similarity

from opd import maths
from opd.errors import DataError
from opd.evaluate import Draws, Share, clustered, evaluate, write
from opd.parts.views import Privileged, template
from opd.protocols import EVERY_LAYER, Student, Task, Want
from opd.rollout import Problem, Sampling

BATCH = 8  # problems whose states in every layer exist at the same time


@dataclass(frozen=True)
class Removability:
    """Shares of the problems that were graded both ways, with their 95 % intervals."""

    problems: int
    without: Share  # right without the context
    under: Share  # right with it
    harm: Share | None  # of those right without it, wrong with it; None where none was right
    both: Share  # right both ways
    longer: float  # relative change of the mean length when the context is added
    cosine: dict[int, float] = field(default_factory=dict[int, float])  # by layer, see cosines


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
    student: Student,
    task: Task,
    problems: Sequence[Problem],
    shown: Sequence[Problem],
    without: Draws,
    *,
    max_new: int | None = None,
) -> Removability:
    """The student's greedy answers to problems that hold their context (`shown`), against those to bare ones."""
    under = evaluate(student, task, shown, samples=0, max_new=max_new).greedy
    assert under is not None  # greedy is asked for
    return replace(removability(without, under), cosine=cosines(student, problems, shown, max_new=max_new))


@torch.no_grad()
def cosines(
    student: Student, problems: Sequence[Problem], shown: Sequence[Problem], *, max_new: int | None = None
) -> dict[int, float]:
    """Layer -> mean cosine of the states after one and the same token, without the context and with it.

    The tokens are those of the student's greedy answers without the context; 1 where it no longer tells the two apart.
    """
    sums, tokens = dict[int, float](), 0
    for start in range(0, len(problems), BATCH):
        bare, told = problems[start : start + BATCH], shown[start : start + BATCH]
        prompts = [student.render(problem.messages) for problem in bare]
        greedy = Sampling(temperature=0.0, max_new=max_new)
        answers = [one for (one,) in write(student, bare, prompts, greedy, 1, 0)]
        pairs = [(one, one.reworded(student.render(p.messages))) for one, p in zip(answers, told, strict=True) if one.n]
        if not pairs:
            continue
        ours, theirs = (student.read(view, Want(layers=(EVERY_LAYER,))).dist for view in zip(*pairs, strict=True))
        assert ours is not None and theirs is not None  # states are asked for
        tokens += len(ours)
        for layer, state in ours.inner.items():
            alike = cosine_similarity(maths.upcast(state), maths.upcast(theirs.inner[layer]), dim=-1)
            sums[layer] = sums.get(layer, 0.0) + float(alike.sum())
    return {layer: total / tokens for layer, total in sorted(sums.items())}
