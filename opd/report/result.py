"""The result: one row per run, before and after and the teacher, and sentences that claim no more than they show.

Accuracies carry the 95 % intervals of the examination; differences between rows that answered the same problems are
taken problem by problem. Both cover the choice of problems and not the choice of a seed, and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, stdev
from typing import Any, Literal

from opd.report.reading import Folder, Table

KINDS = ("sampled", "greedy")
NAMES = {"sampled": "Sampled accuracy", "greedy": "Greedy accuracy", "return": "Sampled return", "kl": "Reverse KL"}
COMPARED = ("task", "student", "teacher", "steps", "batch", "lr", "schedule", "max_new", "seed", "eval_problems")


@dataclass(frozen=True)
class Share:
    """A proportion, or a mean return, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Exam:
    """One examination; None for whatever was not measured."""

    shares: dict[str, Share | None]
    lengths: dict[str, float | None]
    truncated: dict[str, float | None]
    returns: dict[str, Share | None]  # of episodes, where the student acts
    kl: float | None  # reverse KL on fresh held-out samples, nats per token
    kl_error: float | None
    entropy: float | None = None  # of the writer on them, nats per token
    problems: int | None = None
    grades: dict[str, dict[str, float]] = field(default_factory=dict)  # by problem, where they give the accuracy


@dataclass(frozen=True)
class Row:
    """One line of the table of results."""

    role: Literal["before", "run", "baseline", "teacher"]
    label: str
    detail: str
    exam: Exam
    steps: int | None = None
    seconds: float | None = None


# ---- rows


def rows(run: Folder, baselines: Sequence[Folder]) -> list[Row]:
    """Before, after, the baselines, the teacher: those that were examined."""
    found = [
        Row("before", "Before", "the student as it was", from_json(run.before)) if run.before else None,
        last(run, "run"),
        *(last(other, "baseline") for other in baselines),
        Row("teacher", "Teacher", "", from_json(run.teacher)) if run.teacher else None,
    ]
    return [row for row in found if row]


def last(run: Folder, role: Literal["run", "baseline"]) -> Row | None:
    """The latest examination of a run; of an unfinished one, the last line that it wrote."""
    done, detail = run.steps_done, "after training"
    exam = from_json(run.after) if run.after else None
    if exam is None:
        line = run.exams[-1] if run.exams and run.exams[-1]["step"] else None
        if line is None:
            return None
        exam, done = from_line(line), int(line["step"])
        of = f" of {run.steps_asked}" if run.steps_asked else ""
        detail = f"so far, after {done}{of} steps"
    return Row(role, run.label, detail, exam, done, seconds(run))


def seconds(run: Folder) -> float:
    """Seconds of training, examinations not counted."""
    return sum(value for line in run.batches for name, value in line.items() if name.startswith("seconds.") and value)


def from_json(plain: Table) -> Exam:
    """An examination as Evaluation.to_json writes it."""
    drawn: dict[str, Table] = {kind: plain.get(kind) or {} for kind in KINDS}
    kl = plain.get("kl") or {}
    shares = {kind: _share(table.get("accuracy")) for kind, table in drawn.items()}
    return Exam(
        shares=shares,
        lengths={kind: table.get("length") for kind, table in drawn.items()},
        truncated={kind: table.get("truncated") for kind, table in drawn.items()},
        returns={kind: _share(table.get("returned")) for kind, table in drawn.items()},
        kl=kl.get("per_token"),
        kl_error=kl.get("per_token_error"),
        entropy=(plain.get("entropy") or {}).get("per_token"),
        problems=plain.get("problems"),
        grades={kind: _whole_grades(table.get("by_problem") or {}, shares[kind]) for kind, table in drawn.items()},
    )


def from_line(line: Table) -> Exam:
    """An examination as one line of metrics.jsonl tells it."""

    def share(kind: str) -> Share | None:
        value, low, high = (line.get(f"eval.{kind}{end}") for end in ("", ".low", ".high"))
        return None if value is None or low is None or high is None else Share(value, low, high)

    return Exam(
        shares={kind: share(kind) for kind in KINDS},
        lengths={kind: line.get(f"eval.{kind}.length") for kind in KINDS},
        truncated={kind: line.get(f"eval.{kind}.truncated") for kind in KINDS},
        returns={kind: share(f"{kind}.return") for kind in KINDS},
        kl=line.get("eval.reverse_kl"),
        kl_error=line.get("eval.reverse_kl.error"),
        entropy=line.get("eval.entropy"),
    )


def _share(table: Table | None) -> Share | None:
    if not table or any(table.get(name) is None for name in ("value", "low", "high")):
        return None
    return Share(table["value"], table["low"], table["high"])


def _whole_grades(grades: dict[str, float], share: Share | None) -> dict[str, float]:
    """The grades, if their mean is the accuracy: with partial marks it is not, and no difference can be taken."""
    if not share or any(grade is None for grade in grades.values()):
        return {}
    return grades if grades and abs(fmean(grades.values()) - share.value) < 1e-6 else {}


