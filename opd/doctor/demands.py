"""What the method asks of the models and of the task: the very checks that stop a run, as findings."""

from __future__ import annotations

from collections.abc import Iterator

from opd.build import checks
from opd.doctor.case import Case
from opd.doctor.finding import Finding, tried


def demands(case: Case) -> Iterator[Finding]:
    """Every refusal is a fail; a check that this method gives nothing to do is left out."""
    fine = in_order(case)
    for name, check in checks(case.method, case.task, case.cast).items():
        found = tried(name, fine.get(name, ""), check)
        if found.evidence:
            yield found


def in_order(case: Case) -> dict[str, str]:
    """What is said where a check has something to look at and finds nothing wrong."""
    method, task = case.method, case.task
    room = ", all fit the context" if case.speaks else ""
    asked = sorted({need for ask in method.teach for need in ask.want.needs})
    return {
        "capabilities": f"the method asks for {', '.join(asked) or 'no answer'}, and gets it",
        "support": f"K = {method.support} of {case.student.vocab} tokens" if method.support else "",
        "layers": "both models have them" if method.layers else "",
        "prompts": f"{len(task.train)} to learn from, {len(task.held_out)} held out{room}",
        "solutions": "every problem has one that fits" if hasattr(method.sample, "check_problem") else "",
        "views": "every problem has what the teacher is shown" if case.shown_more else "",
    }
