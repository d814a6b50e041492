"""Which learning rate each method gets: the one that does best on problems that no reported number is about.

Every rate is tried with one seed. Where the best is the outermost, a grid may go on beyond it; where even the best
leaves the student worse than it was, below the lowest, since which of several ruins is the best is chance. The better
half of a method's rates may then be tried with more seeds, and their means decide (successive halving, as in arXiv
1502.07943).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from opd.compare.outcome import Exam, Ran
from opd.compare.plan import TUNING_SEED, Goal, beyond, finalists

When = Literal["student_before", "student_after"]  # whose examinations a mean is over


@dataclass(frozen=True)
class Tried:
    """One method at one rate: means over `seeds` runs, all at their end unless there is an error."""

    label: str
    lr: float
    accuracy: float | None  # sampled, on the tuning problems
    greedy: float | None
    reverse_kl: float | None
    error: str = ""
    seeds: int = 1
    is_chosen: bool = False


def choose(runs: Sequence[Ran], goal: Goal = "sampled") -> list[Tried]:
    """Everything that was tried; of every method, the best by `goal` is marked if any rate came to its end."""
    tried = _tried(runs)
    best = {label: _best(_of(tried, label), goal) for label in _labels(tried)}
    return [replace(one, is_chosen=one is best[one.label] and not one.error) for one in tried]


def outward(runs: Sequence[Ran], goal: Goal) -> dict[str, float]:
    """By label the next rate beyond the best, where that is the outermost; below them all if it broke or did harm."""
    tried, found = _tried(runs), dict[str, float]()
    untaught = {(one.label, one.lr): one for one in _tried(runs, "student_before")}
    for label in _labels(tried):
        rates, best = [one.lr for one in _of(tried, label)], _best(_of(tried, label), goal)
        did_harm = _merit(best, goal) < _merit(untaught[label, best.lr], goal)
        end = min(rates) if did_harm else best.lr
        if end in (min(rates), max(rates)):
            found[label] = beyond(rates, end)
    return found


def better(runs: Sequence[Ran], goal: Goal) -> dict[str, list[float]]:
    """By label the better half of the rates, best first; nothing where that leaves no choice."""
    tried, found = _tried(runs), dict[str, list[float]]()
    for label in _labels(tried):
        ranked = sorted(_of(tried, label), key=lambda one: _merit(one, goal), reverse=True)
        kept = [one.lr for one in ranked[: finalists(len(ranked))] if not one.error]
        found[label] = kept if len(kept) > 1 else []
    return found


def rates(tried: Sequence[Tried]) -> dict[str, float]:
    """The chosen rate by label; a method whose every rate broke has none."""
    return {one.label: one.lr for one in tried if one.is_chosen}


def _labels(tried: Sequence[Tried]) -> list[str]:
    return list(dict.fromkeys(one.label for one in tried))


def _of(tried: Sequence[Tried], label: str) -> list[Tried]:
    return [one for one in tried if one.label == label]


def _tried(runs: Sequence[Ran], when: When = "student_after") -> list[Tried]:
    """By method and rate, in the order of the first seed."""
    kinds = dict.fromkeys((run.trial.entrant.label, run.trial.lr) for run in runs)
    return [_mean([run for run in runs if (run.trial.entrant.label, run.trial.lr) == kind], when) for kind in kinds]


def _mean(runs: Sequence[Ran], when: When) -> Tried:
    label, lr = runs[0].trial.entrant.label, runs[0].trial.lr
    if broken := [run for run in runs if run.error]:
        seed = broken[0].trial.seed - TUNING_SEED
        error = f"tuning seed {seed}: {broken[0].error}" if seed else broken[0].error
        return Tried(label, lr, None, None, None, error, len(runs))
    exams: list[Exam] = [run.summary[when] for run in runs]
    sampled, greedy = (_over([one[kind] and one[kind]["grade"] for one in exams]) for kind in ("sampled", "greedy"))
    kl = _over([one["kl"] and one["kl"]["per_token"] for one in exams])
    return Tried(label, lr, sampled, greedy, kl, "", len(runs))


def _over(values: Sequence[float | None]) -> float | None:
    """The mean, where no run is without a number: a task may not grade, a teacher not tell."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _best(tried: Sequence[Tried], goal: Goal) -> Tried:
    return max(tried, key=lambda one: _merit(one, goal))


def _merit(one: Tried, goal: Goal) -> tuple[bool, int, float, float, float]:
    """Seeds, then the goal, then reverse KL, then the smaller rate; what broke comes last."""
    closeness = -one.reverse_kl if one.reverse_kl is not None else -math.inf
    accuracy = one.greedy if goal == "greedy" else one.accuracy
    first = closeness if goal == "reverse_kl" else accuracy or 0.0
    return not one.error, one.seeds, first, closeness, -one.lr
