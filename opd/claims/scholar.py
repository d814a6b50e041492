"""The embedded student after it has learned to copy a solution that its prompt holds, right or wrong.

It learns one of the wordings in which recipes show a solution, then the others, most of all what it does worst; of
`begun` (AR-OPD) it is shown the whole or the half, from which it goes on. Without a solution it answers as before, and
so it does in an answer that has left the solution: nobody can say the next total of the solution as what follows from
a slip.

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
STAGES = ((1000, 3e-3, 0.1, 0.0), (800, 2e-3, 0.03, 0.0), (800, 3e-3, 0.1, 0.6))  # steps, rate, least, drafts
DRAFTS = 2048  # answers of the untaught student, most of which leave the solution somewhere
PLAIN = 0.2  # share of the batches without a solution
UNKNOWN = 2.0  # a wording is shown in proportion to its last loss (nats per token, `least` at least), at first this
LEARNED = 0.3  # of the first wording, when the others come
WRONG = 0.3  # share of the shown solutions with a slip
FALL = 0.4  # last part of a stage, in which the rate falls

Say = Callable[[str], None]
Ids = list[int]
Draft = tuple[list[int], Ids]  # the terms of a question and an answer to it


@dataclass(frozen=True)
class Lesson:
    """An answer after two prompts; its first tokens are learned, the others written as after the `plain` prompt."""

    prompt: Ids
    plain: Ids
    written: Ids
    learned: Ids


def scholar(folder: Path, say: Say) -> None:
    """Saves the student after all stages."""
    from opd.engines.hf_load import load_model, load_tokenizer

    path = located(EMBEDDED)
    model, before = (load_model(path, torch.float32, "cpu", False) for _ in range(2))
    tokenizer: Any = load_tokenizer(path, False)
    torch.manual_seed(0)
    drafts, losses = drafted(before, tokenizer, random.Random("drafts")), {template("solution"): UNKNOWN}
    for seed, stage in enumerate(STAGES):
        losses = taught(model, before, tokenizer, drafts, losses, random.Random(seed), *stage, say)
    save(model, tokenizer, EMBEDDED, folder)


def taught(
    model: Any, before: Any, tokenizer: Any, drafts: list[Draft], losses: dict[str, float], rng: random.Random,
    steps: int, rate: float, least: float, share: float, say: Say,
) -> dict[str, float]:  # fmt: skip
    """One stage; the last loss of every wording that was shown so far."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (1 - step / steps) / FALL))
    for step in range(steps):
        shown = rng.random() >= PLAIN
        wording = rng.choices(list(losses), list(losses.values()))[0] if shown else "{prompt}"
        read = shown and share > 0
        some = [rng.choice(drafts) if read and rng.random() < share else None for _ in range(BATCH)]
        loss = loss_of(model, before, [lesson(tokenizer, rng, wording, draft) for draft in some])
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


def drafted(before: Any, tokenizer: Any, rng: random.Random) -> list[Draft]:
    """Questions with what the untaught student writes to them."""
    found = list[Draft]()
    for _ in range(DRAFTS // 256):
        some = [sums.draw(rng) for _ in range(256)]
        texts = [sums.question_text(terms) for terms in some]
        asked = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        with torch.no_grad():
            written = before.generate(
                input_ids=asked.input_ids, attention_mask=asked.attention_mask, max_new_tokens=20, do_sample=True,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        for terms, ids in zip(some, written[:, asked.input_ids.shape[1] :].tolist(), strict=True):
            end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
            found.append((terms, ids[:end]))
    return found


def lesson(tokenizer: Any, rng: random.Random, wording: str, draft: Draft | None = None) -> Lesson:
    """A question with a solution shown in this wording, and the solution, or a draft that leaves it somewhere."""
    terms, written = draft or (sums.draw(rng), None)
    chain = sums.totals(terms)
    half = "{answer}" in wording and rng.random() < 0.5
    if not draft and not half and rng.random() < WRONG:
        place = rng.randrange(len(chain))
        chain[place:] = [(total + rng.randint(1, 9)) % sums.MODULUS for total in chain[place:]]
    answer, question = sums.chain_text(chain), sums.question_text(terms)
    shown = begun(answer.strip(), 0.5 if half else 1.0)
    prompt = wording.replace("{context}", shown).replace("{prompt}", question).replace("{answer}", str(chain[-1]))
    ids = [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
    plain = tokenizer(question).input_ids
    if prompt == question:
        return Lesson(plain, plain, ids, [])
    written = written or ids
    alike = next((n for n, (a, b) in enumerate(zip(ids, written, strict=False)) if a != b), len(written) - 1)
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
