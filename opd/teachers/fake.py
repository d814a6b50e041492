"""A teacher that answers from a table: the narrow seam at which everything above it is tested without a model.

Axes: N rows, n rows of one context, S states, V vocabulary, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from opd.dist import HeadDist, TableDist, TopDist
from opd.engines.sampling import draw, truncate, uniforms
from opd.errors import TeacherError
from opd.protocols import CAPABILITIES, EVERY_LAYER, Answer, Student, Want
from opd.rollout import Array, End, Message, Piece, Rollout, Sampling

Table = Tensor | Callable[[Rollout], Tensor]


class FakeTeacher:
    """Answers every question from `table`.

    table: log-probs [S, V], looked up by the token before the decision (a bigram world), or a function of the context
    that gives the [n, V] log-probs of its rows. inner: the same per layer, [S, D] looked up by the decided token.
    head [V, D]: with it the table holds hidden states [S, D] in place of log-probs. `asked` records every pass.
    """

    def __init__(
        self,
        table: Table,
        name: str = "teacher",
        *,
        head: Tensor | None = None,
        inner: Mapping[int, Table] | None = None,
        can: frozenset[str] = frozenset(CAPABILITIES) - {"values"},
        live: bool = False,
        stops: Sequence[int] = (),
    ) -> None:
        self.table, self.head, self.name, self.can, self.live = table, head, name, can, live
        self.inner = dict(inner or {})
        self.stops = frozenset(stops)
        self.asked: list[tuple[int, Want]] = []

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        if missing := sorted(want.needs - self.can):
            raise TeacherError(f"{self.name} cannot answer", got=missing, expected=sorted(self.can))
        self.asked.append((len(contexts), want))
        tokens = torch.from_numpy(np.concatenate([c.decisions for c in contexts])).long()
        found = torch.cat([_look_up(self.table, c, c.positions - 1) for c in contexts])
        layers = self.inner if EVERY_LAYER in want.layers else want.layers
        states = {k: torch.cat([_look_up(self._layer(k), c, c.positions) for c in contexts]) for k in layers}
        whole = TableDist(found, tokens, states) if self.head is None else self._projected(found, tokens, states)
        chosen = whole.chosen if want.chosen else None
        gathered = None
        if want.gather:
            gathered = whole.at(torch.from_numpy(np.concatenate([c.columns[want.gather] for c in contexts])).long())
        if want.dist or not (want.topk or want.layers):
            return Answer(whole if want.dist else None, chosen, gathered)
        ids = whole.top(want.topk)
        return Answer(TopDist(ids, whole.at(ids), tokens, chosen, states), chosen, gathered)

    def follow(self, student: Student, step: int) -> None:
        """A table does not learn."""

    def _projected(self, hidden: Tensor, tokens: Tensor, states: dict[int, Tensor]) -> HeadDist:
        assert self.head is not None
        return HeadDist(hidden, self.head, tokens, len(self.head), states=states)

    def _layer(self, layer: int) -> Table:
        if layer not in self.inner:
            raise TeacherError(f"{self.name} has no layer {layer}", got=layer, expected=sorted(self.inner))
        return self.inner[layer]

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        pairs = zip(prompts, seeds, strict=True)
        return [[self._piece(prompt, sampling, seed) for seed in own] for prompt, own in pairs]

    def _piece(self, prompt: Array, sampling: Sampling, seed: int) -> Piece:
        """One token after the other; only a table that is a tensor can write."""
        table = self.table
        assert isinstance(table, Tensor), "a function of finished contexts cannot write"
        limit, stops = sampling.max_new or 8, self.stops | set(sampling.stop)
        uniform = uniforms([seed], limit)
        token, ids, drawn, plain = int(prompt[-1]), list[int](), list[float](), list[float]()
        while len(ids) < limit and (not ids or token not in stops):
            found = table[token][None]
            logprobs = found if self.head is None else (found @ self.head.T).log_softmax(-1)
            last = logprobs if sampling.greedy else truncate(logprobs, sampling)
            token = int(logprobs.argmax() if sampling.greedy else draw(last, uniform[:, len(ids)]))
            ids.append(token)
            drawn.append(0.0 if sampling.greedy else float(last[0, token]))
            plain.append(float(logprobs[0, token]))
        end = End.STOP if token in stops else End.LENGTH
        return Piece(np.array(ids, np.int32), np.array(drawn), np.array(plain), end)

    def render(self, messages: Sequence[Message]) -> Array:
        """Numbers separated by spaces are the ids themselves."""
        return np.array([int(word) for m in messages for word in m["content"].split()], np.int32)

    def decode(self, tokens: Array) -> str:
        return " ".join(str(int(token)) for token in tokens)


def _look_up(table: Table, context: Rollout, positions: Array) -> Tensor:
    """[n, ...] entries of a table for the tokens at these positions."""
    if isinstance(table, Tensor):
        return table[torch.from_numpy(context.tokens[positions]).long()]
    return table(context)
