"""Losses on a support: a few words that student or teacher think best, and what becomes of all others.

Axes: n rows of a chunk, V vocabulary, K support.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from opd import estimators, maths, supports
from opd.dist import Dist
from opd.errors import one_of, require
from opd.parts.losses import Divergence, Everywhere
from opd.protocols import Want
from opd.rows import Rows

SOURCES = ("teacher", "student")


@dataclass(frozen=True)
class OnSupport:
    """A divergence on the K best tokens of teacher, student or both; `outside` says what becomes of the rest.

    outside: renormalise (both distributions on the support alone), tail (one more bucket), drop (forgotten),
    target (the teacher alone renormalised, so that a forward KL is the cross-entropy to it).
    """

    divergence: Divergence
    k: int
    source: str = "teacher"
    outside: supports.Outside = "renormalise"
    sampled: bool = False  # the decided token is always in the support
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        _check_support(self.k, self.source, (*SOURCES, "both"))
        one_of("what becomes of the rest", self.outside, get_args(supports.Outside))
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
class _OnWords:
    """What student and teacher are compared at where both of their K best words have a say (supports.combined).

    old: the column of the student's distributions at the start of the batch, whose best words are then the student's;
    empty where they are those of the student as it is.
    """

    k: int
    words: supports.Words = "only_stu"
    old: str = ""
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.k >= 1, "the size K of the support", got=self.k, expected="at least 1")
        one_of("whose words they are", self.words, get_args(supports.Words))

    def empty(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """support.empty: 1 where there is no such word and nothing is learned, else 0."""
        _, valid = self._ids(student, rows)
        return {"support.empty": (~valid.any(-1)).to(student.chosen)}

    def _ids(self, student: Dist, rows: Rows) -> tuple[Tensor, Tensor]:
        ours = (rows.dist(self.old) if self.old else student).top(self.k)
        theirs = rows.dist(self.teacher).top(self.k).to(ours.device)
        return supports.combined(ours, theirs, self.words)

    def _support(self, student: Dist, rows: Rows) -> supports.Support:
        return supports.gather_support(student, rows.dist(self.teacher), *self._ids(student, rows))


@dataclass(frozen=True)
class SupportKL(_OnWords):
    """Reverse KL of student and teacher, both renormalised on the words (2604.13016); 0 where there is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.k > 1, "a support of one token, renormalised, is always matched", got=f"k={self.k}",
                expected="k of at least 2")  # fmt: skip

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        return maths.reverse_kl(*supports.close(self._support(student, rows), "renormalise"))


@dataclass(frozen=True)
class SupportGradient(_OnWords):
    """PPO's surrogate summed over the words, each as if drawn (the code of 2604.13016).

    weight: how they count, see supports.support_gradient. Without `old` the student as it is stands for the one that
    wrote, which is right for the first update of a batch.
    """

    weight: supports.Weight = "student_p"
    clip: float = 0.2
    dual: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("how they are weighted", self.weight, get_args(supports.Weight))
        require(self.dual == 0 or self.dual > 1 + self.clip, "the bound of a negative advantage (dual)", got=self.dual,
                expected=f"0 for none, or more than 1 + clip = {1 + self.clip}")  # fmt: skip

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        support = self._support(student, rows)
        old = rows.dist(self.old).at(support.ids) if self.old else support.student
        normalised = self.words != "union-intersection"  # as released
        return supports.support_gradient(support, old, self.weight, normalised, self.clip, self.dual)


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
        return estimators.importance_weight(student.chosen, rows["behaviour"], self.cap or math.inf)


def _check_support(k: int, source: str, sources: tuple[str, ...] = SOURCES) -> None:
    require(k >= 1, "the size K of the support", got=k, expected="at least 1")
    one_of("whose best tokens are the support", source, sources)


def _best(student: Dist, teacher: Dist, k: int, source: str) -> Tensor:
    """[n, K] ids of the best tokens of one of the two, on the student's device."""
    return (teacher if source == "teacher" else student).top(k).to(student.chosen.device)


def _holds(ids: Tensor, token: Tensor) -> Tensor:
    """[n] bool: the token of each row is among its ids [n, K]."""
    return (ids == token[:, None]).any(-1)
