"""Samples of imitation learning: student and teacher take turns, and every round joins what is learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opd.errors import MethodError, require
from opd.parts.memory import Memory
from opd.protocols import Cast, Partner, Sample
from opd.rollout import STUDENT, Array, Group, Piece, Rollout, Sampling, Visit, continued


@dataclass(frozen=True)
class TakeTurns:
    """`n` answers or episodes per problem in which a coin gives every decision to the teacher with probability `share`.

    The column `label` holds what the teacher would have done, whoever decided (Ross et al., 1011.0686, Alg. 3.1).
    """

    share: float | Callable[[int], float]  # of every batch, or by step
    n: int = 1
    sampling: Sampling = Sampling()
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(self.n >= 1, "samples per prompt n", got=self.n, expected="at least 1")

    @property
    def writers(self) -> tuple[str, ...]:
        return ("student", self.teacher)

    def check(self, cast: Cast) -> None:
        """Turns need two who can be relieved in the middle of their writing."""
        able = {"student": ("take_turns",), self.teacher: ("take_turns", "reading")}
        for who, ways in able.items():
            if not any(hasattr(cast[who], way) for way in ways):
                raise MethodError(
                    f"{cast[who].name} cannot take turns decision by decision",
                    got=f"a {type(cast[who]).__name__} as {who}",
                    expected="a model of its own in this process, or a policy or an expert in an environment",
                    remedy="Name one model as the teacher, or use gkd",
                )

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        student: Partner = cast["student"]
        prompts = [student.render(visit.problem.messages) for visit in visits]
        seeds = [[visit.seed(sample) for sample in range(self.n)] for visit in visits]
        teacher = cast[self.teacher]
        share = self.share(step) if callable(self.share) else self.share
        written = student.take_turns(teacher, share, prompts, self.sampling, seeds)
        if counted := getattr(teacher, "counted", None):
            counted(prompts, written)  # it read whatever was written, and its meter did not see it

        def rollout(visit: Visit, prompt: Array, piece: Piece) -> Rollout:
            return continued(prompt, piece, visit.problem, self.sampling, STUDENT, student.decode(piece.tokens))

        return [
            Group(visit.problem, tuple(rollout(visit, prompt, piece) for piece in pieces), student.render)
            for visit, prompt, pieces in zip(visits, prompts, written, strict=True)
        ]


@dataclass
class Aggregate:
    """Fresh groups from `fresh`, and with them `replay` times as many drawn from those that came before.

    Of those the newest are kept, `memory` episodes at most; the episodes of one problem go together. It is a state.
    """

    fresh: Sample
    replay: int
    memory: int
    kept: Memory = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.replay >= 0, "earlier episodes per fresh one (replay)", got=self.replay, expected="at least 0")
        self.kept = Memory(self.memory)

    @property
    def writers(self) -> tuple[str, ...]:
        return tuple(getattr(self.fresh, "writers", ()))

    def check(self, cast: Cast) -> None:
        if check := getattr(self.fresh, "check", None):
            check(cast)

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        new = self.fresh(cast, visits, step)
        if not self.replay:
            return new
        key = [visits[0].run_seed % 2**64 if visits else 0, step]
        chance = np.random.Generator(np.random.Philox(key=key))
        again = self.kept.draw(self.replay * len(new), chance, cast["student"].render)
        self.kept.add(new)
        return [*new, *again]

    def state_dict(self) -> dict[str, Any]:
        return self.kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept.load_state_dict(state)
