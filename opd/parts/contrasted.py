"""Distillation towards what a right hint makes likely and wrong ones do not.

Axes: n rows of a chunk, K support.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from opd import maths, shaping
from opd.dist import Dist
from opd.errors import require
from opd.parts.hints import WRONG
from opd.rows import Rows


@dataclass(frozen=True)
class TowardsContrast:
    """w sum_v min(q (log q - log pi), most), q = softmax((1 + a) log p_right - a log p_wrong), w = D / (D + half).

    Over the K best tokens under the right hint and a bucket for the rest; D = KL(p_right || p_wrong), p_wrong the mean
    over the wrong hints (RLCSD, arXiv 2606.11709, its plug-in for OPSD).
    """

    wrong: int
    strength: float = 0.5
    floor: float = -5.0
    most: float = 0.05
    half: float = 1.0
    teacher: str = "teacher"

    def __post_init__(self) -> None:
        require(
            self.most >= 0, "the bound of a token's share of the loss", got=self.most, expected="0 for none, or more"
        )
        require(self.half > 0, "the divergence that is half a weight", got=self.half, expected="more than 0")

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        ours, target, weight = self._compared(student, rows)
        return weight * maths.clipped_forward_kl(ours, target, self.most or math.inf)

    def cut(self, student: Dist, rows: Rows) -> dict[str, Tensor]:
        """contrast.weight: w; entry.cut: the share of the support that the bound cut."""
        ours, target, weight = self._compared(student, rows)
        cut = maths.clipped_words(ours, target, self.most or math.inf)
        return {"contrast.weight": weight, "entry.cut": cut.to(weight).mean(-1)}

    def _compared(self, student: Dist, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """The student and its target on the support and the rest [n, K + 1], and w [n]."""
        ids = rows[f"{self.teacher}.ids"]
        hints = torch.stack([rows[f"{WRONG.format(k)}.gathered"] for k in range(self.wrong)], -1)
        supports = student.at(ids), rows.dist(self.teacher).at(ids), shaping.together(hints)
        ours, right, wrong = map(shaping.with_rest, supports)
        weight = shaping.saturating(maths.forward_kl(wrong, right), torch.full_like(ours[:, 0].detach(), self.half))
        return ours, shaping.sharpened(right, wrong, self.strength, self.floor), weight
