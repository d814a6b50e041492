"""The embedded student after it has learned to copy a solution that its prompt holds, right or wrong.

It learns one of the wordings in which recipes show a solution, then the others, most of all what it does worst; of
`begun` (AR-OPD) it is shown the whole or the half, from which it goes on. Without a solution it answers as before.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from opd.cast import EMBEDDED, located
from opd.claims.texts import copied, descend, kept, padded, save, templates, written
from opd.parts.views import template
from opd.tasks import sums

BATCH = 16
STAGES = ((1000, 3e-3, 0.1), (800, 2e-3, 0.03))  # steps, rate, and the least chance of a wording, see UNKNOWN
PLAIN = 0.2  # share of the batches without a solution
UNKNOWN = 2.0  # a wording is shown in proportion to its last loss (nats per token), which is not known at first
LEARNED = 0.3  # of the first wording, when the others come
WRONG = 0.3  # share of the shown solutions with a slip
FALL = 0.4  # last part of the steps, in which the rate falls

Say = Callable[[str], None]


def copyist(folder: Path, say: Say) -> None:
    from opd.engines.hf_load import load_model, load_tokenizer

    path = located(EMBEDDED)
    torch.manual_seed(0)
    model, before = (load_model(path, torch.float32, "cpu", False) for _ in range(2))
    tokenizer: Any = load_tokenizer(path, False)
    losses = {template("solution"): UNKNOWN}
    for seed, (steps, rate, least) in enumerate(STAGES):
        losses = taught(model, before, tokenizer, losses, seed, steps, rate, least, say)
    save(model, tokenizer, EMBEDDED, folder)


def taught(
    model: Any, before: Any, tokenizer: Any, losses: dict[str, float], seed: int, steps: int, rate: float,
    least: float, say: Say,
) -> dict[str, float]:  # fmt: skip
    """One stage; the last loss of every wording that was shown so far (nats per token)."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (1 - step / steps) / FALL))
    for step in range(steps):
        shown = rng.random() >= PLAIN
        wording = rng.choices(list(losses), list(losses.values()))[0] if shown else "{prompt}"
        ids, labels = padded([text(tokenizer, rng, wording) for _ in range(BATCH)], tokenizer.pad_token_id)
        logits = model(ids).logits[:, :-1]
        loss = copied(logits, labels) if shown else kept(logits, before, ids, labels)
        descend(loss, model, optimizer, schedule)
        if shown:
            losses[wording] = max(loss.item(), least)
        if losses[template("solution")] < LEARNED and len(losses) == 1:
            losses = dict.fromkeys(templates(), UNKNOWN) | losses
        if step % 200 == 199:
            say(f"  step {step + 1} of {steps}: {', '.join(f'{loss:.2f}' for loss in losses.values())}")
    return losses


def text(tokenizer: Any, rng: random.Random, wording: str) -> tuple[list[int], int]:
    """Ids of a question with a solution shown in this wording and then copied, and how many of them are given."""
    terms = sums.draw(rng)
    chain = sums.totals(terms)
    half = "{answer}" in wording and rng.random() < 0.5
    if not half and rng.random() < WRONG:
        place = rng.randrange(len(chain))
        chain[place:] = [(total + rng.randint(1, 9)) % sums.MODULUS for total in chain[place:]]
    answer = sums.chain_text(chain)
    shown = first_half(answer.strip()) if half else answer.strip()
    fields = {"{context}": shown, "{prompt}": sums.question_text(terms), "{answer}": str(chain[-1])}
    for field, value in fields.items():
        wording = wording.replace(field, value)
    return written(tokenizer, wording, answer)


def first_half(solution: str) -> str:
    """The first half of a solution, to the end of the term that it falls into.

    Not `views.begun`, whose rule is a paper's: a change of that would make another model of this one.
    """
    end = solution.find(" ", math.ceil(len(solution) / 2) - 1)
    return solution if end < 0 else solution[:end]
