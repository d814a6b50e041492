"""Texts of the student go to whoever is going to read them as soon as they have ended, while others are being written.

Only what will be asked anyway is asked ahead: about rollouts as they were written, where no earlier answer is needed
for the question. When a text is passed on follows from the texts and never from time, so that a seed fixes what is
asked together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opd.method import Method
from opd.protocols import Cast, Hear
from opd.rollout import GIVEN, STUDENT, Array, Piece, Problem, Rollout, Sampling
from opd.teach import as_written

REREAD = 0.25  # the share of what is read that may be a prompt read once more; with more of it a text is held back


class Aloud:
    """The student as it is, but that `hearers` get what it writes for a problem, text by text.

    `rows` counts the decisions that it wrote so, `ahead` those of texts that were passed on while it was still writing.
    """

    def __init__(self, student: Any, hearers: Sequence[Hear]) -> None:
        self.student, self.hearers = student, hearers
        self.rows = self.ahead = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.student, name)

    def write_for(
        self, problems: Sequence[Problem], prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Piece]]:
        told = Telling(problems, prompts, [len(own) for own in seeds], self.passed_on)
        pieces = self.student.write_aloud(prompts, sampling, seeds, told)
        self.rows += sum(len(piece.tokens) for some in pieces for piece in some)
        return pieces

    def passed_on(self, texts: Sequence[Rollout]) -> None:
        self.ahead += sum(text.n for text in texts)
        for hear in self.hearers:
            hear(texts)


@dataclass
class Telling:
    """Passes on what is still of use before everything is written; `left` counts the texts of each prompt to come.

    A prompt that is long beside its texts is read once for all of them, if they are asked about together: such a text
    waits for its siblings.
    """

    problems: Sequence[Problem]
    prompts: Sequence[Array]
    left: list[int]
    pass_on: Hear
    held: dict[int, list[Array]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.siblings = tuple(self.left)

    def __call__(self, texts: Sequence[tuple[int, Array]]) -> None:
        """Texts that have ended: the number of each one's prompt, and its tokens [n]."""
        for i, tokens in texts:
            self.left[i] -= 1
            self.held[i].append(tokens)
        ready = dict.fromkeys(i for i, tokens in texts if not self.left[i] or not self.waits(i, tokens))
        if ready and any(self.left):
            self.pass_on([self.rollout(i, tokens) for i in ready for tokens in self.held.pop(i)])

    def waits(self, i: int, tokens: Array) -> bool:
        """Whether prompt i would be too much of what is read for this text alone."""
        n, prompt = self.siblings[i], len(self.prompts[i])
        return (n - 1) * prompt >= REREAD * n * (prompt + len(tokens))

    def rollout(self, i: int, tokens: Array) -> Rollout:
        prompt = np.asarray(self.prompts[i], np.int32)
        author = np.repeat([GIVEN, STUDENT], [len(prompt), len(tokens)]).astype(np.int8)
        return Rollout(np.concatenate([prompt, tokens]), author, self.problems[i])


def overheard(method: Method, cast: Cast) -> Cast:
    """The cast in which the student's texts are heard, if it can tell of them and somebody can make use of it."""
    if not hasattr(cast["student"], "write_aloud"):
        return cast
    begun = [(getattr(cast[who], "hearing", None), want) for who, want in as_written(method.teach)]
    hearers = [hear for begin, want in begun if begin and (hear := begin(want))]
    return {**cast, "student": Aloud(cast["student"], hearers)} if hearers else cast


def share(cast: Cast) -> dict[str, float]:
    """Of what the student wrote the share that was passed on before all was written; nothing where nobody hears."""
    student = cast["student"]
    return {"ahead": student.ahead / student.rows} if isinstance(student, Aloud) and student.rows else {}
