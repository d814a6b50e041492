"""One decision, an expert that mostly does what no student can do, and M students of which each does one thing.

The expert says something beyond every student with probability 1 - d. Inside the rest, outcome 0 has the reward and
`favour` times the probability of each other one. Three ways to pick a student:

    offline     the one under which n answers of the expert are most likely: only those inside tell the students apart
    online      the one of least KL(student || expert), known after one query of log q at each student's own answer
    reweighted  n answers of a base policy, uniform over the M outcomes, weighted by q / base, the constant divided out

Worlds and rules: ours, after arXiv 2606.30445. Axes: M outcomes, B seeds, R repetitions of one seed.
"""

from __future__ import annotations

import numpy as np

from opd.rollout import Array


def expert(outcomes: int, favour: float, inside: float) -> Array:
    """[M + 1] what the expert does; the last entry is beyond every student."""
    odds = np.array([favour] + [1.0] * (outcomes - 1))
    return np.append(inside * odds / odds.sum(), 1 - inside)


def offline(q: Array, n: int, seeds: int, repeats: int) -> Array:
    """[B] share of repetitions in which maximum likelihood on n answers picks the rewarded student, ties at random."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([1, n, round(q[-1] * 1e9)])))
    counts = random.multinomial(n, q / q.sum(), size=(seeds, repeats))[..., :-1]
    return _picks_the_first(counts, random)


def online(q: Array) -> bool:
    """Whether least reverse KL picks the rewarded student: a student that does j has KL = -log q_j."""
    return int(q[:-1].argmax()) == 0


def reweighted(q: Array, n: int, seeds: int, repeats: int) -> Array:
    """[B] the same for n answers of the base, each counted q / base times."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([2, n, round(q[-1] * 1e9)])))
    outcomes = len(q) - 1
    counts = random.multinomial(n, np.full(outcomes, 1 / outcomes), size=(seeds, repeats))
    return _picks_the_first(counts * q[:-1] * outcomes, random)


def _picks_the_first(weights: Array, random: np.random.Generator) -> Array:
    best = weights >= weights.max(-1, keepdims=True) * (1 - 1e-12)
    taste = random.random(weights.shape)
    return ((taste * best).argmax(-1) == 0).mean(-1)
