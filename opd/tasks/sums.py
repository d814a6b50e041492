"""Running totals: the model reads a chain of sums, writes every total on the way, and is graded on the last one.

    question   7 - 2 + 3 + 3 + 9 + 3 + 1 =
    answer      5, 8, 11, 20, 23, 24

Seven one-digit numbers, or as many as asked for; the totals of a correct chain lie in 0..99. A wrong total cannot be
repaired: the chain goes on from it. A problem is held out if the hash of its question says so, hence no seed, count or
order can make the two splits overlap.
"""

import hashlib
import random
import re

TERMS = 7
MODULUS = 100  # a chain that goes on from a wrong total may leave 0..99; it then wraps around
HELD_OUT = 8  # one question in eight is held out
NUMBER = re.compile(r"(?<![0-9.])-?[0-9]+(?:\.[0-9]+)?")


def question(rng: random.Random, count: int = TERMS) -> list[int]:
    """Signed terms: the first number, then what is added or subtracted. No total leaves 0..99."""
    terms = [rng.randint(1, 9)]
    for _ in range(count - 1):
        number = rng.randint(1, 9)
        plus = (rng.random() < 0.6 or sum(terms) < number) and sum(terms) + number < MODULUS
        terms.append(number if plus else -number)
    return terms


def question_text(terms: list[int]) -> str:
    return f"{terms[0]}" + "".join(f" {'+' if t > 0 else '-'} {abs(t)}" for t in terms[1:]) + " ="


def totals(terms: list[int]) -> list[int]:
    """The running total after each term but the first."""
    written, total = [], terms[0]
    for term in terms[1:]:
        total = (total + term) % MODULUS
        written.append(total)
    return written


def chain_text(written: list[int]) -> str:
    """What the model should write after the question, before the end-of-sequence token."""
    return " " + ", ".join(map(str, written))


def held_out(prompt: str) -> bool:
    return hashlib.sha256(prompt.encode()).digest()[0] % HELD_OUT == 0


def draw(rng: random.Random, split: str = "train", count: int = TERMS) -> list[int]:
    """Questions of `count` numbers from `rng` until one belongs to the split ("train" or "test")."""
    if split not in ("train", "test"):
        raise ValueError(f"got split {split!r}, expected 'train' or 'test'")
    while True:
        terms = question(rng, count)
        if held_out(question_text(terms)) == (split == "test"):
            return terms


def problems(split: str, count: int, seed: int, terms: int = TERMS) -> list[dict[str, str]]:
    """Problem i depends on (split, seed, i, terms) alone, so a longer list begins with the shorter one."""
    rows = []
    for index in range(count):
        numbers = draw(random.Random(f"sums/{split}/{seed}/{index}"), split, terms)
        chain = chain_text(totals(numbers))
        rows.append(
            {
                "id": f"sums/{split}/{seed}/{index}",
                "prompt": question_text(numbers),
                "answer": str(totals(numbers)[-1]),
                "privileged_context": chain.strip(),
            }
        )
    return rows


def grade(text: str, answer: str) -> float:
    """1.0 if the last number in the text is the answer, 0.0 for anything else, malformed text included."""
    numbers = NUMBER.findall(text)
    return float(bool(numbers) and numbers[-1] == answer)
