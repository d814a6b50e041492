"""Teachers that are the student itself: as it is, as it was at the start or k batches ago, its average, or between.

A copy holds only the values of what learns and lends them to the student's own module while it reads or writes, so
a LoRA student shares its base with all its copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.dist import HeadDist, TopDist
from opd.engines.hf import HFModel
from opd.errors import SettingError, TeacherError
from opd.protocols import Answer, Student, Want
from opd.rollout import Array, Message, Piece, Rollout, Sampling
from opd.teachers.local import CAN

CHUNK = 512  # decisions whose [V] distributions exist at the same time


class Itself:
    """The student as it is now: its answers change after every update."""

    can = CAN
    live = True

    def __init__(self, student: HFModel, name: str = "teacher") -> None:
        self.student, self.name = student, name

    @property
    def context(self) -> int:
        return self.student.context

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


class TrustRegion(Itself):
    """Logits a share `rate` of the way from the student as it was at the start to what it is now.

    The distribution start^(1 - rate) now^rate, normalised: it never goes far from the start (SDPO, arXiv 2601.20802,
    its "trust-region" teacher, from the released code). Every reading is two, and nothing is written.
    """

    can = frozenset({"chosen", "topk", "gather", "dist"})

    def __init__(self, student: HFModel, rate: float, name: str = "teacher") -> None:
        if not 0 <= rate <= 1:
            raise SettingError("the rate of a trust region", got=rate, expected="0 to 1")
        super().__init__(student, name)
        self.start, self.rate = Frozen(student, name), rate

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        start, now = (one.read(contexts, Want(dist=True)).dist for one in (self.start, self.student))
        assert isinstance(start, HeadDist) and isinstance(now, HeadDist)  # what a student answers
        dist = between(start, now, self.rate)
        parts = [dist.index(places) for places in torch.arange(len(dist)).split(CHUNK)]
        chosen = torch.cat([part.chosen for part in parts]) if want.chosen else None
        gathered = None
        if want.gather:
            ids = torch.from_numpy(np.concatenate([one.columns[want.gather] for one in contexts]))
            gathered = torch.cat([part.at(some) for part, some in zip(parts, ids.split(CHUNK), strict=True)])
        if want.topk and not want.dist:
            best = [part.top(want.topk) for part in parts]
            values = torch.cat([part.at(ids) for part, ids in zip(parts, best, strict=True)])
            return Answer(TopDist(torch.cat(best), values, dist.tokens, chosen), chosen, gathered)
        return Answer(dist if want.dist else None, chosen, gathered)

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        raise TeacherError(f"{self.name} was asked to write", got="self:trust, which reads", expected="another copy")

    def state_dict(self) -> dict[str, Any]:
        return self.start.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.start.load_state_dict(state)


def between(start: HeadDist, now: HeadDist, rate: float) -> HeadDist:
    """Distributions with the logits (1 - rate) start + rate now, as one hidden state and one head again."""
    hidden = [(1 - rate) * start.hidden, rate * now.hidden]
    if start.head.data_ptr() == now.head.data_ptr():  # adapters leave the head alone
        return HeadDist(hidden[0] + hidden[1], now.head, now.tokens, now.vocab)
    return HeadDist(torch.cat(hidden, -1), torch.cat([start.head, now.head], -1), now.tokens, now.vocab)
