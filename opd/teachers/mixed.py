"""Distributions that several teachers gave: one column of the table, of which every row knows whose answer it is.

Heads of different models cannot be merged into one, so nothing is merged before a question is asked: each part answers
for its own rows, and the answers are put back in order.

Axes: N rows, n rows of one part, K support, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from opd.dist import Dist


def gathered(parts: Sequence[Tensor], owner: Tensor) -> Tensor:
    """[N, ...] the rows of several tensors [n, ...] put back in order; owner [N] says from which part each comes."""
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    whole = parts[0].new_empty(len(owner), *parts[0].shape[1:], dtype=dtype)
    for number, part in enumerate(parts):
        whole[owner == number] = part.to(whole)
    return whole


@dataclass
class Mixed:
    """N distributions in parts: part i holds, in order, the rows n with owner[n] = i; a part may be empty."""

    parts: tuple[Dist, ...]
    owner: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.owner)

    def index(self, rows: Tensor | slice) -> Mixed:
        place = torch.empty_like(self.owner)  # of every row within its part
        for number, part in enumerate(self.parts):
            place[self.owner == number] = torch.arange(len(part), device=place.device)
        owner, place = self.owner[rows], place[rows]
        return Mixed(tuple(part.index(place[owner == i]) for i, part in enumerate(self.parts)), owner)

    def to(self, device: torch.device) -> Mixed:
        return Mixed(tuple(part.to(device) for part in self.parts), self.owner.to(device))

    def tempered(self, temperature: float) -> Mixed:
        return replace(self, parts=tuple(part.tempered(temperature) for part in self.parts))

    @property
    def ready(self) -> bool:
        return all(part.ready for part in self.parts)

    @property
    def chosen(self) -> Tensor:
        return self._asked(lambda part: part.chosen)

    @property
    def inner(self) -> dict[int, Tensor]:
        states = [part.inner for part in self.parts]
        return {layer: gathered([state[layer] for state in states], self.owner) for layer in states[0]}

    def at(self, ids: Tensor) -> Tensor:
        ids = ids.to(self.owner.device)
        own = [ids[self.owner == number] for number in range(len(self.parts))]
        return gathered([part.at(some) for part, some in zip(self.parts, own, strict=True)], self.owner)

    def logprobs(self) -> Tensor:
        return self._asked(lambda part: part.logprobs())

    def top(self, k: int) -> Tensor:
        return self._asked(lambda part: part.top(k))

    def _asked(self, question: Callable[[Dist], Tensor]) -> Tensor:
        return gathered([question(part) for part in self.parts], self.owner)
