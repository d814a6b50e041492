"""The decoding loop: a prompt is read once, n samples share it, and a sequence that has ended leaves the batch.

Axes: B sequences, b sequences still in the batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from opd.engines.hf_lean import lean
from opd.engines.sampling import draw, truncate, uniforms
from opd.rollout import Array, End, Piece, Sampling

if TYPE_CHECKING:
    from opd.engines.hf import HFModel

KEPT = 0.75  # the batch shrinks when no more than this part of it is still writing


@torch.no_grad()
def write(
    model: HFModel, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
) -> list[list[Piece]]:
    pieces: list[list[Piece]] = [[] for _ in prompts]
    for batch in _batches(prompts, seeds, model.max_sequences):
        written = iter(_write([prompts[i] for i in batch], [seeds[i] for i in batch], sampling, model))
        for i in batch:
            pieces[i] = [next(written) for _ in seeds[i]]
    return pieces


def _batches(prompts: Sequence[Array], seeds: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Prompts of similar length together, at most `limit` sequences at a time."""
    batches: list[list[int]] = []
    size = 0
    for i in sorted((i for i in range(len(prompts)) if seeds[i]), key=lambda i: -len(prompts[i])):
        if not batches or size + len(seeds[i]) > limit:
            batches.append([])
            size = 0
        batches[-1].append(i)
        size += len(seeds[i])
    return batches


def _write(prompts: Sequence[Array], seeds: Sequence[Sequence[int]], sampling: Sampling, model: HFModel) -> list[Piece]:
    device = model.device
    origin = torch.from_numpy(np.repeat(np.arange(len(prompts)), [len(s) for s in seeds])).to(device)  # [B]
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    longest = sampling.max_new or model.max_new
    limits = (model.context - lengths).clamp(max=longest)[origin]
    steps = int(limits.max())
    flat = [seed for group in seeds for seed in group]
    uniform = None if sampling.greedy else uniforms(flat, steps).to(device)
    stops = torch.zeros(model.vocab, dtype=torch.bool, device=device)
    stops[[i for i in model.stops | set(sampling.stop) if i < model.vocab]] = True

    state = _Reader(model, prompts, steps)
    state.select(origin)
    tokens = torch.zeros(len(flat), steps, dtype=torch.int64, device=device)
    behaviour = torch.zeros(len(flat), steps, dtype=model.dtype, device=device)
    untruncated = torch.zeros_like(behaviour)
    ends = torch.zeros(len(flat), dtype=torch.int64, device=device)  # 0: still writing
    inside = torch.arange(len(flat), device=device)  # [b] which sequences the batch holds
    for t in range(steps):
        logits = model.dist(state.hidden, inside).logits()
        ids, drawn, plain = _next(logits, sampling, None if uniform is None else uniform[inside, t])
        tokens[inside, t], behaviour[inside, t], untruncated[inside, t] = ids, drawn, plain
        ended = (stops[ids] | (limits[inside] <= t + 1)) & (ends[inside] == 0)
        ends[inside] = torch.where(ended, t + 1, ends[inside])
        going = (ends[inside] == 0).nonzero().squeeze(1)
        if not len(going):
            break
        if len(going) <= KEPT * len(inside):
            state.select(going)
            inside, ids = inside[going], ids[going]
        state.read(ids)
    stopped = stops[tokens.gather(1, ends[:, None] - 1)].squeeze(1)
    return _pieces(tokens, behaviour, untruncated, ends, stopped)


def _next(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """[b, V] -> [b] ids, their log-probs under what drew them, their log-probs at temperature 1."""
    if uniform is None:
        top, ids = logits.max(-1)
        return ids, torch.zeros_like(top), top - logits.logsumexp(-1)
    logprobs = truncate(logits, sampling)
    whole = sampling == Sampling(max_new=sampling.max_new, stop=sampling.stop)
    ids = draw(logprobs, uniform, scratch=logits if whole else None)
    drawn = logprobs.gather(1, ids[:, None]).squeeze(1)
    return ids, drawn, drawn if whole else logits.gather(1, ids[:, None]).squeeze(1) - logits.logsumexp(-1)


def _pieces(tokens: Tensor, behaviour: Tensor, untruncated: Tensor, ends: Tensor, stopped: Tensor) -> list[Piece]:
    columns = (tokens.to(torch.int32), behaviour, untruncated)
    arrays = [column.cpu().numpy() for column in columns]
    pieces: list[Piece] = []
    for row, (n, stop) in enumerate(zip(ends.tolist(), stopped.tolist(), strict=True)):
        ids, drawn, plain = (array[row, :n].copy() for array in arrays)
        pieces.append(Piece(ids, drawn, plain, End.STOP if stop else End.LENGTH))
    return pieces


class _Reader:
    """The model with its cache: prompts padded on the left, then one token per sequence and step."""

    def __init__(self, model: HFModel, prompts: Sequence[Array], steps: int) -> None:
        self.model = model
        width = max(len(p) for p in prompts)
        ids = np.zeros((len(prompts), width), np.int64)
        mask = np.ones((len(prompts), width + steps), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, : width - len(prompt)] = 0
        # Without padding there is nothing to mask, and transformers takes its fast path.
        self.mask = None if mask.all() else torch.from_numpy(mask).to(model.device)
        self.cache = _cache(model.config)
        self.seen = width
        positions = torch.from_numpy((mask[:, :width].cumsum(1) - 1).clip(min=0)).to(model.device)
        self.position = positions[:, -1:]
        self.hidden = self._pass(torch.from_numpy(ids).to(model.device), positions)
        growing = all(type(layer) is _GrowingLayer for layer in self.cache.layers)
        self.lean = lean(model.decoder, model.config) if growing else None

    def select(self, rows: Tensor) -> None:
        """Keep, drop or repeat sequences: rows [b] are numbers of the present batch."""
        if len(rows) == len(self.hidden) and bool((rows == torch.arange(len(rows), device=rows.device)).all()):
            return
        self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
        self.hidden, self.position = self.hidden[rows], self.position[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def read(self, ids: Tensor) -> None:
        """One more token for every sequence; `hidden` then predicts the next."""
        self.seen += 1
        self.position = self.position + 1
        if self.lean is None:
            self.hidden = self._pass(ids[:, None], self.position)
            return
        mask = None if self.mask is None else self.mask[:, : self.seen]
        self.hidden = self.model.scaled(self.lean(ids, self.position, mask, self.cache.layers))

    def _pass(self, ids: Tensor, positions: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask[:, : self.seen]
        out = self.model.decoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        return self.model.scaled(out.last_hidden_state[:, -1])


def _cache(config: Any) -> Cache:
    """The cache that transformers makes for this kind of model, but layers of full attention grow in place."""
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _GrowingLayer(DynamicLayer):
    """Keys and values in a buffer with room to spare; transformers' own layer copies everything for every token."""

    SPARE = 64
    buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self.buffers is None or stop > self.buffers[0].shape[-2]:
            self.buffers = (self._grown(self.keys, key_states, stop), self._grown(self.values, value_states, stop))
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self.buffers)
        self.keys[:, :, start:], self.values[:, :, start:] = key_states, value_states
        return self.keys, self.values

    def _grown(self, old: Tensor | None, new: Tensor, length: int) -> Tensor:
        buffer = new.new_empty(*new.shape[:2], length + max(self.SPARE, length // 2), new.shape[-1])
        if old is not None and old.numel():
            buffer[:, :, : old.shape[-2]] = old
        return buffer

    def reorder_cache(self, beam_idx: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().reorder_cache(beam_idx)  # pyright: ignore[reportArgumentType]
        self.buffers = None
