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

WIDEST = 1024  # above it Python no longer matters, and a second copy of the weights would
KINDS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")


@dataclass(frozen=True)
class Block:
    """The parameters of one transformer block; maps of the same input are one map, put together once per writing."""

    norms: tuple[Tensor, Tensor]
    head_norms: Tensor | None  # [H + h, E] of queries and keys, where a model has them
    query_key_value: tuple[Tensor, Tensor | None]  # weight and bias, as of all that follow
    out: tuple[Tensor, Tensor | None]
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]


class Lean:
    """A decoder that reads one token per sequence; keys and values are kept in the layers of a cache."""

    def __init__(self, decoder: Any, config: Any) -> None:
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm.weight
        self.width, self.heads = decoder.layers[0].self_attn.head_dim, config.num_attention_heads
        self.turned = self.heads + config.num_key_value_heads  # H + h
        self.eps = self.norm.new_tensor([config.rms_norm_eps])
        self.blocks = [self._block(layer) for layer in decoder.layers]

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Sequence[Any]) -> Tensor:
        """ids [b], positions [b, 1], mask [b, T] of what may be seen -> [b, D] the state after the last norm."""
        x = self.embed(ids)
        cos, sin = self.rotary(x, positions)
        sin = torch.cat([-sin[..., : self.width // 2], sin[..., self.width // 2 :]], -1)
        seen = None if mask is None else mask[:, None, None, :].bool()
        for block, layer in zip(self.blocks, cache, strict=True):
            x = self._attend(block, x, (cos, sin), seen, layer).add_(x)
            gate, up = F.linear(self._normed(x, block.norms[1]), *block.gate_up).chunk(2, -1)
            x = F.linear(F.silu(gate).mul_(up), *block.down).add_(x)
        return self._normed(x, self.norm)

    def _attend(self, block: Block, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor | None, layer: Any) -> Tensor:
        x = self._normed(x, block.norms[0])
        every = F.linear(x, *block.query_key_value).unflatten(-1, (-1, self.width))  # [b, H + h + h, E]
        both, v = every[:, : self.turned], every[:, self.turned :]
        if block.head_norms is not None:
            both = self._normed(both, block.head_norms)
        (cos, sin), half = turn, self.width // 2
        both = torch.addcmul(both * cos, torch.cat([both[..., half:], both[..., :half]], -1), sin).unsqueeze(2)
        keys, values = layer.update(both[:, self.heads :], v.unsqueeze(2))
        grouped = self.heads != keys.shape[1]
        found = F.scaled_dot_product_attention(both[:, : self.heads], keys, values, attn_mask=seen, enable_gqa=grouped)
        return F.linear(found.flatten(1), *block.out)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        # x / sqrt(mean(x^2) + eps): F.rms_norm takes twice as long for a few rows
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(self.eps, size, size, value=1 / x.shape[-1]).rsqrt_().mul(x).mul_(weight)

    def _block(self, layer: Any) -> Block:
        attention, mlp = layer.self_attn, layer.mlp
        head_norms = None
        if hasattr(attention, "q_norm"):
            shared = self.turned - self.heads
            parts = [(attention.q_norm.weight, self.heads), (attention.k_norm.weight, shared)]
            head_norms = torch.cat([weight.expand(count, -1) for weight, count in parts])
        return Block(
            (layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
            head_norms,
            _together(attention.q_proj, attention.k_proj, attention.v_proj),
            _together(attention.o_proj),
            _together(mlp.gate_proj, mlp.up_proj),
            _together(mlp.down_proj),
        )


def _together(*modules: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of linear maps of one input as those of a single one."""
    if len(modules) == 1:
        return modules[0].weight, modules[0].bias
    biases: list[Tensor] = [module.bias for module in modules if module.bias is not None]
    return torch.cat([module.weight for module in modules]), torch.cat(biases) if biases else None


def _projections(layer: Any) -> tuple[Any, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    inside = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return (*inside, mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def lean(decoder: Any, config: Any) -> Lean | None:
    """The fast form of a decoder, if it is exactly of a kind that is known here."""
    known = (
        type(decoder).__name__ in KINDS
        and config.hidden_size <= WIDEST
        and config.hidden_act == "silu"
        and config._attn_implementation == "sdpa"
        and type(decoder.embed_tokens) is nn.Embedding
        and all(type(m) is nn.Linear for layer in decoder.layers for m in _projections(layer))
        and all(p.dtype == torch.float32 for p in decoder.parameters())
    )
    return Lean(decoder, config) if known else None
