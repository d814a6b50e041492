"""A teacher in this process: another model of transformers, in its own precision and on its own device."""

from __future__ import annotations

from collections.abc import Sequence

from opd.engines.hf import HFModel
from opd.engines.hf_write import Reading
from opd.protocols import Answer, Student, Want
from opd.rollout import Array, Message, Piece, Rollout, Sampling

CAN = frozenset({"chosen", "topk", "gather", "dist", "inner", "text"})


class LocalTeacher:
    """Reads and writes with a model that never changes; it can answer everything."""

    can = CAN
    live = False

    def __init__(self, engine: HFModel, name: str = "teacher") -> None:
        self.engine, self.name = engine, name
        for p in engine.model.parameters():
            p.requires_grad_(False)

    @property
    def context(self) -> int:
        return self.engine.context

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        return self.engine.read(contexts, want)

    def follow(self, student: Student, step: int) -> None:
        """It stays as it is."""

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        return self.engine.write(prompts, sampling, seeds)

    def reading(self, prompts: Sequence[Array], steps: int) -> Reading:
        """Texts that somebody else writes, read as they grow."""
        return self.engine.reading(prompts, steps)

    def render(self, messages: Sequence[Message]) -> Array:
        return self.engine.render(messages)

    def decode(self, tokens: Array) -> str:
        return self.engine.decode(tokens)
