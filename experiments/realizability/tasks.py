"""Countdown and chains of sums from reasoning_gym, in tokens so few that a transformer of two layers learns them.

The questions and the scorers are the package's. The answers to learn from are ours: of Countdown any right expression,
drawn at random, of a sum every running total on a line of its own, the last of which is scored.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations, product

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd.rollout import Problem
from opd.tasks import load_task
from opd.tasks.graders import Graded

EOS, PAD = "<eos>", "<pad>"
TRAIN, HELD_OUT = 2048, 512  # the second half of the held-out problems chooses learning rates
TAIL = """

Final answer format instructions:
1. Provide your solution as a arithmetic expression (no '=' sign).
2. Do not include the target number in the expression.
3. Use '*' for multiplication.
4. Use '/' for division.
5. Do not include any other text or formatting.
"""
COUNTDOWN = tuple(
    text + TAIL
    for text in (
        "Using all the numbers {numbers}, create an expression that equals {target}.\n"
        "You can only use each number once.",
        "Find a way to make {target} using all of these numbers: {numbers}.\nEach number can only be used once.",
        "Calculate {target} using all of these numbers: {numbers}.\nEach number may be used at most once.",
    )
)
SUM = "State the final answer to the following arithmetic problem: {chain} ="
NUMBERS, LARGEST, TARGET = 3, 20, 60  # of a Countdown question: how many, up to what, and the largest target
TERMS = 6
Example = tuple[str, str, str]  # question, answer, and what makes it the same question


@dataclass(frozen=True)
class Kind:
    """One of the two tasks."""

    spec: str
    draw: Callable[[random.Random], Example]
    same: Callable[[str], str]  # a question -> what makes it the same question
    words: tuple[str, ...]  # the vocabulary
    max_new: int  # tokens of the longest right answer, and two more
    teacher: tuple[int, int]  # width and layers
    students: dict[str, tuple[int, int]]  # by name; beside them its earlier self
    steps: int  # of the teacher's own training
    start: float  # per cent of samples that are right when a student is taken

    def problems(self) -> Graded:
        """Training problems none of which is a held-out one in another order."""
        task = load_task(f"{self.spec},tags=false,train={TRAIN},held_out={HELD_OUT}")
        assert isinstance(task, Graded)
        held = {self.same(question(problem)) for problem in task.held_out}
        return replace(task, train=[problem for problem in task.train if self.same(question(problem)) not in held])

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per word of the vocabulary; of the package's sentences every piece between numbers is a word."""
        vocabulary = {word: i for i, word in enumerate([PAD, EOS, *self.words])}
        longest_first = sorted(self.words, key=lambda word: (-len(word), word))
        core = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
        core.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated")
        core.decoder = decoders.Fuse()
        core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, EOS)])
        return PreTrainedTokenizerFast(
            tokenizer_object=core, eos_token=EOS, pad_token=PAD, padding_side="left", clean_up_tokenization_spaces=False
        )


def question(problem: Problem) -> str:
    return problem.messages[-1]["content"]


# ---- countdown


def countdown(rng: random.Random) -> Example:
    """A question that has an answer, and one of its answers."""
    numbers = [rng.randint(1, LARGEST) for _ in range(NUMBERS)]
    reachable = SOLUTIONS[tuple(sorted(numbers))]
    target = rng.choice(list(reachable))
    asked = rng.choice(COUNTDOWN).format(numbers=", ".join(map(str, numbers)), target=target)
    return asked, rng.choice(reachable[target]), same_countdown(asked)


def same_countdown(asked: str) -> str:
    """The order of the numbers and the wording do not matter."""
    asked = asked.removesuffix(TAIL)
    (several,) = re.findall(r"\d+(?:, \d+)+", asked)
    (target,) = re.findall(r"\d+", asked.replace(several, ""))
    return f"{sorted(several.split(', '))} {target}"


def solutions(numbers: tuple[int, ...]) -> dict[int, list[str]]:
    """Target -> every expression for it: the numbers in any order, each added or taken away."""
    found: dict[int, set[str]] = {}
    for (first, *others), signs in product(set(permutations(numbers)), product((1, -1), repeat=NUMBERS - 1)):
        value = first + sum(sign * other for sign, other in zip(signs, others, strict=True))
        text = str(first) + "".join(f"{'-+'[sign > 0]}{other}" for sign, other in zip(signs, others, strict=True))
        if 1 <= value <= TARGET:
            found.setdefault(value, set()).add(text)
    return {value: sorted(texts) for value, texts in sorted(found.items())}


SOLUTIONS = {
    numbers: solutions(numbers)
    for numbers in product(range(1, LARGEST + 1), repeat=NUMBERS)
    if list(numbers) == sorted(numbers)
}

# ---- sums


def chain_sum(rng: random.Random) -> Example:
    """A chain of one-digit numbers and its running totals."""
    signs = rng.choices(("+", "-"), k=TERMS - 1)
    terms = [rng.randint(0, 9) for _ in range(TERMS)]
    total, written, chain = terms[0], "", str(terms[0])
    for sign, term in zip(signs, terms[1:], strict=True):
        total += term if sign == "+" else -term
        written += f"\n{total}"
        chain += f" {sign} {term}"
    asked = SUM.format(chain=chain)
    return asked, written, asked


def pieces(*templates: str) -> list[str]:
    return sorted({piece for template in templates for piece in re.split(r"\{\w+\}", template)} - {""})


TOTALS = [f"\n{total}" for total in range(-9 * (TERMS - 1), 9 * TERMS + 1)]
KINDS = {
    "countdown": Kind(
        f"reasoning_gym:countdown,min_numbers={NUMBERS},max_numbers={NUMBERS},max_value={LARGEST},min_target=1,"
        f"max_target={TARGET},operators=+-",
        countdown, same_countdown,
        (*pieces(*COUNTDOWN), *map(str, range(TARGET + 1)), ", ", *"+- "), 8,
        (64, 2), {"unable": (16, 1)}, 400, 12.0,
    ),
    "sums": Kind(
        f"reasoning_gym:chain_sum,min_terms={TERMS},max_terms={TERMS},min_digits=1,max_digits=1",
        chain_sum, str, (*pieces(SUM), *map(str, range(10)), " + ", " - ", *TOTALS), TERMS + 2,
        (64, 2), {"smaller": (24, 1), "unable": (16, 1)}, 600, 12.0,
    ),
}  # fmt: skip
