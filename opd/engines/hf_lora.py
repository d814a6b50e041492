"""Low-rank adapters: the student is the frozen base plus a small correction, and the base is one switch away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from opd.errors import SettingError


def add(model: PreTrainedModel, rank: int) -> None:
    """Adapters on every linear layer but the head; the base is frozen. They begin as zero, from a seed of their own."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise SettingError("lora needs the package peft", remedy="Install it with pip install 'opd[lora]'") from error
    if rank < 1:
        raise SettingError("the rank of lora", got=rank, expected="at least 1")
    dtype = next(model.parameters()).dtype
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear"))
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(torch.float64 if dtype == torch.float64 else torch.float32)
    model.eval()


def layers(model: PreTrainedModel) -> dict[str, Any]:
    """The adapted layers, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


@contextmanager
def switched_off(model: PreTrainedModel) -> Iterator[None]:
    adapted = layers(model).values()
    for layer in adapted:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in adapted:
            layer.enable_adapters(True)


def base(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights without adapters, by the names that they have in a model that has none."""
    state = model.state_dict()
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}


@torch.no_grad()
def merged(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a plain model, the adapters merged into copies; the model in memory is not touched."""
    state = base(model)
    for name, layer in layers(model).items():
        weight = layer.get_base_layer().weight
        state[f"{name}.weight"] = (weight + layer.get_delta_weight("default")).to(weight.dtype)
    return state


def save_merged(model: PreTrainedModel, folder: str | Path) -> None:
    """The folder of that plain model."""
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder, state_dict=merged(model))
