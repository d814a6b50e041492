"""What training did to the weights: how many changed, in which directions, how much of it in a few of them.

All numbers are about one matrix before, W0, and after, W; dW = W - W0. From "On the Geometry of On-Policy Distillation"
(arXiv 2606.07082), which finds on-policy distillation between fine-tuning and reinforcement learning.

Axes: M x N a weight matrix, k singular directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from opd.errors import require

OUTSIDE = ("embed", "lm_head", "wte", "wpe")  # names of what is a table of tokens or places
ETA = 1e-3  # relative change below which a bfloat16 entry counts as unchanged: its neighbours are 2^-8 away


@dataclass(frozen=True)
class Shape:
    """The numbers of one matrix, or those of several; nan where nothing has changed at all."""

    entries: float  # how many numbers the matrix has, or all of them together
    unchanged: float  # share of entries that are the same in bfloat16
    rotation: float  # mean principal angle of the top-k left and right singular subspaces, degrees
    drift: float  # ||sigma(W) - sigma(W0)|| / ||sigma(W0)||
    principal: float  # share of the changed entries among the largest of W0's rank-r part; chance: `share`
    small: float  # share of the changed entries among the smallest of |W0|; chance: `share`
    stable_rank: float  # ||dW||_F^2 / ||dW||_2^2: 1 for rank one, N for an orthogonal matrix
    size: float  # ||dW||_F
    tail: float  # Hill's exponent of dW's largest singular values: small where a few dominate


class Parts(NamedTuple):
    """A = U diag(s) V^T."""

    u: Tensor  # [M, min(M, N)]
    s: Tensor
    v: Tensor  # [N, min(M, N)]

    @classmethod
    def of(cls, matrix: Tensor) -> Parts:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return cls(u, s, vh.T)


@dataclass(frozen=True)
class Lens:
    """How closely a matrix is looked at: the paper's numbers, though its text compares masks with a chance of .3."""

    k: int = 512
    rank: int = 64
    share: float = 0.5
    tail: int = 32

    def __post_init__(self) -> None:
        for name in ("k", "rank", "tail"):
            require(getattr(self, name) >= 1, f"directions {name}", got=getattr(self, name), expected="at least 1")
        require(0 < self.share < 1, "the share of entries in a mask", got=self.share, expected="between 0 and 1")

    def __call__(self, before: Tensor, after: Tensor) -> Shape:
        """All numbers of one matrix [M, N]; in float64 on the processor, where near-identical matrices are safe."""
        before, after = before.detach().cpu().double(), after.detach().cpu().double()
        old, new = Parts.of(before), Parts.of(after)
        change, changed = after - before, ~unchanged(before, after)
        values = torch.linalg.svdvals(change)
        overlap = (masked_share(changed, largest(low_rank(old, self.rank).abs(), self.share)),
                   masked_share(changed, ~largest(before.abs(), 1 - self.share)))  # fmt: skip
        return Shape(
            changed.numel(), float((~changed).double().mean()), rotation(old, new, self.k), drift(old.s, new.s),
            *overlap, stable_rank(values), float(values.norm()), hill(values, self.tail),
        )  # fmt: skip


def unchanged(before: Tensor, after: Tensor) -> Tensor:
    """[M, N] bool: in bfloat16 the entry is what it was, up to a relative ETA."""
    before, after = before.bfloat16().double(), after.bfloat16().double()
    return (after - before).abs() <= ETA * torch.maximum(before.abs(), after.abs())


