"""How the log-ratio of teacher and student becomes an advantage of another shape: power, squash, weigh, extend.

Axes: N rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from opd import estimators, maths
from opd.errors import require
from opd.rows import Rows


@dataclass(frozen=True)
class PowerRatio:
    """advantage = q(y)^alpha - pi(y)^alpha: within [-1, 1] and with the sign of the log-ratio, which alpha 0 is."""

    alpha: float
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.alpha >= 0, "the power alpha", got=self.alpha, expected="0 for the log-ratio, or more")

    def __call__(self, rows: Rows) -> Rows:
        return rows.plus(advantage=maths.power_reward(rows["untruncated"], rows[f"{self.teacher}.chosen"], self.alpha))


@dataclass(frozen=True)
class Squashed:
    """advantage = tanh(advantage / tau)."""

    tau: float

    def __post_init__(self) -> None:
        require(self.tau > 0, "the temperature tau of a tanh", got=self.tau, expected="more than 0")

    def __call__(self, rows: Rows) -> Rows:
        return rows.plus(advantage=torch.tanh(rows["advantage"] / self.tau))


@dataclass(frozen=True)
class Early:
    """advantage_t times w_t = 1 + gain (1 - P_t / P): what comes before the models have drifted apart counts more.

    P_t = sum of |advantage| over the kept rows before t of the same answer, P over all of them (2606.22600).
    """

    gain: float

    def __post_init__(self) -> None:
        require(self.gain >= 0, "the gain of the weight", got=self.gain, expected="0 for no weight, or more")

    def __call__(self, rows: Rows) -> Rows:
        size = torch.where(rows["keep"], rows["advantage"].abs(), 0.0)
        weight = 1 + self.gain * estimators.earliness(size, rows["sequence"])
        return rows.plus(advantage=weight * rows["advantage"])


LIMITS = ("lambda", "lambda.limit", "lambda.beyond", "lambda.capped", "lambda.outside", "tail.saturated")


@dataclass(frozen=True)
class Extrapolated:
    """advantage = lam (log q - log b) - (log pi - log b): from base b to teacher q and beyond it (2602.12125).

    `watched` needs the teacher's best token and what the base gives it, compares lam with its limit lam* at every
    position (estimators.extrapolation_limit, with c) and writes the columns LIMITS. `margin`, unless None, then caps
    lam there at lam* - margin, never below 1, and at 1 where the base is as sure as the teacher.
    """

    lam: float
    c: float = math.inf
    watched: bool = False
    margin: float | None = None
    teacher: str = "teacher"
    base: str = "reference"

    def __post_init__(self) -> None:
        require(self.c >= 1, "the cap c of the importance ratio", got=self.c, expected="at least 1")
        require(self.margin is None or self.margin >= 0, "the margin to the limit", got=self.margin,
                expected="at least 0")  # fmt: skip

    def __call__(self, rows: Rows) -> Rows:
        own, teacher, base = (rows[name] for name in ("untruncated", f"{self.teacher}.chosen", f"{self.base}.chosen"))
        if not self.watched:
            return rows.plus(advantage=estimators.extrapolated_reward(own, teacher, base, self.lam))
        rows = self._watch(rows)
        return rows.plus(advantage=estimators.extrapolated_reward(own, teacher, base, rows["lambda"]))

    def _watch(self, rows: Rows) -> Rows:
        """The columns LIMITS; nan where one says nothing."""
        best = rows[f"{self.teacher}.ids"][:, :1]
        sure, base = rows.dist(self.teacher).at(best)[:, 0], rows[f"{self.base}.gathered"][:, 0]
        limit, outside = estimators.extrapolation_limit(sure, base, self.c), sure <= base
        lam = torch.full_like(limit, self.lam) if self.margin is None else self._capped(limit, outside, self.margin)
        too_thin = rows[f"{self.teacher}.chosen"] - rows["untruncated"] >= math.log(self.c)
        found = {
            "lambda": lam,
            "lambda.limit": limit.masked_fill(outside, torch.nan),
            "lambda.beyond": (lam > limit).to(limit),
            "lambda.capped": (lam < self.lam).to(limit),
            "lambda.outside": outside.to(limit),
            "tail.saturated": too_thin.to(limit).masked_fill(rows["token"] == best[:, 0], torch.nan),
        }
        return rows.plus(**found)

    def _capped(self, limit: Tensor, outside: Tensor, margin: float) -> Tensor:
        least = min(self.lam, 1.0)
        return torch.where(outside, least, (limit - margin).clamp(least, self.lam))
