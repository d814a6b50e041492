"""What the answers to one problem say of each other: rewards against those of the siblings, over a stated scope.

Credit is given once, to the table of the whole batch, before learning splits that into updates, passes and ranks: the
batch *is* all ranks, and --micro-tokens changes nothing here. Scopes are the group (the answers to one problem), the
batch, and, for what others compute per micro-batch, `micro` rollouts after the other in the table's order (0: batch).

Axes: N rows, B rollouts, G groups (all rollouts of one visit of a problem).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.errors import one_of, require
from opd.parts.credit import without_ungraded
from opd.rows import Rows

SPREADS = ("group", "batch", "none")


def micro_batches(rows: Rows, micro: int) -> Tensor:
    """[N] the number of each row's micro-batch of `micro` rollouts; 0 everywhere for micro 0, the whole batch."""
    return rows["sequence"] // micro if micro else torch.zeros_like(rows["keep"], dtype=torch.long)


def require_micro(micro: int) -> None:
    require(micro >= 0, "rollouts of a scope (micro)", got=micro, expected="0 for all, or more")


@dataclass(frozen=True)
class Rollouts:
    """One number per rollout instead of one per row, and the way back."""

    group: Tensor  # [B] numbers from 0 to G - 1
    owner: Tensor  # [N] which rollout a row belongs to
    first: Tensor  # [B] the table's number of each rollout's first row

    @classmethod
    def of(cls, rows: Rows) -> Rollouts:
        numbers, owner = torch.unique(rows["sequence"], return_inverse=True)
        order = torch.arange(len(rows), device=owner.device)
        first = torch.full((len(numbers),), len(rows), device=owner.device).scatter_reduce(0, owner, order, "amin")
        return cls(torch.unique(rows["group"][first], return_inverse=True)[1], owner, first)

    def values(self, rows: Rows, column: str) -> Tensor:
        """[B] a column that is the same in all rows of a rollout."""
        return rows[column][self.first]

    def average(self, rows: Rows, column: str) -> Tensor:
        """[B] the mean of a column over each rollout's kept rows; 0 where none is kept."""
        kept = rows["keep"].to(rows[column].dtype)
        values = torch.where(rows["keep"], rows[column], 0.0)
        total, number = (kept.new_zeros(len(self.group)).index_add(0, self.owner, one) for one in (values, kept))
        return total / number.clamp(min=1)

    @property
    def size(self) -> Tensor:
        """[B] how many rollouts each one's group has."""
        return torch.bincount(self.group)[self.group]

    def mean(self, values: Tensor) -> Tensor:
        """[B] -> [B] the mean of each rollout's group."""
        return self.total(values) / self.size

    def deviation(self, values: Tensor, ddof: int = 1) -> Tensor:
        """[B] -> [B] the standard deviation in each rollout's group; 0 in a group of one."""
        return (self.total((values - self.mean(values)).square()) / (self.size - ddof).clamp(min=1)).sqrt()

    def trivial(self, values: Tensor) -> Tensor:
        """[B] bool: in this rollout's group all values are the same."""
        number = int(self.group.max()) + 1
        low = values.new_full((number,), torch.inf).scatter_reduce(0, self.group, values, "amin")
        high = values.new_full((number,), -torch.inf).scatter_reduce(0, self.group, values, "amax")
        return (low == high)[self.group]

    def total(self, values: Tensor) -> Tensor:
        """[B] -> [B] the sum over each rollout's group."""
        return values.new_zeros(int(self.group.max()) + 1).index_add(0, self.group, values)[self.group]


def among_graded(rows: Rows, say: Callable[[Rows], Tensor]) -> Tensor:
    """[N] what `say` finds in the rows of graded answers, where these are the whole table; 0 in all other rows."""
    known = ~rows["reward"].isnan()
    if not bool(known.any()):
        return torch.zeros_like(rows["reward"])
    said = say(Rows({name: rows[name][known] for name in ("reward", "group", "sequence", "keep")}))
    return said.new_zeros(len(rows)).masked_scatter(known, said)


