"""What is wrong with a planned run, found before it is paid for: `examine` gives findings, `at_start` stops a run.

    finding.py                what a check says
    case.py  trial.py         what is examined: the planned run; a few answers by student and teacher
    demands.py                what the method asks, by the very checks that stop a run
    tokens.py  spelling.py    ids, stop tokens, markers in pieces
    prompts.py  problems.py   templates and thinking; held-out problems, room for answers
    weights.py  memory.py     the same model by mistake; the memory that a run will need
    answers.py  noise.py      rewards, lengths, the teacher's own text; how noisy its samples are
    signal.py                 imbalance, drift, mismatch
    acting.py                 instead of most of these, where a policy acts in an environment

A check is a function from a Case or a Trial to findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from opd.doctor import (
    acting,
    answers,
    demands,
    memory,
    noise,
    problems,
    prompts,
    signal,
    spelling,
    tokens,
    trial,
    weights,
)  # fmt: skip
from opd.doctor.case import Case
from opd.doctor.finding import Finding
from opd.errors import OpdError, SettingError
from opd.words import said

__all__ = ["Case", "Finding", "at_start", "examine"]


@dataclass(frozen=True)
class Checks:
    """What is looked at for one kind of student."""

    refused: Sequence[Callable[[Case], Iterable[Finding]]]  # a run stops at these anyway
    static: Sequence[Callable[[Case], Iterable[Finding]]]  # need no answer
    dynamic: Sequence[Callable[[trial.Trial], Iterable[Finding]]]


SPEAKING = Checks(
    refused=(tokens.token_map, demands.demands),
    static=(
        tokens.padding, tokens.stop_tokens, prompts.chat_template, prompts.thinking, spelling.markers,
        weights.same_weights, weights.another_writer, problems.held_out, problems.room, memory.memory,
    ),
    dynamic=(
        answers.cut_off, answers.rewards, answers.own_text, answers.read_as_written, noise.noise,
        spelling.written_markers, signal.finite, signal.same_distribution, signal.imbalance, signal.drift,
        signal.mismatch,
    ),
)  # fmt: skip
ACTING = Checks(
    refused=(demands.demands,),
    static=(weights.same_weights, problems.held_out, acting.time, acting.success),
    dynamic=(acting.returns, signal.finite, signal.same_distribution, signal.imbalance),
)


def examine(case: Case, count: int) -> list[Finding]:
    """Everything that can be found out, with `count` answers of the student (0: without any)."""
    return [told(found, case) for found in everything(case, count)]


def everything(case: Case, count: int) -> list[Finding]:
    checks = checks_of(case)
    refused = [found for check in checks.refused for found in check(case)]
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
    return [*found, *(one for check in checks.dynamic for one in check(tried))]


def static(case: Case) -> list[Finding]:
    """What can be found without any answer, beside what a run refuses anyway."""
    return [told(found, case) for check in checks_of(case).static for found in check(case)]


def checks_of(case: Case) -> Checks:
    return SPEAKING if case.speaks else ACTING


def told(found: Finding, case: Case) -> Finding:
    """A finding in the words of its task."""
    evidence, remedy = (said(text, case.settings.task) for text in (found.evidence, found.remedy))
    return replace(found, evidence=evidence, remedy=remedy)


def at_start(case: Case) -> list[Finding]:
    """What a run is told when it starts: its warnings; a fail stops it."""
    odd = [found for found in static(case) if found.verdict != "pass"]
    for found in odd:
        if found.verdict == "fail":
            raise SettingError(f"{found.name}: {found.evidence}", remedy=f"{found.remedy}; --doctor off goes on anyway")
    return odd
