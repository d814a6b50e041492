"""Which learning rate each method gets: the one that does best on problems that no reported number is about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opd.compare.outcome import Ran
from opd.compare.plan import Goal


@dataclass(frozen=True)
class Tried:
    """One method at one rate, with one seed."""

    label: str
    lr: float
    accuracy: float | None  # sampled, on the tuning problems
    greedy: float | None
    reverse_kl: float | None
    error: str = ""
    is_chosen: bool = False


def choose(runs: Sequence[Ran], goal: Goal = "sampled") -> list[Tried]:
    """Everything that was tried; of every method, the best by `goal` is marked if any rate came to its end."""
    tried = [_tried(run) for run in runs]
    merit = lambda one: _merit(one, goal)
    best = {label: max((one for one in tried if one.label == label), key=merit) for label in {t.label for t in tried}}
    return [replace(one, is_chosen=one is best[one.label] and not one.error) for one in tried]


def rates(tried: Sequence[Tried]) -> dict[str, float]:
    """The chosen rate by label; a method whose every rate broke has none."""
    return {one.label: one.lr for one in tried if one.is_chosen}


def _tried(run: Ran) -> Tried:
    label, lr = run.trial.entrant.label, run.trial.lr
    if run.error:
        return Tried(label, lr, None, None, None, run.error)
    after = run.summary["student_after"]
    greedy, kl = after["greedy"], after["kl"]
    return Tried(label, lr, after["sampled"]["grade"], greedy and greedy["grade"], kl["per_token"] if kl else None)


def _merit(one: Tried, goal: Goal) -> tuple[bool, float, float, float]:
    """The goal, then reverse KL, then the smaller rate; what broke comes last."""
    closeness = -one.reverse_kl if one.reverse_kl is not None else -math.inf
    accuracy = one.greedy if goal == "greedy" else one.accuracy
    first = closeness if goal == "reverse_kl" else accuracy or 0.0
    return not one.error, first, closeness, -one.lr
