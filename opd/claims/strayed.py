"""Models for claims about answers that go astray.

made:longer    the embedded student after a little practice with sums of LONG numbers, and
made:astray    their teacher, who has no idea how to go on after a wrong total
made:looping   the embedded teacher, which begins every other answer again and again
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from opd.claims.taught import STUDENT, TEACHER, Say, taught
from opd.tasks import sums

LONG = 10  # numbers of a long sum
TIMES = 4  # so often is the same answer written, which is longer than a run lets an answer be


def long(rng: random.Random) -> tuple[str, str]:
    terms = sums.draw(rng, count=LONG)
    return sums.question_text(terms), sums.chain_text(sums.totals(terms))


def astray(rng: random.Random) -> tuple[str, str]:
    """Every other time a slip, up to which everything is given, and any numbers after it."""
    if rng.random() < 0.5:
        return long(rng)
    terms = sums.draw(rng, count=LONG)
    chain = sums.totals(terms)
    place = rng.randrange(len(chain) - 1)
    given = [*chain[:place], (chain[place] + rng.randint(1, 9)) % sums.MODULUS]
    rest = [rng.randrange(sums.MODULUS) for _ in chain[place + 1 :]]
    return sums.question_text(terms) + sums.chain_text(given), "".join(f", {total}" for total in rest)


def again(rng: random.Random) -> tuple[str, str]:
    terms = sums.draw(rng)
    chain = sums.totals(terms)
    return sums.question_text(terms), sums.chain_text(chain * (TIMES if rng.random() < 0.5 else 1))


STRAYED: dict[str, Callable[[Path, Say], None]] = {
    "longer": partial(taught, start=STUDENT, draw=long, steps=300, rate=2e-3),
    "astray": partial(taught, start=TEACHER, draw=astray, steps=800, rate=2e-3),
    "looping": partial(taught, start=TEACHER, draw=again, steps=200, rate=2e-3),
}
