"""What all teachers behind servers do alike."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

from opd.protocols import Hear, Student, Want
from opd.rollout import Rollout
from opd.teachers.early import Columns, Early, Read


class Remote:
    """Answers of a model that stays as it is, from whoever of `replicas` is free."""

    live = False
    replicas: Any  # Replicas, of whatever kind

    @cached_property
    def early(self) -> Early:
        return Early()

    def hearing(self, want: Want) -> Hear:
        """Begins a batch: texts that are passed to the result are asked about at once, and `read` need not ask again.

        What was asked ahead for the last batch and is still here is forgotten, so that no batch depends on another.
        """
        self.early.forget(self.early.waiting)

        def hear(texts: Sequence[Rollout]) -> None:
            if new := self.early.unasked(texts, want):
                self.early.add(new, want, *self._sent(new, want))

        return hear

    def _columns(self, texts: Sequence[Rollout], want: Want) -> list[Columns]:
        """What is said of every text, as far as it was not asked ahead by asking now."""
        known = self.early.take(texts, want, self.replicas.wait)
        if rest := [text for i, text in enumerate(texts) if i not in known]:
            answers, read = self._sent(rest, want)
            new = iter(read(self.replicas.wait(answers)))
            known |= {i: next(new) for i in range(len(texts)) if i not in known}
        return [known[i] for i in range(len(texts))]

    def _sent(self, texts: Sequence[Rollout], want: Want) -> tuple[Future[Any], Read]:
        """Questions about these texts are on their way: their answers, and how to read them."""
        raise NotImplementedError

    def tell(self) -> dict[str, float]:
        """What asking has cost since this was last told."""
        return {**self.replicas.tell(), **self.early.tell()}

    def give_up(self) -> None:
        """What does not answer now is not asked again: somebody wants to stop."""
        self.replicas.hurried = True

    def follow(self, student: Student, step: int) -> None:
        """It stays as it is."""
