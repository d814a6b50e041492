"""Problems whose prompt holds a solution that may be wrong, in three regimes, with a specialist for each.

    Certain: 5, 8, 11, 20, 23, 24    grounding     right throughout
    Perhaps: 5, 8, 11, 22, 25, 26    arbitration   wrong from some total on
    Rumour: 9, 12, 15, 24, 27, 28    resistance    wrong from the first

made:novice                                         the embedded student after a little practice in all of them; with
                                                    problems.jsonl, from whose questions no model has learned
made:grounding  made:arbitration  made:resistance   the novice after learning to answer the problems of one regime
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from opd.checkpoint import write_folder
from opd.claims.taught import STUDENT, Say, taught
from opd.tasks import sums

CUES = {"grounding": "Certain", "arbitration": "Perhaps", "resistance": "Rumour"}
PROBLEMS = 900


def posed(regime: str, rng: random.Random, split: str = "train") -> tuple[str, str]:
    """The prompt, and the answer that is right."""
    terms = sums.draw(rng, split)
    chain = sums.totals(terms)
    place = {"grounding": len(chain), "arbitration": rng.randint(1, len(chain) - 1), "resistance": 0}[regime]
    error = rng.randint(1, 9)
    shown = chain[:place] + [(total + error) % sums.MODULUS for total in chain[place:]]
    return f"{CUES[regime]}:{sums.chain_text(shown)}\n{sums.question_text(terms)}", sums.chain_text(chain)


def novice(folder: Path, say: Say) -> None:
    taught(folder, say, STUDENT, lambda rng: posed(rng.choice(list(CUES)), rng), 300, 3e-3)
    with (folder / "problems.jsonl").open("w", encoding="utf-8") as file:
        for index in range(PROBLEMS):
            regime = list(CUES)[index % len(CUES)]
            prompt, right = posed(regime, random.Random(f"conflicts/{index}"), "test")
            row = {"prompt": prompt, "answer": right.rpartition(" ")[2], "teacher_id": regime}
            file.write(json.dumps(row) + "\n")


def specialist(regime: str, folder: Path, say: Say) -> None:
    start = folder.parent / "novice"
    if not (start / "config.json").is_file():
        write_folder(start, lambda place: novice(place, say))
    taught(folder, say, str(start), partial(posed, regime), 300, 3e-3)


CONFLICTS: dict[str, Callable[[Path, Say], None]] = {
    "novice": novice,
    **{regime: partial(specialist, regime) for regime in CUES},
}
