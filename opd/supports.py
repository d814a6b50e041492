"""The words at which two models are compared where not every word is, and what becomes of the rest.

Conventions as in `maths`: `lp` are log-probabilities of the student, `lq` of the teacher, and teachers are constants.
N rows, V vocabulary, K support.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from opd.estimators import ppo_clip
from opd.maths import demand, log_softmax, product, reverse_kl, upcast

Outside = Literal["renormalise", "tail", "drop", "target"]
Words = Literal["only_stu", "only_tch", "intersection", "union", "union-intersection"]
Weight = Literal["student_p", "teacher_p", "none"]


class Scorer(Protocol):
    """N distributions over V words that can be asked for log-probabilities by id."""

    def at(self, ids: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Support:
    """The words at which two models are compared, with the log-probability of each under its full softmax.

    Shapes: all [N, K]. `valid` marks the real entries; what stands at the others is never looked at.
    """

    ids: Tensor
    valid: Tensor
    student: Tensor
    teacher: Tensor


def top_ids(logp: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K most probable words, best first; words of probability 0 are returned as invalid.

    Shapes: [N, V] -> ids [N, K], valid [N, K]. Raises ValueError unless 1 <= k <= V.
    """
    v = logp.shape[-1]
    demand(1 <= k <= v, f"top_ids got k={k}, expected 1 <= k <= V={v}: choose a smaller support or use everything().")
    best = logp.detach().topk(k, dim=-1)
    return best.indices, best.values > -math.inf


