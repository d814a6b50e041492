"""The comparison as one page without a network: the table first, verdicts in words, curves, settings, the runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources

from opd import cast as casting
from opd.bootstrap import Interval
from opd.compare.comparison import Comparison
from opd.compare.curves import TONES, figures, unit_of
from opd.compare.outcome import Difference, Line, Ran
from opd.compare.verdicts import CONTROLS, is_better, worded
from opd.report import filled
from opd.report.choices import Choice, described
from opd.report.result import worded as written
from opd.settings import Settings
from opd.words import said

SCRIPTS = ("vendor/uplot/uPlot.iife.min.js", "curves.js")
APART = {"method", "parameters", "seed", "out", "lr", "drafts", "logger", "eval_on", "tuning_problems"}


@dataclass(frozen=True)
class Row:
    """A line of the table with what the page needs to draw it."""

    line: Line
    tone: str
    detail: str


def render(comparison: Comparison) -> str:
    contest, found = comparison.contest, figures(comparison.contest, comparison.field)
    return filled(
        _resource("comparison.html"),
        {"figures": found},
        SCRIPTS,
        _resource("comparison.css"),
        comparison=comparison,
        said=lambda text: said(text, comparison.field.task),
        has_returns=any("return" in line.numbers for line in comparison.lines),
        contest=contest,
        task=contest.settings(contest.entrants[0]).task,
        budget=budget(contest.settings(contest.entrants[0])),
        rows=[_row(comparison, line) for line in comparison.lines],
        sentences=[
            (gap, f"{gap.label} against {gap.other}: {worded(gap, comparison.field)}.", tells(gap))
            for gap in comparison.differences
        ],
        headline=headline(comparison)[0],
        beside=headline(comparison)[1],
        curves=found,
        along=said(unit_of(contest).replace("_", " "), comparison.field.task),
        shared=shared(comparison),
        methods=[(entrant, described(entrant.method)) for entrant in contest.entrants],
        runs=[(run, link(run, comparison)) for run in comparison.field.runs],
        points=points,
    )


def headline(comparison: Comparison) -> tuple[str, str]:
    """What can be said about the best of the methods, and the difference that it rests on."""
    field, reference = comparison.field, comparison.contest.reference.label
    gaps = [gap for gap in comparison.differences if gap.measure == field.measure]
    if not gaps:
        return "No method could be held against another.", ""
    sign = -1 if field.measure == "reverse_kl" else 1
    best = max(gaps, key=lambda gap: sign * gap.interval.value)
    detail = f"{best.label} against {reference}: {worded(best, field)}."
    if is_better(best):
        return f"{best.label} is better than {reference}.", detail
    if best.interval.is_above or best.interval.is_below:
        return f"No method is better than {reference}, and none is as good.", detail
    return f"No method can be told to be better than {reference}.", detail


def tells(gap: Difference) -> str:
    """Whether an interval leaves no difference open."""
    if gap.interval.low is None:
        return "One seed gives no interval."
    return "" if gap.interval.is_above or gap.interval.is_below else "That cannot be told from no difference."


def _row(comparison: Comparison, line: Line) -> Row:
    labels = [entrant.label for entrant in comparison.contest.entrants]
    tone = f"--m{labels.index(line.label) % TONES}" if line.role == "method" else ""
    return Row(line, tone, _detail(comparison, line))


def _detail(comparison: Comparison, line: Line) -> str:
    if line.role != "method":
        return "the same for all" if line.role == "before" else ""
    entrant = next(e for e in comparison.contest.entrants if e.label == line.label)
    words = ["control"] if entrant.method in CONTROLS else []
    words += ["baseline"] if entrant is comparison.contest.reference else []
    words += [f"lr {line.lr:g}"] if line.lr is not None else []
    n = len(line.seeds)
    return ", ".join([*words, f"{n} seed{'' if n == 1 else 's'}"])


def budget(settings: Settings) -> str:
    """'20,000 teacher tokens'."""
    unit, _, amount = (settings.budget or f"steps={settings.steps}").partition("=")
    return f"{float(amount):,.10g} {said(unit.replace('_', ' '), settings.task)}"


def shared(comparison: Comparison) -> list[Choice]:
    """The settings that all runs share, with the default where it is another."""
    contest = comparison.contest
    settings = contest.settings(contest.entrants[0])
    teachers = {casting.teacher_spec(s, s.build_method()) for e in contest.entrants for s in [contest.settings(e)]}
    values = settings.model_dump(mode="json") | {"teacher": ", ".join(sorted(teachers))}
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    found = list[Choice]()
    for name, value in values.items():
        if name in APART:
            continue
        default = list(d) if isinstance(d := defaults[name], tuple) else d
        found.append(Choice(name, written(value), None if value == default else written(default)))
    return found


def link(run: Ran, comparison: Comparison) -> str:
    """Where a run's own page stands, seen from the comparison; empty where there is none."""
    page = run.trial.folder / "report.html"
    return os.path.relpath(page, comparison.contest.out).replace(os.sep, "/") if page.is_file() else ""


def points(interval: Interval, factor: float, digits: int) -> str:
    """The edges of an interval as a person reads them."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{factor * interval.low:.{digits}f} to {factor * interval.high:.{digits}f}"


def _resource(name: str) -> str:
    return resources.files("opd.compare").joinpath(name).read_text(encoding="utf-8")
