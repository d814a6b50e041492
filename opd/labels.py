"""A label is the token that a reader would have taken itself: one draw per decision, which moves nothing.

Axes: N rows of all contexts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opd.dist import Dist
from opd.engines.sampling import draw
from opd.errors import MethodError
from opd.rollout import Rollout

STREAM = 1  # beside stream 0 of the same seed, from which the text itself was drawn
CHUNK = 128  # rows whose [V] distributions exist at the same time


def labels(dist: Dist, contexts: Sequence[Rollout]) -> Tensor:
    """[N] one token from each distribution, a function of (run, problem, visit, sample, number of the decision)."""
    uniform = torch.from_numpy(np.concatenate([_uniforms(context) for context in contexts]))
    pieces = list[Tensor]()
    for start in range(0, len(uniform), CHUNK):
        here = slice(start, start + CHUNK)
        logprobs = dist.index(here).logprobs()
        pieces.append(draw(logprobs, uniform[here].to(logprobs.device)))
    return torch.cat(pieces)


def _uniforms(context: Rollout) -> np.ndarray:
    if context.seed is None:
        raise MethodError(
            f"labels were asked about a rollout of {context.problem.id} without a seed",
            expected="a sample that gives every rollout the seed of its visit",
        )
    return np.random.Generator(np.random.Philox(key=[context.seed % 2**64, STREAM])).random(context.n)
