"""The curves of all methods over what was spent: a thin line per seed, a thick one for their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from opd.budget import cost
from opd.compare.outcome import Exams, Field, Ran
from opd.compare.plan import Contest
from opd.compare.verdicts import CONTROLS
from opd.words import said

POINTS = 120  # of a line at most; more steps are drawn as means over equal pieces
TONES = 8  # colours that the page has
DASH = [6, 4]  # controls are dashed

EXAMS = (  # title, unit, metric, the key of the teacher's level
    ("Sampled accuracy, held out", "share", "eval.sampled", "sampled"),
    ("Greedy accuracy, held out", "share", "eval.greedy", "greedy"),
    ("Sampled return, held out", "", "eval.sampled.return", ""),
    ("Reverse KL, held out", "nats per token", "eval.reverse_kl", ""),
)
BATCHES = (
    ("Reward in the batch", "", "reward"),
    ("Reverse KL in the batch", "nats per token", "reverse_kl"),
    ("Entropy of the student", "nats per token", "student.entropy"),
    ("Length of answers", "tokens", "length"),
    ("Gradient norm", "before the cut", "grad_norm"),
)

Curve = list[tuple[float, float]]  # (spent, value)
Figure = dict[str, Any]


def figures(contest: Contest, field: Field) -> dict[str, list[Figure]]:
    """What the page draws: held-out examinations, and the batches."""
    unit = unit_of(contest)
    exams = [_figure(contest, field, title, how, name, unit, _examined) for title, how, name, _ in EXAMS]
    for figure, (_, _, _, kind) in zip(exams, EXAMS, strict=True):
        if figure["lines"] and kind and (level := _level(field.teacher(), kind)) is not None:
            figure["lines"].append({"label": "teacher", "role": "teacher", "y": [level] * len(figure["x"])})
    batches = [_figure(contest, field, title, how, name, unit, _measured) for title, how, name in BATCHES]
    return {kind: [f for f in found if f["lines"]] for kind, found in (("exams", exams), ("batches", batches))}


def unit_of(contest: Contest) -> str:
    """In what the budget is measured: the axis of every figure."""
    end = contest.settings(contest.entrants[0]).end()
    return end.unit if end else "steps"


def _figure(contest: Contest, field: Field, title: str, how: str, name: str, unit: str, read: Any) -> Figure:
    curves: list[tuple[dict[str, Any], Curve]] = []
    for number, entrant in reversed([*enumerate(contest.entrants)]):  # the first is drawn last, on top
        seeds = [curve for run in field.done(entrant.label) if (curve := read(run, name, unit))]
        if not seeds:
            continue
        tone, dash = f"--m{number % TONES}", DASH if entrant.method in CONTROLS else None
        thin = {"label": entrant.label, "role": "raw", "tone": f"{tone}-thin"}
        curves += [(thin, curve) for curve in seeds] if len(seeds) > 1 else []
        curves.append(({"label": entrant.label, "role": "method", "tone": tone, "dash": dash}, mean(seeds)))
    x = sorted({place for _, curve in curves for place, _ in curve})
    lines = [{**line, "y": [dict(curve).get(place) for place in x]} for line, curve in curves]
    along = {"steps": "step", "teacher_tokens": "teacher tokens"}.get(unit, unit)
    ends = [f"{line['label']} {curve[-1][1]:.3g}" for line, curve in curves if line["role"] == "method"]
    return {
        "title": said(title, field.task),
        "unit": said(how, field.task),
        "x": x,
        "lines": lines,
        "along": along,
        "spoken": f"{title}, at the end: {', '.join(ends)}.",
    }


def _level(teacher: Exams, kind: str) -> float | None:
    shares = [exam[kind]["accuracy"] for exam in teacher.values()]
    return fmean(share["value"] for share in shares) if shares and all(shares) else None


def _examined(run: Ran, name: str, unit: str) -> Curve:
    """A number of every examination, where the run stood then."""
    spent = {int(line["step"]) + 1: at for line, at in _spending(run, unit)} | {0: 0.0}
    lines = {line["step"]: line for line in run.lines if "loss" not in line}
    return [(_round(spent[step]), lines[step][name]) for step in sorted(lines) if _is_number(lines[step].get(name))]


def _measured(run: Ran, name: str, unit: str) -> Curve:
    """A number of every step, as means over pieces of as many steps each."""
    points = [(at, line[name]) for line, at in _spending(run, unit) if _is_number(line.get(name))]
    size = -(-len(points) // POINTS) if points else 1
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(_round(piece[-1][0]), fmean(value for _, value in piece)) for piece in pieces]


def _spending(run: Ran, unit: str) -> list[tuple[dict[str, Any], float]]:
    """Every step with what was spent when it ended."""
    found, spent = list[tuple[dict[str, Any], float]](), 0.0
    for line in run.lines:
        if "loss" in line:
            spent += cost(unit, line)
            found.append((line, spent))
    return found


def mean(curves: Sequence[Curve]) -> Curve:
    """Point by point; the last of one is set against the last of the others, whatever their lengths."""
    n = min(map(len, curves))
    matched = [[*curve[: n - 1], curve[-1]] for curve in curves]
    return [(_round(fmean(x for x, _ in points)), fmean(y for _, y in points)) for points in zip(*matched, strict=True)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _round(value: float) -> float:
    return float(f"{value:.5g}")
