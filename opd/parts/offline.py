"""Learning from texts that were written before the run, of which a store has the teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from opd.errors import DataError, SettingError
from opd.method import Method, plain
from opd.parts.sample import OneTurn, Traces
from opd.parts.views import only_written
from opd.protocols import Cast, Writer
from opd.rollout import Array, Group, Problem, Rollout, Visit

REFERENCE = "reference"  # the student as it was: what it wrote once is what a store holds


@dataclass(frozen=True)
class FromStore:
    """A visit brings every text that the teacher's store has for its problem, the same ones at every visit.

    n: texts per problem that the method counts on; 0 takes any number.
    """

    n: int = 0
    teacher: str = "teacher"

    def check_problem(self, problem: Problem, cast: Cast) -> None:
        """There are texts for every problem, and they follow the prompt that the student would be given."""
        texts, prompt = self._texts(cast, problem), cast["student"].render(problem.messages)
        start = " ".join(problem.messages[-1]["content"].split())[:40]
        if not texts:
            raise DataError(
                f"the store has no text for problem {problem.id} ({start!r})",
                expected="one for every problem of --task",
                remedy="Give the task that was stored, or store this one",
            )
        if self.n and len(texts) != self.n:
            what = f"the store has {len(texts)} texts for problem {problem.id}"
            raise SettingError(what, got=len(texts), expected=f"n={self.n}, as the method counts on")
        if given(texts[0]).tolist() != prompt.tolist():
            raise DataError(
                f"the texts for problem {problem.id} ({start!r}) follow another prompt than the student's",
                got=f"{len(given(texts[0]))} tokens in the store",
                expected=f"the {len(prompt)} tokens of its chat template",
            )

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        student: Writer = cast["student"]

        def one(rollout: Rollout, problem: Problem) -> Rollout:
            return replace(rollout, problem=problem, text=student.decode(rollout.decisions))

        return [
            Group(v.problem, tuple(one(text, v.problem) for text in self._texts(cast, v.problem)), student.render)
            for v in visits
        ]

    def _texts(self, cast: Cast, problem: Problem) -> list[Rollout]:
        teacher: Any = cast[self.teacher]
        return teacher.texts(problem)


def given(rollout: Rollout) -> Array:
    """[T] the tokens before the first decision."""
    return rollout.tokens[: int(rollout.positions[0])]


def from_store(method: Method, asked: bool) -> Method:
    """The method on the texts of its stored teacher.

    Texts that the student wrote once before the run are that anyway; whose texts are fresh is held to a store's only
    where that is `asked` for.
    """
    sample = method.sample
    if not asked and not (isinstance(sample, Traces) and sample.writer == REFERENCE):
        raise SettingError(
            "the method has new texts written, and a store knows those alone that it holds",
            expected="--texts stored, by which the method learns from these instead",
            remedy="Or take lightning, or a teacher that reads",
        )
    if not isinstance(sample, OneTurn | Traces):
        raise SettingError(
            "the method learns from more than answers that one wrote, and a store holds no more",
            got=type(sample).__name__,
            expected="a method such as sampled_token, local_support or lightning",
        )
    if views := [ask.into for ask in method.teach if ask.view not in (plain, only_written)]:
        raise SettingError(
            f"ask {views[0]!r} shows the teacher more than the student's prompt, and a store holds no such answer",
            expected="a teacher that reads",
        )
    return replace(method, sample=FromStore(sample.n if isinstance(sample, OneTurn) else 0))
