"""Tiny random models and their tokenizers on disk, for every test that needs a real one."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from opd.engines.hf import HFModel, load_model, load_tokenizer

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz +-=.?"
SPECIAL = ["<pad>", "<s>", "</s>"]
VOCAB = len(SPECIAL) + len(LETTERS)  # 45 real tokens


def tokenizer(letters: str = LETTERS, chat: bool = False) -> PreTrainedTokenizerFast:
    """One token per character, so that a test can read the ids."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    if chat:
        fast.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}={% endfor %}"
    return fast


def config(kind: str, vocab: int, width: int, layers: int, context: int, tied: bool):
    """A Llama, Qwen3 or GPT-2 small enough for a test."""
    shared = {"vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": tied}
    if kind == "gpt2":
        return GPT2Config(n_embd=width, n_layer=layers, n_head=2, n_positions=context, initializer_range=0.3, **shared)
    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": context,
        "initializer_range": 0.3,  # far from uniform, so that tests see differences
    }
    if kind == "qwen3":
        return Qwen3Config(head_dim=width // 2, **shape, **shared)
    return LlamaConfig(**shape, **shared)


def build(
    kind: str = "llama",
    vocab: int = VOCAB,
    width: int = 16,
    layers: int = 2,
    context: int = 128,
    tied: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A random model in memory; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM, "gpt2": GPT2LMHeadModel}[kind](
            config(kind, vocab, width, layers, context, tied)
        )
    return made.to(dtype).eval()


def folder(path: Path, kind: str = "llama", chat: bool = False, letters: str = LETTERS, **how) -> Path:
    """A Hugging Face folder with a random model and its tokenizer; returns the path."""
    build(kind, **how).save_pretrained(path)
    tokenizer(letters, chat).save_pretrained(path)
    return path


def engine(path: Path, kind: str = "llama", name: str = "student", max_new: int = 12, **how) -> HFModel:
    """A tiny engine in float64 (unless dtype says otherwise), for tests that compare to 1e-12."""
    settings = {k: how.pop(k) for k in ("lora", "micro_tokens", "gradient_checkpointing") if k in how}
    how.setdefault("dtype", torch.float64)
    here = folder(path, kind, **how)
    model = load_model(str(here), dtype=how["dtype"], device="cpu")
    return HFModel(model, load_tokenizer(str(here)), name, max_new=max_new, **settings)
