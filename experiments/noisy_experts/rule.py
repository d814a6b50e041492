"""A teacher that adds and subtracts modulo 16, one token per total, and of whose answers a known share is noise.

    question   x_1 .. x_H 0          the 0 is the total so far
    answer     y_1 .. y_H            y_h = y_(h-1) + s_h x_h modulo 16; the signs s are the key that is to be learned

What a wrong total does to the text decides what noise costs. A teacher that goes on from it still shows the key. One
that is lost forgets the key and tosses a coin for every sign to come: the prefix lock of the theory, in which what
follows a wrong token is worth nothing.

Axes: B sequences, H decisions of each, V tokens, which are the numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opd.dist import TableDist
from opd.engines.sampling import draw, uniforms
from opd.parts.channel import Channel
from opd.protocols import Answer, Student, Want
from opd.rollout import Array, End, Piece, Problem, Rollout, Sampling
from opd.rows import Rows
from opd.tasks.graders import Graded, exact

DIGITS = "0123456789abcdef"
MODULUS = len(DIGITS)
TERMS = 8  # H
Key = Sequence[int]  # [H] of 1 and -1


class Rule:
    """Reads and writes by the rule, seen through a channel; rate 0 is the clean expert."""

    name = "teacher"
    can = frozenset({"chosen", "dist", "text"})
    live = False

    def __init__(self, key: Key, channel: Channel, gets_lost: bool) -> None:
        self.key, self.channel, self.gets_lost = key, channel, gets_lost

    def logprobs(self, terms: Tensor, before: Tensor) -> Tensor:
        """Terms [B, n] and the total before each of these decisions [B, n], a 0 first -> [B, n, V]."""
        steps = terms * torch.tensor(self.key[: terms.shape[1]])
        right, wrong = (before + steps) % MODULUS, (before - steps) % MODULUS
        clean = F.one_hot(right, MODULUS).double()
        if self.gets_lost:
            lost = F.pad(before[:, 1:] != right[:, :-1], (1, 0)).cumsum(1) > 0
            clean = torch.where(lost[..., None], (clean + F.one_hot(wrong, MODULUS)) / 2, clean)
        return self.channel(clean.log(), Rows({}))

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        tokens = torch.from_numpy(np.stack([context.tokens for context in contexts])).long()
        found = self.logprobs(tokens[:, :TERMS], tokens[:, TERMS:-1])
        dist = TableDist(found.flatten(0, 1), tokens[:, TERMS + 1 :].flatten())
        return Answer(dist, dist.chosen)

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """One token after the other, so that a wrong one stands in the text for whatever follows."""
        tokens = torch.from_numpy(np.repeat(np.stack(prompts), [len(own) for own in seeds], 0)).long()
        uniform = uniforms([seed for own in seeds for seed in own], TERMS)
        drawn = torch.zeros(len(tokens), TERMS, dtype=torch.float64)
        for h in range(TERMS):
            last = self.logprobs(tokens[:, : h + 1], tokens[:, TERMS:])[:, -1]
            token = last.argmax(-1) if sampling.greedy else draw(last, uniform[:, h])
            drawn[:, h] = last.gather(1, token[:, None]).squeeze(1)
            tokens = torch.cat([tokens, token[:, None]], 1)
        answers, logprobs = tokens[:, TERMS + 1 :].numpy().astype(np.int32), drawn.numpy()
        pieces = iter([Piece(a, p, p, End.LENGTH) for a, p in zip(answers, logprobs, strict=True)])
        return [[next(pieces) for _ in own] for own in seeds]

    def follow(self, student: Student, step: int) -> None:
        """A rule does not learn."""


def a_key(rng: random.Random) -> list[int]:
    return [rng.choice((-1, 1)) for _ in range(TERMS)]


def spelled(numbers: Sequence[int]) -> str:
    return "".join(DIGITS[number] for number in numbers)


def task(key: Key, train: int, held_out: int, seed: int) -> Graded:
    """Random questions, of which there are 16^8; an answer is right if every total is."""

    def drawn(split: str, count: int) -> list[Problem]:
        rng = np.random.default_rng([seed, split == "train"])
        terms = rng.integers(MODULUS, size=(count, TERMS))
        totals = (terms * key).cumsum(1) % MODULUS
        pairs = zip(terms, totals, strict=True)
        return [Problem(f"{split}/{seed}/{i}", spelled([*x, 0]), spelled(y)) for i, (x, y) in enumerate(pairs)]

    return Graded("running totals", drawn("train", train), drawn("held out", held_out), exact)
