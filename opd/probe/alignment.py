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
from opd.probe.texts import Texts
from opd.rollout import Array


@dataclass(frozen=True)
class Alignment:
    """How one score of an answer goes with its grade; intervals are over problems."""

    score: str
    within: Interval | None  # Spearman's correlation among the answers to one problem, mean over `ordered` problems
    overall: Interval | None  # the same among all answers: easy and hard problems are mixed in
    auc: Interval | None  # how often a right answer scores above a wrong one to the same problem, where grades are 0, 1
    ordered: int  # problems whose answers have an order, in score and in grade


def alignments(texts: Texts) -> list[Alignment]:
    """Of the student's own answers; the first one decides. A problem without all its grades is left out."""
    known = ~np.isnan(texts.rewards).any(1)
    ratio, theirs, lengths = texts.sums(texts.teacher - texts.student), texts.sums(texts.teacher), texts.lengths
    scores = {
        "log q - log pi": ratio,
        "log q": theirs,
        "log q per token": theirs / np.maximum(lengths, 1),
        "length": lengths,
    }
    reward = texts.rewards[known]
    found = [aligned(name, score[known], reward) for name, score in scores.items()]
    ordered = (np.ptp(ratio[known], 1) > 0) & (np.ptp(reward, 1) > 0)
    columns = [column[known][ordered] for column in (ratio, texts.rewards, lengths)]
    left = resampled(lambda drawn: partial(*(column[drawn] for column in columns)), len(columns[0]))
    at_equal_length = Alignment("log q - log pi at equal length", left, None, None, int(ordered.sum()))
    return [found[0], at_equal_length, *found[1:]]


def aligned(name: str, score: Array, reward: Array) -> Alignment:
    """score, reward [P, k]."""
    within, ordered = mean_of([spearman(a, b) for a, b in zip(score, reward, strict=True)])
    overall = resampled(lambda drawn: spearman(score[drawn].ravel(), reward[drawn].ravel()), len(score))
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


def partial(score: Array, reward: Array, length: Array) -> float | None:
    """[P, k] each: the correlation, within problems, of what the ranks of score and reward have beyond the length's.

    The rule r_xy.z = (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)) on ranks within each problem.
    """
    x, y, z = (np.concatenate([rank(one) - rank(one).mean() for one in each]) for each in (score, reward, length))
    size = np.sqrt([x @ x, y @ y, z @ z])
    if size[:2].min() == 0:
        return None
    xy, xz, yz = x @ y / size[0] / size[1], *((a @ z / b / size[2] if size[2] else 0.0) for a, b in ((x, size[0]), (y, size[1])))
    left = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / left**0.5) if left > 1e-9 else None
