"""What the student wrote, with what the teacher thought of every token of it.

Axes: n tokens of an answer, K alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opd import maths
from opd.evaluate import graded
from opd.protocols import Student, Task, Teacher, Want
from opd.rollout import STUDENT, Problem, Rollout, Sampling, Visit, continued

ALTERNATIVES = 5


@torch.no_grad()
def drafts(
    student: Student, teacher: Teacher, task: Task, problems: Sequence[Problem], max_new: int, seed: int
) -> list[dict[str, Any]]:
    """One sampled answer per problem, marked up: per token both log-probs, reverse KL (nats) and both top lists.

    A teacher that gives one number per token leaves `kl` and `top` empty. The seeds are the same before and after
    training, so that the two drafts of a problem differ only by what was learned.
    """
    written = [rollout for rollout in answers(student, problems, max_new, seed) if rollout.n]
    marks = _marks(student, teacher, written)
    return [
        {
            "id": rollout.problem.id,
            "prompt": rollout.problem.messages[-1]["content"],
            "expected": rollout.problem.answer,
            "reward": graded(task, rollout),
            "end": str(rollout.end),
            "tokens": tokens,
        }
        for rollout, tokens in zip(written, marks, strict=True)
    ]


def answers(student: Student, problems: Sequence[Problem], max_new: int, seed: int) -> list[Rollout]:
    """One sampled answer per problem, always the same one of the same student."""
    sampling = Sampling(max_new=max_new)
    prompts = [student.render(problem.messages) for problem in problems]
    pieces = student.write(prompts, sampling, [[Visit(p, -1, seed).seed(0)] for p in problems])
    return [
        continued(prompt, piece, problem, sampling, STUDENT, student.decode(piece.tokens))
        for problem, prompt, (piece,) in zip(problems, prompts, pieces, strict=True)
    ]


def _marks(student: Student, teacher: Teacher, rollouts: Sequence[Rollout]) -> list[list[dict[str, Any]]]:
    everything = "dist" in teacher.can
    ours = student.read(rollouts, Want(chosen=True, dist=True))
    theirs = teacher.read(rollouts, Want(chosen=True, dist=everything))
    assert ours.chosen is not None and theirs.chosen is not None and ours.dist is not None
    marks, start = list[list[dict[str, Any]]](), 0
    for rollout in rollouts:
        rows = torch.arange(start, start + rollout.n)
        tokens = [
            {"text": student.decode_token(int(token)), "student": round(a, 4), "teacher": round(b, 4)}
            for token, a, b in zip(
                rollout.decisions, ours.chosen[rows].tolist(), theirs.chosen[rows].tolist(), strict=True
            )
        ]
        if everything and theirs.dist is not None:
            lp, lq = ours.dist.index(rows).logprobs(), theirs.dist.index(rows).logprobs().to(ours.chosen.device)
            for token, kl, p, q in zip(tokens, maths.reverse_kl(lp, lq).tolist(), lp, lq, strict=True):
                token |= {"kl": round(kl, 4), "top": _top(student, q), "own": _top(student, p)}
        marks.append(tokens)
        start += rollout.n
    return marks


def _top(student: Student, logprobs: Tensor) -> list[list[Any]]:
    best = logprobs.exp().topk(min(ALTERNATIVES, len(logprobs)))
    return [[student.decode_token(int(i)), round(float(p), 4)] for p, i in zip(best.values, best.indices, strict=True)]
