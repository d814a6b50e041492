"""The curves of a run as plain tables that the page draws, and where its time went.

A figure is a common x axis and lines on it. Noisy lines come twice: as they are, and as a running mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from opd.metrics import sentence
from opd.report.reading import Folder, Table
from opd.report.result import KINDS, from_json, seconds

Values = list[float | None]
Role = Literal["run", "second", "raw", "baseline", "teacher"]

MOST = 600  # points of a line; a longer run is drawn as means over equal pieces
WINDOWS = 40  # running means cover one of so many parts of a run
PHASES = ("sample", "teach", "learn")

Curves = tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]  # title, unit, (metric, label)

CURVES: Curves = (
    ("Loss", "", (("loss", "loss"),)),
    ("Reverse KL in the batch", "nats per token", (("reverse_kl", "reverse KL"),)),
    ("Entropy", "nats per token", (("student.entropy", "student"), ("teacher.entropy", "teacher"))),
    ("Reward in the batch", "", (("reward", "reward"),)),
    ("Length of answers", "tokens", (("length", "length"),)),
    ("Answers cut off", "share", (("truncated", "cut off"),)),
    ("Gradient norm", "before the cut", (("grad_norm", "gradient norm"),)),
    ("Learning rate", "", (("lr", "learning rate"),)),
)
INSIDE: Curves = (
    ("Log-prob of what was written", "nats", (("student.chosen", "student"), ("teacher.chosen", "teacher"))),
    ("Teacher against student", "mean log-ratio, nats", (("ratio", "log-ratio"),)),
    ("Overlap of the best tokens", "share", (("support.overlap", "overlap"),)),
    ("Student on the teacher's best tokens", "share", (("support.mass", "mass"),)),
    ("Written outside the teacher's best tokens", "share", (("support.outside", "outside"),)),
    ("Negative advantage", "share", (("advantage.negative", "negative"),)),
    ("Advantage of the greatest", "share", (("advantage.top1", "1% of tokens"), ("advantage.top10", "10%"))),
    ("In a loop", "share", (("loops", "tokens"),)),
    ("Teacher and loops", "log-prob, nats", (("loops.teacher.inside", "inside"), ("loops.teacher.outside", "outside"))),
    ("Teacher's order of answers and the reward", "rank correlation", (("reward.rank", "Spearman"),)),
    ("Writing against learning", "nats", (("engine.gap", "mean gap"), ("engine.gap.max", "largest"))),
)
EXACT = {"lr"}  # not measured, so not smoothed
RARE = {"truncated", "loops"}  # need no curve while they are 0
ELSEWHERE = {"step", "tokens", "teacher_tokens", "length.max", *(f"seconds.{phase}" for phase in PHASES)}
FAMILIES = ("ratio.at.", "ratio.on.", "kinds.")  # drawn as bars
MEMBER = re.compile(r"(teacher|reference)\.(.+)\.(rows|loss)")  # of several who share a role
SHARED = {"rows": ("Learned tokens by {}", "share"), "loss": ("Loss by {}", "")}


@dataclass(frozen=True)
class Line:
    """One curve; low and high are the edges of its interval."""

    label: str
    role: Role
    y: Values
    low: Values | None = None
    high: Values | None = None


@dataclass(frozen=True)
class Figure:
    title: str
    unit: str
    x: list[float]
    lines: list[Line]
    spoken: str  # the figure in one sentence, for whoever can't see it
    about: str = ""  # what it is and what is healthy, to be read under it

    def to_json(self) -> Table:
        return asdict(self)


# ---- examinations


def examinations(run: Folder, baselines: Sequence[Folder]) -> list[Figure]:
    """Held-out accuracy, return, reverse KL and entropy over the steps, beside the baselines and the teacher."""
    figures = [
        _examined(f"{kind.capitalize()} {what}, held out", unit, f"eval.{kind}{end}", run, baselines)
        for what, unit, end in (("accuracy", "share", ""), ("return", "", ".return"))
        for kind in KINDS
    ]
    for title, name in (("Reverse KL", "eval.reverse_kl"), ("Entropy", "eval.entropy")):
        figures.append(_examined(f"{title}, held out", "nats per token", name, run, baselines))
    return [figure for figure in figures if figure]


def _examined(title: str, unit: str, name: str, run: Folder, baselines: Sequence[Folder]) -> Figure | None:
    runs = [(run, "run"), *((other, "baseline") for other in baselines)]
    x = sorted({line["step"] for folder, _ in runs for line in folder.exams if line.get(name) is not None})
    if not any(line.get(name) is not None for line in run.exams):
        return None
    lines = list[Line]()
    for folder, role in runs:
        at = {line["step"]: line for line in folder.exams}
        y = [at.get(step, {}).get(name) for step in x]
        low, high = ([_edge(at.get(step, {}), name, sign) for step in x] for sign in (-1, 1))
        is_run = role == "run"
        lines.append(Line(folder.label, "run" if is_run else "baseline", y, *((low, high) if is_run else (None, None))))
    if (level := _teacher_level(run, name)) is not None:
        lines.append(Line("teacher", "teacher", [level] * len(x)))
    return Figure(title, unit, [float(step) for step in x], lines, spoken(title, x, lines[0].y))


def _edge(line: Table, name: str, sign: int) -> float | None:
    """The lower or upper end of an interval: written so, or 1.96 standard errors away."""
    if (edge := line.get(f"{name}.{'low' if sign < 0 else 'high'}")) is not None:
        return edge
    value, error = line.get(name), line.get(f"{name}.error")
    return None if value is None or error is None else value + sign * 1.96 * error


def _teacher_level(run: Folder, name: str) -> float | None:
    if not run.teacher:
        return None
    exam = from_json(run.teacher)
    levels = {f"eval.{kind}": exam.shares[kind] for kind in KINDS}
    levels |= {f"eval.{kind}.return": exam.returns[kind] for kind in KINDS}
    share = levels.get(name)
    return share.value if share else exam.entropy if name == "eval.entropy" else None


# ---- training


def training(run: Folder) -> list[Figure]:
    """What every step measured, in the order that people look for."""
    figures = list[Figure | None]()
    for title, unit, metrics in CURVES:
        figures.append(curve(run, title, unit, [pair for pair in metrics if is_worth(run, pair[0])]))
    return [figure for figure in [*figures, *several(run)] if figure]


def several(run: Folder) -> list[Figure | None]:
    """How much each of several teachers had to say, and the loss of that; one that is starved is drawn, too."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for name in dict.fromkeys(name for line in run.batches for name in line):
        if found := MEMBER.fullmatch(name):
            lines.setdefault((found[1], found[3]), {})[name] = found[2]
    return [
        curve(run, SHARED[kind][0].format(role), SHARED[kind][1], list(members.items()), sentence(f"{role}.x.{kind}"))
        for (role, kind), members in lines.items()
    ]


