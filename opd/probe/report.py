"""What a probe has measured, with its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opd.bootstrap import Interval
from opd.probe.alignment import Alignment
from opd.probe.fit import Fit
from opd.probe.verdict import Verdict


@dataclass(frozen=True)
class Report:
    """Everything that was measured. Gaps are in nats per token, log q - log pi on the teacher's own held-out text."""

    problems: dict[str, int]  # to learn from, to choose with, to measure on
    samples: int  # answers of each writer to a measured problem
    entropy: Interval  # of the teacher on its own text: the floor of -log pi, on average no model finds it likelier
    gap_before: Interval  # of the student as it is
    gap: Interval  # of the fitted copy that is best at it
    gap_learned: float  # the least gap that any fit had, at its end, on the text that it learned from
    grades: dict[str, Interval]  # mean grade of student, best graded copy and teacher, sampled at temperature 1
    lead: Interval  # teacher's mean grade minus the student's, problem by problem
    shortfall: Interval  # teacher's mean grade minus the fitted copy's
    cut: dict[str, float]  # the share of their answers that the limit of tokens ended
    steps: int  # updates that every fit might make
    fits: Sequence[Fit]
    inside: bool  # the best rate has a worse one on either side
    alignments: Sequence[Alignment]  # the first decides
    verdict: Verdict
    notes: Sequence[str] = ()
