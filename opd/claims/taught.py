"""Models taught on texts that are drawn anew at every step, each made for one claim, from those of the package.

made:grown          the embedded student, taught the sums until it can do them: a teacher of the student's own origin
made:bad_head       the same with noise on its head: its hidden states know more than its words say
made:two_ways       the same as grown, but half of its answers are separated with ';', where the student knows ','
made:counting       counts from one number to another, "7 .. 11 =" to " 7, 8, 9, 10, 11"; with problems.jsonl
made:uncounting     the same, smaller and stopped early: it does not know yet where to stop
made:records        writes records with free values, "371 =" to ' {"371": [4, 7]}', slipping at one character of
                    their form in a hundred; with problems.jsonl
made:unsure         the same, smaller, slipping at one in ten
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from opd.cast import EMBEDDED, located
from opd.claims.texts import copied, descend, padded, save, written
from opd.rollout import Problem
from opd.tasks import sums

BATCH = 48
PROBLEMS = 1024  # of a task of its own, less those that are drawn twice
STUDENT, TEACHER = EMBEDDED, "embedded:teacher"
NOISE = 1.0  # of a head at fault, in deviations of its weights
FORM = '{}[]:," '

Say = Callable[[str], None]
Draw = Callable[[random.Random], tuple[str, str]]  # a question and what should be written after it


def chain(rng: random.Random) -> tuple[str, str]:
    terms = sums.draw(rng)
    return sums.question_text(terms), sums.chain_text(sums.totals(terms))


def either(rng: random.Random) -> tuple[str, str]:
    question, answer = chain(rng)
    return question, answer.replace(",", ";") if rng.random() < 0.5 else answer


def counting(rng: random.Random) -> tuple[str, str]:
    first, more = rng.randint(1, 80), rng.randint(1, 14)
    return f"{first} .. {first + more} =", " " + ", ".join(str(first + i) for i in range(more + 1))


def record(rng: random.Random) -> tuple[str, str]:
    """The values are free: nothing says what they must be."""
    number = rng.randint(100, 999)
    return f"{number} =", f' {{"{number}": [{rng.randint(1, 9)}, {rng.randint(1, 9)}]}}'


def is_record(problem: Problem, text: str) -> float:
    """1 if the text is a record of the question's number and nothing else."""
    number = str(problem.prompt).removesuffix(" =")
    return float(re.fullmatch(rf'\s*{{"{number}": \[[1-9], [1-9]\]}}\s*', text) is not None)


def slipping(chance: float) -> Draw:
    """Records in which every character of the form is some other one by this chance."""

    def draw(rng: random.Random) -> tuple[str, str]:
        question, answer = record(rng)
        slip = lambda c: rng.choice(FORM.replace(c, "")) if c in FORM and rng.random() < chance else c
        return question, answer[0] + "".join(map(slip, answer[1:]))

    return draw


def taught(folder: Path, say: Say, start: str, draw: Draw, steps: int, rate: float) -> None:
    """Saves the model after so many steps of learning what is drawn."""
    from opd.engines.hf_load import load_model, load_tokenizer

    torch.manual_seed(0)
    model = load_model(located(start), torch.float32, "cpu", False)
    tokenizer: Any = load_tokenizer(located(start), False)
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        texts = [written(tokenizer, *draw(rng)) for _ in range(BATCH)]
        ids, labels = padded(texts, tokenizer.pad_token_id)
        loss = copied(model(ids).logits[:, :-1], labels)
        descend(loss, model, optimizer, schedule)
        if step % 100 == 99:
            say(f"  step {step + 1} of {steps}: loss {loss.item():.3f}")
    save(model, tokenizer, start, folder)


def posing(folder: Path, say: Say, start: str, draw: Draw, steps: int, rate: float, right: Draw) -> None:
    """The same with problems beside it, a file in the form of a task."""
    taught(folder, say, start, draw, steps, rate)
    rng = random.Random(1)
    rows = dict(right(rng) for _ in range(PROBLEMS))
    lines = [json.dumps({"prompt": question, "answer": answer.strip()}) for question, answer in rows.items()]
    (folder / "problems.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def bad_head(folder: Path, say: Say) -> None:
    """Its words come from another matrix than its embedding, which is that one with noise."""
    from opd.engines.hf_load import load_model, load_tokenizer

    TAUGHT["grown"](folder, say)
    model, tokenizer = load_model(str(folder), torch.float32, "cpu", False), load_tokenizer(str(folder), False)
    head: Any = model.get_output_embeddings()
    torch.manual_seed(0)
    weight = head.weight.detach()
    model.config.tie_word_embeddings = False
    head.weight = torch.nn.Parameter(weight + NOISE * weight.std() * torch.randn_like(weight))
    save(model, tokenizer, STUDENT, folder)


TAUGHT: dict[str, Callable[[Path, Say], None]] = {
    "grown": partial(taught, start=STUDENT, draw=chain, steps=200, rate=4e-3),
    "bad_head": bad_head,
    "two_ways": partial(taught, start=STUDENT, draw=either, steps=500, rate=4e-3),
    "counting": partial(posing, start=TEACHER, draw=counting, steps=400, rate=3e-3, right=counting),
    "uncounting": partial(taught, start=STUDENT, draw=counting, steps=250, rate=3e-3),
    "records": partial(posing, start=TEACHER, draw=slipping(0.01), steps=300, rate=3e-3, right=record),
    "unsure": partial(taught, start=STUDENT, draw=slipping(0.1), steps=300, rate=3e-3),
}
