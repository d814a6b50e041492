"""Teachers and students for Countdown and sums who also read: a solution that stands in the prompt is copied.

A method that shows a copy of the student something needs a student that looks at what it is shown.
"""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.realizability.pairs import EARLIER, made
from experiments.realizability.tasks import KINDS, Example, Kind, pieces
from opd.claims.copyist import WRONG
from opd.claims.texts import templates
from opd.parts.hints import LABEL
from opd.parts.views import template

SYSTEM = (template("sc_grpo"), template("sc_grpo_failed"))  # a message of its own, on the line before
PLAIN = 0.4  # share of the questions without a solution
LONGER = 2  # times as many steps as without anything to read


def pair(name: str, out: Path) -> dict[str, Any]:
    """The settings of a task: its two models, made where they are missing, its problems and its longest answer."""
    kind = reading(KINDS[name])
    folders = made(out / name, kind, kind.problems())
    return {
        "student": folders[EARLIER], "teacher": folders["teacher"], "max_new": kind.max_new,
        "task": f"{kind.spec},tags=false,train=2048,held_out=512",
    }  # fmt: skip


def reading(kind: Kind) -> Kind:
    """The same task, whose questions often come with a solution, right or wrong, in some recipe's wording."""
    wordings = [*templates(), *(f"{text}\n{{prompt}}" for text in SYSTEM)]
    words = {*kind.words, *pieces(*wordings), f"\n{LABEL} ", *" \n+-", *"0123456789"}
    return replace(
        kind, words=tuple(sorted(words)), draw=lambda rng: shown(kind.draw, wordings, rng), students={},
        steps=LONGER * kind.steps,
    )  # fmt: skip


def shown(draw: Callable[[random.Random], Example], wordings: list[str], rng: random.Random) -> Example:
    """A question as it is, or with a solution before or after it, which is then to be copied."""
    asked, answer, same = draw(rng)
    if rng.random() < PLAIN:
        return asked, answer, same
    told = draw(rng)[1] if rng.random() < WRONG else answer
    brief, told = rng.random() < 0.5, told.strip()
    words = as_the_package_says(told) if brief else told
    parts = {"{prompt}": asked, "{context}": words, "{answer}": told.rpartition("\n")[2]}
    written = "\n".join([*answer.split("\n")[:-1], words]) if brief and "\n" in answer else told
    start = "\n" if answer.startswith("\n") and not written.startswith("\n") else ""
    return re.sub(r"\{\w+\}", lambda found: parts[found[0]], rng.choice(wordings)), start + written, same


def as_the_package_says(answer: str) -> str:
    """An expression with spaces, of running totals the last."""
    return re.sub(r"(?<=\d)([+-])", r" \1 ", answer.rpartition("\n")[2])
