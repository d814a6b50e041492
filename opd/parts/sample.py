"""Who writes the sequence: the student, the teacher, one of them by a coin, each one, or whoever made the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from opd.errors import DataError, MethodError, require
from opd.protocols import Cast, Sample, Spelling, Writer, write_for
from opd.rollout import (
    DATA,
    OTHER,
    STUDENT,
    TEACHER,
    End,
    Group,
    Piece,
    Problem,
    Rollout,
    Sampling,
    Visit,
    continued,
)  # fmt: skip

AUTHORS = {"student": STUDENT, "teacher": TEACHER}


@dataclass(frozen=True)
class OneTurn:
    """`n` answers of one writer to every prompt; the student builds the prompt, once, for whoever writes or reads."""

    n: int = 1
    sampling: Sampling = Sampling()
    writer: str = "student"

    def __post_init__(self) -> None:
        require(self.n >= 1, "samples per prompt n", got=self.n, expected="at least 1")

    @property
    def writers(self) -> tuple[str, ...]:
        return (self.writer,)

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        student: Writer = cast["student"]
        prompts = [student.render(visit.problem.messages) for visit in visits]
        seeds = [[visit.seed(sample) for sample in range(self.n)] for visit in visits]
        pieces = write_for(cast[self.writer], [visit.problem for visit in visits], prompts, self.sampling, seeds)
        return [
            self._group(student, visit, prompt, written)
            for visit, prompt, written in zip(visits, prompts, pieces, strict=True)
        ]

    def _group(self, student: Writer, visit: Visit, prompt: Any, pieces: Sequence[Piece]) -> Group:
        author = AUTHORS.get(self.writer, OTHER)
        rollouts = tuple(
            continued(prompt, piece, visit.problem, self.sampling, author, student.decode(piece.tokens))
            for piece in pieces
        )
        seeded = tuple(replace(rollout, seed=visit.seed(sample)) for sample, rollout in enumerate(rollouts))
        return Group(visit.problem, seeded, student.render)


def writers_of(samples: Iterable[Sample]) -> tuple[str, ...]:
    """Whoever writes in any of them, as far as they say."""
    return tuple(who for sample in samples for who in getattr(sample, "writers", ()))


@dataclass(frozen=True)
class Coin:
    """One coin per batch: with probability `p` it comes from `heads`, else from `tails` (GKD, 2306.13649, Alg. 1)."""

    p: float
    heads: Sample
    tails: Sample
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 <= self.p <= 1, "the share of student-written batches (lam)", got=self.p, expected="a number in [0, 1]"
        )

    @property
    def writers(self) -> tuple[str, ...]:
        return writers_of([self.heads] * (self.p > 0) + [self.tails] * (self.p < 1))

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        run = visits[0].run_seed if visits else 0
        coin = np.random.Generator(np.random.Philox(key=[run % 2**64, step])).random()
        return (self.heads if coin < self.p else self.tails)(cast, visits, step)


@dataclass(frozen=True)
class Together:
    """What several samples write for a problem, as one group."""

    samples: tuple[Sample, ...]

    @property
    def writers(self) -> tuple[str, ...]:
        return writers_of(self.samples)

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        written = zip(*(sample(cast, visits, step) for sample in self.samples), strict=True)
        return [
            replace(groups[0], rollouts=tuple(rollout for group in groups for rollout in group.rollouts))
            for groups in written
        ]


@dataclass(frozen=True)
class Solutions:
    """Nobody writes: every visit brings the problem's own solution, as a group of its own that nobody graded.

    `solution` names where the text stands: answer, privileged_context, or another column of the task. Nobody drew its
    rows, so that `behaviour` is certain (0) and `untruncated` is not known (nan). What a step measures passes over rows
    of the author DATA; where nobody else writes, another `author` makes them the ones that it is about.
    """

    solution: str = "solution"
    author: int = DATA

    def check(self, cast: Cast) -> None:
        """A text can only be given to a student that spells."""
        if not hasattr(cast["student"], "encode"):
            raise MethodError(
                f"{cast['student'].name} cannot be given a solution to copy",
                got=f"a {type(cast['student']).__name__} as student",
                expected="a language model",
            )

    def check_problem(self, problem: Problem, cast: Cast) -> None:
        """Every problem has a solution that the student could have written."""
        rollout, context = self._rollout(problem, cast["student"]), getattr(cast["student"], "context", None)
        if context is not None and len(rollout.tokens) > context:
            raise DataError(
                f"the solution of problem {problem.id} does not fit the context of {cast['student'].name}",
                got=f"{len(rollout.tokens)} tokens",
                expected=f"at most {context}",
                remedy="Drop or shorten that problem",
            )

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        student: Spelling = cast["student"]
        return [Group(v.problem, (self._rollout(v.problem, student),), student.render) for v in visits]

    def _rollout(self, problem: Problem, student: Spelling) -> Rollout:
        text = self._text(problem)
        tokens = student.encode(text)
        piece = Piece(tokens, np.zeros(len(tokens)), np.full(len(tokens), np.nan), End.STOP, tags={"reward": np.nan})
        return continued(student.render(problem.messages), piece, problem, Sampling(), self.author, text)

    def _text(self, problem: Problem) -> str:
        known = {**problem.data, "answer": problem.answer, "privileged_context": problem.privileged_context}
        text = known.get(self.solution)
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"problem {problem.id} has no solution in {self.solution!r}, and this method learns from it",
                got=sorted(name for name, value in known.items() if isinstance(value, str)),
                expected="a text that the student could have written",
                remedy="Name the column that has one with --solution",
            )
        return text


@dataclass(frozen=True)
class WithSolutions(Solutions):
    """What `fresh` writes, and after it every visit's solution."""

    fresh: Sample = field(kw_only=True)

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        return [*self.fresh(cast, visits, step), *super().__call__(cast, visits, step)]


