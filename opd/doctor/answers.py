"""Are the answers whole, can the task tell right from wrong, and does the teacher believe what it writes itself?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from opd.doctor.finding import Finding, finding
from opd.doctor.trial import Trial, cut
from opd.measure import loops
from opd.rollout import Array, Rollout

CUT = 0.2  # share of answers without an end from which it is worth a warning
UNSURE, LOST = -1.0, -2.0  # mean log-prob (nats per token) of a greedy text: below 0.37 and 0.14 per token
LOOPING = 0.2  # share of the teacher's own tokens in loops
APART = 0.1  # nats between writing and reading one's own text; rounding in bfloat16 stays below


def cut_off(trial: Trial) -> Iterator[Finding]:
    """Answers end by themselves within --max-new tokens."""
    limit = trial.case.settings.max_new
    ours, theirs = cut(trial.answers), cut(trial.own)
    length = np.mean([answer.n for answer in trial.answers])
    own = f", {theirs:.0%} of the teacher's" if trial.own else ""
    evidence = f"{ours:.0%} of the student's answers{own} end at {limit} tokens (mean length {length:.0f})"
    fault = max(ours, theirs) > CUT
    remedy = f"Give --max-new {2 * limit}, or look at the stop tokens and at what is written"
    yield finding("cut off", fault, evidence, remedy, student=ours, teacher=theirs, length=float(length))


def rewards(trial: Trial) -> Iterator[Finding]:
    """The grade tells answers apart, and the teacher is the better of the two; a grade of 1 is right."""
    right = {who: graded(answers) == 1 for who, answers in (("student", trial.answers), ("teacher", trial.own))}
    shares = {who: float(values.mean()) for who, values in right.items() if len(values)}
    if not shares:
        yield finding("reward", False, "the task does not grade these answers")
        return
    evidence = " and ".join(f"{share:.0%} of the {who}'s answers" for who, share in shares.items()) + " are right"
    fault, remedy = reward_fault(shares, len(right["student"]))
    evidence += f": {fault}; {one_example(trial)}" if fault else ""
    yield replace(finding("reward", bool(fault), evidence, remedy), numbers=shares)


def reward_fault(shares: dict[str, float], n: int) -> tuple[str, str]:
    """What is odd about the shares of right answers; two standard errors of n coins are chance."""
    if not any(shares.values()):
        return "nobody ever is", "Look at the answers, at grader= in --task, and at --max-new"
    if min(shares.values()) == 1:
        return "nobody ever errs", "Take harder problems, or look at grader= in --task"
    if "teacher" in shares and "student" in shares and shares["teacher"] < shares["student"] - (1 / n) ** 0.5:
        return "the student is better than its teacher", "Check that --student and --teacher are not swapped"
    return "", ""


def one_example(trial: Trial) -> str:
    answer = trial.own[0] if trial.own else trial.answers[0]
    who = "teacher" if trial.own else "student"
    return f"the {who} wrote {shortened(answer.text)!r}, expected {answer.problem.answer!r}"


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 48 else f"…{line[-47:]}"


def graded(answers: Sequence[Rollout]) -> Array:
    values = np.array([answer.tags["reward"] for answer in answers])
    return values[~np.isnan(values)]


def own_text(trial: Trial) -> Iterator[Finding]:
    """The teacher's log-prob of its own greedy text, and loops in it: signs of a broken model or a foreign prompt."""
    if not trial.own_read:
        return
    mean, looping = float(np.concatenate(trial.own_read).mean()), in_loops(trial.own)
    evidence = f"the teacher gives its own greedy text {mean:.2f} nats per token"
    evidence += f", {looping:.0%} of it runs in circles" if looping else ""
    fault = not mean >= UNSURE or looping > LOOPING  # nan is no good sign
    if fault:
        worst = trial.own[int(np.argmin([values.mean() for values in trial.own_read]))]
        evidence += f", for example {shortened(worst.text)!r}"
    remedy = "Look at the chat template, at the teacher's folder, and whether this task is one that the teacher knows"
    yield finding("teacher's own text", fault, evidence, remedy, fatal=not mean >= LOST, nats=mean, loops=looping)


def in_loops(answers: Sequence[Rollout]) -> float:
    """The share of tokens in stretches that repeat themselves."""
    token = np.concatenate([answer.decisions for answer in answers])
    row = np.concatenate([np.arange(answer.n) for answer in answers])
    return float(loops(token, np.repeat(np.arange(len(answers)), [answer.n for answer in answers]), row).mean())


def read_as_written(trial: Trial) -> Iterator[Finding]:
    """A model gives a text the same log-prob when it reads it as when it wrote it."""
    if not trial.own_read:
        return
    written = np.concatenate([answer.columns["untruncated"] for answer in trial.own])
    gap = float(np.abs(np.concatenate(trial.own_read) - written).mean())
    evidence = f"the teacher reads its own text {gap:.2g} nats per token apart from how it wrote it"
    remedy = "Compare --teacher-dtype float32; if the gap stays, the model's cache is at fault"
    yield finding("read as written", gap > APART, evidence, remedy, nats=gap)