def rotation(old: Parts, new: Parts, k: int) -> float:
    """Mean principal angle (degrees) between the top-k singular subspaces, left and right together.

    At most half of the directions there are: all of them span everything, before and after.
    """
    k = min(k, max(1, len(old.s) // 2))
    pairs = ((old.u[:, :k], new.u[:, :k]), (old.v[:, :k], new.v[:, :k]))
    return fmean(float(angles(a, b).mean()) for a, b in pairs)


def angles(a: Tensor, b: Tensor) -> Tensor:
    """[k] principal angles in degrees between the column spaces of two orthonormal [d, k], 0 to 90.

    From the sine where they are small, because the cosine's rounding alone would be a hundred-thousandth of a degree.
    """
    cosine = torch.linalg.svdvals(a.T @ b).clamp(max=1)
    sine = torch.linalg.svdvals(b - a @ (a.T @ b)).clamp(max=1).flip(0)
    return torch.rad2deg(torch.where(cosine**2 > 0.5, sine.asin(), cosine.acos()))


def drift(old: Tensor, new: Tensor) -> float:
    """||sigma(W) - sigma(W0)|| / ||sigma(W0)||, never above ||dW||_F / ||W0||_F (Mirsky)."""
    return float((new - old).norm() / old.norm())


def low_rank(parts: Parts, rank: int) -> Tensor:
    return (parts.u[:, :rank] * parts.s[:rank]) @ parts.v[:, :rank].T


def largest(values: Tensor, share: float) -> Tensor:
    """[M, N] bool: the given share of entries, largest first."""
    most = round(share * values.numel())
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.flatten().argsort(descending=True, stable=True)[:most]] = True
    return mask.view_as(values)


def masked_share(changed: Tensor, mask: Tensor) -> float:
    """How much of what changed lies in the mask."""
    return float((changed & mask).sum() / changed.sum())  # 0/0 is nan: nothing has changed


def stable_rank(values: Tensor) -> float:
    """||A||_F^2 / ||A||_2^2 from the singular values of A."""
    return float((values / values.max()).square().sum())


def hill(values: Tensor, k: int) -> float:
    """1 / mean over i < k of log(sigma_i / sigma_k), the k largest singular values."""
    top = values[values > 0][:k]
    return float(1 / (top[:-1] / top[-1]).log().mean()) if len(top) > 1 else float("nan")


def similarity(a: Tensor, b: Tensor, k: int) -> float:
    """(1/k) || V_k(a)^T V_k(b) ||_F^2: 1 for the same right singular directions, k/N for two by chance."""
    ours, theirs = (Parts.of(dw.detach().cpu().double()).v[:, :k] for dw in (a, b))
    return float((ours.T @ theirs).square().sum() / k)


def alike(before: Mapping[str, Tensor], one: Mapping[str, Tensor], other: Mapping[str, Tensor], k: int) -> float:
    """The similarity of two changes of the same weights, mean over matrices; k is at most what a matrix has."""
    return fmean(similarity(one[name] - w, other[name] - w, min(k, *w.shape)) for name, w in before.items())


def matrices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weight matrices of a model by name, without embeddings and heads; query, key and value apart.

    Fused ones are taken apart where they are three of one size (GPT-2's c_attn); others stay whole.
    """
    found: dict[str, Tensor] = {}
    for name, weight in state.items():
        if weight.ndim != 2 or min(weight.shape) < 2 or any(part in name for part in OUTSIDE):
            continue
        if "c_attn" in name and weight.shape[1] == 3 * weight.shape[0]:
            found |= {f"{name}.{part}": one for part, one in zip("qkv", weight.chunk(3, 1), strict=True)}
        else:
            found[name] = weight
    return found


def averaged(shapes: Iterable[Shape]) -> Shape:
    """The mean over matrices of every number that is one; of `unchanged` over their entries, so that size counts.

    Source: arXiv 2606.07082, which weights by the number of parameters there and nowhere else.
    """
    shapes = list(shapes)
    mean: Callable[[list[float]], float] = lambda seen: fmean(seen) if seen else float("nan")
    columns = {one.name: [getattr(shape, one.name) for shape in shapes] for one in fields(Shape)}
    means = {name: mean([value for value in values if value == value]) for name, values in columns.items()}
    size = columns["entries"]
    return Shape(**means | {"entries": sum(size), "unchanged": fmean(columns["unchanged"], size)})
