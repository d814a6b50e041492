"""A probe from beginning to end: texts are written, a copy is fitted, scores are held against grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from opd.bootstrap import Interval, crossed, resampled
from opd.errors import DataError, SettingError, TeacherError
from opd.probe.alignment import alignments
from opd.probe.fit import Fit, Fitting, climb, held, ladder
from opd.probe.notes import notes
from opd.probe.plan import Parts, Plan
from opd.probe.report import Report
from opd.probe.texts import Read, cut, read, rewards, written
from opd.probe.verdict import verdict
from opd.probe.watching import Nobody, Watch
from opd.protocols import Cast, Task
from opd.rollout import Array, Group, Visit
from opd.settings import Settings

NEEDS = frozenset({"text", "chosen"})


def probe(settings: Settings, plan: Plan, cast: Cast, task: Task, watch: Watch | None = None) -> Report:
    """Measures a pair on a task; the method of the settings is `sft`, and the student is left as it was.

    Raises a TeacherError for a teacher that cannot write or gives no log-probs, a DataError for too few problems or for
    a task that does not grade these answers.
    """
    check(cast)
    watch = watch or Nobody()
    parts, student = Parts.of(plan, task), cast["student"]
    write = lambda who: written(settings, cast, task, who, parts.test, plan.samples, watch)
    own, text = write("student"), write("teacher")
    check_graded(task, own, text)
    watch.said(f"student and teacher wrote {plan.samples} answers to each of {len(parts.test)} held-out problems")
    ours, untaught, start = read(settings, cast, own), read(settings, cast, text), held(student)
    try:
        fitting, inside = fitted(settings, plan, cast, parts, task, watch)
        student.load_state_dict(fitting.likeliest)
        theirs = read(settings, cast, text)
        student.load_state_dict(fitting.right)
        copy = write("student")
    finally:
        student.load_state_dict(start)
    watch.said("the fitted copy wrote as many")
    gap, shortfall, aligned = excess(theirs), difference(text, copy), alignments(ours, rewards(own))
    writers = {"student": own, "fitted copy": copy, "teacher": text}
    found = Report(
        problems={"learned": len(parts.fit), "tuning": len(parts.tune), "measured": len(parts.test)},
        samples=plan.samples,
        entropy=per_token(theirs, -theirs.teacher),
        gap_before=excess(untaught),
        gap=gap,
        gap_learned=min(fit.learned for fit in fitting.fits) - fitting.floor,
        grades={name: mean_grade(groups) for name, groups in writers.items()},
        lead=difference(text, own),
        shortfall=shortfall,
        cut={name: cut(groups) for name, groups in writers.items()},
        steps=settings.steps,
        fits=fitting.fits,
        inside=inside,
        alignments=aligned,
        verdict=verdict(gap, shortfall, aligned[0], plan, len(parts.test)),
    )
    return replace(found, notes=tuple(notes(found, plan)))


def check(cast: Cast) -> None:
    """A teacher of its own that can write, and say how likely a token is."""
    teacher = cast["teacher"]
    if getattr(teacher, "student", None) is cast["student"]:
        raise SettingError("a copy of the student is one by construction", expected="a --teacher with its own weights")
    if missing := NEEDS - teacher.can:
        raise TeacherError(
            f"a probe needs a teacher that writes and gives log-probs; {teacher.name} can't",
            got=f"no {' and no '.join(sorted(missing))}",
            expected=sorted(NEEDS),
            remedy="Use a local teacher",
        )


def check_graded(task: Task, *texts: Sequence[Group]) -> None:
    """Some problem is graded in all its answers, or there is no reward to speak of."""
    if not any(bool(known(one).any()) for one in texts):
        what = f"task {task.name} does not grade these answers, and a probe holds scores against grades"
        raise DataError(what, remedy="Give every problem an answer, or name a grader= in --task")


def fitted(settings: Settings, plan: Plan, cast: Cast, parts: Parts, task: Task, watch: Watch) -> tuple[Fitting, bool]:
    """The teacher's text is written once; every rate learns from the same."""
    method = settings.build_method()
    visits = [Visit(problem, 0, settings.seed) for problem in parts.fit]
    learned = list[Group]()
    for start in range(0, len(visits), settings.batch):
        learned += method.sample(cast, visits[start : start + settings.batch], 0)
        watch.went("the teacher writes, problem", len(learned), len(visits))
    tuning = written(settings, cast, task, "teacher", parts.tune, 1, watch)
    watch.said(f"the teacher wrote {len(learned)} answers to learn from, {len(tuning)} to choose the rate with")
    some = learned[: len(parts.test)]  # enough of it to look at
    fitting = Fitting(settings, plan.samples, cast, task, method, parts, some, tuning, watch)

    def one(rate: float) -> Fit:
        fit = fitting.try_rate(rate)
        likely = f"{fit.tuning:.3f} nats per token on the tuning text after {fit.best} of {fit.steps} updates"
        watch.said(f"lr {rate:.2g}: {likely}, mean grade {fit.grade:.3f}")
        return fit

    if plan.rates:
        return fitting, climb(plan.rates, one, len(plan.rates))
    return fitting, climb(ladder(cast["student"]), one)


# ---- numbers over problems


def excess(text: Read) -> Interval:
    """How much likelier the teacher finds its text than the student does: the forward KL per token, by sampling."""
    return per_token(text, text.teacher - text.student)


def per_token(text: Read, each: Array) -> Interval:
    """The mean over all tokens; problems are drawn anew with all their tokens."""
    total, tokens = text.sums(each).sum(1), text.lengths.sum(1)
    return resampled(lambda drawn: float(total[drawn].sum() / tokens[drawn].sum()), len(total))


def known(*answers: Sequence[Group]) -> Array:
    """[P] bool: problems with a grade on every answer."""
    return ~np.any([np.isnan(rewards(groups)).any(1) for groups in answers], axis=0)


def mean_grade(groups: Sequence[Group]) -> Interval:
    return mean(rewards(groups)[known(groups)].mean(1))


def difference(better: Sequence[Group], worse: Sequence[Group]) -> Interval:
    """Of mean grades, problem by problem."""
    both = known(better, worse)
    return mean(rewards(better)[both].mean(1) - rewards(worse)[both].mean(1))


def mean(each: Array) -> Interval:
    """Of one number per problem."""
    return crossed(each[None]) if len(each) else Interval(float("nan"))
