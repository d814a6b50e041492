"""Counts the tokens that a teacher reads and writes, wherever in a method that happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd.protocols import Answer, Cast, Want, write_for
from opd.rollout import Array, Piece, Problem, Rollout, Sampling


class Metered:
    """A member of the cast as it is, with a count beside it: `tokens` read (prompt and answer) and written."""

    def __init__(self, member: Any) -> None:
        self.member, self.tokens = member, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.member, name)

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        self.tokens += sum(len(context.tokens) for context in contexts)
        return self.member.read(contexts, want)

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """A prompt is read once, however many answers follow it."""
        return self.counted(prompts, self.member.write(prompts, sampling, seeds))

    def write_for(
        self, problems: Sequence[Problem], prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Piece]]:
        return self.counted(prompts, write_for(self.member, problems, prompts, sampling, seeds))

    def counted(self, prompts: Sequence[Array], written: list[list[Piece]]) -> list[list[Piece]]:
        """What was written, after its tokens and those of the prompts were counted."""
        self.tokens += sum(map(len, prompts)) + sum(len(piece.tokens) for pieces in written for piece in pieces)
        return written


def metered(cast: Cast) -> dict[str, Any]:
    """The same cast with a meter on everybody but the student."""
    return {name: member if name == "student" else Metered(member) for name, member in cast.items()}


def count(cast: Cast) -> int:
    """Tokens that passed through the meters of a cast."""
    return sum(member.tokens for member in cast.values() if isinstance(member, Metered))
