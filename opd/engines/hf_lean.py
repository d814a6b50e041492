"""One more token through a Llama-like decoder in half the time: its own weights, without the modules around them.

At the sizes that a CPU trains, writing is mostly Python between small operations. What is not exactly of a known kind
(other layers, adapters, sliding windows, other precisions) goes through transformers.

Axes: b sequences, D width, H heads of queries and h of keys, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")


@dataclass(frozen=True)
class Block:
    """The parameters of one transformer block, looked up once per writing."""

    norms: tuple[Tensor, Tensor]
    head_norms: tuple[Tensor, Tensor] | None  # of queries and keys, where a model has them
    query: tuple[Tensor, Tensor | None]  # weight and bias, as of all that follow
    key: tuple[Tensor, Tensor | None]
    value: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    gate: tuple[Tensor, Tensor | None]
    up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]


class Lean:
    """A decoder that reads one token per sequence; keys and values are kept in the layers of a cache."""

    def __init__(self, decoder: Any) -> None:
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm.weight
        self.eps, self.width = decoder.config.rms_norm_eps, decoder.layers[0].self_attn.head_dim
        self.blocks = [_block(layer) for layer in decoder.layers]

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Sequence[Any]) -> Tensor:
        """ids [b], positions [b, 1], mask [b, T] of what may be seen -> [b, D] the state after the last norm."""
        x = self.embed(ids)
        cos, sin = self.rotary(x, positions)
        sin = torch.cat([-sin[..., : self.width // 2], sin[..., self.width // 2 :]], -1)
        seen = None if mask is None else mask[:, None, None, :].bool()
        for block, layer in zip(self.blocks, cache, strict=True):
            x = self._attend(block, x, (cos, sin), seen, layer).add_(x)
            y = self._normed(x, block.norms[1])
            x = F.linear(F.silu(F.linear(y, *block.gate)).mul_(F.linear(y, *block.up)), *block.down).add_(x)
        return self._normed(x, self.norm)

    def _attend(self, block: Block, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor | None, layer: Any) -> Tensor:
        x = self._normed(x, block.norms[0])
        q, k, v = (F.linear(x, *w).unflatten(-1, (-1, self.width)) for w in (block.query, block.key, block.value))
        if block.head_norms is not None:
            q, k = (self._normed(y, w) for y, w in zip((q, k), block.head_norms, strict=True))
        heads, (cos, sin), half = q.shape[1], turn, self.width // 2
        both = torch.cat([q, k], 1)  # [b, H + h, E]
        both = torch.addcmul(both * cos, torch.cat([both[..., half:], both[..., :half]], -1), sin).unsqueeze(2)
        keys, values = layer.update(both[:, heads:], v.unsqueeze(2))
        grouped = heads != keys.shape[1]
        found = F.scaled_dot_product_attention(both[:, :heads], keys, values, attn_mask=seen, enable_gqa=grouped)
        return F.linear(found.flatten(1), *block.out)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)


def _projections(layer: Any) -> tuple[Any, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    inside = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return (*inside, mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _block(layer: Any) -> Block:
    attention, norms = layer.self_attn, (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
    head_norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
    return Block(norms, head_norms, *((module.weight, module.bias) for module in _projections(layer)))


def lean(decoder: Any, config: Any) -> Lean | None:
    """The fast form of a decoder, if it is exactly of a kind that is known here."""
    known = (
        type(decoder).__name__ in KINDS
        and config.hidden_act == "silu"
        and config._attn_implementation == "sdpa"
        and type(decoder.embed_tokens) is nn.Embedding
        and all(type(m) is nn.Linear for layer in decoder.layers for m in _projections(layer))
        and all(p.dtype == torch.float32 for p in decoder.parameters())
    )
    return Lean(decoder) if known else None
