"""The distance between hidden states of student and teacher.

Axes: n rows of a chunk, D width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opd import maths
from opd.dist import Dist
from opd.errors import ModelError
from opd.protocols import EVERY_LAYER, Cast, depth_of
from opd.rows import Rows


@dataclass(frozen=True)
class StateDistance:
    """(1/|L|) sum over layers of (1/D) || h_S - h_T ||^2, states after the decided token (2606.06021, Eq. 6).

    layers: numbers of transformer blocks from 1, -1 for the last; (0,) for every one. normalised: both states are
    brought to length 1 first, as the code of its bridge branch does.
    """

    layers: tuple[int, ...] = (EVERY_LAYER,)
    teacher: str = "teacher"
    normalised: bool = False

    def check(self, cast: Cast) -> None:
        """Models that tell their width and depth are compared before step 1."""
        student, teacher = cast["student"], cast[self.teacher]
        ours, theirs = _width(student), _width(teacher)
        if ours and theirs and ours != theirs:
            raise _unequal("hidden states", ours, theirs)
        if EVERY_LAYER not in self.layers:
            return
        for member in getattr(teacher, "members", {"": teacher}).values():  # one of several, by problem
            ours, theirs = depth_of(student), depth_of(member)
            if ours and theirs and ours != theirs:
                raise _not_the_same(f"1 to {ours}", f"1 to {theirs}")

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        ours, theirs = student.inner, rows.dist(self.teacher).inner
        if ours.keys() != theirs.keys():
            raise _not_the_same(sorted(ours), sorted(theirs))
        return torch.stack([self._distance(ours[layer], theirs[layer], layer) for layer in ours]).mean(0)

    def _distance(self, ours: Tensor, theirs: Tensor, layer: int) -> Tensor:
        if ours.shape[-1] != theirs.shape[-1]:
            raise _unequal(f"hidden states of layer {layer}", ours.shape[-1], theirs.shape[-1])
        near, far = maths.upcast(ours), maths.upcast(theirs.to(ours.device))
        if self.normalised:
            near, far = F.normalize(near, dim=-1), F.normalize(far, dim=-1)
        return (near - far).square().mean(-1)


def _width(member: Any) -> int | None:
    return getattr(getattr(member, "engine", member), "width", None)


def _not_the_same(ours: object, theirs: object) -> ModelError:
    return ModelError(
        "student and teacher have not the same layers",
        got=f"student {ours}, teacher {theirs}",
        remedy="Name layers that both have, for example --layers -1, or say --bridge 8",
    )


def _unequal(what: str, ours: int, theirs: int) -> ModelError:
    return ModelError(
        f"{what} have different widths",
        got=f"student {ours}, teacher {theirs}",
        expected="equal widths, or a bridge",
        remedy="Say --bridge 8, or take a method that reads probabilities",
    )