def union(
    ids_a: Tensor, ids_b: Tensor, valid_a: Tensor | None = None, valid_b: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Every word of A or B once: the columns of both, with later repetitions marked invalid.

    Shapes: [N, A], [N, B] -> ids [N, A+B], valid [N, A+B]; a missing mask means that all entries are valid.
    """
    valid_a = torch.ones_like(ids_a, dtype=torch.bool) if valid_a is None else valid_a
    valid_b = torch.ones_like(ids_b, dtype=torch.bool) if valid_b is None else valid_b
    ids, valid = torch.cat([ids_a, ids_b], -1), torch.cat([valid_a, valid_b], -1)
    return ids, valid & _first_of_its_kind(ids.masked_fill(~valid, -1))


def _first_of_its_kind(ids: Tensor) -> Tensor:
    # By sorting, because comparing all pairs would need [N, K, K].
    ranked, order = ids.sort(dim=-1, stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[..., 1:] = ranked[..., 1:] != ranked[..., :-1]
    return torch.empty_like(first).scatter_(-1, order, first)


def plus(ids: Tensor, valid: Tensor | None, token: Tensor) -> tuple[Tensor, Tensor]:
    """The support and one more word per row, in a new last column that is invalid where the word was there already.

    Shapes: [N, K], [N, K] (None: all are valid), [N] -> ids [N, K+1], valid [N, K+1].
    """
    return union(ids, token.unsqueeze(-1), valid)


def combined(ours: Tensor, theirs: Tensor, words: Words) -> tuple[Tensor, Tensor]:
    """Words from the student's K best and the teacher's: of one, of both, of either, or of one but not of the other.

    Shapes: ids [N, K] without repetitions, [N, K] -> ids, valid [N, K] or [N, 2K]. Raises ValueError for another name.
    Source: arXiv 2604.13016, whose names these are; union-intersection is what only one of them has.
    """
    if words == "only_stu" or words == "only_tch":
        ids = ours if words == "only_stu" else theirs
        return ids, torch.ones_like(ids, dtype=torch.bool)
    if words == "union":
        return union(ours, theirs)
    shared = ours[:, :, None] == theirs[:, None, :]
    if words == "intersection":
        return theirs, shared.any(1)
    demand(words == "union-intersection", f"combined got words={words!r}, expected one of {get_args(Words)}: name one.")
    return torch.cat([ours, theirs], -1), ~torch.cat([shared.any(2), shared.any(1)], -1)


def everything(n: int, v: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """The whole vocabulary for each of N rows, as views that occupy one row. Shapes: ids [N, V], valid [N, V]."""
    demand(v >= 1, f"everything got v={v}, expected at least one word: pass the vocabulary size.")
    ids = torch.arange(v, device=device)
    return ids.expand(n, v), torch.ones_like(ids, dtype=torch.bool).expand(n, v)


def gather_support(student: Scorer, teacher: Scorer, ids: Tensor, valid: Tensor | None = None) -> Support:
    """Both models asked at the same words, on the device of the ids; None: all ids are valid.

    An invalid id is asked as the first valid one of its row, so that any filler (say -1) will do and a teacher that
    knows K words is asked about no other; a row without any asks for its first id.
    Shapes: ids [N, K], valid [N, K] -> Support. Raises ValueError if the two shapes differ.
    """
    if valid is None:
        asked, valid = ids, torch.ones_like(ids, dtype=torch.bool)
    else:
        demand(
            ids.shape == valid.shape,
            f"gather_support got ids {tuple(ids.shape)} and valid {tuple(valid.shape)}, expected one shape: "
            "pass the pair that one builder returned.",
        )
        asked = torch.where(valid, ids, ids.gather(-1, valid.int().argmax(-1, keepdim=True)))
    return Support(ids, valid, student.at(asked), teacher.at(asked).to(ids.device))


def close(support: Support, outside: Outside) -> tuple[Tensor, Tensor]:
    """Log-masses of both models on a support, with the words outside it treated as one says.

    renormalise   log p(v) - log p(S)                [N, K]    words outside S are neither pushed nor pulled
    tail          log p(v), and log(1 - p(S)) last   [N, K+1]  the rest is one more word; a KL is at most the full one
    drop          log p(v)                           [N, K]    masses that do not sum to one; mind the gradient form
    target        the teacher's renormalised alone   [N, K]    a forward KL is then a cross-entropy to the teacher on S

    Invalid entries come out as -inf on both sides and receive gradient 0. A rest below 4 sqrt(K) eps is rounding: where
    both sides are below it the bucket is empty (-inf, -inf); where one is, it counts as that size, gradient and all.
    Raises ValueError for any other word. Sources: renormalise, arXiv 2603.25562 (LSM); tail, arXiv 2601.20802 (SDPO).
    """
    lp = upcast(support.student).masked_fill(~support.valid, -math.inf)
    lq = upcast(support.teacher).masked_fill(~support.valid, -math.inf)
    if outside == "drop":
        return lp, lq
    if outside == "renormalise":
        return _renormalise(lp, support.valid), _renormalise(lq, support.valid)
    if outside == "target":
        return lp, _renormalise(lq, support.valid)
    known = " or ".join(map(repr, get_args(Outside)))
    demand(outside == "tail", f"close got outside={outside!r}, expected {known}: name one of them.")
    return _with_tail(lp, lq)


def _renormalise(logmass: Tensor, valid: Tensor) -> Tensor:
    # Masked again afterwards: a row without any valid entry is nan here and must be an empty row.
    return log_softmax(logmass).masked_fill(~valid, -math.inf)


def _with_tail(lp: Tensor, lq: Tensor) -> tuple[Tensor, Tensor]:
    eps = max(torch.finfo(lp.dtype).eps, torch.finfo(lq.dtype).eps)
    resolution = 4 * math.sqrt(lp.shape[-1]) * eps
    rest_p, rest_q = (1 - x.exp().sum(-1, keepdim=True) for x in (lp, lq))
    empty = (rest_p < resolution) & (rest_q < resolution)
    tail_p, tail_q = (_at_least(r, resolution).log().masked_fill(empty, -math.inf) for r in (rest_p, rest_q))
    return torch.cat([lp, tail_p], -1), torch.cat([lq, tail_q], -1)


def _at_least(x: Tensor, floor: float) -> Tensor:
    # max(x, floor) with gradient 1 everywhere: a confident student must still be told about the mass it lacks outside.
    return x + (floor - x.detach()).clamp_min(0)


# what K known words say of all others


def spread(
    best: Tensor, values: Tensor, token: Tensor, chosen: Tensor, ids: Tensor, v: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of any words of a distribution over V, of which only the K best and one more are known.

    What these leave over is spread evenly: log((1 - sum of the known) / (V - how many are known)). Of all distributions
    with these known words it is the one of the highest entropy, and no unknown word comes out likelier than the K-th
    best. A rest below 4 sqrt(K) eps is rounding and counts as that size, up to the K-th best.

    Shapes: best, values [N, K]; token, chosen [N], the one more; ids [N, M] -> log-probs [N, M]; guessed [N, M] bool,
    where nothing was known; rounded [N] bool, where the rest was lost to rounding.
    """
    order = best.sort(-1)
    place = torch.searchsorted(order.values, ids.contiguous()).clamp(max=best.shape[-1] - 1)
    inside = order.values.gather(-1, place) == ids
    known = torch.where(inside, values.gather(-1, order.indices.gather(-1, place)), chosen[:, None])
    guessed = ~inside & (ids != token[:, None])
    more = (best != token[:, None]).all(-1)
    rest = 1 - values.double().exp().sum(-1) - torch.where(more, chosen.double().exp(), 0.0)
    unknown = v - best.shape[-1] - more.long()
    resolution = 4 * math.sqrt(best.shape[-1]) * torch.finfo(values.dtype).eps
    rounded = (rest < resolution) & (unknown > 0)
    each = rest.clamp(min=resolution).log() - unknown.clamp(min=1).double().log()
    each = torch.minimum(each, values.double().amin(-1)).to(values.dtype)
    return torch.where(guessed, each[:, None], known), guessed, rounded


# exact inside a support, sampled outside


def sampled_tail_reverse_kl(
    support: Support,
    chosen_student: Tensor,
    chosen_teacher: Tensor,
    chosen_inside: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Reverse KL with its head summed over S and its tail read off the sampled word y; unbiased in value and gradient.

    sum_{v in S} p sg(log p/q)  +  1[y not in S] weight (p(y) / sg p(y)) sg(log p(y)/q(y)),    y ~ mu

    Shapes: Support [N, K]; chosen_* [N], the log-probabilities of y; chosen_inside [N] bool; weight [N], the ratio
    p(y)/mu(y) to the sampler mu (a constant; 1 if absent) -> [N].
    Source: the support variants of arXiv 2603.25562, with the score form in the head.
    """
    head = reverse_kl(*close(support, "drop"), gradient="score")
    return head + _sampled_tail(chosen_student, chosen_teacher, chosen_inside, weight)


def published_sampled_tail_reverse_kl(
    support: Support,
    chosen_student: Tensor,
    chosen_teacher: Tensor,
    chosen_inside: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """`sampled_tail_reverse_kl` as it was released: a pathwise head, whose gradient is off by grad p(S) on average.

    Shapes: as there. Source: EMA-PG in the code of arXiv 2603.25562. Kept for reproducing published numbers.
    """
    head = reverse_kl(*close(support, "drop"), gradient="pathwise")
    return head + _sampled_tail(chosen_student, chosen_teacher, chosen_inside, weight)


def _sampled_tail(student: Tensor, teacher: Tensor, inside: Tensor, weight: Tensor | None) -> Tensor:
    student, constant = upcast(student), upcast(student).detach()
    cost = constant - upcast(teacher).detach()
    if weight is not None:
        cost = cost * weight.detach()
    return (student - constant).exp() * cost.masked_fill(inside, 0)


# every word of a support as if it had been drawn


def support_gradient(
    support: Support, old: Tensor, weight: Weight, normalised: bool = True, clip: float = 0.2, dual: float = 3.0
) -> Tensor:
    """sum_{v in S} -PPOclip(p(v)/old(v), A(v)), A(v) = w(v) (log q(v) - log old(v)): a policy gradient without a draw.

    `weight` is old(v), q(v) or 1; the first two sum to 1 over S where `normalised`. At old = p the gradient is that of
    the renormalised reverse KL on S, plus (KL_S + log p(S)/q(S)) grad log p(S): mass also moves in and out of S.
    Shapes: Support [N, K], old log-probs at its valid words [N, K] -> [N]; 0 where S is empty.
    Source: the code of arXiv 2604.13016.
    """
    demand(weight in get_args(Weight), f"got weight={weight!r}, expected one of {get_args(Weight)}: name one of them.")
    # at an invalid word ratio 1: its part is left out, but a ratio beyond all numbers would be nan in the gradient
    old = torch.where(support.valid, upcast(old), upcast(support.student)).detach()
    teacher = upcast(support.teacher).detach()
    logweight = {"student_p": old, "teacher_p": teacher, "none": torch.zeros_like(old)}[weight]
    if weight != "none" and normalised:
        logweight = _renormalise(logweight.masked_fill(~support.valid, -math.inf), support.valid)
    advantage = product(logweight.exp(), teacher - old)
    return ppo_clip(support.student, old, advantage, clip, clip, dual).masked_fill(~support.valid, 0).sum(-1)
