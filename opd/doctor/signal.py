"""The three ways in which the signal of one token per position fails (2603.25562): imbalance, drift, mismatch.

All are read off r = log q(y) - log p(y) at the tokens that the student wrote.

Axes: N rows, B answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from opd.doctor.finding import Finding, finding
from opd.doctor.trial import Trial
from opd.measure import concentration, loops
from opd.rollout import Array

ENOUGH = 100  # rows from which shares say something
NEGATIVE, TOP1 = 0.8, 0.5  # share of negative log-ratios; share of |r| that 1 % of the rows carry
FALL, ERRORS, LOOPING = -1.0, 3.0, 0.05  # nats from first to second half of an answer, in standard errors; loops
SURE, IMPOSSIBLE = -1.0, -8.0  # log-probs: the student writes it without doubt, the teacher never would
ALWAYS, TIMES = 0.8, 3  # share of a token's occurrences that are so; answers in which it happens
MASKED = 8  # ids that a remedy names
EDGE = 2  # rows at either end of an answer
SAME = 1e-3  # nats: rounding of one model in two precisions lies below, two models above


def finite(trial: Trial) -> Iterator[Finding]:
    """The teacher gives every token that the student wrote a log-prob that is a number."""
    if trial.case.teacher is None:
        yield finding("log-probs", False, "no teacher is asked, so nothing below is measured")
        return
    if not len(trial.ratio):
        if not trial.case.reads and "chosen" in trial.case.teacher.can:
            yield finding("log-probs", False, "a store answers about its own texts alone: nothing below is measured")
        elif trial.rows is None and trial.case.reads:
            what = "the teacher is shown siblings, and here every problem has one answer, so nothing below is measured"
            yield finding("log-probs", False, what)
        else:
            what = "the teacher gives none, so nothing below is measured"
            yield finding("log-probs", True, what, "Use a local teacher")
        return
    bad = int((~np.isfinite(trial.ratio)).sum())
    evidence = f"{bad or 'all'} of {len(trial.ratio)} tokens have {'no ' if bad else ''}finite log-probs"
    remedy = "Look at the teacher's folder and --teacher-dtype: an update with such a row is not taken"
    yield finding("log-probs", bool(bad), evidence, remedy, fatal=True, bad=bad)


def same_distribution(trial: Trial) -> Iterator[Finding]:
    """The teacher does not give every token the student's own probability."""
    case = trial.case
    if case.is_copy or case.shown_more or not trial.judged:
        return
    size = float(np.abs(trial.ratio).mean())
    evidence = f"log-probs of the student's tokens differ by {size:.2g} nats on average"
    remedy = "Check --teacher: it answers as the student does"
    yield finding("another opinion", size < SAME, evidence, remedy, fatal=True, nats=size)


def imbalance(trial: Trial) -> Iterator[Finding]:
    """Few tokens carry the signal, or nearly all of it says no: it is noisy for methods that learn from one number."""
    numbers = concentration(trial.ratio)
    if not trial.judged or len(trial.ratio) < ENOUGH or "advantage.top1" not in numbers:
        return
    negative, top1, top10 = (numbers[f"advantage.{name}"] for name in ("negative", "top1", "top10"))
    evidence = f"{negative:.0%} of log-ratios are negative; 1 % of the tokens carry {top1:.0%}, 10 % carry {top10:.0%}"
    single = all(not ask.want.needs - {"chosen"} for ask in trial.case.method.teach)
    fault = single and bool(trial.case.method.teach) and (negative > NEGATIVE or top1 > TOP1)
    remedy = "Learn by local_support, which compares distributions"
    yield finding("imbalance", fault, evidence, remedy, negative=negative, top1=top1, top10=top10)


