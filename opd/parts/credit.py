"""How answers become advantages: small functions from table to table, over the whole batch and without gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opd import estimators
from opd.dist import Dist
from opd.errors import one_of, require
from opd.rollout import Array
from opd.rows import Rows

MEASURED = 512  # rows whose whole distributions exist at the same time
Divergence = Callable[[Tensor, Tensor], Tensor]  # (lp, lq) [n, V] -> [n]
UNITS = {"rows": "row", "tokens": "position", "turns": "turn"}


@dataclass(frozen=True)
class LogRatio:
    """advantage = scale * (log q(y) - log pi(y)) on the decided token: minus the k1 estimate of reverse KL."""

    teacher: str = "teacher"
    scale: float = 1.0

    def __call__(self, rows: Rows) -> Rows:
        return rows.plus(advantage=self.scale * (rows[f"{self.teacher}.chosen"] - rows["untruncated"]))


@dataclass(frozen=True)
class Clamped:
    """advantage cut to [-bound, bound]; the column `counter` is 1 where that took something away, else 0."""

    bound: float
    counter: str = "advantage.cut"

    def __post_init__(self) -> None:
        require(self.bound > 0, "the bound of an advantage", got=self.bound, expected="more than 0")

    def __call__(self, rows: Rows) -> Rows:
        advantage = rows["advantage"]
        cut = (advantage.abs() > self.bound).to(advantage)
        return rows.plus(advantage=advantage.clamp(-self.bound, self.bound), **{self.counter: cut})


@dataclass(frozen=True)
class ReturnToGo:
    """advantage_n = sum over later kept rows m of the episode of gamma^(time_m - time_n) advantage_m (2603.25562, 3.3).

    `unit` says what the discount counts: rows (tool output takes no time), tokens, or turns.
    """

    gamma: float
    unit: str = "rows"

    def __post_init__(self) -> None:
        require(0 <= self.gamma <= 1, "the discount gamma", got=self.gamma, expected="a number in [0, 1]")
        one_of("what the discount counts", self.unit, UNITS)

    def __call__(self, rows: Rows) -> Rows:
        if self.gamma == 0:
            return rows
        # an episode may be several rollouts: rows are then counted across them, in table order
        time = torch.arange(len(rows), device=rows["row"].device) if self.unit == "rows" else rows[UNITS[self.unit]]
        # what is not learned from credits nobody either: a masked marker's -60, or a nan where nobody was asked
        values = torch.where(rows["keep"], rows["advantage"], 0.0)
        return rows.plus(advantage=estimators.returns(values, rows["episode"], time, self.gamma))


@dataclass(frozen=True)
class MeanToGo:
    """advantage_n = sum over the kept rows m of the episode from n on of gamma^(m-n) advantage_m / their number.

    Without the division late decisions answer for less and short episodes look best (MiniLLM, arXiv 2306.08543, 2.2).
    own: n itself is among them; else only what follows it, and the last decision answers for nothing.
    """

    gamma: float
    own: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.gamma <= 1, "the discount gamma", got=self.gamma, expected="a number in [0, 1]")

    def __call__(self, rows: Rows) -> Rows:
        time, kept = torch.arange(len(rows), device=rows["row"].device), rows["keep"]
        values, ones = torch.where(kept, rows["advantage"], 0.0), kept.to(rows["advantage"].dtype)
        total = estimators.returns(values, rows["episode"], time, self.gamma)
        number = estimators.returns(ones, rows["episode"], time, 1.0)
        if not self.own:
            total, number = total - values, number - ones
        return rows.plus(advantage=total / number.clamp(min=1))


def without_ungraded(rows: Rows) -> Rows:
    """The table without the rows of answers that could not be graded (masked.ungraded); itself where all were."""
    hit = rows["reward"].isnan()
    return rows.masked("ungraded", hit) if bool(hit.any()) else rows


@dataclass(frozen=True)
class Earned:
    """advantage = scale times what the decision earned in its environment; a text earns its grade at its end.

    Rows of texts that nobody could grade are masked.
    """

    scale: float = 1.0
    needs_reward = True  # of texts

    def __call__(self, rows: Rows) -> Rows:
        if "earned" in rows:
            return rows.plus(advantage=self.scale * rows["earned"])
        last = rows["row"] == rows["length"] - 1
        grade = rows["reward"].nan_to_num(0.0)  # of rows that are masked
        return without_ungraded(rows).plus(advantage=torch.where(last, self.scale * grade, 0.0))


@dataclass(frozen=True)
class LessMean:
    """advantage less its mean over the kept decisions that are as many steps into their episode: a plain baseline."""

    def __call__(self, rows: Rows) -> Rows:
        kept, less = rows["keep"], rows["advantage"].clone()
        less[kept] -= estimators.mean_of(less[kept], rows["row"][kept])
        return rows.plus(advantage=less)


def apart(divergence: Divergence, ours: Dist, theirs: Dist, numbers: Tensor) -> Tensor:
    """[n] how far two readers are apart at the rows with these numbers, a chunk at a time: no [N, V] tensor exists."""
    return torch.cat(
        [divergence(ours.index(some).logprobs(), theirs.index(some).logprobs()) for some in numbers.split(MEASURED)]
    )


@dataclass(frozen=True)
class FutureCost:
    """advantage_n = - sum over later rows m of gamma^(time_m - time_n) D_m: the part of the sequence's gradient that
    choosing n has in what follows (1902.02186, table 1). D is measured in chunks, so no [N, V] tensor exists.
    """

    divergence: Divergence
    gamma: float = 1.0
    student: str = "own"
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(0 <= self.gamma <= 1, "the discount gamma", got=self.gamma, expected="a number in [0, 1]")

    def __call__(self, rows: Rows) -> Rows:
        numbers = torch.arange(len(rows), device=rows["keep"].device)
        cost = apart(self.divergence, rows.dist(self.student), rows.dist(self.teacher), numbers)
        whole = estimators.returns(cost, rows["episode"], torch.arange(len(rows), device=cost.device), self.gamma)
        return rows.plus(advantage=-(whole - cost).to(rows["behaviour"].dtype))


@dataclass(frozen=True)
class ValueGate:
    """`gate` marks the rows where the teacher expects to earn more than the student does: V_T(s) > V_S(s) (1902.02186).

    V_S is the student's own return-to-go, averaged over the rows of the batch that stand in the same state (the column
    `state` of a world that numbers its states), else over the row alone.
    """

    gamma: float
    teacher: str = "teacher"

    def __call__(self, rows: Rows) -> Rows:
        time = torch.arange(len(rows), device=rows["row"].device)
        earned = estimators.returns(Earned()(rows)["advantage"], rows["episode"], time, self.gamma)
        own = estimators.mean_of(earned, rows["state"]) if "state" in rows else earned
        return rows.plus(gate=rows[f"{self.teacher}.value"] > own)


@dataclass(frozen=True)
class Marked:
    """Boolean columns of kept decisions, each a term's own rows: `into` those of one author, `others` of all others."""

    into: str
    author: int
    others: str

    def __call__(self, rows: Rows) -> Rows:
        kept, own = rows["keep"], rows["author"] == self.author
        return rows.plus(**{self.into: kept & own, self.others: kept & ~own})


