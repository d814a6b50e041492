"""Teachers that are the student itself: as it is, as it was at the start, as it was k batches ago, or its average.

A copy holds only the values of what learns and lends them to the student's own module while it reads or writes, so
a LoRA student shares its base with all its copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from opd.engines.hf import HFModel
from opd.errors import SettingError
from opd.protocols import Answer, Student, Want
from opd.rollout import Array, Message, Piece, Rollout, Sampling
from opd.teachers.local import CAN


class Itself:
    """The student as it is now: its answers change after every update."""

    can = CAN
    live = True

    def __init__(self, student: HFModel, name: str = "teacher") -> None:
        self.student, self.name = student, name

    @contextmanager
    def posing(self) -> Iterator[None]:
        """While it lasts, the student's module is this teacher."""
        yield

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        with self.posing():
            return self.student.read(contexts, want)

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        with self.posing():
            return self.student.write(prompts, sampling, seeds)

    def render(self, messages: Sequence[Message]) -> Array:
        return self.student.render(messages)

    def decode(self, tokens: Array) -> str:
        return self.student.decode(tokens)

    def follow(self, student: Student, step: int) -> None:
        """It is the student; there is nothing to follow."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _Copy(Itself):
    """Own values for what learns; everything that does not learn is the student's."""

    def __init__(self, student: HFModel, name: str = "teacher") -> None:
        super().__init__(student, name)
        self.weights: dict[str, Tensor] = {key: p.detach().clone() for key, p in student.weights().items()}

    @contextmanager
    def posing(self) -> Iterator[None]:
        with self.student.wearing(self.weights):
            yield

    def state_dict(self) -> dict[str, Any]:
        return dict(self.weights)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for key, value in self.weights.items():
            value.copy_(state[key])


class Frozen(_Copy):
    """The student as it was when the run began. A LoRA student needs no copy: its base is that student."""

    live = False

    def __init__(self, student: HFModel, name: str = "teacher") -> None:
        if student.lora is None:
            super().__init__(student, name)
        else:
            Itself.__init__(self, student, name)
            self.weights = {}

    @contextmanager
    def posing(self) -> Iterator[None]:
        with self.student.wearing(self.weights) if self.student.lora is None else self.student.bare():
            yield


class Snapshot(_Copy):
    """The student as it was after the last batch whose number is a multiple of `every`; before that, at the start."""

    def __init__(self, student: HFModel, every: int, name: str = "teacher") -> None:
        if every < 1:
            raise SettingError("a snapshot every k batches", got=f"k={every}", expected="at least 1")
        super().__init__(student, name)
        self.every = every

    @torch.no_grad()
    def follow(self, student: Student, step: int) -> None:
        """`step` batches are done."""
        if step % self.every == 0:
            for key, p in self.student.weights().items():
                self.weights[key].copy_(p)


class EMA(_Copy):
    """The average teacher <- decay * teacher + (1 - decay) * student after every batch, kept in float32 or better."""

    def __init__(self, student: HFModel, decay: float, name: str = "teacher") -> None:
        if not 0 <= decay <= 1:
            raise SettingError("the decay of an average", got=decay, expected="0 to 1")
        super().__init__(student, name)
        self.decay = decay
        # In bfloat16 a step of 1 - decay = 0.001 would round to nothing.
        self.weights = {key: w if w.dtype == torch.float64 else w.float() for key, w in self.weights.items()}

    @torch.no_grad()
    def follow(self, student: Student, step: int) -> None:
        for key, p in self.student.weights().items():
            self.weights[key].mul_(self.decay).add_(p.to(self.weights[key].dtype), alpha=1 - self.decay)