def further(run: Folder) -> list[Figure]:
    """Whatever else a method measured, under its own name; what never changes is left out."""
    known = ELSEWHERE | {name for _, _, metrics in CURVES + INSIDE for name, _ in metrics}
    names = dict.fromkeys(name for line in run.batches for name in line if name not in known)
    names = {name: None for name in names if not (name.startswith(FAMILIES) or MEMBER.fullmatch(name))}
    own = [name for name in names if _varies(run, name)]
    figures = [curve(run, name, "", [(name, name)], sentence(name)) for name in own]
    return [figure for figure in figures if figure]


def curve(run: Folder, title: str, unit: str, metrics: Sequence[tuple[str, str]], about: str = "") -> Figure | None:
    """Some metrics over the steps, in one figure."""
    if not metrics or not run.batches:
        return None
    x = _means([float(line["step"] + 1) for line in run.batches])
    lines = list[Line]()
    for number, (name, label) in enumerate(metrics):
        raw = _means([_number(line.get(name)) for line in run.batches])
        width = 0 if name in EXACT else len(raw) // WINDOWS
        lines.append(Line(label, "second" if number else "run", _smooth(raw, width) if width > 1 else raw))
        if width > 1 and len(metrics) == 1:
            lines.append(Line("each step", "raw", raw))
    return Figure(title, unit, [value or 0.0 for value in x], lines, spoken(title, x, lines[0].y), about)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def is_worth(run: Folder, name: str) -> bool:
    """Measured at all; that no answer was ever cut off needs no curve."""
    values = {_number(line.get(name)) for line in run.batches} - {None}
    return bool(values) and (name not in RARE or values != {0.0})


def _varies(run: Folder, name: str) -> bool:
    return len({line.get(name) for line in run.batches if _number(line.get(name)) is not None}) > 1


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{fmean(known):.5g}") if known else None


def _means(values: Sequence[float | None]) -> Values:
    """At most MOST points: means over pieces of equal length."""
    size = -(-len(values) // MOST)
    return [_mean(values[start : start + size]) for start in range(0, len(values), size)] if size > 1 else list(values)


def _smooth(values: Values, width: int) -> Values:
    """Centred running means."""
    half = width // 2
    return [_mean(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]


def spoken(title: str, x: Sequence[float | None], y: Values) -> str:
    known = [(step, value) for step, value in zip(x, y, strict=True) if value is not None]
    if not known:
        return f"{title}: no value."
    (first, start), (end, stop) = known[0], known[-1]
    return f"{title}: {start:.3g} at step {first:g}, {stop:.3g} at step {end:g}."


# ---- time


@dataclass(frozen=True)
class Phase:
    """One phase of all steps together."""

    name: str
    seconds: float
    of_longest: float  # share of the longest run on the page: the width of its bar
    of_run: float  # share of its own run
    rate: float | None  # tokens per second


@dataclass(frozen=True)
class Times:
    """Where the time of a run went; examinations are not counted."""

    label: str
    seconds: float
    tokens: int  # that were learned from
    phases: list[Phase]


def times(runs: Sequence[Folder]) -> list[Times]:
    """The runs that have done a step."""
    longest = max((seconds(run) for run in runs), default=0.0)
    return [_times(run, longest) for run in runs if seconds(run) > 0]


def _times(run: Folder, longest: float) -> Times:
    total, written = seconds(run), sum(line.get("tokens") or 0.0 for line in run.batches)
    phases = list[Phase]()
    for name in PHASES:
        spent = sum(line.get(f"seconds.{name}") or 0.0 for line in run.batches)
        phases.append(Phase(name, spent, spent / longest, spent / total, written / spent if spent > 0 else None))
    return Times(run.label, total, round(written), phases)