@dataclass(frozen=True)
class SkipFirst:
    """The first n decisions of a rollout are not learned from."""

    n: int

    def __call__(self, rows: Rows) -> Rows:
        return rows.masked("first", rows["row"] < self.n) if self.n else rows


@dataclass(frozen=True)
class OnlyShown:
    """What an optional ask showed its reader nothing of is not learned from, and counted: masked.unshown."""

    into: str = "teacher"

    def __call__(self, rows: Rows) -> Rows:
        return rows.masked("unshown", ~rows[f"{self.into}.shown"])


@dataclass(frozen=True)
class SkipTokens:
    """Some tokens are not learned from: `which`=first only where a rollout has each for the first time, or all.

    First is what the released code of 2603.25562 does with markers that student and teacher spell differently.
    """

    ids: tuple[int, ...]
    which: str = "all"
    why: str = "special"

    def __post_init__(self) -> None:
        one_of("which occurrences of a token are masked", self.which, ("first", "all"))

    def __call__(self, rows: Rows) -> Rows:
        hits = [rows["token"] == token for token in self.ids]
        if self.which == "first":
            hits = [_first(hit, rows["sequence"], rows["row"]) for hit in hits]
        return rows.masked(self.why, torch.stack(hits).any(0))


def _first(hit: Tensor, sequence: Tensor, row: Tensor) -> Tensor:
    """[N] bool: of the rows that are hit, the earliest of each sequence."""
    numbers, place = torch.unique(sequence, return_inverse=True)
    never = int(row.max()) + 1
    earliest = torch.full_like(numbers, never).scatter_reduce(0, place, torch.where(hit, row, never), "amin")
    return hit & (row == earliest[place])


@dataclass(frozen=True)
class LastOnly:
    """Only the last k decisions of a rollout are learned from; the earlier ones are counted: masked.early.

    With `into`, nothing is left out: the boolean column of that name marks them, as the rows of a term of their own.
    """

    k: int
    into: str = ""

    def __call__(self, rows: Rows) -> Rows:
        early = rows["row"] < rows["length"] - self.k
        return rows.plus(**{self.into: rows["keep"] & ~early}) if self.into else rows.masked("early", early)


@dataclass(frozen=True)
class ConstantNegative:
    """advantage = -size where the student itself gave the token less than `threshold`, else 0; no teacher speaks."""

    threshold: float
    size: float = 1.0

    def __post_init__(self) -> None:
        require(
            0 < self.threshold <= 1, "the probability below which a token is lowered", got=self.threshold,
            expected="a number in (0, 1]",
        )  # fmt: skip
        require(self.size > 0, "the size of the negative advantage", got=self.size, expected="more than 0")

    def __call__(self, rows: Rows) -> Rows:
        low = rows["untruncated"].exp() < self.threshold
        return rows.plus(advantage=-self.size * low.to(rows["untruncated"].dtype))


@dataclass(frozen=True)
class Shuffled:
    """The advantages of the kept rows of a batch, dealt out among them by chance: the same numbers, the wrong tokens.

    The deal is a function of the step and of what the rows hold, not of the order in which they stand. Or those of
    another column, where they are known.
    """

    column: str = "advantage"

    def __call__(self, rows: Rows) -> Rows:
        dealt = rows[self.column]
        kept: Array = (rows["keep"] & ~dealt.isnan()).nonzero().squeeze(-1).cpu().numpy()
        keys = [rows[name].cpu().numpy()[kept] for name in ("untruncated", "token", "position", "row")]
        kept = kept[np.lexsort(keys)]
        deal = np.random.Generator(np.random.Philox(key=[rows.step, len(kept)])).permutation(len(kept))
        column = dealt.clone()
        column[torch.as_tensor(kept)] = dealt[torch.as_tensor(kept[deal])]
        return rows.plus(**{self.column: column})
