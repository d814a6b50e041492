"""A student for claims about learning from its own answers.

made:unsure_own   writes records as made:unsure does, and copies one that stands before the question, whatever its form,
                  in the wordings of sc_grpo
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path

from opd.claims.taught import STUDENT, Say, slipping, taught

SHOWN = 0.5  # share of the texts with a record to copy
WORDINGS = ("sc_grpo", "sc_grpo_failed")


def copying(rng: random.Random) -> tuple[str, str]:
    question, answer = slipping(0.1)(rng)
    if rng.random() >= SHOWN:
        return question, answer
    wording = resources.files("opd.recipes").joinpath(f"{rng.choice(WORDINGS)}.txt").read_text(encoding="utf-8")
    return f"{wording.rstrip().replace('{context}', answer.strip())}\n{question}", answer


OWN: dict[str, Callable[[Path, Say], None]] = {
    "unsure_own": partial(taught, start=STUDENT, draw=copying, steps=500, rate=3e-3)
}
