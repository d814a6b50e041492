"""What is differentiated: functions from the student's distributions and the table to one number per row.

Axes: n rows of a chunk, K tokens: all of the vocabulary, or a support.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opd import estimators, maths
from opd.dist import Dist
from opd.errors import require
from opd.parts.channel import Channel
from opd.rows import Rows

Divergence = Callable[[Tensor, Tensor], Tensor]  # (lp, lq) [n, K] -> [n]


@dataclass(frozen=True)
class CrossEntropy:
    """-log pi(y): learning to write what was written, or what the column `label` says should have been."""

    label: str = "token"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return -(student.chosen if self.label == "token" else student.at(rows[self.label]))


@dataclass(frozen=True)
class Imitate:
    """-log pi(a*) of the label: learning to decide as the teacher would have, whoever decided."""

    label: str = "label"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return -student.at(rows[self.label])


@dataclass(frozen=True)
class MatchValues:
    """KL(softmax(Q / temperature) || pi): imitating the policy that the teacher's values stand for (1511.06295)."""

    temperature: float
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.temperature > 0, "the temperature of values", got=self.temperature, expected="a number above 0")

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        target = maths.value_policy(rows[f"{self.teacher}.values"], self.temperature)
        return maths.forward_kl(student.logprobs(), target)


@dataclass(frozen=True)
class ExpectedLoss:
    """sum_a pi(a) (max Q - Q(a)): what a deviation costs, not only that it is one (1406.5979, Sun et al. 2017)."""

    teacher: str = "teacher"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return maths.expected_loss(student.logprobs(), rows[f"{self.teacher}.values"])


@dataclass(frozen=True)
class Gated:
    """Another loss where the boolean column `gate` is open and 0 elsewhere; every row counts in the mean."""

    loss: Callable[[Dist, Rows], Tensor]
    gate: str = "gate"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        open = rows[self.gate].nonzero().squeeze(-1)
        values = self.loss(student.index(open), rows.index(open))
        return values.new_zeros(len(rows)).index_add(0, open, values)


@dataclass(frozen=True)
class PolicyGradient:
    """-A pi(y) / old(y): the importance-weighted score-function surrogate; `clip` makes it PPO's.

    old: `behaviour`, the distribution that really drew the token (right under top-p and temperature too), or
    `untruncated`, the student's own log-prob when it wrote (the ratio that PPO clips). `clip_high`: how far above 1
    the ratio may be where that is not `clip`; `dual`: see estimators.ppo_clip; `advantage`: the column that holds it.
    """

    clip: float = 0.0
    old: str = "behaviour"
    clip_high: float | None = None
    dual: float = 0.0
    advantage: str = "advantage"

    def __post_init__(self) -> None:
        require(0 <= self.clip <= 1, "the clip range of a ratio", got=self.clip, expected="a number in [0, 1]")
        require(self.clip > 0 or not (self.clip_high is not None or self.dual), "a ratio's upper bound",
                got="no lower one", expected="a lower one above 0")  # fmt: skip

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        logp, old, advantage = student.chosen, rows[self.old], rows[self.advantage]
        if self.clip:
            high = self.clip if self.clip_high is None else self.clip_high
            return estimators.ppo_clip(logp, old, advantage, self.clip, high, self.dual)
        return estimators.importance_gradient(logp, old, advantage)


@dataclass(frozen=True)
class TowardsTeacher:
    """Every decided token becomes as likely as the teacher finds it: the log-ratio to the student as it is now.

    Half its square, whose gradient is that of a policy gradient with the log-ratio as advantage; with `old`, the column
    of the log-prob with which the token was drawn, an estimate of the reverse KL (estimators.weighted_ratio).
    """

    old: str = ""
    teacher: str = "teacher"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        theirs = rows[f"{self.teacher}.chosen"]
        if self.old:
            return estimators.weighted_ratio(student.chosen, rows[self.old], theirs)
        return estimators.squared_ratio(student.chosen, theirs)


