"""A token is drawn by looking one uniform number up in the cumulative distribution: a draw depends on its seed alone.

Axes: B sequences, V vocabulary, n draws of one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opd.rollout import STUDENT, TEACHER, Sampling

BLOCK = 128  # tokens per block of the two-level look-up
NUCLEUS = 64  # most probable tokens first searched for a top-p set; sorting all of 32,000 takes 50 times as long


def truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """[B, V] logits -> log-probs of the distribution that really draws, renormalised.

    Temperature, top-k, top-p and min-p in this order, as transformers does; each step sees what the last one left.
    """
    if sampling.greedy:
        raise ValueError("greedy sampling has no distribution: take the argmax")
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1.0:
        logits = _top_p(logits, sampling.top_p)
    if sampling.min_p > 0.0:
        floor = logits.amax(-1, keepdim=True) + np.log(sampling.min_p)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits.log_softmax(-1)


def _top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the most probable tokens until their mass reaches top_p: a token stays if the mass before it is below."""
    vocab, k = logits.shape[-1], NUCLEUS
    logprobs = logits.log_softmax(-1)
    while True:
        values, ids = logprobs.topk(min(k, vocab), dim=-1)
        mass = values.exp().cumsum(-1)
        if k >= vocab or bool((mass[:, -1] >= top_p).all()):
            break
        k *= 16
    before = mass - values.exp()
    before[:, 0] = -1.0  # the most probable token always stays
    return torch.full_like(logits, -torch.inf).scatter(-1, ids, values.masked_fill(before >= top_p, -torch.inf))


def draw(logprobs: Tensor, uniform: Tensor, scratch: Tensor | None = None) -> Tensor:
    """[B, V] normalised log-probs and [B] numbers in [0, 1) -> [B] ids, never one of probability zero.

    The cumulative distribution is searched in two levels: the block of tokens, then the token in it. The sums over
    blocks are one fast pass, both searches are narrow and in float64, and torch.multinomial's noise (nine tenths of a
    decoding step at V = 32,000 on a CPU) is never made. `scratch` [B, V] is overwritten: it saves an allocation.
    """
    probs = torch.exp(logprobs, out=scratch)
    cdf = _block_sums(probs).to(torch.float64).cumsum(-1)
    target = uniform.to(cdf)[:, None] * cdf[:, -1:]
    block = _first_above(cdf, target)
    target = target - torch.where(block > 0, cdf.gather(1, (block - 1).clamp(min=0)), 0.0)
    ids = block * BLOCK + torch.arange(BLOCK, device=block.device)
    vocab = probs.shape[-1]
    inside = probs.gather(1, ids.clamp(max=vocab - 1)).to(torch.float64).masked_fill(ids >= vocab, 0.0)
    return ids.gather(1, _first_above(inside.cumsum(-1), target)).squeeze(1)


def _block_sums(probs: Tensor) -> Tensor:
    """[B, V] -> [B, ceil(V / BLOCK)]"""
    whole = probs.shape[-1] // BLOCK * BLOCK
    sums = probs[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1) if whole else probs[:, :0]
    rest = probs[:, whole:]
    return torch.cat([sums, rest.sum(-1, keepdim=True)], dim=-1) if rest.shape[-1] else sums


def _first_above(cdf: Tensor, target: Tensor) -> Tensor:
    """[B, n] cumulative sums, [B, 1] targets -> [B, 1] first index above the target, or else the last one with mass."""
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(cdf, target, right=True), last)


def uniforms(seeds: Sequence[int], n: int) -> Tensor:
    """[B, n] float64 numbers in [0, 1); row b depends on seeds[b] alone, and a longer row begins with a shorter one."""
    rows = [np.random.Generator(np.random.Philox(key=seed)).random(n) for seed in seeds]
    return torch.from_numpy(np.stack(rows) if rows else np.zeros((0, n)))


def choose(plain: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """[b, V] log-probs of a model -> [b] ids, and the [b, V] log-probs that they were drawn with."""
    if sampling.greedy:
        return plain.argmax(-1), plain
    drawn = truncate(plain, sampling)
    return draw(drawn, uniform), drawn


def at(logprobs: Tensor, ids: Tensor) -> Tensor:
    """[b, V], [b] -> [b]"""
    return logprobs.gather(-1, ids[:, None]).squeeze(-1)


def take_turn(plain: Tensor, expert: Tensor, share: float, sampling: Sampling, uniform: Tensor) -> dict[str, Tensor]:
    """What student and teacher, both [b, V] log-probs, decide when a coin says who: columns [b].

    uniform [b, 3]: the coin, the student's draw, the teacher's. `label` is what the teacher would have done, whoever
    decided; `behaviour` the log-prob under the mixture (1 - share) student + share teacher, which drew `token`.
    """
    coin, ours, theirs = uniform.unbind(-1)
    label = draw(expert, theirs)
    own, drawn = choose(plain, sampling, ours)
    relieved = coin < share
    token = torch.where(relieved, label, own)
    student = (own == token).to(plain) if sampling.greedy else at(drawn, token).exp()
    return {
        "token": token,
        "behaviour": ((1 - share) * student + share * at(expert, token).exp()).log(),
        "untruncated": at(plain, token),
        "label": label,
        "author": torch.where(relieved, TEACHER, STUDENT).to(torch.int8),
    }
