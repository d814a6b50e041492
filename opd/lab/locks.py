"""How many walks a learner needs until it knows the key of a prefix lock whose expert is noisy, by counting.

A learner is whose actions move the state (`walker`) and what it makes of the labels that it has seen so far:

    bc       the expert walks, noise and all; the labels are its own actions
    opd      the student walks and samples what it has learned, noise and all
    aware    the student samples what it has learned through the channel, the clean policy as far as it knows
    nail     the same, but it takes the most probable action
    nailgun  it takes the action that was most often said; it knows no channel

Instead of descending a loss by steps, its minimiser is written down: counts where there is no channel, `fitted` where
there is one. Action 0 is the right one at every depth, and ties are broken at random.

Axes: B seeds, H depths, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opd.rollout import Array


@dataclass(frozen=True)
class Learner:
    walker: str  # expert, sampling or greedy
    channel: bool


LEARNERS = {
    "bc": Learner("expert", False),
    "opd": Learner("sampling", False),
    "aware": Learner("sampling", True),
    "nail": Learner("greedy", True),
    "nailgun": Learner("greedy", False),
}


def seen(rate: float, noise: Array) -> Array:
    """[A] what the noisy expert says on the path."""
    return (1 - rate) * np.eye(len(noise))[0] + rate * noise


def staying(rate: float, noise: Array) -> float:
    """rho: how likely whoever samples the noisy expert is to stay on the path at one step."""
    return float(seen(rate, noise)[0])


def is_learnable(learner: Learner, rate: float, noise: Array) -> bool:
    """Whether the right action wins in the limit of many labels: without the channel noise may outvote it."""
    return learner.channel or bool((seen(rate, noise)[1:] < staying(rate, noise)).all())


def fitted(counts: Array, rate: float, noise: Array) -> Array:
    """[..., A] the policy that minimises - sum_a counts_a log((1 - rate) p_a + rate nu_a): labels through a channel.

    On the actions with p_a > 0 the mixture is proportional to the counts; the rest is where noise alone explains more
    than was seen. Actions enter by counts / noise, the largest first. Without a label the policy is uniform.
    """
    actions = counts.shape[-1]
    floor = np.maximum(rate * noise, 1e-300)  # an action that noise never takes enters first
    order = np.argsort(-counts / floor, axis=-1, kind="stable")
    ordered = np.take_along_axis(counts, order, -1)
    below = (rate * noise)[order]
    scale = ordered.cumsum(-1) / ((1 - rate) + below.cumsum(-1))  # labels per unit of mixture, if so many are inside
    inside = ordered > below * scale
    last = inside.sum(-1, keepdims=True).clip(min=1) - 1
    chosen = np.take_along_axis(scale, last, -1)
    p = (counts / np.where(chosen > 0, chosen, 1) - rate * noise).clip(min=0) / (1 - rate)
    return np.where(counts.sum(-1, keepdims=True) > 0, p, 1 / actions)


def walks_needed(name: str, rate: float, noise: Array, horizon: int, seeds: int, seed: int = 0) -> Array:
    """[B] walks until the most probable action is the right one at every depth; inf if no number is enough."""
    learner = LEARNERS[name]
    if not is_learnable(learner, rate, noise):
        return np.full(seeds, np.inf)
    key = np.random.SeedSequence([seed, list(LEARNERS).index(name), horizon, round(rate * 1e9)])
    random = np.random.Generator(np.random.Philox(key))
    needed, running, rounds = np.zeros(seeds), np.arange(seeds), 0
    counts = np.zeros((seeds, horizon, len(noise)))
    taste = random.random(counts.shape) * 1e-9  # breaks ties, for each seed in its own way
    cdf = seen(rate, noise).cumsum()[:-1]
    while len(running):
        rounds += 1
        labels = (random.random(counts.shape[:2])[..., None] >= cdf).sum(-1)
        there = _on_the_path(_taken_rightly(learner, counts, taste, rate, noise, labels, random))
        counts += np.eye(len(noise))[labels] * there[..., None]
        done = _best(learner, counts, taste, rate, noise).all(-1)
        if done.any():
            needed[running[done]] = rounds
            running, counts, taste = running[~done], counts[~done], taste[~done]
    return needed


def _taken_rightly(
    learner: Learner, counts: Array, taste: Array, rate: float, noise: Array, labels: Array, random: np.random.Generator
) -> Array:
    """[B, H] whether the walker would take the right action at each depth."""
    if learner.walker == "expert":
        return labels == 0
    if learner.walker == "greedy":
        return _best(learner, counts, taste, rate, noise)
    if learner.channel:
        right = fitted(counts, rate, noise)[..., 0]
    else:
        right = np.divide(
            counts[..., 0], total := counts.sum(-1), out=np.full(total.shape, 1 / len(noise)), where=total > 0
        )
    return random.random(right.shape) < right


def _on_the_path(right: Array) -> Array:
    """[B, H] whether a walk that acts so is still on the path before each depth's action."""
    there = np.ones_like(right)
    there[:, 1:] = np.logical_and.accumulate(right, 1)[:, :-1]
    return there


def _best(learner: Learner, counts: Array, taste: Array, rate: float, noise: Array) -> Array:
    """[B, H] whether the right action is the most probable one."""
    found = fitted(counts, rate, noise) if learner.channel else counts
    return (found + taste).argmax(-1) == 0


def slope(x: Sequence[float], samples: Sequence[Array], draws: int = 1000) -> tuple[float, float, float]:
    """Slope of log(median) over x by least squares, with a 95 % interval from drawing seeds anew."""
    random = np.random.Generator(np.random.Philox(0))
    table = np.stack([values[random.integers(len(values), size=(draws, len(values)))] for values in samples], 1)
    fits = np.polyfit(x, np.log(np.median(table, -1)).T, 1)[0]
    middle = np.polyfit(x, np.log([np.median(values) for values in samples]), 1)[0]
    low, high = np.quantile(fits, [0.025, 0.975])
    return float(middle), float(low), float(high)
