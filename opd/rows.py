"""A batch is a table with one row per decision; whatever is known about a decision is a column.

Axes: N rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from opd.dist import Dist
from opd.errors import MethodError, nearest
from opd.rollout import UNWRITTEN, Group, Rollout

BUILT_IN = ("token", "author", "position", "row", "length", "sequence", "group", "episode", "turn", "keep")


@dataclass(frozen=True)
class Rows:
    """Columns over N rows: narrow ones are tensors [N], wide ones a Dist or a tensor [N, K]."""

    columns: dict[str, Tensor | Dist]
    step: int = 0

    def __len__(self) -> int:
        return len(self.columns["keep"])

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def _get(self, name: str) -> Tensor | Dist:
        if name not in self.columns:
            raise MethodError(
                f"no column {name!r} in the table", expected=sorted(self.columns), remedy=nearest(name, self.columns)
            )
        return self.columns[name]

    def __getitem__(self, name: str) -> Tensor:
        column = self._get(name)
        if not isinstance(column, Tensor):
            raise MethodError(
                f"column {name!r} holds distributions", expected="a tensor", remedy=f"Read it as rows.dist({name!r})"
            )
        return column

    def dist(self, name: str) -> Dist:
        column = self._get(name)
        if isinstance(column, Tensor):
            raise MethodError(
                f"column {name!r} is a tensor", expected="distributions", remedy=f"Read it as rows[{name!r}]"
            )
        return column

    def plus(self, **columns: Tensor | Dist) -> Self:
        """The table with columns added or replaced."""
        for name, column in columns.items():
            if len(column) != len(self):
                raise MethodError(
                    f"column {name!r} does not fit the table", got=f"{len(column)} values", expected=f"{len(self)} rows"
                )
        return replace(self, columns={**self.columns, **columns})

    def masked(self, why: str, hit: Tensor) -> Self:
        """The table whose rows that are hit [N] lose `keep`; the column `masked.WHY` remembers them, and is counted."""
        column = f"masked.{why}"
        return self.plus(keep=self["keep"] & ~hit, **{column: hit | self[column] if column in self else hit})

    def index(self, rows: Tensor | slice) -> Self:
        """The rows with these numbers [n] (or this mask [N]); a slice copies nothing."""
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(-1)
        columns: dict[str, Tensor | Dist] = {
            name: column[rows] if isinstance(column, Tensor) else column.index(rows)
            for name, column in self.columns.items()
        }
        return replace(self, columns=columns)

    def narrow(self) -> dict[str, Tensor]:
        """The columns with one number per row: what credit may read, and what is written to disk."""
        return {k: v for k, v in self.columns.items() if isinstance(v, Tensor) and v.ndim == 1}

    @property
    def are_written(self) -> Tensor:
        """[N] bool: somebody in this run decided it, for the first time."""
        return torch.stack([self["author"] != nobody for nobody in UNWRITTEN]).all(0)

    def written(self) -> Self:
        """The narrow columns of the rows that were written: what may be counted."""
        return replace(self, columns=dict[str, Tensor | Dist](self.narrow())).index(self.are_written)

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        step: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """The table of a batch. Floating columns take `dtype`; every rollout must bring the same columns and tags."""
        rollouts = flatten(groups)
        parts = [_columns(rollout, number, group) for number, (rollout, group) in enumerate(rollouts)]
        names = _common(parts, [rollout for rollout, _ in rollouts])
        columns: dict[str, Tensor | Dist] = {}
        for name in names:
            tensor = torch.as_tensor(np.concatenate([p[name] for p in parts]))
            columns[name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        columns["keep"] = torch.ones(len(columns["token"]), dtype=torch.bool, device=device)
        return cls(columns, step)


def flatten(groups: Iterable[Group]) -> list[tuple[Rollout, int]]:
    """All rollouts of a batch in order, each with the number of its group; rollouts without a decision are dropped."""
    return [(rollout, number) for number, group in enumerate(groups) for rollout in group.rollouts if rollout.n]


def _columns(rollout: Rollout, sequence: int, group: int) -> dict[str, Any]:
    n = rollout.n
    own = {"group": group, "sequence": sequence, "episode": sequence, "turn": 0, "length": n} | rollout.tags
    return {
        "token": rollout.decisions.astype(np.int64),
        "author": rollout.author[rollout.author > 0].astype(np.int64),
        "position": rollout.positions.astype(np.int64),
        "row": np.arange(n),
        **{name: np.full(n, value) for name, value in own.items()},
        **rollout.columns,
    }


def _common(parts: list[dict[str, Any]], rollouts: list[Rollout]) -> list[str]:
    if not parts:
        raise MethodError(
            "the batch has no decision at all",
            expected="at least one token written",
            remedy="Look at the prompts and stop tokens",
        )
    names = list(parts[0])
    for part, rollout in zip(parts, rollouts, strict=True):
        if odd := set(names) ^ set(part):
            raise MethodError(
                f"rollouts of one batch differ in their columns: {sorted(odd)} of problem {rollout.problem.id}"
            )
    return names
