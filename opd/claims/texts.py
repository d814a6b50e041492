"""What makers share: questions with what is to be written after them, the loss on that, and at last a folder.

Axes: B texts, T positions, V vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opd.cast import located

IGNORED = -100


def written(tokenizer: Any, question: str, answer: str) -> tuple[list[int], int]:
    """Ids of both and the end of the text, and how many of them are given."""
    given, more = tokenizer(question).input_ids, tokenizer(answer).input_ids
    return [*given, *more, tokenizer.eos_token_id], len(given)


def padded(texts: Sequence[tuple[list[int], int]], padding: int) -> tuple[Tensor, Tensor]:
    """[B, T] ids, and [B, T - 1] the next token where it is written, IGNORED elsewhere."""
    longest = max(len(ids) for ids, _ in texts)
    ids = torch.tensor([one + [padding] * (longest - len(one)) for one, _ in texts])
    labels = ids[:, 1:].clone()
    for row, (one, given) in enumerate(texts):
        labels[row, : given - 1], labels[row, len(one) - 1 :] = IGNORED, IGNORED
    return ids, labels


def copied(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def templates() -> list[str]:
    """Every wording in which a recipe shows a solution."""
    files = (file for file in resources.files("opd.recipes").iterdir() if file.name.endswith(".txt"))
    texts = [file.read_text(encoding="utf-8").rstrip("\n") for file in sorted(files, key=lambda file: file.name)]
    return [text for text in texts if "{prompt}" in text and "{context}" in text]


def kept(logits: Tensor, before: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """KL(before || now) where an answer is written: without a solution it goes on as it did."""
    with torch.no_grad():
        old = before(ids).logits[:, :-1].log_softmax(-1)
    here = labels != IGNORED
    return F.kl_div(logits.log_softmax(-1)[here], old[here], log_target=True, reduction="batchmean")


def descend(loss: Tensor, model: Any, optimizer: Any, schedule: Any) -> None:
    """One update, its gradient no longer than 1."""
    optimizer.zero_grad()
    loss.backward()  # pyright: ignore[reportUnknownMemberType]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def save(model: Any, tokenizer: Any, origin: str, folder: Path) -> None:
    """The model with its tokenizer, and whatever else its origin has beside them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in Path(located(origin)).iterdir():
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
