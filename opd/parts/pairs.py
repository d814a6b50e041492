"""Pairs of answers to one question, of which one should win: how they are written, and what preferring it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opd import estimators
from opd.errors import one_of, require
from opd.parts.credit import without_ungraded
from opd.parts.sample import AUTHORS
from opd.parts.views import Privileged
from opd.protocols import Cast, write_for
from opd.rollout import OTHER, Array, Group, Piece, Rollout, Sampling, Visit, continued
from opd.rows import Rows

LABELS = ("teacher_wins", "reward")


@dataclass(frozen=True)
class Pairs:
    """`n` pairs per prompt: the teacher's answer, written under `view`, and one by `against`, written without.

    Both stand after the plain prompt. The tag `pair` numbers the pairs of a group, `side` is 1 for the teacher's
    answer and -1 for the other.
    """

    view: Privileged
    n: int = 1
    sampling: Sampling = Sampling()
    against: str = "student"
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.n >= 1, "pairs per prompt n", got=self.n, expected="at least 1")

    @property
    def writers(self) -> frozenset[str]:
        return frozenset({self.teacher, self.against})

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        student = cast["student"]
        plain = [student.render(visit.problem.messages) for visit in visits]
        shown = [student.render(self.view.messages(visit.problem)) for visit in visits]
        better = self._side(1.0, cast, self.teacher, visits, shown, plain)
        other = self._side(-1.0, cast, self.against, visits, plain, plain)
        return [
            Group(visit.problem, (*first, *second), student.render)
            for visit, first, second in zip(visits, better, other, strict=True)
        ]

    def _side(
        self,
        side: float,
        cast: Cast,
        who: str,
        visits: Sequence[Visit],
        prompts: Sequence[Array],
        plain: Sequence[Array],
    ) -> list[list[Rollout]]:
        """The answers of one side: written after `prompts`, put after the plain ones."""
        author, decode = AUTHORS.get(who, OTHER), cast["student"].decode
        seeds = [[visit.seed(2 * pair + (side < 0)) for pair in range(self.n)] for visit in visits]
        pieces = write_for(cast[who], [visit.problem for visit in visits], prompts, self.sampling, seeds)

        def rollout(visit: Visit, prompt: Array, piece: Piece, pair: int, seed: int) -> Rollout:
            made = continued(prompt, piece, visit.problem, self.sampling, author, decode(piece.tokens))
            return replace(made, seed=seed).tagged(pair=pair, side=side)

        return [
            [rollout(visit, prompt, piece, i, seed) for i, (piece, seed) in enumerate(zip(some, own, strict=True))]
            for visit, prompt, some, own in zip(visits, plain, pieces, seeds, strict=True)
        ]


@dataclass(frozen=True)
class Preferred:
    """advantage = -d/d log pi(y) of the pair's logistic loss: side * beta * (win - sigma(m)) on each row of an answer.

    m = beta * [h(first) - h(second)] with h = log pi(y|x) - log q(y|x, c) summed over an answer's kept rows, both at
    the batch's start; exact for one update per batch (2605.05040, Eq. 10). label: `teacher_wins` (win 1) or `reward`,
    win = sigma(r(first) - r(second)), the expectation of Bradley and Terry's label. `pair.loss` and `pair.margin` hold
    one number per pair, and nan in its other rows; a pair that lacks an answer is left out (masked.unpaired), and where
    the label needs them one that lacks a grade too.
    """

    beta: float
    label: str = "teacher_wins"
    student: str = "own"
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.beta > 0, "the strength beta of the tie to the teacher", got=self.beta, expected="above 0")
        one_of("who says which answer wins", self.label, LABELS)

    @property
    def needs_reward(self) -> bool:
        return self.label == "reward"

    def __call__(self, rows: Rows) -> Rows:
        pair = _pairs(rows)
        first, side = rows["row"] == 0, rows["side"]
        ratio = torch.where(rows["keep"], rows[f"{self.student}.chosen"] - rows[f"{self.teacher}.chosen"], 0.0)
        margin = self.beta * _sums(side * ratio, pair)
        win = torch.ones_like(margin)
        if self.needs_reward:
            win = _sums(torch.where(first, side * rows["reward"], 0.0), pair).sigmoid()
            rows = without_ungraded(rows)
        noted = torch.where(first & (side > 0), 1.0, torch.nan).to(ratio)
        lacking = (_sums(first.to(ratio), pair) != 2) | win.isnan()
        rows = rows.masked("unpaired", lacking[pair])
        return rows.plus(
            advantage=self.beta * side * (win - margin.sigmoid())[pair],
            **{"pair.loss": noted * estimators.preference(margin, win)[pair], "pair.margin": noted * margin[pair]},
        )


def _pairs(rows: Rows) -> Tensor:
    """[N] the number of each row's pair in the table."""
    names = torch.stack([rows["group"], rows["pair"].to(rows["group"].dtype)])
    return torch.unique(names, dim=1, return_inverse=True)[1]


def _sums(values: Tensor, pair: Tensor) -> Tensor:
    """[N] -> [P] sums over the rows of each pair."""
    return values.new_zeros(int(pair.max()) + 1).index_add(0, pair, values)
