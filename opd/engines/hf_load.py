"""Loading a model is where most mistakes can still be refused with one sentence: format, code, head, tokenizer.

Axes: B sequences, T positions, V vocabulary, D width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from opd.errors import ModelError

logging.disable_progress_bar()  # a bar per saved checkpoint would run through the training log

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
PICKLED = ("*.bin", "*.pt", "*.pth")
UNREADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, SafetensorError)
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, or of a hub name."""
    local = _is_folder(path)
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=local, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        raise ModelError(
            f"no tokenizer could be loaded from {path!r}",
            got=_first_line(error),
            expected="a tokenizer.json beside the model",
        ) from error


def load_model(
    path: str,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Any causal language model of transformers, by folder or hub name. A folder never touches the network.

    Defaults: CUDA if there is one; bfloat16 there, float32 on a CPU.
    """
    local = _is_folder(path)
    if local:
        _refuse_pickles(Path(path))
        _refuse_unknown_code(Path(path), trust_remote_code)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    where: dict[str, Any] = {"local_files_only": local, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(path, **where)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **where
        )
    except UNREADABLE as error:
        raise ModelError(
            f"no causal language model could be loaded from {path!r}",
            got=_first_line(error),
            expected="a folder with config.json and *.safetensors, or the name of such a model on the hub",
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers and say so in passing
        raise ModelError(
            f"weights are missing in {path!r}", got=f"none for {missing[0]!r}", expected="all of the model"
        )
    return model.to(place).eval()


def _is_folder(path: str) -> bool:
    """True for a folder, False for something that can only be a hub name, an error for everything else."""
    if Path(path).is_dir():
        return True
    looks_local = Path(path).exists() or (len(Path(path).parts) > 1 and Path(path).parent.exists())
    if HUB_NAME.fullmatch(path) and not looks_local:
        return False
    raise ModelError(
        f"there is no model folder {path!r}",
        got="a file" if Path(path).exists() else "nothing there",
        expected="a folder with config.json and *.safetensors, or a hub name like 'Qwen/Qwen3-0.6B'",
    )


def _refuse_pickles(folder: Path) -> None:
    pickled = [file.name for pattern in PICKLED for file in folder.glob(pattern)]
    if pickled and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"the weights in {str(folder)!r} are pickled, and unpickling runs whatever code is in the file",
            got=pickled[0],
            expected="*.safetensors",
            remedy="Convert the checkpoint to safetensors where you trust it",
        )


def _refuse_unknown_code(folder: Path, trust_remote_code: bool) -> None:
    file = folder / "config.json"
    if not file.exists():
        raise ModelError(
            f"{str(folder)!r} holds no model", got="no config.json", expected="a Hugging Face model folder"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(file)!r} is not JSON", got=str(error)) from error
    kind = config.get("model_type", "")
    if "auto_map" in config and kind not in CONFIG_MAPPING and not trust_remote_code:
        raise ModelError(
            f"the model in {str(folder)!r} brings its own code",
            got=f"model type {kind!r}",
            expected="a model type of transformers",
            remedy="Read that code; if you trust it, give --trust-remote-code (trust_remote_code = true)",
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


# ---------------------------------------------------------------------------------------------------------------------
# what of a model we rely on


def head_of(model: PreTrainedModel) -> tuple[Tensor, float]:
    """The live [V, D] weight of the head and the constant factor of its logits, or a refusal: log-probs of this
    package are log_softmax(scale * hidden @ head.T) and nothing else."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    if not isinstance(getattr(head, "weight", None), nn.Parameter):
        raise ModelError(f"{name} has no output embedding", expected="a causal language model with a linear head")
    if getattr(head, "bias", None) is not None:
        raise ModelError(f"the head of {name} has a bias", expected="a linear head without bias")
    if caps := [key for key in SOFTCAPS if getattr(config, key, None)]:
        raise ModelError(
            f"{name} squashes its logits",
            got=f"{caps[0]}={getattr(config, caps[0])}",
            expected="logits that are linear in the last hidden state",
        )
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return head.weight, scale  # pyright: ignore[reportOptionalMemberAccess, reportReturnType]


def blocks_of(decoder: nn.Module, depth: int) -> nn.ModuleList:
    """The transformer blocks: the one list of modules that is as long as the model is deep."""
    found = [child for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child) == depth]
    if len(found) != 1:
        raise ModelError(
            f"the blocks of {type(decoder).__name__} were not found", got=f"{len(found)} lists of {depth} modules"
        )
    return found[0]


@torch.no_grad()
def probe(model: PreTrainedModel, decoder: nn.Module, vocab: int) -> None:
    """Two short sequences that differ in the last token prove what everything else assumes, before a run begins:

    the logits are scale * hidden @ head.T, and a state does not see the tokens after it.
    """
    head, scale = head_of(model)
    ids = (torch.arange(8, device=head.device) * 7 + 3).expand(2, -1) % vocab
    ids = torch.stack([ids[0], torch.cat([ids[0, :-1], (ids[0, -1:] + 1) % vocab])])
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    ours = (hidden * scale if scale != 1 else hidden) @ head.T
    logits = model(input_ids=ids, use_cache=False).logits
    tolerance = 1e-4 if head.dtype in (torch.float32, torch.float64) else 2e-2
    size = logits.abs().max().clamp(min=1e-6)
    name = type(model).__name__
    if not float((ours - logits).abs().max() / size) <= tolerance:
        raise ModelError(
            f"the logits of {name} are not its last hidden state times its head", expected="a plain linear head"
        )
    if not float((ours[0, :-1] - ours[1, :-1]).abs().max() / size) <= tolerance:
        raise ModelError(f"{name} lets a position see the tokens after it", expected="a causal language model")


def real_tokens(tokenizer: PreTrainedTokenizerBase, head: Tensor) -> int:
    """How many rows of the head are tokens; the rest is padding that must never be sampled or normalised over."""
    vocab = 1 + max(tokenizer.get_vocab().values())
    if vocab > head.shape[0]:
        raise ModelError(
            "the tokenizer has more tokens than the model",
            got=vocab,
            expected=f"at most {head.shape[0]}",
            remedy="Use the tokenizer that was saved with the model",
        )
    return vocab


def same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, names: Sequence[str]) -> int:
    """How many ids mean the same in both tokenizers; one difference among the common ids is an error."""
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (first, second))
    common = 1 + min(max(ours), max(theirs))
    for i in range(common):
        if ours.get(i) != theirs.get(i):
            raise ModelError(
                f"{names[0]} and {names[1]} have different tokenizers, first at id {i}",
                got=f"{theirs.get(i)!r} in {names[1]}",
                expected=f"{ours.get(i)!r} as in {names[0]}",
                remedy="Use models of one family, or a method whose teacher answers with text",
            )
    return common