def drift(trial: Trial) -> Iterator[Finding]:
    """The teacher's judgement does not get worse as an answer gets longer, and no answer runs in circles."""
    if not trial.judged or len(trial.ratio) < ENOUGH:
        return
    row, length, sequence = (trial.column(name) for name in ("row", "length", "sequence"))
    others = ~np.isin(trial.column("token"), [one.token for one in impossible(trial)])  # those are `mismatch`
    fall, error = halves(trial.ratio[others], (row < length / 2)[others], sequence[others])
    looping = float(loops(trial.column("token"), sequence, row).mean())
    evidence = f"log-ratio changes by {fall:+.2f} ± {error:.2f} nats from first to second half"
    evidence += f"; {looping:.0%} of the tokens lie in loops" if looping else ""
    falls = fall < FALL and fall < -ERRORS * error
    remedy = "Give --top-p 0.9 and a smaller --max-new, so that the student stays where the teacher knows its way"
    yield finding("drift", falls or looping > LOOPING, evidence, remedy, fall=fall, error=error, loops=looping)


def halves(ratio: Array, early: Array, sequence: Array) -> tuple[float, float]:
    """Mean over answers of (mean of the second half - mean of the first), with its standard error."""
    answers = [s for s in np.unique(sequence) if 0 < early[sequence == s].sum() < (sequence == s).sum()]
    if len(answers) < 2:
        return 0.0, 0.0
    first, second = ([ratio[(sequence == s) & half].mean() for s in answers] for half in (early, ~early))
    changes = np.array(second) - np.array(first)
    return float(changes.mean()), float(changes.std(ddof=1) / np.sqrt(len(changes)))


@dataclass(frozen=True)
class Odd:
    """A token that the student writes without doubt and the teacher finds impossible, nearly every time."""

    token: int
    times: int
    student: float  # mean log-prob
    teacher: float
    at_edge: float  # share of its occurrences in the first or last rows of an answer
    last: bool  # they are all at the end


def mismatch(trial: Trial) -> Iterator[Finding]:
    """No token is certain for the student and impossible for the teacher wherever it stands."""
    if not trial.judged:
        return
    odd = sorted(impossible(trial), key=lambda one: one.teacher)
    impossible_rows = float((trial.ratio < IMPOSSIBLE).mean())
    evidence = f"{impossible_rows:.1%} of the tokens have a log-ratio below {IMPOSSIBLE:.0f}, spread over many ids"
    remedy, decode = "Look at the prompt that the teacher is shown", trial.case.student.decode_token
    if odd:
        first = odd[0]
        where = ", at the end" if first.last else ", at an edge of the answer" if first.at_edge > ALWAYS else ""
        evidence = f"{decode(first.token)!r} ({first.token}){where}: {first.times} times at student {first.student:.2f}"
        evidence += f", teacher {first.teacher:.2f}" + (f"; {len(odd) - 1} more such tokens" if odd[1:] else "")
        ids = ",".join(str(one.token) for one in odd[:MASKED])
        if not trial.case.shown_more:
            remedy = "Give --stop-token map, or --stop-token mask" if first.last else f"Give --mask {ids}"
    elif impossible_rows == 0:
        evidence = f"no token has a log-ratio below {IMPOSSIBLE:.0f}"
    examples = tuple(decode(one.token) for one in odd)
    yield finding("mismatch", bool(odd), evidence, remedy, examples=examples, tokens=len(odd), share=impossible_rows)


def impossible(trial: Trial) -> Sequence[Odd]:
    """The odd tokens of a trial, by id."""
    token, row, length, sequence = (trial.column(name) for name in ("token", "row", "length", "sequence"))
    student, teacher = trial.column("untruncated"), trial.column("teacher.chosen")
    odd = (student > SURE) & (teacher < IMPOSSIBLE)
    found = list[Odd]()
    for one in np.unique(token[odd]):
        here = token == one
        if odd[here].mean() < ALWAYS or len(np.unique(sequence[here & odd])) < TIMES:
            continue
        here &= odd
        edge = (row[here] < EDGE) | (row[here] >= length[here] - EDGE)
        last = bool((row[here] == length[here] - 1).all())
        means = float(student[here].mean()), float(teacher[here].mean())
        found.append(Odd(int(one), int(here.sum()), *means, float(edge.mean()), last))
    return found