@dataclass(frozen=True)
class Measured:
    """A column of shares or returns, drawn between `low` and `high`."""

    title: str
    cells: list[Share | None]
    low: float
    high: float
    is_share: bool

    def at(self, value: float) -> float:
        """Where a value lies between the two, as a share of the width."""
        return (value - self.low) / (self.high - self.low)


def measured(found: Sequence[Row]) -> list[Measured]:
    """What is known of at least one row; accuracies are shown even where nothing was graded, unless there are returns.

    Returns of all columns are drawn on one scale.
    """
    returns = [share for row in found for share in row.exam.returns.values() if share]
    low, high = min((s.low for s in returns), default=0.0), max((s.high for s in returns), default=1.0)
    columns = list[Measured]()
    for kind in KINDS:
        shares = [row.exam.shares[kind] for row in found]
        if any(shares) or not returns:
            columns.append(Measured(f"{kind.capitalize()} accuracy", shares, 0.0, 1.0, True))
        totals = [row.exam.returns[kind] for row in found]
        if any(totals):
            columns.append(Measured(f"{kind.capitalize()} return", totals, low, max(high, low + 1e-9), False))
    return columns


# ---- sentences


@dataclass(frozen=True)
class Headline:
    """The result in one line: `what` went `start` -> `end`."""

    what: str
    start: str
    end: str
    beside: str  # the teacher and the baselines, in one sentence


def headline(found: Sequence[Row]) -> Headline | None:
    """Sampled accuracy, else greedy accuracy, else return, else reverse KL; None before the first examination.

    Where episodes have a return, a success that did not move (never reached, or always) says less than that.
    """
    row = {each.role: each for each in found}
    has_returns = any(each.exam.returns["sampled"] for each in found)
    for what in ("sampled", "greedy", "return", "kl"):
        start, end = (_number(row.get(role), what) for role in ("before", "run"))
        if (start or end) and not (has_returns and what in KINDS and start == end):
            name = NAMES[what]
            return Headline(name if end else f"{name} before training", start, end, _beside(found, what))
    return None


def _number(row: Row | None, what: str) -> str:
    if row is None:
        return ""
    if what == "kl":
        return "" if row.exam.kl is None else f"{row.exam.kl:.2f}"
    if what == "return":
        total = row.exam.returns["sampled"]
        return rounded(total.value) if total else ""
    share = row.exam.shares[what]
    return percent(share.value) if share else ""


def _beside(found: Sequence[Row], what: str) -> str:
    run = next((row for row in found if row.role == "run"), None)
    parts = [f"teacher {_number(row, what)}" for row in found if row.role == "teacher" and _number(row, what)]
    for row in found:
        if row.role == "baseline" and (number := _number(row, what)):
            same = run is not None and run.steps == row.steps
            parts.append(f"{row.label} {f'at the same {row.steps}' if same else f'after {row.steps}'} steps {number}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def sentences(found: Sequence[Row]) -> list[str]:
    """What may be concluded, difference by difference."""
    run = next((row for row in found if row.role == "run"), None)
    others = [row for row in found if row.role in ("before", "baseline")]
    return [text for row in others if run and (text := _difference(run, row, "sampled"))]


def _difference(run: Row, other: Row, kind: str) -> str:
    """One difference of accuracies with its 95 % interval, paired by problem."""
    ours, theirs = run.exam.grades.get(kind, {}), other.exam.grades.get(kind, {})
    if len(ours) < 2 or ours.keys() != theirs.keys():
        return ""
    gaps = [ours[name] - theirs[name] for name in ours]
    middle, half = 100 * fmean(gaps), 100 * 1.96 * stdev(gaps) / sqrt(len(gaps))
    against = "the start" if other.role == "before" else other.label
    interval = f"{signed(middle - half)} to {signed(middle + half)}, paired over {len(gaps)} problems"
    words = f"Against {against}: {signed(middle)} points of {kind} accuracy (95% interval {interval})"
    is_unclear = middle - half <= 0 <= middle + half
    return f"{words}. These problems are too few to tell that from no difference." if is_unclear else f"{words}."


def unlike(run: Folder, baselines: Sequence[Folder]) -> list[str]:
    """In which settings each baseline differs, because a difference may come from there."""
    texts = list[str]()
    for other in baselines:
        names = [name for name in COMPARED if run.settings.get(name) != other.settings.get(name)]
        if names:
            pairs = (
                f"{name} {worded(other.settings.get(name))}, not {worded(run.settings.get(name))}" for name in names
            )
            texts.append(f"{other.label} was run with {'; '.join(pairs)}.")
    return texts


# ---- wording


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def rounded(value: float) -> str:
    """A return: four digits, and a true minus."""
    return f"{value:.4g}".replace("-", "−")


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def worded(value: Any) -> str:
    """A setting as a person would write it."""
    match value:
        case None | "":
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case list():
            return ", ".join(worded(each) for each in value)
        case dict():
            return ", ".join(f"{name} {worded(each)}" for name, each in value.items())
    return str(value)


def duration(value: float | None) -> str:
    if value is None:
        return ""
    if value < 100:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
