"""How many walks tell two policies apart, by exact sums over all walks: no sampling, no asymptotics.

The affinity of two distributions is sum sqrt(P Q) = 1 - H^2, H the Hellinger distance. After n independent walks the
affinity is its n-th power, and the best test between M policies errs at most M times that often: n = log(M / error) /
-log(affinity) walks are enough. Source: ours; the bound is the classical one of Bhattacharyya and Chernoff.

Axes: S states, A actions, H steps.
"""

from __future__ import annotations

import math

import numpy as np

from opd.lab.world import World
from opd.rollout import Array

ERROR = 0.05


def affinity(world: World, one: Array, other: Array, walker: Array | None = None) -> float:
    """sum over walks of sqrt(P(walk, labels | one) P(walk, labels | other)), for policies [S, A].

    Without a walker the policies walk themselves and their actions are the labels (offline data). With one, it moves,
    whoever is right, and at every state on its way one label is drawn (online data).
    """
    alike = np.sqrt(one * other)
    step = alike if walker is None else walker * alike.sum(1, keepdims=True)
    mass = np.zeros(world.states)
    mass[list(world.starts)] = 1 / len(world.starts)
    for _ in range(world.horizon):
        after = np.zeros(world.states)
        np.add.at(after, world.moves, mass[:, None] * step)
        mass = after
    return float(mass.sum())


def enough(alike: float, policies: float, error: float = ERROR) -> float:
    """Walks after which the right one of so many policies is found, but for a share `error` of cases."""
    if alike >= 1:
        return math.inf
    return max(1.0, math.log(policies / error) / -math.log(alike)) if alike > 0 else 1.0
