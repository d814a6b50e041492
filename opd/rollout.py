"""A rollout is one model input of which some tokens were decided by somebody, and every decision becomes a row.

Axes: T tokens of a rollout, n decisions (rows) of a rollout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Message = dict[str, str]

GIVEN, STUDENT, TEACHER = 0, 1, 2
OTHER = 3  # a third model, or one of these at another time
DATA = 4  # nobody in this run: a text that came with the problem
REPEATED = 5  # a decision that was taken elsewhere, looked at once more after another prompt
UNWRITTEN = (DATA, REPEATED)  # what is learned from, but no number of a batch is about
TEACHER_ID = "teacher_id"  # in a problem's data: which of several teachers reads it


class End(StrEnum):
    """Why a piece of text ended."""

    STOP = "stop"  # a stop token was written
    LENGTH = "length"  # the limit of new tokens was reached


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature 0 is greedy; top_p 1, top_k 0 and min_p 0 leave the distribution whole."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new: int | None = None  # None: the writer's own limit
    stop: tuple[int, ...] = ()  # token ids beside the writer's own end-of-text ids

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Problem:
    """One question of a task: a text or a list of messages, with whatever grades or explains it."""

    id: str
    prompt: str | tuple[Message, ...]
    answer: str | None = None
    privileged_context: str | None = None
    data: dict[str, Any] = field(default_factory=dict[str, Any])  # what the task's own grader needs

    @property
    def messages(self) -> tuple[Message, ...]:
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt


@dataclass(frozen=True)
class Piece:
    """What a writer wrote after a context: [n] ids, and [n] log-probs under the distribution that drew each of them."""

    tokens: Array
    behaviour: Array  # log-prob after temperature and truncation: what really drew the token; 0 when greedy
    untruncated: Array  # log-prob of the model itself, at temperature 1
    end: End
    author: Array | None = None  # [n] where several took turns
    inputs: Array | None = None  # [n + 1, ...] what an environment showed before each decision, and after the last
    columns: dict[str, Array] = field(default_factory=dict[str, Array])  # [n] what else is known of each decision
    tags: dict[str, float] = field(default_factory=dict[str, float])  # one number for all of them


@dataclass(frozen=True)
class Rollout:
    """One model input. A row is a position whose author is not GIVEN."""

    tokens: Array  # [T] int32
    author: Array  # [T] int8: 0 given, 1 student, 2 others, 3 repeated
    problem: Problem
    sampling: Sampling = Sampling()
    end: End = End.STOP
    columns: dict[str, Array] = field(default_factory=dict[str, Array])  # [n, ...] per row
    tags: dict[str, float] = field(
        default_factory=dict[str, float]
    )  # one number for all rows: group, turn, reward, ...
    text: str = ""  # the decided part, decoded once, for graders and people
    feedback: str = ""  # what the task says of it in words, beside its grade
    seed: int | None = None  # of this sample of this visit: whatever else is drawn about it starts here
    inputs: Array | None = None  # [T, ...] observations: inputs[t] is what the decision at position t + 1 rests on

    def __post_init__(self) -> None:
        if self.tokens.shape != self.author.shape or self.tokens.ndim != 1:
            raise ValueError(
                f"tokens and author: got {self.tokens.shape} and {self.author.shape}, expected one [T] each"
            )
        if len(self.author) and self.author[0] != GIVEN:
            raise ValueError("the first token of a rollout: got a decision, expected a given token to condition on")
        if self.inputs is not None and len(self.inputs) != len(self.tokens):
            raise ValueError(f"inputs: got {len(self.inputs)} for {len(self.tokens)} positions")
        for name, column in self.columns.items():
            if len(column) != self.n:
                raise ValueError(
                    f"column {name!r} of rollout {self.problem.id}: got {len(column)} values for {self.n} rows"
                )

    @property
    def fed(self) -> Array:
        """[T, ...] what a model is fed: the observations where there are any, else the token ids."""
        return self.tokens if self.inputs is None else self.inputs

    @cached_property
    def positions(self) -> Array:
        """[n] token positions that somebody decided."""
        return np.flatnonzero(self.author > GIVEN)

    @cached_property
    def n(self) -> int:
        return int((self.author > GIVEN).sum())

    @property
    def repeated(self) -> bool:
        """Whether its decisions were taken elsewhere, so that nothing may count them again."""
        return bool((self.author == REPEATED).any())

    @cached_property
    def decisions(self) -> Array:
        """[n] ids of the decided tokens."""
        return self.tokens[self.author > GIVEN]

    @cached_property
    def written(self) -> bool:
        """Whether somebody in this run wrote it, and it is neither a text that came along nor a repetition."""
        return not np.isin(self.author, UNWRITTEN).any()

    def tagged(self, **tags: float) -> Rollout:
        return replace(self, tags={**self.tags, **tags})

    def with_columns(self, **columns: Array) -> Rollout:
        return replace(self, columns={**self.columns, **columns})

    def reworded(self, prompt: Sequence[int] | Array) -> Rollout:
        """The same decisions after another prompt: everything before the first decision is replaced."""
        first = int(self.positions[0])
        given = np.asarray(prompt, dtype=np.int32)
        tokens = np.concatenate([given, self.tokens[first:]])
        author = np.concatenate([np.zeros(len(given), np.int8), self.author[first:]])
        return replace(self, tokens=tokens, author=author)


def continued(
    prompt: Array, piece: Piece, problem: Problem, sampling: Sampling, author: int, text: str = ""
) -> Rollout:
    """The one-turn rollout: a given prompt, then a piece that `author` wrote, unless the piece says who did."""
    tokens = np.concatenate([np.asarray(prompt, np.int32), piece.tokens.astype(np.int32)])
    decided = np.full(len(piece.tokens), author, np.int8) if piece.author is None else piece.author.astype(np.int8)
    who = np.concatenate([np.zeros(len(prompt), np.int8), decided])
    columns = {"behaviour": piece.behaviour, "untruncated": piece.untruncated, **piece.columns}
    return Rollout(tokens, who, problem, sampling, piece.end, columns, dict(piece.tags), text, inputs=piece.inputs)


Render = Callable[[Sequence[Message]], Array]


@dataclass(frozen=True)
class Group:
    """All rollouts of one problem, and the student's own way of turning messages into ids (a view needs it)."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    render: Render


@dataclass(frozen=True)
class Visit:
    """The `number`-th time that a run meets a problem; all randomness of the visit comes from its seeds."""

    problem: Problem
    number: int
    run_seed: int

    def seed(self, sample: int) -> int:
        """A 64-bit seed from (run, problem, visit, sample) and nothing else, so that no global stream is shared."""
        key = f"{self.run_seed}/{self.problem.id}/{self.number}/{sample}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
