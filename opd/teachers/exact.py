"""Exact values of worlds whose transitions are written out, such as FrozenLake, Taxi and CliffWalking.

Axes: S states, V actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.engines.world import World
from opd.errors import TeacherError, require
from opd.rollout import Array
from opd.teachers.expert import EPSILON, Expert


@dataclass(frozen=True)
class Table:
    """next [S, V, S]: probabilities of going on in each state (what is missing to 1 ends); reward [S, V]: expected."""

    next: Array
    reward: Array
    gamma: float

    @classmethod
    def of(cls, world: World, gamma: float = 0.99) -> Table:
        """The transitions of a gymnasium environment that writes them out; its time limit is not among them."""
        require(0 <= gamma < 1, "the discount gamma of exact values", got=gamma, expected="a number in [0, 1)")
        written: Any = getattr(world.seats[0].unwrapped, "P", None)
        if written is None or not world.states:
            raise TeacherError(
                f"{world.name} does not write its transitions out, so nobody can compute exact values",
                expected="an environment like FrozenLake, Taxi or CliffWalking",
                remedy="Name a saved policy as the teacher, or python:FILE:FUNCTION",
            )
        going, reward = np.zeros((world.states, world.actions, world.states)), np.zeros((world.states, world.actions))
        for s, actions in written.items():
            for a, outcomes in actions.items():
                for chance, after, gain, ended in outcomes:
                    reward[s, a] += chance * gain
                    going[s, a, after] += chance * (not ended)
        return cls(going, reward, gamma)

    def values(self, policy: Array) -> Array:
        """[S, V] expected discounted return after each action, following `policy` [S, V] from there on (Q)."""
        going = np.einsum("sa,sat->st", policy, self.next)
        value = np.linalg.solve(np.eye(len(going)) - self.gamma * going, (policy * self.reward).sum(-1))
        return self.reward + self.gamma * self.next @ value

    def best(self) -> Array:
        """[S, V] the same for an optimal policy, by policy iteration: exact after finitely many rounds."""
        policy = np.full(self.reward.shape, 1 / self.reward.shape[1])
        before = np.full(len(policy), -np.inf)
        while True:
            values = self.values(policy)
            best = values.max(-1)
            if np.allclose(best, before, rtol=0, atol=1e-12):
                return values
            policy, before = greedy(values, once=True), best


def greedy(values: Array, once: bool = False) -> Array:
    """[S, V] the policy of the best action: ties share, or the first one wins (`once`)."""
    if once:
        return np.eye(values.shape[1])[values.argmax(-1)]
    best = values >= values.max(-1, keepdims=True) - 1e-9
    return best / best.sum(-1, keepdims=True)


def expert(world: World, *, epsilon: float = EPSILON, gamma: float = 0.99, max_new: int = 1000) -> Expert:
    """The optimal policy and its values, with a random action at rate `epsilon`."""
    values = Table.of(world, gamma).best()
    return tabular(world, greedy(values), values, epsilon=epsilon, max_new=max_new)


def tabular(world: World, policy: Array, values: Array | None = None, **how: Any) -> Expert:
    """An expert from tables: policy [S, V] of probabilities, values [S, V]."""
    return Expert(world, looked_up(policy), None if values is None else looked_up(values), **how)


def looked_up(table: Array) -> Any:
    known = torch.from_numpy(np.asarray(table, float))

    def rows(states: Tensor) -> Tensor:
        return known[states.long()]

    return rows
