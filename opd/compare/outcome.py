"""What the finished runs of a comparison say: one line per method, and differences that are paired where they can be.

Axes: S seeds, P problems that every examination has graded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from opd.bootstrap import Interval, crossed, over_seeds
from opd.compare.plan import Trial
from opd.evaluate import Z, wilson
from opd.record import read_metrics
from opd.rollout import Array

Exam = dict[str, Any]  # an examination as Evaluation.to_json writes it
Exams = dict[int, Exam]  # by seed
Measure = Literal["sampled", "greedy", "return", "reverse_kl"]

GRADED: tuple[Measure, ...] = ("sampled", "greedy")
COSTS = ("steps", "seconds", "tokens", "teacher_tokens", "memory")
LATE = 10  # the entropy is a mean over the last of so many parts of a run


@dataclass(frozen=True)
class Ran:
    """One trial: what its folder says when it is finished, why it is not when it is not."""

    trial: Trial
    error: str = ""
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # of metrics.jsonl

    @cached_property
    def entropy(self) -> float | None:
        """Of the student's next token in the batches of the last tenth of its steps, in nats."""
        seen = [line["student.entropy"] for line in self.lines if line.get("student.entropy") is not None]
        return fmean(seen[-max(1, len(seen) // LATE) :]) if seen else None


def look(trial: Trial, errors: dict[Path, str]) -> Ran:
    """A trial as it ended."""
    file = trial.folder / "summary.json"
    if not file.is_file():
        return Ran(trial, errors.get(trial.folder, "did not run"))
    return Ran(trial, "", json.loads(file.read_text(encoding="utf-8")), read_metrics(trial.folder))


@dataclass(frozen=True)
class Line:
    """One line of the table: means over the seeds; a number that was not measured is missing."""

    role: Literal["before", "method", "teacher"]
    label: str
    numbers: dict[str, Interval]
    lr: float | None = None
    seeds: tuple[int, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """`label` minus `other`, in shares of 1 or in nats."""

    label: str
    other: str
    measure: Measure
    interval: Interval
    seeds: int
    problems: int


@dataclass(frozen=True)
class Field:
    """All reported trials, ready to be held against one another."""

    runs: tuple[Ran, ...]

    @cached_property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(run.trial.entrant.label for run in self.runs))

    def of(self, label: str) -> list[Ran]:
        return [run for run in self.runs if run.trial.entrant.label == label]

    def done(self, label: str) -> list[Ran]:
        return [run for run in self.of(label) if run.summary]

    def after(self, label: str) -> Exams:
        return {run.trial.seed: run.summary["student_after"] for run in self.done(label)}

    def before(self) -> Exams:
        """Of the untaught student, which is the same for every method."""
        return {run.trial.seed: run.summary["student_before"] for run in self.runs if run.summary}

    def teacher(self) -> Exams:
        """Of the teacher, where it writes; a method whose teacher is a copy of the student has none of its own."""
        return {run.trial.seed: run.summary["teacher"] for run in self.runs if run.summary.get("teacher")}

    @cached_property
    def problems(self) -> list[str]:
        """Those that every examination has graded, in the order of the first."""
        exams = [exam for label in self.labels for exam in self.after(label).values()] + list(self.before().values())
        graded = [exam[kind]["by_problem"] for exam in exams for kind in GRADED]
        return [name for name in graded[0] if all(name in grades for grades in graded)] if graded else []

    @property
    def measure(self) -> Measure:
        """What verdicts are about: sampled accuracy; where the task grades nothing, the return or the reverse KL."""
        return "sampled" if self.problems else "return" if returns(self.before()) else "reverse_kl"

    @property
    def task(self) -> str:
        return self.runs[0].trial.settings.task if self.runs else ""

    @cached_property
    def has_marks(self) -> bool:
        """Whether grades lie between 0 and 1: then a mean grade is shown, which is no accuracy."""
        exams = [exam for label in self.labels for exam in self.after(label).values()]
        return any(
            (share := exam["sampled"]["accuracy"]) and abs(share["value"] - exam["sampled"]["grade"]) > 1e-9
            for exam in exams
        )

    def grades(self, exams: Exams, kind: Measure, seeds: Sequence[int]) -> Array:
        """[S, P] mean grade of every problem's answers."""
        return np.array([[exams[seed][kind]["by_problem"][name] for name in self.problems] for seed in seeds])

    # ---- lines

    def line(self, label: str) -> Line:
        done = self.done(label)
        numbers = self.examined(self.after(label))
        if entropies := [run.entropy for run in done if run.entropy is not None]:
            numbers["entropy"] = over_seeds(entropies)
        for name in COSTS if done else ():
            if all(name in run.summary for run in done):  # runs of before say nothing of their memory
                numbers[name] = over_seeds([run.summary[name] for run in done])
        errors = tuple(f"seed {run.trial.seed}: {run.error}" for run in self.of(label) if run.error)
        seeds = tuple(run.trial.seed for run in done)
        return Line("method", label, numbers, self.of(label)[0].trial.lr, seeds, errors)

    def examined(self, exams: Exams) -> dict[str, Interval]:
        """The numbers of one line that examinations give."""
        numbers: dict[str, Interval] = {}
        if not exams:
            return numbers
        seeds = sorted(exams)
        if self.problems and all(self._has_graded(exam) for exam in exams.values()):
            numbers |= {kind: share(self.grades(exams, kind, seeds)) for kind in GRADED}
        if earned := returns(exams):
            numbers["return"] = over_seeds([earned[seed] for seed in seeds])
        if all(exam["kl"] for exam in exams.values()):
            numbers["reverse_kl"] = divergence([exams[seed]["kl"] for seed in seeds])
        numbers["length"] = over_seeds([exams[seed]["sampled"]["length"] for seed in seeds])
        return numbers

    def _has_graded(self, exam: Exam) -> bool:
        return all(name in exam[kind]["by_problem"] for kind in GRADED for name in self.problems)

    # ---- differences

    def difference(self, label: str, other: str, measure: Measure) -> Difference | None:
        """Between two methods, over the seeds that both have finished."""
        return self._difference(label, self.after(label), other, self.after(other), measure)

    def progress(self, label: str, measure: Measure) -> Difference | None:
        """Between a method and the student before training."""
        return self._difference(label, self.after(label), "the student before training", self.before(), measure)

    def _difference(self, label: str, ours: Exams, other: str, theirs: Exams, measure: Measure) -> Difference | None:
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return None
        if measure == "reverse_kl":
            if not all(exams[seed]["kl"] for exams in (ours, theirs) for seed in seeds):
                return None
            gaps = [ours[seed]["kl"]["per_token"] - theirs[seed]["kl"]["per_token"] for seed in seeds]
            return Difference(label, other, measure, over_seeds(gaps), len(seeds), 0)
        if measure == "return":
            earned, other_earned = returns(ours), returns(theirs)
            if not earned or not other_earned:
                return None
            gaps = [earned[seed] - other_earned[seed] for seed in seeds]
            return Difference(label, other, measure, over_seeds(gaps), len(seeds), 0)
        if not self.problems:
            return None
        gaps = self.grades(ours, measure, seeds) - self.grades(theirs, measure, seeds)
        return Difference(label, other, measure, crossed(gaps), len(seeds), len(self.problems))


def returns(exams: Exams) -> dict[int, float]:
    """The mean return of sampled episodes by seed; nothing where an examination knows of none."""
    found = {seed: exam["sampled"].get("returned") for seed, exam in exams.items()}
    return {seed: share["value"] for seed, share in found.items() if share} if all(found.values()) else {}


def share(grades: Array) -> Interval:
    """A mean of grades [S, P]; where all are right, or all wrong, resampling knows no width: Wilson's interval."""
    value = float(grades.mean())
    return Interval(value, *wilson(value * grades.shape[1], grades.shape[1])) if value in (0, 1) else crossed(grades)


def divergence(kls: Sequence[dict[str, Any]]) -> Interval:
    """The reverse KL over seeds; of a single one, with the error over its problems."""
    values = [kl["per_token"] for kl in kls]
    if len(kls) > 1 or kls[0]["per_token_error"] is None:
        return over_seeds(values)
    half = Z * kls[0]["per_token_error"]
    return Interval(values[0], values[0] - half, values[0] + half)
