"""Credits in which the verifier decides whether a token rises or falls, and a copy of the student by how much.

Each finds an `advantage` that rewards have made (groups.GroupAdvantage) and scales or shifts it, row by row. Columns
that are also measured have the measurement's name, and are nan where there was nothing to measure.

Axes: N rows, B rollouts, K hints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd import estimators, maths, shaping
from opd.errors import require
from opd.parts.credit import Divergence, apart
from opd.parts.groups import GroupAdvantage, Rollouts, micro_batches, require_micro
from opd.parts.hints import WRONG
from opd.rows import Rows


@dataclass(frozen=True)
class Fitting:
    """Rollouts whose hint the reader has no room for are left out, and counted as masked.hint."""

    teacher: str = "teacher"

    def __call__(self, rows: Rows) -> Rows:
        return rows.masked("hint", rows[f"{self.teacher}.unfit"])


@dataclass(frozen=True)
class Dependence:
    """`hint.kl` = KL(reader who saw a hint || student): how much a decision depends on knowing it (2606.18810)."""

    divergence: Divergence = maths.forward_kl
    student: str = "own"
    teacher: str = "teacher"

    def __call__(self, rows: Rows) -> Rows:
        asked = (rows[f"{self.teacher}.shown"] & rows["keep"]).nonzero().squeeze(-1)
        found = torch.full_like(rows["untruncated"], torch.nan)
        found[asked] = apart(self.divergence, rows.dist(self.student), rows.dist(self.teacher), asked).to(found)
        return rows.plus(**{"hint.kl": found})


@dataclass(frozen=True)
class Saturating:
    """`hint.weight` = D / (D + c) of D = hint.kl, c = max(a percentile of D, floor); `hint.faint`: 1 where D < floor.

    The percentile is that of the whole batch, or of micro-batches (see groups; those of 2606.18810 are its trainer's).
    """

    share: float = 75.0
    floor: float = 1e-4
    micro: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.share <= 100, "the percentile of the divergence", got=self.share, expected="0 to 100")
        require(self.floor > 0, "the least divergence that is half a weight", got=self.floor, expected="more than 0")
        require_micro(self.micro)

    def __call__(self, rows: Rows) -> Rows:
        found = rows["hint.kl"]
        half = shaping.percentile(found, self.share, micro_batches(rows, self.micro)).clamp(
            min=self.floor
        )  # hint.faint tells of the floor
        faint = torch.where(found.isnan(), torch.nan, (found < self.floor).to(found))
        return rows.plus(**{"hint.weight": shaping.saturating(found, half), "hint.faint": faint})


@dataclass(frozen=True)
class Diversity:
    """Where no answer of a group is right, each earns by how far it departs from one of them, its reference.

    advantage = alpha * (s - mean s) / std s over the others of the group, s the mean of hint.weight over the rows that
    both have. The reference, the rollout for which there is nothing to show, is not learned from (2606.18810, n_c = 0).
    """

    alpha: float
    threshold: float = 1.0
    teacher: str = "teacher"

    def __call__(self, rows: Rows) -> Rows:
        rollouts = Rollouts.of(rows)
        reward = rollouts.values(rows, "reward")
        shown, unfit = (rollouts.values(rows, f"{self.teacher}.{column}") for column in ("shown", "unfit"))
        lost = (rollouts.mean((reward >= self.threshold).to(reward)) == 0) & ~reward.isnan()
        reference = lost & ~shown & ~unfit
        rows = rows.masked("reference", reference[rollouts.owner])
        scored = (lost & shown)[rollouts.owner]
        if not bool(scored.any()):
            return rows
        narrow = Rows({**rows.narrow()}, rows.step).plus(reward=self._scores(rows, rollouts, reference)[rollouts.owner])
        advantage = rows["advantage"].clone()
        advantage[scored] = self.alpha * GroupAdvantage()(narrow.index(scored))["advantage"]
        return rows.plus(advantage=advantage)

    def _scores(self, rows: Rows, rollouts: Rollouts, reference: Tensor) -> Tensor:
        """[B] the mean weight of each rollout's rows that its group's reference is long enough to have, too."""
        length = rollouts.values(rows, "length")
        reach = rollouts.total(torch.where(reference, length, 0))
        weight = rows["hint.weight"]
        both = (rows["row"] < reach[rollouts.owner]) & ~weight.isnan()
        sums = torch.zeros_like(length, dtype=weight.dtype).index_add(0, rollouts.owner, torch.where(both, weight, 0.0))
        return sums / torch.bincount(rollouts.owner[both], minlength=len(length)).clamp(min=1)


@dataclass(frozen=True)
class Evened:
    """A column set to its mean over the kept rows where it is known: the control that keeps only its size."""

    column: str

    def __call__(self, rows: Rows) -> Rows:
        known = rows["keep"] & ~rows[self.column].isnan()
        mean = rows[self.column][known].mean()  # of no row: nan, and no row takes it
        return rows.plus(**{self.column: torch.where(known, mean, rows[self.column])})


@dataclass(frozen=True)
class Weighted:
    """advantage times a column, where that is known."""

    column: str

    def __call__(self, rows: Rows) -> Rows:
        weight = rows[self.column]
        return rows.plus(advantage=torch.where(weight.isnan(), rows["advantage"], weight * rows["advantage"]))


@dataclass(frozen=True)
class Bounded:
    """advantage = A [(1 - s) + s clip(exp(sign(A) * evidence), 1 - e, 1 + e)]; `evidence.cut`: 1 where the clip cut.

    s falls with the step (RLSD, 2604.03128); `width` is e, `evidence` a column of log-ratios.
    """

    evidence: str
    width: float
    share: Callable[[int], float]

    def __post_init__(self) -> None:
        require(self.width >= 0, "how far a factor may be from 1 (width)", got=self.width, expected="0 or more")

    def __call__(self, rows: Rows) -> Rows:
        advantage, evidence = rows["advantage"], rows[self.evidence]
        shaped, cut = shaping.bounded(advantage, evidence, self.width, self.share(rows.step))
        return rows.plus(**{"advantage": shaped, "evidence.cut": cut.to(evidence)})


@dataclass(frozen=True)
class BothHints:
    """Rollouts that lack a right hint or any wrong one are left out, and counted as masked.hint (2606.11709)."""

    wrong: int
    right: str = "teacher"

    def __call__(self, rows: Rows) -> Rows:
        some = torch.stack([rows[f"{WRONG.format(k)}.shown"] for k in range(self.wrong)]).any(0)
        return rows.masked("hint", rows["keep"] & ~(some & rows[f"{self.right}.shown"]))


@dataclass(frozen=True)
class Contrast:
    """`contrast` = log p(y) under the right hint less the log of its mean under the wrong ones (RLCSD, 2606.11709)."""

    wrong: int
    right: str = "teacher"

    def __call__(self, rows: Rows) -> Rows:
        wrong = [WRONG.format(k) for k in range(self.wrong)]
        found = shaping.contrast(
            rows[f"{self.right}.chosen"], torch.stack([rows[f"{name}.chosen"] for name in wrong], -1)
        )
        return rows.plus(contrast=found)


@dataclass(frozen=True)
class Shifted:
    """advantage = A + r, r = size tanh(contrast / tau), where |r| > delta, and never across 0 (RLCSD, 2606.11709).

    These rows are `selected`, the other kept ones `plain`; `contrast.stopped`: 1 where r would have turned A around.
    """

    size: float
    tau: float
    delta: float

    def __post_init__(self) -> None:
        require(self.tau > 0, "the temperature tau of a contrast", got=self.tau, expected="more than 0")

    def __call__(self, rows: Rows) -> Rows:
        advantage = rows["advantage"]
        shaped, shift = shaping.shifted(advantage, rows["contrast"], self.size, self.tau)
        chosen = (shift.abs() > self.delta) & rows["keep"]
        stopped = chosen & (advantage * (advantage + shift) < 0)
        return rows.plus(
            advantage=torch.where(chosen, shaped, advantage), selected=chosen, plain=rows["keep"] & ~chosen,
            **{"contrast.selected": chosen.to(advantage), "contrast.stopped": stopped.to(advantage)},
        )  # fmt: skip


@dataclass(frozen=True)
class Corrected:
    """advantage times min(pi(y) / mu(y), cap): what the nucleus made likelier counts less; `importance.cut`: the cap.

    mu is the distribution that really drew the token, pi the student's own at temperature 1. cap 0: no correction.
    """

    cap: float

    def __post_init__(self) -> None:
        require(self.cap >= 0, "the cap of the importance weight", got=self.cap, expected="0 for none, or more")

    def __call__(self, rows: Rows) -> Rows:
        if not self.cap:
            return rows.plus(**{"importance.cut": torch.zeros_like(rows["advantage"])})
        weight, cut = estimators.importance_weight(rows["untruncated"], rows["behaviour"], self.cap)
        return rows.plus(**{"advantage": weight * rows["advantage"], "importance.cut": cut.to(weight)})
