"""A teacher for whom one token of the student's stands for another: two models that end a text differently understand
each other.

Axes: N rows, n rows of one context, K support, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.dist import Dist, HeadDist, TableDist, TopDist
from opd.engines.hf_write import Reading
from opd.errors import TeacherError
from opd.protocols import Answer, Hear, Student, Want
from opd.rollout import Array, End, Message, Piece, Rollout, Sampling


class Renamed:
    """`teacher` under two exchanged names: what we call `ours` it reads and writes as `theirs`, and the other way.

    Exchanged are decisions, distributions and what it writes. Prompts are not: they are text of the student's template,
    in which the teacher sees what every teacher sees. An exchange, so that a distribution stays one.
    """

    def __init__(self, teacher: Any, ours: int, theirs: int) -> None:
        self.teacher, self.ours, self.theirs = teacher, ours, theirs
        self.name, self.can, self.live = teacher.name, teacher.can, teacher.live
        self.most = getattr(teacher, "most", {})
        self.engine = getattr(teacher, "engine", teacher)
        self._head: Tensor | None = None  # with two rows exchanged, made once for a teacher that does not change

    @property
    def context(self) -> int:
        """As many tokens as its teacher takes, where that is known."""
        return self.teacher.context

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        answer: Answer = self.teacher.read([self._as_theirs(c, want) for c in contexts], want)
        return answer if answer.dist is None else replace(answer, dist=self._as_ours(answer.dist))

    def hearing(self, want: Want) -> Hear | None:
        """As of a teacher elsewhere, who hears of texts in his own names."""
        begin = getattr(self.teacher, "hearing", None)
        hear = begin(want) if begin else None
        return (lambda texts: hear([self._as_theirs(text, want) for text in texts])) if hear else None

    def follow(self, student: Student, step: int) -> None:
        self.teacher.follow(student, step)

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """Pieces in our names, which end as the student's do."""
        stop = tuple(int(token) for token in self._exchanged(np.array(sampling.stop, np.int64)))
        pieces = self.teacher.write(prompts, replace(sampling, stop=stop), seeds)
        return [[self._piece(piece, sampling) for piece in some] for some in pieces]

    def reading(self, prompts: Sequence[Array], steps: int) -> Reading:
        """Texts that somebody else writes, read as they grow; it can do so where its teacher can."""
        return _Renamed(self.teacher.reading(prompts, steps), self.ours, self.theirs)

    def _piece(self, piece: Piece, sampling: Sampling) -> Piece:
        tokens = self._exchanged(piece.tokens)
        if piece.end == End.STOP and tokens[-1] not in sampling.stop:
            tokens[-1] = self.ours  # it may have ended with one of several stop tokens of its own
        return replace(piece, tokens=tokens)

    def render(self, messages: Sequence[Message]) -> Array:
        return self.teacher.render(messages)

    def decode(self, tokens: Array) -> str:
        return self.teacher.decode(self._exchanged(np.asarray(tokens)))

    def _exchanged(self, ids: Array) -> Array:
        """The same ids [...] with the two names exchanged; it is its own inverse."""
        return np.where(ids == self.ours, self.theirs, np.where(ids == self.theirs, self.ours, ids)).astype(ids.dtype)

    def _as_theirs(self, rollout: Rollout, want: Want) -> Rollout:
        """The rollout with its decisions, and the ids that are asked for, as the teacher calls them."""
        tokens = np.where(rollout.author > 0, self._exchanged(rollout.tokens), rollout.tokens)
        columns = rollout.columns
        if want.gather:
            columns = {**columns, want.gather: self._exchanged(columns[want.gather])}
        return replace(rollout, tokens=tokens, columns=columns)

    def _as_ours(self, dist: Dist) -> Dist:
        """The teacher's distributions over what we call the tokens."""
        match dist:
            case HeadDist():
                return replace(
                    dist, head=self._exchanged_head(dist.head), tokens=self._ids(dist.tokens), _logprobs=None
                )
            case TopDist():
                return replace(dist, ids=self._ids(dist.ids), tokens=self._ids(dist.tokens))
            case TableDist():
                return replace(dist, table=self._rows(dist.table.T).T, tokens=self._ids(dist.tokens))
            case _:
                raise TeacherError(f"{self.name} gave distributions whose tokens cannot be renamed", got=type(dist))

    def _ids(self, ids: Tensor) -> Tensor:
        exchanged = torch.where(ids == self.ours, self.theirs, ids)
        return torch.where(ids == self.theirs, self.ours, exchanged)

    def _exchanged_head(self, head: Tensor) -> Tensor:
        if self._head is None or self.live:
            self._head = self._rows(head)
        return self._head

    def _rows(self, x: Tensor) -> Tensor:
        exchanged = x.clone()
        exchanged[[self.ours, self.theirs]] = x[[self.theirs, self.ours]]
        return exchanged


class _Renamed:
    """A reading in our names."""

    def __init__(self, reading: Reading, ours: int, theirs: int) -> None:
        self.reading, self.ours, self.theirs, self.context = reading, ours, theirs, reading.context
        self.stops = frozenset({theirs: ours, ours: theirs}.get(token, token) for token in reading.stops)

    def logits(self) -> Tensor:
        logits = self.reading.logits()
        exchanged = logits.clone()
        exchanged[:, [self.ours, self.theirs]] = logits[:, [self.theirs, self.ours]]
        return exchanged

    def read(self, ids: Tensor) -> None:
        theirs = torch.where(ids == self.ours, self.theirs, torch.where(ids == self.theirs, self.ours, ids))
        self.reading.read(theirs)

    def select(self, rows: Tensor) -> None:
        self.reading.select(rows)
