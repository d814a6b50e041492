"""Measurements made in passing: no gradient, no second pass over the models, one number per row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from opd import maths
from opd.dist import Dist
from opd.rows import Rows


def student(dist: Dist, rows: Rows) -> dict[str, Tensor]:
    """The student's own log-prob of the decided token and its entropy (nats)."""
    return {"student.chosen": dist.chosen, "student.entropy": maths.entropy(dist.logprobs())}


@dataclass(frozen=True)
class Against:
    """Reverse KL(student || teacher) per row in nats, and the teacher's entropy; needs whole distributions."""

    teacher: str = "teacher"

    def __call__(self, dist: Dist, rows: Rows) -> dict[str, Tensor]:
        ours, theirs = dist.logprobs(), rows.dist(self.teacher).logprobs()
        return {"reverse_kl": maths.reverse_kl(ours, theirs), "teacher.entropy": maths.entropy(theirs)}
