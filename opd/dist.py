"""A Dist is n next-token distributions, and student, teacher, top-K store and table all answer the same questions.

Axes: N rows, V vocabulary, K support, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from opd import maths
from opd.errors import TeacherError


class Dist(Protocol):
    """n conditional distributions over V tokens, each with the token that was decided there."""

    def __len__(self) -> int: ...
    def index(self, rows: Tensor | slice) -> Self: ...  # the distributions of some rows
    def to(self, device: torch.device) -> Self: ...  # the same on another device
    def tempered(self, temperature: float) -> Dist: ...
    @property
    def ready(self) -> bool: ...  # `chosen` is a look-up now, and no product has to be made for it
    @property
    def chosen(self) -> Tensor: ...  # [N] log-prob of the decided token
    def at(self, ids: Tensor) -> Tensor: ...  # [N] or [N, K] ids -> log-probs of the same shape
    def logprobs(self) -> Tensor: ...  # [N, V]; only ever for a chunk
    def top(self, k: int) -> Tensor: ...  # [N, K] ids, most probable first
    @property
    def inner(self) -> dict[int, Tensor]: ...  # layer -> [N, D] state after the decided token


class GradBuffer:
    """The gradient of a head [V, D], summed in at least float32 and made only when a loss first touches the head.

    One buffer for all chunks: its sum does not depend on the partition as a bfloat16 sum would, and no [V, D]
    temporary appears per chunk. A float32 parameter is its own buffer: autograd would make a copy of any other.
    """

    def __init__(self, head: Tensor) -> None:
        self.head = head
        self.sum: Tensor | None = None

    def add(self, logits_grad: Tensor, hidden: Tensor) -> None:
        if self.sum is None:
            self.sum = self._start()
        touched = self.sum[: logits_grad.shape[1]]
        if touched.dtype == hidden.dtype:
            touched.addmm_(logits_grad.T, hidden)
        else:
            touched.add_(logits_grad.T @ hidden)

    def _start(self) -> Tensor:
        dtype = torch.promote_types(self.head.dtype, torch.float32)
        if not self.head.is_leaf or self.head.dtype != dtype:
            return torch.zeros(self.head.shape, dtype=dtype, device=self.head.device)
        if self.head.grad is None:
            self.head.grad = torch.zeros_like(self.head)
        return self.head.grad

    def gradient(self) -> Tensor | None:
        """What is left to be sent to the head; None where it is already there."""
        return None if self.sum is None or self.sum is self.head.grad else self.sum.to(self.head.dtype)


class _Project(torch.autograd.Function):
    """hidden @ head.T [n, V], whose backward adds the head's gradient to a buffer instead of returning it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, buffer: GradBuffer) -> Tensor:
        ctx.save_for_backward(hidden, head)
        ctx.buffer = buffer
        return hidden @ head.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        hidden, head = ctx.saved_tensors
        grad = grads[0].to(head.dtype)
        ctx.buffer.add(grad, hidden)
        return grad @ head, None, None


def _project(hidden: Tensor, head: Tensor, buffer: GradBuffer) -> Tensor:
    return _Project.apply(hidden, head, buffer)  # pyright: ignore


@dataclass
class HeadDist:
    """Distributions as last hidden state and head: the form in which "everything" of a model is small.

    hidden [N, D]; head [V', D] of which the first `vocab` rows are real tokens (models pad their vocabularies
    differently); tokens [N] decided ids; grad_head collects the head's gradient when the head is to learn.
    """

    hidden: Tensor
    head: Tensor
    tokens: Tensor
    vocab: int
    temperature: float = 1.0
    states: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    grad_head: GradBuffer | None = None
    _logprobs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def width(self) -> int:
        return self.hidden.shape[-1]

    @property
    def inner(self) -> dict[int, Tensor]:
        return self.states

    def index(self, rows: Tensor | slice) -> HeadDist:
        states = {layer: _pick(state, rows) for layer, state in self.states.items()}
        hidden, tokens = _pick(self.hidden, rows), _pick(self.tokens, rows)
        known = None if self._logprobs is None else _pick(self._logprobs, rows)
        return replace(self, hidden=hidden, tokens=tokens, states=states, _logprobs=known)

    @classmethod
    def cat(cls, parts: Sequence[HeadDist]) -> HeadDist:
        """Distributions of one head, one after the other."""
        known = [part._logprobs for part in parts if part._logprobs is not None]
        return replace(
            parts[0],
            hidden=torch.cat([part.hidden for part in parts]),
            tokens=torch.cat([part.tokens for part in parts]),
            states={layer: torch.cat([part.states[layer] for part in parts]) for layer in parts[0].states},
            _logprobs=torch.cat(known) if len(known) == len(parts) else None,
        )

    def to(self, device: torch.device) -> HeadDist:
        """A copy of the rows on another device; the head moves too, so ask for it once."""
        states = {layer: state.to(device) for layer, state in self.states.items()}
        return replace(
            self, hidden=self.hidden.to(device), head=self.head.to(device), tokens=self.tokens.to(device), states=states
        )

    def detached(self) -> HeadDist:
        """The same distributions without gradient; logits that are known are not made again."""
        known = None if self._logprobs is None else self._logprobs.detach()
        return replace(self, hidden=self.hidden.detach(), grad_head=None, _logprobs=known)

    def tempered(self, temperature: float) -> HeadDist:
        return self if temperature == self.temperature else replace(self, temperature=temperature, _logprobs=None)

    def logits(self) -> Tensor:
        head = self.head[: self.vocab]
        raw = self.hidden @ head.T if self.grad_head is None else _project(self.hidden, head, self.grad_head)
        logits = maths.upcast(raw)
        return logits if self.temperature == 1.0 else logits / self.temperature

    def logprobs(self) -> Tensor:
        if self._logprobs is None:
            self._logprobs = self.logits().log_softmax(-1)
        return self._logprobs

    def at(self, ids: Tensor) -> Tensor:
        ids = ids.to(self.hidden.device)
        return self.logprobs().gather(-1, ids if ids.ndim == 2 else ids[:, None]).reshape(ids.shape)

    @property
    def ready(self) -> bool:
        return self._logprobs is not None

    @property
    def chosen(self) -> Tensor:
        return self.at(self.tokens)

    def top(self, k: int) -> Tensor:
        return self.logprobs().detach().topk(k, dim=-1).indices