@dataclass
class Traces:
    """One fixed trace per problem, written by `writer` the first time that the problem is met.

    This is the data set of off-policy distillation. It is a state: a resumed run must learn from the same traces.
    """

    sampling: Sampling = Sampling()
    writer: str = "teacher"
    written: dict[str, Piece] = field(default_factory=dict[str, Piece])

    @property
    def writers(self) -> tuple[str, ...]:
        return (self.writer,)

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        missing = list({v.problem.id: v for v in visits if v.problem.id not in self.written}.values())
        if missing:
            first = [Visit(visit.problem, 0, visit.run_seed) for visit in missing]
            for group in OneTurn(1, self.sampling, self.writer)(cast, first, step):
                self._keep(group)
        return [self._group(cast["student"], visit) for visit in visits]

    def _keep(self, group: Group) -> None:
        (rollout,) = group.rollouts
        self.written[group.problem.id] = Piece(
            rollout.decisions, rollout.columns["behaviour"], rollout.columns["untruncated"], rollout.end
        )

    def _group(self, student: Writer, visit: Visit) -> Group:
        piece = self.written[visit.problem.id]
        prompt = student.render(visit.problem.messages)
        text = student.decode(piece.tokens)
        author = AUTHORS.get(self.writer, OTHER)
        rollout = continued(prompt, piece, visit.problem, self.sampling, author, text)
        return Group(visit.problem, (replace(rollout, seed=visit.seed(0)),), student.render)

    def state_dict(self) -> dict[str, Any]:
        return {
            name: {
                "tokens": piece.tokens.tolist(),
                "behaviour": piece.behaviour.tolist(),
                "untruncated": piece.untruncated.tolist(),
                "end": str(piece.end),
                "dtype": str(piece.behaviour.dtype),
            }
            for name, piece in self.written.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.written = {
            name: Piece(
                np.asarray(piece["tokens"], np.int32),
                np.asarray(piece["behaviour"], piece["dtype"]),
                np.asarray(piece["untruncated"], piece["dtype"]),
                End(piece["end"]),
            )
            for name, piece in state.items()
        }
