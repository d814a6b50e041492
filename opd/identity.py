"""Which model it was: hashes of weights and tokenizers, by which answers that were kept are told from others'."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch


def weights(model: torch.nn.Module) -> str:
    """A hash of every parameter and buffer: its name, type, shape and numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def tokens(tokenizer: Any) -> str:
    """A hash of what every id stands for."""
    known = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()
