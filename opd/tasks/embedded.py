"""The task that travels with the package: running totals, of which any number of problems can be drawn."""

from __future__ import annotations

from opd.errors import SettingError, require
from opd.rollout import Problem
from opd.tasks import sums as world
from opd.tasks.graders import Graded, named


def sums(
    target: str,
    *,
    train: int = 256,
    held_out: int = 512,
    seed: int = 0,
    grader: str | None = None,
    terms: int = world.TERMS,
) -> Graded:
    """`train` and `held_out` problems of `terms` numbers. The hash of a question decides its split: they never meet."""
    if target:
        raise SettingError("task 'sums' takes options only", got=f"sums:{target}", remedy="Write sums,train=256")
    require(terms >= 2, "option 'terms' of task 'sums'", got=terms, expected="at least 2")
    return Graded(
        name="sums",
        train=drawn("train", train, seed, terms),
        held_out=drawn("test", held_out, seed, terms),
        grader=last_total if grader is None else named(grader),
    )


def drawn(split: str, count: int, seed: int, terms: int = world.TERMS) -> list[Problem]:
    rows = world.problems(split, count, seed, terms)
    solution = lambda row: {"solution": " " + row["privileged_context"]}  # as the models write it after the question
    return [Problem(row["id"], row["prompt"], row["answer"], row["privileged_context"], solution(row)) for row in rows]


def last_total(problem: Problem, text: str) -> float | None:
    """1 if the last number in the text is the last total."""
    return None if problem.answer is None else world.grade(text, problem.answer)
