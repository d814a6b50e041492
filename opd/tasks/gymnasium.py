"""An environment of gymnasium as a task: a problem is a seed to start from, an answer an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opd.engines.world import World
from opd.errors import SettingError
from opd.rollout import Problem

SPLIT = 2**30  # seeds of held-out episodes lie above, so that no number of training episodes reaches them


@dataclass(frozen=True)
class Environment:
    """Seeds of episodes to learn from, others to be examined on, and the world in which they are played."""

    name: str
    world: World
    train: Sequence[Problem]
    held_out: Sequence[Problem]

    def grade(self, problem: Problem, text: str) -> float | None:
        """An episode brings its grade along; a text about one cannot be graded."""
        return None


def load(
    target: str,
    *,
    train: int = 4096,
    held_out: int = 256,
    seed: int = 0,
    success: float | None = None,
    **environment: Any,
) -> Environment:
    """Environment `target` of gymnasium; further options are its own (is_slippery=true). success: least return of one.

    Every number of the seed is a block of its own of training episodes; the held-out ones are always the same.
    """
    if not target:
        raise SettingError("task 'gymnasium' needs an environment", remedy="For example gymnasium:FrozenLake-v1")
    if train > SPLIT // 1024 or seed >= 1024 or held_out > SPLIT // 1024:
        got = f"train={train}, held_out={held_out}, seed={seed}"
        raise SettingError("more episodes than there are seeds", got=got, expected=f"{SPLIT // 1024}, seed below 1024")
    world = World(target, environment, success)
    first = seed * (SPLIT // 1024)
    return Environment(
        name=f"gymnasium:{target}",
        world=world,
        train=[problem(target, first + i) for i in range(train)],
        held_out=[problem(target, SPLIT + i) for i in range(held_out)],
    )


def problem(name: str, start: int) -> Problem:
    return Problem(f"{name}/{start}", f"{name} from seed {start}")