@dataclass(frozen=True)
class GroupAdvantage:
    """advantage = (r - mean of the group) / spread, on every row of a rollout (GRPO, arXiv 2402.03300, 4.1.2).

    spread: the group's standard deviation, that of the whole batch after centring without the trivial groups, or none
    (as Dr. GRPO, arXiv 2503.20783, which also sums over an answer's tokens: means.sequence_sum). A trivial group, all
    of one reward, has advantage 0 whatever the spread. `ddof` 1 is the sample deviation that TRL and verl take.

    Rows of ungraded answers are masked. `alone` false: the reward is added to another signal, from which they are still
    learned; their advantage is 0, and the boolean column `graded` marks the kept rows of all others.
    """

    spread: str = "group"
    ddof: int = 1
    alone: bool = True
    needs_reward = True

    def __post_init__(self) -> None:
        one_of("what rewards are divided by", self.spread, SPREADS)

    def __call__(self, rows: Rows) -> Rows:
        found = without_ungraded(rows).plus(advantage=among_graded(rows, self._advantage))
        return found if self.alone else found.plus(graded=found["keep"], keep=rows["keep"])

    def _advantage(self, rows: Rows) -> Tensor:
        rollouts = Rollouts.of(rows)
        reward = rollouts.values(rows, "reward")
        trivial, centred = rollouts.trivial(reward), reward - rollouts.mean(reward)
        advantage = torch.where(trivial, 0.0, centred / self._size(rollouts, reward, centred, trivial))
        return advantage[rollouts.owner]

    def _size(self, rollouts: Rollouts, reward: Tensor, centred: Tensor, trivial: Tensor) -> Tensor:
        if self.spread == "group":
            return rollouts.deviation(reward, self.ddof)
        alive = centred[~trivial]
        if self.spread == "none" or not len(alive):
            return torch.ones_like(reward)
        return alive.std(correction=self.ddof) if len(alive) > self.ddof else torch.ones_like(reward)


@dataclass(frozen=True)
class LessBatch:
    """advantage = reward less the mean over all rollouts of the batch, or of a micro-batch (1992; arXiv 2402.14740)."""

    micro: int = 0
    needs_reward = True

    def __post_init__(self) -> None:
        require_micro(self.micro)

    def __call__(self, rows: Rows) -> Rows:
        return without_ungraded(rows).plus(advantage=among_graded(rows, self._advantage))

    def _advantage(self, rows: Rows) -> Tensor:
        rollouts = Rollouts.of(rows)
        reward, scope = rollouts.values(rows, "reward"), micro_batches(rows, self.micro)[rollouts.first]
        centred = reward.clone()
        for one in torch.unique(scope):
            centred[scope == one] -= reward[scope == one].mean()
        return centred[rollouts.owner]


@dataclass(frozen=True)
class LeaveOneOut:
    """advantage = reward less the mean over the *other* rollouts of the group (RLOO, arXiv 2402.14740)."""

    needs_reward = True

    def __call__(self, rows: Rows) -> Rows:
        return without_ungraded(rows).plus(advantage=among_graded(rows, self._advantage))

    def _advantage(self, rows: Rows) -> Tensor:
        rollouts = Rollouts.of(rows)
        reward, size = rollouts.values(rows, "reward"), rollouts.size
        return ((reward - rollouts.mean(reward)) * size / (size - 1).clamp(min=1))[rollouts.owner]


@dataclass(frozen=True)
class SkipTrivial:
    """Groups whose rewards are all the same are not learned from, and leave the means too (DAPO, arXiv 2503.14476)."""

    needs_reward = True

    def __call__(self, rows: Rows) -> Rows:
        return without_ungraded(rows).masked("trivial", among_graded(rows, self._trivial).bool())

    def _trivial(self, rows: Rows) -> Tensor:
        rollouts = Rollouts.of(rows)
        return rollouts.trivial(rollouts.values(rows, "reward"))[rollouts.owner]


@dataclass(frozen=True)
class Whitened:
    """advantage less its mean over the kept rows of the batch, or of a micro-batch, divided by their deviation.

    0 where a scope has no two kept rows that differ.
    """

    micro: int = 0

    def __post_init__(self) -> None:
        require_micro(self.micro)

    def __call__(self, rows: Rows) -> Rows:
        advantage, scope = rows["advantage"], micro_batches(rows, self.micro)
        white = torch.zeros_like(advantage)
        for one in torch.unique(scope):
            kept = advantage[rows["keep"] & (scope == one)]
            if len(kept) > 1 and not bool((kept == kept[0]).all()):
                white = torch.where(scope == one, (advantage - kept.mean()) / kept.std(), white)
        return rows.plus(advantage=white)


@dataclass(frozen=True)
class Mixed:
    """advantage = sum of weight * column, each computed before: reward and distillation in one signal.

    `parts`: (column, weight). For a loss of its own, with its own denominator, give each a Term instead.
    """

    parts: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "what an advantage is mixed from", got="nothing", expected="at least one column")

    def __call__(self, rows: Rows) -> Rows:
        return rows.plus(advantage=torch.stack([weight * rows[name] for name, weight in self.parts]).sum(0))


@dataclass(frozen=True)
class Saved:
    """The advantage so far under a name of its own, so that the next credit can make another."""

    name: str

    def __call__(self, rows: Rows) -> Rows:
        return rows.plus(**{self.name: rows["advantage"]})
