"""What can be wrong where a policy acts: too little time, no success to reach, a teacher that is the worse of two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from opd.doctor.case import Case
from opd.doctor.finding import Finding, finding
from opd.doctor.trial import Trial
from opd.rollout import Array, Rollout


def time(case: Case) -> Iterator[Finding]:
    """An episode ends when the environment ends it, and not before."""
    ours, theirs = case.settings.max_new, world(case).limit
    if theirs is None:
        evidence = f"the environment sets no limit, so that episodes end at --max-new {ours} decisions"
        yield finding("time", False, evidence)
        return
    evidence = f"the environment ends an episode at {theirs} decisions, --max-new at {ours}"
    yield finding("time", ours < theirs, evidence, f"Give --max-new {theirs}", environment=theirs, ours=ours)


def success(case: Case) -> Iterator[Finding]:
    """Somebody has said from which return on an episode is a success."""
    least = world(case).success
    evidence = "returns alone can be measured: nobody has said which of them is a success"
    if least is not None:
        evidence = f"an episode with a return of {least:g} or more"
    yield finding("success", least is None, evidence, "Give success=RETURN in --task")


def returns(trial: Trial) -> Iterator[Finding]:
    """The teacher earns more than the student, and some episodes are a success and some are not."""
    earned = {who: tagged(rollouts, "return") for who, rollouts in sides(trial).items()}
    shares = {who: tagged(rollouts, "reward") == 1 for who, rollouts in sides(trial).items()}
    means = {who: float(values.mean()) for who, values in earned.items()}
    graded = world(trial.case).success is not None
    evidence = "mean return " + ", ".join(f"{mean:.4g} of the {who}" for who, mean in means.items())
    evidence += "; success " + ", ".join(f"{share.mean():.0%}" for share in shares.values()) if graded else ""
    fault, remedy = ("", "") if trial.case.is_copy else what_is_odd(earned, shares, graded)
    evidence += f": {fault}" if fault else ""
    yield replace(finding("return", bool(fault), evidence, remedy), numbers=means)


def what_is_odd(earned: dict[str, Array], shares: dict[str, Array], has_success: bool) -> tuple[str, str]:
    """Two standard errors of the difference are chance."""
    if "teacher" in earned:
        ours, theirs = earned["student"], earned["teacher"]
        error = float(np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs)))
        if theirs.mean() < ours.mean() - 2 * error:
            return "the student is better than its teacher", "Check that --student and --teacher are not swapped"
    if has_success and not any(share.any() for share in shares.values()):
        return "nobody ever succeeds", "Look at the teacher, at --max-new and at success= in --task"
    if has_success and all(share.all() for share in shares.values()):
        return "nobody ever fails", "There is nothing left to learn here; look at success= in --task"
    return "", ""


def sides(trial: Trial) -> dict[str, list[Rollout]]:
    return {"student": trial.answers} | ({"teacher": trial.own} if trial.own else {})


def tagged(rollouts: Sequence[Rollout], name: str) -> Array:
    return np.array([rollout.tags[name] for rollout in rollouts])


def world(case: Case) -> Any:
    return case.student.world  # pyright: ignore[reportAttributeAccessIssue]
