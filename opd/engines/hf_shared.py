"""A prompt that several answers follow is read once: its keys and values are kept, and the answers are read after them.

The numbers are those of whole sequences up to the rounding of another order of sums.

Axes: P prompts, B sequences, W positions of a prompt, R positions of an answer, N rows, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from opd.rollout import Array, Rollout

if TYPE_CHECKING:
    from opd.engines.hf import HFModel

WORTH = 0.25  # of a group's tokens must be saved, or two thinner passes take longer than one


def sharable(model: HFModel) -> bool:
    """Whether every layer keeps all keys and values: windows and recurrent states are left to whole sequences."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def split(contexts: Sequence[Rollout], budget: int) -> tuple[list[list[int]], list[int]]:
    """Batches of contexts whose prompts are worth sharing, within a budget of padded tokens, and all the others."""
    alike: dict[bytes, list[int]] = defaultdict(list)
    for i, context in enumerate(contexts):
        alike[_prompt(context).tobytes()].append(i)
    shared = [group for group in alike.values() if _saved(contexts, group) >= WORTH]
    inside = {i for group in shared for i in group}
    batches: list[list[int]] = []
    shape = 0, 0, 0, 0  # P, W, B, R of the last batch
    for group in sorted(shared, key=lambda group: (-len(_prompt(contexts[group[0]])), group[0])):
        width = len(_prompt(contexts[group[0]]))
        for i in sorted(group, key=lambda i: (-len(contexts[i].tokens), i)):
            new = int(i == group[0] or not batches)
            grown = shape[0] + new, max(shape[1], width), shape[2] + 1, max(shape[3], len(contexts[i].tokens) - width)
            if not batches or grown[0] * grown[1] + grown[2] * grown[3] > budget:
                batches.append([])
                grown = 1, width, 1, len(contexts[i].tokens) - width
            batches[-1].append(i)
            shape = grown
    return batches, [i for i in range(len(contexts)) if i not in inside]


def _prompt(context: Rollout) -> Array:
    """Everything before the first decision."""
    return context.tokens[: context.positions[0]] if context.n else context.tokens


def _saved(contexts: Sequence[Rollout], group: Sequence[int]) -> float:
    """The share of a group's tokens that need not be read again."""
    if not all(contexts[i].n for i in group):
        return 0.0
    again = len(_prompt(contexts[group[0]])) * (len(group) - 1)
    return again / sum(len(contexts[i].tokens) for i in group)


def states(model: HFModel, contexts: Sequence[Rollout]) -> Tensor:
    """[N, D] the state from which each row is predicted, every different prompt being read once."""
    prompts: dict[bytes, Array] = {}
    for context in contexts:
        prompts.setdefault(_prompt(context).tobytes(), _prompt(context))
    number = {key: i for i, key in enumerate(prompts)}
    owner = torch.tensor([number[_prompt(context).tobytes()] for context in contexts]).to(model.device)
    cache = DynamicCache(config=model.config)
    ids, mask = (torch.from_numpy(x).to(model.device) for x in _left_padded(list(prompts.values())))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = not bool(mask.all())
    last = model.decoder(
        input_ids=ids, attention_mask=mask if padded else None, position_ids=positions, past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[owner, -1:]  # fmt: skip
    rests = [context.tokens[context.positions[0] : context.positions[-1]] for context in contexts]
    longest = max(len(rest) for rest in rests)
    if longest:
        cache.reorder_cache(owner)  # pyright: ignore[reportArgumentType]
        more = torch.from_numpy(_right_padded(rests, longest)).to(model.device)
        steps = torch.arange(1, longest + 1, device=model.device)
        seen = torch.cat([mask[owner], mask.new_ones(len(rests), longest)], 1) if padded else None
        after = model.decoder(
            input_ids=more, attention_mask=seen, position_ids=positions[owner, -1:] + steps, past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip
        last = torch.cat([last, after], 1)
    b = model.column([np.full(context.n, i) for i, context in enumerate(contexts)])
    t = model.column([context.positions - context.positions[0] for context in contexts])
    return model.scaled(last[b, t])


def _left_padded(rows: Sequence[Array]) -> tuple[Array, Array]:
    """Ids and mask [P, W]."""
    width = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    return ids, mask


def _right_padded(rows: Sequence[Array], width: int) -> Array:
    ids = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids
