"""How far a run is, read from what it writes; nothing but its folder is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from opd.budget import cost
from opd.compare.plan import Trial


@dataclass
class Pace:
    """The share of its budget that a run has spent; every look reads only what was written since."""

    trial: Trial
    offset: int = 0
    spent: float = 0.0

    def share(self) -> float:
        file, end = self.trial.folder / "metrics.jsonl", self.trial.settings.end()
        if not file.is_file():
            return 0.0
        if file.stat().st_size < self.offset:  # a run that goes on forgets what it does again
            self.offset, self.spent = 0, 0.0
        with file.open("rb") as opened:
            opened.seek(self.offset)
            text = opened.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        lines = [json.loads(line) for line in whole.splitlines()]
        unit, amount = (end.unit, end.amount) if end else ("steps", max(self.trial.settings.steps, 1))
        self.spent += sum(cost(unit, line) for line in lines if "loss" in line)
        return min(1.0, self.spent / amount)
