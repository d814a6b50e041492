"""What is examined: a student, a teacher, a task and a method, every model loaded once and no optimizer yet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from opd import cast as casting
from opd.errors import DataError, ModelError
from opd.method import Method, plain
from opd.parts.sample import Coin, OneTurn, WithSolutions
from opd.parts.views import only_written
from opd.protocols import Cast, Task
from opd.rollout import Problem, Sampling
from opd.settings import Settings
from opd.tasks import load_task

if TYPE_CHECKING:
    from opd.engines.hf import HFModel

LOOKED_AT = 64  # problems whose texts are compared: the ones with the longest prompts


@dataclass(frozen=True)
class Case:
    """One planned run. Two tokenizers that differ are no error here: the check of the token map says so."""

    settings: Settings
    method: Method
    task: Task
    cast: Cast

    @classmethod
    def open(cls, settings: Settings) -> Case:
        """Everything that a run needs; a model or task that cannot be read is an error here as it is there."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        method = settings.build_method()
        task = load_task(settings.task)
        cast = casting.opened(settings, method, getattr(task, "world", None))
        with suppress(ModelError):  # different tokens, which is a finding
            cast = casting.joined(settings, cast)
        return cls(settings, method, task, cast)

    @property
    def student(self) -> HFModel:
        return self.cast["student"]

    @property
    def teacher(self) -> Any:
        """None for a method that asks nobody."""
        return self.cast.get("teacher")

    @property
    def speaks(self) -> bool:
        """The student is a language model; a policy of another kind has no tokens to look at."""
        return hasattr(self.student, "tokenizer")

    @property
    def reader(self) -> HFModel | None:
        """The teacher's own model in this process; None for a copy of the student and for a teacher elsewhere."""
        engine = getattr(self.teacher, "engine", None)
        return engine if hasattr(engine, "model") else None

    @property
    def reads(self) -> bool:
        """The teacher gives log-probs of any text, not of a store's alone."""
        return casting.reads(self.teacher)

    @property
    def together(self) -> bool:
        """Student and teacher share a device."""
        return self.reader is None or self.reader.device == self.student.device

    @property
    def is_copy(self) -> bool:
        return getattr(self.teacher, "student", None) is self.student

    @property
    def shown_more(self) -> bool:
        """The teacher reads another prompt than the student wrote after."""
        return any(ask.view not in (plain, only_written) for ask in self.method.teach)

    @cached_property
    def problems(self) -> Sequence[Problem]:
        """Problems with the longest prompts, in characters."""
        everything = (*self.task.train, *self.task.held_out)
        return sorted(everything, key=lambda p: -sum(len(m["content"]) for m in p.messages))[:LOOKED_AT]

    @cached_property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt among those."""
        return max((self.prompt_length(problem) for problem in self.problems), default=0)

    def prompt_length(self, problem: Problem) -> int:
        """Tokens of a prompt; 0 for one that cannot be rendered, which a check of its own says."""
        try:
            return len(self.student.render(problem.messages))
        except DataError:
            return 0

    @property
    def writing(self) -> OneTurn:
        """How the student writes under this method; a method whose student never writes: one plain sample."""
        sample = self.method.sample
        while isinstance(sample, Coin | WithSolutions):
            sample = sample.heads if isinstance(sample, Coin) else sample.fresh
        return sample if isinstance(sample, OneTurn) and sample.writer == "student" else OneTurn(1, Sampling())
