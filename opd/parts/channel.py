"""A noisy teacher as an object: with probability `rate` what it would have said is replaced by a draw from some noise.

A noise maps log-probs [n, V] (of the clean policy, which most noises ignore) and the table to log nu [n, V]:

    uniform     any token
    Given       a distribution that is known
    Tempered    what the teacher says at another temperature
    Corrupted   a token turned into another one, by a table of how often each becomes which

Axes: n rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opd import maths
from opd.errors import SettingError, require
from opd.rows import Rows

Noise = Callable[[Tensor, Rows], Tensor]  # (log-probs [n, V] of the clean policy, table) -> log nu [n, V]


def uniform(lp: Tensor, rows: Rows) -> Tensor:
    """Any token is as likely as any other."""
    return torch.full_like(lp, -math.log(lp.shape[-1]), requires_grad=False)


@dataclass(frozen=True)
class Given:
    """The same known distribution [V] at every decision."""

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_distribution("the noise", self.probabilities)

    def __call__(self, lp: Tensor, rows: Rows) -> Tensor:
        _check_width(len(self.probabilities), lp)
        return torch.tensor(self.probabilities, dtype=lp.dtype, device=lp.device).log().expand_as(lp)


@dataclass(frozen=True)
class Tempered:
    """The teacher's own distribution at a temperature: noise that looks like the teacher on a bad day."""

    temperature: float
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.temperature > 0, "the temperature of the noise", got=self.temperature, expected="above 0")

    def __call__(self, lp: Tensor, rows: Rows) -> Tensor:
        found = rows.dist(self.teacher).tempered(self.temperature).logprobs().to(lp)
        _check_width(found.shape[-1], lp)
        return found


@dataclass(frozen=True)
class Corrupted:
    """Token a turns into token b with probability table[a][b], so that the noise depends on the clean policy.

    It makes a [n, V, V] tensor: for small vocabularies.
    """

    table: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for row in self.table:
            require(
                len(row) == len(self.table), "a table of corruptions", got=f"a row of {len(row)}", expected="a square"
            )
            _check_distribution("a row of the table of corruptions", row)

    def __call__(self, lp: Tensor, rows: Rows) -> Tensor:
        _check_width(len(self.table), lp)
        turns = torch.tensor(self.table, dtype=lp.dtype, device=lp.device).log()
        return torch.logsumexp(lp[..., :, None] + turns, -2)


@dataclass(frozen=True)
class Channel:
    """C[p] = (1 - rate) p + rate nu, on log-probs and with gradient (the model of arXiv 2606.30923)."""

    rate: float
    noise: Noise = uniform

    def __post_init__(self) -> None:
        require(0 <= self.rate < 1, "the noise rate", got=self.rate, expected="a number in [0, 1)")

    def __call__(self, lp: Tensor, rows: Rows) -> Tensor:
        """[n, V] log-probs of a policy -> of what is seen of it; rate 0 changes nothing."""
        return maths.mixture(lp, self.noise(lp, rows), self.rate) if self.rate else lp


def _check_distribution(what: str, probabilities: Sequence[float]) -> None:
    good = all(p >= 0 for p in probabilities) and math.isclose(sum(probabilities), 1, abs_tol=1e-6)
    require(good, what, got=list(probabilities), expected="probabilities that sum to 1")


def _check_width(ours: int, lp: Tensor) -> None:
    if ours != lp.shape[-1]:
        raise SettingError(
            "the channel is over another action set",
            got=f"noise over {ours} actions",
            expected=f"noise over the policy's {lp.shape[-1]}",
        )
