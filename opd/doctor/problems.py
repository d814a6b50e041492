"""Is the examination honest, and is there room for the answers?"""

from __future__ import annotations

from collections.abc import Iterator

from opd.doctor.case import Case
from opd.doctor.finding import Finding, finding


def held_out(case: Case) -> Iterator[Finding]:
    """No prompt that is learned from is examined."""
    train = {problem.messages[-1]["content"].strip() for problem in case.task.train}
    shared = [p.messages[-1]["content"].strip() for p in case.task.held_out]
    shared = [text for text in shared if text in train]
    share = f"{len(shared)} of {len(case.task.held_out)} held-out problems are also learned from"
    evidence = f"{share}, such as {' '.join(shared[0].split())[:40]!r}" if shared else "none is learned from"
    remedy = "Take another file or count for held_out= in --task"
    yield finding("held-out problems", bool(shared), evidence, remedy, examples=tuple(shared[:3]), shared=len(shared))


def room(case: Case) -> Iterator[Finding]:
    """The longest prompt and an answer of --max-new tokens fit the context together."""
    limits = [case.student.context] + ([case.reader.context] if case.reader else [])
    need = case.longest_prompt + case.settings.max_new
    left = min(limits) - case.longest_prompt
    sizes = f"longest prompt {case.longest_prompt} + --max-new {case.settings.max_new} tokens, context {min(limits)}"
    if left < 1:
        return  # the prompts themselves do not fit, and that check says so
    evidence = f"{sizes}: answers to it end at {left}" if need > min(limits) else sizes
    yield finding("room", need > min(limits), evidence, f"Give --max-new {left}, or shorten the prompts", tokens=need)
