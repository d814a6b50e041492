"""On-policy distillation, whole, in one file to read: the student writes, the teacher reads what it wrote, it learns.

    python examples/minimal.py [STUDENT_FOLDER TEACHER_FOLDER]

What `opd train gkd --lam 1 --beta 1` does, without the package: no chunks, no table, no checkpoints, no options. It
needs torch and transformers. Left out, and why that is allowed here: probabilities are kept for every position at once
(memory: a batch of these tiny models is nothing); the prompt is computed anew with every token (no cache: short texts);
problems are made up on the spot, so nothing is held out by hashing, and a few may repeat.

Axes: B answers, T positions, V vocabulary.
"""

import random
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

EMBEDDED = Path(__file__).parent.parent / "opd" / "embedded"
STEPS, BATCH, MAX_NEW, LR, TEMPERATURE = 60, 32, 24, 3e-3, 1.5


# ---- the task: running totals, a chain of thought that anyone can follow


def question(rng: random.Random) -> tuple[str, list[int]]:
    """A chain of seven one-digit numbers whose running totals stay between 0 and 99, as text and as those totals."""
    terms, totals = [rng.randint(1, 9)], []
    total = terms[0]
    for _ in range(6):
        term = rng.randint(1, 9)
        term = term if rng.random() < 0.6 or total < term else -term
        terms.append(term)
        total += term
        totals.append(total)
    text = str(terms[0]) + "".join(f" {'+' if term > 0 else '-'} {abs(term)}" for term in terms[1:])
    return f"{text} =", totals


def right(answer: str, totals: list[int]) -> bool:
    """The last number that was written is the last total."""
    numbers = [word for word in answer.replace(",", " ").split() if word.isdigit()]
    return bool(numbers) and int(numbers[-1]) == totals[-1]


# ---- who writes: the student samples


@torch.no_grad()
def write(model, prompts: Tensor, stop: int, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[B, P] prompts -> [B, P+T] with answers, and [B, T] true where a token was decided (the stop token included)."""
    tokens, alive, decided = prompts, torch.ones(len(prompts), dtype=torch.bool), []
    for _ in range(MAX_NEW):
        logits = model(tokens).logits[:, -1]
        token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, token], 1)
        decided.append(alive)
        alive = alive & (token[:, 0] != stop)
        if not alive.any():
            break
    return tokens, torch.stack(decided, 1)


# ---- who reads, and what is learned: reverse KL at every state that the student visited


def reverse_kl(student, teacher, tokens: Tensor, decided: Tensor) -> Tensor:
    """mean over decided tokens of sum_v p(v) (log p(v) - log q(v)); p student, q teacher, on the student's own text."""
    first = tokens.shape[1] - decided.shape[1]
    log_p = student(tokens).logits[:, first - 1 : -1].log_softmax(-1)  # [B, T, V]: what was known before each decision
    with torch.no_grad():
        log_q = teacher(tokens).logits[:, first - 1 : -1].log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # [B, T]
    return divergence[decided].mean()  # prompts and what follows the stop token are not rows: there is no mask below


# ---- the loop


def batch(tokenizer, rng: random.Random, size: int) -> tuple[Tensor, list[list[int]]]:
    """[B, P] prompts of one length (every question has as many tokens as any other) and their totals."""
    questions = [question(rng) for _ in range(size)]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text, _ in questions]
    assert len({len(row) for row in ids}) == 1, "this file does without padding: all questions have the same length"
    return torch.tensor(ids), [totals for _, totals in questions]


def accuracy(model, tokenizer, stop: int, seed: int, size: int = 128) -> float:
    prompts, totals = batch(tokenizer, random.Random(seed), size)
    tokens, decided = write(model, prompts, stop, 1.0, torch.Generator().manual_seed(seed))
    answers = [tokenizer.decode(row[mask]) for row, mask in zip(tokens[:, prompts.shape[1] :], decided, strict=True)]
    answers = [answer.replace(tokenizer.eos_token, "") for answer in answers]
    return sum(right(answer, total) for answer, total in zip(answers, totals, strict=True)) / size


def main(student_folder: str, teacher_folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student_folder)
    student = AutoModelForCausalLM.from_pretrained(student_folder, dtype=torch.float32).eval()
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32).eval()
    stop, rng, generator = tokenizer.eos_token_id, random.Random(0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0, betas=(0.9, 0.98))
    print(f"before: {accuracy(student, tokenizer, stop, seed=1):.0%} right")
    for step in range(STEPS):
        prompts, _ = batch(tokenizer, rng, BATCH)
        tokens, decided = write(student, prompts, stop, TEMPERATURE, generator)
        loss = reverse_kl(student, teacher, tokens, decided)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 10) * (1 - 0.9 * step / STEPS)
        optimizer.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}: reverse KL {loss.item():.3f} nats per token")
    print(f"after: {accuracy(student, tokenizer, stop, seed=1):.0%} right")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [str(EMBEDDED / "student"), str(EMBEDDED / "teacher")]))
