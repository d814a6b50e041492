"""Learning that is held to a few directions: from a step on, every matrix only moves where it has moved so far.

The test of functional sufficiency of arXiv 2606.07082: at a fifth of the training the right singular directions V of
W - W0 are taken, and from then on every gradient G becomes G V V^T. With Adam that does not keep the weights in the
subspace, because it scales every entry by its own history; `update` projects the step that the optimizer has taken.

Axes: M x N a weight matrix, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opd.geometry import matrices


class HeldToSubspace:
    """An optimizer around another; the matrices of `weights` are held from its step number `start` on (from 0)."""

    def __init__(self, inner: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], rank: int, start: int,
                 hold: str = "gradient") -> None:  # fmt: skip
        self.inner, self.rank, self.start, self.hold = inner, rank, start, hold
        whole = matrices({name: p.detach() for name, p in weights.items()})
        self.held = {name: p for name, p in weights.items() if name in whole and p.requires_grad}
        self.origin = {name: p.detach().clone() for name, p in self.held.items()}
        self.directions: dict[str, Tensor] = {}  # [r, N]
        self.done = 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self) -> None:
        if self.done == self.start:
            self.directions = {name: self._moved(name, p) for name, p in self.held.items()}
        if self.hold == "gradient":
            for name, v in self.directions.items():
                if (grad := self.held[name].grad) is not None:
                    grad.copy_(projected(grad, v))
        before = {name: self.held[name].clone() for name in self.directions} if self.hold == "update" else {}
        self.inner.step()
        for name, old in before.items():
            self.held[name].copy_(old + projected(self.held[name] - old, self.directions[name]))
        self.done += 1

    def _moved(self, name: str, p: Tensor) -> Tensor:
        """[r, N] the right singular directions in which this matrix has moved most."""
        change = (p - self.origin[name]).double()
        return torch.linalg.svd(change, full_matrices=False).Vh[: self.rank].to(p.dtype).contiguous()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "directions": dict(self.directions), "done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        self.directions = {name: v.to(self.held[name]) for name, v in state_dict["directions"].items()}
        self.done = state_dict["done"]


def projected(matrix: Tensor, directions: Tensor) -> Tensor:
    """[M, N], orthonormal [r, N] -> A V V^T [M, N]."""
    return matrix @ directions.T @ directions
