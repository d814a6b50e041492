"""What was written before, within bounds: the newest groups are kept, and drawn again by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from opd.errors import require
from opd.rollout import OTHER, STUDENT, Array, End, Group, Message, Problem, Render, Rollout, Sampling


@dataclass
class Memory:
    """The newest groups, `size` episodes at most; the episodes of one problem go together, one group is always kept.

    It is a state: a resumed run must go on learning from everything that was gathered.
    """

    size: int
    groups: list[Group] = field(default_factory=list[Group], repr=False)

    def __post_init__(self) -> None:
        require(self.size >= 1, "episodes that are kept (memory)", got=self.size, expected="at least 1")

    @property
    def is_full(self) -> bool:
        return sum(len(group.rollouts) for group in self.groups) >= self.size

    def add(self, new: Sequence[Group]) -> None:
        groups = [*self.groups, *new]
        kept = accumulate(len(group.rollouts) for group in reversed(groups))
        self.groups = groups[-max(1, sum(episodes <= self.size for episodes in kept)) :]

    def draw(self, n: int, chance: np.random.Generator, render: Render) -> list[Group]:
        """n different groups, or all where there are no more; the student's `render` goes with them.

        What the student wrote is no longer by the student as it is: its author is OTHER from now on.
        """
        drawn = (self.groups[i] for i in chance.permutation(len(self.groups))[:n])
        return [replace(group, render=render, rollouts=tuple(map(_aged, group.rollouts))) for group in drawn]

    def state_dict(self) -> dict[str, Any]:
        return packed(self.groups)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.groups = unpacked(state)


def _aged(rollout: Rollout) -> Rollout:
    return replace(rollout, author=np.where(rollout.author == STUDENT, OTHER, rollout.author).astype(np.int8))


def packed(groups: Sequence[Group]) -> dict[str, Any]:
    """Groups as tensors and plain values, without the function that renders."""
    return {str(number): [_packed(one) for one in group.rollouts] for number, group in enumerate(groups)}


def unpacked(state: Mapping[str, Any]) -> list[Group]:
    gathered = [tuple(_unpacked(one) for one in group) for group in state.values()]
    return [Group(rollouts[0].problem, rollouts, _unknown) for rollouts in gathered]


def _unknown(messages: Sequence[Message]) -> Array:
    raise AssertionError("a group that was loaded gets its student's render when it is drawn")


def _packed(rollout: Rollout) -> dict[str, Any]:
    """A rollout as tensors and plain values."""
    arrays = {"tokens": rollout.tokens, "author": rollout.author}
    if rollout.inputs is not None:
        arrays["inputs"] = rollout.inputs
    return {
        "problem": asdict(rollout.problem),
        "sampling": asdict(rollout.sampling),
        "arrays": {name: torch.from_numpy(array) for name, array in arrays.items()},
        "columns": {name: torch.from_numpy(array) for name, array in rollout.columns.items()},
        "tags": rollout.tags,
        "end": str(rollout.end),
        "text": rollout.text,
        "seed": rollout.seed,
    }


def _unpacked(packed: Mapping[str, Any]) -> Rollout:
    problem = dict(packed["problem"])
    if not isinstance(problem["prompt"], str):
        problem["prompt"] = tuple(problem["prompt"])
    arrays = {name: tensor.numpy() for name, tensor in packed["arrays"].items()}
    columns = {name: tensor.numpy() for name, tensor in packed["columns"].items()}
    sampling = Sampling(**{**packed["sampling"], "stop": tuple(packed["sampling"]["stop"])})
    return Rollout(
        problem=Problem(**problem), sampling=sampling, end=End(packed["end"]), columns=columns, tags=packed["tags"],
        text=packed["text"], seed=packed["seed"], **arrays,
    )  # fmt: skip
