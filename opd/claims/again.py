"""A finished student is examined once more, for what its run did not ask: with the context back, or on another task.

context:under     greedy accuracy with every problem's privileged context before the question
context:harm      of the answers that were right without the context, the share that is wrong with it
context:both      share of the problems that are right both ways
task:SPEC         accuracy of sampled answers on the held-out problems of another task
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from opd.checkpoint import write_text
from opd.settings import Settings

CONTEXT, TASK = "context", "task"


def is_asked(measure: str) -> bool:
    return measure.partition(":")[0] in (CONTEXT, TASK)


def number(measure: str, folder: Path) -> float:
    """What the examination of a run's folder found."""
    kind, _, name = measure.partition(":")
    found = json.loads(kept(measure, folder).read_text(encoding="utf-8"))
    return found[name]["value"] if kind == CONTEXT else found["sampled"]["grade"]


def kept(measure: str, folder: Path) -> Path:
    kind, _, name = measure.partition(":")
    what = re.sub(r"[^\w.=-]+", "-", name) if kind == TASK else kind
    return folder / f"again-{what}.json"


def examine(measure: str, settings: Settings) -> None:
    """Writes the examination into the folder of a finished run, unless it is there."""
    file = kept(measure, settings.folder)
    if not file.is_file():
        write_text(file, json.dumps(_examined(measure, settings)))


def _examined(measure: str, settings: Settings) -> dict[str, Any]:
    from dataclasses import asdict

    from opd import cast, removability
    from opd.evaluate import evaluate
    from opd.examined import examined
    from opd.tasks import load_task

    kind, _, name = measure.partition(":")
    student = cast.open_model(str(settings.folder / "model"), settings, settings.dtype, settings.device)
    task = load_task(name if kind == TASK else settings.task)
    problems = examined(task.held_out, settings.tuning_problems, settings.eval_on, settings.eval_problems)
    more: dict[str, Any] = {"max_new": settings.max_new, "seed": settings.seed}
    if kind == TASK:
        return evaluate(student, task, problems, greedy=False, **more).to_json()
    without = evaluate(student, task, problems, samples=0, **more).greedy
    assert without is not None  # greedy is asked for
    shown = removability.told(problems)
    return asdict(removability.examine(student, task, problems, shown, without, max_new=settings.max_new))
