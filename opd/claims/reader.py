"""The embedded student after it has learned to copy a solution that its prompt holds, right or wrong.

It learns one of the wordings in which recipes show a solution, then the others, most of all what it does worst; of
`begun` (AR-OPD) it is shown the whole or the half, from which it goes on. Without a solution it answers as before, and
so it does after a token that is not the solution's: nobody can know both what the solution says next and what follows
from a slip.

Axes: V vocabulary, n tokens of an answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opd.cast import EMBEDDED, located
from opd.claims.models import templates
from opd.claims.texts import save
from opd.parts.views import begun, template
from opd.tasks import sums

BATCH = 16
STAGES = ((1000, 3e-3, 0.1, 0.0), (800, 2e-3, 0.03, 0.0), (600, 2e-3, 0.03, 0.5))  # steps, rate, least, slips
PLAIN = 0.2  # share of the batches without a solution
UNKNOWN = 2.0  # a wording is shown in proportion to its last loss (nats per token, `least` at least), at first this
LEARNED = 0.3  # of the first wording, when the others come
WRONG = 0.3  # share of the shown solutions with a slip
FALL = 0.4  # last part of a stage, in which the rate falls

Say = Callable[[str], None]
Ids = list[int]


@dataclass(frozen=True)
class Lesson:
    """An answer after two prompts; its first tokens are learned, the others written as after the `plain` prompt."""

    prompt: Ids
    plain: Ids
    written: Ids
    learned: Ids


def reader(folder: Path, say: Say) -> None:
    """Saves the student after all stages."""
    from opd.engines.hf_load import load_model, load_tokenizer

    path = located(EMBEDDED)
    torch.manual_seed(0)
    model, before = (load_model(path, torch.float32, "cpu", False) for _ in range(2))
    tokenizer: Any = load_tokenizer(path, False)
    losses = {template("solution"): UNKNOWN}
    for seed, stage in enumerate(STAGES):
        losses = taught(model, before, tokenizer, losses, random.Random(seed), *stage, say)
    save(model, tokenizer, EMBEDDED, folder)


def taught(
    model: Any, before: Any, tokenizer: Any, losses: dict[str, float], rng: random.Random, steps: int, rate: float,
    least: float, slips: float, say: Say,
) -> dict[str, float]:  # fmt: skip
    """One stage; the last loss of every wording that was shown so far."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (1 - step / steps) / FALL))
    for step in range(steps):
        shown = rng.random() >= PLAIN
        wording = rng.choices(list(losses), list(losses.values()))[0] if shown else "{prompt}"
        loss = loss_of(model, before, [lesson(tokenizer, rng, wording, slips) for _ in range(BATCH)])
        optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if shown:
            losses[wording] = max(loss.item(), least)
        if losses[template("solution")] < LEARNED and len(losses) == 1:
            losses = dict.fromkeys(templates(), UNKNOWN) | losses
        if step % 200 == 199:
            say(f"  step {step + 1} of {steps}: {', '.join(f'{loss:.2f}' for loss in losses.values())}")
    return losses


def lesson(tokenizer: Any, rng: random.Random, wording: str, slips: float) -> Lesson:
    """A question with a solution shown in this wording, and the solution, or a text that leaves it at a slip."""
    terms = sums.draw(rng)
    chain = sums.totals(terms)
    half = "{answer}" in wording and rng.random() < 0.5
    if not half and rng.random() < WRONG:
        place = rng.randrange(len(chain))
        chain[place:] = [(total + rng.randint(1, 9)) % sums.MODULUS for total in chain[place:]]
    answer, question = sums.chain_text(chain), sums.question_text(terms)
    shown = begun(answer.strip(), 0.5 if half else 1.0)
    prompt = wording.replace("{context}", shown).replace("{prompt}", question).replace("{answer}", str(chain[-1]))
    ids = [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
    plain = tokenizer(question).input_ids
    if prompt == question:
        return Lesson(plain, plain, ids, [])
    written = ids
    if slips and rng.random() < slips:
        place, other = rng.randrange(len(chain)), rng.randint(1, sums.MODULUS - 1)
        slipped = [*chain[:place], *((total + other) % sums.MODULUS for total in chain[place:])]
        written = [*tokenizer(sums.chain_text(slipped)).input_ids, tokenizer.eos_token_id]
    alike = next((n for n, (a, b) in enumerate(zip(ids, written, strict=False)) if a != b), len(ids) - 1)
    return Lesson(tokenizer(prompt).input_ids, plain, written, ids[: alike + 1])


def loss_of(model: Any, before: Any, lessons: Sequence[Lesson]) -> Tensor:
    """Mean over all tokens: cross-entropy where they are learned, KL(before || now) where they are not."""
    now = answered(model, [(one.prompt, one.written) for one in lessons])
    with torch.no_grad():
        old = answered(before, [(one.plain, one.written) for one in lessons])
    total = torch.zeros(())
    for one, ours, theirs in zip(lessons, now, old, strict=True):
        n = len(one.learned)
        total = total + F.cross_entropy(ours[:n], torch.tensor(one.learned, dtype=torch.long), reduction="sum")
        total = total + F.kl_div(ours[n:].log_softmax(-1), theirs[n:].log_softmax(-1), log_target=True, reduction="sum")
    return total / sum(len(one.written) for one in lessons)


def answered(model: Any, texts: Sequence[tuple[Ids, Ids]]) -> list[Tensor]:
    """[n, V] logits of every answer's tokens after its prompt; prompts and answers are filled up on the right."""
    longest = max(len(prompt) + len(answer) for prompt, answer in texts)
    ids = torch.tensor([[*prompt, *answer, *[0] * (longest - len(prompt) - len(answer))] for prompt, answer in texts])
    logits = model(ids).logits
    return [logits[row, len(p) - 1 : len(p) + len(a) - 1] for row, (p, a) in enumerate(texts)]
