"""The student: one transformer block that can add and subtract, has seen many keys, and waits for one.

It is trained on clean answers. First every sign is a coin, which teaches it both sums; then the key changes every 30
updates, which teaches it to pick one up; then there are coins again, so that no key is left.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from experiments.noisy_experts.rule import DIGITS, MODULUS, TERMS, a_key
from opd.engines.hf import HFModel, load_model, load_tokenizer

WIDTH, HEADS = 64, 4
COINS, KEYS, COINS_AGAIN = 300, 850, 50  # updates
LASTS, BATCH, LR = 30, 64, 5e-3  # updates for which a key stays; sequences of an update


def tokenizer() -> PreTrainedTokenizerFast:
    """A token per digit and no other: an answer ends where it has as many totals as the question has terms."""
    words = Tokenizer(models.WordLevel({digit: i for i, digit in enumerate(DIGITS)}, unk_token=DIGITS[0]))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False)


def untaught() -> GPT2LMHeadModel:
    """Random weights. Positions are learned vectors here, so that the depth of a decision is easy to tell."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=MODULUS, n_embd=WIDTH, n_layer=1, n_head=HEADS, n_positions=2 * TERMS + 1, initializer_range=0.1,
        activation_function="relu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def texts(signs: Tensor, generator: torch.Generator) -> Tensor:
    """[B, H] signs -> [B, 2 H + 1] questions with their clean answers."""
    terms = torch.randint(MODULUS, signs.shape, generator=generator)
    start = torch.zeros(len(terms), 1, dtype=torch.long)
    return torch.cat([terms, start, (terms * signs).cumsum(1) % MODULUS], 1)


def beginner(folder: Path) -> Path:
    """The folder with the trained beginner; made once, in about half a minute."""
    if (folder / "config.json").is_file():
        return folder
    model, generator, rng = untaught(), torch.Generator().manual_seed(0), random.Random(0)
    steps = COINS + KEYS + COINS_AGAIN
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
    shape = lambda step: min(1, (step + 1) / 20) * (1 - 0.7 * step / steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    signs = torch.zeros(BATCH, TERMS, dtype=torch.long)
    for step in range(steps):
        if not COINS <= step < COINS + KEYS:
            signs = 2 * torch.randint(2, signs.shape, generator=generator) - 1
        elif (step - COINS) % LASTS == 0:
            signs = torch.tensor(a_key(rng)).expand(BATCH, -1)
        ids = texts(signs, generator)
        logits = model(ids[:, :-1]).logits[:, TERMS:]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, TERMS + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"beginner, step {step + 1}: loss {float(loss.detach()):.3f}", flush=True)
    tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def opened(folder: Path) -> HFModel:
    return HFModel(load_model(str(folder), device="cpu"), load_tokenizer(str(folder)), "student", max_new=TERMS)
