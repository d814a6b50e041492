"""What a copy of the student is told about a problem that it has answers to: references, right and wrong siblings.

Prompt templates lie beside the recipes; {prompt} and {context} are filled in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from opd.errors import DataError, one_of, require
from opd.method import Ask, View
from opd.parts.views import Privileged, Sibling
from opd.protocols import Want
from opd.rollout import Group, Message, Problem, Rollout
from opd.stated import final_answer, marked

LABEL = "Correct final answer:"  # under a wrong hint too, so that right and wrong ones differ in content alone
WRONG = "wrong.{}"  # the columns of the wrong hints


@dataclass(frozen=True)
class Reference(Privileged):
    """The reader also sees the reference: the privileged context where the problem has one, else its answer."""

    labelled: bool = False  # and below it the final answer, as below a hint

    def check(self, problem: Problem) -> str:
        found = problem.privileged_context or problem.answer
        if found is None:
            raise DataError(
                f"problem {problem.id} has no reference, and this method shows it to the teacher",
                remedy="Give the task a column 'privileged_context' or 'answer'",
            )
        return f"{found}\n{LABEL} {problem.answer or final_answer(found)}" if self.labelled else found


@dataclass(frozen=True)
class ByRightAnswers:
    """Another view by how many answers of the group are right: none, one, several or every one; None shows nothing.

    An answer that nobody could grade is not counted.
    """

    none: View | None = None
    one: View | None = None
    several: View | None = None
    every: View | None = None
    threshold: float = 1.0
    needs_reward = True

    def __call__(self, rollout: Rollout, group: Group) -> list[Rollout]:
        rewards = [one.tags["reward"] for one in group.rollouts if one.n]
        right = [reward >= self.threshold for reward in rewards if not math.isnan(reward)]
        some = self.one if sum(right) == 1 else self.several
        view = self.none if not any(right) else self.every if all(right) else some
        return view(rollout, group) if view else []


@dataclass(frozen=True)
class SiblingInSystem(Sibling):
    """A sibling that the reader is shown in a system message, at the end of the one that there may be."""

    def _told(self, problem: Problem, text: str) -> tuple[Message, ...]:
        first, words = problem.messages[0], self.template.replace("{context}", text)
        if first["role"] == "system":
            return ({**first, "content": f"{first['content']}\n\n{words}"}, *problem.messages[1:])
        return ({"role": "system", "content": words}, *problem.messages)


def labelled(rollout: Rollout) -> str:
    """An answer, and below it once more what it finally says."""
    return f"{rollout.text}\n{LABEL} {final_answer(rollout.text)}"


def labelled_if_marked(rollout: Rollout) -> str | None:
    """The same of an answer that marks its final answer (in a box, say); another one is no hint."""
    return None if marked(rollout.text) is None else labelled(rollout)


def labelled_as_right(rollout: Rollout) -> str:
    """The same of a right answer, for which the problem speaks where it marks no final answer."""
    said = marked(rollout.text) or rollout.problem.answer or final_answer(rollout.text)
    return f"{rollout.text}\n{LABEL} {said}"


def contrasting(
    n: int, hint: str, wrong: int, only_marked: bool, template: str, want: Want, of_wrong: Want | None = None
) -> tuple[Ask, ...]:
    """The teacher's asks under one right hint, a `sibling` or the `reference`, and under `wrong` wrong siblings.

    Of n answers one may have fewer siblings of a kind, or none: all asks are optional. They want the same, unless
    `of_wrong`. `only_marked`: a wrong one must mark its final answer; a right one need not (`labelled_as_right`).
    """
    require(n >= 2, "answers per prompt n, which are each other's hints", got=n, expected="at least 2")
    one_of("the right hint", hint, ("sibling", "reference"))
    require(wrong >= 1, "wrong hints per answer", got=wrong, expected="at least 1")
    as_right, as_wrong = (labelled_as_right, labelled_if_marked) if only_marked else (labelled, labelled)
    right = Reference(template, True) if hint == "reference" else Sibling(template, "right", shows=as_right)
    siblings = [Sibling(template, "wrong", number, shows=as_wrong) for number in range(wrong)]
    asks = [Ask(WRONG.format(k), "teacher", of_wrong or want, one, optional=True) for k, one in enumerate(siblings)]
    return (Ask("teacher", "teacher", want, right, optional=True), *asks)
