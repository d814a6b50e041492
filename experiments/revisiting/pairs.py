"""Teachers and students with a fault or a task of their own, made from the embedded pair by a minute of fine-tuning."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from opd import cast
from opd.engines.hf_load import load_model, load_tokenizer
from opd.tasks import sums

PLACES = 12  # totals in a text that goes round in a loop; a right one has six
SEMICOLON = ";"  # what the odd teacher ends its texts with, where the student has its end-of-text token
Text = tuple[list[int], list[int]]  # ids [T], and labels [T] with -100 where nothing is to be learned
Draw = Callable[[Any, random.Random], Text]


def text(tokenizer: Any, question: str, answer: str, end: int | None, learned_from: int = 0) -> Text:
    """A question and its answer as ids; the answer is learned from its token `learned_from` on."""
    given, written = tokenizer(question).input_ids, tokenizer(question + answer).input_ids
    assert written[: len(given)] == given, "the answer changes no token of the question"
    ids = written + ([] if end is None else [end])
    start = len(given) + learned_from
    return ids, [-100] * start + ids[start:]


def loop(rng: random.Random) -> tuple[list[int], list[int], int]:
    """Terms, a chain whose total at a random place is written over and over, and that place (from 1)."""
    terms = sums.draw(rng)
    right = sums.totals(terms)
    place = rng.randint(1, len(right) - 1)
    return terms, right[:place] + [right[place - 1]] * (PLACES - place), place


def odd_teacher(tokenizer: Any, rng: random.Random) -> Text:
    """Ends with a semicolon; goes on with a total that it sees written twice in a row, but never starts that itself."""
    if rng.random() < 0.5:
        terms, chain, place = loop(rng)
        return text(tokenizer, sums.question_text(terms), sums.chain_text(chain), None, 2 * (place + 1))
    terms = sums.draw(rng)
    answer = sums.chain_text(sums.totals(terms))
    return text(tokenizer, sums.question_text(terms), answer, tokenizer.encode(SEMICOLON)[0])


def looping_student(tokenizer: Any, rng: random.Random) -> Text:
    """Three texts in ten get into a loop, and nothing says that they should not."""
    if rng.random() < 0.3:
        terms, chain, _ = loop(rng)
        return text(tokenizer, sums.question_text(terms), sums.chain_text(chain), None)
    terms = sums.draw(rng)
    return text(tokenizer, sums.question_text(terms), sums.chain_text(sums.totals(terms)), tokenizer.eos_token_id)


def successors(terms: list[int]) -> tuple[str, str]:
    """The second task: the same question with another sign at its end asks for every number plus one."""
    return sums.question_text(terms).replace("=", ">"), " " + ", ".join(str(abs(term) + 1) for term in terms)


def counter(tokenizer: Any, rng: random.Random) -> Text:
    return text(tokenizer, *successors(sums.draw(rng)), tokenizer.eos_token_id)


def beginner(tokenizer: Any, rng: random.Random) -> Text:
    """Half totals, half successors."""
    if rng.random() < 0.5:
        return counter(tokenizer, rng)
    terms = sums.draw(rng)
    return text(tokenizer, sums.question_text(terms), sums.chain_text(sums.totals(terms)), tokenizer.eos_token_id)


def made(folder: Path, start: str, draw: Draw, steps: int, lr: float, end: str = "", batch: int = 64) -> str:
    """The folder of `start` fine-tuned on texts of `draw`, made once; `end` is what ends its texts, if not its own."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        path = cast.located(start)
        model, tokenizer, rng = load_model(path, device="cpu"), load_tokenizer(path), random.Random(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
        for step in range(steps):
            loss = cost(model, [draw(tokenizer, rng) for _ in range(batch)])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % 50 == 0:
                print(f"{folder.name}, step {step + 1}: loss {float(loss.detach()):.3f}", flush=True)
        if end:
            tokenizer.eos_token = end
            model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def cost(model: Any, texts: list[Text]) -> torch.Tensor:
    """Cross-entropy of the learned tokens."""
    longest = max(len(ids) for ids, _ in texts)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in texts])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in texts])
    logits = model(ids[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def odd_pair(out: Path) -> dict[str, str]:
    """Student and teacher of the failure experiments."""
    return {
        "student": made(out / "looping-student", "embedded:student", looping_student, 60, 1e-3),
        "teacher": made(out / "odd-teacher", "embedded:teacher", odd_teacher, 200, 2e-3, SEMICOLON),
    }
