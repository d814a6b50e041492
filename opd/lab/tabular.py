"""Policies that look one token back: all their texts can be listed, so an estimator's mean and variance are exact.

A policy is a table of logits [V + 1, V]: row v is the next token's distribution after token v, the last row stands for
the start. Whatever is estimated here is estimated by a `Method`'s own credit and losses.

Axes: B texts, T positions, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opd import maths
from opd.dist import TableDist
from opd.method import Method
from opd.rows import Rows


def every_text(vocab: int, length: int) -> Tensor:
    """All texts [V^T, T] of this length."""
    return torch.cartesian_prod(*[torch.arange(vocab)] * length).reshape(-1, length)


def draw(logits: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Texts [B, T] that the policy wrote."""
    probabilities = maths.log_softmax(logits).exp()
    written = [torch.full((count,), logits.shape[1])]
    for _ in range(length):
        written.append(torch.multinomial(probabilities[written[-1]], 1, generator=generator).squeeze(1))
    return torch.stack(written[1:], 1)


def before(texts: Tensor, vocab: int) -> Tensor:
    """[B, T] the row of the table from which each token was drawn."""
    return torch.cat([torch.full_like(texts[:, :1], vocab), texts[:, :-1]], 1)


def logprobs(logits: Tensor, texts: Tensor) -> Tensor:
    """[B, T] log-probability of every token under a policy, with gradient."""
    return maths.log_softmax(logits)[before(texts, logits.shape[1]), texts]


def sequence_kl(student: Tensor, teacher: Tensor, length: int) -> Tensor:
    """Reverse KL of whole texts, sum over texts of pi (log pi - log q), by enumeration; with gradient."""
    texts = every_text(student.shape[1], length)
    ours, theirs = logprobs(student, texts).sum(1), logprobs(teacher, texts).sum(1)
    return maths.reverse_kl(ours[None], theirs[None].detach())[0]


def gradients(method: Method, student: Tensor, teacher: Tensor, texts: Tensor) -> Tensor:
    """[B, V + 1, V] what each text alone says the gradient of its summed loss is.

    The student wrote the texts itself, without truncation. The method must need one log-prob per token from `teacher`.
    """
    (count, length), vocab = texts.shape, student.shape[1]
    tokens, where = texts.flatten(), before(texts, vocab).flatten()
    own = logprobs(student, texts).flatten().detach()
    episode, position = torch.arange(count * length) // length, torch.arange(count * length) % length
    columns = {"token": tokens, "row": position, "position": position, "episode": episode, "sequence": episode}
    known = {"untruncated": own, "behaviour": own, "teacher.chosen": logprobs(teacher, texts).flatten().detach()}
    rows = method.credit(Rows({**columns, **known, "keep": torch.ones_like(tokens, dtype=torch.bool)}))
    leaf = student.detach()[where].requires_grad_()
    dist = TableDist(maths.log_softmax(leaf), tokens)
    losses = [term.scaled(0) * term.loss(dist, rows)[rows[term.rows]].sum() for term in method.terms.values()]
    (slope,) = torch.autograd.grad(torch.stack(losses).sum(), leaf)
    result = slope.new_zeros(count * (vocab + 1), vocab)
    return result.index_add_(0, episode * (vocab + 1) + where, slope).view(count, vocab + 1, vocab)


def moments(method: Method, student: Tensor, teacher: Tensor, length: int) -> tuple[Tensor, float]:
    """Exact mean [V + 1, V] and variance (trace of the covariance) of `gradients` for one text of T tokens."""
    texts = every_text(student.shape[1], length)
    weight = logprobs(student, texts).sum(1).exp()
    each = gradients(method, student, teacher, texts)
    mean = torch.einsum("b,bsv->sv", weight, each)
    return mean, float(weight @ (each - mean).square().sum((1, 2)))


def independent_variance(student: Tensor, teacher: Tensor, length: int, gamma: float) -> float:
    """Variance of g = sum_t (sum_{u>=t} gamma^(u-t) r_u) s_t where every token is drawn from the same softmax.

    r = log pi(y) - log q(y), s = d log pi(y) / d logits. Since E s = 0 the summands are uncorrelated, and with
    F_t = sum_{u>t} gamma^(u-t) r_u each of them has E|.|^2 = E[r^2 |s|^2] + 2 E[r |s|^2] E F_t + E|s|^2 E F_t^2.
    Shapes: logits [V], [V]. Source: ours, from the estimator of arXiv 2603.25562; texts of any length at no cost.
    """
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    p, cost = lp.exp(), lp - lq
    score = torch.eye(len(p), dtype=p.dtype) - p
    size = score.square().sum(1)  # [V] |s|^2
    average = lambda x: float((p * x).sum())
    kl, spread = average(cost), average(cost.square()) - average(cost) ** 2
    mean = float(((p * cost) @ score).square().sum())  # |E r s|^2
    total = 0.0
    for left in range(length):  # tokens that follow
        future = kl * math.fsum(gamma**k for k in range(1, left + 1))
        square = future**2 + spread * math.fsum(gamma ** (2 * k) for k in range(1, left + 1))
        total += average(cost.square() * size) + 2 * average(cost * size) * future + average(size) * square - mean
    return total
