"""Which of SFT, OPD and neither the numbers favour; undecided where an interval leaves both sides open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from opd.bootstrap import Interval
from opd.probe.alignment import Alignment
from opd.probe.plan import FEWEST, Plan

Favoured = Literal["SFT", "OPD", "neither", "undecided"]
Gap = Literal["closed", "left", "unclear"]
WEAK = 0.1  # a correlation that is surely below this is none to count on
MORE = 10_000  # problems beyond which a number is no advice


@dataclass(frozen=True)
class Verdict:
    favoured: Favoured
    because: str  # one sentence
    problems: int | None = None  # measured problems with which it could be decided, where that can be told


def verdict(gap: Interval, shortfall: Interval, alignment: Alignment, plan: Plan, measured: int) -> Verdict:
    """gap: nats per token to the teacher on its text; shortfall: teacher's mean grade minus the fitted student's."""
    gaps = {"likelihood": (gap, plan.nats), "grade": (shortfall, plan.points)}
    states = {name: state(*found) for name, found in gaps.items()}
    named = lambda kind: " and ".join(name for name, now in states.items() if now == kind)
    otherwise = by_alignment(f"the fitted student stays behind the teacher in {named('left')}", alignment, measured)
    if named("left"):
        return otherwise
    if not named("unclear"):
        return Verdict("SFT", "fitted to the teacher's text, the student reaches its likelihood and its grade")
    what = f"whether the fitted student reaches the teacher's {named('unclear')} cannot be told"
    most = max(needed(*gaps[name], measured) for name, now in states.items() if now == "unclear")
    return Verdict("undecided", f"{what}; SFT if it does, {otherwise.favoured} if not", limited(most))


def state(found: Interval, tolerance: float) -> Gap:
    """Where an interval lies: within the tolerance, beyond it, or across."""
    if found.low is None or found.high is None:
        return "unclear"
    return "closed" if found.high <= tolerance else "left" if found.low > tolerance else "unclear"


def by_alignment(short: str, found: Alignment, measured: int) -> Verdict:
    """There is a gap: what the teacher says of the student's own answers decides whether asking it helps."""
    within = found.within
    if within is None or within.low is None or within.high is None or found.ordered < FEWEST:
        few = f"only {found.ordered} problems had answers of different grades to compare the teacher's scores with"
        more = limited(math.ceil(1.2 * FEWEST * measured / found.ordered)) if found.ordered else None
        return Verdict("undecided", f"{short}, and {few}", more)
    if within.high < 0:
        return Verdict("neither", f"{short}, and the teacher prefers the student's worse answers")
    if within.high < WEAK:
        return Verdict("neither", f"{short}, and the teacher's scores do not go with the student's grades")
    if within.low > 0:
        return Verdict("OPD", f"{short}, and the teacher's scores go with the grades of the student's own answers")
    what = f"{short}, and whether the teacher's scores go with the grades of the student's answers cannot be told"
    return Verdict("undecided", what, limited(min(needed(within, border, measured) for border in (0.0, WEAK))))


def needed(found: Interval, border: float, measured: int) -> float:
    """Problems with which the interval would leave the border out, if the value stays: its width falls as 1/sqrt(P)."""
    if found.low is None or found.high is None or found.value == border:
        return math.inf
    half = found.value - found.low if found.value > border else found.high - found.value
    return math.ceil(1.2 * measured * (half / (found.value - border)) ** 2)


def limited(problems: float) -> int | None:
    return int(problems) if problems <= MORE else None
