"""Which model this is: a client keeps it, and stops when another one answers under the same address."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd import __version__
from opd.errors import ModelError
from opd.serve import wire
from opd.serve.limits import Limits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from opd.engines.hf import HFModel

CAN = ("chosen", "topk", "gather", "dist", "inner", "text")
FILES = (".json", ".jinja", ".txt")  # what a tokenizer may consist of
PIECE = 2**24  # elements hashed at a time


def info(model: HFModel, limits: Limits) -> dict[str, Any]:
    """Everything that a client wants to know before it asks."""
    state = model.model.state_dict()
    return {
        "server": f"opd {__version__}",
        "format": wire.VERSION,
        "model": model.name,
        "weights": weights_hash(state),
        "head": weights_hash({"head": model.head[: model.vocab]}),
        "tokenizer": tokenizer_hash(model.tokenizer),
        "vocab": model.vocab,
        "width": model.width,
        "layers": model.config.num_hidden_layers,
        "context": model.context,
        "stops": sorted(model.stops),
        "dtype": str(model.head.dtype).removeprefix("torch."),
        "device": str(model.device),
        "can": [name for name in CAN if name != "inner" or has_blocks(model)],
        "batch_tokens": model.micro_tokens,
        "batch_sequences": model.max_sequences,
        "limits": limits.to_json(),
    }


def has_blocks(model: HFModel) -> bool:
    """Whether states of single layers can be given."""
    try:
        return len(model.blocks) > 0
    except ModelError:
        return False


def known(model: Any) -> dict[str, Any]:
    """Name, weights without adapters, and precision; a teacher that is no model here says itself who it is."""
    from opd.engines import hf_lora

    if hasattr(model, "manifest"):
        return {"name": model.name, **model.manifest["identity"]}
    engine = getattr(model, "student", getattr(model, "engine", model))
    weights = weights_hash(hf_lora.base(engine.model))
    return {"name": engine.name, "weights": weights, "dtype": str(engine.head.dtype).removeprefix("torch.")}


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bits; the same model in another precision is another one."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        for piece in tensor.detach().reshape(-1).split(PIECE):
            found.update(piece.contiguous().view(torch.uint8).cpu().numpy().data)
    return found.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what every id means."""
    found = hashlib.blake2b(digest_size=16)
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0])):
        found.update(f"{number} {token}\n".encode())
    return found.hexdigest()


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer as files of text, which a client loads as it would load its own."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(file for file in Path(folder).iterdir() if file.suffix in FILES)
        return {file.name: file.read_text(encoding="utf-8") for file in files}


def tokenizer_of(files: Mapping[str, str]) -> PreTrainedTokenizerBase:
    """The tokenizer that a server gave; names with a path in them are refused, and no code is run."""
    from opd.engines.hf import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            if Path(name).name != name or Path(name).suffix not in FILES:
                raise ModelError("a server's tokenizer has a file that cannot be", got=repr(name), expected=FILES)
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return load_tokenizer(folder)
