"""What is differentiated: functions from the student's distributions and the table to one number per row.

Axes: n rows of a chunk, V vocabulary, K support, D width, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from opd import maths, supports
from opd.dist import Dist
from opd.errors import ModelError, one_of, require
from opd.parts.channel import Channel
from opd.protocols import EVERY_LAYER, Cast, Want
from opd.rows import Rows

Divergence = Callable[[Tensor, Tensor], Tensor]  # (lp, lq) [n, K] -> [n]
SOURCES = ("teacher", "student")


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
    `untruncated`, the student's own log-prob when it wrote (the ratio that PPO clips). `clip_high`: the upper bound
    where it is another; `dual`: see maths.ppo_clip; `advantage`: the column that holds it.
    """

    clip: float = 0.0
    old: str = "behaviour"
    clip_high: float = 0.0
    dual: float = 0.0
    advantage: str = "advantage"

    def __post_init__(self) -> None:
        require(0 <= self.clip <= 1, "the clip range of a ratio", got=self.clip, expected="a number in [0, 1]")
        require(self.clip > 0 or not (self.clip_high or self.dual), "a ratio's upper bound", got="no lower one",
                expected="clip above 0")  # fmt: skip

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        logp, old, advantage = student.chosen, rows[self.old], rows[self.advantage]
        if self.clip:
            return maths.ppo_clip(logp, old, advantage, self.clip, self.clip_high or self.clip, self.dual)
        return maths.importance_gradient(logp, old, advantage)


@dataclass(frozen=True)
class TowardsTeacher:
    """Every decided token becomes as likely as the teacher finds it: the log-ratio to the student as it is now.

    Half its square, whose gradient is that of a policy gradient with the log-ratio as advantage; with `old`, the column
    of the log-prob with which the token was drawn, an estimate of the reverse KL (maths.weighted_ratio).
    """

    old: str = ""
    teacher: str = "teacher"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        theirs = rows[f"{self.teacher}.chosen"]
        if self.old:
            return maths.weighted_ratio(student.chosen, rows[self.old], theirs)
        return maths.squared_ratio(student.chosen, theirs)


