"""Measurements made in passing: no gradient, no second pass over the models, one number per row.

A run attaches to every method whatever its teacher's answers allow (`measured`); what can't be measured is absent.

Axes: n rows of a chunk, K support, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opd import maths, supports
from opd.dist import Dist
from opd.method import Method, Observe
from opd.protocols import CAPABILITIES, Cast, Want
from opd.rows import Rows

K = 16  # of the supports that are compared where the method has none


def student(dist: Dist, rows: Rows) -> dict[str, Tensor]:
    """The student's own log-prob of the decided token and its entropy (nats)."""
    return {"student.chosen": dist.chosen, "student.entropy": maths.entropy(dist.logprobs())}


@dataclass(frozen=True)
class Against:
    """Reverse KL(student || teacher) per row, the teacher's entropy and how far the student's is off (nats).

    Needs whole distributions. Also the teacher's log-prob of the decided token, unless the table has it.
    """

    teacher: str = "teacher"

    def __call__(self, dist: Dist, rows: Rows) -> dict[str, Tensor]:
        teacher, chosen = rows.dist(self.teacher), f"{self.teacher}.chosen"
        ours, theirs = dist.logprobs(), teacher.logprobs()
        entropy = maths.entropy(theirs)
        found = {
            "reverse_kl": maths.reverse_kl(ours, theirs),
            f"{self.teacher}.entropy": entropy,
            "entropy.gap": (entropy - maths.entropy(ours)).abs(),
        }
        return found if chosen in rows else found | {chosen: teacher.chosen}


@dataclass(frozen=True)
class Supports:
    """How far the K best tokens of both models agree, and the decided token with them (2603.25562, section 3).

    support.overlap: |S_p and S_q| / K; support.mass: what the student puts on the teacher's S_q; support.outside: 1
    where the decided token is not in S_q; support.advantage: minus the reverse KL of both renormalised on what the two
    share (2604.13016), nan where that is nothing.
    """

    k: int = K
    teacher: str = "teacher"

    def __call__(self, dist: Dist, rows: Rows) -> dict[str, Tensor]:
        teacher = rows.dist(self.teacher)
        theirs, shared = supports.combined(dist.top(self.k), teacher.top(self.k), "intersection")
        both = supports.gather_support(dist, teacher, theirs)
        mass = both.student.exp().sum(-1)
        distance = maths.reverse_kl(*supports.close(replace(both, valid=shared), "renormalise"))
        return {
            "support.overlap": shared.to(mass).mean(-1),
            "support.mass": mass,
            "support.outside": (theirs != rows["token"][:, None]).all(-1).to(mass),
            "support.advantage": (-distance).masked_fill(~shared.any(-1), torch.nan),
        }


@dataclass(frozen=True)
class WhereShown:
    """An observer of what was asked optionally: its numbers are nan where the reader was shown nothing."""

    observe: Observe
    into: str

    def __call__(self, dist: Dist, rows: Rows) -> dict[str, Tensor]:
        shown = rows[f"{self.into}.shown"]
        return {name: torch.where(shown, values, torch.nan) for name, values in self.observe(dist, rows).items()}


@dataclass(frozen=True)
class Chosen:
    """The log-prob of the decided token, from student and teacher where a loss has made their log-probs anyway."""

    teacher: str = ""

    def __call__(self, dist: Dist, rows: Rows) -> dict[str, Tensor]:
        found, chosen = {"student.chosen": dist.chosen} if dist.ready else {}, f"{self.teacher}.chosen"
        if self.teacher and chosen not in rows and (theirs := rows.dist(self.teacher)).ready:
            found[chosen] = theirs.chosen
        return found


@dataclass(frozen=True)
class Missed:
    """teacher.missed: share of the tokens that readers were asked about of which they said nothing.

    teacher.missed.mass: what the student gives these, where a loss has made its log-probs. named: by reader, the column
    of the ids. Nothing where every reader answered.
    """

    named: tuple[tuple[str, str], ...]

    def __call__(self, dist: Dist, rows: Rows) -> dict[str, Tensor]:
        pairs = [(rows[ids], rows[f"{into}.guessed"]) for into, ids in self.named if f"{into}.guessed" in rows]
        if not pairs:
            return {}
        guessed = torch.cat([one for _, one in pairs], -1)
        found = {"teacher.missed": guessed.float().mean(-1)}
        if dist.ready:
            mass = dist.at(torch.cat([ids for ids, _ in pairs], -1)).exp()
            found["teacher.missed.mass"] = torch.where(guessed, mass, 0.0).sum(-1)
        return found


@dataclass(frozen=True)
class Noted:
    """Columns that a credit wrote, as measurements: their mean is a number of the step."""

    columns: tuple[str, ...]

    def __call__(self, dist: Dist, rows: Rows) -> dict[str, Tensor]:
        found = {name: rows[name] for name in self.columns}
        return {name: column if column.is_floating_point() else column.float() for name, column in found.items()}


@dataclass(frozen=True)
class Clipped:
    """clipped: 1 where PPO's clip takes a row's gradient away, because its ratio has gone too far for its sign.

    Nothing where `low` is 0, which is no clip.
    """

    low: float
    high: float
    old: str = "untruncated"

    def __call__(self, dist: Dist, rows: Rows) -> dict[str, Tensor]:
        if not self.low:
            return {}
        ratio, advantage = (dist.chosen - rows[self.old]).exp(), rows["advantage"]
        too_far = torch.where(advantage > 0, ratio > 1 + self.high, (advantage < 0) & (ratio < 1 - self.low))
        return {"clipped": too_far.to(ratio).masked_fill(advantage.isnan(), torch.nan)}


def measured(method: Method, cast: Cast) -> Method:
    """The method with everything that can be measured in passing against whoever its first question goes to.

    Of that reader we also want what it has at hand: the decided token's log-prob beside its best tokens, and beside
    one number or states the last hidden state, which is looked at for a few rows only.
    """
    if not method.teach:
        return replace(method, observe=(*method.observe, student), lookup=(*method.lookup, Chosen()))
    first, *others = method.teach
    ask = replace(first, want=first.want | _at_hand(method, cast))
    observers = list[Observe]()
    if ask.want.dist:
        observers.append(Against(ask.into))
    if ask.want.dist or ask.want.topk:
        vocab = cast["student"].vocab
        observers.append(Supports(min(method.support or K, ask.want.topk or vocab, vocab), ask.into))
    if ask.optional:
        observers = [WhereShown(observe, ask.into) for observe in observers]
    lookup: list[Observe] = [Chosen(ask.into if ask.want.dist and not ask.optional else "")]
    if named := tuple((one.into, one.want.gather) for one in method.teach if one.want.gather):
        lookup.append(Missed(named))
    observe, look = (*method.observe, student, *observers), (*method.lookup, *lookup)
    return replace(method, teach=(ask, *others), observe=observe, lookup=look)


def _at_hand(method: Method, cast: Cast) -> Want:
    """What the first question's reader can add to its answer without another product of its head."""
    asked, reader = method.teach[0].want, cast[method.teach[0].who]
    can: frozenset[str] = getattr(reader, "can", frozenset(CAPABILITIES))
    device = getattr(getattr(reader, "engine", None), "device", cast["student"].device)
    near = device == cast["student"].device  # else its head would travel with every answer
    stored = any(ask.want.topk for ask in method.teach)  # and would be replaced by a hidden state that needs the head
    makes_logprobs = bool(asked.topk or asked.gather)
    return Want(chosen=makes_logprobs and "chosen" in can, dist=not stored and near and "dist" in can)
