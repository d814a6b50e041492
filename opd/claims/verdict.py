"""Shown, not shown, or shown only when: what the intervals of a claim's cases allow to be said, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from opd.bootstrap import Interval, over_seeds
from opd.claims import again
from opd.claims.claim import Case
from opd.compare.outcome import GRADED, Field, Ran
from opd.compare.verdicts import CONTROLS


@dataclass(frozen=True)
class Standing:
    """The method against one other: the difference, and whether it is better, worse, or cannot be told."""

    other: str
    difference: Interval
    word: str


@dataclass(frozen=True)
class Outcome:
    """One case: values by method, and the method against everybody else."""

    case: Case
    values: dict[str, Interval]
    rates: dict[str, float]
    standings: tuple[Standing, ...]
    broken: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Better than its own baseline, and than the control where there is one."""
        decisive = {self.case.baseline, *(other for other in self.case.others if other.partition(":")[0] in CONTROLS)}
        words = {one.other: one.word for one in self.standings}
        return not self.broken and all(words.get(other) == "better" for other in decisive)


def judged(case: Case, field: Field) -> Outcome:
    """What the finished runs of a case say."""
    labels = [case.method, *rivals(case)]
    values = {label: over_seeds(series) for label in labels if (series := measured(case.measure, field.done(label)))}
    standings = [one for other in labels[1:] if (one := standing(case, field, other))]
    rates = {label: runs[0].trial.lr for label in labels if (runs := field.of(label))}
    return Outcome(case, values, rates, tuple(standings), tuple(r.trial.name for r in field.runs if r.error))


def rivals(case: Case) -> list[str]:
    """The baseline, then the others, each once."""
    return [name for name in dict.fromkeys([case.baseline, *case.others]) if name != case.method]


def standing(case: Case, field: Field, other: str) -> Standing | None:
    """Paired by seed, and by problem where problems are graded; None where no seed has finished both."""
    gap = field.difference(case.method, other, case.measure) if case.measure in GRADED else None  # pyright: ignore
    interval = gap.interval if gap else paired(case.measure, field, case.method, other)
    if interval is None:
        return None
    up = case.better == "higher"
    is_better, is_worse = (interval.is_above, interval.is_below) if up else (interval.is_below, interval.is_above)
    return Standing(other, interval, "better" if is_better else "worse" if is_worse else "not told apart")


def paired(measure: str, field: Field, label: str, other: str) -> Interval | None:
    ours, theirs = ({run.trial.seed: run for run in field.done(one)} for one in (label, other))
    seeds = sorted(ours.keys() & theirs.keys())
    pairs = zip(measured(measure, [ours[s] for s in seeds]), measured(measure, [theirs[s] for s in seeds]), strict=True)
    gaps = [a - b for a, b in pairs]
    return over_seeds(gaps) if gaps else None


def measured(measure: str, runs: Sequence[Ran]) -> list[float]:
    """One number per run."""
    return [_measured(measure, run) for run in runs]


def _measured(measure: str, run: Ran) -> float:
    if again.is_asked(measure):
        return again.number(measure, run.trial.folder)
    kind, _, name = measure.partition(":")
    if kind == "metric":
        return fmean(line[name] for line in run.lines if name in line)
    after = run.summary["student_after"]
    if kind == "reverse_kl":
        return after["kl"]["per_token"]
    return after["sampled"]["length"] if kind == "length" else after[kind]["grade"]


def concluded(outcomes: Sequence[Outcome]) -> str:
    """The verdict on the whole claim."""
    held = [outcome.case.name for outcome in outcomes if outcome.holds]
    if not held:
        return "not shown"
    return "shown" if len(held) == len(outcomes) else f"shown only when {' or when '.join(held)}"
