"""Several teachers in the role of one: who reads a problem, and who writes for it, says its column `teacher_id`.

One teacher per task is the multi-task setting of "Revisiting On-Policy Distillation" (arXiv 2603.25562).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.errors import DataError, SettingError, TeacherError, nearest
from opd.protocols import Answer, Hear, Student, Want, write_for
from opd.rollout import TEACHER_ID, Array, Message, Piece, Problem, Rollout, Sampling
from opd.teachers.mixed import Mixed, gathered


class Routed:
    """Teachers by name. It can what all of them can; a problem that names none of them is an error.

    Hidden states are compared with the student's, so they are offered only where all teachers have one width.
    """

    def __init__(self, members: Mapping[str, Any], name: str = "teacher") -> None:
        if not members:
            raise SettingError("a routed teacher without teachers", expected="at least one NAME=MODEL")
        self.members, self.name = dict(members), name
        self.routes = tuple(self.members)
        widths = {getattr(getattr(member, "engine", member), "width", None) for member in self.members.values()}
        alike = len(widths) == 1
        self.width: int | None = widths.pop() if alike else None
        self.can = frozenset.intersection(*(member.can for member in self.members.values()))
        self.can -= frozenset() if alike else {"inner"}
        self.live = any(member.live for member in self.members.values())
        self.only_its_own = any(getattr(member, "only_its_own", False) for member in self.members.values())
        self.is_free = all(getattr(member, "is_free", True) for member in self.members.values())
        limits = [getattr(member, "most", {}) for member in self.members.values()]
        self.most = {name: min(one[name] for one in limits if name in one) for name in {*chain(*limits)}}

    def route(self, problem: Problem) -> int:
        """The number of the teacher that the problem names."""
        asked = problem.data.get(TEACHER_ID)
        if asked in self.members:
            return self.routes.index(str(asked))
        start = " ".join(problem.messages[-1]["content"].split())[:40]
        raise DataError(
            f"problem {problem.id} ({start!r}) names no teacher of this run in its column {TEACHER_ID!r}",
            got="nothing" if asked is None else repr(asked),
            expected=" or ".join(map(repr, self.routes)),
            remedy="Name one in every row" if asked is None else nearest(str(asked), self.routes),
        )

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        """Every context goes to its own teacher; the answers come back in the order of the contexts."""
        routes = np.array([self.route(context.problem) for context in contexts])
        asked = [number for number in range(len(self.routes)) if (routes == number).any()]
        answers = [
            self._member(number).read([c for c, r in zip(contexts, routes, strict=True) if r == number], want)
            for number in asked
        ]
        places = np.searchsorted(asked, np.repeat(routes, [context.n for context in contexts]))
        return merged(answers, torch.from_numpy(places))

    def hearing(self, want: Want) -> Hear | None:
        """As of a teacher elsewhere: every text goes to its own teacher, if that one can be asked ahead."""
        begun = {name: begin(want) for name, one in self.members.items() if (begin := getattr(one, "hearing", None))}

        def hear(texts: Sequence[Rollout]) -> None:
            for name, tell in begun.items():
                if own := [text for text in texts if self.routes[self.route(text.problem)] == name]:
                    tell(own)

        return hear if begun else None

    def follow(self, student: Student, step: int) -> None:
        for member in self.members.values():
            member.follow(student, step)

    def state_dict(self) -> dict[str, Any]:
        return {name: member.state_dict() for name, member in self.members.items() if hasattr(member, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, values in state.items():
            self.members[name].load_state_dict(values)

    def write_for(
        self, problems: Sequence[Problem], prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Piece]]:
        """As `write`, and every problem's own teacher writes."""
        routes = [self.route(problem) for problem in problems]
        written: list[list[Piece]] = [[] for _ in problems]
        for number in sorted(set(routes)):
            own = [i for i, route in enumerate(routes) if route == number]
            asked = [problems[i] for i in own], [prompts[i] for i in own]
            pieces = write_for(self._member(number), *asked, sampling, [seeds[i] for i in own])
            for i, some in zip(own, pieces, strict=True):
                written[i] = some
        return written

    def texts(self, problem: Problem) -> list[Rollout]:
        """What the store of the problem's own teacher holds for it; a teacher that is no store has nothing."""
        member = self._member(self.route(problem))
        return member.texts(problem) if hasattr(member, "texts") else []

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        raise TeacherError(
            f"{self.name} is several teachers and a prompt does not say who writes",
            expected="the problem beside the prompt",
        )

    def render(self, messages: Sequence[Message]) -> Array:
        return self._member(0).render(messages)

    def decode(self, tokens: Array) -> str:
        return self._member(0).decode(tokens)

    def _member(self, number: int) -> Any:
        return self.members[self.routes[number]]


def merged(answers: Sequence[Answer], owner: Tensor) -> Answer:
    """One answer from several about their own rows; owner [N]: whose answer each row takes."""
    if len(answers) == 1:
        return answers[0]
    dists = [answer.dist for answer in answers if answer.dist is not None]
    chosen = [answer.chosen for answer in answers if answer.chosen is not None]
    named = [answer.gathered for answer in answers if answer.gathered is not None]
    guessed = [torch.zeros_like(some, dtype=torch.bool) for some in named]
    if is_guess := any(answer.guessed is not None for answer in answers):
        guessed = [no if one.guessed is None else one.guessed for one, no in zip(answers, guessed, strict=True)]
    return Answer(
        Mixed(tuple(dists), owner) if dists else None,
        gathered(chosen, owner) if chosen else None,
        gathered(named, owner) if named else None,
        guessed=gathered(guessed, owner) if is_guess else None,
    )
