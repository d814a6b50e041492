"""Problems drawn by the generators of the reasoning_gym package, graded by their own scorers on the extracted answer.

The scorers want a bare answer. It is what stands in the last <answer>..</answer>; a text without the tags is scored as
a whole and by its last line, and the better score counts, because some answers are grids of several lines.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from opd.errors import DataError, SettingError, nearest
from opd.rollout import Problem
from opd.stated import TAG
from opd.tasks.files import identity
from opd.tasks.graders import Graded, named

CHUNK = 256  # questions per seed of a generator; fixed, so that a longer list begins with the shorter one
PATIENCE = 4  # chunks in a row without a new question before the generator counts as exhausted
REQUEST = "\n\nGive the final answer between <answer> and </answer>."


def load(
    target: str,
    *,
    train: int = 1024,
    held_out: int = 256,
    seed: int = 0,
    grader: str | None = None,
    tags: bool = True,
    **generator: Any,
) -> Graded:
    """`train` and `held_out` different questions of generator `target`, no question in both; `tags` asks for the tags.

    The held-out questions come first, so that they stay the same whatever `train` is.
    """
    check(target, generator)
    request = REQUEST if tags else ""
    seen: set[str] = set()
    exam = draw(target, "held_out", held_out, seed, generator, request, seen)
    learn = draw(target, "train", train, seed, generator, request, seen)
    own = Scorer(make(target, generator, 1, seed))
    return Graded(f"reasoning_gym:{target}", learn, exam, own if grader is None else named(grader))


def check(target: str, generator: dict[str, Any]) -> None:
    """Stops at a generator or option that the package does not know."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise SettingError("task 'reasoning_gym' needs the package reasoning-gym", remedy="pip install opd[tasks]")
    import reasoning_gym  # noqa: F401  (registers the generators)
    from reasoning_gym.factory import DATASETS

    if target not in DATASETS:
        raise SettingError(f"reasoning_gym has no generator {target!r}", remedy=nearest(target, DATASETS))
    known = {field.name for field in fields(DATASETS[target][1])} - {"size"} | {"train", "held_out", "grader", "tags"}
    for name in generator:
        if name not in known:
            raise SettingError(f"generator {target!r} has no option {name!r}", remedy=nearest(name, known))


def make(target: str, generator: dict[str, Any], size: int, seed: int) -> Any:
    """The package's data set; its own complaints about options become ours."""
    from reasoning_gym.factory import create_dataset

    try:
        return create_dataset(target, size=size, seed=seed, **generator)
    except (AssertionError, TypeError, ValueError) as error:
        what = f"generator {target!r} refuses its options {generator}"
        raise SettingError(what, got=f"'{error}'", remedy="See the configuration of this generator") from error


def draw(
    target: str, part: str, count: int, seed: int, generator: dict[str, Any], request: str, seen: set[str]
) -> list[Problem]:
    """`count` questions that are not in `seen`, which grows."""
    drawn: list[Problem] = []
    idle = 0
    for number, entries in enumerate(chunks(target, part, seed, generator)):
        if len(drawn) >= count:
            break
        before = len(drawn)
        for entry in entries:
            name = identity(entry["question"])
            if len(drawn) < count and name not in seen:
                seen.add(name)
                answer = None if entry["answer"] is None else str(entry["answer"])
                drawn.append(Problem(name, entry["question"] + request, answer, data={"entry": entry}))
        idle = 0 if len(drawn) > before else idle + 1
        if idle == PATIENCE:
            what = f"generator {target!r} has too few different questions"
            got = f"{len(drawn)} new ones for {part} after {(number + 1) * CHUNK} draws"
            raise DataError(what, got=got, expected=count, remedy="Ask for fewer, or give it a wider range")
    return drawn


def chunks(target: str, part: str, seed: int, generator: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
    """Endless chunks of questions. Question i of a generator uses seed + i: a hash keeps chunks and parts far apart."""
    number = 0
    while True:
        key = f"{target}/{part}/{seed}/{number}".encode()
        own = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") // 2
        data = make(target, generator, CHUNK, own)
        yield (data[place] for place in range(CHUNK))
        number += 1


class Scorer:
    """The generator's own score of an answer. A scorer that breaks on an answer gives 0 and is counted in `errors`."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.errors: Counter[str] = Counter()

    def __call__(self, problem: Problem, text: str) -> float:
        return max(self.score(problem, answer) for answer in candidates(text))

    def score(self, problem: Problem, answer: str) -> float:
        try:
            return min(max(float(self.data.score_answer(answer, entry=problem.data["entry"])), 0.0), 1.0)
        except Exception as error:  # scorers of the package raise on answers that they can't read
            self.errors[f"{type(error).__name__} in the scorer"] += 1
            return 0.0


def candidates(text: str) -> set[str]:
    """The bare answers that a text may mean: what it tags, else the whole of it and its last line."""
    text = text.rpartition("</think>")[2].strip()
    tags = TAG.findall(text)
    return {tags[-1].strip()} if tags else {text, text.rpartition("\n")[2].strip()}
