"""What is averaged over what: from the rows that are kept to their weights over one whole update.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.errors import one_of
from opd.rows import Rows


def token_mean(rows: Rows) -> Tensor:
    """[N] every kept row of the update counts the same: 1 / (number of kept rows)."""
    kept = _kept(rows)
    return kept / kept.sum().clamp(min=1)  # no kept row at all: every weight is 0


def sequence_mean(rows: Rows) -> Tensor:
    """[N] the mean over sequences of each sequence's own token mean: a row of a short answer weighs more."""
    kept, per_row = _kept(rows), _per_sequence(rows)
    alive = torch.unique(rows["sequence"][rows["keep"]]).numel()
    return kept / per_row.clamp(min=1) / max(alive, 1)


def sequence_sum(rows: Rows) -> Tensor:
    """[N] the mean over sequences of each sequence's sum: the unbiased form of a sequence-level objective."""
    alive = torch.unique(rows["sequence"][rows["keep"]]).numel()
    return _kept(rows) / max(alive, 1)


MEANS = {"token_mean": token_mean, "sequence_mean": sequence_mean, "sequence_sum": sequence_sum}


def named(name: str) -> Callable[[Rows], Tensor]:
    """The mean with this name."""
    one_of("mean", name, MEANS)
    return MEANS[name]


@dataclass(frozen=True)
class Weighted:
    """[N] another mean in which rows count by a column of weights, its sum unchanged: for tokens sum w x / sum w."""

    mean: Callable[[Rows], Tensor] = token_mean
    column: str = "weight"

    def __call__(self, rows: Rows) -> Tensor:
        plain = self.mean(rows)
        weighted = plain * torch.where(rows["keep"], rows[self.column], 0.0)
        return weighted * (plain.sum() / weighted.sum()) if bool(weighted.any()) else weighted


def _kept(rows: Rows) -> Tensor:
    return rows["keep"].to(torch.float64)


def _per_sequence(rows: Rows) -> Tensor:
    """[N] kept rows in the sequence of each row."""
    _, inverse = torch.unique(rows["sequence"], return_inverse=True)
    return torch.zeros(int(inverse.max()) + 1, dtype=torch.float64, device=inverse.device).scatter_add(
        0, inverse, _kept(rows)
    )[inverse]
