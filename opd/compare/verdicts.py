"""What may be concluded, in sentences that claim no more than their intervals show."""

from __future__ import annotations

from collections.abc import Sequence

from opd import recipes
from opd.compare.outcome import Difference, Field
from opd.compare.plan import Contest, Entrant
from opd.words import said

CONTROLS = ("constant_negative", "shuffled")  # a method that does not beat them has shown nothing


def controls(entrants: Sequence[Entrant]) -> list[Entrant]:
    return [entrant for entrant in entrants if entrant.method in CONTROLS]


def verdicts(contest: Contest, field: Field) -> list[str]:
    """One sentence per method and control, and one for every method that has moved nothing."""
    held = [entrant.label for entrant in controls(contest.entrants)]
    tested = [entrant.label for entrant in contest.entrants if entrant.label not in held]
    found = [against_control(field, label, control) for label in tested for control in held]
    if not held:
        names = " or ".join(CONTROLS)
        found.append(
            f"Nothing here was held against a control. Add {names}: a method that does not beat it has shown nothing."
        )
    return found + [text for entrant in contest.entrants if (text := against_before(field, entrant.label))]


def against_control(field: Field, label: str, control: str) -> str:
    gap = field.difference(label, control, field.measure)
    if gap is None:
        return f"{label} could not be held against the control {control}: no seed has finished both."
    if gap.interval.low is None:
        return f"{label} could not be held against the control {control}: one seed and no grades give no interval."
    verb = "beats" if is_better(gap) else "does not beat"
    return f"{label} {verb} the control {control}: {worded(gap, field)}."


def against_before(field: Field, label: str) -> str:
    """A method that cannot be told from the student it started from; empty where it can."""
    gap = field.progress(label, field.measure)
    if gap is None or gap.interval.low is None or gap.interval.is_above or gap.interval.is_below:
        return ""
    return f"{label} cannot be told from the student before training: {worded(gap, field)}."


def is_better(gap: Difference) -> bool:
    """More right answers, more return, or less divergence, by more than the interval leaves open."""
    return gap.interval.is_below if gap.measure == "reverse_kl" else gap.interval.is_above


def worded(gap: Difference, field: Field) -> str:
    """A difference with its interval: +3.1 points of sampled accuracy (95 % interval +1.0 to +5.2)."""
    if gap.measure == "reverse_kl":
        return f"{numbers(gap, 1, 3)} nats of reverse KL{interval(gap, 1, 3)}"
    if gap.measure == "return":
        return f"{numbers(gap, 1, 2)} of return{interval(gap, 1, 2)}"
    what = "grade" if field.has_marks else said("accuracy", field.task)
    return f"{numbers(gap, 100, 1)} points of {gap.measure} {what}{interval(gap, 100, 1)}"


def numbers(gap: Difference, scale: float, digits: int) -> str:
    return signed(scale * gap.interval.value, digits)


def interval(gap: Difference, scale: float, digits: int) -> str:
    if gap.interval.low is None or gap.interval.high is None:
        return ""
    low, high = (signed(scale * edge, digits) for edge in (gap.interval.low, gap.interval.high))
    return f" (95 % interval {low} to {high})"


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def notes(contest: Contest, field: Field) -> list[str]:
    """What a reader must know before believing the table."""
    found = list[str]()
    if contest.seeds == 1:
        only = said("One seed: intervals are over problems only", field.task)
        found.append(f"{only}, and another seed can move every number further.")
    elif field.problems:
        found.append(
            f"Intervals resample {contest.seeds} seeds and {len(field.problems)} {said('problems', field.task)}, "
            "paired where methods are compared; those of other numbers are Student's over seeds."
        )
    if not contest.rates:
        rate = next((run.trial.lr for run in field.runs), None)
        found.append(f"All methods ran with lr {rate:g}, which may suit one better than another; see --tune.")
    if missing := [f"{run.trial.name}" for run in field.runs if run.error]:
        found.append(f"Broken, and missing from every mean: {'; '.join(missing)}.")
    for entrant in contest.entrants:
        found += [f"{entrant.label}: {note}." for note in recipes.untried(entrant.method, entrant.parameters)]
    if field.has_marks:
        found.append("The task gives partial marks: means of grades are shown, not shares of right answers.")
    return found