@dataclass(frozen=True)
class TruncatedGradient:
    """-A pi(y) / mu(y) whose weight in the gradient is at most `cap`: truncated importance sampling."""

    cap: float

    def __post_init__(self) -> None:
        require(1 <= self.cap < math.inf, "the cap of the importance weight", got=self.cap, expected="at least 1")

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return maths.truncated_gradient(student.chosen, rows["behaviour"], rows["advantage"], self.cap)

    def cut(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """weight.cut: 1 where the weight was cut to the cap, else 0."""
        weight, cut = maths.importance_weight(student.chosen, rows["behaviour"], self.cap)
        return {"weight.cut": cut.to(weight)}


@dataclass(frozen=True)
class Raise:
    """-A log pi(y): what moves an answer's log-prob by its advantage, whoever wrote it."""

    advantage: str = "advantage"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return maths.policy_gradient(student.chosen, rows[self.advantage])


@dataclass(frozen=True)
class StayNear:
    """k3 of the decided token against a reader's log-prob of it: GRPO's term that holds the policy near its reference.

    Its value is an estimate of KL(pi || reference), its gradient that of KL(reference || pi) (see maths.k3).
    """

    reference: str = "reference"

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return maths.k3(student.chosen, rows[f"{self.reference}.chosen"])


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
class OnSupport:
    """A divergence on the K best tokens of teacher, student or both; `outside` says what becomes of the rest.

    outside: renormalise (both distributions on the support alone), tail (one more bucket), drop (forgotten).
    """

    divergence: Divergence
    k: int
    source: str = "teacher"
    outside: supports.Outside = "renormalise"
    sampled: bool = False  # the decided token is always in the support
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        _check_support(self.k, self.source, (*SOURCES, "both"))
        one_of("what becomes of the rest", self.outside, ("renormalise", "tail", "drop"))
        require(
            self.k > 1 or self.sampled or self.outside != "renormalise",
            "a support of one token, renormalised, is always matched",
            got=f"k={self.k}, outside={self.outside}",
            expected="k of at least 2, sampled=true, or another outside",
        )

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        teacher = rows.dist(self.teacher)
        if self.source == "both":
            ids, valid = supports.union(*(_best(student, teacher, self.k, source) for source in SOURCES))
        else:
            ids, valid = _best(student, teacher, self.k, self.source), None
        if self.sampled:
            ids, valid = supports.plus(ids, valid, rows["token"])
        return self.divergence(*supports.close(supports.gather_support(student, teacher, ids, valid), self.outside))


@dataclass(frozen=True)
class SupportGradient:
    """PPO's surrogate summed over words that student and teacher think best, each as if drawn (2604.13016).

    words: which, see supports.combined; weight: how they count, see supports.support_gradient; old: the column of the
    student's distributions at the start of the batch, empty where the only update of a batch begins with them.
    """

    k: int
    words: supports.Words = "only_stu"
    weight: supports.Weight = "student_p"
    clip: float = 0.2
    dual: float = 3.0
    old: str = ""
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.k >= 1, "the size K of the support", got=self.k, expected="at least 1")
        one_of("whose words are rewarded", self.words, get_args(supports.Words))
        one_of("how they are weighted", self.weight, get_args(supports.Weight))
        require(self.dual == 0 or self.dual > 1 + self.clip, "the bound of a negative advantage (dual)", got=self.dual,
                expected=f"0 for none, or more than 1 + clip = {1 + self.clip}")  # fmt: skip

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        ids, valid = self._support(student, rows)
        support = supports.gather_support(student, rows.dist(self.teacher), ids, valid)
        old = rows.dist(self.old).at(ids) if self.old else support.student
        normalised = self.words != "union-intersection"  # as released
        return supports.support_gradient(support, old, self.weight, normalised, self.clip, self.dual)

    def empty(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """support.empty: 1 where there is no such word and nothing is learned, else 0."""
        _, valid = self._support(student, rows)
        return {"support.empty": (~valid.any(-1)).to(student.chosen)}

    def _support(self, student: Dist, rows: Rows) -> tuple[Tensor, Tensor]:
        ours = (rows.dist(self.old) if self.old else student).top(self.k)
        theirs = rows.dist(self.teacher).top(self.k).to(ours.device)
        return supports.combined(ours, theirs, self.words)


def compared(
    divergence: Divergence,
    k: int,
    source: str = "teacher",
    outside: supports.Outside = "renormalise",
    teacher: str = "teacher",
) -> tuple[Everywhere | OnSupport, Want]:
    """A divergence on the K best tokens of `source`, or everywhere where k is 0, and what it asks for."""
    if not k:
        return Everywhere(divergence, teacher), Want(dist=True)
    want = Want(topk=k) if source == "teacher" else Want(dist=True)  # nobody can know the student's best beforehand
    return OnSupport(divergence, k, source, outside, teacher=teacher), want


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
        return {"entries.cut": torch.where(lq.exp() * (lq - lp) > self.tau, lq.exp(), 0.0).sum(-1)}


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
        teacher = rows.dist(self.teacher).tempered(self.temperature)
        return self.part(student.tempered(self.temperature), rows.plus(**{self.teacher: teacher}))


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
        return maths.importance_weight(student.chosen, rows["behaviour"], self.cap)[0] * self.loss(student, rows)

    def cut(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """weight.cut: 1 where the weight was cut to the cap, else 0."""
        weight, cut = maths.importance_weight(student.chosen, rows["behaviour"], self.cap)
        return {"weight.cut": cut.to(weight.dtype)}


@dataclass(frozen=True)
class SampledTail:
    """Reverse KL summed over the K best tokens of teacher or student, and beyond them read off the decided token.

    sum_{v in S} p sg(log p/q)  +  1[y not in S] w (p(y) / sg p(y)) sg(log p(y)/q(y)),    w = min(p(y) / mu(y), cap)

    mu is the distribution that really drew y; cap 0 cuts nothing. Unbiased in value and gradient where nothing is cut
    and mu is nowhere 0: what a nucleus never draws stays unseen. published: the released form, differentiated through
    p in the head as well, which moves the mean gradient by grad p(S) (2603.25562, variants 4 and 5).
    """

    k: int
    source: str = "teacher"
    published: bool = False
    cap: float = 0.0
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        _check_support(self.k, self.source)
        require(self.cap >= 0, "the cap of the importance weight", got=self.cap, expected="0 for none, or more")

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        teacher = rows.dist(self.teacher)
        support = supports.gather_support(student, teacher, _best(student, teacher, self.k, self.source))
        weight, _ = self._weight(student, rows)
        estimate = supports.published_sampled_tail_reverse_kl if self.published else supports.sampled_tail_reverse_kl
        chosen = teacher.chosen.to(student.chosen.device)
        return estimate(support, student.chosen, chosen, _holds(support.ids, rows["token"]), weight)

    def cut(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """tail.cut: 1 where the decided token lies outside the support and its weight was cut, else 0."""
        ids = _best(student, rows.dist(self.teacher), self.k, self.source)
        weight, cut = self._weight(student, rows)
        return {"tail.cut": (cut & ~_holds(ids, rows["token"])).to(weight.dtype)}

    def _weight(self, student: Dist, rows: Rows) -> tuple[Tensor, Tensor]:
        return maths.importance_weight(student.chosen, rows["behaviour"], self.cap or math.inf)


def _check_support(k: int, source: str, sources: tuple[str, ...] = SOURCES) -> None:
    require(k >= 1, "the size K of the support", got=k, expected="at least 1")
    one_of("whose best tokens are the support", source, sources)


def _best(student: Dist, teacher: Dist, k: int, source: str) -> Tensor:
    """[n, K] ids of the best tokens of one of the two, on the student's device."""
    return (teacher if source == "teacher" else student).top(k).to(student.chosen.device)


def _holds(ids: Tensor, token: Tensor) -> Tensor:
    """[n] bool: the token of each row is among its ids [n, K]."""
    return (ids == token[:, None]).any(-1)


@dataclass(frozen=True)
class StateDistance:
    """(1/|L|) sum over layers of (1/D) || h_S - h_T ||^2, states after the decided token (2606.06021, Eq. 6).

    layers: numbers of transformer blocks from 1, -1 for the last; (0,) for every one.
    """

    layers: tuple[int, ...] = (EVERY_LAYER,)
    teacher: str = "teacher"

    def check(self, cast: Cast) -> None:
        """Models that tell their width are compared before step 1."""
        ours, theirs = (_width(cast[who]) for who in ("student", self.teacher))
        if ours and theirs and ours != theirs:
            raise _unequal("hidden states", ours, theirs)

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        ours, theirs = student.inner, rows.dist(self.teacher).inner
        if ours.keys() != theirs.keys():
            raise ModelError(
                "student and teacher have not the same layers",
                got=f"student {sorted(ours)}, teacher {sorted(theirs)}",
                remedy="Name layers that both have, for example --layers -1",
            )
        return torch.stack([self._distance(ours[layer], theirs[layer], layer) for layer in ours]).mean(0)

    def _distance(self, ours: Tensor, theirs: Tensor, layer: int) -> Tensor:
        if ours.shape[-1] != theirs.shape[-1]:
            raise _unequal(f"hidden states of layer {layer}", ours.shape[-1], theirs.shape[-1])
        return (maths.upcast(ours) - maths.upcast(theirs.to(ours.device))).square().mean(-1)


def _width(member: Any) -> int | None:
    return getattr(getattr(member, "engine", member), "width", None)


def _unequal(what: str, ours: int, theirs: int) -> ModelError:
    return ModelError(
        f"{what} have different widths",
        got=f"student {ours}, teacher {theirs}",
        expected="equal widths, or a bridge",
        remedy="Say --bridge 8, or take a method that reads probabilities",
    )
