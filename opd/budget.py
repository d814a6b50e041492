"""What a run may spend before it ends: so many tokens, so many seconds, or so many tokens of the teacher's.

    steps=N            batches
    tokens=N           tokens of the answers that were learned from, whoever wrote them, each time they are used
    seconds=N          of writing, asking and learning; examinations and loading are not counted
    teacher_tokens=N   tokens that a teacher read (prompt and answer) or wrote

A run ends after the step in which its budget is spent, so it may go over by a part of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from opd.errors import SettingError, nearest

UNITS = ("steps", "tokens", "seconds", "teacher_tokens")
WHOLE = ("steps", "tokens", "teacher_tokens")


@dataclass
class Budget:
    """An amount of one unit, and how much of it is spent; a checkpoint keeps `spent`."""

    unit: str
    amount: float
    spent: float = 0.0

    @classmethod
    def of(cls, text: str) -> Budget:
        """'tokens=20000' as a budget."""
        unit, _, number = text.partition("=")
        if unit not in UNITS:
            raise SettingError("unknown unit of a budget", got=repr(text), remedy=nearest(unit, UNITS))
        try:
            amount = float(number)
        except ValueError:
            amount = math.nan
        if not (math.isfinite(amount) and amount > 0) or (unit in WHOLE and amount != int(amount)):
            kind = "a whole number above 0" if unit in WHOLE else "a number above 0"
            raise SettingError(f"the budget of {unit}", got=repr(number), expected=kind)
        return cls(unit, amount)

    @property
    def share(self) -> float:
        """How much of it is spent, from 0 to 1 or a little above."""
        return self.spent / self.amount

    def spend(self, metrics: Mapping[str, float]) -> None:
        """Takes one step's cost off, from its line of metrics."""
        self.spent += cost(self.unit, metrics)


def cost(unit: str, metrics: Mapping[str, float]) -> float:
    """What one step cost in a unit."""
    if unit == "steps":
        return 1.0
    if unit == "seconds":
        return sum(value for name, value in metrics.items() if name.startswith("seconds."))
    return metrics[unit]
