"""Does the teacher's opinion of the student's own answers go with their grades?

A student that minimises KL(pi || q) from where it stands climbs A(y) = log q(y) - log pi(y), summed over the answer:
what it earns grows, at first, by the covariance of A with the reward within each problem, and a constant of the problem
moves nothing (arXiv 2606.30445 as reconstructed in docs/theory.md). So A decides here. The other scores are shown
beside it because they mislead: log q alone forgets what the student thinks already, a sum of it prefers short answers,
a mean per token forgets that an answer is chosen as a whole.

Axes: P problems, k answers to each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd.bootstrap import Interval, crossed, resampled
from opd.measure import rank, spearman
from opd.probe.texts import Read
from opd.rollout import Array

OVERALL = 400  # draws for an interval that decides nothing


@dataclass(frozen=True)
class Alignment:
    """How one score of an answer goes with its grade; intervals are over problems."""

    score: str
    within: Interval | None  # Spearman's correlation among the answers to one problem, mean over `ordered` problems
    overall: Interval | None  # the same among all answers: easy and hard problems are mixed in
    auc: Interval | None  # how often a right answer scores above a wrong one to the same problem, where grades are 0, 1
    ordered: int  # problems whose answers have an order, in score and in grade


def alignments(texts: Read, rewards: Array) -> list[Alignment]:
    """Of the student's own answers; the first one decides. A problem without all its grades is left out."""
    known = ~np.isnan(rewards).any(1)
    theirs, lengths = texts.sums(texts.teacher), texts.lengths
    scores = {
        "log q - log pi": texts.sums(texts.teacher - texts.student),
        "log q": theirs,
        "log q per token": theirs / np.maximum(lengths, 1),
        "length": lengths,
    }
    scores, reward = {name: score[known] for name, score in scores.items()}, rewards[known]
    found = [aligned(name, score, reward) for name, score in scores.items()]
    return [found[0], at_equal_length(scores["log q - log pi"], reward, scores["length"]), *found[1:]]


def aligned(name: str, score: Array, reward: Array) -> Alignment:
    """score, reward [P, k]."""
    within, ordered = mean_of([spearman(a, b) for a, b in zip(score, reward, strict=True)])
    overall = resampled(lambda drawn: spearman(score[drawn].ravel(), reward[drawn].ravel()), len(score), draws=OVERALL)
    binary = bool(np.isin(reward, (0, 1)).all())
    area, _ = mean_of([auc(a, b) for a, b in zip(score, reward, strict=True)]) if binary else (None, 0)
    return Alignment(name, within, None if np.isnan(overall.value) else overall, area, ordered)


def mean_of(values: list[float | None]) -> tuple[Interval | None, int]:
    """The mean over the problems that have a value, and how many these are."""
    known = np.array([value for value in values if value is not None])
    return (crossed(known[None]) if len(known) else None), len(known)


def auc(score: Array, reward: Array) -> float | None:
    """[k], [k] the share of (right, wrong) pairs in which the right one scores higher; a tie is half a pair."""
    right, wrong = score[reward == 1], score[reward == 0]
    if not (len(right) and len(wrong)):
        return None
    return float((np.sign(right[:, None] - wrong[None]) / 2 + 0.5).mean())


def at_equal_length(score: Array, reward: Array, length: Array) -> Alignment:
    """[P, k] each: what score and grade have in common within problems, beyond what length explains of either."""
    ordered = (np.ptp(score, 1) > 0) & (np.ptp(reward, 1) > 0)
    ranks = [np.stack([rank(one) for one in each]) for each in zip(score, reward, length, strict=True)]
    products = np.array([np.cov(each) for each in ranks])[ordered]  # [P, 3, 3]
    within = resampled(lambda drawn: partial(products[drawn].sum(0)), len(products)) if len(products) else None
    return Alignment("log q - log pi at equal length", within, None, None, int(ordered.sum()))


def partial(covariance: Array) -> float | None:
    """[3, 3] of x, y, z: (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)); a constant z explains nothing."""
    size = np.sqrt(np.diag(covariance))
    size[size == 0] = 1.0
    (_, xy, xz), (_, _, yz), _ = covariance / np.outer(size, size)
    left = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / left**0.5) if left > 1e-9 else None
