"""What is wrong with a planned run, found before it is paid for: `examine` gives findings, `at_start` stops a run.

    finding.py                what a check says
    case.py  trial.py         what is examined: the planned run; a few answers by student and teacher
    demands.py                what the method asks, by the very checks that stop a run
    tokens.py  spelling.py    ids, stop tokens, markers in pieces
    prompts.py  problems.py   templates and thinking; held-out problems, room for answers
    weights.py  memory.py     the same model by mistake; the memory that a run will need
    answers.py  noise.py      rewards, lengths, the teacher's own text; how noisy its samples are
    signal.py                 imbalance, drift, mismatch

A check is a function from a Case or a Trial to findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from opd.doctor import answers, demands, memory, noise, problems, prompts, signal, spelling, tokens, trial, weights
from opd.doctor.case import Case
from opd.doctor.finding import Finding
from opd.errors import OpdError, SettingError

__all__ = ["Case", "Finding", "at_start", "examine"]

REFUSED: Sequence[Callable[[Case], Iterable[Finding]]] = (  # a run stops at these anyway
    tokens.token_map, demands.demands,
)  # fmt: skip
STATIC: Sequence[Callable[[Case], Iterable[Finding]]] = (
    tokens.padding, tokens.stop_tokens, prompts.chat_template, prompts.thinking, spelling.markers,
    weights.same_weights, problems.held_out, problems.room, memory.memory,
)  # fmt: skip
DYNAMIC: Sequence[Callable[[trial.Trial], Iterable[Finding]]] = (
    answers.cut_off, answers.rewards, answers.own_text, answers.read_as_written, noise.noise, spelling.written_markers,
    signal.finite, signal.same_distribution, signal.imbalance, signal.drift, signal.mismatch,
)  # fmt: skip


def examine(case: Case, count: int) -> list[Finding]:
    """Everything that can be found out, with `count` answers of the student (0: without any)."""
    if not case.speaks:
        what = f"{case.student.name} is no language model, and these checks are about nothing else"
        return [Finding("student", "warn", what, "Look at the first steps of the run itself")]
    refused = [found for check in REFUSED for found in check(case)]
    found = [*refused, *static(case)]
    if not count:
        return found
    in_the_way = [one.name for one in refused if one.verdict == "fail" and one.name != "prompts"]
    if in_the_way:
        return [*found, Finding("answers", "warn", f"none were tried: {', '.join(in_the_way)}", "Mend that first")]
    try:
        tried = trial.written(case, count)
    except OpdError as error:
        return [*found, Finding("answers", "fail", error.evidence, error.remedy)]
    return [*found, *(one for check in DYNAMIC for one in check(tried))]


def static(case: Case) -> list[Finding]:
    """What can be found without any answer, beside what a run refuses anyway."""
    return [found for check in STATIC for found in check(case)]


def at_start(case: Case) -> list[Finding]:
    """What a run is told when it starts: its warnings; a fail stops it."""
    odd = [found for found in static(case) if found.verdict != "pass"] if case.speaks else []
    for found in odd:
        if found.verdict == "fail":
            raise SettingError(f"{found.name}: {found.evidence}", remedy=f"{found.remedy}; --doctor off goes on anyway")
    return odd
