"""Which learning rate each method gets: the one that does best on problems that no reported number is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opd.compare.outcome import Ran


@dataclass(frozen=True)
class Tried:
    """One method at one rate, with one seed."""

    label: str
    lr: float
    accuracy: float | None  # sampled, on the tuning problems
    reverse_kl: float | None
    error: str = ""
    is_chosen: bool = False


def choose(runs: Sequence[Ran]) -> list[Tried]:
    """Everything that was tried; of every method, the best is marked if any rate came to its end."""
    tried = [_tried(run) for run in runs]
    best = {label: max((one for one in tried if one.label == label), key=_merit) for label in {t.label for t in tried}}
    return [
        Tried(one.label, one.lr, one.accuracy, one.reverse_kl, one.error, one is best[one.label] and not one.error)
        for one in tried
    ]


def rates(tried: Sequence[Tried]) -> dict[str, float]:
    """The chosen rate by label; a method whose every rate broke has none."""
    return {one.label: one.lr for one in tried if one.is_chosen}


def _tried(run: Ran) -> Tried:
    label, lr = run.trial.entrant.label, run.trial.lr
    if run.error:
        return Tried(label, lr, None, None, run.error)
    after = run.summary["student_after"]
    share, kl = after["sampled"]["grade"], after["kl"]
    return Tried(label, lr, share, kl["per_token"] if kl else None)


def _merit(one: Tried) -> tuple[bool, float, float, float]:
    """Sampled accuracy, then reverse KL, then the smaller rate; what broke comes last."""
    accuracy = one.accuracy if one.accuracy is not None else 0.0
    kl = one.reverse_kl if one.reverse_kl is not None else float("inf")
    return not one.error, accuracy, -kl, -one.lr
