"""How much of one model is mixed into the other before they are compared: a share per answer, more for harder ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd import maths
from opd.dist import Dist
from opd.errors import require
from opd.parts.groups import Rollouts
from opd.rollout import TEACHER
from opd.rows import Rows

SKEW = "skew"
SkewedDivergence = Callable[[Tensor, Tensor, Tensor], Tensor]  # (lp, lq, alpha) [n, V], [n, V], [n] -> [n]


@dataclass(frozen=True)
class AdaptiveSkew:
    """`skew`: the share of each answer, from how far student and teacher are apart on it (arXiv 2503.07067).

    Apart is the difference of their mean probabilities exp(mean log-prob of the answer's tokens), teacher less student
    on the teacher's answers and student less teacher on the others; see maths.adaptive_skew. `skew.cut`: 1 where the
    share was cut to [floor, base], else 0.
    """

    base: float
    floor: float = 0.01
    student: str = "own"
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.floor <= self.base < 1, "the largest share alpha of an adaptive skew", got=self.base,
                expected=f"a number in [{self.floor}, 1)")  # fmt: skip

    def __call__(self, rows: Rows) -> Rows:
        rollouts = Rollouts.of(rows)
        ours, theirs = (rollouts.average(rows, f"{who}.chosen").exp() for who in (self.student, self.teacher))
        is_teacher = rollouts.values(rows, "author") == TEACHER
        gap = torch.where(is_teacher, theirs - ours, ours - theirs)
        share = torch.full_like(gap, self.base)
        for some in (is_teacher, ~is_teacher):
            share[some] = maths.adaptive_skew(gap[some], self.base)
        cut = share.clamp(self.floor, self.base)
        columns = {SKEW: cut, f"{SKEW}.cut": (cut != share).to(cut)}
        return rows.plus(**{name: values[rollouts.owner] for name, values in columns.items()})


@dataclass(frozen=True)
class Skewed:
    """A skewed divergence over the whole vocabulary, with the share of the column `skew`."""

    divergence: SkewedDivergence
    teacher: str = "teacher"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return self.divergence(student.logprobs(), rows.dist(self.teacher).logprobs(), rows[SKEW])
