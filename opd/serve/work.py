"""Questions become passes of the engine, and passes become blocks of answers.

Axes: N rows, n rows of one pass, K support.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.engines.hf import HFModel
from opd.errors import TeacherError
from opd.protocols import resolve_layers
from opd.serve.wire import Block, Reading, Writing, pieces

Question = Reading | Writing


class Engine:
    """A model that answers one question, or several of one kind in common passes.

    `share`: a prompt of several texts is read once. Both change last bits; what one question is answered depends on
    nothing but the question unless several are answered together.
    """

    def __init__(self, model: HFModel, share: bool) -> None:
        self.model, self.share, self.real = model, share, model.vocab

    def alike(self, one: Question, other: Question) -> bool:
        """Whether both can be answered in the same passes."""
        if isinstance(one, Writing) or isinstance(other, Writing):
            return False
        return (one.want, one.vocab, _named(one)) == (other.want, other.vocab, _named(other))

    def check(self, question: Question) -> None:
        """Refuses what the model cannot read, before anything waits."""
        if isinstance(question, Writing):
            return self.model.check(question.prompts, room=1)
        self.model.check([context.tokens for context in question.contexts])
        if question.want.layers:
            resolve_layers(question.want.layers, len(self.model.blocks), self.model.name)

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Block]]:
        """Blocks as they are ready, each with the number of the question that it belongs to."""
        self.model.vocab = questions[0].vocab
        try:
            first = questions[0]
            if isinstance(first, Writing):
                yield 0, self._written(first)
            else:
                yield from self._read([q for q in questions if isinstance(q, Reading)])
        finally:
            self.model.vocab = self.real

    def _written(self, asked: Writing) -> Block:
        return pieces(self.model.write(asked.prompts, asked.sampling, asked.seeds))

    def _read(self, questions: Sequence[Reading]) -> Iterator[tuple[int, Block]]:
        contexts = [context for question in questions for context in question.contexts]
        starts = np.cumsum([0, *(len(question.contexts) for question in questions)])
        owner = np.repeat(np.arange(len(questions)), np.diff(starts))
        for batch, found in self.model.answers(contexts, questions[0].want, self.share):
            batch, found = np.asarray(batch), {str(name): _slim(name, x) for name, x in found.items()}
            check_finite(found)
            whose = owner[batch]
            for number in sorted(set(whose.tolist())):
                own = batch[whose == number]
                mine = _rows_of(found, whose == number, [contexts[i].n for i in batch])
                texts = torch.from_numpy((own - starts[number]).astype(np.int32))
                yield number, Block({"texts": texts, **mine})


def _named(question: Reading) -> int:
    """K of the ids that are named, 0 where none are."""
    return question.contexts[0].columns[question.want.gather].shape[1] if question.want.gather else 0


def _slim(name: Any, x: Tensor) -> Tensor:
    return x.int() if name == "ids" else x


def _rows_of(found: dict[str, Tensor], mine: np.ndarray, sizes: Sequence[int]) -> dict[str, Tensor]:
    """The rows of some sequences of a pass."""
    if mine.all():
        return found
    rows = torch.from_numpy(np.repeat(mine, sizes))
    return {name: x[rows.to(x.device)] for name, x in found.items()}


def check_finite(found: dict[str, Tensor]) -> None:
    """A number that is none is not sent."""
    for name, x in found.items():
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise TeacherError(
                f"the model gave numbers that are not finite ({name})", remedy="Start the server with --dtype float32"
            )
