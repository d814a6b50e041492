"""Whose weights take part: is the teacher another model than the student, and did the student write what is stored?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from opd import cast as casting
from opd.doctor.case import Case
from opd.doctor.finding import Finding, finding
from opd.engines.hf import HFModel

MISTAKE = "Check --teacher; a student that teaches itself is --teacher self:frozen with a method that shows it more"


def same_weights(case: Case) -> Iterator[Finding]:
    """A teacher with the student's weights that reads the student's prompt has nothing to teach."""
    if case.is_copy:
        evidence = f"a copy of the student{', shown more than the student' if case.shown_more else ''}"
        alone = "that is shown the same prompt: every log-ratio is 0 at the start"
        fault = not case.shown_more
        yield finding("another model", fault, f"{evidence} {alone}" if fault else evidence, "Give a --teacher")
    elif case.reader is not None:
        same = identical(case.student, case.reader)
        fault = same and not case.shown_more
        evidence = "all weights are those of the student" if same else "teacher and student have different weights"
        yield finding("another model", fault, evidence, MISTAKE, fatal=True)


def another_writer(case: Case) -> Iterator[Finding]:
    """Stored texts are meant for the student that wrote them, before its first step."""
    for teacher in casting.each(case.teacher).values():
        store = getattr(teacher, "store", None)
        if store is None or store.made["given"]:
            continue
        wrote, learns = store.made["student"], teacher.learner
        fault = (wrote["weights"], wrote["dtype"]) != (learns["weights"], learns["dtype"])
        who = [f"{one['name']} (weights {one['weights'][:12]}, {one['dtype']})" for one in (wrote, learns)]
        evidence = f"{who[0]} wrote them, and {who[1]} learns from them" if fault else f"{who[0]} wrote them"
        yield finding("stored texts", fault, evidence, f"Store texts of {learns['name']}, or expect less of them")


@torch.no_grad()
def identical(first: HFModel, second: HFModel) -> bool:
    """Whether two models hold the same numbers; stops at the first tensor that differs."""
    ours, theirs = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    ours = {name: p for name, p in ours.items() if "lora_" not in name}
    if [p.shape for p in ours.values()] != [p.shape for p in theirs.values()]:
        return False
    return all(torch.equal(a, b.to(a)) for a, b in zip(ours.values(), theirs.values(), strict=True))
