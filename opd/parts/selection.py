"""Which decisions are worth learning from: where teachers disagree, where the student is wrong, where it is sure of it.

Axes: N rows, M teachers, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from opd import maths
from opd.errors import SettingError, require
from opd.parts.credit import MEASURED
from opd.parts.fading import passed
from opd.protocols import Cast
from opd.rows import Rows


@dataclass(frozen=True)
class Signals:
    """Columns `conflict`, `gap` and `unsure` of every row, from whole distributions, a few rows of them at a time.

    conflict: the Jensen-Shannon divergence of the M teachers (nats); gap: KL(student || its own teacher) (nats);
    unsure: the student's entropy divided by log V, 0 to 1.
    """

    teachers: tuple[str, ...]
    own: str = "own"
    teacher: str = "teacher"

    def check(self, cast: Cast) -> None:
        """Every one of the teachers is there, so that there is somebody to differ from."""
        there: Mapping[str, object] = getattr(cast[self.teacher], "members", {})
        wanted = [name.removeprefix(f"{self.teacher}_") for name in self.teachers]
        if missing := [name for name in wanted if name not in there]:
            raise SettingError(
                f"nobody is the specialist {missing[0]!r}",
                got=f"teachers {sorted(there)}" if there else "one teacher",
                expected=" and ".join(map(repr, wanted)),
                remedy=f"Give --teacher {','.join(f'{name}=MODEL' for name in wanted)}, and problems their teacher_id",
            )

    def __call__(self, rows: Rows) -> Rows:
        ours, theirs = rows.dist(self.own), rows.dist(self.teacher)
        peers = [rows.dist(name) for name in self.teachers]
        found = list[tuple[Tensor, Tensor, Tensor]]()
        for start in range(0, len(rows), MEASURED):
            here = slice(start, start + MEASURED)
            student = ours.index(here).logprobs()
            conflict = maths.disagreement([peer.index(here).logprobs() for peer in peers])
            gap = maths.reverse_kl(student, theirs.index(here).logprobs())
            found.append((conflict, gap, maths.entropy(student) / math.log(student.shape[-1])))
        conflict, gap, unsure = (torch.cat(column).to(rows["behaviour"].dtype) for column in zip(*found, strict=True))
        return rows.plus(conflict=conflict, gap=gap, unsure=unsure)


@dataclass(frozen=True)
class SkipSettled:
    """Rows are left out where the student agrees with its teacher already (masked.settled), or is unsure while the
    teachers do not differ (masked.unstable)."""

    gap: float
    unsure: float
    conflict: float

    def __call__(self, rows: Rows) -> Rows:
        rows = rows.masked("settled", rows["gap"] <= self.gap)
        return rows.masked("unstable", (rows["unsure"] > self.unsure) & (rows["conflict"] < self.conflict))


@dataclass(frozen=True)
class MostContested:
    """Of every answer, the share of its kept rows where the teachers differ most; the rest is masked.uncontested.

    The share falls in a straight line from 1 to `end` over `steps` batches. Ties at the edge stay in.
    """

    end: float
    steps: int

    def __post_init__(self) -> None:
        require(0 < self.end <= 1, "the share of tokens in the end", got=self.end, expected="above 0, at most 1")
        require(self.steps >= 0, "batches until the share has fallen", got=self.steps, expected="at least 0")

    def share(self, step: int) -> float:
        return 1 - (1 - self.end) * passed(step, self.steps)

    def __call__(self, rows: Rows) -> Rows:
        share = self.share(rows.step)
        if share == 1:
            return rows.masked("uncontested", torch.zeros_like(rows["keep"]))
        keep, conflict, sequence = rows["keep"], rows["conflict"], rows["sequence"]
        out = torch.zeros_like(keep)
        for number in torch.unique(sequence[keep]):
            own = keep & (sequence == number)
            most = max(1, math.ceil(share * int(own.sum())))
            out |= own & (conflict < conflict[own].topk(most).values[-1])
        return rows.masked("uncontested", out)


@dataclass(frozen=True)
class SurelyWrong:
    """weight = 1 + kappa (1 - unsure) gap / (mean gap of the kept rows): confident and misaligned rows count more."""

    kappa: float

    def __post_init__(self) -> None:
        require(self.kappa >= 0, "the strength kappa of the weights", got=self.kappa, expected="at least 0")

    def __call__(self, rows: Rows) -> Rows:
        gap = rows["gap"]
        mean = gap[rows["keep"]].mean()
        scaled = gap / mean if bool(mean > 0) else torch.zeros_like(gap)  # nothing is wrong anywhere
        return rows.plus(weight=1 + self.kappa * (1 - rows["unsure"]) * scaled)