def _pick(x: Tensor, rows: Tensor | slice) -> Tensor:
    return x[rows if isinstance(rows, slice) else rows.to(x.device)]


@dataclass
class TableDist:
    """Distributions written out: [N, V] log-probs. For tabular worlds, fakes and tests."""

    table: Tensor
    tokens: Tensor
    states: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def inner(self) -> dict[int, Tensor]:
        return self.states

    def index(self, rows: Tensor | slice) -> TableDist:
        return TableDist(self.table[rows], self.tokens[rows], {k: v[rows] for k, v in self.states.items()})

    def to(self, device: torch.device) -> TableDist:
        return TableDist(
            self.table.to(device), self.tokens.to(device), {k: v.to(device) for k, v in self.states.items()}
        )

    def tempered(self, temperature: float) -> TableDist:
        return replace(self, table=(self.table / temperature).log_softmax(-1))

    def logprobs(self) -> Tensor:
        return self.table

    def at(self, ids: Tensor) -> Tensor:
        return self.table.gather(-1, ids if ids.ndim == 2 else ids[:, None]).reshape(ids.shape)

    @property
    def ready(self) -> bool:
        return True

    @property
    def chosen(self) -> Tensor:
        return self.at(self.tokens)

    def top(self, k: int) -> Tensor:
        return self.table.topk(k, dim=-1).indices


@dataclass
class TopDist:
    """What is known of K tokens, ids and log-probs [N, K], and maybe of the decided one: its best, or those we named.

    Best come first, in the eyes of whoever chose them. Questions outside the store are errors, never a guess.
    """

    ids: Tensor
    values: Tensor
    tokens: Tensor
    known: Tensor | None = None  # [N] log-prob of the decided token
    states: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def inner(self) -> dict[int, Tensor]:
        return self.states

    def index(self, rows: Tensor | slice) -> TopDist:
        known = None if self.known is None else self.known[rows]
        return TopDist(
            self.ids[rows], self.values[rows], self.tokens[rows], known, {k: v[rows] for k, v in self.states.items()}
        )

    def to(self, device: torch.device) -> TopDist:
        known = None if self.known is None else self.known.to(device)
        states = {k: v.to(device) for k, v in self.states.items()}
        return TopDist(self.ids.to(device), self.values.to(device), self.tokens.to(device), known, states)

    def tempered(self, temperature: float) -> TopDist:
        if temperature == 1.0:
            return self
        raise TeacherError(
            "top-K answers cannot be brought to another temperature",
            got=temperature,
            expected=1.0,
            remedy="Use a teacher that gives hidden states, or loss temperature 1",
        )

    def logprobs(self) -> Tensor:
        raise TeacherError(
            "the whole distribution was asked of top-K answers",
            got=f"K={self.ids.shape[1]}",
            expected="a teacher that can 'dist'",
            remedy="Use a local teacher, or a top-K method",
        )

    def at(self, ids: Tensor) -> Tensor:
        if ids is self.ids:
            return self.values
        flat = ids if ids.ndim == 2 else ids[:, None]
        match = flat[:, :, None] == self.ids[:, None, :]  # [N, K', K]
        if not bool(match.any(-1).all()):
            return self._with_chosen(flat, match).reshape(ids.shape)
        return self.values.gather(1, match.int().argmax(-1)).reshape(ids.shape)

    def _with_chosen(self, ids: Tensor, match: Tensor) -> Tensor:
        inside = match.any(-1)
        is_chosen = ids == self.tokens[:, None]
        missing = ~inside & ~is_chosen if self.known is not None else ~inside
        if bool(missing.any()):
            row, column = (int(x) for x in missing.nonzero()[0])
            raise TeacherError(
                f"the teacher's top-K answers hold nothing about token {int(ids[row, column])} of row {row}",
                got=f"K={self.ids.shape[1]}",
                expected="a teacher that can 'gather'",
                remedy="Take the support from the teacher, or use a local or scoring-server teacher",
            )
        known = self.known if self.known is not None else self.values[:, 0]
        return torch.where(inside, self.values.gather(1, match.int().argmax(-1)), known[:, None].expand_as(ids))

    @property
    def ready(self) -> bool:
        return self.known is not None

    @property
    def chosen(self) -> Tensor:
        return self.known if self.known is not None else self.at(self.tokens)

    def top(self, k: int) -> Tensor:
        if k > self.ids.shape[1]:
            raise TeacherError(
                "more top tokens were asked than the teacher gave", got=k, expected=f"at most {self.ids.shape[1]}"
            )
        return self.ids if k == self.ids.shape[1] else self.ids[:, :k]
