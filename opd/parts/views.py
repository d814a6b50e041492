"""What the reader is shown: the same decisions, after a prompt that may say more than the writer knew."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np

from opd.errors import DataError, MethodError, one_of, require
from opd.rollout import TEACHER_ID, Group, Message, Problem, Rollout


def template(name: str) -> str:
    """A prompt template that lies beside the recipes as a text file; {prompt}, {context} and so on are filled in."""
    return resources.files("opd.recipes").joinpath(f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


@dataclass(frozen=True)
class Privileged:
    """The reader also sees the problem's privileged context, set into the last user message by `template`."""

    template: str

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        return [rollout.reworded(group.render(self.messages(group.problem)))]

    def messages(self, problem: Problem) -> tuple[Message, ...]:
        """The prompt that says more."""
        return told(problem.messages, self.template, self.check(problem))

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


@dataclass(frozen=True)
class Begun:
    """The reader also sees how the reference begins, the first `share` of its characters, and the final answer.

    `begun` says where it ends (2606.10385, released code).
    """

    template: str
    share: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "the share of the reference that is shown", got=self.share, expected="in (0, 1]")

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        context, answer = self.check(group.problem)
        messages = told(group.problem.messages, self.template, begun(context, self.share), answer=answer)
        return [rollout.reworded(group.render(messages))]

    def check(self, problem: Problem) -> tuple[str, str]:
        """Reference and final answer; a run asks this of every problem before it begins."""
        context = Privileged(self.template).check(problem).strip()
        if problem.answer is None:
            what = f"problem {problem.id} has no answer, and this method shows it beside the beginning of the reference"
            raise DataError(what, remedy="Give the task a column 'answer'")
        return context, problem.answer


WORD = re.compile(r"[\w\\]")  # one character of it


def begun(text: str, share: float) -> str:
    """The first `share` of a text's characters, to the end of the word that it falls into; of two words or fewer, all.

    Blanks part words where they are counted. Where the text is cut a word is of letters, digits, _ and \\, so that a
    formula or a line of code is cut too. Chinese, say, without any blank or line break is a single word: shown whole.
    """
    if len(text.split()) <= 2:
        return text
    end = math.ceil(share * len(text))
    while end < len(text) and WORD.match(text[end - 1]) and WORD.match(text[end]):
        end += 1
    return text[:end].rstrip()


OUTCOMES = ("right", "wrong", "any")
THOUGHTS = re.compile(r"<think>.*?(?:</think>\s*|\Z)", re.DOTALL)  # one that was cut off has no end
OPENED_BEFORE = re.compile(r"\A.*</think>\s*", re.DOTALL)  # by the chat template: the answer begins inside a thought


def written(rollout: Rollout) -> str | None:
    """What a sibling is shown as: its own text."""
    return rollout.text


def without_thoughts(rollout: Rollout) -> str | None:
    """The text of a sibling without its thoughts: from <think> to </think> or the end, and before a lone </think>.

    One that is nothing else is not shown.
    """
    said = OPENED_BEFORE.sub("", THOUGHTS.sub("", rollout.text))
    return said if said.strip() else None


@dataclass(frozen=True)
class Sibling:
    """The reader also sees another answer to the same problem, one that was right (or wrong), never the one it reads.

    The siblings are in a random order of the rollout's own (its seed); `number` says which of them is shown, and there
    may be none, so the ask is usually optional. Right is a reward of at least `threshold`, and an answer that
    nobody could grade is neither right nor wrong. `shared`: the order is that of the group, which is shown the same
    one, and this one nothing. `shows` says as what (None: not this one).
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
        reward = sibling.tags["reward"]  # nan where nobody could grade it: neither right nor wrong
        return {"any": True, "right": reward >= self.threshold, "wrong": reward < self.threshold}[self.outcome]


@dataclass(frozen=True)
class Feedback:
    """The reader also sees what the task said in words of the very answer that it reads, where that was wrong.

    Wrong is a reward below `threshold`; nothing is shown of an answer that nobody could grade, or said nothing of.
    """

    template: str
    threshold: float = 1.0
    needs_reward = True

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        if not (rollout.feedback and rollout.tags["reward"] < self.threshold):
            return []
        return [rollout.reworded(group.render(told(group.problem.messages, self.template, rollout.feedback)))]


@dataclass(frozen=True)
class FirstOf:
    """The first of several views that shows anything."""

    views: tuple[Callable[[Rollout, Group], list[Rollout]], ...]

    @property
    def needs_reward(self) -> bool:
        return any(getattr(view, "needs_reward", False) for view in self.views)

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        return next((shown for view in self.views if (shown := view(rollout, group))), [])


def told(messages: Sequence[Message], template: str, context: str, **more: str) -> tuple[Message, ...]:
    """The messages with {prompt}, {context} and `more` set into `template` in place of the user's last one."""
    last = max(number for number, message in enumerate(messages) if message["role"] == "user")
    fields = {"prompt": messages[last]["content"], "context": context, **more}
    words = re.sub(r"\{(\w+)\}", lambda field: fields.get(field[1], field[0]), template)  # a text's own braces stay
    return (*messages[:last], {**messages[last], "content": words}, *messages[last + 1 :])