@dataclass(frozen=True)
class TruncatedGradient:
    """-A pi(y) / mu(y) whose weight in the gradient is at most `cap`: truncated importance sampling."""

    cap: float

    def __post_init__(self) -> None:
        require(1 <= self.cap < math.inf, "the cap of the importance weight", got=self.cap, expected="at least 1")

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return estimators.truncated_gradient(student.chosen, rows["behaviour"], rows["advantage"], self.cap)

    def cut(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """weight.cut: 1 where the weight was cut to the cap, else 0."""
        weight, cut = estimators.importance_weight(student.chosen, rows["behaviour"], self.cap)
        return {"weight.cut": cut.to(weight)}


@dataclass(frozen=True)
class Raise:
    """-A log pi(y): what moves an answer's log-prob by its advantage, whoever wrote it."""

    advantage: str = "advantage"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return estimators.policy_gradient(student.chosen, rows[self.advantage])


@dataclass(frozen=True)
class StayNear:
    """k3 of the decided token against a reader's log-prob of it: GRPO's term that holds the policy near its reference.

    Its value is an estimate of KL(pi || reference), its gradient that of KL(reference || pi) (see estimators.k3).
    """

    reference: str = "reference"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return estimators.k3(student.chosen, rows[f"{self.reference}.chosen"])


@dataclass(frozen=True)
class Everywhere:
    """A divergence over the whole vocabulary."""

    divergence: Divergence
    teacher: str = "teacher"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return self.divergence(student.logprobs(), rows.dist(self.teacher).logprobs())


@dataclass(frozen=True)
class ThroughChannel:
    """How well the student, seen through the noise that its teacher is seen through, explains what the teacher says.

    KL(q || C[pi]) over the whole vocabulary, or with a column `label` of tokens, -log C[pi](label). Either is least at
    the clean teacher where q = C[clean]; without the channel it would be least at q, noise and all.
    """

    channel: Channel
    label: str = ""
    teacher: str = "teacher"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        seen = self.channel(student.logprobs(), rows)
        if self.label:
            return -seen.gather(-1, rows[self.label][:, None]).squeeze(-1)
        return maths.forward_kl(seen, rows.dist(self.teacher).logprobs().to(seen.device))


@dataclass(frozen=True)
class Bounded:
    """Forward KL over the whole vocabulary, of which no single token may bring more than tau (2601.18734)."""

    tau: float
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.tau > 0, "the bound tau of one token's part of the divergence", got=self.tau, expected="above 0")

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return maths.clipped_forward_kl(student.logprobs(), rows.dist(self.teacher).logprobs(), self.tau)

    def cut(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """entries.cut: the teacher's probability of the tokens whose part was cut."""
        lp, lq = student.logprobs(), rows.dist(self.teacher).logprobs()
        return {"entries.cut": torch.where(maths.clipped_words(lp, lq, self.tau), lq.exp(), 0.0).sum(-1)}


@dataclass(frozen=True)
class Anchored:
    """Forward KL to what the reader says under a partial view, and a clipped part of what the full view adds to it."""

    lam: float
    clip: float
    anchor: str = "partial"
    full: str = "teacher"

    def __post_init__(self) -> None:
        require(self.lam >= 0, "the share lam of the residual", got=self.lam, expected="0 or more")
        require(self.clip >= 0, "the bound of the residual", got=self.clip, expected="0 or more")

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        anchor, full = self._views(rows)
        return maths.forward_kl(student.logprobs(), maths.anchored(anchor, full, self.lam, self.clip))

    def cut(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """entries.cut: the anchor's probability of the tokens whose residual was cut."""
        anchor, full = self._views(rows)
        return {"entries.cut": torch.where((full - anchor).abs() > self.clip, anchor.exp(), 0.0).sum(-1)}

    def _views(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return rows.dist(self.anchor).logprobs(), rows.dist(self.full).logprobs()


@dataclass(frozen=True)
class Tempered:
    """Another loss or measurement, of both models at `temperature`."""

    part: Callable[[Dist, Rows], Any]
    temperature: float
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.temperature > 0, "the temperature of a loss", got=self.temperature, expected="above 0")

    @property
    def k(self) -> int:
        """The support that the part asks for."""
        return getattr(self.part, "k", 0)

    def __call__(self, student: Dist, rows: Rows) -> Any:
        teacher, chosen = rows.dist(self.teacher).tempered(self.temperature), f"{self.teacher}.chosen"
        known = {chosen: teacher.chosen.to(rows[chosen].device)} if chosen in rows else {}
        return self.part(student.tempered(self.temperature), rows.plus(**{self.teacher: teacher, **known}))


@dataclass(frozen=True)
class Reweighted:
    """Another loss, times the token's truncated importance weight min(pi(y) / mu(y), cap), a constant (2601.20802)."""

    loss: Callable[[Dist, Rows], Tensor]
    cap: float

    def __post_init__(self) -> None:
        require(self.cap > 0, "the cap of the importance weight", got=self.cap, expected="more than 0")

    @property
    def k(self) -> int:
        """The support that the loss asks for."""
        return getattr(self.loss, "k", 0)

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return estimators.importance_weight(student.chosen, rows["behaviour"], self.cap)[0] * self.loss(student, rows)

    def cut(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """weight.cut: 1 where the weight was cut to the cap, else 0."""
        weight, cut = estimators.importance_weight(student.chosen, rows["behaviour"], self.cap)
        return {"weight.cut": cut.to(weight.dtype)}
