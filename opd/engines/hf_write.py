"""The decoding loop: a prompt is read once, n samples share it, and a sequence that has ended leaves the batch.

Axes: B sequences, b sequences still in the batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from opd.engines.hf_lean import lean
from opd.engines.sampling import draw, truncate, uniforms
from opd.protocols import Ended
from opd.rollout import Array, End, Piece, Sampling

if TYPE_CHECKING:
    from opd.engines.hf import HFModel

KEPT = 0.75  # the batch shrinks when no more than this part of it is still writing


Choose = Callable[[Tensor, int], Mapping[str, Tensor]]  # sequences in the batch [b], step -> columns [b], `token` first


class Reading(Protocol):
    """Whoever reads a batch of texts in lockstep, as they grow, and says what comes next."""

    context: int
    stops: frozenset[int]

    def logits(self) -> Tensor: ...  # [b, V] of the next token
    def read(self, ids: Tensor) -> None: ...  # [b] one more token for every sequence
    def select(self, rows: Tensor) -> None: ...  # [b'] keep, drop or repeat sequences of the present batch


@torch.no_grad()
def write(
    model: HFModel,
    prompts: Sequence[Array],
    sampling: Sampling,
    seeds: Sequence[Sequence[int]],
    ended: Ended | None = None,
) -> list[list[Piece]]:
    """As HFModel.write_aloud."""

    def some(batch: Sequence[int]) -> list[Piece]:
        given, own = [prompts[i] for i in batch], [seeds[i] for i in batch]
        limits = room(given, own, model.context, sampling.max_new or model.max_new).to(model.device)
        reader, steps = Reader(model, given, int(limits.max())), int(limits.max())
        flat = [seed for seeds in own for seed in seeds]
        uniform = None if sampling.greedy else uniforms(flat, steps).to(model.device)

        def choose(inside: Tensor, t: int) -> Mapping[str, Tensor]:
            found = next_token(reader.logits(), sampling, None if uniform is None else uniform[inside, t])
            return dict(zip(("token", "behaviour", "untruncated"), found, strict=True))

        told = partial(_pass_on, ended, batch) if ended else None
        return decode([reader], choose, origins(own), limits, marked(reader.stops | set(sampling.stop), model), told)

    return in_batches(prompts, seeds, model.max_sequences, some)


def _pass_on(ended: Ended, batch: Sequence[int], texts: Sequence[tuple[int, Array]]) -> None:
    ended([(batch[i], tokens) for i, tokens in texts])


def in_batches(
    prompts: Sequence[Array],
    seeds: Sequence[Sequence[int]],
    limit: int,
    some: Callable[[Sequence[int]], list[Piece]],
) -> list[list[Piece]]:
    """What `some` writes after the prompts of these numbers, a few at a time: per prompt a piece for each seed."""
    pieces: list[list[Piece]] = [[] for _ in prompts]
    for batch in _batches(prompts, seeds, limit):
        written = iter(some(batch))
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


def origins(seeds: Sequence[Sequence[int]]) -> Tensor:
    """[B] the number of each sequence's prompt."""
    return torch.from_numpy(np.repeat(np.arange(len(seeds)), [len(own) for own in seeds]))


