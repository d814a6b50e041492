"""Two models of unequal width meet in a few directions: the teacher's own, and a fixed map of the student into them.

Both models are frozen while the bridge is fitted, before step 1; then the bridge is frozen and the student learns
(OPRD-Bridge, arXiv 2606.06021).

Axes: N rows, D width of the student, E width of the teacher, r rank, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opd.dist import Dist
from opd.errors import MethodError, ModelError, require
from opd.maths import upcast
from opd.protocols import EVERY_LAYER, Cast, Sample, Want
from opd.rollout import Visit
from opd.rows import Rows, flatten


@dataclass(frozen=True)
class Span:
    """One student layer's bridge: which layer of the teacher, its mean and directions, and the map into them."""

    teacher_layer: int
    mean: Tensor  # [E]
    directions: Tensor  # [r, E] orthonormal
    projector: Tensor  # [r, D]
    cosine: float  # of the two sides on the rows that it was fitted on, mean

    def __call__(self, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """[n, D], [n, E] -> both as [n, r]."""
        return upcast(ours) @ self.projector.T, (upcast(theirs) - self.mean) @ self.directions.T


def mapped(layer: int, ours: int, theirs: int) -> int:
    """The teacher's layer for a student's: first to first, last to last, the rest in proportion (2606.06021)."""
    return round((layer - 1) / max(ours - 1, 1) * (theirs - 1)) + 1


def fitted(ours: Tensor, theirs: Tensor, rank: int, teacher_layer: int) -> Span:
    """The teacher's first `rank` principal directions, and the least-squares map of the student's states onto them."""
    ours, theirs = upcast(ours), upcast(theirs)
    mean = theirs.mean(0)
    # contiguous, as a checkpoint gives them back: another layout would be another order of summation
    directions = torch.linalg.svd(theirs - mean, full_matrices=False).Vh[:rank].contiguous()
    target = (theirs - mean) @ directions.T
    projector = torch.linalg.lstsq(ours, target, driver="gelsd").solution.T.contiguous()
    cosine = F.cosine_similarity(ours @ projector.T, target, dim=-1).mean()
    return Span(teacher_layer, mean, directions, projector, float(cosine))


@dataclass
class Bridge:
    """The spans of all layers; a state, because a resumed run must go on over the same bridge.

    `prompts` problems are answered once by the student, and at most `most` of the decided tokens are looked at.
    """

    rank: int
    write: Sample
    layers: tuple[int, ...] = (EVERY_LAYER,)
    prompts: int = 200
    most: int = 16384
    spans: dict[int, Span] = field(default_factory=dict[int, Span])

    def __post_init__(self) -> None:
        require(self.rank >= 1, "the rank of the bridge", got=self.rank, expected="at least 1")
        require(self.prompts >= 1, "prompts that the bridge is fitted on", got=self.prompts, expected="at least 1")

    @property
    def is_fitted(self) -> bool:
        return bool(self.spans)

    @torch.no_grad()
    def fit(self, cast: Cast, take: Callable[[int], list[Visit]]) -> dict[str, float]:
        """Fits every layer on the student's answers; gives the mean cosine per layer."""
        answers = [rollout for rollout, _ in flatten(self.write(cast, take(self.prompts), 0))]
        ours, theirs = (_states(cast[who], answers, layers) for who, layers in
                        (("student", self.layers), ("teacher", (EVERY_LAYER,))))  # fmt: skip
        depth = len(_states(cast["student"], answers[:1], (EVERY_LAYER,)))
        self._check(ours, theirs)
        some = torch.from_numpy(_spread(len(next(iter(ours.values()))), self.most))
        for layer, states in ours.items():
            other = mapped(layer if layer > 0 else layer + depth + 1, depth, len(theirs))
            self.spans[layer] = fitted(states[some], theirs[other].to(states.device)[some], self.rank, other)
        return {f"bridge.cosine.{layer}": span.cosine for layer, span in self.spans.items()}

    def _check(self, ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor]) -> None:
        narrowest = min(states.shape[-1] for states in (*ours.values(), *theirs.values()))
        rows = len(next(iter(ours.values())))
        if self.rank > narrowest or self.rank > rows:
            raise ModelError(
                "the bridge is wider than what it joins",
                got=f"rank {self.rank}",
                expected=f"at most {min(narrowest, rows)}",
                remedy="Lower --bridge, or raise --prompts",
            )

    def state_dict(self) -> dict[str, Any]:
        return {str(layer): vars(span) for layer, span in self.spans.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.spans = {int(layer): Span(**values) for layer, values in state.items()}


def _states(model: Any, answers: Sequence[Any], layers: tuple[int, ...]) -> dict[int, Tensor]:
    answer = model.read(answers, Want(layers=layers))
    if answer.dist is None:
        raise MethodError(f"{model.name} gave no hidden states")
    return answer.dist.inner


def _spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n numbers, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


@dataclass(frozen=True)
class OverBridge:
    """(1/|L|) sum over layers of the mean squared distance of the bridge's two sides, each of length 1 (2606.06021)."""

    bridge: Bridge
    teacher: str = "teacher"

    @property
    def layers(self) -> tuple[int, ...]:
        return self.bridge.layers

    def __call__(self, student: Dist, rows: Rows) -> Tensor:
        ours, theirs = student.inner, rows.dist(self.teacher).inner
        return torch.stack([self._distance(ours[layer], theirs, span) for layer, span in self._spans(ours)]).mean(0)

    def _spans(self, ours: Mapping[int, Tensor]) -> list[tuple[int, Span]]:
        if missing := sorted(ours.keys() - self.bridge.spans.keys()):
            raise MethodError("the bridge is not fitted", got=f"no span for layers {missing}")
        return list(self.bridge.spans.items())

    def _distance(self, ours: Tensor, theirs: Mapping[int, Tensor], span: Span) -> Tensor:
        near, far = span(ours, theirs[span.teacher_layer].to(ours.device))
        return (F.normalize(near, dim=-1) - F.normalize(far, dim=-1)).square().mean(-1)
