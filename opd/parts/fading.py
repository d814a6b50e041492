"""Numbers that fall in a straight line from batch to batch, and then stay."""

from __future__ import annotations

from dataclasses import dataclass

from opd.errors import require


@dataclass(frozen=True)
class Fading:
    """A number that falls from `start` to 0 in a straight line over `steps` batches; from the first one on if 0."""

    start: float
    steps: int

    def __post_init__(self) -> None:
        require(self.steps >= 0, "batches until a schedule has faded", got=self.steps, expected="at least 0")

    def __call__(self, step: int) -> float:
        return self.start * (1 - passed(step, self.steps))


def passed(step: int, steps: int) -> float:
    """How much of the line lies behind: 0 in the first batch, 1 after `steps` batches and for ever; 1 if 0 steps."""
    return min(1.0, step / steps) if steps else 1.0
