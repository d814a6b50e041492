"""What the reader is shown: the same decisions, after a prompt that may say more than the writer knew."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np

from opd.errors import DataError, MethodError, one_of
from opd.rollout import TEACHER_ID, Group, Message, Problem, Rollout

SLOT = re.compile(r"\{(?:prompt|context)\}")


def template(name: str) -> str:
    """A prompt template that lies beside the recipes as a text file; {prompt} and {context} are filled in."""
    return resources.files("opd.recipes").joinpath(f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


@dataclass(frozen=True)
class Privileged:
    """The reader also sees the problem's privileged context, set into the last user message by `template`."""

    template: str

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        context = self.check(group.problem)
        return [rollout.reworded(group.render(told(group.problem.messages, self.template, context)))]

    def check(self, problem: Problem) -> str:
        """What the reader is told about a problem; a run asks this of every problem before it begins."""
        if problem.privileged_context is None:
            raise DataError(
                f"problem {problem.id} has no privileged context, and this method shows it to the teacher",
                remedy="Give the task a column 'privileged_context'",
            )
        return problem.privileged_context


@dataclass(frozen=True)
class AskedOf:
    """The same text, read by another of several teachers than the one whom the problem names."""

    name: str

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        problem = replace(rollout.problem, data={**rollout.problem.data, TEACHER_ID: self.name})
        return [replace(rollout, problem=problem)]


def only_written(rollout: Rollout, group: Group) -> list[Rollout]:
    """What the writer had before it, and nothing of a solution that came with the problem (WithSolutions)."""
    return [rollout] if rollout.written else []


OUTCOMES = ("right", "wrong", "any")


def written(rollout: Rollout) -> str | None:
    """What a sibling is shown as: its own text."""
    return rollout.text


@dataclass(frozen=True)
class Sibling:
    """The reader also sees another answer to the same problem, one that was right (or wrong), never the one it reads.

    The siblings are in a random order of the rollout's own (its seed); `number` says which of them is shown, and there
    may be none, so the ask is usually optional. Right is a reward of at least `threshold`. `shared`: the order is that
    of the group, which is shown the same one, and this one nothing. `shows` says as what (None: not this one).
    """

    template: str
    outcome: str = "right"
    number: int = 0
    threshold: float = 1.0
    shared: bool = False
    shows: Callable[[Rollout], str | None] = written
    needs_reward = True

    def __post_init__(self) -> None:
        one_of("the sibling that is shown", self.outcome, OUTCOMES)

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        shown = [(one, self.shows(one)) for one in group.rollouts if one.n and self._fits(one)]
        siblings = [(one, text) for one, text in shown if text is not None and (self.shared or one is not rollout)]
        if self.number >= len(siblings):
            return []
        drawer = group.rollouts[0] if self.shared else rollout
        if drawer.seed is None:
            raise MethodError(f"a rollout of problem {rollout.problem.id} has no seed to draw a sibling with")
        order = np.random.Generator(np.random.Philox(key=[drawer.seed % 2**64, 2])).permutation(len(siblings))
        one, text = siblings[order[self.number]]
        return [] if one is rollout else [rollout.reworded(group.render(self._told(group.problem, text)))]

    def _told(self, problem: Problem, text: str) -> tuple[Message, ...]:
        return told(problem.messages, self.template, text)

    def _fits(self, sibling: Rollout) -> bool:
        right = sibling.tags["reward"] >= self.threshold
        return self.outcome == "any" or right == (self.outcome == "right")


def told(messages: Sequence[Message], template: str, context: str) -> tuple[Message, ...]:
    """The messages with {prompt} and {context} set into `template` in place of the user's last one."""
    last = max(number for number, message in enumerate(messages) if message["role"] == "user")
    fills = {"{context}": context, "{prompt}": messages[last]["content"]}
    words = SLOT.sub(lambda slot: fills[slot[0]], template)  # in one go: what is filled in may have braces too
    return (*messages[:last], {**messages[last], "content": words}, *messages[last + 1 :])
