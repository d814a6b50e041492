"""The result of a comparison: everything that the table, the page and comparison.json are made from."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from opd.compare.outcome import Difference, Field, Line
from opd.compare.plan import TUNING_SEED, Contest
from opd.compare.tuning import Tried


@dataclass(frozen=True)
class Comparison:
    """The result: lines of the table, what was tried, differences, sentences."""

    contest: Contest
    field: Field
    lines: list[Line]
    tried: list[Tried]
    aside: int  # tuning problems
    differences: list[Difference]
    verdicts: list[str]
    notes: list[str]

    @property
    def is_whole(self) -> bool:
        """Every method has all its seeds."""
        return all(len(line.seeds) == self.contest.seeds for line in self.lines if line.role == "method")

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        contest = self.contest
        return {
            "settings": contest.shared,
            "seeds": list(range(contest.seeds)),
            "baseline": contest.reference.label,
            "methods": [asdict(entrant) for entrant in contest.entrants],
            "problems": self.field.problems,
            "tuning": {
                "problems": self.aside,
                "seeds": [TUNING_SEED + seed for seed in range(contest.tuning_seeds)],
                "tried": [asdict(one) for one in self.tried],
            },
            "table": [asdict(line) for line in self.lines],
            "differences": [asdict(one) for one in self.differences],
            "verdicts": self.verdicts,
            "notes": self.notes,
            "runs": [
                {
                    "method": run.trial.entrant.label,
                    "seed": run.trial.seed,
                    "lr": run.trial.lr,
                    "folder": os.path.relpath(run.trial.folder, contest.out),
                    "error": run.error,
                    "entropy": run.entropy,
                    **run.summary,
                }
                for run in self.field.runs
            ],
        }
