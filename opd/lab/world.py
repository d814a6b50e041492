"""Worlds of a few states in which nothing needs to be sampled: where a policy goes and what it earns are exact sums.

Axes: S states, A actions, H steps, B walks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd.rollout import Array


@dataclass(frozen=True)
class World:
    """In state s action a leads to moves[s, a] and earns rewards[s, a]; a walk takes `horizon` actions.

    `starts` are the states in which problems begin, each equally likely.
    """

    moves: Array  # [S, A]
    rewards: Array  # [S, A]
    horizon: int
    starts: tuple[int, ...] = (0,)

    @property
    def actions(self) -> int:
        return self.moves.shape[1]

    @property
    def states(self) -> int:
        return self.moves.shape[0]

    def walk(self, starts: Array, actions: Array) -> Array:
        """[B] first states and [B, T] actions -> [B, T + 1] states."""
        visited = [starts]
        for taken in actions.T:
            visited.append(self.moves[visited[-1], taken])
        return np.stack(visited, 1)

    def visits(self, policy: Array) -> Array:
        """[H, S] how likely a policy [S, A] is in each state after 0, 1, ... actions."""
        there = np.zeros((self.horizon, self.states))
        there[0, list(self.starts)] = 1 / len(self.starts)
        for h in range(1, self.horizon):
            np.add.at(there[h], self.moves, there[h - 1][:, None] * policy)
        return there

    def value(self, policy: Array) -> float:
        """What a policy [S, A] earns in a walk, on average."""
        return float((self.visits(policy).sum(0)[:, None] * policy * self.rewards).sum())


def prefix_lock(key: tuple[int, ...], actions: int) -> World:
    """One right action per depth; any wrong one leads to where nothing can be earned or learned. Reward for the whole.

    State h is "h right actions so far", the last state is "lost". This is a language model's situation in small: the
    state is the prefix, and a wrong token stands in it for ever. Source: ours, after arXiv 2606.30923.
    """
    depth, lost = len(key), len(key)
    moves, rewards = np.full((depth + 1, actions), lost), np.zeros((depth + 1, actions))
    for h, right in enumerate(key):
        moves[h, right] = h + 1 if h + 1 < depth else lost
    rewards[depth - 1, key[-1]] = 1.0
    return World(moves, rewards, depth)


def lock_expert(key: tuple[int, ...], actions: int) -> Array:
    """[S, A] the clean expert of a prefix lock: certain on the path, clueless off it."""
    policy = np.full((len(key) + 1, actions), 1 / actions)
    policy[: len(key)] = np.eye(actions)[list(key)]
    return policy


def slippery_chain(horizon: int, actions: int) -> World:
    """A path that can be left and found again: action 0 is right in both states and earns 1 / H on the path only."""
    moves = np.tile([0] + [1] * (actions - 1), (2, 1))
    rewards = np.zeros((2, actions))
    rewards[0, 0] = 1 / horizon
    return World(moves, rewards, horizon)


def contexts(rewards: Array) -> World:
    """One decision in each of several contexts [S, A], the bandit among the worlds."""
    states = np.tile(np.arange(len(rewards))[:, None], (1, rewards.shape[1]))
    return World(states, rewards, 1, tuple(range(len(rewards))))