def room(prompts: Sequence[Array], seeds: Sequence[Sequence[int]], context: int, longest: int) -> Tensor:
    """[B] how many tokens each sequence may have after its prompt."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return (context - lengths).clamp(max=longest)[origins(seeds)]


def marked(stops: Iterable[int], model: HFModel) -> Tensor:
    """[V] bool: the tokens that end a text."""
    found = torch.zeros(model.vocab, dtype=torch.bool, device=model.device)
    found[[i for i in stops if i < model.vocab]] = True
    return found


def decode(
    readers: Sequence[Reading],
    choose: Choose,
    origin: Tensor,
    limits: Tensor,
    stops: Tensor,
    told: Ended | None = None,
) -> list[Piece]:
    """One token after the other: `choose` says which, and every reader reads it. All [B], stops [V].

    `told` hears of the texts that leave the batch, and at the end of all others.
    """
    steps, device = int(limits.max()), limits.device
    for reader in readers:
        reader.select(origin.to(device))
    columns: dict[str, Tensor] = {}
    ends = torch.zeros(len(limits), dtype=torch.int64, device=device)  # 0: still writing
    inside = torch.arange(len(limits), device=device)  # [b] which sequences the batch holds
    for t in range(steps):
        chosen = choose(inside, t)
        for name, values in chosen.items():
            if name not in columns:
                columns[name] = torch.zeros(len(limits), steps, dtype=values.dtype, device=device)
            columns[name][inside, t] = values
        ids = chosen["token"]
        ended = (stops[ids] | (limits[inside] <= t + 1)) & (ends[inside] == 0)
        ends[inside] = torch.where(ended, t + 1, ends[inside])
        going = (ends[inside] == 0).nonzero().squeeze(1)
        if not len(going):
            break
        if len(going) <= KEPT * len(inside):
            if told:
                told(_ended(columns["token"], ends, origin, inside))
            inside, ids = inside[going], ids[going]
            for reader in readers:
                reader.select(going)
        for reader in readers:
            reader.read(ids)
    if told:
        told(_ended(columns["token"], ends, origin, inside))
    stopped = stops[columns["token"].gather(1, ends[:, None] - 1)].squeeze(1)
    return _pieces(columns, ends, stopped)


def _ended(tokens: Tensor, ends: Tensor, origin: Tensor, inside: Tensor) -> list[tuple[int, Array]]:
    """Of the sequences in the batch that have ended, the number of each one's prompt, and its tokens."""
    gone = inside[ends[inside] > 0]
    found = tokens[gone].cpu().numpy().astype(np.int32)
    return [(i, row[:n]) for i, row, n in zip(origin[gone.cpu()].tolist(), found, ends[gone].tolist(), strict=True)]


def next_token(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """[b, V] -> [b] ids, their log-probs under what drew them, their log-probs at temperature 1."""
    if uniform is None:
        top, ids = logits.max(-1)
        return ids, torch.zeros_like(top), top - logits.logsumexp(-1)
    logprobs = truncate(logits, sampling)
    whole = sampling == Sampling(max_new=sampling.max_new, stop=sampling.stop)
    ids = draw(logprobs, uniform, scratch=logits if whole else None)
    drawn = logprobs.gather(1, ids[:, None]).squeeze(1)
    return ids, drawn, drawn if whole else logits.gather(1, ids[:, None]).squeeze(1) - logits.logsumexp(-1)


def _pieces(columns: Mapping[str, Tensor], ends: Tensor, stopped: Tensor) -> list[Piece]:
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    pieces: list[Piece] = []
    for row, (n, stop) in enumerate(zip(ends.tolist(), stopped.tolist(), strict=True)):
        own = {name: array[row, :n].copy() for name, array in arrays.items()}
        pieces.append(
            Piece(
                tokens=own.pop("token").astype(np.int32),
                behaviour=own.pop("behaviour"),
                untruncated=own.pop("untruncated"),
                end=End.STOP if stop else End.LENGTH,
                author=own.pop("author", None),
                columns=own,
            )
        )
    return pieces


class Reader:
    """The model with its cache: prompts padded on the left, then one token per sequence and step."""

    def __init__(self, model: HFModel, prompts: Sequence[Array], steps: int) -> None:
        self.model, self.context, self.stops = model, model.context, model.stops
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

    def logits(self) -> Tensor:
        """[b, V] of the next token."""
        return self.model.dist(self.hidden, self.position).logits()

    def select(self, rows: Tensor) -> None:
        """Keep, drop or repeat sequences: rows [b] are numbers of the present batch."""
        rows = rows.to(self.hidden.device)
        if len(rows) == len(self.hidden) and bool((rows == torch.arange(len(rows), device=rows.device)).all()):
            return
        self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
        self.hidden, self.position = self.hidden[rows], self.position[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def read(self, ids: Tensor) -> None:
        """One more token for every sequence; `hidden` then predicts the next."""
        ids = ids.to(self.hidden.device)
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
