"""Two language models write one text: before every token a coin says who decides, and both read what was decided.

The token is then drawn from the mixture of their next-token distributions, and its log-prob under that mixture is its
behaviour. Both run in lockstep, each over its own cache.

Axes: b sequences still in the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from opd.engines.hf_write import Reader, decode, in_batches, marked, origins, room
from opd.engines.sampling import take_turn, uniforms
from opd.rollout import Array, Piece, Sampling

if TYPE_CHECKING:
    from opd.engines.hf import HFModel


@torch.no_grad()
def take_turns(
    model: HFModel,
    teacher: Any,
    share: float,
    prompts: Sequence[Array],
    sampling: Sampling,
    seeds: Sequence[Sequence[int]],
) -> list[list[Piece]]:
    """As `write`; the column `label` is what the teacher would have written, at temperature 1, whoever decided.

    A text ends with what ends a text for either of the two.
    """

    def some(batch: Sequence[int]) -> list[Piece]:
        given, own = [prompts[i] for i in batch], [seeds[i] for i in batch]
        ours, theirs = Reader(model, given, longest), teacher.reading(given, longest)
        limits = room(given, own, min(ours.context, theirs.context), longest).to(model.device)
        stops = marked(ours.stops | theirs.stops | set(sampling.stop), model)
        uniform = uniforms([seed for seeds in own for seed in seeds], 3 * int(limits.max()))
        uniform = uniform.unflatten(-1, (-1, 3)).to(model.device)

        def choose(inside: Tensor, t: int) -> Mapping[str, Tensor]:
            plain = ours.logits().log_softmax(-1)
            expert = theirs.logits().to(plain).log_softmax(-1)
            return take_turn(plain, expert, share, sampling, uniform[inside, t])

        return decode([ours, theirs], choose, origins(own), limits, stops)

    longest = sampling.max_new or model.max_new
    return in_batches(prompts, seeds, model.max_sequences, some)
