"""Numbers about rows become an Answer, wherever they were computed.

Axes: N rows, K support, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from opd.dist import Dist, HeadDist, TopDist
from opd.protocols import Answer, Want

Whole = Callable[[Tensor, dict[int, Tensor]], HeadDist]  # hidden [N, D], states -> distributions


def answered(
    found: Mapping[Any, Tensor], decided: Tensor, want: Want, layers: Iterable[int], dtype: torch.dtype, whole: Whole
) -> Answer:
    """The answer to `want` from what was found by name: chosen, gathered, top, ids, hidden, and the layers."""
    states = {layer: found[layer] for layer in layers}
    chosen, gathered = found.get("chosen"), found.get("gathered")
    dist: Dist | None = None
    if want.dist:
        dist = whole(found["hidden"], states)
    elif want.topk:
        dist = TopDist(found["ids"], found["top"], decided, chosen, states)
    elif want.layers:
        nothing = decided.new_zeros(len(decided), 0)
        dist = TopDist(nothing, nothing.to(dtype), decided, chosen, states)
    return Answer(dist, chosen, gathered)
