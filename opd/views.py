"""What the reader is shown: the same decisions, after a prompt that may say more than the writer knew."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from opd.errors import DataError
from opd.rollout import Group, Message, Problem, Rollout


def template(name: str) -> str:
    """A prompt template that lies beside the recipes as a text file; {prompt} and {context} are filled in."""
    return resources.files("opd.recipes").joinpath(f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


@dataclass(frozen=True)
class Privileged:
    """The reader also sees the problem's privileged context, set into the last user message by `template`."""

    template: str

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        context = self.check(group.problem)
        return [rollout.reworded(group.render(self.reworded(group.problem.messages, context)))]

    def check(self, problem: Problem) -> str:
        """What the reader is told about a problem; a run asks this of every problem before it begins."""
        if problem.privileged_context is None:
            raise DataError(
                f"problem {problem.id} has no privileged context, and this method shows it to the teacher",
                remedy="Give the task a column 'privileged_context'",
            )
        return problem.privileged_context

    def reworded(self, messages: tuple[Message, ...], context: str) -> tuple[Message, ...]:
        last = max(number for number, message in enumerate(messages) if message["role"] == "user")
        told = self.template.replace("{context}", context).replace("{prompt}", messages[last]["content"])
        return (*messages[:last], {**messages[last], "content": told}, *messages[last + 1 :])
